"""Reports side by side, and how their figures are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_equiv.report.document import Table, shown
from lightning_equiv.symmetry.call import TOTAL

Figures = dict[str, Any]
TITLES = {
    "floor": "Noise floor",
    "spectrum": "Where the error lies",
    "profile": "Error against angle",
    "lengths": "Error against length of translation",
    "lie": "Infinitesimal error",
    "layers": "Layers",
    "worst": "Worst case",
    "labels": "With labels",
    "classes": "Classes",
    "task": "The task's own metric",
    "resampling": "Resampling",
    "inputs": "More inputs",
    "errors": "The error",
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

    def told(self, sentences: list[tuple[str, str]]) -> tuple[str, ...]:
        """Paragraphs of (name, sentence): once what is said of all of the reports, each by name what is not."""
        said = dict.fromkeys(sentence for _, sentence in sentences)
        found = []
        for sentence in said:
            names = [name for name, own in sentences if own == sentence]
            found.append(sentence if len(names) == len(self.names) else f"{enumerated(names)}: {sentence}")
        return tuple(found)

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

    def apart(self, title: str, columns: list[tuple[str, dict[str, str]]], first: str = "") -> tuple[Table, ...]:
        """One table of what all reports have alike, and one, with a column for each, of what differs."""
        if self.one:
            return (self.columns(title, columns, first),)
        rows = list(dict.fromkeys(key for _, column in columns for key in column))
        values = {row: [column.get(row, "–") for _, column in columns] for row in rows}
        complete = len(columns) == len(self.names)
        alike = tuple((row, each[0]) for row, each in values.items() if complete and len(set(each)) == 1)
        differ = [row for row in rows if row not in dict(alike)]
        tables = [Table(f"{title}, the same for all", (first, "value"), alike)] if alike else []
        if differ:
            own = [(name, {row: column[row] for row in differ if row in column}) for name, column in columns]
            tables.append(self.columns(f"{title}, where they differ" if alike else title, own, first))
        return tuple(tables)

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
        >>> [percent(v) for v in (0.0512, 0.9999, 1.234, 3e-7, 0.0)]
        ['5.1 %', '100 %', '123 %', '3e-07', '0']
    """
    if value is None or not math.isfinite(value):
        return "–"
    if _small(value) or abs(value) >= 1e4:
        return "0" if value == 0 else f"{value:.2g}"
    return f"{_hundredfold(value)} %"


def _small(value: float) -> bool:
    return abs(value) < 1e-3


def _hundredfold(value: float) -> str:
    return f"{100 * value:.2g}" if abs(100 * value) < 99.5 else f"{100 * value:.0f}"


def interval_words(i: Sequence[float | None]) -> str:
    """A share of 1 with its interval, in per cent, or in powers of ten where it is small.

    Examples:
        >>> interval_words((0.0512, 0.0481, 0.054)), interval_words((3.1e-7, 2.9e-7, 3.3e-7))
        ('5.1 % (4.8 to 5.4)', '3.1e-07 (2.9e-07 to 3.3e-07)')
    """
    value = i[0]
    if value is not None and math.isfinite(value) and (_small(value) or abs(value) >= 1e4):
        return _with_bounds(i, lambda v: "0" if v == 0 else f"{v:.2g}")
    return _with_bounds(i, percent, "%")


def share_words(i: Sequence[float | None]) -> str:
    """A share of 1 with its interval, in per cent however small it is.

    Examples:
        >>> share_words((0.8, 0.778, 0.822)), share_words((4.3e-5, -7.3e-5, 1.59e-4))
        ('80 % (78 to 82)', '0.004 % (-0.007 to 0.016)')
        >>> share_words((1.0, 1.0, 1.0)), share_words((2.1e-15, -1.2e-14, 1.6e-14))
        ('100 %', '2.1e-15 (-1.2e-14 to 1.6e-14)')
    """
    if max((abs(v) for v in i if v is not None), default=0.0) < 1e-5:
        return interval_words(i)
    return _with_bounds(i, percent, "%")


def plainly(i: Sequence[float | None]) -> str:
    """A figure with its interval, not in per cent.

    Examples:
        >>> plainly((1.0874, 0.9851, 1.1897)), plainly((0.0578, 0.0541, 0.0613)), plainly((2e-7, 1e-7, 3e-7))
        ('1.09 (0.99 to 1.19)', '0.058 (0.054 to 0.061)', '2e-07 (1e-07 to 3e-07)')
    """
    value = i[0]
    if value is not None and math.isfinite(value) and (_small(value) or abs(value) >= 1e5):
        return _with_bounds(i, lambda v: "0" if v == 0 else f"{v:.2g}")
    return _with_bounds(i, shown, "")


def _with_bounds(i: Sequence[float | None], write: Callable[[float], str], unit: str | None = None) -> str:
    """Value and bounds, as `write` does it; in a unit, with as many decimals as the interval allows."""
    value, low, high = i
    if value is None or not math.isfinite(value):
        return "–"
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return f"{write(value)} (too few inputs for an interval)"
    if low == high == value or (high - low < 1e-6 * abs(value) and unit):
        return write(value)
    if unit is None:
        return f"{write(value)} ({write(low)} to {write(high)})"
    scale, mark = (100, " %") if unit else (1, "")
    half = scale * (high - low) / 2
    exponent = math.floor(math.log10(half))
    decimals = max(0, (1 if half < 2 * 10**exponent else 0) - exponent)
    digits = [f"{scale * v:.{decimals}f}" for v in (value, low, high)]
    digits = [text.lstrip("-") if float(text) == 0 else text for text in digits]
    return f"{digits[0]}{mark} ({digits[1]} to {digits[2]})"


def rounded(value: float | None) -> str:
    """A number to two digits, for one of which the size alone matters.

    Examples:
        >>> rounded(1.647e-07), rounded(7183000.0), rounded(128.4), rounded(3.14)
        ('1.6e-07', '7.2e+06', '130', '3.1')
    """
    if value is None or not math.isfinite(value):
        return "–"
    return f"{float(f'{value:.2g}'):.0f}" if 10 <= abs(value) < 1e5 else f"{value:.2g}"


def exact(r: Figures) -> bool:
    """Whether there is nothing but rounding in a report."""
    return bool(r["verdict"] == "exact to rounding")


def kept(r: Figures) -> str:
    """The directions of the algebra that are kept; of an exact network the derivative is rounding, too."""
    return "all" if exact(r) else str(r["lie"]["kept"])


def doubts(r: Figures) -> list[str]:
    """Inputs that may be declared wrongly."""
    return [u["input"] for u in r["unmoved"] if u["doubt"]]


def parts_of(figures: Figures) -> list[str]:
    """The outputs by name; "total" goes where it would be the only one once more.

    Examples:
        >>> parts_of({"total": 1, "1o": 1}), parts_of({"total": 1, "energy.0e": 1, "forces.1o": 1})
        (['1o'], ['total', 'energy.0e', 'forces.1o'])
    """
    rest = [part for part in figures if part != TOTAL]
    return rest if len(rest) == 1 else list(figures)


def enumerated(names: Sequence[str]) -> str:
    """Names in a sentence.

    Examples:
        >>> enumerated(["plain"]), enumerated(["plain", "augmentation", "REMUL"])
        ('plain', 'plain, augmentation and REMUL')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))


def listed(numbers: list[int], most: int = 8) -> str:
    """The first numbers of a list."""
    return ", ".join(map(str, numbers[:most])) + (", .." if len(numbers) > most else "")


def _series(intervals: list[Any]) -> dict[str, Any]:
    value, low, high = (list(side) for side in zip(*intervals, strict=True))
    has = all(x is not None and math.isfinite(x) for x in low)
    return {"value": value, "low": low if has else None, "high": high if has else None}
