"""Real problems that need no download, each a LightningDataModule."""

from lightning_equiv.datasets.digits import DigitsDataModule
from lightning_equiv.datasets.dynamics import (
    charged_energy,
    gravity_energy,
    sample_charges,
    sample_gravity,
    simulate_charges,
    simulate_gravity,
)
from lightning_equiv.datasets.in_memory import InMemoryDataModule
from lightning_equiv.datasets.molecules import MoleculesDataModule, molecule_trajectory
from lightning_equiv.datasets.nbody import (
    ChargedDataModule,
    GravityDataModule,
    charged_dataset,
    gravity_dataset,
)
from lightning_equiv.datasets.neighbours import knn_graph, radius_graph
from lightning_equiv.datasets.shapes import SHAPE_CLASSES, ShapesDataModule, shapes_dataset

__all__ = [
    "SHAPE_CLASSES",
    "ChargedDataModule",
    "DigitsDataModule",
    "GravityDataModule",
    "InMemoryDataModule",
    "MoleculesDataModule",
    "ShapesDataModule",
    "charged_dataset",
    "charged_energy",
    "gravity_dataset",
    "gravity_energy",
    "knn_graph",
    "molecule_trajectory",
    "radius_graph",
    "sample_charges",
    "sample_gravity",
    "shapes_dataset",
    "simulate_charges",
    "simulate_gravity",
]
