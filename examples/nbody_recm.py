"""Charged particles in a field: an e3nn network that learns by RECM how much of its symmetry to keep.

Without a field the particles' law is exactly symmetric under O(3); a uniform field along z breaks the symmetry. The
same network strict, unconstrained (a dense matrix beside each update, for good), and with RECM, which learns how much
of that matrix to keep: its theta of each layer at the end is printed for each field, and its curve is in the results.

    python examples/nbody_recm.py                       one seed, a few minutes
    python examples/nbody_recm.py --seeds 5 --jobs 2    what can be told apart

examples/benchmarks/charges_field.yaml has more ways and fields.
"""

from __future__ import annotations

from functools import partial

from shared.command_line import arguments, show

from lightning_equiv import RECM, Invariant, Symmetry, Way, compare
from lightning_equiv.datasets import ChargedDataModule
from lightning_equiv.networks.e3nn_message_passing import E3nnMessagePassing
from lightning_equiv.networks.tasks import Particles
from lightning_equiv.networks.unconstrained import unconstrained

LAYERS = "net.layers.*.update"
SYMMETRY = Symmetry("O(3)", inputs={"charges": Invariant(), "positions": "1o", "velocities": "1o"}, outputs="1o")
SIZES = {"train_size": 1000, "val_size": 500, "test_size": 1000, "batch_size": 50, "steps_per_epoch": 100}
FIELDS = {f"field {field:g}": {"field": field} for field in (0.0, 0.5)}
THETAS = [f"recm/theta/net.layers.{layer}.update" for layer in range(3)]


def strict() -> Particles:
    """The training that a user has already."""
    return Particles(E3nnMessagePassing("16x0e+16x1o", num_layers=3), lr=1e-2)


def dense() -> Particles:
    """The same, unconstrained."""
    return unconstrained(strict(), LAYERS)


WAYS = {
    "strict": Way(),
    "unconstrained": Way(model=dense),
    "RECM": Way([RECM(SYMMETRY, LAYERS, "net", target="targets")]),
}


if __name__ == "__main__":
    options = arguments(__doc__, steps=600)
    comparison = compare(
        strict,
        partial(ChargedDataModule, **{**SIZES, **options.sizes}),
        cases=FIELDS,
        ways=WAYS,
        symmetry=SYMMETRY,
        network="net",
        monitor="val_mse",
        watch=THETAS,
        trainer={"gradient_clip_val": 10.0, "accelerator": "cpu"},
        title="Charged particles in a field that breaks the symmetry",
        **options.runs,
    )
    for run in comparison.runs:
        if run["way"] == "RECM" and run["status"] == "ok":
            ends = [f"{run['curve'][name][-1][-1]:.3f}" for name in THETAS]  # the last of (step, seconds, value)
            print(f"{run['case']}, seed {run['seed']}: theta of the layers at the end {', '.join(ends)}")
    show(comparison, options)
