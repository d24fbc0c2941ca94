"""What a report says of the error itself: the verdict, the floor, degrees, angles, convergence."""

from __future__ import annotations

import math

from lightning_equiv.audit.document import Picture, Section, Table, shown
from lightning_equiv.audit.words import TITLES, Figures, Side, interval_words, listed, percent, plainly, unit_of
from lightning_equiv.symmetry.call import TOTAL

_MEANING = {
    "exact to rounding": "What is left is the rounding of the arithmetic.",
    "approximate": "The error is more than rounding, and less than that of unrelated outputs.",
    "not equivariant": "Moved inputs give outputs as far apart as those of unrelated inputs.",
}


def verdict(side: Side) -> Section:
    """The first section: what it comes to."""
    measured = [(name, r) for name, r in side.each if "error" in r]
    text = tuple(_sentence(side, name, r) for name, r in side.each)
    if not measured:
        return Section("verdict", "Verdict", text)

    def sizes(r: Figures) -> dict[str, str]:
        return {
            part: f"{shown(i[0])}{unit_of(r, part)} of {shown(r['output_rms'][part])}{unit_of(r, part)}"
            for part, i in r["rms"].items()
        }

    tables = (
        side.columns(
            "Relative error of each output",
            [(name, {part: interval_words(i) for part, i in r["error"].items()}) for name, r in measured],
            "output",
            "sqrt( sum |f(g x) - g f(x)|^2 / sum |f(x)|^2 ), with 95 % intervals over the inputs.",
        ),
        side.columns(
            "Error per number, in the output's unit",
            [(name, sizes(r)) for name, r in measured],
            "output",
            "Root mean square over inputs, elements and numbers, beside that of the output.",
        ),
    )
    data = {
        "series": {name: r["each"] for name, r in measured},
        "x_label": "relative error of one input",
        "log": True,
        "floor": side.floor,
    }
    picture = Picture("error_of_each_input", "distribution", data, "How the error is spread over the inputs.")
    return Section("verdict", "Verdict", text, tables, (picture,))


def _sentence(side: Side, name: str, r: Figures) -> str:
    if "error" not in r:
        return f"{side.who(name)}{r['sentence']}"
    value, low, high = r["error"][TOTAL]
    verdict = r["verdict"][:1].upper() + r["verdict"][1:]
    words = [
        f"{side.who(name)}{verdict}. The relative error is {percent(value)} ({percent(low)} to {percent(high)}); "
        f"unrelated outputs would be {percent(r['unrelated'])} apart. {_MEANING[r['verdict']]}"
    ]
    if bad := r["not_finite"]:
        words.append(f"For {len(bad)} inputs, {listed(bad)}, the network returned NaN or infinity: they are left out.")
    if doubts := [u["input"] for u in r["unmoved"] if u["doubt"]]:
        words.append(f"Look at the inputs first: `{doubts[0]}` may be declared wrongly, see below.")
    return " ".join(words)


def floor(side: Side) -> Section | None:
    """What rounding and resampling make of the error."""
    text = []
    for name, r in side.each:
        if "floor" in r:
            value, error = r["floor"]["value"][0], r["error"][TOTAL][0]
            what = "rounding makes" if r["floor"]["kind"] == "float64" else "the equivariant stand-in reads"
            times = f"; that of the network is {shown(error / value)} times as large" if value else ""
            text.append(f"{side.who(name)}On these inputs {what} an error of {shown(value)}{times}.")
        lost = r["resampling"]["value"][0] if "resampling" in r else 0.0
        if lost > 1e-3:
            text.append(
                f"{side.who(name)}Inputs that are moved and moved back change by {percent(lost)}: that is what "
                "resampling loses, and an error of that size need not be the network's. Measure one that is "
                "equivariant by construction beside it (`stand_in=`), or take right angles (C4)."
            )
    if not text:
        return None

    def rows(floor: Figures) -> dict[str, str]:
        if floor["kind"] != "float64":
            return {"floor": plainly(floor["value"])}
        return {
            "floor": plainly(floor["value"]),
            "error, as it is": plainly(floor["error"]),
            "error in float64": plainly(floor["in_float64"]),
        }

    note = "The same elements in the network's own precision and in another; the floor is the difference."
    tables = (side.table("Rounding", "floor", rows, "", note),) if side.those("floor") else ()
    return Section("floor", TITLES["floor"], tuple(text), tables)


def split(side: Side) -> Section | None:
    """By degree, and by part of the group."""
    tables, pictures, text = [], [], []
    if found := side.those("spectrum"):
        names = found[0][1]["names"]
        text.append(
            "The output turned back, as a function on the group, is split into irreducible parts. "
            f"`{names[0]}` is the equivariant part; the others are the error, and twice their sum is the square of the "
            "relative error where the data have no preferred orientation. Low degrees are smooth errors, high ones are "
            "rough."
        )
        for name, s in found:
            if s["roughness"] is not None:
                text.append(
                    f"{side.who(name)}Mean of J (J + 1) / 2 over the error: {shown(s['roughness'])}; it is 1 where all "
                    "of it has degree 1."
                )
        tables.append(
            side.table(
                "Share of the output by degree",
                "spectrum",
                lambda s: {name: plainly(i) for name, i in s["shares"].items()},
                "degree",
                "Unbiased estimates: of shares that are 0 some fall below it.",
            )
        )
        for name, s in found:
            if s["by_part"]:
                rows = tuple((part, *(shown(v) for v in shares.values())) for part, shares in s["by_part"].items())
                tables.append(
                    Table(side.title(name, "Share by output and degree"), ("output", *s["names"], "rest"), rows)
                )
        broken = [*names[1:], "rest"]
        data = {
            "labels": broken,
            "series": side.series("spectrum", lambda s: [s["shares"][name] for name in broken]),
            "x_label": "degree",
            "y_label": "share of the output",
        }
        pictures.append(Picture("error_by_degree", "bars", data, "Where the error lies: its share by degree."))
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


def profile(side: Side) -> Section | None:
    """Against the angle, and against the length of a translation."""
    tables, pictures, text = [], [], []
    if found := side.those("profile"):
        slopes = {
            f"{name}: slope at 0": r["lie"]["slope"] * math.pi / 180
            for name, r in side.each
            if "slope" in r.get("lie", {})
        }
        data = {
            "x": found[0][1]["angles"],
            "x_label": "angle / degrees",
            "y_label": "relative error",
            "series": side.series("profile", lambda s: s["error"]),
            "lines": slopes,
            "floor": side.floor,
        }
        pictures.append(Picture("error_against_angle", "curve", data, "Bands are 95 % intervals."))
        text.append(
            "Rotations by a given angle about axes drawn at random. A curve that leaves the slope at 0 early means "
            "rough errors; one that grows up to 180 degrees means smooth ones."
        )
        tables.append(
            side.table(
                "Error against angle",
                "profile",
                lambda s: {f"{a}°": interval_words(i) for a, i in zip(s["angles"], s["error"], strict=True)},
                "angle",
            )
        )
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


def convergence(side: Side) -> Section | None:
    """Half the draws against all, and two ways to the same figure."""

    def rows(r: Figures) -> dict[str, str]:
        found = {"all draws": interval_words(r["error"][TOTAL])}
        if not r["how"].get("whole"):
            found["the first half"] = interval_words(r["half"])
        if "spectrum" in r:
            found["from the spectrum"] = percent(math.sqrt(max(0.0, 2 * r["spectrum"]["variance"][0])))
        return found

    measured = [(name, rows(r)) for name, r in side.each if "error" in r]
    text = (
        "The error from the spectrum is that between two random orientations. It agrees with the other where the data "
        "have no preferred orientation.",
    )
    return (
        Section("convergence", "Convergence", text, (side.columns("Relative error", measured),)) if measured else None
    )
