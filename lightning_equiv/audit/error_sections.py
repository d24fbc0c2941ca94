"""What a report says of the error itself: the verdict, the floor, degrees, angles, convergence."""

from __future__ import annotations

import math
from typing import Any

from lightning_equiv.audit.words import (
    TITLES,
    Figures,
    Side,
    doubts,
    exact,
    interval_words,
    kept,
    listed,
    parts_of,
    percent,
    plainly,
    rounded,
    share_words,
    unit_of,
)
from lightning_equiv.report.document import Picture, Section, Table, shown
from lightning_equiv.symmetry.call import TOTAL

_CONSTANT = 0.5  # relative distance of unrelated outputs below which a constant part is most of them
_RESAMPLED = 1e-3  # relative change of inputs that are moved and moved back, more than rounding
_NONE = (None, None, None)  # in the place of an interval, of another group's figure
_MEANING = {
    "exact to rounding": "What is left is the rounding of the arithmetic.",
    "approximate": "The error is more than rounding, and less than half of what unrelated outputs would make.",
    "not equivariant": "The error is more than half of what unrelated outputs would make.",
}
_READ = (15, 30, 45, 90, 135, 180)  # degrees in the table; all are in the numbers of the picture
_APART = 8.0  # the ratio of two models' largest errors from which on they are drawn on a logarithmic axis


def verdict(side: Side) -> Section:
    """The first section: what it comes to."""
    measured = [(name, r) for name, r in side.each if "error" in r]
    text = side.told([(name, sentence) for name, r in side.each for sentence in _sentences(side, r)])
    if not measured:
        return Section("verdict", "Verdict", text)

    def sizes(r: Figures) -> dict[str, str]:
        return {
            part: f"{shown(i[0])}{unit_of(r, part)} of {shown(r['output_rms'][part])}{unit_of(r, part)}"
            for part, i in r["rms"].items()
        } | {f"{part}, per node": f"{shown(i[0])}{unit_of(r, part)}" for part, i in r.get("rms_per_node", {}).items()}

    errors = side.columns(
        "Relative error of each output",
        [(name, {part: interval_words(r["error"][part]) for part in parts_of(r["error"])}) for name, r in measured],
        "output",
        "The root of sum |f(g x) − g f(x)|² / sum |f(x)|², with 95 % intervals over the inputs.",
    )
    absolute = side.columns(
        "Error per number, in the output's unit",
        [(name, sizes(r)) for name, r in measured],
        "output",
        "Root mean square over inputs, elements and numbers, beside that of the output.",
    )
    if side.one:
        tables = (errors, absolute)
    else:
        more = (errors,) if len(errors.rows) > 1 else ()  # the only output is in the first table
        tables = (side.columns("Side by side", [(name, _overview(r)) for name, r in side.each]), *more, absolute)
    data = {
        "series": {name: r["each"] for name, r in measured},
        "x_label": "relative error of one input",
        "log": True,
        "floor": side.floor,
    }
    picture = Picture("error_of_each_input", "distribution", data, "How the error is spread over the inputs.")
    return Section("verdict", "Verdict", text, tables, (picture,))


def _sentences(side: Side, r: Figures) -> list[str]:
    if "error" not in r:
        return [r["sentence"]]
    verdict, value = r["verdict"][:1].upper() + r["verdict"][1:], r["error"][TOTAL][0]
    words = [f"{verdict}."]
    if side.one:
        words.append(f"The relative error is {interval_words(r['error'][TOTAL])}.")
    if not r["rms_norm"]:
        words.append("The network returned 0 throughout.")
    elif r["unrelated"] > 0:
        if side.one:
            words.append(f"Outputs of unrelated inputs in unrelated orientations are {percent(r['unrelated'])} apart.")
        words.append(_MEANING[r["verdict"]])
    else:
        words.append("All outputs are the same, so that nothing can be said of how large this error is.")
    found = [" ".join(words)]
    if 0 < r["unrelated"] < _CONSTANT and r["rms_norm"]:
        found.append(
            "The outputs are alike, by a constant part that no element moves, and that makes a relative error look "
            f"small: of how far outputs differ, the error is {percent(value / r['unrelated'])}."
        )
    found += _of_parts(r)
    if bad := r["not_finite"]:
        found.append(f"For {len(bad)} inputs, {listed(bad)}, the network returned NaN or infinity: they are left out.")
    if (lost := _lost(r)) and "floor" in r and r["floor"]["kind"] == "float64" and not exact(r):
        found.append(f"Resampling alone changes the inputs by {percent(lost)}: it may be the error, see below.")
    if doubtful := doubts(r):
        found.append(f"Look at the inputs first: `{doubtful[0]}` may be declared wrongly, see below.")
    return found


def _of_parts(r: Figures) -> list[str]:
    """What hides in the whole: a part of the output that is worse."""
    own = {part: verdict for part, verdict in r.get("verdicts", {}).items() if part != TOTAL}
    if not own or r["verdict"] == r["verdicts"][TOTAL] or len(own) < 2:
        return []
    worst = [part for part, verdict in own.items() if verdict == r["verdict"]]
    errors = ", ".join(f"`{part}` ({percent(r['error'][part][0])})" for part in worst)
    return [f"The verdict is that of {errors}; all outputs together are {r['verdicts'][TOTAL]}."]


def _overview(r: Figures) -> dict[str, str]:
    """The first figures of one of several reports."""
    found = {"verdict": r["verdict"]}
    if "error" in r:
        found |= {
            "relative error": interval_words(r["error"][TOTAL]),
            "that of unrelated outputs": percent(r["unrelated"]),
        }
    if "floor" in r:
        found["noise floor"] = rounded(r["floor"]["value"][0])
    if "error" in r:
        found |= {"median over the inputs": percent(r["median"]), "95 % of the inputs below": percent(r["quantile_95"])}
    if "worst" in r:
        found["worst case"] = percent(r["worst"]["relative"])
    if "lie" in r:
        found["generators kept exactly"] = kept(r)
    if "labels" in r:
        found["of the squared error, averaging removes"] = interval_words(r["labels"][TOTAL]["removed"])
    if "classes" in r:
        found["answers that change"] = interval_words(r["classes"]["changed"])
    return found


def floor(side: Side) -> Section | None:
    """What rounding and resampling make of the error."""
    text = []
    for name, r in side.each:
        if "floor" in r and side.one:
            value, error = r["floor"]["value"][0], r["error"][TOTAL][0]
            what = "rounding makes" if r["floor"]["kind"] == "float64" else "the equivariant stand-in reads"
            times = f"; that of the network is {rounded(error / value)} times as large" if value else ""
            text.append((name, f"On these inputs {what} an error of {rounded(value)}{times}."))
        if "floor" in r and r["floor"].get("float32_constants") and exact(r):
            value, error = r["floor"]["value"][0], r["error"][TOTAL][0]
            if error > 3 * value:
                words = (
                    "The network holds constants that were rounded to float32 before it was turned to float64, and the "
                    "error is no more than float32 makes of it: make the network with "
                    "`torch.set_default_dtype(torch.float64)` for less."
                )
                text.append((name, words))
        if lost := _lost(r):
            words = (
                f"Inputs that are moved and moved back change by {percent(lost)}: that is what resampling loses, and "
                "an error of that size need not be the network's. Measure one that is equivariant by construction "
                "beside it (`stand_in=`), or take right angles (C4)."
            )
            text.append((name, words))
    found = side.those("floor")
    if not text and not found:
        return None

    def rows(floor: Figures) -> dict[str, str]:
        value = floor["value"][0]
        if floor["kind"] != "float64":
            return {"error of the equivariant stand-in": plainly(floor["value"])}
        own = floor["error"]
        return {
            "error, as it is": plainly(own),
            "error in float64": plainly(floor["in_float64"]),
            "floor": rounded(value),
            "error / floor": rounded(own[0] / value) if value and own[0] is not None else "–",
        }

    note = "For the same elements, in the network's own precision and in another; the floor is the difference."
    tables = (side.table("Rounding", "floor", rows, "", note),) if found else ()
    return Section("floor", TITLES["floor"], side.told(text), tables)


def _lost(r: Figures) -> float:
    """What resampling loses of the inputs; 0 where that is rounding."""
    lost: float = r["resampling"]["value"][0] if "resampling" in r else 0.0
    return lost if lost > _RESAMPLED else 0.0


def split(side: Side) -> Section | None:
    """By degree, and by part of the group."""
    tables, pictures, text = [], [], []
    found = side.those("spectrum")
    if found and all(exact(r) for _, r in side.each):
        text.append("The error is rounding, which has no degrees to speak of.")
    elif found:
        names = found[0][1]["names"]
        text.append(
            "The output turned back, as a function on the group, is split into irreducible parts. "
            f"`{names[0]}` is the equivariant part; the others are the error, and twice their sum is the square of the "
            f"relative error under {found[0][1]['of']} where the data have no preferred orientation. Low degrees are "
            "smooth errors, high ones are rough."
        )
        note = "Unbiased estimates: of shares that are 0 some fall below it."
        if any("roughness" in _shares(s) for _, s in found):
            note += (
                " Roughness is 1 where all of the error has the lowest degree, J (J + 1) / 2 in degree J of rotations "
                "in space, m² in mode m of the plane's."
            )
        tables.append(side.table("Share of the output by degree", "spectrum", _shares, "degree", note))
        for name, s in found:
            if s["by_part"]:
                degrees = [*s["names"], "rest"]
                rows = tuple((d, *(percent(shares[d]) for shares in s["by_part"].values())) for d in degrees)
                title = "Share of all outputs by degree and output" + ("" if side.one else f", {name}")
                tables.append(Table(title, ("degree", *s["by_part"]), rows))
        pictures.append(_by_degree(side, found))
    if side.those("group_parts"):
        tables.append(
            side.table(
                "Error under a part of the group alone",
                "group_parts",
                lambda s: {name: interval_words(i) for name, i in s.items()},
                "elements",
            )
        )
    return Section("split", TITLES["spectrum"], tuple(text), tuple(tables), tuple(pictures)) if tables else None


def _by_degree(side: Side, found: list[tuple[str, Figures]]) -> Picture:
    broken = [*found[0][1]["names"][1:], "rest"]
    data: dict[str, Any] = {
        "labels": broken,
        "series": side.series("spectrum", lambda s: [s["shares"].get(name, _NONE) for name in broken]),
        "x_label": "degree",
        "y_label": "share of the output",
    }
    caption = "Where the error lies: its share by degree."
    if _far_apart([max(s["shares"][name][0] for name in broken if name in s["shares"]) for _, s in found]):
        data |= {"log": True, "series": {name: _clear(one) for name, one in data["series"].items()}}
        caption += " Shares whose interval holds 0 are left out."
    return Picture("error_by_degree", "bars", data, caption)


def _shares(s: Figures) -> dict[str, str]:
    found = {name: share_words(i) for name, i in s["shares"].items()}
    return found if s["roughness"] is None else {**found, "roughness": rounded(s["roughness"])}


def _far_apart(largest: list[float]) -> bool:
    return max(largest) > _APART * min(largest)


def _clear(series: dict[str, Any]) -> dict[str, Any]:
    """A series without the estimates that may as well be 0."""
    lows = series["low"] or series["value"]
    kept = [low is not None and low > 0 for low in lows]
    return {
        part: None if values is None else [v if keep else None for v, keep in zip(values, kept, strict=True)]
        for part, values in series.items()
    }


def profile(side: Side) -> Section | None:
    """Against the angle, and against the length of a translation."""
    tables, pictures, text = [], [], []
    if found := side.those("profile"):
        slopes = {
            f"{name}: slope at 0": r["lie"]["slope"] * math.pi / 180
            for name, r in side.each
            if "slope" in r.get("lie", {}) and "profile" in r and not exact(r)
        }
        data = {
            "x": found[0][1]["angles"],
            "x_label": "angle / degrees",
            "y_label": "relative error",
            "series": side.series("profile", lambda s: [_at(s, angle) for angle in found[0][1]["angles"]]),
            "lines": slopes,
            "line_label": "slope at 0",
            "floor": side.floor,
            "log": _far_apart([max(i[0] for i in s["error"]) for _, s in found]),
        }
        caption = "Bands are 95 % intervals" + (
            "; dotted, the slope that the derivative at 0 predicts." if slopes else "."
        )
        pictures.append(Picture("error_against_angle", "curve", data, caption))
        text.append(
            "Rotations by a given angle, in space about axes drawn at random. A curve that leaves the slope at 0 early "
            "means rough errors; one that grows up to 180 degrees means smooth ones."
        )
        tables.append(side.table("Error against angle", "profile", _at_angles, "angle"))
    if found := side.those("lengths"):
        data = {
            "x": found[0][1]["lengths"],
            "x_label": "length of the translation",
            "y_label": "relative error",
            "series": side.series("lengths", lambda s: s["error"]),
            "floor": side.floor,
            "log": True,
        }
        pictures.append(Picture("error_against_length", "curve", data, "Translations in directions at random."))
        tables.append(
            side.table(
                TITLES["lengths"],
                "lengths",
                lambda s: {shown(t): interval_words(i) for t, i in zip(s["lengths"], s["error"], strict=True)},
                "length",
            )
        )
    return Section("profile", TITLES["profile"], tuple(text), tuple(tables), tuple(pictures)) if tables else None


def _at_angles(s: Figures) -> dict[str, str]:
    """A few angles of a profile; all of one that has few."""
    each: list[tuple[Any, Any]] = [(a, i) for a, i in zip(s["angles"], s["error"], strict=True) if a]
    some = [(a, i) for a, i in each if a in _READ] if len(each) > len(_READ) else each
    return {f"{a:g}°": interval_words(i) for a, i in some or each}


def _at(profile: Figures, angle: float) -> Any:
    """The error at an angle, which another group may not have."""
    return dict(zip(profile["angles"], profile["error"], strict=True)).get(angle, _NONE)


def convergence(side: Side) -> Section | None:
    """Half the draws against all, and two ways to the same figure."""

    def rows(r: Figures) -> dict[str, str]:
        found = {"all draws": interval_words(r["error"][TOTAL])}
        if not r["how"].get("whole"):
            found["the first half"] = interval_words(r["half"])
        if "spectrum" in r:
            of = "" if r["spectrum"]["of"] == r["group"] else f", {r['spectrum']['of']} alone"
            found[f"from the spectrum{of}"] = percent(math.sqrt(max(0.0, 2 * r["spectrum"]["variance"][0])))
        return found

    measured = [(name, rows(r)) for name, r in side.each if "error" in r]
    text = (
        "The error from the spectrum is that between two random orientations. It agrees with the other where the data "
        "have no preferred orientation, and moving them loses nothing.",
    )
    return (
        Section("convergence", "Convergence", text, (side.columns("Relative error", measured),)) if measured else None
    )
