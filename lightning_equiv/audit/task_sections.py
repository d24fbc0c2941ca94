"""What a report says of the task, of the inputs, and of how it was measured."""

from __future__ import annotations

from lightning_equiv.audit.words import TITLES, Figures, Side, interval_words, plainly, unit_of
from lightning_equiv.report.document import Section, Table, shown
from lightning_equiv.symmetry.call import TOTAL

_LABELLED = {"as_is": "as it is", "averaged": "averaged", "variance": "spread", "oriented": "random orientation"}
_CLASSES = {
    "changed": "answers that change",
    "divergence": "KL divergence / nats",
    "right": "accuracy, as it is",
    "right_oriented": "accuracy, random orientation",
    "right_averaged": "accuracy, averaged",
}


def labels(side: Side) -> Section | None:
    """What the error costs."""
    found, tables = side.those("labels"), []
    text = []
    if found:
        text.append(
            "The squared error in a random orientation is that of the network averaged over all orientations, plus the "
            "spread between them: what orbit averaging would remove."
        )
    note = "Root mean square per number; (random orientation)² = averaged² + spread²."
    for part in dict.fromkeys(part for _, s in found for part in _labelled_parts(s)):
        columns = [(name, _cost(s[part])) for name, s in found if part in s]
        unit = unit_of(dict(side.each)[columns[0][0]], part).strip()
        title = f"Error of {part}{f' in {unit}' if unit else ''}"
        tables.append(side.columns(title, columns, "", note))
    if metrics := side.those("task"):
        values = [(name, {words: shown(s[key]) for key, words in _LABELLED.items() if key in s}) for name, s in metrics]
        tables.append(side.columns(f"{TITLES['task']}: {metrics[0][1]['name']}", values, "orientation"))
    return Section("labels", TITLES["labels"], tuple(text), tuple(tables)) if tables else None


def _labelled_parts(s: Figures) -> list[str]:
    """The outputs; their total mixes units where there are several."""
    return [part for part in s if part != TOTAL]


def _cost(e: Figures) -> dict[str, str]:
    rows = {words: plainly(e[key]) for key, words in _LABELLED.items()}
    return {**rows, "averaging removes, of the square": interval_words(e["removed"])}


def classes(side: Side) -> Section | None:
    """Answers that change."""
    if not side.those("classes"):
        return None

    def rows(s: Figures) -> dict[str, str]:
        return {
            words: plainly(s[key]) if key == "divergence" else interval_words(s[key])
            for key, words in _CLASSES.items()
            if key in s
        }

    return Section("classes", TITLES["classes"], (), (side.table("Answers on the orbits", "classes", rows),))


def moved(side: Side) -> Section:
    """Which inputs no element moves."""
    text = [
        "Most wrong figures come from an input that should have been moved and was not. What is not declared is "
        "not read: a network that reads it stops with an error."
    ]
    tables = []
    each = {
        name: tuple((u["input"], u["shape"], u["declared"], u["doubt"] or "–") for u in r["unmoved"])
        for name, r in side.each
    }
    alike = len(set(each.values())) == 1
    for name, rows in list(each.items())[: 1 if alike else None]:
        whose = "" if alike else f", {name}"
        if rows:
            header = ("input", "shape", "declared", "doubt")
            tables.append(Table(f"Inputs that no element moves{whose}", header, rows))
        else:
            text.append("Every input is moved." if alike else f"{name}: Every input is moved.")
    return Section("inputs", "What was not moved", tuple(text), tuple(tables))


def how(side: Side) -> Section:
    """How it was measured, and what was not."""
    tables = side.apart("Settings", [(name, _settings(r)) for name, r in side.each])
    missing = [
        (name, {TITLES.get(key, key): why for key, why in r["skipped"].items() if key in TITLES})
        for name, r in side.each
    ]
    if any(rows for _, rows in missing):
        tables += side.apart("Not measured, or not on all inputs", [m for m in missing if m[1]], "section")
    return Section("how", "How it was measured", (), tables)


def _settings(r: Figures) -> dict[str, str]:
    how = r["how"]
    size = f", {how['parameters']:,} parameters" if "parameters" in how else ""
    found = {
        "network": f"{how['network']}{size}",
        "group": r["group"],
        "inputs move by": r["symmetry"]["inputs"],
        "outputs move by": r["symmetry"]["outputs"],
        "inputs measured": str(how["inputs"]),
        "elements for each": "the whole group" if how.get("whole") else str(how["draws"]),
        "precision, device": f"{how['dtype']}, {how['device']}",
        "mode": "evaluation" + (", gradients on" if how.get("needs_grad") else ""),
        "seed": str(how["seed"]),
        "seconds": str(how["seconds"]),
        "versions": ", ".join(f"{name} {version}" for name, version in how["versions"].items()),
    }
    return {**found, "note": how["chunks"]} if "chunks" in how else found
