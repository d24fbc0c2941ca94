"""Point clouds: a vector-neuron classifier, strict and relaxed.

Sixteen classes of solids and their combinations, cropped, jittered and turned at random. The classifier is invariant
to rotations. Relaxed, its linear maps and the directions of its nonlinearities may break the symmetry by theta W x for
a while.

    python examples/shapes_constraint_relaxation.py --preset quick    one seed, a short run
    python examples/shapes_constraint_relaxation.py --preset full     three seeds, two sizes of training set

Prints one table and writes it beside one picture: shapes_constraint_relaxation_PRESET.csv, .md, .json, .png.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import lightning as L
from networks.vector_neurons import VectorNeuronClassifier, VNLinear
from shared.comparison import Way, arguments, compare, cosine, draw
from torch import Tensor, nn

from lightning_equiv import ConstraintRelaxation, Invariant, Symmetry
from lightning_equiv.datasets import SHAPE_CLASSES, ShapesDataModule

SYMMETRY = Symmetry("SO(3)", inputs="1o", outputs=Invariant())
NAME = "constraint_relaxation"


@dataclass(frozen=True)
class Preset:
    """How large and how long."""

    sizes: tuple[int, ...]
    seeds: int
    steps: int
    eval_every: int
    channels: int = 32
    num_points: int = 256
    batch_size: int = 32
    eval_size: int = 1000
    lr: float = 2e-3


PRESETS = {
    "quick": Preset(sizes=(1000,), seeds=1, steps=300, eval_every=60, channels=16, eval_size=500),
    "full": Preset(sizes=(500, 2000), seeds=3, steps=800, eval_every=200, channels=24, eval_size=3000),
}
FAST_DEV_RUN = Preset(
    sizes=(16,), seeds=1, steps=4, eval_every=2, channels=4, num_points=16, batch_size=4, eval_size=16
)


class Shapes(L.LightningModule):
    """The training that a user has already."""

    def __init__(self, net: nn.Module, lr: float, steps: int) -> None:
        super().__init__()
        self.net, self.lr, self.steps = net, lr, steps

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch["points"]), batch["labels"])
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch["labels"]))
        return loss

    def evaluate(self, batch: dict[str, Tensor], stage: str) -> None:
        logits, labels = self.net(batch["points"]), batch["labels"]
        accuracy = (logits.argmax(-1) == labels).float().mean()
        self.log(f"{stage}_accuracy", accuracy, prog_bar=True, batch_size=len(labels))

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        self.evaluate(batch, "val")

    def test_step(self, batch: dict[str, Tensor]) -> None:
        self.evaluate(batch, "test")

    def configure_optimizers(self) -> dict[str, object]:
        return cosine(self, self.lr, self.steps)


WAYS: dict[str, Way] = {
    "strict": lambda _: [],
    "relaxed": lambda _: [ConstraintRelaxation(SYMMETRY, VNLinear, "net", evaluate="both")],
    "published": lambda _: [ConstraintRelaxation.published(SYMMETRY, VNLinear, network="net", evaluate="both")],
}
PANELS = [
    ("val_accuracy", "validation accuracy, strict network"),
    (f"{NAME}/relaxed/val_accuracy", "validation accuracy, relaxed network"),
    (f"{NAME}/theta", "theta"),
    (f"{NAME}/lie_penalty", "Lie penalty"),
    (f"{NAME}/relaxed/equivariance_error", "relaxed: equivariance error"),
]


def main(argv: list[str] | None = None) -> None:
    options = arguments(__doc__, sorted(PRESETS)).parse_args(argv)
    preset = FAST_DEV_RUN if options.fast_dev_run else PRESETS[options.preset]

    def make_module(way: str, size: float) -> Shapes:
        net = VectorNeuronClassifier(len(SHAPE_CLASSES), preset.channels, num_neighbours=0)
        return Shapes(net, preset.lr, preset.steps)

    def make_data(size: float) -> ShapesDataModule:
        return ShapesDataModule(
            train_size=int(size),
            val_size=preset.eval_size,
            test_size=preset.eval_size,
            num_points=preset.num_points,
            batch_size=preset.batch_size,
            steps_per_epoch=preset.eval_every,
        )

    compare(
        WAYS,
        options,
        options.out / f"shapes_{NAME}_{'fast_dev_run' if options.fast_dev_run else options.preset}",
        cases=preset.sizes,
        seeds=preset.seeds,
        make_module=make_module,
        make_data=make_data,
        steps=preset.steps,
        monitor="accuracy",
        mode="max",
        unit="accuracy / %",
        scale=100,
        names=[name for name, _ in PANELS],
        picture=partial(draw, panels=PANELS, scale={}),
    )


if __name__ == "__main__":
    main()
