"""Handwritten digits: a network whose layers were cloned from equivariant ones, where the symmetry holds and where not.

Four problems: shifts by up to 2 of 8 pixels (a circular convolution keeps them) and quarter turns (a C4 convolution
does), each kept (training images are not moved, test images are) or broken (the label depends on the move, too).

    plain           an MLP of about as many weights
    cloned, retain  two layers assembled from a clone that stays as it is
    cloned, break   the same, the clone trains along
    strict          the same two layers of the teacher itself

    python examples/digits_symmetry_cloning.py --preset quick    one seed
    python examples/digits_symmetry_cloning.py --preset full     five seeds

Prints one table and writes it beside one picture: digits_symmetry_cloning_PRESET.csv, .md, .json, .png.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning as L
import matplotlib.pyplot as plt
from networks.layered import LayeredNetwork
from shared.comparison import Run, arguments, compare, cosine
from torch import Tensor, nn

from lightning_equiv import CircularConvolution, ConditionalBilinear, GroupConvolution, SymmetryCloning
from lightning_equiv.datasets import DigitsDataModule
from lightning_equiv.datasets.digits import PROBLEMS
from lightning_equiv.layers.teachers import Teacher

WAYS = ("plain", "cloned, retain", "cloned, break", "strict")


@dataclass(frozen=True)
class Preset:
    """How large and how long."""

    seeds: int
    steps: int
    eval_every: int
    cloning_steps: int
    channels: int = 12
    kernel_size: int = 5
    width: int = 512
    batch_size: int = 50
    lr: float = 3e-3
    sizes: tuple[int, int, int] = (1000, 297, 500)


PRESETS = {
    "quick": Preset(seeds=1, steps=200, eval_every=50, cloning_steps=1500),
    "full": Preset(seeds=5, steps=600, eval_every=100, cloning_steps=1500),
}
FAST_DEV_RUN = Preset(
    seeds=1, steps=4, eval_every=2, cloning_steps=1500, channels=2, kernel_size=3, width=16, sizes=(20, 10, 10)
)


def make_teacher(problem: str, kernel_size: int) -> Teacher:
    """Of the symmetry that the problem keeps or breaks."""
    if problem.startswith("translations"):
        return CircularConvolution((12, 12), kernel_size)
    return GroupConvolution("C4", 8, kernel_size, lift=True)


class Digits(L.LightningModule):
    """The training that a user has already."""

    def __init__(self, net: nn.Module, lr: float, steps: int) -> None:
        super().__init__()
        self.net, self.lr, self.steps = net, lr, steps

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch["images"]), batch["labels"])

    def evaluate(self, batch: dict[str, Tensor], stage: str) -> None:
        accuracy = (self.net(batch["images"]).argmax(-1) == batch["labels"]).float().mean()
        self.log(f"{stage}_accuracy", accuracy, prog_bar=True, batch_size=len(batch["labels"]))

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        self.evaluate(batch, "val")

    def test_step(self, batch: dict[str, Tensor]) -> None:
        self.evaluate(batch, "test")

    def configure_optimizers(self) -> dict[str, object]:
        return cosine(self, self.lr, self.steps)


def make_module(way: str, problem: str, preset: Preset) -> Digits:
    """A network for a problem, not yet taught."""
    teacher = make_teacher(problem, preset.kernel_size)
    if way == "plain":
        pixels = teacher.in_shape[0] * teacher.in_shape[1]
        net: nn.Module = nn.Sequential(
            nn.Flatten(),
            nn.Linear(pixels, preset.width),
            nn.ReLU(),
            nn.Linear(preset.width, preset.width),
            nn.ReLU(),
            nn.Linear(preset.width, 10),
        )
    else:
        net = LayeredNetwork(teacher if way == "strict" else ConditionalBilinear.like(teacher), preset.channels)
    return Digits(net, preset.lr, preset.steps)


def make_callbacks(way: str, problem: str, preset: Preset, folder: Path) -> list[L.Callback]:
    """Cloning, for the ways that have it; the clone of a problem is made once."""
    if not way.startswith("cloned"):
        return []
    teacher = make_teacher(problem, preset.kernel_size)
    return [
        SymmetryCloning(
            teacher,
            "net.student",
            steps=preset.cloning_steps,
            lr=1e-2,
            tolerance=0.01,
            mode="retain" if way == "cloned, retain" else "break",
            cache=folder / f"clone_{problem.split()[0]}_{preset.kernel_size}.pt",
        )
    ]


def picture(runs: list[Run], path: Path) -> None:
    """Test accuracy of every way, a panel for each problem; every seed is a dot."""
    figure, axes = plt.subplots(1, len(PROBLEMS), figsize=(14, 3.8), layout="constrained", sharey=True)
    for axis, problem in zip(axes, PROBLEMS, strict=True):
        for i, way in enumerate(WAYS):
            accuracies = [100 * r.test for r in runs if (r.way, r.case) == (way, problem)]
            axis.bar(i, statistics.mean(accuracies), color=f"C{i}", alpha=0.6)
            axis.plot([i] * len(accuracies), accuracies, ".", color="black")
        axis.set_xticks(range(len(WAYS)), [way.replace(", ", "\n") for way in WAYS])
        axis.set_title(problem)
    axes[0].set(ylabel="test accuracy / %", ylim=(0, 100))
    figure.savefig(path.with_suffix(".png"), dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    options = arguments(__doc__, sorted(PRESETS)).parse_args(argv)
    preset = FAST_DEV_RUN if options.fast_dev_run else PRESETS[options.preset]
    train, val, test = preset.sizes

    def make_data(problem: str) -> DigitsDataModule:
        return DigitsDataModule(
            problem,
            train_size=train,
            val_size=val,
            test_size=test,
            batch_size=preset.batch_size,
            steps_per_epoch=preset.eval_every,
        )

    compare(
        {way: partial(make_callbacks, way, preset=preset, folder=options.out) for way in WAYS},
        options,
        options.out / f"digits_symmetry_cloning_{'fast_dev_run' if options.fast_dev_run else options.preset}",
        cases=PROBLEMS,
        seeds=preset.seeds,
        make_module=partial(make_module, preset=preset),
        make_data=make_data,
        picture=picture,
        names=[],
        steps=preset.steps,
        monitor="accuracy",
        mode="max",
        unit="accuracy / %",
        scale=100,
        axis="problem",
    )


if __name__ == "__main__":
    main()
