"""Pictures of a comparison."""

from __future__ import annotations

import math
import re
from statistics import fmean
from typing import Any

from lightning_equiv.audit.words import enumerated
from lightning_equiv.compare.records import Record, only
from lightning_equiv.compare.results import Figures, Results, on_cpu, training_seconds
from lightning_equiv.report.document import Picture

MOST_SERIES = 9  # that are told apart
_MOST_POINTS = 24  # of a curve


def drawn_ways(results: Results) -> list[str]:
    """Those that are drawn, in order: of very many the reference and those that are best in most cases."""
    places: dict[str, list[int]] = {}
    for case in results.cases:
        for name in results.judged(case):
            means = {way: fmean(own.values()) for way, own in results.figures(case, name).items()}
            ordered = sorted(means, key=means.__getitem__, reverse=results.mode(case) == "max")
            for place, way in enumerate(ordered):
                places.setdefault(way, []).append(place)
    best = sorted(places, key=lambda way: (way != results.reference, fmean(places[way])))[:MOST_SERIES]
    return [way for way in results.ways if way in best]


def case_pictures(results: Results, case: str) -> tuple[Picture, ...]:
    """Error against cost, the curves of training, and error against angle."""
    of = f", {case}" if len(results.cases) > 1 else ""
    ways = drawn_ways(results)
    found = [_against_cost(results, case, name, ways, of) for name in results.judged(case)]
    found += [_curves(results, case, ways, of), _against_angle(results, case, ways, of)]
    return tuple(picture for picture in found if picture)


def pictures_of_cases(results: Results) -> tuple[Picture, ...]:
    """Each judged figure against the cases: along an axis where these are numbers, else as bars."""
    ways, (label, numbers) = drawn_ways(results), case_numbers(results.cases)
    places = sorted(range(len(results.cases)), key=lambda i: numbers[i]) if numbers else range(len(results.cases))
    cases = [results.cases[i] for i in places]
    found = []
    for name in dict.fromkeys(name for case in cases for name in results.judged(case)):
        figures = {case: results.figures(case, name) for case in cases}
        series = {
            way: {"value": [fmean(own[way].values()) if way in (own := figures[case]) else None for case in cases]}
            for way in ways
        }
        if all(value is None for s in series.values() for value in s["value"]):
            continue
        data: dict[str, Any] = {"series": series, "x_label": label, "y_label": name, "log": True, "log_x": 30}
        caption = f"`{name}`, mean over seeds, against {label}." if label else f"`{name}`, mean over seeds."
        if numbers:
            found.append(Picture(name, "curve", {**data, "x": sorted(numbers)}, caption + _left_out(results, ways)))
        else:
            bars = {**data, "labels": cases, "horizontal": True}
            found.append(Picture(name, "bars", bars, caption + _left_out(results, ways)))
    return tuple(found)


def case_numbers(cases: tuple[str, ...]) -> tuple[str, list[float]]:
    """What the cases have in common, and the number of each; no numbers where they differ otherwise.

    Examples:
        >>> case_numbers(("samples 100", "samples 3000")), case_numbers(("0.1", "1e-3")), case_numbers(("QM9", "MD17"))
        (('samples', [100.0, 3000.0]), ('case', [0.1, 0.001]), ('', []))
    """
    found = [re.fullmatch(r"(.*?)([-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)", case) for case in cases]
    names = {m[1] for m in found if m}
    values = [float(m[2]) for m in found if m]
    if len(values) < len(cases) or len(names) > 1 or len(set(values)) < len(values):
        return "", []
    return names.pop().strip(" =:_-") or "case", values


def _against_cost(results: Results, case: str, name: str, ways: list[str], of: str) -> Picture | None:
    figures, seconds = results.figures(case, name), results.numbers(case, training_seconds)
    series = {}
    for way in ways:
        seeds = [s for s in figures.get(way, {}) if s in seconds.get(way, {})]
        series[way] = {"x": [seconds[way][s] for s in seeds], "y": [figures[way][s] for s in seeds]}
    if not any(s["x"] for s in series.values()):
        return None
    clock = "seconds of CPU time" if all(map(on_cpu, only(results.runs, case=case))) else "seconds"
    data = {"series": series, "x_label": f"training, {clock}", "y_label": name, "log": True}
    caption = f"`{name}` against the cost of training, a point for each seed{of}." + _left_out(results, ways)
    return Picture(f"{name} against cost{of}", "scatter", data, caption)


def _curves(results: Results, case: str, ways: list[str], of: str) -> Picture | None:
    runs = only(results.runs, case=case, status="ok")
    monitor = next((r["monitor"] for r in runs if r.get("monitor")), "")
    own: dict[str, dict[float, float]] = {}
    for way in ways:
        each = [{point[0]: point[2] for point in c} for r in only(runs, way=way) if (c := _curve(r, monitor))]
        steps = sorted(set.intersection(*map(set, each))) if each else []
        own[way] = {step: fmean(curve[step] for curve in each) for step in steps}
    x = _thinned(sorted({step for curve in own.values() for step in curve}))
    if len(x) < 2:
        return None
    series = {way: {"value": [curve.get(step) for step in x]} for way, curve in own.items()}
    data = {"x": x, "series": series, "x_label": "step", "y_label": monitor, "log": True, "log_x": 30}
    caption = f"`{monitor}` while it trains, mean over seeds{of}." + _left_out(results, ways)
    return Picture(f"{monitor} against steps{of}", "curve", data, caption)


def _curve(record: Record, name: str) -> list[Any]:
    """[step, seconds, value] of a run; what is no number was not logged."""
    return [point for point in (record.get("curve") or {}).get(name) or [] if point[2] is not None]


def _against_angle(results: Results, case: str, ways: list[str], of: str) -> Picture | None:
    runs = [r for r in only(results.runs, case=case, status="ok") if r.get("profile")]
    if not runs:
        return None
    angles = runs[0]["profile"]["angle"]
    series = {}
    for way in ways:
        errors = [r["profile"]["error"] for r in only(runs, way=way) if r["profile"]["angle"] == angles]
        series[way] = {"value": [_mean([e[i] for e in errors]) for i in range(len(angles))]}
    data = {"x": angles, "series": series, "x_label": "angle (degrees)", "y_label": "equivariance error", "log": True}
    caption = f"Relative equivariance error against the angle of the rotation, mean over seeds{of}."
    return Picture(f"Error against angle{of}", "curve", data, caption + _left_out(results, ways))


def _mean(values: list[float | None]) -> float | None:
    some = [v for v in values if v is not None]
    return fmean(some) if some else None


def _thinned(x: list[float]) -> list[float]:
    """The first, the last, and some between them, evenly along the axis."""
    if len(x) <= _MOST_POINTS:
        return x
    along = [math.log(v) for v in x] if x[0] > 0 and x[-1] >= 30 * x[0] else x  # as the axis of a curve is
    wanted = [along[0] + (along[-1] - along[0]) * i / (_MOST_POINTS - 1) for i in range(_MOST_POINTS)]
    return sorted({x[min(range(len(x)), key=lambda k: abs(along[k] - w))] for w in wanted})


def _left_out(results: Results, ways: list[str]) -> str:
    figures: list[Figures] = [results.figures(case, name) for case in results.cases for name in results.judged(case)]
    others = [way for way in dict.fromkeys(way for own in figures for way in own) if way not in ways]
    return f" Far from the best, and in the table alone: {enumerated([f'`{w}`' for w in others])}." if others else ""
