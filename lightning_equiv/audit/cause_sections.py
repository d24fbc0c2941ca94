"""What a report says of where the error comes from: generators, layers, the worst inputs."""

from __future__ import annotations

import math
from typing import Any

from lightning_equiv.audit.words import TITLES, Figures, Side, kept, percent, plainly
from lightning_equiv.report.document import Picture, Section, Table, shown

_LEAST = 0.1  # a coefficient that is written
_SIDE_BY_SIDE = 5  # worst inputs of each of several models


def lie(side: Side) -> Section | None:
    """Generators, and the subgroup that is kept."""
    if not (found := side.those("lie")):
        return None
    text = (
        "How fast the error grows from 0 when a small element moves the input, relative to the output: per radian of a "
        "rotation, per unit of length of a translation. A direction counts as kept where that is less than ten times "
        "the noise floor, and all of them where the network is exact to rounding.",
        *side.told([(name, f"Directions that are kept: {kept(r)}.") for name, r in side.each if r.get("lie")]),
        *side.told([(name, f"Differentiated by `{s['method']}`.") for name, s in found]),
    )
    tables = [side.table("Lie derivative by generator", "lie", _generators, "generator")]
    longest = max(len(s["eigenvalues"]) for _, s in found)
    if longest > 1 and any(kept(r) != "all" for _, r in side.each if r.get("lie")):
        directions = [(name, _directions(s, side.one)) for name, s in found]
        note = f"Orthogonal directions of the algebra; coefficients below {_LEAST:g} are left out."
        tables.append(side.columns("Directions, from the best kept to the worst", directions, "", note))
    return Section("lie", TITLES["lie"], text, tuple(tables))


def _generators(s: Figures) -> dict[str, str]:
    each = {name: plainly(i) for name, i in s["generators"].items()}
    return {"all": plainly(s["total"]), **each} if len(each) > 1 else each


def _directions(s: Figures, whole: bool) -> dict[str, str]:
    """Each direction with its speed; of several models with many generators only the ends."""
    names = list(s["generators"])
    words = [
        f"along {_combination(axis, names)}: {shown(value)}"
        for value, axis in zip(s["eigenvalues"], s["axes"], strict=True)
    ]
    if not whole and len(words) > 3:
        words = [words[0], words[-1]]
        return dict(zip(("best kept", "worst kept"), words, strict=True))
    return {f"{i + 1}": word for i, word in enumerate(words)}


def _combination(axis: list[float], names: list[str]) -> str:
    """A direction in terms of the generators, the largest first and positive.

    Examples:
        >>> _combination([-0.3, 0.95, 0.01], ["x", "y", "z"]), _combination([0.0, 0.0, -1.0], ["x", "y", "z"])
        ('0.95 y − 0.30 x', 'z')
    """
    terms = sorted(zip(axis, names, strict=True), key=lambda term: -abs(term[0]))
    sign = -1.0 if terms[0][0] < 0 else 1.0
    if abs(terms[0][0]) > 0.995:
        return terms[0][1]
    written = [f"{'−' if sign * c < 0 else '+'} {abs(c):.2f} {name}" for c, name in terms if abs(c) >= _LEAST]
    return " ".join(written).removeprefix("+ ")


def layers(side: Side) -> Section | None:
    """Which layer makes the error."""
    if not (found := side.those("layers")):
        return None
    text = [
        "What a layer makes is its own defect, carried to the output; what ends up is its share of the error that is "
        "there in the end. The shares and that of what is no layer's sum to 1; a layer with a negative share repairs "
        "what others do.",
        *side.told([(name, _account(s)) for name, s in found]),
    ]
    tables = []
    if side.one:
        ((_, s),) = found
        columns = zip(s["names"], s["own"], s["makes"], s["ends_up"], strict=True)
        rows = tuple((layer, shown(own), shown(makes), f"{ends_up:+.3f}") for layer, own, makes, ends_up in columns)
        tables.append(Table("Layers", ("layer", "error by itself", "makes", "ends up"), rows))
    else:
        for title, key in (("What of each layer ends up in the error", "ends_up"), ("Error by itself", "own")):
            each = [(name, dict(zip(s["names"], map(shown, s[key]), strict=True))) for name, s in found]
            tables.append(side.columns(title, each, "layer"))
    shared = [
        (name, dict(zip(s["names"], s["ends_up"], strict=True))) for name, s in found if not s["nothing_to_share"]
    ]
    pictures = []
    if shared:
        names = list(dict.fromkeys(layer for _, shares in shared for layer in shares))
        data = {
            "labels": names,
            "series": {
                name: {"value": [shares.get(layer) for layer in names], "low": None, "high": None}
                for name, shares in shared
            },
            "x_label": "layer",
            "y_label": "share of the error",
            "horizontal": True,
        }
        pictures.append(
            Picture("layers'_shares_of_the_error", "bars", data, "What of each layer's defect ends up in the error.")
        )
    return Section("layers", TITLES["layers"], tuple(text), tuple(tables), tuple(pictures))


def _account(s: Figures) -> str:
    of = f" Of {s['inputs']} inputs." if "inputs" in s else ""
    if s["nothing_to_share"]:
        return f"The network has no more than rounding to share among its layers.{of}"
    left = f"The layers that were looked at leave {percent(s['remainder'])} of the derivative unexplained.{of}"
    if not s.get("inside"):
        return left
    return (
        f"{left} The network differentiates inside: what its backward pass through a layer makes, of forces, is in "
        "that rest, and no layer's share."
    )


def worst(side: Side) -> Section | None:
    """The worst inputs, and the element of the worst."""
    found = [(name, r) for name, r in side.each if r.get("worst")]
    if not found:
        return None
    text = (
        "The largest error of each input, sought among the drawn elements and by ascent from the worst of them: a "
        "lower bound, relative to the root mean square of the outputs. Averages over the elements stand below it.",
    )
    columns = []
    for name, r in found:
        s = r["worst"]
        rows = {
            "largest error": percent(s["relative"]),
            "in the output's unit": shown(s["error"]),
            "found by drawing alone": percent(s["sampled"]),
            "of input": str(s["input"]),
            "for the element": _element(s["element"]),
            "average, half of the inputs below": percent(r["median"]),
            "average, 95 % of the inputs below": percent(r["quantile_95"]),
        }
        columns.append((name, rows))
    tables = [side.columns("Worst case", columns)]
    if side.one:
        ten = found[0][1]["worst"]["ten"]
        listed = tuple((str(row["input"]), shown(row["error"]), percent(row["relative"])) for row in ten)
        tables.append(Table("Worst inputs", ("input", "largest error", "relative"), listed))
    else:
        ranks = [
            (
                name,
                {
                    str(i + 1): f"input {row['input']}: {percent(row['relative'])}"
                    for i, row in enumerate(r["worst"]["ten"][:_SIDE_BY_SIDE])
                },
            )
            for name, r in found
        ]
        tables.append(side.columns("Worst inputs", ranks, "rank"))
    return Section("worst", TITLES["worst"], text, tuple(tables))


def _element(coordinates: list[Any]) -> str:
    """A group element in words; its coordinates where there are none.

    Examples:
        >>> _element([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [0.0, 0.0, 2.0]])
        'turned by 90° about (0.00, 0.00, 1.00), shifted by (0.00, 0.00, 2.00)'
        >>> _element([[[0.0, -1.0], [1.0, 0.0]]]), _element([[2, 0, 1]])
        ('turned by 90°', '`[2, 0, 1]`')
    """
    return ", ".join(map(_in_words, coordinates))


def _in_words(x: Any) -> str:
    square = isinstance(x, list) and bool(x) and all(isinstance(row, list) and len(row) == len(x) for row in x)
    if square and len(x) == 3:
        return _rotation(x)
    if square and len(x) == 2:
        angle = math.degrees(math.atan2(x[1][0], x[0][0]))
        if x[0][0] * x[1][1] - x[0][1] * x[1][0] < 0:
            return f"reflected in the line at {angle / 2:.0f}°"
        return f"turned by {angle:.0f}°"
    if isinstance(x, list) and len(x) in (2, 3) and all(isinstance(v, float) for v in x):
        return f"shifted by {_vector(x)}"
    return f"`{_raw(x)}`"


def _rotation(r: list[list[float]]) -> str:
    """A matrix of O(3) by its angle and axis."""
    (a, b, c), (d, e, f), (g, h, i) = r
    sign = 1.0 if a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g) > 0 else -1.0
    cosine = (sign * (a + e + i) - 1) / 2
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    axis = [sign * (h - f), sign * (c - g), sign * (d - b)]
    length = math.sqrt(sum(v * v for v in axis))
    if length < 1e-3:  # by 0 or by 180 degrees: the columns of R + 1 lie along the axis
        sums = [[sign * r[row][k] + (row == k) for row in range(3)] for k in range(3)]
        axis = max(sums, key=lambda column: sum(v * v for v in column))
        length = math.sqrt(sum(v * v for v in axis))
    words = f"turned by {math.degrees(angle):.0f}° about {_vector([v / length for v in axis])}"
    return words if sign > 0 else f"inverted and {words}"


def _vector(x: list[float]) -> str:
    return "(" + ", ".join(f"{0.0 if abs(v) < 5e-3 else v:.2f}" for v in x) + ")"


def _raw(x: Any) -> str:
    if isinstance(x, list):
        return "[" + ", ".join(map(_raw, x)) + "]"
    return f"{x:.4f}" if isinstance(x, float) else str(x)
