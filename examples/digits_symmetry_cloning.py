"""Handwritten digits: a network whose layers were cloned from equivariant ones, where the symmetry holds and where not.

A C4 convolution commutes with quarter turns. SymmetryCloning teaches its behaviour to a student that knows nothing of
turns, and two layers are assembled from the clone. "kept": trained upright, tested in any turn. "broken": the label
depends on the turn, too.

    plain           an MLP of about as many weights
    cloned, retain  the clone stays as it is
    cloned, break   the clone trains along
    strict          the same two layers of the teacher itself

    python examples/digits_symmetry_cloning.py                       one seed, a few minutes
    python examples/digits_symmetry_cloning.py --seeds 5 --jobs 2    what can be told apart

examples/benchmarks/digits_turns.yaml and digits_shifts.yaml have more ways, and shifts in the place of turns.
"""

from __future__ import annotations

from functools import partial

from shared.command_line import arguments, show

from lightning_equiv import (
    ConditionalBilinear,
    GroupConvolution,
    Image,
    Invariant,
    Symmetry,
    SymmetryCloning,
    Way,
    compare,
)
from lightning_equiv.datasets import DigitsDataModule
from lightning_equiv.networks.layered import LayeredNetwork, mlp
from lightning_equiv.networks.tasks import Classifier

TEACHER = GroupConvolution("C4", 8, kernel_size=5, lift=True)
SYMMETRY = Symmetry("C4", inputs=Image(), outputs=Invariant())


def plain() -> Classifier:
    """The training that a user has already."""
    return Classifier(mlp(pixels=64), lr=3e-3, key="images")


def strict() -> Classifier:
    """Layers of the teacher."""
    return Classifier(LayeredNetwork(TEACHER, channels=12), lr=3e-3, key="images")


def cloned() -> Classifier:
    """Layers of a student, not yet taught."""
    return Classifier(LayeredNetwork(ConditionalBilinear.like(TEACHER), channels=12), lr=3e-3, key="images")


def ways(steps: int) -> dict[str, Way]:
    """Two of them teach the student, in so many steps before the first of the training."""
    cloning = partial(SymmetryCloning, TEACHER, "net.student", steps=steps, lr=1e-2, tolerance=0.01, on_failure="warn")
    return {
        "plain": Way(),
        "cloned, retain": Way([cloning(mode="retain")], model=cloned),
        "cloned, break": Way([cloning(mode="break")], model=cloned),
        "strict": Way(model=strict),
    }


if __name__ == "__main__":
    options = arguments(__doc__, steps=300)
    comparison = compare(
        plain,
        partial(DigitsDataModule, **{"steps_per_epoch": 100, **options.sizes}),
        cases={"kept": {"problem": "rotations kept"}, "broken": {"problem": "rotations broken"}},
        ways=ways(steps=2 if options.fast_dev_run else 1500),
        symmetry=SYMMETRY,
        network="net",
        monitor="val_accuracy",
        mode="max",
        trainer={"accelerator": "cpu"},
        title="Digits under quarter turns, kept and broken",
        **options.runs,
    )
    show(comparison, options)
