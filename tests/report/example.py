"""A report card as the command writes it: a Transformer on gravitating particles, before and after training."""

from __future__ import annotations

import math
import random
import re

from lightning_equiv.report.document import Document, Picture, Section, Table

ANGLES = [15.0 * i for i in range(13)]


def series(values: list[float | None], spread: float | None = None) -> dict[str, list[float | None] | None]:
    if spread is None:
        return {"value": values, "low": None, "high": None}
    low, high = ([None if v is None else v * (1 + s * spread) for v in values] for s in (-1, 1))
    return {"value": values, "low": low, "high": high}


def example() -> Document:
    numbers = random.Random(0)
    before = [math.exp(numbers.gauss(-0.95, 0.35)) for _ in range(256)]
    after = [math.exp(numbers.gauss(-3.6, 0.6)) for _ in range(256)]
    verdict = Section(
        "verdict",
        "Verdict",
        (
            "After training the model is approximately equivariant: turning the input and turning the output differ "
            "by 0.0312 of the output's size, with a 95 % interval of 0.0287 to 0.0339 over 256 test inputs. That is "
            "96300 times what rounding explains, and 13.6 times less than before training.",
            "Averaging the model over rotations when it is used would remove 4.1 % of its test error. The error sits "
            "in the layers `blocks.2.attention.out_proj` and `head.1`, and in degree J = 1.",
        ),
    )
    floor = Section(
        "floor",
        "Floor: what rounding explains",
        ("The same network in float64, on the same inputs turned by the same elements, shows what rounding does.",),
        (
            Table(
                "Error and floor",
                ("", "before", "after"),
                (
                    ("relative error", "0.424 (0.403 to 0.446)", "0.0312 (0.0287 to 0.0339)"),
                    ("in float64", "0.424 (0.403 to 0.446)", "0.0312 (0.0287 to 0.0339)"),
                    ("floor in float32", "3.31e-07", "3.24e-07"),
                    ("ratio to the floor", "1281000", "96300"),
                ),
                "Intervals are 95 % over inputs; group elements are nested in them.",
            ),
        ),
    )
    split = Section(
        "split",
        "Where the error is",
        (
            "The output as a function of the rotation, expanded by angular momentum J. J = 0 is the equivariant part; "
            "all else is error. Most of it in J = 1 means a smooth error, a tail means a rough one.",
        ),
        (
            Table(
                "Error by output",
                ("output", "irreps", "before", "after", "share of the error after", "worst input after"),
                (
                    ("positions", "1o", "0.317 (0.301 to 0.334)", "0.0244 (0.0226 to 0.0263)", "41 %", "0.171"),
                    ("velocities", "1o", "0.498 (0.471 to 0.526)", "0.0371 (0.0338 to 0.0405)", "59 %", "0.262"),
                ),
            ),
            Table(
                "Generators of rotations: mean squared Lie derivative",
                ("axis", "before", "after", "ratio to the floor after"),
                (
                    ("x", "0.212", "0.00131", "4040"),
                    ("y", "0.207", "0.00128", "3950"),
                    ("z", "0.391", "0.00402", "12400"),
                ),
                "No null direction: no one-parameter group of rotations is kept.",
            ),
        ),
        (
            Picture(
                "error_by_degree",
                "bars",
                {
                    "labels": [str(j) for j in range(1, 8)],
                    "series": {
                        "before": series([0.0652, 0.0171, 0.00592, 0.00149, 0.000431, 0.000152, 0.0000921], 0.12),
                        "after": series([0.000391, 0.0000734, 0.0000171, 0.00000412, 1.21e-6, None, 4.9e-7], 0.18),
                    },
                    "floor": 1.1e-13,
                    "log": True,
                    "horizontal": False,
                    "x_label": "degree J",
                    "y_label": "energy in degree J, relative to the output",
                },
                "Energy of the error by degree, with 95 % intervals. It falls by about a factor of 4 a degree.",
            ),
            Picture(
                "error_by_output",
                "bars",
                {
                    "labels": ["positions", "velocities"],
                    "series": {"before": series([0.317, 0.498], 0.05), "after": series([0.0244, 0.0371], 0.08)},
                    "floor": 3.2e-7,
                    "log": False,
                    "horizontal": False,
                    "y_label": "relative error",
                },
                "Relative error of each output, with 95 % intervals.",
            ),
        ),
    )
    profile = [0.44 * math.sin(math.radians(a) / 2) ** 0.9 for a in ANGLES]
    angle = Section(
        "angle",
        "Error against angle",
        (
            "The error at each angle, axes averaged. The Lie derivative predicts the slope at 0: 0.00392 a degree "
            "before and 0.000361 after. The profile leaves the line at about 60 degrees: the error is mostly J = 1.",
        ),
        pictures=(
            Picture(
                "error_against_angle",
                "curve",
                {
                    "x": ANGLES,
                    "x_label": "angle in degrees",
                    "y_label": "relative error",
                    "series": {
                        "before": series(profile, 0.06),
                        "after": series(
                            [
                                0.078 * v + 0.002 * math.sin(math.radians(2 * a))
                                for v, a in zip(profile, ANGLES, strict=True)
                            ],
                            0.1,
                        ),
                    },
                    "floor": 3.2e-7,
                    "lines": {"before: slope at 0": 0.00392, "after: slope at 0": 0.000361},
                    "log": False,
                },
                "Relative error against the angle of the rotation, its 95 % band, and what its slope at 0 predicts.",
            ),
            Picture(
                "error_against_translation",
                "curve",
                {
                    "x": [0.1, 0.3, 1.0, 3.0, 10.0],
                    "x_label": "length of the translation",
                    "y_label": "relative error",
                    "series": {
                        "before": series([0.0101, 0.0311, 0.104, 0.322, 0.871], 0.1),
                        "after": series([0.0000412, 0.000131, 0.000398, 0.00122, 0.0104], 0.2),
                    },
                    "floor": 3.2e-7,
                    "log": True,
                },
                "Relative error against the length of a translation.",
            ),
        ),
    )
    names = [
        "embed",
        *(f"blocks.{i}.{part}" for i in range(3) for part in ("attention.out_proj", "mlp.2")),
        "norm",
        "head.0",
        "head.1",
    ]
    shares = [0.021, 0.094, 0.051, 0.132, 0.088, 0.371, -0.062, 0.004, 0.083, 0.218]
    earlier = [0.012, 0.117, 0.094, 0.141, 0.171, 0.152, 0.131, 0.012, 0.061, 0.109]
    layers = Section(
        "layers",
        "Layers",
        (
            "Of each layer, the part of the error that it makes and that reaches the output. The shares sum to 1 with "
            "the remainder; a negative one is a layer that repairs what others break.",
        ),
        (
            Table(
                "Layers' shares of the error, after training",
                ("layer", "type", "ends up in the output", "makes", "before training", "parameters"),
                tuple(
                    (
                        name,
                        "MultiheadAttention" if "attention" in name else "Linear",
                        f"{s:+.3f}",
                        f"{abs(s) * 1.4:.3f}",
                        f"{e:+.3f}",
                        str(128 * k + 64),
                    )
                    for k, (name, s, e) in enumerate(zip(names, shares, earlier, strict=True))
                ),
                "Remainder, in no layer's account: 2.1e-06 of the error.",
            ),
        ),
        (
            Picture(
                "shares_of_layers",
                "bars",
                {
                    "labels": names,
                    "series": {"before": series(earlier), "after": series(shares)},
                    "floor": None,
                    "log": False,
                    "horizontal": True,
                    "y_label": "share of the error at the output",
                },
                "Share of each layer in the error at the output; `blocks.2.mlp.2` repairs after training.",
            ),
        ),
    )
    inputs = Section(
        "inputs",
        "Inputs",
        ("The worst of 256 inputs. Each error is found again from the input's index, the seed and the element.",),
        (
            Table(
                "The worst inputs after training",
                ("input", "error", "element", "seed"),
                tuple(
                    (str(i), f"{e:.3f}", f"rotation by {a:.1f} degrees about ({x:+.2f}, {y:+.2f}, {z:+.2f})", "0")
                    for i, e, a, x, y, z in (
                        (201, 0.262, 171.2, 0.12, -0.43, 0.89),
                        (17, 0.214, 163.8, 0.72, 0.12, 0.68),
                        (118, 0.171, 178.4, -0.31, 0.55, 0.78),
                    )
                ),
            ),
        ),
        (
            Picture(
                "errors_of_inputs",
                "distribution",
                {
                    "series": {"before": before, "after": after},
                    "x_label": "relative error of an input",
                    "floor": 3.2e-7,
                },
                "Share of inputs whose error is below a value.",
            ),
            Picture(
                "before_and_after",
                "scatter",
                {
                    "series": {"inputs": {"x": before[:128], "y": after[:128]}},
                    "lines": {"unchanged": 1.0},
                    "x_label": "relative error before training",
                    "y_label": "relative error after training",
                    "log": True,
                },
                "The error of each input before and after training: what was bad before is not what is bad after.",
            ),
        ),
    )
    labels = Section(
        "labels",
        "What it costs: the error against labels",
        ("In a random orientation, squared error = squared error of the averaged model + variance over rotations.",),
        (
            Table(
                "Root mean squared error against labels",
                ("", "before", "after"),
                (
                    ("as the data lie", "1.214", "0.0871"),
                    ("in a random orientation", "1.243", "0.0889"),
                    ("averaged over rotations", "1.170", "0.0853"),
                    ("variance over rotations", "0.420", "0.0251"),
                    ("what averaging would remove", "5.9 %", "4.1 %"),
                ),
            ),
        ),
    )
    classes = Section(
        "classification",
        "Classification",
        ("The model also predicts which particle leaves first. For 9 of 256 inputs some rotation changes the class.",),
        (
            Table(
                "Predicted classes under rotation",
                ("", "before", "after"),
                (("inputs whose class changes", "41.8 %", "3.5 %"), ("mean KL divergence", "0.713", "0.0118 nats")),
            ),
        ),
    )
    converged = Section(
        "convergence",
        "Convergence",
        ("Half of the draws give the same figures within their intervals.",),
        (
            Table(
                "Relative error by number of draws",
                ("draws", "before", "after"),
                (
                    ("16", "0.427 ± 0.013", "0.0309 ± 0.0017"),
                    ("32", "0.425 ± 0.012", "0.0313 ± 0.0014"),
                    ("64", "0.424 ± 0.011", "0.0312 ± 0.0013"),
                ),
            ),
        ),
    )
    how = Section(
        "how",
        "How it was measured",
        (),
        (
            Table(
                "Settings",
                ("", ""),
                (
                    ("package", "lightning_equiv 0.9.0, torch 2.13.0"),
                    ("symmetry", 'Symmetry("SO(3)", inputs=("1o", "1o", "0e"), outputs=("1o", "1o"))'),
                    ("draws", "64 for each input: 32 Haar, 32 on 13 angles"),
                    ("inputs", "256 of the test set, in order"),
                    ("seed", "0"),
                    ("dtype and device", "float32, cpu"),
                    ("mode", "eval, dropout off"),
                ),
            ),
        ),
    )
    missing = Section(
        "not_measured",
        "What was not measured, and why",
        (),
        (
            Table(
                "Left out",
                ("what", "why"),
                (
                    ("improper rotations", "the symmetry is SO(3); O(3) was not asked for"),
                    ("translations by layer", "no layer of `blocks` declares a translation"),
                    ("energy per atom", "the outputs name no energy"),
                ),
            ),
        ),
    )
    return Document(
        "Report card of GravityTransformer",
        "SO(3), 256 test inputs of GravityDataModule, before and after 20000 steps with REMUL",
        "approximate",
        (
            ("relative error", "0.0312", "95 %: 0.0287 to 0.0339; before 0.424"),
            ("ratio to the floor", "96300", "floor 3.24e-07 in float32"),
            ("worst input", "0.262", "input 201, by 171.2 degrees"),
            ("share of J = 1", "80 %", "smooth; before 72 %"),
            ("averaging would remove", "4.1 %", "of the test error; before 5.9 %"),
        ),
        (verdict, floor, split, angle, layers, inputs, labels, classes, converged, how, missing),
    )


def numbers_of(document: Document, drawn: bool = True) -> list[str]:
    """Every number in the text and the tables of a document; `drawn`: and what its pictures' tables have."""
    texts = [document.title, document.subtitle, *(part for tile in document.headline for part in tile)]
    for section in document.sections:
        texts += [section.title, *section.text]
        tables = [*section.tables, *(picture.numbers() for picture in section.pictures if drawn)]
        for table in tables:
            texts += [table.title, table.note, *table.header, *(cell for row in table.rows for cell in row)]
    return [number for text in texts for number in re.findall(r"\d[\d.]*(?:e[-+]\d+)?", text)]
