"""What a report says of where the error comes from: generators, layers, the worst inputs."""

from __future__ import annotations

from typing import Any

from lightning_equiv.audit.document import Picture, Section, Table, shown
from lightning_equiv.audit.words import TITLES, Side, percent, plainly


def lie(side: Side) -> Section | None:
    """Generators, and the subgroup that is kept."""
    if not (found := side.those("lie")):
        return None
    text = tuple(
        f"{side.who(name)}Kept to within {shown(s['kept_below'])}: {s['kept']}. The derivative was found by "
        f"`{s['method']}`."
        for name, s in found
    )
    tables = [
        side.table(
            "Lie derivative by generator",
            "lie",
            lambda s: {"all": plainly(s["total"]), **{name: plainly(i) for name, i in s["generators"].items()}},
            "generator",
            "How fast the error grows from 0, relative to the output: per radian, per unit of length.",
        )
    ]
    for name, s in found:
        rows = tuple(
            (shown(value), ", ".join(f"{x:+.2f}" for x in axis))
            for value, axis in zip(s["eigenvalues"], s["axes"], strict=True)
        )
        header = ("speed", "direction in " + ", ".join(s["generators"]))
        tables.append(Table(side.title(name, "Directions, from the best kept to the worst"), header, rows))
    return Section("lie", TITLES["lie"], text, tuple(tables))


def layers(side: Side) -> Section | None:
    """Which layer makes the error."""
    if not (found := side.those("layers")):
        return None
    text = [
        "What a layer makes is its own defect, carried to the output; what ends up is its share of the error that is "
        "there in the end. The shares and the remainder sum to 1; a layer with a negative share repairs what others do."
    ]
    tables, pictures = [], []
    for name, s in found:
        if s["nothing_to_share"]:
            text.append(f"{side.who(name)}The network has no more than rounding to share among its layers.")
        else:
            text.append(
                f"{side.who(name)}No layer that was looked at makes {percent(s['remainder'])} of the derivative."
            )
        columns = zip(s["names"], s["own"], s["makes"], s["ends_up"], strict=True)
        rows = tuple((layer, shown(own), shown(makes), f"{ends_up:+.3f}") for layer, own, makes, ends_up in columns)
        tables.append(Table(side.title(name, "Layers"), ("layer", "error by itself", "makes", "ends up"), rows))
        data = {
            "labels": s["names"],
            "series": {name: {"value": s["ends_up"], "low": None, "high": None}},
            "x_label": "layer",
            "y_label": "share of the error",
            "horizontal": True,
        }
        if not s["nothing_to_share"]:
            title = side.title(name, "layers' shares of the error").replace(" ", "_")
            pictures.append(Picture(title, "bars", data, "What of each layer's defect ends up in the error."))
    return Section("layers", TITLES["layers"], tuple(text), tuple(tables), tuple(pictures))


def worst(side: Side) -> Section | None:
    """The worst inputs, and the element of the worst."""
    text, tables = [], []
    for name, r in side.each:
        if not (s := r.get("worst")):
            continue
        text.append(
            f"{side.who(name)}Input {s['input']} has an error of {percent(s['relative'])} of the outputs' root mean "
            f"square, {shown(s['error'])} in their unit; sampling alone found {percent(s['sampled'])}. Averaged over "
            f"elements, half of the inputs are below {percent(r['median'])} and 95 % below {percent(r['quantile_95'])}."
        )
        text.append(f"{side.who(name)}Its element: `{_coordinates(s['element'])}`.")
        rows = tuple((str(row["input"]), shown(row["error"]), percent(row["relative"])) for row in s["ten"])
        header = ("input", "largest error", "relative")
        tables.append(Table(side.title(name, "Worst inputs"), header, rows, "Sought by sampling and by ascent."))
    return Section("worst", TITLES["worst"], tuple(text), tuple(tables)) if tables else None


def _coordinates(element: list[Any]) -> str:
    def written(value: Any) -> str:
        if isinstance(value, list):
            return "[" + ", ".join(map(written, value)) + "]"
        return f"{value:.4f}" if isinstance(value, float) else str(value)

    return "; ".join(map(written, element))
