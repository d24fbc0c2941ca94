"""Charged particles: an e3nn message-passing network, strict and relaxed.

The task is the one of SEGNN's N-body experiment: five charges, where will they be 1000 steps later? The network
commutes with O(3). Relaxed, the linear map of each update may break the symmetry by theta W x, with a theta that is 0
again long before the end.

    python examples/nbody_constraint_relaxation.py --preset quick    one seed, a short run
    python examples/nbody_constraint_relaxation.py --preset full     three seeds, two sizes of training set
    python examples/nbody_constraint_relaxation.py --preset long     the larger set only, four times the steps

Prints one table and writes it beside one picture: nbody_constraint_relaxation_PRESET.csv, .md, .json, .png.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import lightning as L
from networks.e3nn_message_passing import E3nnMessagePassing
from shared.comparison import Way, arguments, compare, cosine, draw
from torch import Tensor, nn

from lightning_equiv import ConstraintRelaxation, Invariant, Symmetry
from lightning_equiv.datasets import ChargedDataModule

LAYERS = "net.layers.*.update"  # the paper relaxes the update tensor products of SEGNN
SYMMETRY = Symmetry("O(3)", inputs={"charges": Invariant(), "positions": "1o", "velocities": "1o"}, outputs="1o")
NAME = "constraint_relaxation"


@dataclass(frozen=True)
class Preset:
    """How large and how long."""

    sizes: tuple[int, ...]
    seeds: int
    steps: int
    eval_every: int
    layers: int = 3
    hidden: str = "16x0e+16x1o"
    batch_size: int = 50
    eval_size: int = 2000
    lr: float = 1e-2


PRESETS = {
    "quick": Preset(sizes=(1000,), seeds=1, steps=600, eval_every=100, eval_size=500),
    "full": Preset(sizes=(1000, 3000), seeds=3, steps=1500, eval_every=150, eval_size=1000),
    "long": Preset(sizes=(3000,), seeds=3, steps=6000, eval_every=300, eval_size=2000),
}
FAST_DEV_RUN = Preset(
    sizes=(8,), seeds=1, steps=4, eval_every=2, layers=1, hidden="2x0e+2x1o", batch_size=4, eval_size=8
)


class Charges(L.LightningModule):
    """The training that a user has already."""

    def __init__(self, net: nn.Module, lr: float, steps: int) -> None:
        super().__init__()
        self.net, self.lr, self.steps = net, lr, steps

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        prediction = self.net(batch["charges"], batch["positions"], batch["velocities"])
        return nn.functional.mse_loss(prediction, batch["targets"])

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        loss = self.loss(batch)
        self.log("train_mse", loss, prog_bar=True, batch_size=len(batch["charges"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        self.log("val_mse", self.loss(batch), prog_bar=True, batch_size=len(batch["charges"]))

    def test_step(self, batch: dict[str, Tensor]) -> None:
        self.log("test_mse", self.loss(batch), batch_size=len(batch["charges"]))

    def configure_optimizers(self) -> dict[str, object]:
        return cosine(self, self.lr, self.steps)


WAYS: dict[str, Way] = {
    "strict": lambda _: [],
    "relaxed": lambda _: [ConstraintRelaxation(SYMMETRY, LAYERS, "net", evaluate="both")],
    "relaxed, weights 0.1": lambda _: [
        ConstraintRelaxation(SYMMETRY, LAYERS, "net", lie_weight=0.1, norm_weight=0.1, evaluate="both")
    ],
    "published": lambda _: [ConstraintRelaxation.published(SYMMETRY, LAYERS, network="net", evaluate="both")],
}
PANELS = [
    ("val_mse", "validation MSE x 1e-3, strict network"),
    (f"{NAME}/relaxed/val_mse", "validation MSE x 1e-3, relaxed network"),
    (f"{NAME}/theta", "theta"),
    (f"{NAME}/lie_penalty", "Lie penalty"),
    (f"{NAME}/relaxed/equivariance_error", "relaxed: equivariance error"),
]


def main(argv: list[str] | None = None) -> None:
    options = arguments(__doc__, sorted(PRESETS)).parse_args(argv)
    preset = FAST_DEV_RUN if options.fast_dev_run else PRESETS[options.preset]

    def make_module(way: str, size: float) -> Charges:
        return Charges(E3nnMessagePassing(preset.hidden, preset.layers), preset.lr, preset.steps)

    def make_data(size: float) -> ChargedDataModule:
        return ChargedDataModule(
            train_size=int(size),
            val_size=preset.eval_size,
            test_size=preset.eval_size,
            batch_size=preset.batch_size,
            steps_per_epoch=preset.eval_every,
            steps=20 if options.fast_dev_run else 1000,
        )

    compare(
        WAYS,
        options,
        options.out / f"nbody_{NAME}_{'fast_dev_run' if options.fast_dev_run else options.preset}",
        cases=preset.sizes,
        seeds=preset.seeds,
        make_module=make_module,
        make_data=make_data,
        steps=preset.steps,
        monitor="mse",
        mode="min",
        unit="MSE x1e-3",
        scale=1e3,
        names=[name for name, _ in PANELS],
        picture=partial(draw, panels=PANELS, scale={"val_mse": 1e3, f"{NAME}/relaxed/val_mse": 1e3}),
    )


if __name__ == "__main__":
    main()
