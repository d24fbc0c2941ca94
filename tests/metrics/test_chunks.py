"""Chunks: the same figures whatever their size, the search for a fast one, memory that runs out, and what is kept."""

from __future__ import annotations

import gc
import math
import os
import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_equiv import EquivarianceError, EquivarianceMonitor, Invariant, Symmetry, equivariance_error
from lightning_equiv.metrics import chunks
from lightning_equiv.metrics.chunks import FreeSizes, Learned, Sizes, TimedSizes, in_chunks, learned_of
from lightning_equiv.metrics.functional import Kind
from tests.helpers import close, normal, seeded

KINDS = get_args(Kind)
VECTORS = Symmetry("SO(3)", "1o", "1o")
ROWS, SAMPLES = 96, 37  # more than a few, so that "auto" cuts them, and no power of two


class Net(nn.Module):
    """A network without any symmetry that remembers how many rows it saw, and has memory for so many.

    Elementwise arithmetic: a row's result does not depend on the other rows.
    """

    def __init__(self, memory: float = math.inf) -> None:
        super().__init__()
        self.memory = memory
        self.rows: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        if len(x) > self.memory:
            raise torch.OutOfMemoryError(f"tried to allocate {len(x)} rows")
        return x * x.roll(1, -1) + 0.3 * x + 0.1


class Clock:
    """Time that passes by the row: `seconds(rows)` for each row of a call of the network."""

    def __init__(self, network: nn.Module, seconds: Callable[[int], float]) -> None:
        self.now = 0.0
        self.seconds = seconds
        network.register_forward_hook(self.work)

    def work(self, _: nn.Module, args: tuple[Tensor, ...], __: Any) -> None:
        self.now += len(args[0]) * self.seconds(len(args[0]))

    def perf_counter(self) -> float:
        return self.now

    thread_time = perf_counter


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module, Callable[[int], float]], Clock]:
    """Give the search a clock of its own."""

    def install(network: nn.Module, seconds: Callable[[int], float]) -> Clock:
        clock = Clock(network, seconds)
        monkeypatch.setattr(chunks, "time", clock)
        return clock

    return install


def error(network: Callable[..., Any], n: int = ROWS, k: int = SAMPLES, **options: Any) -> Any:
    return equivariance_error(network, normal(n, 3), VECTORS, num_samples=k, generator=seeded(), **options)


# ---- the same figures ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_the_same_bit_for_bit_whatever_the_chunks(kind):
    expected = error(Net(), kind=kind, chunk_size=None)
    assert float(expected.min()) > 1e-3
    for chunk_size in (1, ROWS, 2 * ROWS, 5 * ROWS + 1, ROWS * SAMPLES, "auto"):
        assert torch.equal(error(Net(), kind=kind, chunk_size=chunk_size), expected), chunk_size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk_size", [64, 4096, "auto"])
def test_figures_of_a_network_of_matrices_are_the_same_to_rounding(kind, chunk_size):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 3)).double()
    close(error(network, kind=kind, chunk_size=chunk_size), error(network, kind=kind, chunk_size=None))


def test_the_metric_reads_the_same_in_every_run():
    values = []
    network = Net()
    for _ in range(3):  # the sizes of later runs are others
        metric = EquivarianceError(VECTORS, num_samples=SAMPLES)
        for seed in range(3):
            metric.update(network, normal(ROWS, 3, seed=seed))
        values.append(float(metric.compute()))
    assert len(set(values)) == 1


# ---- how many rows ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("chunk_size", "largest"), [(1, 96), (95, 96), (96, 96), (300, 288), (None, 96 * 37)])
def test_a_chunk_size_that_is_given_is_obeyed(chunk_size, largest):
    network = Net()
    error(network, chunk_size=chunk_size)
    assert max(network.rows) == network.rows[1] == largest
    assert sum(network.rows) == ROWS * (1 + SAMPLES)


def test_auto_is_the_default_everywhere():
    network = Net()
    error(network)
    assert len(network.rows) > 2
    assert sum(network.rows) == ROWS * (1 + SAMPLES)
    metric = EquivarianceError(VECTORS)
    assert metric.chunk_size == EquivarianceMonitor(VECTORS).metric.chunk_size == "auto"


def test_a_few_rows_go_in_one_call():
    network = Net()
    error(network, n=4, k=100)
    assert network.rows == [4, 400]
    error(network, n=513, k=1)
    assert network.rows[2:] == [513, 513]
    network.rows.clear()
    equivariance_error(network, normal(4, 2000, 3), VECTORS, num_samples=12)  # few rows, many numbers
    assert network.rows[:2] == [4, 16]


@pytest.mark.parametrize("faster", [True, False])
def test_the_rows_of_a_call_are_bounded(clocked, faster):
    """Also where more rows seem faster and faster."""
    network = Net()
    clocked(network, lambda rows: 1 / rows if faster else rows)
    for _ in range(3):
        error(network, n=64, k=400 if faster else 64)
    assert max(network.rows) == (4096 if faster else 512)
    assert network.rows[-2] == (4096 if faster else 64)
    huge = Net()
    error(huge, n=5000, k=4)
    assert huge.rows == [5000] * 5  # never fewer than the batch
    wide = Net()
    for _ in range(3):
        equivariance_error(wide, normal(8, 2**15, 3), VECTORS, num_samples=8, generator=seeded())
    assert max(wide.rows) <= 2**22 // (3 * 2**15)


def test_the_edges_of_graphs_are_counted():
    sizes = []

    def network(pos: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        sizes.append(edge_index.shape[1])
        i, j = edge_index
        return pos + torch.zeros_like(pos).index_add(0, i, (pos[j] - pos[i]).tanh())

    def read(edges: int, chunk_size: Any) -> Tensor:
        batch = torch.arange(3).repeat_interleave(4)
        i, j = torch.randint(4, (2, edges), generator=seeded())
        start = 4 * torch.randint(3, (edges,), generator=seeded(1))
        args = (normal(12, 3), torch.stack([i + start, j + start]), batch)
        symmetry = Symmetry("SO(3)", {"pos": "1o"}, "1o", index="batch")
        return equivariance_error(network, args, symmetry, num_samples=4, generator=seeded(), chunk_size=chunk_size)

    close(read(3000, "auto"), read(3000, None))
    assert sizes == [3000] * 5 + [3000, 12000]  # 48 nodes altogether
    sizes.clear()
    read(100, "auto")
    assert sizes == [100, 400]


# ---- the search ------------------------------------------------------------------------------------------------------
def valley(best: int) -> Callable[[int], float]:
    """Seconds of a row, least at `best` rows in a call."""
    return lambda rows: 0.01 * (1 + 0.2 * abs(math.log2(rows / best)))


@pytest.mark.parametrize("best", [64, 256, 512, 1024, 4096])
def test_the_search_ends_at_the_fastest_size(clocked, best):
    network = Net()
    clocked(network, valley(best))
    for _ in range(12):
        error(network, n=64, k=64)
    network.rows.clear()
    error(network, n=64, k=64)
    assert network.rows == [64] + [best] * (4096 // best)


def test_the_search_costs_little(clocked):
    """The first call takes no more than an eighth above the fastest size."""
    network = Net()
    clock = clocked(network, valley(512))
    error(network, n=64, k=64)
    assert clock.now < 0.01 * 64 * (1.125 * 64 + 1.6)


def test_a_busy_moment_is_forgotten(clocked):
    network = Net()
    clock = clocked(network, valley(512))
    calls = iter(range(10**6))
    clock.seconds = lambda rows: (10 if next(calls) % 4 == 1 else 1) * valley(512)(rows)
    for _ in range(12):
        error(network, n=64, k=64)
    network.rows.clear()
    error(network, n=64, k=64)
    assert network.rows == [64] + [512] * 8


def test_a_busy_spell_is_made_up_for_in_later_calls(clocked):
    """The first sizes that were tried seem slow for no reason of their own."""
    network = Net()
    clock = clocked(network, valley(512))
    calls = iter(range(10**6))
    clock.seconds = lambda rows: (3 if next(calls) in (1, 2) else 1) * valley(512)(rows)
    for _ in range(12):
        error(network, n=64, k=64)
    network.rows.clear()
    error(network, n=64, k=64)
    assert network.rows == [64] + [512] * 8


def test_a_size_that_is_slow_is_tried_three_times(clocked):
    network = Net()
    clocked(network, lambda rows: 0.01 if rows <= 512 else 0.05)
    seen = []
    for _ in range(12):
        network.rows.clear()
        error(network, n=64, k=64)
        seen.append(network.rows.count(1024))
    assert sum(seen) == 3
    assert max(seen) == 1
    assert network.rows == [64] + [512] * 8


@pytest.mark.skipif(os.name != "posix", reason="the processor's time is too coarse")
def test_other_processes_do_not_lengthen_the_time_of_one_thread(clocked, monkeypatch):
    network = Net()
    clock = clocked(network, valley(512))
    wall = iter(range(10**6))
    monkeypatch.setattr(clock, "perf_counter", lambda: float(next(wall)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    for _ in range(12):
        error(network, n=64, k=64)
    assert network.rows[-8:] == [512] * 8
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # of which one cannot see the other's time
    for _ in range(12):
        error(network, n=64, k=64)
    assert network.rows[-1] == 4096


def test_brief_work_is_not_searched(clocked):
    network = Net()
    clocked(network, lambda rows: 1e-7)
    error(network, n=64, k=64)
    assert network.rows == [64, 512, 3584]
    network.rows.clear()
    error(network, n=64, k=64)
    assert network.rows == [64, 4096]


def test_other_shapes_and_threads_are_searched_anew(clocked):
    network, symmetry = Net(), Symmetry("SO(3)", "1o", "1o")
    clocked(network, valley(64))
    for x in (normal(64, 3), normal(64, 2, 3), normal(64, 3).float(), normal(128, 3)):
        network.rows.clear()
        for _ in range(12):
            equivariance_error(network, x, symmetry, num_samples=64)
        first, last = network.rows[1], network.rows[-1]
        assert first == 512
        assert last == len(x)
    records = chunks._learned[network]
    assert len(records) == 4
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        error(network, n=64, k=64)
    finally:
        torch.set_num_threads(threads)
    assert len(records) == 5


def test_several_processes_take_sizes_from_shapes_alone(clocked, monkeypatch):
    """A sharded network's calls are made together: one that is slow must not call it more often."""
    monkeypatch.setattr(chunks, "num_processes", lambda: 2)
    network = Net()
    clocked(network, valley(64))
    for _ in range(3):
        network.rows.clear()
        error(network, n=64, k=64)
        assert network.rows == [64] + [512] * 8
    assert network not in chunks._learned


# ---- what is remembered ----------------------------------------------------------------------------------------------
def test_what_was_learned_is_forgotten_with_the_network():
    network = Net()
    error(network)
    assert next(iter(chunks._learned[network].values())).seconds
    gc.collect()
    before, gone = len(chunks._learned), weakref.ref(network)
    del network
    gc.collect()
    assert gone() is None
    assert len(chunks._learned) == before - 1


def test_many_shapes_do_not_fill_the_memory():
    network = Net()
    records = [learned_of(network, key) for key in range(200)]
    assert len(chunks._learned[network]) == 64
    assert learned_of(network, 199) is records[199]


class Slotted:
    """A callable without weak references."""

    __slots__ = ()

    def __call__(self, x: Tensor) -> Tensor:
        return x * x.roll(1, -1) + 0.3 * x + 0.1


class Unhashable(Slotted):
    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("make", [Slotted, Unhashable, lambda: Net().forward, lambda: lambda x: Net()(x)])
def test_any_callable_is_measured(make):
    assert torch.equal(error(make()), error(Net(), chunk_size=None))


# ---- memory ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk_size", [None, "auto", 20 * ROWS])
def test_running_out_of_memory_halves_the_chunk(kind, chunk_size):
    network = Net(memory=2.5 * ROWS)
    assert torch.equal(error(network, kind=kind, chunk_size=chunk_size), error(Net(), kind=kind, chunk_size=None))
    done = [rows for rows in network.rows if rows <= network.memory]
    assert sum(done) == ROWS * (1 + SAMPLES)
    tried = [rows for rows in network.rows if rows > network.memory]
    assert tried
    assert all(b == a // ROWS // 2 * ROWS for a, b in pairwise(tried))


def test_auto_remembers_what_ran_out_of_memory():
    network = Net(memory=2.5 * ROWS)
    for _ in range(2):
        error(network)
    network.rows.clear()
    error(network)
    assert max(network.rows) <= network.memory


@pytest.mark.parametrize("chunk_size", [None, "auto", 1])
def test_one_repetition_that_runs_out_of_memory_says_what_to_do(chunk_size):
    network, calls = Net(), []

    def runs_out(x: Tensor) -> Tensor:
        calls.append(len(x))
        if len(calls) > 1:
            raise torch.OutOfMemoryError("tried to allocate much")
        return network(x)

    with pytest.raises(torch.OutOfMemoryError, match=r"a batch of fewer inputs.*tried to allocate much") as caught:
        error(runs_out, chunk_size=chunk_size)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert calls[-1] == ROWS


def test_nothing_holds_the_memory_of_the_call_that_failed():
    held: list[Any] = []

    def work(start: int, stop: int) -> int:
        assert not [r for r in held if r() is not None]
        large = torch.zeros(3)
        held.append(weakref.ref(large))
        if stop - start > 1:
            raise torch.OutOfMemoryError("much")
        return stop

    gc.disable()
    try:
        assert in_chunks(4, Sizes(4), work) == [1, 2, 3, 4]
    finally:
        gc.enable()
    assert len(held) == 6


class Gpu:
    """The books of a GPU of so many bytes, of which each repetition takes some."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, total: int, held: int = 0, peak: int = 0) -> None:
        self.total, self.held, self.asked, self.peak = total, held, 0, max(held, peak)
        monkeypatch.setattr(chunks, "allocations", lambda device: (self.held, self.asked, self.peak))
        monkeypatch.setattr(chunks, "total_memory", lambda device: self.total)

    def take(self, size: int) -> None:
        self.asked += size
        self.peak = max(self.peak, self.held + size)
        if self.held + size > self.total:
            raise torch.OutOfMemoryError("much")


@pytest.mark.parametrize("peak", [0, 900])
def test_on_a_gpu_the_chunks_grow_into_a_quarter_of_the_free_memory(monkeypatch, peak):
    """Also after a training whose peak was higher."""
    gpu = Gpu(monkeypatch, total=1000, held=200, peak=peak)
    sizes = FreeSizes(10**6, torch.device("cuda"), Learned())
    taken: list[int] = []

    def work(start: int, stop: int) -> None:
        taken.append(stop - start)
        gpu.take(10 * (stop - start))

    in_chunks(100, sizes, work)
    assert taken == [1, 20, 20, 20, 20, 19]
    taken.clear()
    in_chunks(45, FreeSizes(8, torch.device("cuda"), sizes.learned), work)
    assert taken == [8] * 5 + [5]


def test_on_a_gpu_that_others_use_the_chunks_are_halved(monkeypatch):
    gpu = Gpu(monkeypatch, total=1000)
    sizes = FreeSizes(10**6, torch.device("cuda"), Learned())
    taken: list[int] = []

    def work(start: int, stop: int) -> tuple[int, int]:
        gpu.total = 70  # of which the books know nothing
        try:
            gpu.take(10 * (stop - start))
        finally:
            gpu.total = 1000
        taken.append(stop - start)
        return start, stop

    found = in_chunks(40, sizes, work)
    assert [a for a, _ in found] == [0, *(b for _, b in found[:-1])]
    assert found[-1][1] == 40
    assert taken == [1, *[6] * 6, 3]
    assert sizes.learned.limit == 6


def test_a_gpu_is_not_timed(monkeypatch):
    """Where nothing is known of the memory, sizes come from shapes alone."""
    monkeypatch.setattr(chunks, "time", None)
    network = Net()
    with pytest.raises(AttributeError):
        error(network)
    inputs = VECTORS.bind(network, (normal(ROWS, 3),)).inputs
    for device, kind in (("meta", Sizes), ("cuda", FreeSizes), ("cpu", TimedSizes)):
        there: Any = SimpleNamespace(device=torch.device(device))
        f_x = replace(inputs, tensors=tuple(replace(t, x=there) for t in inputs.tensors))
        assert type(chunks.chunk_sizes("auto", network, inputs, f_x, 64)) is kind


class Waits(TorchDispatchMode):
    """Remembers the operations that make the host wait for an accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(word in str(func) for word in ("_local_scalar_dense", "nonzero", "aten.equal", "_to_copy.cpu")):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk_size", ["auto", None, 200])
def test_nothing_waits_for_the_device(kind, chunk_size):
    network = Net(memory=1000)
    with Waits() as waits:
        for _ in range(2):
            error(network, kind=kind, chunk_size=chunk_size)
    assert waits.found == []
    assert len(network.rows) > 4


# ---- what goes wrong -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("chunk_size", ["auto", None, 200])
def test_an_exception_of_the_network_comes_through_once(chunk_size):
    calls = []

    def network(x: Tensor) -> Tensor:
        calls.append(len(x))
        if len(calls) > 1:
            raise RuntimeError("out of luck")
        return x

    with pytest.raises(RuntimeError, match="out of luck"):
        error(network, chunk_size=chunk_size)
    assert len(calls) == 2


@pytest.mark.parametrize("chunk_size", ["auto", None, 200])
def test_a_network_that_changes_its_inputs_is_caught(chunk_size):
    masses = torch.ones(5, dtype=torch.float64)

    def network(x: Tensor, shared: Tensor) -> Tensor:
        if len(x) > ROWS:
            shared.add_(1)  # only in the calls that are chunks
        return x + shared.sum()

    symmetry = Symmetry("SO(3)", ("1o", Invariant(shared=True)), "1o")
    with pytest.raises(ValueError, match=r"changes '1' of its `inputs` in place"):
        equivariance_error(network, (normal(ROWS, 3), masses), symmetry, num_samples=SAMPLES, chunk_size=chunk_size)


@pytest.mark.parametrize(
    ("chunk_size", "kind", "message"),
    [
        ("large", ValueError, "expected chunk_size to be \"auto\", a whole number of inputs or None, got 'large'"),
        (0, ValueError, "expected chunk_size to be a whole number of at least 1 or None, got 0"),
        (2.5, TypeError, "expected chunk_size to be a whole number"),
    ],
)
def test_a_chunk_size_that_is_none_is_refused(chunk_size, kind, message):
    for refuse in (
        lambda: error(Net(), chunk_size=chunk_size),
        lambda: EquivarianceError(VECTORS, chunk_size=chunk_size),
        lambda: EquivarianceMonitor(VECTORS, chunk_size=chunk_size),
    ):
        with pytest.raises(kind, match=message):
            refuse()
