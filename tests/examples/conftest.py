"""The examples' own modules are imported from their folder, as the scripts do; first weights are seeded."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import global_seed

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))


@pytest.fixture(autouse=True)
def seeded_first_weights() -> Iterator[None]:
    with global_seed(0):
        yield
