"""From the figures of one or several reports to the document that is read."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_equiv.audit.cause_sections import layers, lie, worst
from lightning_equiv.audit.document import VERDICTS, Document, shown
from lightning_equiv.audit.error_sections import convergence, floor, profile, split, verdict
from lightning_equiv.audit.task_sections import classes, how, labels, moved
from lightning_equiv.audit.words import Figures, Side, percent
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
    title = "How equivariant is " + (reports[0]["name"] if side.one else " against ".join(side.names)) + "?"
    worst_of_all = max((r["verdict"] for r in reports), key=VERDICTS.index)
    subtitle = f"{' and '.join(dict.fromkeys(r['group'] for r in reports))}, {inputs} inputs"
    return Document(title, subtitle, worst_of_all, _headline(side), tuple(sections))


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
    tiles = [("relative error", percent(value), f"{percent(low)} to {percent(high)}")]
    if "floor" in r:
        least = r["floor"]["value"][0]
        tiles.append(("noise floor", shown(least), f"{shown(value / least)} times less" if least else "none"))
    if "worst" in r:
        tiles.append(("worst case", percent(r["worst"]["relative"]), f"input {r['worst']['input']}"))
    if "lie" in r:
        tiles.append(("exactly kept", r["lie"]["kept"], "of the generators"))
    if "labels" in r:
        tiles.append(("averaging removes", percent(r["labels"][TOTAL]["removed"][0]), "of the squared test error"))
    elif "classes" in r:
        tiles.append(("answers that change", percent(r["classes"]["changed"][0]), "under a random element"))
    return tuple(tiles[:5])
