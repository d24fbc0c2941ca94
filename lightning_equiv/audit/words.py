"""From the figures of one or several reports to the document that is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from lightning_equiv.audit.document import VERDICTS, Document, Picture, Section, Table, shown
from lightning_equiv.symmetry.call import TOTAL

Figures = dict[str, Any]
_MEANING = {
    "exact to rounding": "What is left is the rounding of the arithmetic.",
    "approximate": "The error is more than rounding, and the outputs are not unrelated.",
    "not equivariant": "Moved inputs give outputs that are as far apart as those of unrelated inputs.",
}
_TITLES = {
    "floor": "Noise floor",
    "spectrum": "Split by degree",
    "profile": "Error against angle",
    "lengths": "Error against length of translation",
    "group_parts": "Parts of the group",
    "lie": "Generators",
    "layers": "Layers",
    "worst": "Worst case",
    "labels": "With labels",
    "classes": "Classes",
    "task": "The task's own metric",
    "resampling": "Resampling",
}


def document_of(reports: Sequence[Figures], names: Sequence[str] | None = None) -> Document:
    """The document of a report, or of several side by side.

    Args:
        reports: figures of each.
        names: of the reports; their models' by default.
    """
    words = _Words(list(reports), list(names) if names is not None else _distinct([r["name"] for r in reports]))
    first, last = reports[0], reports[-1]
    sections = [
        section
        for make in (
            words.verdict,
            words.floor,
            words.split,
            words.profile,
            words.lie,
            words.layers,
            words.worst,
            words.labels,
            words.classes,
            words.convergence,
            words.moved,
            words.how,
        )  # fmt: skip
        if (section := make()) is not None
    ]
    worst_verdict = max((r["verdict"] for r in reports), key=VERDICTS.index)
    inputs = ", ".join(dict.fromkeys(str(r["how"]["inputs"]) for r in reports))
    return Document(
        "How equivariant is " + (first["name"] if len(reports) == 1 else " against ".join(words.names)) + "?",
        f"{first['group']}, {inputs} inputs",
        last["verdict"] if len(reports) == 1 else worst_verdict,
        words.headline(),
        tuple(sections),
    )


def _distinct(names: list[str]) -> list[str]:
    """The names, numbered where two are the same."""
    return [f"{name} ({i + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]


class _Words:
    """The sections, over all reports at once."""

    def __init__(self, reports: list[Figures], names: list[str]) -> None:
        self.reports, self.names = reports, names
        self.one = len(reports) == 1

    # ---- helpers ------------------------------------------------------------------------------------------------
    def those(self, key: str) -> list[tuple[str, Figures]]:
        """Names and sections of the reports that have one."""
        return [(name, r[key]) for name, r in zip(self.names, self.reports, strict=True) if r.get(key)]

    def column(self, name: str, word: str = "") -> str:
        """The heading of a report's column."""
        return word if self.one else f"{word} {name}".strip()

    def table(
        self, title: str, key: str, rows: Callable[[Figures], dict[str, str]], first: str = "", note: str = ""
    ) -> Table | None:
        """Rows by name, with a column for each report that has the section."""
        columns = [(name, rows(section)) for name, section in self.those(key)]
        return _side_by_side(title, columns, first, note, self.one)

    def series(self, key: str, values: Callable[[Figures], list[Any]]) -> dict[str, Any]:
        """Intervals as the series of a picture."""
        return {name: _series(values(section)) for name, section in self.those(key)}

    def floor_value(self) -> float | None:
        """The largest floor of the reports."""
        values = [section["value"][0] for _, section in self.those("floor")]
        return max(values) if values else None

    def unit(self, part: str) -> str:
        """The unit of an output, where it is known."""
        units: dict[str, str] = self.reports[0]["how"].get("units", {})
        return next((f" {unit}" for name, unit in units.items() if part == name or part.startswith(f"{name}.")
                     or name == ""), "")  # fmt: skip

    # ---- sections -----------------------------------------------------------------------------------------------
    def headline(self) -> tuple[tuple[str, str, str], ...]:
        """Up to five figures to read first."""
        if not self.one:
            return tuple(
                (name, percent(r["error"][TOTAL][0]), r["verdict"])
                for name, r in list(zip(self.names, self.reports, strict=True))[:5]
                if "error" in r
            )
        r = self.reports[0]
        if "error" not in r:
            return ()
        value, low, high = r["error"][TOTAL]
        tiles = [("relative error", percent(value), f"95 %: {percent(low)} to {percent(high)}")]
        if "floor" in r:
            floor = r["floor"]["value"][0]
            times = f"{shown(value / floor)} times the floor" if floor else "floor 0"
            tiles.append(("noise floor", shown(floor), times))
        if "worst" in r:
            tiles.append(("worst case", percent(r["worst"]["relative"]), f"input {r['worst']['input']}"))
        if "lie" in r:
            tiles.append(("kept exactly", r["lie"]["kept"], "of the group's generators"))
        if "labels" in r:
            removed = r["labels"][TOTAL]["removed"]
            tiles.append(("of the test error", percent(removed[0]), "would averaging remove"))
        elif "classes" in r:
            changed = r["classes"]["changed"]
            tiles.append(("answers that change", percent(changed[0]), "under a random element"))
        return tuple(tiles[:5])

    def verdict(self) -> Section:
        """The first section: what it comes to."""
        text = [self._sentence(name, r) for name, r in zip(self.names, self.reports, strict=True)]
        tables, pictures = [], []
        errors = [(name, r) for name, r in zip(self.names, self.reports, strict=True) if "error" in r]
        if errors:
            tables.append(_side_by_side(
                "Relative error of each output",
                [(name, {part: interval_words(i) for part, i in r["error"].items()}) for name, r in errors],
                "output",
                "sqrt( sum |f(g x) - g f(x)|^2 / sum |f(x)|^2 ), with 95 % intervals over the inputs.",
                self.one,
            ))  # fmt: skip
            tables.append(_side_by_side(
                "Error per number, in the output's unit",
                [(name, {p: f"{shown(i[0])}{self.unit(p)} of {shown(r['output_rms'][p])}{self.unit(p)}"
                         for p, i in r["rms"].items()}) for name, r in errors],
                "output",
                "Root mean square over inputs, elements and numbers, beside that of the output.",
                self.one,
            ))  # fmt: skip
            data: dict[str, Any] = {
                "series": {name: r["each"] for name, r in errors},
                "x_label": "relative error of one input",
                "log": True,
                "floor": self.floor_value(),
            }
            pictures.append(
                Picture("error_of_each_input", "distribution", data, "How the error is spread over inputs.")
            )
        return Section("verdict", "Verdict", tuple(text), _there(tables), tuple(pictures))

    def _sentence(self, name: str, r: Figures) -> str:
        who = "" if self.one else f"{name}: "
        if "error" not in r:
            return who + r.get("sentence", "Nothing could be measured.")
        value, low, high = r["error"][TOTAL]
        words = f"{who}**{r['verdict']}**. The relative error is {percent(value)} ({percent(low)} to {percent(high)})"
        words += f"; unrelated outputs would be {percent(r['unrelated'])} apart. {_MEANING[r['verdict']]}"
        if r["not_finite"]:
            bad = r["not_finite"]
            words += f" For {len(bad)} inputs, numbers {_listed(bad)}, the network returned NaN or infinity: they are left out."
        if doubts := [u for u in r["unmoved"] if u["doubt"]]:
            words += f" Look at the inputs first: `{doubts[0]['input']}` may be declared wrongly (see below)."
        return words

    def floor(self) -> Section | None:
        """What rounding and resampling make of the error."""
        found = self.those("floor")
        text, tables = [], []
        for name, r in zip(self.names, self.reports, strict=True):
            who = "" if self.one else f"{name}: "
            if "floor" in r:
                floor, error = r["floor"], r["error"][TOTAL][0]
                times = f", {shown(error / floor['value'][0])} times less than the error" if floor["value"][0] else ""
                what = "rounding makes" if floor["kind"] == "float64" else "the exactly equivariant stand-in reads"
                text.append(f"{who}On these inputs {what} an error of {shown(floor['value'][0])}{times}.")
            if (lost := r.get("resampling")) and lost["value"][0] > 1e-3:
                text.append(
                    f"{who}Inputs that are moved and moved back change by {percent(lost['value'][0])}: that is what "
                    "resampling loses, and an error of that size need not be the network's. Measure one that is "
                    "equivariant by construction beside it (`stand_in=`), or take right angles (C4)."
                )
        if not text:
            return None

        def rows(floor: Figures) -> dict[str, str]:
            own = {"floor": interval_words(floor["value"], plain=True)}
            if floor["kind"] == "float64":
                own["error, as it is"] = interval_words(floor["error"], plain=True)
                own["error in float64"] = interval_words(floor["in_float64"], plain=True)
            return own

        if found:
            tables.append(self.table(
                "Rounding", "floor", rows, "",
                "The same elements in the network's own precision and in the other one; the floor is the difference.",
            ))  # fmt: skip
        return Section("floor", _TITLES["floor"], tuple(text), _there(tables))

    def split(self) -> Section | None:
        """By degree and by part of the group."""
        tables, pictures, text = [], [], []
        if self.those("spectrum"):
            names = self.those("spectrum")[0][1]["names"]
            text.append(
                f"The output turned back, as a function on the group, is split into its irreducible parts. `{names[0]}` is "
                "the equivariant part; what lies in the others is the error, and twice their sum is the square of the "
                "relative error where the data have no preferred orientation. Low degrees are smooth errors, high ones "
                "rough."
            )
            for name, s in self.those("spectrum"):
                if s["roughness"] is not None:
                    who = "" if self.one else f"{name}: "
                    text.append(
                        f"{who}Mean of J (J + 1) / 2 over the error: {shown(s['roughness'])} (1 where all is J = 1)."
                    )
            tables.append(self.table(
                "Share of the output by degree", "spectrum",
                lambda s: {name: interval_words(i, plain=True) for name, i in s["shares"].items()}, "degree",
                "Unbiased estimates: of a share that is 0 some fall below it.",
            ))  # fmt: skip
            for name, s in self.those("spectrum"):
                if s["by_part"]:
                    rows = tuple((part, *(shown(v) for v in by.values())) for part, by in s["by_part"].items())
                    tables.append(
                        Table(self.column(name, "Share by output and degree"), ("output", *s["names"], "rest"), rows)
                    )
            data = {
                "labels": [*names[1:], "rest"],
                "series": self.series("spectrum", lambda s: [s["shares"][n] for n in [*names[1:], "rest"]]),
                "x_label": "degree",
                "y_label": "share of the output",
                "log": False,
            }
            pictures.append(Picture("error_by_degree", "bars", data, "Where the error lies: its share by degree."))
        if self.those("group_parts"):
            tables.append(self.table(
                "Error under a part of the group alone", "group_parts",
                lambda s: {name: interval_words(i) for name, i in s.items()}, "elements",
            ))  # fmt: skip
        return (
            Section("split", "Where the error lies", tuple(text), _there(tables), tuple(pictures)) if tables else None
        )

    def profile(self) -> Section | None:
        """Against the angle, and the length of a translation."""
        pictures, tables, text = [], [], []
        if found := self.those("profile"):
            angles = found[0][1]["angles"]
            lines = {}
            for name, r in zip(self.names, self.reports, strict=True):
                if "slope" in r.get("lie", {}) and r.get("profile"):
                    lines[self.column(name, "slope at 0")] = r["lie"]["slope"] * math.pi / 180
            data = {
                "x": angles,
                "x_label": "angle / degrees",
                "y_label": "relative error",
                "series": self.series("profile", lambda s: s["error"]),
                "lines": lines,
                "floor": self.floor_value(),
            }
            text.append(
                "Rotations by a given angle about axes drawn at random. A curve that leaves the slope at 0 early means "
                "rough errors; one that grows up to 180 degrees a smooth one."
            )
            pictures.append(Picture("error_against_angle", "curve", data, "Bands are 95 % intervals."))
            tables.append(self.table(
                "Error against angle", "profile",
                lambda s: {f"{a}°": interval_words(i) for a, i in zip(s["angles"], s["error"], strict=True)}, "angle",
            ))  # fmt: skip
        if found := self.those("lengths"):
            lengths = found[0][1]["lengths"]
            data = {
                "x": lengths,
                "x_label": "length of the translation",
                "y_label": "relative error",
                "series": self.series("lengths", lambda s: s["error"]),
                "floor": self.floor_value(),
                "log": True,
            }
            pictures.append(Picture("error_against_length", "curve", data, "Translations in directions at random."))
            tables.append(self.table(
                "Error against length of translation", "lengths",
                lambda s: {shown(a): interval_words(i) for a, i in zip(s["lengths"], s["error"], strict=True)}, "length",
            ))  # fmt: skip
        return (
            Section("profile", "How far one may turn", tuple(text), _there(tables), tuple(pictures)) if tables else None
        )

    def lie(self) -> Section | None:
        """Generators, and the subgroup that is kept."""
        if not (found := self.those("lie")):
            return None
        text = []
        for name, s in found:
            who = "" if self.one else f"{name}: "
            text.append(
                f"{who}Kept to within {shown(s['kept_below'])}: {s['kept']}. The derivative was found by `{s['method']}`."
            )
        tables = [
            self.table(
                "Lie derivative by generator", "lie",
                lambda s: {"all": interval_words(s["total"], plain=True),
                           **{name: interval_words(i, plain=True) for name, i in s["generators"].items()}},
                "generator", "How fast the error grows from 0, relative to the output: per radian, per unit of length.",
            ),
        ]  # fmt: skip
        for name, s in found:
            rows = tuple(
                (shown(value), ", ".join(f"{x:+.2f}" for x in axis))
                for value, axis in zip(s["eigenvalues"], s["axes"], strict=True)
            )
            header = ("speed", "direction in " + ", ".join(s["generators"]))
            tables.append(Table(self.column(name, "Directions, from the best kept to the worst"), header, rows))
        return Section("lie", _TITLES["lie"], tuple(text), _there(tables))

    def layers(self) -> Section | None:
        """Which layer makes the error."""
        if not (found := self.those("layers")):
            return None
        tables, pictures = [], []
        text = [
            "What a layer makes is its own defect, carried to the output; what ends up of it is its share of the error that "
            "is there in the end. The shares and the remainder sum to 1; a negative share repairs what others do."
        ]
        for name, s in found:
            who = "" if self.one else f"{name}: "
            if s["nothing_to_share"]:
                text.append(f"{who}The whole network has no more than rounding to share among its layers.")
            else:
                text.append(
                    f"{who}Of the derivative, {percent(s['remainder'])} belongs to no layer that was looked at."
                )
            rows = tuple(
                (n, shown(a), shown(b), f"{c:+.3f}")
                for n, a, b, c in zip(s["names"], s["own"], s["makes"], s["ends_up"], strict=True)
            )
            header = ("layer", "error by itself", "makes", "ends up")
            tables.append(Table(self.column(name, "Layers"), header, rows))
            data = {
                "labels": s["names"],
                "series": {name: {"value": s["ends_up"], "low": None, "high": None}},
                "x_label": "layer",
                "y_label": "share of the error",
                "horizontal": True,
            }
            pictures.append(
                Picture(self.column(name, "layers").replace(" ", "_"), "bars", data, "Shares that end up in the error.")
            )
        return Section("layers", _TITLES["layers"], tuple(text), _there(tables), tuple(pictures))

    def worst(self) -> Section | None:
        """The worst inputs."""
        if not (found := self.those("worst")):
            return None
        text, tables = [], []
        for (name, s), r in zip(found, (r for r in self.reports if r.get("worst")), strict=True):
            who = "" if self.one else f"{name}: "
            text.append(
                f"{who}Input {s['input']} has an error of {percent(s['relative'])} of the outputs' root mean square "
                f"({shown(s['error'])} in their unit); sampling alone found {percent(s['sampled'])}. Of all inputs, half are "
                f"below {percent(r['median'])} and 95 % below {percent(r['quantile_95'])}, averaged over elements."
            )
            text.append(f"{who}Its element: `{_coordinates(s['element'])}`.")
            rows = tuple((str(row["input"]), shown(row["error"]), percent(row["relative"])) for row in s["ten"])
            header = ("input", "largest error", "relative")
            tables.append(Table(self.column(name, "Worst inputs"), header, rows, "Sought by sampling and ascent."))
        return Section("worst", _TITLES["worst"], tuple(text), _there(tables))

    def labels(self) -> Section | None:
        """What the error costs."""
        if not (self.those("labels") or self.those("task")):
            return None
        text, tables = [], []
        if found := self.those("labels"):
            for name, s in found:
                who = "" if self.one else f"{name}: "
                removed = s[TOTAL]["removed"]
                text.append(
                    f"{who}Of the squared error in a random orientation, {percent(removed[0])} ({percent(removed[1])} to "
                    f"{percent(removed[2])}) is variance over the orbit, which averaging would remove."
                )
            title = {
                "as_is": "as it is",
                "averaged": "averaged",
                "variance": "spread",
                "oriented": "random orientation",
            }
            for name, s in found:
                rows = tuple((part, *(interval_words(e[key], plain=True) for key in title)) for part, e in s.items())
                tables.append(Table(
                    self.column(name, "Root mean square error per number"), ("output", *title.values()), rows,
                    "random orientation^2 = averaged^2 + spread^2.",
                ))  # fmt: skip
        for name, s in self.those("task"):
            tables.append(Table(
                self.column(name, s["name"]), ("orientation", "value"),
                (("as it is", shown(s["as_is"])), ("random", shown(s["oriented"])), ("averaged", shown(s["averaged"]))),
            ))  # fmt: skip
        return Section("labels", _TITLES["labels"], tuple(text), _there(tables))

    def classes(self) -> Section | None:
        """Answers that change."""
        if not self.those("classes"):
            return None
        title = {
            "changed": "answers that change", "divergence": "KL divergence / nats", "right": "accuracy, as it is",
            "right_oriented": "accuracy, random orientation", "right_averaged": "accuracy, averaged",
        }  # fmt: skip

        def rows(s: Figures) -> dict[str, str]:
            return {
                words: interval_words(s[key], plain=key == "divergence") for key, words in title.items() if key in s
            }

        return Section("classes", _TITLES["classes"], (), _there([self.table("Classes", "classes", rows)]))

    def convergence(self) -> Section | None:
        """Half the draws against all."""
        found = [(name, r) for name, r in zip(self.names, self.reports, strict=True) if "half" in r]
        columns = [
            (name, {
                "all draws": interval_words(r["error"][TOTAL]),
                "the first half": interval_words(r["half"]),
                **({"from the spectrum": percent(math.sqrt(max(0.0, 2 * r["spectrum"]["variance"][0])))} if "spectrum" in r else {}),
            })
            for name, r in found
        ]  # fmt: skip
        text = (
            "The error from the spectrum is that between two random orientations; it is that of the data's own orientation "
            "against a random one where these are alike.",
        )
        table = _side_by_side("Relative error", columns, "", "", self.one)
        return Section("convergence", "Convergence", text, _there([table])) if found else None

    def moved(self) -> Section:
        """Which inputs no element moves."""
        tables = []
        text = ["Most wrong figures come from an input that should have been moved and was not."]
        for name, r in zip(self.names, self.reports, strict=True):
            rows = tuple((u["input"], u["shape"], u["declared"], u["doubt"] or "–") for u in r["unmoved"])
            if rows:
                header = ("input", "shape", "declared", "doubt")
                tables.append(Table(self.column(name, "Inputs that no element moves"), header, rows))
            else:
                text.append(("" if self.one else f"{name}: ") + "Every input is moved.")
        return Section("inputs", "What was not moved", tuple(text), tuple(tables))

    def how(self) -> Section:
        """How it was measured, and what was not."""
        columns = []
        for name, r in zip(self.names, self.reports, strict=True):
            how = r["how"]
            rows = {
                "network": f"{how.get('network', '')}, {how['parameters']} parameters"
                if "parameters" in how
                else how.get("network", ""),
                "group": r["group"],
                "inputs move by": r["symmetry"]["inputs"],
                "outputs move by": r["symmetry"]["outputs"],
                "inputs measured": str(how["inputs"]),
                "elements for each": "the whole group" if how.get("whole") else str(how["draws"]),
                "precision, device": f"{how['dtype']}, {how['device']}",
                "mode": "evaluation" + (", gradients on" if how.get("needs_grad") else ""),
                "seed": str(how["seed"]),
                "seconds": str(how["seconds"]),
                "versions": ", ".join(f"{k} {v}" for k, v in how["versions"].items()),
            }
            if "chunks" in how:
                rows["note"] = how["chunks"]
            columns.append((name, rows))
        tables = [_side_by_side("How it was measured", columns, "", "", self.one)]
        missing = {
            name: {
                _TITLES.get(key, key.replace("_", " ")): why
                for key, why in r["skipped"].items()
                if not _expected(key, r)
            }
            for name, r in zip(self.names, self.reports, strict=True)
        }
        if any(missing.values()):
            columns = [(name, rows) for name, rows in missing.items() if rows]
            tables.append(_side_by_side("Not measured, or not on all inputs", columns, "", "", self.one))
        return Section("how", "How it was measured", (), _there(tables))


def _expected(key: str, r: Figures) -> bool:
    """Whether nobody misses a section: parts of a group that has one."""
    return key in ("group_parts", "profile", "task") and key not in r


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


def interval_words(i: Sequence[float], plain: bool = False) -> str:
    """A figure with its interval, in per cent unless `plain`."""
    write = shown if plain else percent
    if i[1] is None or not math.isfinite(i[1]):
        return f"{write(i[0])} (too few inputs for an interval)"
    return f"{write(i[0])} ({write(i[1])} to {write(i[2])})"


def _series(intervals: list[Any]) -> dict[str, Any]:
    value, low, high = (list(side) for side in zip(*intervals, strict=True))
    has = all(x is not None and math.isfinite(x) for x in low)
    return {"value": value, "low": low if has else None, "high": high if has else None}


def _side_by_side(
    title: str, columns: list[tuple[str, dict[str, str]]], first: str, note: str, one: bool
) -> Table | None:
    """A table with a row for each name that some column has."""
    if not columns:
        return None
    rows = list(dict.fromkeys(key for _, column in columns for key in column))
    header = (first, "value") if one else (first, *(name for name, _ in columns))
    return Table(title, header, tuple((row, *(column.get(row, "–") for _, column in columns)) for row in rows), note)


def _there(tables: list[Table | None]) -> tuple[Table, ...]:
    return tuple(table for table in tables if table is not None)


def _listed(numbers: list[int], most: int = 8) -> str:
    return ", ".join(map(str, numbers[:most])) + (", .." if len(numbers) > most else "")


def _coordinates(element: list[Any]) -> str:
    def written(value: Any) -> str:
        if isinstance(value, list):
            return "[" + ", ".join(map(written, value)) + "]"
        return f"{value:.4f}" if isinstance(value, float) else str(value)

    return "; ".join(map(written, element))
