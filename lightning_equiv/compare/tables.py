"""Tables of a comparison: a row for each way, a column for each figure, or a column for each of many cases."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median, stdev
from typing import Any

from lightning_equiv.audit.words import enumerated, plainly, share_words
from lightning_equiv.compare.records import only
from lightning_equiv.compare.results import Figures, Results
from lightning_equiv.compare.statistics import Difference
from lightning_equiv.report.document import Table, shown

MANY = 3  # more cases than that stand beside each other, a table for each figure
_WIDEST = 6  # columns of a page's width; more are two tables
_HELD = {2: 50, 3: 76, 4: 88, 5: 92}  # seeds: how often, see `paired_difference`
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Column:
    """A figure of all ways, as text.

    Args:
        title: its name.
        cells: case -> way -> text.
        beside: not of the judged figures; the second of two tables has it.
    """

    title: str
    cells: Mapping[str, Mapping[str, str]]
    beside: bool = True


def result_tables(results: Results) -> tuple[Table, ...]:
    """The figures of each way, a table for each case; of many cases a table for each figure."""
    if len(results.cases) <= MANY:
        tables = [table for case in results.cases for table in _of_case(results, case)]
    else:
        tables = [_of_column(results, column) for column in columns(results, results.cases) if not _same(column)]
    return (*tables[:-1], replace(tables[-1], note=_note(results)))


def columns(results: Results, cases: Sequence[str]) -> list[Column]:
    """What there is to tell of the ways in these cases; a column that has nothing is left out.

    Args:
        results: the runs.
        cases: those whose numbers stand in one column, and share its power of ten.
    """
    all_differences = results.differences  # each is a bootstrap
    base, several = results.reference, len({name for case in cases for name in results.judged(case)}) > 1
    found = [Column("seeds", {case: _seeds(results, case) for case in cases}, beside=False)]
    for name in dict.fromkeys(name for case in cases for name in results.judged(case)):
        figures = {case: results.figures(case, name) for case in cases}
        power = _power(figures)
        cells = {c: {way: spread(list(own.values()), power) for way, own in f.items()} for c, f in figures.items()}
        found.append(Column(f"`{name}`{_unit(power)}", cells, beside=False))
        differences = {case: all_differences[case].get(name, {}) for case in cases}
        absolute = any(not d.relative for own in differences.values() for d in own.values())
        title = f"{f'`{name}`, ' if several else ''}difference from `{base}`{_unit(power) if absolute else ''}"
        cells = {c: {way: difference(d, power) for way, d in own.items()} for c, own in differences.items()}
        found.append(Column(title, cells, beside=False))
    errors = {case: results.equivariance_errors(case) for case in cases}
    sets = dict.fromkeys(name for own in errors.values() for name in own)
    for name in sets:
        figures = {case: errors[case].get(name, {}) for case in cases}
        power = _power(figures)
        title = "equivariance error" + (f", {name}" if name and len(sets) > 1 else "") + _unit(power)
        means = {c: {way: shown(_mean(own) / 10.0**power) for way, own in f.items()} for c, f in figures.items()}
        found.append(Column(title, means))
    ratios = {"training time a step": results.costs, "inference time": results.inference}
    for title, ratio in ratios.items():
        cells = {case: {way: f"{_ratio(r)} ×" for way, r in ratio(case).items()} for case in cases}
        found.append(Column(f"{title}, of `{base}`'s", cells))
    memory = {case: results.numbers(case, lambda r: r.get("peak_memory")) for case in cases}
    medians = {c: {way: f"{median(own.values()):.0f}" for way, own in f.items()} for c, f in memory.items()}
    found.append(Column("peak memory, MiB", medians))
    sizes = {case: results.numbers(case, lambda r: r.get("parameters")) for case in cases}
    if len({size for f in sizes.values() for own in f.values() for size in own.values()}) > 1:
        sized = {c: {way: f"{max(own.values()):,.0f}" for way, own in f.items()} for c, f in sizes.items()}
        found.append(Column("parameters", sized))
    return [column for column in found if any(column.cells.values())]


def choices(results: Results) -> Table | None:
    """What a sweep chose, and what ways set; None where neither is."""
    rows = []
    for case in results.cases:
        for way in results.ways:
            trials = len(only(results.trials, case=case, way=way))
            chosen = [settings_words(r.get("settings") or {}) for r in only(results.runs, case=case, way=way)]
            chosen = [text for text in dict.fromkeys(chosen) if text]
            if trials or chosen:
                row = (way, str(trials or "–"), "; ".join(chosen) or "–")
                rows.append((*row, case) if len(results.cases) > 1 else row)
    header = ("", "trials", "settings", *(["case"] if len(results.cases) > 1 else []))
    title = "What the sweep chose" if results.trials else "What the ways set"
    return Table(title, header, tuple(rows)) if rows else None


def settings_words(settings: Mapping[str, Any]) -> str:
    """Keyword arguments in a cell.

    Examples:
        >>> settings_words({"weight": 0.123456, "schedule": "cosine"})
        '`weight=0.123, schedule=cosine`'
    """
    parts = [f"{name}={shown(v) if isinstance(v, float) else v}" for name, v in settings.items()]
    return f"`{', '.join(parts)}`" if parts else ""


def to_csv(results: Results) -> str:
    """The numbers of the tables, a row for each case, way and judged figure."""
    file = io.StringIO()
    write = csv.writer(file, lineterminator="\n")
    sets = list(dict.fromkeys(name for case in results.cases for name in results.equivariance_errors(case)))
    head = [
        "case",
        "way",
        "figure",
        "seeds",
        "mean",
        "standard_deviation",
        "difference",
        "low",
        "high",
        "p",
        "relative",
    ]
    tail = ["training_time_ratio", "inference_time_ratio", "peak_memory_mib"]
    write.writerow([*head, *(f"equivariance_error {name}".strip() for name in sets), *tail])
    differences = results.differences  # each is a bootstrap
    for case in results.cases:
        errors, memory = results.equivariance_errors(case), results.numbers(case, lambda r: r.get("peak_memory"))
        costs, inference = results.costs(case), results.inference(case)
        for name in results.judged(case):
            for way, own in results.figures(case, name).items():
                values = list(own.values())
                d = differences[case][name].get(way)
                row = [case, way, name, len(values), fmean(values), stdev(values) if len(values) > 1 else None]
                row += [d.value, d.low, d.high, d.p, d.relative] if d else [None] * 5
                row += [fmean(e.values()) if (e := errors.get(s, {}).get(way)) else None for s in sets]
                row += [costs.get(way), inference.get(way), median(m.values()) if (m := memory.get(way)) else None]
                write.writerow(["" if v is None or (isinstance(v, float) and math.isnan(v)) else v for v in row])
    return file.getvalue()


def spread(values: Sequence[float], power: int = 0) -> str:
    """Mean and standard deviation over seeds, the mean to three digits.

    Args:
        values: of the seeds.
        power: of ten, in which they are written.

    Examples:
        >>> spread([0.0012, 0.0014], -3), spread([0.97, 0.98, 0.96]), spread([3.0])
        ('1.30 ± 0.14', '0.970 ± 0.010', '3.00')
    """
    scaled = [v / 10.0**power for v in values]
    mean = fmean(scaled)
    deviation = stdev(scaled) if len(scaled) > 1 else None
    if mean == 0 or not 1e-3 <= abs(mean) < 1e6:
        return shown(mean) if deviation is None else f"{shown(mean)} ± {deviation:.2g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(mean))))
    if deviation is None:
        return f"{mean:.{decimals}f}"
    if deviation and round(deviation, decimals) == 0:
        return f"{mean:.{decimals}f} ± {deviation:.1g}"
    return f"{mean:.{decimals}f} ± {deviation:.{decimals}f}"


def difference(d: Difference, power: int = 0) -> str:
    """A difference with its interval; of one seed there is none.

    Args:
        d: the difference.
        power: of ten, in which one that is not relative is written.

    Examples:
        >>> difference(Difference("REMUL", "plain", -0.12, -0.2, -0.03, 0.01, 5, True))
        '−12 % (−20 to −3)'
        >>> difference(Difference("REMUL", "plain", 0.0123, float("nan"), float("nan"), float("nan"), 1, False), -3)
        '+12.3 (1 seed)'
    """
    unit = 1.0 if d.relative else 10.0**power
    value, low, high = (v / unit for v in (d.value, d.low, d.high))
    if math.isfinite(low) and math.isfinite(high):
        text = (share_words if d.relative else plainly)((value, low, high))
    else:
        number = f"{shown(100 * value)} %" if d.relative else shown(value)
        text = f"{number} ({d.seeds} {'seed' if d.seeds == 1 else 'seeds'})"
    text = re.sub(r"(?<![\w.])-(?=\d)", "−", text)
    return f"+{text}" if value > 0 else text


def _of_case(results: Results, case: str) -> list[Table]:
    ways = list(dict.fromkeys(r["way"] for r in only(results.runs, case=case)))
    found = columns(results, [case])
    of = f", {case}" if len(results.cases) > 1 else ""
    parts = {"Ways of training": found}
    if len(found) > _WIDEST:
        parts = {
            "Ways of training": [column for column in found if not column.beside],
            "Symmetry and cost": [column for column in found if column.beside],
        }
    return [
        Table(
            f"{title}{of}",
            ("", *(column.title for column in part)),
            tuple((way, *(column.cells[case].get(way, "–") for column in part)) for way in ways),
        )
        for title, part in parts.items()
        if part
    ]


def _same(column: Column) -> bool:
    """Whether it says how many seeds there are, and all have as many."""
    return column.title == "seeds" and len({text for own in column.cells.values() for text in own.values()}) == 1


def _of_column(results: Results, column: Column) -> Table:
    cases = [case for case in results.cases if column.cells.get(case)]
    ways = [way for way in results.ways if any(way in column.cells[case] for case in cases)]
    rows = [(way, *(column.cells[case].get(way, "–") for case in cases)) for way in ways]
    return Table(f"{column.title[:1].upper()}{column.title[1:]}", ("", *cases), tuple(rows))


def _seeds(results: Results, case: str) -> dict[str, str]:
    """How many ended well, of how many."""
    found = {}
    for way in results.ways:
        runs = only(results.runs, case=case, way=way)
        failed = sum((f.case, f.way) == (case, way) for f in results.failures)
        if runs:
            found[way] = f"{len(runs) - failed}/{len(runs)}" if failed else str(len(runs))
    return found


def _power(figures: Mapping[str, Figures]) -> int:
    """Of ten, a multiple of three, in which the largest mean has one to three digits before the point."""
    means = [abs(_mean(values)) for own in figures.values() for values in own.values()]
    largest = max(means, default=0.0)
    return 0 if largest == 0 or 0.1 <= largest < 1e4 else 3 * math.floor(math.log10(largest) / 3)


def _mean(own: Mapping[int, float]) -> float:
    return fmean(own.values())


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}" if 0.1 <= ratio < 10 else shown(ratio)


def _unit(power: int) -> str:
    return f" ×\N{NO-BREAK SPACE}10{str(power).translate(_SUPERSCRIPTS)}" if power else ""


def _note(results: Results) -> str:
    several = len(results.seeds) > 1
    parts = ["Behind ± stands the standard deviation over seeds."] if several else []
    if len(results.ways) > 1:
        pairs = ", paired by seed, in brackets its 95 % interval" if several else ""
        parts.append(f"Differences are from `{results.reference}`{pairs}; ratios of times are medians over seeds.")
        if share := _HELD.get(len(results.seeds)):
            parts.append(
                f"Of {len(results.seeds)} seeds such an interval is too narrow, it holds the mean in {share} % of "
                "cases: whether two ways are told apart is said in the advice."
            )
    if results.failures:
        names = list(dict.fromkeys(f"`{f.way}`" for f in results.failures))
        parts.append(f"Runs that failed are not in the figures: those of {enumerated(names)}.")
    return " ".join(parts)
