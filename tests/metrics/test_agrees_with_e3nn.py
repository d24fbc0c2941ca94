"""Our figures are those of e3nn's own check, `e3nn.util.test.equivariance_error`, on e3nn's own layers.

Its figure is the largest |entry| of f(g x) - g f(x) over the batch and its trials, for proper and for improper
rotations. It draws them itself, one for each trial and parity; here it draws those that we are given.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from e3nn.util import test as e3nn_test
from torch import Tensor, nn

from lightning_equiv import O3, SO3, GroupElement, Symmetry, equivariance_error
from lightning_equiv.metrics.measurement import measuring
from tests.helpers import TOLERANCE, default_dtype, global_seed, normal, seeded

IN, OUT, TRIALS = "3x0e+2x1o+1x2e", "2x0e+2x1o+1x1e+1x2e", 4
ROTATIONS = SO3().sample(2 * TRIALS, generator=seeded()).matrix  # +R and -R take turns in e3nn


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with default_dtype(torch.float64), global_seed():
        yield


class Broken(nn.Module):
    """A layer and `by` times an ordinary one beside it."""

    def __init__(self, layer: nn.Module, irreps_in: list[Any], irreps_out: Any, by: float) -> None:
        super().__init__()
        self.layer, self.by = layer, by
        self.beside = nn.Linear(sum(o3.Irreps(i).dim for i in irreps_in), o3.Irreps(irreps_out).dim)

    def forward(self, *x: Tensor) -> Tensor:
        return self.layer(*x) + self.by * self.beside(torch.cat(x, dim=-1))


def layer(name: str) -> tuple[nn.Module, list[Any], Any]:
    """A layer of e3nn, the irreps of its arguments and of its output."""
    if name == "Linear":
        return o3.Linear(IN, OUT), [IN], OUT
    if name == "FullyConnectedTensorProduct":
        return o3.FullyConnectedTensorProduct(IN, OUT, OUT), [IN, OUT], OUT
    if name == "Gate":
        gate = e3nn_nn.Gate("4x0e", [torch.tanh], "4x0e", [torch.sigmoid], "2x1o+1x1e+1x2e")
        return gate, [gate.irreps_in], gate.irreps_out
    if name == "NormActivation":
        return e3nn_nn.NormActivation(o3.Irreps(IN), torch.sigmoid, bias=True), [IN], IN
    norm = e3nn_nn.BatchNorm(IN)
    for _ in range(3):
        norm(2 * torch.randn(16, o3.Irreps(IN).dim) + 1)
    nn.init.normal_(norm.weight)
    return norm.eval(), [IN], IN


LAYERS = ["Linear", "FullyConnectedTensorProduct", "Gate", "NormActivation", "BatchNorm"]


def theirs(network: nn.Module, args: list[Tensor], irreps: list[Any], out: Any, monkeypatch: Any) -> list[float]:
    """e3nn's figures, of proper and of improper rotations."""
    rotations = iter(ROTATIONS.clone())
    monkeypatch.setattr(o3, "rand_matrix", lambda **_: next(rotations))
    irreps, out = [o3.Irreps(i) for i in irreps], [o3.Irreps(out)]
    found = e3nn_test.equivariance_error(network, args, irreps, out, ntrials=TRIALS)
    assert next(rotations, None) is None  # it drew all of ours
    return [float(found[parity, False]) for parity in (0, 1)]


def elements() -> list[GroupElement]:
    """The same, proper and improper."""
    return [O3().element(ROTATIONS[0::2]), O3().element(-ROTATIONS[1::2])]


def largest_entry(network: nn.Module, args: list[Tensor], symmetry: Symmetry, g: GroupElement) -> float:
    """e3nn's norm of our f(g x) - g f(x)."""
    with measuring(network, tuple(args), symmetry) as measurement:
        largest = measurement.for_each_chunk(
            measurement.elements(None, g), lambda _, f_gx, g_fx: float((f_gx.tree - g_fx.tree).abs().max())
        )
    return max(largest)


@pytest.mark.parametrize("name", LAYERS)
def test_the_same_entries(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exact, irreps, out = layer(name)
    broken = Broken(exact, irreps, out, by=1.0)
    symmetry = Symmetry("O(3)", tuple(map(str, irreps)), str(out))
    args = [normal(5, o3.Irreps(i).dim, seed=k) for k, i in enumerate(irreps)]
    # e3nn's Wigner matrices lose digits at small Euler angles: it reads up to 1e-10 of an exact layer, we 1e-15
    assert max(theirs(exact, args, irreps, out, monkeypatch)) < 1e-9
    expected = theirs(broken, args, irreps, out, monkeypatch)
    for parity, g in enumerate(elements()):
        assert largest_entry(exact, args, symmetry, g) < TOLERANCE[torch.float64]
        assert float(equivariance_error(exact, tuple(args), symmetry, elements=g).max()) < TOLERANCE[torch.float64]
        entry = largest_entry(broken, args, symmetry, g)
        assert entry == pytest.approx(expected[parity], rel=1e-8)
        norm = float(equivariance_error(broken, tuple(args), symmetry, elements=g, kind="max").max())
        assert entry <= norm <= entry * o3.Irreps(out).dim ** 0.5
        assert float(equivariance_error(broken, tuple(args), symmetry, elements=g).min()) > 1e-2


@pytest.mark.parametrize("by", [1e-6, 1.0])
def test_of_a_single_scalar_the_largest_norm_is_their_number(by: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the output has one entry, |entry| is the norm, and kind="max" needs no other norm."""
    network = Broken(o3.Linear(IN, "1x0e"), [IN], "1x0e", by)
    x, symmetry = normal(5, o3.Irreps(IN).dim), Symmetry("O(3)", IN, "1x0e")
    expected = theirs(network, [x], [IN], "1x0e", monkeypatch)
    for parity, g in enumerate(elements()):
        ours = equivariance_error(network, x, symmetry, elements=g, kind="max")
        assert float(ours.max()) == pytest.approx(expected[parity], rel=1e-6)


def test_both_grow_in_proportion_to_what_was_added(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Broken(o3.Linear(IN, OUT), [IN], OUT, 1.0)
    x, symmetry = normal(5, o3.Irreps(IN).dim), Symmetry("O(3)", IN, OUT)
    found = []
    for network.by in (1.0, 0.01):
        absolute = equivariance_error(network, x, symmetry, elements=elements()[0], kind="absolute")
        found.append((theirs(network, [x], [IN], OUT, monkeypatch)[0], float(absolute.mean())))
    (their_whole, our_whole), (their_part, our_part) = found
    assert their_whole / their_part == pytest.approx(100, rel=1e-9)
    assert our_whole / our_part == pytest.approx(100, rel=1e-9)
