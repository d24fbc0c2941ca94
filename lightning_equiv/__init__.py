"""lightning_equiv: relaxed equivariance for any LightningModule."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lightning_equiv.audit.report import EquivarianceReport
from lightning_equiv.audit.run import audit
from lightning_equiv.citation import citation
from lightning_equiv.compare.comparison import Comparison
from lightning_equiv.compare.run import compare
from lightning_equiv.compare.way import Way
from lightning_equiv.discovery.generators import LearnedGenerators, learned_generators
from lightning_equiv.discovery.result import SymmetryReport
from lightning_equiv.discovery.run import symmetry_report
from lightning_equiv.groups.angles import turns
from lightning_equiv.groups.euclidean import E3, SE3
from lightning_equiv.groups.finite import Cyclic, Dihedral
from lightning_equiv.groups.group import AlgebraElement, Group, GroupElement
from lightning_equiv.groups.parts import translations
from lightning_equiv.groups.permutation import Permutation
from lightning_equiv.groups.product import Product, as_group
from lightning_equiv.groups.rotation import O3, SO2, SO3
from lightning_equiv.groups.translation import Translation
from lightning_equiv.layers.cloned_layer import ClonedLayer, ConditionalBilinear, ConditionalMLP
from lightning_equiv.layers.families.vector_channels_last import VectorChannelsLast
from lightning_equiv.layers.families.vector_neurons import VectorNeurons
from lightning_equiv.layers.layer import LayerFamily
from lightning_equiv.layers.relaxed_layer import RelaxedLayer
from lightning_equiv.layers.teachers import (
    CircularConvolution,
    EquivariantLinear,
    EquivariantTensorProduct,
    GroupConvolution,
    Teacher,
)
from lightning_equiv.metrics.angle_profile import AngleProfile, angle_profile
from lightning_equiv.metrics.equivariance_error import EquivarianceError
from lightning_equiv.metrics.floor import NoiseFloor, noise_floor
from lightning_equiv.metrics.functional import equivariance_error
from lightning_equiv.metrics.labelled import ClassChanges, OrientedErrors, class_changes, oriented_errors
from lightning_equiv.metrics.layerwise import LayerwiseError, LayerwiseErrors, layerwise_error
from lightning_equiv.metrics.lie_derivative import lie_derivative_error
from lightning_equiv.metrics.lie_derivative_error import LieDerivativeError
from lightning_equiv.metrics.monitor import EquivarianceMonitor
from lightning_equiv.metrics.spectrum import EquivarianceSpectrum, Spectrum, equivariance_spectrum
from lightning_equiv.metrics.worst_case import WorstCase, worst_case
from lightning_equiv.modules.symmetry_mixin import SymmetryMixin
from lightning_equiv.modules.symmetry_module import ClassificationModule, RegressionModule, SymmetryModule
from lightning_equiv.optim.block_adam import BlockNormalizedAdam
from lightning_equiv.representations.cartesian import CartesianTensor, Point
from lightning_equiv.representations.custom import Custom
from lightning_equiv.representations.image import Image, VectorField
from lightning_equiv.representations.invariant import EdgeNumbers, GraphNumbers, Ignored, Invariant, NodeIndex, Pointer
from lightning_equiv.representations.irreps import IrrepsTensor
from lightning_equiv.representations.per import Per
from lightning_equiv.representations.permuted import Permuted, Regular, Shifted
from lightning_equiv.representations.representation import Composed, Factor, Representation, as_representation
from lightning_equiv.strategies.ace.callback import ACE
from lightning_equiv.strategies.base import SymmetryCallback
from lightning_equiv.strategies.constraint_relaxation.callback import ConstraintRelaxation
from lightning_equiv.strategies.equivariance_projection.callback import EquivarianceProjection
from lightning_equiv.strategies.group_augmentation import GroupAugmentation
from lightning_equiv.strategies.instruments import Instruments
from lightning_equiv.strategies.recm.callback import RECM
from lightning_equiv.strategies.remul.callback import REMUL
from lightning_equiv.strategies.rpp.callback import RPP
from lightning_equiv.strategies.symmetry_cloning.callback import SymmetryCloning
from lightning_equiv.symmetrize.at_test import SymmetrizeAtTest
from lightning_equiv.symmetrize.canonical import OptimisedCanonicaliser
from lightning_equiv.symmetrize.frames import gram_schmidt
from lightning_equiv.symmetrize.share import SymmetryShare, symmetry_share
from lightning_equiv.symmetrize.soften import soften
from lightning_equiv.symmetrize.softness_curve import SoftnessCurve, softness_curve
from lightning_equiv.symmetrize.symmetrized import Symmetrized
from lightning_equiv.symmetry.symmetry import Symmetry

if TYPE_CHECKING:
    from lightning_equiv import datasets as datasets  # imported when it is first asked for, see __getattr__

__version__ = "0.2.0"

__all__ = [
    "ACE",
    "E3",
    "O3",
    "RECM",
    "REMUL",
    "RPP",
    "SE3",
    "SO2",
    "SO3",
    "AlgebraElement",
    "AngleProfile",
    "BlockNormalizedAdam",
    "CartesianTensor",
    "CircularConvolution",
    "ClassChanges",
    "ClassificationModule",
    "ClonedLayer",
    "Comparison",
    "Composed",
    "ConditionalBilinear",
    "ConditionalMLP",
    "ConstraintRelaxation",
    "Custom",
    "Cyclic",
    "Dihedral",
    "EdgeNumbers",
    "EquivarianceError",
    "EquivarianceMonitor",
    "EquivarianceProjection",
    "EquivarianceReport",
    "EquivarianceSpectrum",
    "EquivariantLinear",
    "EquivariantTensorProduct",
    "Factor",
    "GraphNumbers",
    "Group",
    "GroupAugmentation",
    "GroupConvolution",
    "GroupElement",
    "Ignored",
    "Image",
    "Instruments",
    "Invariant",
    "IrrepsTensor",
    "LayerFamily",
    "LayerwiseError",
    "LayerwiseErrors",
    "LearnedGenerators",
    "LieDerivativeError",
    "NodeIndex",
    "NoiseFloor",
    "OptimisedCanonicaliser",
    "OrientedErrors",
    "Per",
    "Permutation",
    "Permuted",
    "Point",
    "Pointer",
    "Product",
    "RegressionModule",
    "Regular",
    "RelaxedLayer",
    "Representation",
    "Shifted",
    "SoftnessCurve",
    "Spectrum",
    "SymmetrizeAtTest",
    "Symmetrized",
    "Symmetry",
    "SymmetryCallback",
    "SymmetryCloning",
    "SymmetryMixin",
    "SymmetryModule",
    "SymmetryReport",
    "SymmetryShare",
    "Teacher",
    "Translation",
    "VectorChannelsLast",
    "VectorField",
    "VectorNeurons",
    "Way",
    "WorstCase",
    "angle_profile",
    "as_group",
    "as_representation",
    "audit",
    "citation",
    "class_changes",
    "compare",
    "equivariance_error",
    "equivariance_spectrum",
    "gram_schmidt",
    "layerwise_error",
    "learned_generators",
    "lie_derivative_error",
    "noise_floor",
    "oriented_errors",
    "soften",
    "softness_curve",
    "symmetry_report",
    "symmetry_share",
    "translations",
    "turns",
    "worst_case",
]

_LATER = ("datasets",)  # sub-packages that not everybody needs


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
