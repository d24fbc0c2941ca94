"""What to do about a network's distance from a symmetry: one file a strategy."""

from lightning_equiv.strategies.constraint_relaxation import ConstraintRelaxation
from lightning_equiv.strategies.group_augmentation import GroupAugmentation
from lightning_equiv.strategies.recm import RECM
from lightning_equiv.strategies.remul import REMUL
from lightning_equiv.strategies.strategy import Strategy
from lightning_equiv.strategies.symmetry_cloning import SymmetryCloning

__all__ = [
    "RECM",
    "REMUL",
    "ConstraintRelaxation",
    "GroupAugmentation",
    "Strategy",
    "SymmetryCloning",
]
