"""What a report says, apart from how it is written: sections of text, tables and pictures."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

VERDICTS = ("exact to rounding", "approximate", "not equivariant")
KINDS = {  # kind -> the keys that its data must have
    "bars": ("labels", "series"),
    "curve": ("x", "series"),
    "distribution": ("series",),
    "scatter": ("series",),
}
MOST_POINTS = 50  # of a scatter that are written out

_NUMBER = re.compile(r"[<>≤≥≈~±]?\s?[-−+]?[\d.]")


@dataclass(frozen=True)
class Table:
    """A table of text; what is in the first column names the row.

    Args:
        title: what it shows.
        header: names of the columns.
        rows: as long as the header, each.
        note: small print below it.

    Examples:
        >>> Table("Error", ("output", "error"), (("energy", "1e-3"), ("forces", "0.2 ± 0.1"))).numeric
        (False, True)
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(
                    f"expected each row of table {self.title!r} to have {len(self.header)} cells, one for each of "
                    f"{self.header}, got {row}"
                )

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Which columns hold numbers, and are therefore aligned on the right."""
        return tuple(_holds_numbers([row[i] for row in self.rows]) for i in range(len(self.header)))


@dataclass(frozen=True)
class Picture:
    """Numbers, and in which way they are drawn.

    A series of "bars" and "curve" is `{"value": [..], "low": [..] | None, "high": [..] | None}`: the values and, where
    there is one, the interval around each. None among the values is a gap.

    | kind | data |
    |---|---|
    | bars | `labels`, `series`; `horizontal`: the bars lie, for long labels |
    | curve | `x`, `series`; `lines`: name -> a slope through the origin, or the values at `x`; `line_label`: of all |
    | distribution | `series`: name -> one value for each input |
    | scatter | `series`: name -> `{"x": [..], "y": [..]}`; `lines`: name -> a slope through the origin |

    Every kind also takes `x_label` and `y_label` (of bars: what the labels are, what the bars measure), `floor`, below
    which nothing means anything, and `log`. An axis is logarithmic where the numbers along it are positive and span a
    decade; that along `x` of a curve where `y` is, or where `log_x` is given, and spans a factor of `log_x`, or of 30.

    Args:
        name: short; the title of its panel, with underscores as spaces.
        kind: "bars", "curve", "distribution" or "scatter".
        data: numbers, text and lists of them, as JSON has them.
        caption: what there is to see.

    Examples:
        >>> data = {"labels": ["1"], "series": {"all": {"value": [0.25]}}}
        >>> picture = Picture("by_degree", "bars", data, "The error.")
        >>> picture.title, picture.numbers().rows
        ('By degree', (('1', '0.25'),))
    """

    name: str
    kind: str
    data: dict[str, Any]
    caption: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"expected the kind of picture {self.name!r} to be one of {list(KINDS)}, got {self.kind!r}"
            )
        if missing := [key for key in KINDS[self.kind] if key not in self.data]:
            raise ValueError(f"the data of picture {self.name!r} ({self.kind}) lack {missing}")
        if empty := [key for key in KINDS[self.kind] if not len(self.data[key])]:
            raise ValueError(f"picture {self.name!r} has nothing to draw: {empty} are empty; leave it out")
        if self.kind in ("bars", "curve"):
            count = len(self.data["labels" if self.kind == "bars" else "x"])
            lists = {f"{name}: {part}": v for name, s in self.data["series"].items() for part, v in s.items()}
            lists |= {name: v for name, v in self.data.get("lines", {}).items() if isinstance(v, (list, tuple))}
            for name, values in lists.items():
                if values is not None and len(values) != count:
                    raise ValueError(
                        f"expected {count} numbers in {name!r} of picture {self.name!r}, got {len(values)}"
                    )

    @property
    def title(self) -> str:
        """The name, to be read."""
        words = self.name.replace("_", " ")
        return words[:1].upper() + words[1:]

    def numbers(self) -> Table:
        """What is drawn, as a table: of a distribution its quantiles, of a scatter the first points."""
        return _NUMBERS[self.kind](self)


@dataclass(frozen=True)
class Section:
    """A part of the document.

    Args:
        key: its name in links: letters, digits, "-" and "_".
        title: its heading.
        text: paragraphs; what stands between backticks is code.
        tables: after the text.
        pictures: after the tables.
    """

    key: str
    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", self.key):
            raise ValueError(f"expected a section's key of letters, digits, '-' and '_', got {self.key!r}")


@dataclass(frozen=True)
class Document:
    """A report. Several models stand side by side in it: as columns of tables and as series of pictures.

    Args:
        title: of the page.
        subtitle: which model, which data, which symmetry.
        verdict: "exact to rounding", "approximate" or "not equivariant"; "" where a report gives none.
        headline: up to five figures to read first: label, value, note.
        sections: in order, their keys distinct.
        whose: the names of those that the verdict is on, where it is not on all models.
    """

    title: str
    subtitle: str
    verdict: str
    headline: tuple[tuple[str, str, str], ...]
    sections: tuple[Section, ...]
    whose: str = ""

    def __post_init__(self) -> None:
        if self.verdict and self.verdict not in VERDICTS:
            raise ValueError(
                f"expected the verdict to be one of {list(VERDICTS)}, or '' for none, got {self.verdict!r}"
            )
        if len(self.headline) > 5:
            raise ValueError(f"expected at most five headline figures, got {len(self.headline)}")
        keys = [section.key for section in self.sections]
        if repeated := sorted({key for key in keys if keys.count(key) > 1}):
            raise ValueError(f"expected the sections' keys to be distinct, got {repeated} more than once")

    @property
    def label(self) -> str:
        """What stands before the verdict."""
        return f"Verdict on {self.whose}" if self.whose else "Verdict"

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Those of all sections, in order."""
        return tuple(picture for section in self.sections for picture in section.pictures)


def shown(value: float | None) -> str:
    """A number to three digits; a dash where there is none.

    Examples:
        >>> [shown(v) for v in (0.123456, 1.2e-7, 12345.6, 7, None)]
        ['0.123', '1.2e-07', '12346', '7', '–']
    """
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share of them lies, interpolated linearly.

    Examples:
        >>> quantile([4.0, 1.0, 2.0], 0.75)
        3.0
    """
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = ordered[math.floor(place)]
    return low + (place - math.floor(place)) * (ordered[math.ceil(place)] - low)


def present(values: Sequence[float | None] | None) -> list[float]:
    """Those that are numbers."""
    return [value for value in values or () if value is not None and math.isfinite(value)]


def _with_interval(series: dict[str, Any], i: int) -> str:
    low, high = ((series.get(part) or {i: None})[i] for part in ("low", "high"))
    value = shown(series["value"][i])
    return value if low is None or high is None else f"{value} ({shown(low)} to {shown(high)})"


def _bars_numbers(picture: Picture) -> Table:
    data, series = picture.data, picture.data["series"]
    rows = [(str(name), *(_with_interval(s, i) for s in series.values())) for i, name in enumerate(data["labels"])]
    return Table(picture.title, (data.get("x_label", ""), *series), tuple(rows), _small_print(picture))


def _curve_numbers(picture: Picture) -> Table:
    data, series, lines = picture.data, picture.data["series"], picture.data.get("lines", {})
    rows = [
        (
            shown(x),
            *(_with_interval(s, i) for s in series.values()),
            *(shown(line[i] if isinstance(line, (list, tuple)) else line * x) for line in lines.values()),
        )
        for i, x in enumerate(data["x"])
    ]
    return Table(picture.title, (data.get("x_label", "x"), *series, *lines), tuple(rows), _small_print(picture))


def _distribution_numbers(picture: Picture) -> Table:
    rows = []
    for name, values in picture.data["series"].items():
        some = present(values)
        quantiles = [shown(quantile(some, q)) if some else "–" for q in (0.0, 0.5, 0.95, 1.0)]
        rows.append((name, str(len(some)), *quantiles))
    return Table(picture.title, ("", "inputs", "least", "median", "95 %", "most"), tuple(rows), _small_print(picture))


def _scatter_numbers(picture: Picture) -> Table:
    data = picture.data
    points = [(name, x, y) for name, s in data["series"].items() for x, y in zip(s["x"], s["y"], strict=True)]
    rows = tuple((name, shown(x), shown(y)) for name, x, y in points[:MOST_POINTS])
    note = f"The first {MOST_POINTS} of {len(points)} points. " if len(points) > MOST_POINTS else ""
    header = ("", data.get("x_label", "x"), data.get("y_label", "y"))
    return Table(picture.title, header, rows, (note + _small_print(picture)).strip())


def _small_print(picture: Picture) -> str:
    intervals = any(
        isinstance(s, dict) and s.get("low") is not None and s.get("high") is not None
        for s in picture.data["series"].values()
    )
    floor = picture.data.get("floor")
    parts = (
        picture.data.get("y_label") if picture.kind in ("bars", "curve") else picture.data.get("x_label"),
        "intervals in brackets" if intervals else None,
        None if floor is None else f"floor {shown(floor)}",
    )
    text = "; ".join(part for part in parts if part)
    return text[:1].upper() + text[1:] + "." if text and picture.kind != "scatter" else ""


_NUMBERS = {
    "bars": _bars_numbers,
    "curve": _curve_numbers,
    "distribution": _distribution_numbers,
    "scatter": _scatter_numbers,
}


def _holds_numbers(cells: Sequence[str]) -> bool:
    some = [cell for cell in cells if cell.strip(" –-—")]
    return bool(some) and all(
        _NUMBER.match(cell) and 2 * sum(map(str.isalpha, cell)) < len(cell.replace(" ", "")) for cell in some
    )
