"""lightning_equiv: relaxed equivariance for any LightningModule."""

from lightning_equiv.citation import citation
from lightning_equiv.groups.element import AlgebraElement, GroupElement
from lightning_equiv.groups.euclidean import E3, SE3
from lightning_equiv.groups.finite import Cyclic, Dihedral
from lightning_equiv.groups.group import Group, Product, as_group
from lightning_equiv.groups.image import Image, VectorField
from lightning_equiv.groups.notation import as_representation
from lightning_equiv.groups.permutation import Permutation
from lightning_equiv.groups.representation import (
    CartesianTensor,
    Composed,
    Custom,
    Factor,
    Invariant,
    IrrepsTensor,
    Permuted,
    Point,
    Representation,
)
from lightning_equiv.groups.rotation import O3, SO2, SO3
from lightning_equiv.groups.shift import Regular, Shifted
from lightning_equiv.groups.symmetry import NodeIndex, Symmetry
from lightning_equiv.metrics.equivariance_error import EquivarianceError
from lightning_equiv.metrics.functional import equivariance_error
from lightning_equiv.metrics.monitor import EquivarianceMonitor
from lightning_equiv.modules.cloned_layer import ClonedLayer, ConditionalBilinear, ConditionalMLP
from lightning_equiv.modules.symmetry_mixin import SymmetryMixin
from lightning_equiv.modules.symmetry_module import ClassificationModule, RegressionModule, SymmetryModule
from lightning_equiv.modules.teachers import (
    CircularConvolution,
    EquivariantLinear,
    EquivariantTensorProduct,
    GroupConvolution,
    Teacher,
)
from lightning_equiv.strategies.constraint_relaxation import ConstraintRelaxation
from lightning_equiv.strategies.group_augmentation import GroupAugmentation
from lightning_equiv.strategies.recm import RECM
from lightning_equiv.strategies.remul import REMUL
from lightning_equiv.strategies.strategy import Strategy
from lightning_equiv.strategies.symmetry_cloning import SymmetryCloning
from lightning_equiv.wiring.relaxed_layer import RelaxedLayer

__version__ = "0.1.0"

__all__ = [
    "E3",
    "O3",
    "RECM",
    "REMUL",
    "SE3",
    "SO2",
    "SO3",
    "AlgebraElement",
    "CartesianTensor",
    "CircularConvolution",
    "ClassificationModule",
    "ClonedLayer",
    "Composed",
    "ConditionalBilinear",
    "ConditionalMLP",
    "ConstraintRelaxation",
    "Custom",
    "Cyclic",
    "Dihedral",
    "EquivarianceError",
    "EquivarianceMonitor",
    "EquivariantLinear",
    "EquivariantTensorProduct",
    "Factor",
    "Group",
    "GroupAugmentation",
    "GroupConvolution",
    "GroupElement",
    "Image",
    "Invariant",
    "IrrepsTensor",
    "NodeIndex",
    "Permutation",
    "Permuted",
    "Point",
    "Product",
    "RegressionModule",
    "Regular",
    "RelaxedLayer",
    "Representation",
    "Shifted",
    "Strategy",
    "Symmetry",
    "SymmetryCloning",
    "SymmetryMixin",
    "SymmetryModule",
    "Teacher",
    "VectorField",
    "as_group",
    "as_representation",
    "citation",
    "equivariance_error",
]
