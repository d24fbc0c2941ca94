"""From the figures of one or several reports to the document that is read."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_equiv.audit.cause_sections import layers, lie, worst
from lightning_equiv.audit.error_sections import convergence, floor, profile, split, verdict
from lightning_equiv.audit.task_sections import classes, how, labels, moved
from lightning_equiv.audit.words import Figures, Side, enumerated, exact, kept, percent, rounded
from lightning_equiv.report.document import VERDICTS, Document
from lightning_equiv.symmetry.call import TOTAL

_SECTIONS = (verdict, floor, split, profile, lie, layers, worst, labels, classes, convergence, moved, how)


def document_of(reports: Sequence[Figures], names: Sequence[str] | None = None) -> Document:
    """The document of a report, or of several side by side.

    Args:
        reports: figures of each.
        names: of the reports; their models' by default.
    """
    side = Side(list(reports), list(names) if names is not None else _distinct([r["name"] for r in reports]))
    sections = [section for make in _SECTIONS if (section := make(side)) is not None]
    inputs = " and ".join(dict.fromkeys(str(r["how"]["inputs"]) for r in reports))
    title = f"How equivariant is {side.names[0]}?" if side.one else f"Equivariance: {', '.join(side.names)}"
    worst_of_all = max((r["verdict"] for r in reports), key=VERDICTS.index)
    these = [name for name, r in side.each if r["verdict"] == worst_of_all]
    whose = "" if len(these) == len(reports) else enumerated(these)
    draws = " and ".join(dict.fromkeys("all" if r["how"].get("whole") else str(r["how"]["draws"]) for r in reports))
    subtitle = f"{' and '.join(dict.fromkeys(r['group'] for r in reports))}, {inputs} inputs, {draws} elements for each"
    return Document(title, subtitle, worst_of_all, _headline(side), tuple(sections), whose)


def _worst_output(r: Figures) -> str:
    """Of several outputs the one with the largest error, of those that have the verdict; "" where no more than all."""
    if len(r["error"]) < 3 or exact(r):
        return ""
    values = {part: i[0] or 0.0 for part, i in r["error"].items() if r["verdicts"][part] == r["verdict"]}
    worst = max(values, key=values.__getitem__)
    return worst if worst != TOTAL and values[worst] > (r["error"][TOTAL][0] or 0.0) else ""


def _distinct(names: list[str]) -> list[str]:
    """The names, numbered where two are the same."""
    return [f"{name} ({i + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _headline(side: Side) -> tuple[tuple[str, str, str], ...]:
    """Up to five figures to read first."""
    if not side.one:
        measured = [(name, r) for name, r in side.each if "error" in r]
        return tuple((name, percent(r["error"][TOTAL][0]), r["verdict"]) for name, r in measured[:5])
    (r,) = side.reports
    if "error" not in r:
        return ()
    value, low, high = r["error"][TOTAL]
    few = low is None or not math.isfinite(low)
    interval = "too few inputs for an interval" if few else f"95 % interval {percent(low)} to {percent(high)}"
    if worst := _worst_output(r):
        interval = f"in total, {interval}; {worst} {percent(r['error'][worst][0])}"
    tiles = [("relative error", percent(value), interval)]
    if "floor" in r:
        least = r["floor"]["value"][0]
        times = f"the error is {rounded(value / least)} times that" if least else "none"
        tiles.append(("noise floor", rounded(least), times))
    if "worst" in r:
        tiles.append(("worst case", percent(r["worst"]["relative"]), f"input {r['worst']['input']}"))
    if "lie" in r:
        tiles.append(("generators kept", kept(r), "exactly, see below"))
    if "labels" in r:
        tiles.append(("averaging removes", percent(r["labels"][TOTAL]["removed"][0]), "of the squared test error"))
    elif "classes" in r:
        tiles.append(("answers that change", percent(r["classes"]["changed"][0]), "under a random element"))
    return tuple(tiles[:5])
