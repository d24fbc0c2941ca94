"""EquivarianceError by itself: its sums against the formulas, its errors, two processes; see test_contract, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import matplotlib as mpl
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics import Metric, MetricCollection

from lightning_equiv import SO3, EquivarianceError, Point, Symmetry, equivariance_error
from lightning_equiv.metrics.functional import Kind
from tests.helpers import normal, sums_of

KINDS = get_args(Kind)
VECTORS = Symmetry("SO(3)", "1o", "1o")
C4 = Symmetry("C4", Point(), Point())
PARTS = Symmetry("C4", "1o", "0e+1o")  # the whole group, and an output of two parts


class Net(nn.Module):
    """A network without any symmetry, that counts its calls."""

    def __init__(self, n_in: int = 3, n_out: int = 3) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(normal(n_in, 8, seed=1)), nn.Parameter(normal(8, n_out, seed=2))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return ((x + 0.3).to(self.a.dtype) @ self.a).tanh() @ self.b


def whole(symmetry: Symmetry = C4, **kwargs: Any) -> EquivarianceError:
    """A metric without any randomness."""
    return EquivarianceError(symmetry, num_samples=None, **kwargs)


def by_hand(network: nn.Module, x: Tensor, symmetry: Symmetry, kind: str) -> dict[str, float]:
    """The formulas of the docstring over a data set, from the errors of each input."""
    sums = sums_of(network, x, symmetry, num_samples=None, kind=kind)
    return {
        part: {
            "relative": lambda a, b: float((a.sum() / b.sum()).sqrt()),
            "absolute": lambda a, b: float(a.mean()),
            "orbit_mean": lambda a, b: float(a.mean()),
            "max": lambda a, b: float(a.max()),
        }[kind](a, b)
        for part, (a, b) in sums.items()
    }


# ---- accumulation ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_many_batches_read_the_same_as_one(kind):
    network, x = Net(), normal(11, 3)
    many, one = (whole(PARTS, kind=kind, per_irrep=True) for _ in range(2))
    network = Net(3, 4)
    for batch in x.split(4):
        many.update(network, batch)
    one.update(network, x)
    expected = by_hand(network, x, PARTS, kind)
    assert list(expected) == ["total", "0e", "1o"]
    for metric in (many, one):
        values = metric.compute()
        assert {part: float(v) for part, v in values.items()} == pytest.approx(expected, rel=1e-6)


def test_relative_is_a_ratio_of_sums_and_no_mean_of_ratios():
    """f(x) = x + c under C4: mean_g |d|^2 = 2 |c|^2 for every x."""
    c, x = torch.tensor([0.3, -1.1], dtype=torch.float64), torch.tensor([[1.0, 0.0], [30.0, 40.0]], dtype=torch.float64)
    metric = whole()
    for batch in x.split(1):
        metric.update(lambda x: x + c, batch)
    squares = (x + c).square().sum(-1)
    assert float(metric.compute()) == pytest.approx(float((2 * 2 * c.square().sum() / squares.sum()).sqrt()), rel=1e-6)
    mean_of_ratios = float((2 * c.square().sum() / squares).sqrt().mean())
    assert abs(float(metric.compute()) - mean_of_ratios) > 0.1


def test_the_draws_of_the_kth_update_are_always_the_same():
    x = normal(6, 3)
    metrics = [EquivarianceError(VECTORS, seed=seed) for seed in (0, 0, 1)]
    for metric in metrics:
        for batch in (x, x):
            metric.update(Net(), batch)
    values = [float(metric.compute()) for metric in metrics]
    assert values[0] == values[1] != values[2]
    metrics[0].reset()
    metrics[0].update(Net(), x)
    first = float(metrics[0].compute())
    assert first != values[0]  # the second update drew other elements than the first
    metrics[0].reset()
    metrics[0].update(Net(), x)
    assert float(metrics[0].compute()) == first


@pytest.mark.parametrize("per_irrep", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_runs_update_once_and_accumulates_the_same(kind, per_irrep):
    symmetry = Symmetry("SO(3)", "1o", "0e+1o")
    forwarded, updated = (EquivarianceError(symmetry, kind=kind, per_irrep=per_irrep) for _ in range(2))
    network, values = Net(3, 4), []
    for batch in normal(11, 3).split(4):
        values.append(forwarded(network, batch))
    assert network.calls == 3 * 2
    for batch in normal(11, 3).split(4):
        updated.update(network, batch)
    total = (lambda v: v["total"]) if per_irrep else (lambda v: v)
    assert float(total(forwarded.compute())) == float(total(updated.compute()))
    updated.reset()
    updated.update(network, normal(11, 3)[:4])
    assert float(total(updated.compute())) == float(total(values[0]))
    assert len({float(total(v)) for v in values}) == 3


def test_equals_the_function():
    network, x = Net(2, 2), normal(5, 2)
    metric = whole(kind="absolute")
    metric.update(network, x)
    error = equivariance_error(network, x, C4, kind="absolute", num_samples=None)
    assert float(metric.compute()) == pytest.approx(float(error.mean()), rel=1e-6)


def test_arguments_reach_the_comparison():
    class Weighed(nn.Module):
        def forward(self, x: Tensor, mass: Tensor) -> Tensor:
            sizes.append(len(x))
            modes.append(torch.is_grad_enabled())
            return x * mass + 1

    sizes, modes, x, mass = [], [], normal(4, 3), normal(4, 1)
    metric = EquivarianceError(
        Symmetry("SO(3)", ("1o", "0e"), "1o"), num_samples=5, chunk_size=8, needs_grad=True, kind="max"
    )
    metric.update(Weighed(), x, mass=mass)
    assert sizes == [4, 8, 8, 4]
    assert all(modes)
    assert 0.1 < float(metric.compute()) <= 2 * 3**0.5  # |c - R c| of c = (1, 1, 1)


def test_parts_of_nested_outputs():
    metric = EquivarianceError(Symmetry("SO(3)", "1o", {"e": "0e", "f": "1o"}), per_irrep=True)
    for batch in normal(9, 3).split(4):
        metric.update(lambda x: {"e": x.norm(dim=-1, keepdim=True), "f": x + 1}, batch)
    value = metric.compute()
    assert list(value) == ["total", "e.0e", "f.1o"]
    assert float(value["e.0e"]) < 1e-12
    assert float(value["f.1o"]) > float(value["total"]) > 0.1


# ---- collections -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "pair",
    [
        ({"kind": "absolute"}, {"kind": "orbit_mean"}),
        ({"kind": "relative"}, {"kind": "max"}),
        ({"seed": 0}, {"seed": 1}),
        ({"num_samples": 2}, {"num_samples": 3}),
        ({"symmetry": VECTORS}, {"symmetry": Symmetry("O(3)", "1o", "1o")}),
        ({"per_irrep": True}, {"per_irrep": False}),
        ({"kind": "absolute"}, {"kind": "absolute"}),
    ],
)
def test_metrics_of_a_collection_are_not_mistaken_for_each_other(pair):
    def make() -> list[Metric]:
        return [EquivarianceError(**{"symmetry": VECTORS, **arguments}) for arguments in pair]

    collection, alone = MetricCollection(dict(zip("ab", make(), strict=True))), make()
    # torchmetrics merges metrics whose states are equal after the first batch: here they are, whatever the metric
    for network, batch in zip([torch.zeros_like, Net(), Net()], normal(12, 3).split(4), strict=True):
        collection.update(network, batch)
        for metric in alone:
            metric.update(network, batch)
    values = collection.compute()
    for name, metric in zip("ab", alone, strict=True):
        expected = metric.compute()
        if isinstance(expected, dict):
            expected = expected["total"]
        got = values.get(name, values.get("total"))
        assert float(got) == float(expected)


# ---- the life of a metric --------------------------------------------------------------------------------------------
def test_state_dict_when_asked_for():
    metric, other = (EquivarianceError(VECTORS, per_irrep=True) for _ in range(2))
    metric.update(Net(), normal(6, 3))
    metric.persistent(True)
    other.persistent(True)
    other.load_state_dict(metric.state_dict())
    other._update_count = 1  # torchmetrics does not save it
    assert {k: float(v) for k, v in other.compute().items()} == {k: float(v) for k, v in metric.compute().items()}


def test_plot_gives_a_figure():
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    for per_irrep in (False, True):
        metric = EquivarianceError(VECTORS, per_irrep=per_irrep)
        metric.update(Net(), normal(6, 3))
        figure, axes = metric.plot()
        assert isinstance(figure, plt.Figure)
        assert axes is not None
        plt.close(figure)


class Waits(TorchDispatchMode):
    """Remembers the operations that make the host wait for an accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(word in str(func) for word in ("_local_scalar_dense", "nonzero", "aten.equal")):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_update_never_waits_for_the_device(kind):
    metric = EquivarianceError(Symmetry("SO(3)", "1o", "0e+1o"), kind=kind, per_irrep=True)
    with Waits() as waits:
        metric.update(Net(3, 4), normal(6, 3))
        metric.update(Net(3, 4), normal(6, 3))
    assert waits.found == []
    with Waits() as waits:
        metric.compute()
    assert waits.found  # only here


# ---- errors ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_nan_raises_when_computed(kind, bad):
    metric = EquivarianceError(VECTORS, kind=kind)
    metric.update(Net(), normal(4, 3))
    metric.update(lambda x: x * bad, normal(4, 3))
    with pytest.raises(ValueError, match="the network returned NaN or infinity for some input"):
        metric.compute()


def test_an_error_relative_to_nothing_raises():
    """f(x) = 0 for the inputs themselves, not for the moved ones."""
    metric = EquivarianceError(VECTORS)
    x = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    metric.update(lambda x: torch.where(x[:, 2:] == 1, 0.0, x), x)
    with pytest.raises(ValueError, match=r"is inf.*kind='absolute' measures such a network"):
        metric.compute()


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"expected kind to be one of \('relative', .*got 'mean'"):
        EquivarianceError(VECTORS, kind="mean")


# ---- two processes ---------------------------------------------------------------------------------------------------
def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        x, network, results = normal(12, 3), Net(3, 4), {}
        for kind in KINDS:
            metric = whole(PARTS, kind=kind, per_irrep=True)
            for batch in x[rank::2].split(4):
                metric.update(network, batch)
            results[kind] = metric.compute()
            metric.reset()
            if rank == 0:  # the other one has nothing to measure
                metric.update(network, x)
            else:
                metric._update_count = 1
            results[f"{kind}, one rank only"] = metric.compute()
        drawn = EquivarianceError(VECTORS)
        drawn.update(Net(), x)
        drawn._to_sync = False
        results["drawn"] = drawn.compute()
        torch.save(results, f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_read_the_same_as_one(tmp_path: Path):
    mp.start_processes(_rank, args=(str(tmp_path),), nprocs=2, start_method="fork")
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for kind in KINDS:
        expected = by_hand(Net(3, 4), normal(12, 3), PARTS, kind)
        for result in results:
            for name in (kind, f"{kind}, one rank only"):
                assert {part: float(v) for part, v in result[name].items()} == pytest.approx(expected, rel=1e-6), name
    assert float(results[0]["drawn"]) != float(results[1]["drawn"])  # every rank draws elements of its own


def test_the_group_may_be_a_value_or_a_name():
    metrics = [EquivarianceError(Symmetry(group, "1o", "1o")) for group in ("SO(3)", SO3())]
    for metric in metrics:
        metric.update(Net(), normal(6, 3))
    assert float(metrics[0].compute()) == float(metrics[1].compute())
