"""What every metric must satisfy, over one table of cases: a public metric without a row fails.

A metric is updated with a network and what the network is called with, and remembers sums.
"""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

import lightning_equiv
from lightning_equiv import (
    AngleProfile,
    EquivarianceError,
    EquivarianceSpectrum,
    LayerwiseError,
    LieDerivativeError,
    Point,
    Symmetry,
)
from tests.helpers import TOLERANCE, normal

ROWS = 11


class Scaled(nn.Module):
    """x -> |x| x w: it commutes with all rotations."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x.norm(dim=-1, keepdim=True) * x


class Broken(nn.Module):
    """A network without any symmetry; an output is larger than 0."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.a = nn.Parameter(normal(n_in, 8, seed=1))
        self.b = nn.Parameter(normal(8, n_out, seed=2))

    def forward(self, x: Tensor) -> Tensor:
        return ((x + 0.3) @ self.a).tanh() @ self.b


class Lengths(nn.Module):
    """Vectors and their lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.norm(dim=-1, keepdim=True), self.w * x], -1)


class Matrix(nn.Module):
    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(rows, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w.T


class Layered(nn.Module):
    """Two matrices of the plane, and what no layer owns between them; those of the plain one commute with turns."""

    def __init__(self, broken: bool) -> None:
        super().__init__()
        first, second, offset = [[1.0, -0.5], [0.5, 1.0]], [[0.8, 0.3], [-0.3, 0.8]], [0.0, 0.0]
        if broken:
            first, second, offset = [[1.0, 0.5], [0.2, -0.3]], [[0.8, 0.3], [0.4, 0.1]], [0.6, 0.8]
        self.first, self.second = Matrix(first), Matrix(second)
        self.offset = nn.Parameter(torch.tensor(offset, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x) + self.offset
        return self.second(h / (1 + h.square().sum(-1, keepdim=True)).sqrt())


class Changed(nn.Module):
    """scale f(x) + shift: another network with layers of the same names."""

    def __init__(self, network: nn.Module, scale: float, shift: float) -> None:
        super().__init__()
        self.network, self.scale, self.shift = network, scale, shift

    def forward(self, *args: Tensor) -> Tensor:
        return self.scale * self.network(*args) + self.shift


@dataclass(frozen=True)
class MetricCase:
    """A metric and networks that it measures.

    Attributes:
        make: a fresh metric; arguments change its settings.
        equivariant: a network whose error is 0.
        broken: a network whose error is not.
        inputs: number of rows -> what a network is called with.
        draws: whether its value depends on a seed.
        split: how far the value may be from that of one batch, relative, when batches are cut otherwise.
        errors: which of its values are 0 for an equivariant network; all if none is named.
    """

    make: Callable[..., Metric]
    equivariant: Callable[[], nn.Module]
    broken: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]] = lambda n: (normal(n, 3),)
    draws: bool = False
    split: float = 1e-5
    errors: tuple[str, ...] = ()


def plane(n: int) -> tuple[Tensor, ...]:
    return (normal(n, 2),)


C4 = Symmetry("C4", Point(), Point())  # a whole group: no randomness
whole = partial(EquivarianceError, C4, num_samples=None)
IN_PLANE = partial(MetricCase, equivariant=Scaled, broken=partial(Broken, 2, 2), inputs=plane)
METRICS = {
    "EquivarianceError": IN_PLANE(whole),
    "EquivarianceError, absolute": IN_PLANE(partial(whole, kind="absolute")),
    "EquivarianceError, orbit_mean": IN_PLANE(partial(whole, kind="orbit_mean")),
    "EquivarianceError, max": IN_PLANE(partial(whole, kind="max")),
    "EquivarianceError, drawn": MetricCase(
        partial(EquivarianceError, Symmetry("SO(3)", "1o", "1o"), num_samples=64),
        Scaled,
        partial(Broken, 3, 3),
        draws=True,
        split=0.1,  # other elements are drawn in another update
    ),
    "EquivarianceError, parts": MetricCase(
        partial(EquivarianceError, Symmetry("SO(3)", "1o", "0e+1o"), num_samples=64, per_irrep=True),
        Lengths,
        partial(Broken, 3, 4),
        draws=True,
        split=0.1,
    ),
    "LieDerivativeError": MetricCase(
        partial(LieDerivativeError, Symmetry("SO(3)", "1o", "1o")), Scaled, partial(Broken, 3, 3)
    ),
    "LieDerivativeError, in the plane": IN_PLANE(partial(LieDerivativeError, Symmetry("SO(2)", Point(), Point()))),
    "LieDerivativeError, parts": MetricCase(
        partial(LieDerivativeError, Symmetry("SO(3)", "1o", "0e+1o"), per_irrep=True), Lengths, partial(Broken, 3, 4)
    ),
}
METRICS["AngleProfile"] = MetricCase(
    partial(AngleProfile, Symmetry("SO(3)", "1o", "1o"), angles=(60, 180), num_samples=64),
    Scaled,
    partial(Broken, 3, 3),
    draws=True,
    split=0.1,
)
METRICS["EquivarianceSpectrum"] = IN_PLANE(partial(EquivarianceSpectrum, C4, num_samples=None), errors=("1[0]", "2[0]"))
LAYERS = {f"**.{name}": (Point(), Point()) for name in ("first", "second")}
LAYERED = partial(MetricCase, equivariant=partial(Layered, False), broken=partial(Layered, True), inputs=plane)
METRICS |= {
    "LayerwiseError": LAYERED(
        partial(LayerwiseError, Symmetry("SO(2)", Point(), Point()), LAYERS, num_samples=64),
        split=0.2,  # other elements are drawn in another update, for each layer's own error
    ),
    "LayerwiseError, finite": LAYERED(partial(LayerwiseError, C4, LAYERS, num_samples=None)),
}
each_metric = pytest.mark.parametrize("case", METRICS.values(), ids=METRICS)


def values(computed: Any) -> dict[str, float]:
    """All numbers of what `compute` or `forward` returned, by name."""
    parts = computed if isinstance(computed, dict) else {"": computed}
    return {f"{part}[{i}]": float(v) for part, value in parts.items() for i, v in enumerate(value.reshape(-1))}


def measured(metric: Metric, network: Any, batches: Iterable[tuple[Tensor, ...]]) -> dict[str, float]:
    for batch in batches:
        metric.update(network, *batch)
    return values(metric.compute())


def cut(inputs: tuple[Tensor, ...], sizes: list[int]) -> list[tuple[Tensor, ...]]:
    return list(zip(*(x.split(sizes) for x in inputs), strict=True))


def test_every_metric_has_a_row() -> None:
    public = {cls for cls in vars(lightning_equiv).values() if isinstance(cls, type) and issubclass(cls, Metric)}
    assert public == {type(case.make()) for case in METRICS.values()}


@each_metric
def test_zero_means_equivariant(case: MetricCase) -> None:
    batches = cut(case.inputs(ROWS), [6, 5])
    kept, broken = (measured(case.make(), network, batches) for network in (case.equivariant(), case.broken()))
    for name in case.errors or kept:
        assert 0 <= kept[name] < TOLERANCE[torch.float32]
        assert broken[name] > 1e-2


# ---- accumulation ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sizes", [[4, 4, 3], [1, 10], [1] * ROWS], ids=str)
@each_metric
def test_batches_may_be_cut_anywhere(case: MetricCase, sizes: list[int]) -> None:
    network, inputs = case.broken(), case.inputs(ROWS)
    expected = measured(case.make(), network, [inputs])
    assert measured(case.make(), network, cut(inputs, sizes)) == pytest.approx(expected, rel=case.split)


@each_metric
def test_reset_forgets(case: MetricCase) -> None:
    metric, network = case.make(), case.broken()
    batches = cut(case.inputs(ROWS), [6, 5])
    expected = measured(case.make(), network, batches)
    measured(metric, Changed(network, 3, 1), batches)
    assert values(metric.compute()) != expected
    metric.reset()
    assert measured(metric, network, batches) == expected


@each_metric
def test_a_seed_decides_the_value(case: MetricCase) -> None:
    network, batches = case.broken(), cut(case.inputs(ROWS), [6, 5])
    expected = measured(case.make(), network, batches)
    torch.manual_seed(1)
    assert measured(case.make(), network, batches) == expected
    if case.draws:
        other = measured(case.make(seed=1), network, batches)
        assert all(other[name] != value for name, value in expected.items())


@each_metric
def test_forward_returns_the_value_of_a_batch_and_accumulates(case: MetricCase) -> None:
    network, batches = case.broken(), cut(case.inputs(ROWS), [4, 4, 3])
    metric = case.make()
    each = [values(metric(network, *batch)) for batch in batches]
    assert each[0] == measured(case.make(), network, batches[:1])
    assert all(a != b for a, b in pairwise(each))
    assert values(metric.compute()) == measured(case.make(), network, batches)
    assert values(metric.compute()) == values(metric.compute())


@each_metric
def test_two_ranks_read_the_same_as_one(case: MetricCase) -> None:
    network, inputs = case.broken(), case.inputs(ROWS)
    ranks = [case.make(), case.make()]
    for metric, batch in zip(ranks, cut(inputs, [6, 5]), strict=True):
        metric.update(network, *batch)
    alone = [values(metric.clone().compute()) for metric in ranks]  # torchmetrics keeps a value that was computed
    ranks[0].merge_state(ranks[1])
    both = values(ranks[0].compute())
    assert both == pytest.approx(measured(case.make(), network, [inputs]), rel=case.split)
    assert alone[0] != alone[1]


# ---- collections -----------------------------------------------------------------------------------------------------
@each_metric
def test_a_collection_mistakes_it_for_no_other(case: MetricCase) -> None:
    """Torchmetrics merges metrics whose states are equal after the first batch: here they all are 0."""

    def make() -> dict[str, Metric]:
        same = [name for name, c in METRICS.items() if c.broken is case.broken and c.inputs is case.inputs]
        other_seed = {"another seed": case.make(seed=1)} if case.draws else {}
        return {"it": case.make(), **other_seed, **{name: METRICS[name].make() for name in same}}

    network, inputs = case.broken(), case.inputs(ROWS)
    collection, alone = MetricCollection(make()), make()
    assert len(alone) > 1
    for net, batch in zip([Changed(network, 0, 0), Changed(network, 1, 0)], cut(inputs, [6, 5]), strict=True):
        collection.update(net, *batch)
        for metric in alone.values():
            metric.update(net, *batch)
    for name, metric in alone.items():
        assert values(collection[name].compute()) == values(metric.compute()), name


@each_metric
def test_states_have_names_of_their_own(case: MetricCase) -> None:
    names = set(case.make().metric_state)
    for other in METRICS.values():
        if other is not case:
            assert names.isdisjoint(other.make().metric_state)


# ---- the life of a metric --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("copied", [Metric.clone, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@each_metric
def test_a_copy_goes_on_from_where_the_original_is(case: MetricCase, copied: Callable[[Metric], Metric]) -> None:
    original, network = case.make(), Changed(case.broken(), 1, 0)
    first, second = cut(case.inputs(ROWS), [6, 5])
    original.update(network, *first)
    twin = copied(original)
    assert measured(twin, network, [second]) == measured(original, network, [second])
    at_both = values(original.compute())
    assert measured(twin, Changed(network.network, 1, 1), [second]) != at_both
    assert values(original.compute()) == at_both


@each_metric
def test_the_network_is_never_kept(case: MetricCase) -> None:
    metric, network = case.make(), case.broken()
    gone = weakref.ref(network)
    metric.update(network, *case.inputs(ROWS))
    metric(network, *case.inputs(ROWS))
    metric.compute()
    del network
    gc.collect()
    assert gone() is None
    assert metric.state_dict() == {}
    assert list(metric.parameters()) == list(metric.children()) == []


@each_metric
def test_states_move_with_the_metric(case: MetricCase) -> None:
    metric = case.make().to("meta")
    assert metric.device == torch.device("meta")
    assert {state.device.type for state in metric.metric_state.values()} == {"meta"}


@each_metric
def test_every_dtype_of_a_network(case: MetricCase) -> None:
    """The value is a float32 on the metric's device."""
    expected = measured(case.make(), case.broken(), [case.inputs(ROWS)])
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        metric, inputs = case.make(), tuple(x.to(dtype) for x in case.inputs(ROWS))
        assert measured(metric, case.broken().to(dtype), [inputs]) == pytest.approx(expected, rel=tolerance)
        computed = metric.compute()
        for value in computed.values() if isinstance(computed, dict) else [computed]:
            assert value.dtype == torch.float32
            assert value.device == metric.device
            assert not value.requires_grad


# ---- what is measured is left alone ----------------------------------------------------------------------------------
class Watched(nn.Module):
    """A network that shows whether somebody trained it: dropout, a count of training calls, flags of two kinds."""

    def __init__(self, network: nn.Module, fails: bool) -> None:
        super().__init__()
        self.network, self.dropout, self.fails = network, nn.Dropout(0.5), fails
        self.register_buffer("calls", torch.tensor(0))
        self.network.eval()
        for i, p in enumerate(self.parameters()):
            p.requires_grad_(i > 0)
            p.grad = torch.ones_like(p)

    def forward(self, *args: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        if self.fails:
            raise RuntimeError("the network's own")
        return self.dropout(self.network(*args))


def state_of(network: nn.Module) -> dict[str, Any]:
    return {
        "modes": [m.training for m in network.modules()],
        "flags": [p.requires_grad for p in network.parameters()],
        "gradients": [None if p.grad is None else p.grad.tolist() for p in network.parameters()],
        "numbers": {name: value.tolist() for name, value in network.state_dict().items()},
        "hooks": [[len(v) for k, v in sorted(vars(m).items()) if k.endswith("_hooks")] for m in network.modules()],
        "attributes": [sorted(vars(m)) for m in network.modules()],
        "random": torch.get_rng_state().tolist(),
        "grad mode": torch.is_grad_enabled(),
    }


@pytest.mark.parametrize("fails", [False, True], ids=["runs", "fails"])
@each_metric
def test_the_network_and_random_numbers_are_left_alone(case: MetricCase, fails: bool) -> None:
    metric, network, inputs = case.make(), Watched(case.broken(), fails), case.inputs(ROWS)
    before, copies = state_of(network), [x.clone() for x in inputs]
    if fails:
        with pytest.raises(RuntimeError, match="the network's own"):
            metric.update(network, *inputs)
    else:
        metric.update(network, *inputs)
        metric(network, *inputs)
        alone = Changed(network.network, 1, 0)
        assert values(metric.compute()) == measured(case.make(), alone, [inputs] * 2), "dropout was on"
    assert state_of(network) == before
    assert all(torch.equal(x, old) and not x.requires_grad for x, old in zip(inputs, copies, strict=True))
