"""Charged particles: an e3nn message-passing network, strict and relaxed.

The task is the one of SEGNN's N-body experiment: five charges, where will they be 1000 steps later? The network
commutes with O(3). Relaxed, the linear map of each update may break the symmetry by theta W x, with a theta that is 0
again long before the end.

    python examples/nbody_constraint_relaxation.py --preset quick    one seed, a short run
    python examples/nbody_constraint_relaxation.py --preset full     three seeds, two sizes of training set

Prints one table and writes it beside one picture: nbody_constraint_relaxation_PRESET.csv, .md, .json, .png.
"""

from __future__ import annotations

from dataclasses import dataclass

import lightning as L
import torch
from networks.e3nn_message_passing import E3nnMessagePassing
from shared.comparison import Run, Way, arguments, cosine, draw, quiet, train, write
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
    "strict": lambda: [],
    "relaxed": lambda: [ConstraintRelaxation(SYMMETRY, LAYERS, "net", evaluate="both")],
    "relaxed, peak 1": lambda: [
        ConstraintRelaxation(SYMMETRY, LAYERS, "net", peak=1.0, lie_weight=0.1, norm_weight=0.1, evaluate="both")
    ],
    "published": lambda: [ConstraintRelaxation.published(SYMMETRY, LAYERS, network="net", evaluate="both")],
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
    if options.threads:
        torch.set_num_threads(options.threads)
    quiet()
    path = options.out / f"nbody_{NAME}_{'fast_dev_run' if options.fast_dev_run else options.preset}"
    command = f"python examples/nbody_constraint_relaxation.py --preset {options.preset}"
    runs: list[Run] = []
    for size in preset.sizes:
        for seed in range(options.seeds or preset.seeds):
            for way in options.ways or WAYS:
                L.seed_everything(seed, verbose=False)
                module = Charges(E3nnMessagePassing(preset.hidden, preset.layers), preset.lr, preset.steps)
                data = ChargedDataModule(
                    train_size=size,
                    val_size=preset.eval_size,
                    test_size=preset.eval_size,
                    batch_size=preset.batch_size,
                    steps_per_epoch=preset.eval_every,
                    steps=20 if options.fast_dev_run else 1000,
                )
                runs.append(
                    train(
                        way,
                        WAYS[way](),
                        module,
                        data,
                        steps=preset.steps,
                        seed=seed,
                        monitor="mse",
                        mode="min",
                        names=[name for name, _ in PANELS],
                        progress=options.progress,
                    )
                )
                print(f"{way}, {size} samples, seed {seed}: test {1e3 * runs[-1].test:.2f}e-3", flush=True)
                write(runs, path, command, scale=1e3, unit="MSE x1e-3")  # after every run: a long one may be stopped
    draw(runs, path, PANELS, scale={"val_mse": 1e3, f"{NAME}/relaxed/val_mse": 1e3})
    print(path.with_suffix(".md").read_text())
    print(f"table and picture: {path}.csv, {path}.png")


if __name__ == "__main__":
    main()
