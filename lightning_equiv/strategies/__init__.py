"""What to do about a network's distance from a symmetry: one file a strategy."""

from lightning_equiv.strategies.ace.callback import ACE
from lightning_equiv.strategies.base import SymmetryCallback
from lightning_equiv.strategies.constraint_relaxation.callback import ConstraintRelaxation
from lightning_equiv.strategies.equivariance_projection.callback import EquivarianceProjection
from lightning_equiv.strategies.group_augmentation import GroupAugmentation
from lightning_equiv.strategies.recm.callback import RECM
from lightning_equiv.strategies.remul.callback import REMUL
from lightning_equiv.strategies.rpp.callback import RPP
from lightning_equiv.strategies.symmetry_cloning.callback import SymmetryCloning

__all__ = [
    "ACE",
    "RECM",
    "REMUL",
    "RPP",
    "ConstraintRelaxation",
    "EquivarianceProjection",
    "GroupAugmentation",
    "SymmetryCallback",
    "SymmetryCloning",
]
