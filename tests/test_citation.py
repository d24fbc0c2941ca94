from __future__ import annotations

import re

from lightning_equiv import REMUL, EquivarianceMonitor, citation
from lightning_equiv.datasets import GravityDataModule
from tests.strategies.toys import SYMMETRY


def test_every_reference_once_and_balanced() -> None:
    text = citation(REMUL(SYMMETRY), GravityDataModule, EquivarianceMonitor(SYMMETRY), REMUL)
    keys = re.findall(r"@\w+{(\w+),", text)
    assert keys == ["elhag2025relaxed", "brehmer2023geometric"]
    assert text.count("{") == text.count("}")
    assert citation(object()) == ""
