"""Point clouds: a vector-neuron classifier, strict and relaxed by ConstraintRelaxation.

Sixteen classes of solids and their combinations, cropped, jittered and turned at random. The classifier is invariant
to rotations. Relaxed, its linear maps and the directions of its nonlinearities may break the symmetry by theta W x for
a while. The layers are named by their type: the library knows vector neurons by their shapes.

    python examples/shapes_constraint_relaxation.py                       one seed, a few minutes
    python examples/shapes_constraint_relaxation.py --seeds 5 --jobs 2    what can be told apart

examples/benchmarks/solids.yaml has more ways, and clouds that stand upright.
"""

from __future__ import annotations

from functools import partial

from shared.command_line import arguments, show

from lightning_equiv import ConstraintRelaxation, Invariant, Symmetry, Way, compare
from lightning_equiv.datasets import SHAPE_CLASSES, ShapesDataModule
from lightning_equiv.networks.tasks import Classifier
from lightning_equiv.networks.vector_neurons import VectorNeuronClassifier, VNLinear

SYMMETRY = Symmetry("SO(3)", inputs="1o", outputs=Invariant())
WAYS = {
    "strict": Way(),
    "relaxed": Way([ConstraintRelaxation(SYMMETRY, VNLinear, "net")]),
    "published": Way([ConstraintRelaxation.published(SYMMETRY, VNLinear, network="net")]),
}
SIZES = {"train_size": 1000, "val_size": 500, "test_size": 1000, "batch_size": 32, "steps_per_epoch": 60}


def model() -> Classifier:
    """The training that a user has already."""
    return Classifier(VectorNeuronClassifier(len(SHAPE_CLASSES), channels=16, num_neighbours=0), lr=2e-3)


if __name__ == "__main__":
    options = arguments(__doc__, steps=300)
    comparison = compare(
        model,
        partial(ShapesDataModule, num_points=128, **{**SIZES, **options.sizes}),
        ways=WAYS,
        symmetry=SYMMETRY,
        network="net",
        monitor="val_accuracy",
        mode="max",
        trainer={"gradient_clip_val": 10.0, "accelerator": "cpu"},
        title="Point clouds: strict, and relaxed for a while",
        **options.runs,
    )
    show(comparison, options)
