"""What a report says of the task, of the inputs, and of how it was measured."""

from __future__ import annotations

from lightning_equiv.audit.document import Section, Table, shown
from lightning_equiv.audit.words import TITLES, Figures, Side, interval_words, percent, plainly
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
    text, tables = [], []
    for name, s in side.those("labels"):
        share, low, high = s[TOTAL]["removed"]
        text.append(
            f"{side.who(name)}Of the squared error in a random orientation, {percent(share)} ({percent(low)} to "
            f"{percent(high)}) is variance over the orbit, which orbit averaging would remove."
        )
        rows = tuple((part, *(plainly(e[key]) for key in _LABELLED)) for part, e in s.items())
        title, header = side.title(name, "Root mean square error per number"), ("output", *_LABELLED.values())
        tables.append(Table(title, header, rows, "random orientation^2 = averaged^2 + spread^2."))
    for name, s in side.those("task"):
        values = tuple((words, shown(s[key])) for key, words in _LABELLED.items() if key in s)
        tables.append(Table(side.title(name, f"{TITLES['task']}: {s['name']}"), ("orientation", "value"), values))
    return Section("labels", TITLES["labels"], tuple(text), tuple(tables)) if tables else None


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
    text = ["Most wrong figures come from an input that should have been moved and was not."]
    tables = []
    for name, r in side.each:
        rows = tuple((u["input"], u["shape"], u["declared"], u["doubt"] or "–") for u in r["unmoved"])
        if rows:
            header = ("input", "shape", "declared", "doubt")
            tables.append(Table(side.title(name, "Inputs that no element moves"), header, rows))
        else:
            text.append(f"{side.who(name)}Every input is moved.")
    return Section("inputs", "What was not moved", tuple(text), tuple(tables))


def how(side: Side) -> Section:
    """How it was measured, and what was not."""
    tables = [side.columns("Settings", [(name, _settings(r)) for name, r in side.each])]
    missing = [
        (name, {TITLES.get(key, key): why for key, why in r["skipped"].items() if key in TITLES})
        for name, r in side.each
    ]
    if any(rows for _, rows in missing):
        tables.append(side.columns("Not measured, or not on all inputs", [m for m in missing if m[1]]))
    return Section("how", "How it was measured", (), tuple(tables))


def _settings(r: Figures) -> dict[str, str]:
    how = r["how"]
    size = f", {how['parameters']} parameters" if "parameters" in how else ""
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
