"""Where a layer's features lie, how large they are, and what is said where a declaration is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from e3nn import o3
from torch import Tensor, nn

from lightning_equiv import ACE, RECM, RPP, ConstraintRelaxation
from lightning_equiv.groups.product import as_group
from lightning_equiv.layers.branch import Branch, attach_branch, make_branch
from lightning_equiv.layers.choose import find_layers
from lightning_equiv.layers.measure import measured
from lightning_equiv.strategies.constraint_relaxation.penalties import penalties
from tests.helpers import close, normal
from tests.strategies.toys import Plain, loader, trainer


class Stacked(nn.Module):
    """Linear maps of the last dimension, one after the other."""

    def __init__(self, channels: int, number: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(channels, channels, bias=False) for _ in range(number)).double()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def penalty(representation: Any, group: str, x: Tensor, number: int = 1) -> Tensor:
    """The Lie penalty of linear branches beside layers of one representation."""
    torch.manual_seed(0)
    net = Stacked(x.shape[-1], number)
    layers = measured(find_layers(net, {"layers.*": (representation, representation)}), lambda: net(x))
    branches = [Branch(layer, make_branch(layer, "linear", 1.0).double()) for layer in layers]
    for b in branches:
        attach_branch(b)
        b.set_theta(1.0)
        b.start()
    assert net(x).shape == x.shape
    return penalties(branches, as_group(group))[0]


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize(
    ("group", "shape", "front", "last"),
    [
        ("SO(3)", (5, 3, 4), ["IrrepsTensor('1o', dim=1)", "Point(1)", "Point(-2)"], "IrrepsTensor('1o', dim=-2)"),
        ("SO(3)", (5, 3, 7, 4), ["IrrepsTensor('1o', dim=1)", "Point(-3)"], "IrrepsTensor('1o', dim=-3)"),
        ("SO(3)", (5, 7, 3, 4), ["IrrepsTensor('1o', dim=2)", "Point(2)"], "IrrepsTensor('1o', dim=-2)"),
        ("S6", (5, 6, 4), ["Permuted(1)"], "Permuted(-2)"),
        ("C4", (5, 4, 3), ["Shifted(1)", "Regular(1)", "Shifted(-2)"], "Regular(-2)"),
        ("S6 x SO(3)", (5, 6, 3), ["Permuted(1) @ '1o'"], "Permuted(-2) @ '1o'"),
    ],
)
def test_any_dimension(group: str, shape: tuple[int, ...], front: list[str], last: str, number: int) -> None:
    """One dimension, counted from either end, and the same tensor with it moved next to the last."""
    x = normal(*shape)
    expected = penalty(last, group, x, number)
    assert expected > 0.1
    for representation in front:
        close(penalty(representation, group, x, number), expected)


@pytest.mark.parametrize(
    ("group", "shape", "representation"),
    [
        ("SO(3)", (5, 3, 4), "IrrepsTensor('1o', dim=1)"),
        ("S6", (5, 6, 4), "Permuted(-2)"),
        ("C4", (5, 4, 3), "Shifted(1)"),
    ],
)
def test_the_penalty_of_a_branch_that_commutes_is_zero(group: str, shape: tuple[int, ...], representation: str) -> None:
    """W = 1 (x) A: the same matrix A on the channels of every component."""
    net, x = Stacked(shape[-1]), normal(*shape)
    (layer,) = measured(find_layers(net, {"layers.*": (representation, representation)}), lambda: net(x))
    b = Branch(layer, make_branch(layer, "linear", 1.0).double())
    b.network.weight.data = torch.kron(torch.eye(shape[1]), normal(shape[-1], shape[-1], seed=1))
    b.inputs = [x]
    assert penalties([b], as_group(group))[0] < 1e-5
    b.network.weight.data[0, 0] += 1
    assert penalties([b], as_group(group))[0] > 0.1


class Moves(nn.Module):
    """A layer that does not say its sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 16), Moves(), nn.Linear(16, 3))


STRATEGIES = {
    "ConstraintRelaxation": lambda layers: ConstraintRelaxation("SO(3)", layers, peak=1.0),
    "RECM": lambda layers: RECM("SO(3)", layers, "net"),
    "ACE": lambda layers: ACE("SO(3)", layers, "net"),
    "RPP": lambda layers: RPP("SO(3)", layers, "net"),
}
each_strategy = pytest.mark.parametrize("make", STRATEGIES.values(), ids=STRATEGIES)


@each_strategy
@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (
            {"net.0": ("1o", "8x0e")},
            r"'net.0' \(Linear\): its output is .*'8x0e'\), features \(8,\), .* \(16,\)",
        ),
        (
            {"net.0": ("2x1o", "16x0e")},
            r"'net.0' .*: its input is .*'2x1o'\), features \(6,\), .* \(3,\)",
        ),
        ({"net.0": ("1o", "IrrepsTensor('1o', dim=1)")}, r"'net.0' .* lie in dimensions \(-1,\), .* in \(1, -1\)"),
        ({"net.0": ("Permuted(-1)", "16x0e")}, "permutation"),
    ],
)
def test_a_wrong_declaration_is_an_error_before_training(make: Any, layers: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(layers).attach(Plain(net()))


@each_strategy
@pytest.mark.parametrize("example", [True, False])
def test_a_wrong_width_of_a_layer_that_does_not_say_its_own(make: Any, example: bool) -> None:
    """With an example input at once, without one in the first step."""
    module = Plain(net())
    module.forward = module.net.forward  # type: ignore[method-assign]
    module.example_input_array = torch.randn(2, 3) if example else None
    strategy = make({"net.1": ("5x1o", "5x1o")})
    words = r"layer 'net.1' \(Moves\): its input is declared as .*'5x1o'\), features \(15,\), but has .*\(16,\)"
    with pytest.raises(ValueError, match=words):
        strategy.attach(module) if example else trainer(strategy).fit(module, loader())


def test_a_group_that_does_not_move_so_many_things() -> None:
    module = Plain(net())
    with pytest.raises(ValueError, match=r"layer 'net.0' \(Linear\), features \(3,\) of its input: .* expects 6 comp"):
        ConstraintRelaxation("S6", {"net.0": ("Permuted(-1)", "Permuted(-1)")}).attach(module)


class OfSeveral(nn.Module):
    """A block that takes a dict of tensors, as those of NequIP do."""

    def __init__(self) -> None:
        super().__init__()
        self.irreps_in = {"pos": o3.Irreps("1o"), "node_features": o3.Irreps("4x0e")}
        self.irreps_out = self.irreps_in
        self.linear = o3.Linear("4x0e+1o", "4x0e")


@each_strategy
def test_a_layer_of_several_tensors(make: Any) -> None:
    words = r"'net.0' \(OfSeveral\) has .* \['node_features', 'pos'\]: .* such as \['net.0.linear'\]"
    with pytest.raises(ValueError, match=words):
        make("net.0").attach(Plain(nn.Sequential(OfSeveral())))
    make("net.0.linear").attach(Plain(nn.Sequential(OfSeveral())))
