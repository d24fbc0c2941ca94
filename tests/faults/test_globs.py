"""Which layers a glob or a type means, in networks whose layers are made of layers."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from e3nn import nn as enn
from e3nn import o3
from torch import Tensor, nn

from lightning_equiv import ConstraintRelaxation
from lightning_equiv.layers.choose import find_layers
from tests.helpers import global_seed
from tests.strategies.cases import CASES, Case
from tests.strategies.toys import Plain, loader, trainer

WITH_BRANCHES = [case for case in CASES.values() if case.adds_parameters]


class Block(nn.Module):
    """A tensor product with weights of its own, and an activation that is made of tensor products."""

    def __init__(self) -> None:
        super().__init__()
        self.tp = o3.FullyConnectedTensorProduct("4x1o", "1x0e", "4x1o")
        self.act = enn.NormActivation("4x1o", torch.tanh, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.tp(x, x.new_ones(len(x), 1)))


class Blocks(nn.Module):
    """A network of two blocks between linear maps."""

    def __init__(self) -> None:
        super().__init__()
        with global_seed():
            self.first, self.last = o3.Linear("1o", "4x1o"), o3.Linear("4x1o", "1o")
            self.layers = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


TENSOR_PRODUCTS = ["net.layers.0.tp", "net.layers.1.tp"]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("net.layers.*.tp", TENSOR_PRODUCTS),
        ("net.layers.?.tp", TENSOR_PRODUCTS),
        ("net.layers.[!0].tp", TENSOR_PRODUCTS[1:]),
        ("net.layers.**.tp", TENSOR_PRODUCTS),
        ("**.tp", TENSOR_PRODUCTS),
        (o3.TensorProduct, TENSOR_PRODUCTS),
        (["net.layers.0.tp", o3.TensorProduct], TENSOR_PRODUCTS),
        ("net.layers.0.act.norm.tp", ["net.layers.0.act.norm.tp"]),
        ("net.layers.*.*.*.tp", ["net.layers.0.act.norm.tp", "net.layers.1.act.norm.tp"]),
        ("**.act.norm.tp", ["net.layers.0.act.norm.tp", "net.layers.1.act.norm.tp"]),
        (lambda name, _: name.endswith("0.act.norm.tp"), ["net.layers.0.act.norm.tp"]),
        (enn.NormActivation, ["net.layers.0.act", "net.layers.1.act"]),
        (o3.Linear, ["net.first", "net.last"]),
        ("net.**.last", ["net.last"]),
    ],
)
def test_what_is_chosen(layers: Any, expected: list[str]) -> None:
    module = Plain(Blocks())
    assert ConstraintRelaxation("O(3)", layers, lie_weight=0.0).find(module) == expected
    assert [layer.name for layer in find_layers(module, layers)] == expected


def test_a_class_of_ones_own_is_a_composite_like_what_it_is_made_from() -> None:
    class Own(enn.NormActivation):
        pass

    module = nn.ModuleDict({"act": Own("4x1o", torch.tanh, bias=False), "tp": o3.FullTensorProduct("1o", "1o")})
    assert [layer.name for layer in find_layers(module, o3.TensorProduct)] == ["tp"]


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (
            "net.*.tp",
            r"'\*\*' any number: layers='net.\*\*.tp' matches \['net.layers",
        ),
        ("**.norm.tp", r"only parts of composite layers, .*'net.layers.0.act.norm.tp' in 'net.layers.0.act' \(NormAct"),
        (
            o3.Norm,
            r"all levels from 'act' on, layers='net.layers.0.act.norm'",
        ),
    ],
)
def test_what_is_said_where_nothing_is_meant(layers: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        find_layers(Plain(Blocks()), layers)


@pytest.mark.parametrize("case", WITH_BRANCHES, ids=lambda case: case.name)
def test_the_layers_are_printed_when_fit_starts(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        trainer(case.make(), max_steps=1).fit(Plain(), loader())
    assert f"{case.kind}: relaxing 2 layers: net.0, net.2" in caplog.messages
