import pytest
import torch

pytest.register_assert_rewrite("tests.contracts", "tests.helpers")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)  # tests run beside each other, and sums come out the same on every machine


@pytest.fixture
def generator():
    from tests.helpers import seeded  # not above: its assertions are rewritten first

    return seeded()


@pytest.fixture
def float64_default():
    """E3nn's own matrices are no more exact than the default dtype."""
    from tests.helpers import default_dtype

    with default_dtype(torch.float64):
        yield
