"""What a metric is asked with by mistake: errors in words, and a call that is left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import BootStrapper

from lightning_equiv import Cyclic, EquivarianceError, Invariant, Permutation, Symmetry, equivariance_error
from tests.helpers import normal, seeded

VECTORS = Symmetry("SO(3)", "1o", "1o")


@pytest.mark.parametrize("symmetry", ["SO(3)", None, 3])
def test_a_group_in_place_of_a_symmetry(symmetry: Any) -> None:
    with pytest.raises(TypeError, match="expected a Symmetry"):
        equivariance_error(lambda x: x, normal(4, 3), symmetry)


def test_a_symmetry_may_be_written_as_a_dict() -> None:
    written = {"group": "SO(3)", "inputs": "1o", "outputs": "1o"}
    errors = [equivariance_error(lambda x: x + 1, normal(4, 3), s, generator=seeded()) for s in (written, VECTORS)]
    assert torch.equal(*errors)


class Forces(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.requires_grad_(True)
        return -torch.autograd.grad(x.square().sum(), x)[0]


class ForcesOfACopy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        return -torch.autograd.grad(y.square().sum(), y)[0]


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("network", [Forces(), ForcesOfACopy()])
def test_forces_without_gradients_name_needs_grad(network: nn.Module, mode: Any) -> None:
    with mode(), pytest.raises(RuntimeError, match="needs_grad=True"):
        equivariance_error(network, normal(4, 3), VECTORS)


def test_other_errors_of_a_network_are_its_own() -> None:
    def network(x: Tensor) -> Tensor:
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match=r"^out of luck$"):
        equivariance_error(network, normal(4, 3), VECTORS)


@pytest.mark.parametrize("group", [Cyclic(2**31 - 1), Permutation(20), Cyclic(2**10) * Cyclic(2**10)])
def test_every_element_of_a_huge_group_is_refused(group: Any) -> None:
    symmetry = Symmetry(group, "Invariant()", "Invariant()")
    with pytest.raises(ValueError, match=r"num_samples=None takes every element of .*num_samples=8"):
        equivariance_error(lambda x: x, normal(2, 3), symmetry, num_samples=None)


def test_a_network_may_write_into_what_it_is_given() -> None:
    def network(data: dict[str, Any]) -> Tensor:
        data["h"] = data["x"] + 1
        data["more"]["seen"] = data["h"]
        data["list"].append(data["h"])
        del data["note"]
        return data["h"]

    data = {"x": normal(4, 3), "note": "kept", "more": {}, "list": []}
    symmetry = Symmetry("SO(3)", ({"x": "1o"},), "1o")
    error = equivariance_error(network, (data,), symmetry, generator=seeded())
    expected = equivariance_error(lambda x: x + 1, normal(4, 3), VECTORS, generator=seeded())
    assert torch.equal(error, expected)
    assert list(data) == ["x", "note", "more", "list"]
    assert data["more"] == {}
    assert data["list"] == []


def test_a_bootstrap_by_keywords() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    boot = BootStrapper(EquivarianceError(VECTORS), num_bootstraps=3, raw=True)
    boot.update(x=normal(32, 3), network=Net())
    values = boot.compute()["raw"]
    assert values.shape == (3,)
    assert bool((values > 0.1).all())
    assert len(set(values.tolist())) == 3


@pytest.mark.parametrize("which", ["moved", "invariant"])
def test_a_network_that_changes_its_input_in_place_is_refused(which: str) -> None:
    """f(x) and f(g x) would be of different inputs: 2 x is equivariant, and would read 1."""

    def network(x: Tensor, m: Tensor) -> Tensor:
        return x.mul_(2) if which == "moved" else x * m.mul_(2)

    symmetry = Symmetry("SO(3)", ("1o", Invariant()), "1o")
    with pytest.raises(ValueError, match=r"changes '[01]' of its `inputs` in place.*x\.clone"):
        equivariance_error(network, (torch.randn(4, 3), torch.ones(4, 1)), symmetry)


def test_sparse_inputs_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"'0' in `inputs`: expected a dense tensor, got torch\.sparse_coo"):
        equivariance_error(lambda x: x.to_dense(), torch.randn(4, 3).to_sparse(), Symmetry("SO(3)", "1o", "1o"))
