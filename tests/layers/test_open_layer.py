"""`OpenLayer`: layers of several libraries as matrices, and what their weights take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from e3nn import o3
from torch import Tensor, nn

from lightning_equiv.groups.product import as_group
from lightning_equiv.layers.branch import make_branch
from lightning_equiv.layers.choose import find_layers
from lightning_equiv.layers.layer import Layer
from lightning_equiv.layers.open_layer import OpenLayer
from lightning_equiv.networks.c4_cnn import C4Conv
from lightning_equiv.networks.vector_neurons import VNLeakyReLU, VNLinear
from lightning_equiv.representations.linear_maps import LinearMaps


class Sets(nn.Module):
    """y_i = alpha x_i + beta sum_j x_j + b: all linear maps that commute with S_n."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha, self.beta, self.b = (nn.Parameter(torch.randn(())) for _ in range(3))
        self.in_features = self.out_features = 5

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * x + self.beta * x.sum(-1, keepdim=True) + self.b


MODULES: dict[str, tuple[nn.Module, Any, str]] = {
    "e3nn": (o3.Linear("2x0e+3x1o", "4x0e+2x1o+1e", biases=True), "x", "O(3)"),
    "tensor product": (o3.FullyConnectedTensorProduct("2x0e+2x1o", "0e+1o", "2x0e+3x1o"), "x", "O(3)"),
    "vector neurons": (VNLinear(3, 4), "x", "O(3)"),
    "sets": (Sets(), {"x": ("Permuted(-1)", "Permuted(-1)")}, "S5"),
    "C4": (C4Conv(2, 3), {"x": ("Image() @ Regular(-3)", "Image() @ Regular(-3)")}, "C4"),
}


def chosen(name: str) -> tuple[Layer, LinearMaps]:
    module, layers, group = MODULES[name]
    (layer,) = find_layers(nn.ModuleDict({"x": module}), layers)
    features: list[tuple[int, ...]] = [layer.in_features or (2, 4), layer.out_features or (3, 4)]
    layer = replace(layer, in_features=features[0], out_features=features[1])
    if layer.grid:
        features = [(*features[0], 1, 1), (*features[1], 3, 3)]
    assert layer.inputs is not None
    assert layer.outputs is not None
    return layer, LinearMaps(layer.inputs, layer.outputs, features[0], features[1], as_group(group))


@pytest.mark.parametrize("name", MODULES)
def test_the_layer_commutes_and_takes_what_commutes(name: str) -> None:
    """A W that commutes goes into the layer's own weights, whole; the output of the layer moves by W x."""
    layer, maps = chosen(name)
    opened = OpenLayer(layer)
    before = opened.matrix()
    torch.testing.assert_close(maps.project(before[:, :-1]), before[:, :-1], atol=1e-10, rtol=0)
    branch = opened.branch_matrix(make_branch(layer, "linear", 1.0))
    W = torch.cat([maps.project(branch[:, :-1]), branch[:, -1:]], dim=1)
    assert W.norm() > 0.1
    assert not bool(branch[:, -1].any())
    left_over = opened.take(W)
    assert left_over.norm() < 1e-10
    torch.testing.assert_close(opened.matrix(), before + W, atol=2e-6, rtol=0)  # the weights are float32


@pytest.mark.parametrize("name", MODULES)
def test_what_does_not_commute_is_left_over(name: str) -> None:
    layer, maps = chosen(name)
    opened = OpenLayer(layer)
    before = opened.matrix()
    W = opened.branch_matrix(make_branch(layer, "linear", 1.0))
    rest = W - torch.cat([maps.project(W[:, :-1]), W[:, -1:]], dim=1)
    left_over = opened.take(rest)
    torch.testing.assert_close(left_over, rest, atol=1e-9, rtol=0)
    torch.testing.assert_close(opened.matrix(), before, atol=1e-6, rtol=0)


def test_rounding_is_not_taken_for_a_change() -> None:
    """What the weights cannot express at all leaves nothing but rounding to solve for, which must not grow."""
    layer, maps = chosen("tensor product")
    for seed in range(5):
        W = torch.randn(11, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        rest = torch.nn.functional.pad(W - maps.project(W), (0, 1))
        before = layer.module.weight.detach().clone()
        assert torch.equal(OpenLayer(layer).take(rest), rest)
        assert torch.equal(layer.module.weight, before)


@pytest.mark.parametrize("name", MODULES)
def test_the_branch_is_opened_as_it_acts(name: str) -> None:
    """n(x) of the layer's own family is the branch's matrix on the rows."""
    layer, _ = chosen(name)
    opened, branch = OpenLayer(layer), make_branch(layer, "linear", 1.0)
    W = opened.branch_matrix(branch)
    rows = torch.randn(7, W.shape[1] - 1, dtype=torch.float64)
    args = layer.family.opening_args(layer, rows)
    other = [layer.module.double()(*args)]
    n_x = layer.family.apply(layer, branch.double(), args[0], other[0])
    layer.module.float()
    torch.testing.assert_close(layer.family.opened_rows(layer, n_x), rows @ W[:, :-1].mT, atol=1e-10, rtol=0)


def test_frozen_weights_stay() -> None:
    net = nn.ModuleDict({"x": nn.Linear(2, 2)})
    net["x"].bias.requires_grad_(False)
    before = net["x"].bias.clone()
    left_over = OpenLayer(find_layers(net, "x")[0]).take(torch.ones(2, 3, dtype=torch.float64))
    torch.testing.assert_close(
        left_over, torch.tensor([[0.0, 0, 1], [0, 0, 1]], dtype=torch.float64), atol=1e-9, rtol=0
    )
    torch.testing.assert_close(net["x"].bias, before)


@pytest.mark.parametrize(
    ("module", "features", "match"),
    [
        (VNLeakyReLU(3), (3, 3), "is not linear in its input"),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)), (3,), "is not linear in its weights"),
        (nn.Bilinear(3, 3, 3), (3,), "cannot be called with tensors of shapes"),
        (nn.Identity(), (3,), "has no weights of its own"),
        (nn.Conv2d(3, 3, 3, stride=2), (3,), "stride 1"),
        (o3.FullyConnectedTensorProduct("1o", "1o", "0e"), (3,), "has no scalar"),
    ],
)
def test_a_layer_that_cannot_be_opened(module: nn.Module, features: tuple[int, ...], match: str) -> None:
    (layer,) = find_layers(nn.ModuleDict({"x": module}), "x")
    dims = (1, 2) if len(features) == 2 else layer.dims
    with pytest.raises(ValueError, match=match):
        OpenLayer(replace(layer, in_features=features, out_features=features, dims=dims))
