import pytest
import torch

from tests.helpers import default_dtype, seeded

pytest.register_assert_rewrite("tests.contracts", "tests.strategies.cloning_runs")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)  # tests run beside each other, and sums come out the same on every machine


@pytest.fixture
def generator():
    return seeded()


@pytest.fixture
def float64_default():
    """E3nn's own matrices are no more exact than the default dtype."""
    with default_dtype(torch.float64):
        yield
