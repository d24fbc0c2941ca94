import pytest
import torch

pytest.register_assert_rewrite("tests.contracts")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)  # tests run beside each other, and sums come out the same on every machine


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
