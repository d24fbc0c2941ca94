"""Dead shares of networks' nonlinearities, against slow loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from torch import Tensor, nn

from lightning_equiv.layers.nonlinearities import find_nonlinearities, watched
from lightning_equiv.metrics.dead_directions import DeadShares
from lightning_equiv.networks.vector_neurons import VectorNeuronClassifier, VNLeakyReLU
from tests.helpers import default_dtype, global_seed, normal


@pytest.fixture(autouse=True)
def _float64() -> Any:
    with default_dtype(torch.float64), global_seed(0):
        yield


def shares_of(network: nn.Module, x: Tensor) -> dict[str, float]:
    shares = DeadShares()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules()]
    with watched(network, find_nonlinearities(network), shares.update):
        network(x)
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules()]
    return {name: float(share) for name, share in shares.compute().items()}


def slow(x: Tensor) -> tuple[float, float]:
    """Shares of (samples, units, points), pair by pair."""
    negative = positive = 0
    for sample in x.detach():
        for unit in sample:
            negative += all(float(value) <= 0 for value in unit)
            positive += all(float(value) > 0 for value in unit)
    pairs = len(x) * x.shape[1]
    assert 0 < negative < pairs or 0 < positive < pairs, "the shares say nothing"
    return negative / pairs, positive / pairs


def assert_shares(found: dict[str, float], name: str, expected: tuple[float, float]) -> None:
    assert (found[f"negative/{name}"], found[f"positive/{name}"]) == pytest.approx(expected)


class Published(nn.Module):
    """The nonlinearity of the published vector neurons, written as there."""

    def __init__(self, channels: int, share: bool) -> None:
        super().__init__()
        self.map_to_dir = nn.Linear(channels, 1 if share else channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        d = self.map_to_dir(x.transpose(1, -1)).transpose(1, -1)
        dotprod = (x * d).sum(2, keepdim=True)
        mask = (dotprod >= 0).double()
        return mask * x + (1 - mask) * (x - (dotprod / (d.square().sum(2, keepdim=True) + 1e-6)) * d)


class VNReLU(Published):
    """Under a name of vector neurons."""


class VNLinearLeakyReLU(Published):
    """With a linear map and a norm of its own."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, share=False)
        self.map_to_feat = nn.Linear(channels, out, bias=False)
        self.map_to_dir = nn.Linear(channels, out, bias=False)
        self.batchnorm = nn.Hardtanh(-0.3, 0.5)  # some function of the features

    def forward(self, x: Tensor) -> Tensor:
        p = self.batchnorm(self.map_to_feat(x.transpose(1, -1)).transpose(1, -1))
        d = self.map_to_dir(x.transpose(1, -1)).transpose(1, -1)
        return p * ((p * d).sum(2, keepdim=True) >= 0)


@pytest.mark.parametrize("share", [False, True])
def test_published_vector_neurons(share: bool) -> None:
    x, module = normal(5, 4, 3, 3), VNReLU(4, share)
    d = torch.einsum("oc,bcin->boin", module.map_to_dir.weight, x)
    assert_shares(shares_of(nn.Sequential(module), x), "0", slow((x * d).sum(2)))


def test_published_vector_neurons_with_a_linear_map() -> None:
    x, module = normal(5, 4, 3, 2), VNLinearLeakyReLU(4, 6)
    q = module.batchnorm(torch.einsum("oc,bcin->boin", module.map_to_feat.weight, x))
    d = torch.einsum("oc,bcin->boin", module.map_to_dir.weight, x)
    assert_shares(shares_of(nn.Sequential(module), x), "0", slow((q * d).sum(2)))


def test_vector_neurons_of_the_examples() -> None:
    x, module = normal(5, 4, 3, 2, 2), VNLeakyReLU(4)  # edges: two dimensions of points
    d = torch.einsum("oc,bci...->boi...", module.direction.weight, x)
    assert_shares(shares_of(nn.Sequential(module), x), "0", slow((x * d).sum(2).flatten(2)))
    x = normal(6, 4, 3)  # a sample has one row: the rows are the points
    d = torch.einsum("oc,bci->boi", module.direction.weight, x)
    found = shares_of(nn.Sequential(module), x)
    along = (x * d).sum(2).T
    assert found["negative/0"] == sum(bool((row <= 0).all()) for row in along) / 4


def test_the_whole_network_of_the_examples() -> None:
    found = shares_of(VectorNeuronClassifier(3, 8).double(), normal(2, 20, 3))
    names = {"edge.activation", "local.activation", "context.activation", "point.1", "head.1"}
    assert {name.partition("/")[2] for name in found} == {"", *names}


def test_units_of_pointwise_nonlinearities() -> None:
    """Behind a linear map the last dimension, behind a convolution or a norm the second."""
    x = normal(3, 7, 4)
    linear = nn.Linear(4, 6)
    assert_shares(shares_of(nn.Sequential(linear, nn.SiLU()), x), "1", slow(linear(x).transpose(1, 2)))
    x = normal(3, 4, 3, 3)
    conv = nn.Conv2d(4, 6, 2)
    conv.bias.data += torch.linspace(-2, 2, 6)
    assert_shares(shares_of(nn.Sequential(conv, nn.ReLU()), x), "1", slow(conv(x).flatten(2)))
    rows = normal(4, 3)
    linear = nn.Linear(3, 30)
    assert_shares(shares_of(nn.Sequential(linear, nn.LeakyReLU()), rows), "1", slow(linear(rows).T[None]))


def test_gates_of_e3nn() -> None:
    """Even scalars alone, in Gate and beside what passes."""
    gate = e3nn_nn.Gate("4x0e+2x0o", [torch.nn.functional.silu, torch.tanh], "5x0e", [torch.sigmoid], "5x1o")
    x = gate.irreps_in.randn(2, 3, -1)
    found = shares_of(nn.Sequential(gate), x)
    scalars, gates, _ = gate.sc(x)  # 4x0e+2x0o, 5x0e
    assert_shares(found, "0.act_scalars", slow(scalars[..., :4].transpose(1, 2)))
    assert_shares(found, "0.act_gates", slow(gates.transpose(1, 2)))
    activation = e3nn_nn.Activation("2x1o+6x0e", [None, nn.SiLU()])
    x = o3.Irreps("2x1o+6x0e").randn(5, 2, -1)
    assert_shares(shares_of(nn.Sequential(activation), x), "0", slow(x[..., 6:].transpose(1, 2)))


def test_calls_are_added_and_the_whole_is_over_all_pairs() -> None:
    shares = DeadShares()
    shares.update("a", torch.tensor([[[1.0, 2.0], [-1.0, -3.0]]]))
    shares.update("a", torch.tensor([[[0.0, 0.0], [-1.0, 3.0]]]))
    shares.update("b", torch.tensor([[[1.0, 2.0]]]))
    shares.update("b", torch.zeros(1, 0, 2))  # a call without rows counts nothing
    found = {name: float(share) for name, share in shares.compute().items()}
    expected = {"negative": 2 / 5, "positive": 2 / 5, "negative/a": 0.5, "positive/a": 0.25, "negative/b": 0.0}
    assert found == pytest.approx({**expected, "positive/b": 1.0})


def test_branches_and_scripted_modules_are_no_part_of_it() -> None:
    network = nn.Module()
    network._lightning_equiv_branches_x = nn.Sequential(nn.SiLU())
    network.scripted = torch.jit.script(nn.ReLU())
    network.direction = nn.ReLU()
    assert [found.name for found in find_nonlinearities(network)] == ["direction"]
    assert DeadShares().compute() == {}
