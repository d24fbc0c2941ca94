"""Softening: an ordinary CNN on handwritten digits, trained without a symmetry, and filtered towards C4 afterwards.

Its layers are softened with the group of quarter turns, without any training. Hidden channels are declared as four
orientations of a feature ("regular": C4 turns the channels into one another), or as features that do not turn
("trivial"). Error on digits in every orientation and on upright ones, and equivariance error, against the softness: 1
is the network as trained, 0 is strict. Three trainings:

    upright         on upright digits
    augmented       on digits in every orientation
    strict start    on digits in every orientation, from first weights that were softened to 0 ("regular")

    python examples/soften_digits.py                one minute
    python examples/soften_digits.py --seeds 3      means over three networks

Prints a table; writes soften_digits.csv and .png.
"""

from __future__ import annotations

import csv
import statistics
from pathlib import Path
from typing import Any

import lightning as L
import torch
from shared.command_line import arguments
from torch import Tensor, nn

from lightning_equiv import GroupAugmentation, Image, Invariant, SoftnessCurve, Symmetry, soften, softness_curve
from lightning_equiv.datasets import DigitsDataModule
from lightning_equiv.networks.tasks import Classifier
from lightning_equiv.report.document import Picture
from lightning_equiv.report.pictures import figure, save_png

SYMMETRY = Symmetry("C4", inputs=Image(), outputs=Invariant(), batch={"images": Image(), "labels": Invariant()})
SOFTNESSES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 1.0)
TRAININGS = {  # what their hidden channels are declared as
    "upright": ("regular", "trivial"),
    "augmented": ("regular", "trivial"),
    "strict start": ("regular",),
}
CHANNELS = {"regular": ("Image() @ Shifted(-3)", "Shifted(-1)"), "trivial": ("Image()", "Invariant()")}
TURNED, UPRIGHT = "error, turned [%]", "error, upright [%]"


def network() -> nn.Module:
    """Three convolutions, the mean over positions and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def layers(channels: str) -> dict[str, tuple[str, str]]:
    """How the features of each layer move, as `soften` takes them."""
    field, pooled = CHANNELS[channels]
    return {"0": ("Image()", field), "2": (field, field), "5": (field, field), "9": (pooled, "Invariant()")}


def strict(net: nn.Module) -> nn.Module:
    """The first weights at softness 0, as large as they were."""
    projected = soften(net, "C4", layers("regular"), 0.0)
    with torch.no_grad():
        for p, before in zip(projected.parameters(), net.parameters(), strict=True):
            p.mul_(before.norm() / p.norm())
    return projected


def trained(training: str, seed: int, steps: int, sizes: dict[str, int]) -> tuple[nn.Module, DigitsDataModule]:
    """A network, and its data."""
    L.seed_everything(seed, verbose=False)
    data = DigitsDataModule("rotations kept", seed=seed, **sizes)
    net = strict(network()) if training == "strict start" else network()
    module = Classifier(net, lr=3e-3, key="images")
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=[GroupAugmentation(SYMMETRY)] if training != "upright" else [],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        log_every_n_steps=1,
    )
    trainer.fit(module, datamodule=data)
    return module.net, data


def curve_of(net: nn.Module, channels: str, data: DigitsDataModule) -> SoftnessCurve:
    """Errors on the test images as they come, and on the validation images, which are upright."""
    (test,), validation = data.test_dataloader(), data.val_dataloader()
    turned, upright = next(iter(test)), next(iter(validation))

    def error(net: nn.Module, batch: dict[str, Tensor]) -> float:
        return 100 * float((net(batch["images"]).argmax(-1) != batch["labels"]).float().mean())

    return softness_curve(
        net,
        SYMMETRY,
        layers(channels),
        turned["images"],
        {TURNED: lambda net: error(net, turned), UPRIGHT: lambda net: error(net, upright)},
        SOFTNESSES,
        num_samples=None,
    )


def with_layers(curve: SoftnessCurve) -> list[dict[str, float]]:
    """The rows of a curve, with the mean of its layers' own equivariance errors."""
    means = map(statistics.fmean, zip(*curve.layer_errors.values(), strict=True))
    return [{**row, "layers' own error": mean} for row, mean in zip(curve.rows, means, strict=True)]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Errors against softness, a row for each training."""
    pictures = []
    for training, channels in TRAININGS.items():
        own = {c: [row for row in rows if (row["training"], row["channels"]) == (training, c)] for c in channels}
        errors = {
            f"{c}, {n[7:-4]}": {"value": [float(row[n]) for row in own[c]]} for c in own for n in (TURNED, UPRIGHT)
        }
        breaks = {c: {"value": [float(row["equivariance error"]) for row in own[c]]} for c in own}
        xs = [float(row["softness"]) for row in own["regular"]]
        for series, measured in ((errors, "test error / %"), (breaks, "equivariance error")):
            labels = {"x_label": "softness: 0 is strict, 1 as trained", "y_label": measured}
            pictures.append(Picture(f"{training}: {measured}", "curve", {"x": xs, "series": series, **labels}, ""))
    save_png(figure(pictures), path)


if __name__ == "__main__":
    options = arguments(__doc__, steps=600, draw=True)
    if options.draw:
        with Path(f"{options.path}.csv").open(newline="") as file:
            draw(list(csv.DictReader(file)), Path(f"{options.path}.png"))
        raise SystemExit(f"written: {options.path}.png")
    steps = options.runs["steps"]
    torch.set_num_threads(1)
    found: dict[tuple[str, str], list[SoftnessCurve]] = {}
    for seed in range(options.seeds):
        for training in TRAININGS:
            net, data = trained(training, seed, steps, options.sizes)
            for channels in TRAININGS[training]:
                found.setdefault((training, channels), []).append(curve_of(net, channels, data))
    rows = []
    for (training, channels), curves in found.items():
        for same in zip(*map(with_layers, curves), strict=True):
            means = {name: round(statistics.fmean(row[name] for row in same), 5) for name in same[0]}
            rows.append({"training": training, "channels": channels, **means})
        print(f"\n{training}, {channels}, the last of {len(curves)} networks\n\n{curves[-1].markdown()}")
    options.out.mkdir(parents=True, exist_ok=True)
    with Path(f"{options.path}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, Path(f"{options.path}.png"))
    print(f"written: {options.path}.csv, .png")
