"""An ordinary Transformer made nearly equivariant by one callback, REMUL, on the gravitational N-body problem.

The same network is trained four ways: as it is, with augmentation, with REMUL on the labels, and with REMUL for a
relative equivariance error of at most 5 %, which asks for no label and no weight. The training bodies are turned by at
most 10 degrees; the test asks for the same ("id") and for 90 to 180 degrees ("ood").

    python examples/nbody_remul.py                       one seed, a few minutes
    python examples/nbody_remul.py --seeds 5 --jobs 2    what can be told apart

examples/benchmarks/gravity.yaml has more ways, two equivariant networks, and the paper's size for a GPU.
"""

from __future__ import annotations

from functools import partial

from shared.command_line import arguments, show

from lightning_equiv import REMUL, GroupAugmentation, Invariant, Symmetry, Way, compare
from lightning_equiv.datasets import GravityDataModule
from lightning_equiv.networks.tasks import Particles
from lightning_equiv.networks.transformer import ParticleTransformer

MOVED = {"masses": Invariant(), "positions": "1o", "velocities": "1o"}
SYMMETRY = Symmetry("SO(3)", inputs=MOVED, outputs="1o", batch={**MOVED, "targets": "1o"})
WAYS = {
    "plain": Way(),
    "augmentation": Way([GroupAugmentation(SYMMETRY)]),
    "REMUL(10)": Way([REMUL(SYMMETRY, "net", weight=10.0, target="targets")]),
    "REMUL(5 %)": Way([REMUL(SYMMETRY, "net", balance="dual", tolerance=0.05, fraction=0.25)]),  # a quarter of a batch
}
SIZES = {"train_size": 100, "val_size": 1000, "test_size": 1000, "steps_per_epoch": 250}


def model() -> Particles:
    """The training that a user has already."""
    return Particles(ParticleTransformer(num_blocks=3, num_channels=64, num_heads=4), lr=1e-3)


if __name__ == "__main__":
    options = arguments(__doc__, steps=3000)
    comparison = compare(
        model,
        partial(GravityDataModule, **{**SIZES, **options.sizes}),
        ways=WAYS,
        symmetry=SYMMETRY,
        network="net",
        monitor="val_mse",
        trainer={"gradient_clip_val": 10.0, "accelerator": "cpu"},
        title="Gravitating bodies, hardly turned in training",
        **options.runs,
    )
    show(comparison, options)
