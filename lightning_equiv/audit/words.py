"""Reports side by side, and how their figures are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_equiv.audit.document import Table, shown

Figures = dict[str, Any]
TITLES = {
    "floor": "Noise floor",
    "spectrum": "Where the error lies",
    "profile": "How far one may turn",
    "lengths": "Error against length of translation",
    "lie": "Generators",
    "layers": "Layers",
    "worst": "Worst case",
    "labels": "With labels",
    "classes": "Classes",
    "task": "The task's own metric",
    "resampling": "Resampling",
}


@dataclass(frozen=True)
class Side:
    """One report, or several side by side: what the sections of a document are written from.

    Attributes:
        reports: figures of each.
        names: of the reports, distinct.
    """

    reports: list[Figures]
    names: list[str]

    @property
    def one(self) -> bool:
        """Whether there is nothing to compare with."""
        return len(self.reports) == 1

    @property
    def each(self) -> list[tuple[str, Figures]]:
        """Names and figures."""
        return list(zip(self.names, self.reports, strict=True))

    def those(self, key: str) -> list[tuple[str, Figures]]:
        """Names and sections of the reports that have one."""
        return [(name, r[key]) for name, r in self.each if r.get(key)]

    def who(self, name: str) -> str:
        """What a sentence on one of several reports begins with."""
        return "" if self.one else f"{name}: "

    def title(self, name: str, words: str) -> str:
        """The title of a table or picture of one of several reports."""
        return words if self.one else f"{words}, {name}"

    def table(
        self, title: str, key: str, rows: Callable[[Figures], dict[str, str]], first: str = "", note: str = ""
    ) -> Table:
        """Rows by name, with a column for each report that has the section."""
        return self.columns(title, [(name, rows(section)) for name, section in self.those(key)], first, note)

    def columns(self, title: str, columns: list[tuple[str, dict[str, str]]], first: str = "", note: str = "") -> Table:
        """A table with a row for each name that some column has."""
        rows = list(dict.fromkeys(key for _, column in columns for key in column))
        header = (first, "value") if self.one else (first, *(name for name, _ in columns))
        body = tuple((row, *(column.get(row, "–") for _, column in columns)) for row in rows)
        return Table(title, header, body, note)

    def series(self, key: str, values: Callable[[Figures], list[Any]]) -> dict[str, Any]:
        """Intervals as the series of a picture."""
        return {name: _series(values(section)) for name, section in self.those(key)}

    @property
    def floor(self) -> float | None:
        """The largest floor of the reports."""
        values = [section["value"][0] for _, section in self.those("floor")]
        return max(values) if values else None


def unit_of(figures: Figures, part: str) -> str:
    """The unit of an output with a blank before it, where it is known."""
    units: dict[str, str] = figures["how"].get("units", {})
    known = [unit for name, unit in units.items() if part == name or part.startswith(f"{name}.") or not name]
    return f" {known[0]}" if known else ""


def percent(value: float | None) -> str:
    """A share of 1 in words that are read: per cent, or a power of ten where it is small.

    Examples:
        >>> [percent(v) for v in (0.0512, 1.234, 3e-7, 0.0)]
        ['5.1 %', '123 %', '3e-07', '0']
    """
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) < 1e-3:
        return "0" if value == 0 else f"{value:.2g}"
    return f"{100 * value:.3g} %" if abs(value) >= 1 else f"{100 * value:.2g} %"


def interval_words(i: Sequence[float | None], write: Callable[[float | None], str] = percent) -> str:
    """A figure with its interval."""
    if i[1] is None or not math.isfinite(i[1]):
        return f"{write(i[0])} (too few inputs for an interval)"
    return f"{write(i[0])} ({write(i[1])} to {write(i[2])})"


def plainly(i: Sequence[float | None]) -> str:
    """A figure with its interval, not in per cent."""
    return interval_words(i, shown)


def listed(numbers: list[int], most: int = 8) -> str:
    """The first numbers of a list."""
    return ", ".join(map(str, numbers[:most])) + (", .." if len(numbers) > most else "")


def _series(intervals: list[Any]) -> dict[str, Any]:
    value, low, high = (list(side) for side in zip(*intervals, strict=True))
    has = all(x is not None and math.isfinite(x) for x in low)
    return {"value": value, "low": low if has else None, "high": high if has else None}
