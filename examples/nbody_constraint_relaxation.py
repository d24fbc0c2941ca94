"""Charged particles: an e3nn message-passing network, strict and relaxed by ConstraintRelaxation.

The task is the one of SEGNN's N-body experiment: five charges, where will they be 1000 steps later? The network
commutes with O(3). Relaxed, the linear map of each update may break the symmetry by theta W x, with a theta that rises,
decays and is 0 again long before the end: what is tested is strict. Theta, the Lie penalty and what the relaxed network
would give on validation are kept in the results, a curve for each run.

    python examples/nbody_constraint_relaxation.py                       one seed, a few minutes
    python examples/nbody_constraint_relaxation.py --seeds 5 --jobs 2    what can be told apart

examples/benchmarks/charges_sizes.yaml has more ways and sizes of the training set.
"""

from __future__ import annotations

from functools import partial

from shared.command_line import arguments, show

from lightning_equiv import ConstraintRelaxation, Invariant, Symmetry, Way, compare
from lightning_equiv.datasets import ChargedDataModule
from lightning_equiv.networks.e3nn_message_passing import E3nnMessagePassing
from lightning_equiv.networks.tasks import Particles

LAYERS = "net.layers.*.update"  # the paper relaxes the update tensor products of SEGNN
SYMMETRY = Symmetry("O(3)", inputs={"charges": Invariant(), "positions": "1o", "velocities": "1o"}, outputs="1o")
WAYS = {
    "strict": Way(),
    "relaxed": Way([ConstraintRelaxation(SYMMETRY, LAYERS, "net", evaluate="both")]),
    "published": Way([ConstraintRelaxation.published(SYMMETRY, LAYERS, network="net", evaluate="both")]),
}
SIZES = {"train_size": 1000, "val_size": 500, "test_size": 1000, "batch_size": 50, "steps_per_epoch": 100}
CURVES = ("theta", "lie_penalty", "relaxed/val_mse", "relaxed/equivariance_error")


def model() -> Particles:
    """The training that a user has already."""
    return Particles(E3nnMessagePassing("16x0e+16x1o", num_layers=3), lr=1e-2)


if __name__ == "__main__":
    options = arguments(__doc__, steps=600)
    comparison = compare(
        model,
        partial(ChargedDataModule, **{**SIZES, **options.sizes}),
        ways=WAYS,
        symmetry=SYMMETRY,
        network="net",
        monitor="val_mse",
        watch=[f"constraint_relaxation/{name}" for name in CURVES],
        trainer={"gradient_clip_val": 10.0, "accelerator": "cpu"},
        title="Charged particles: strict, and relaxed for a while",
        **options.runs,
    )
    show(comparison, options)
