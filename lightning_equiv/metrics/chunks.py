"""How many repetitions of the inputs go into one call of a measured network.

Folding all K samples into one batch leaves the cache, a loop over them pays for every call: which size lies between
depends on the network and the machine. On a CPU the sizes are timed while they do the work itself, on a GPU, where
timing would wait for the device, they grow into the memory that is free. What was learned is remembered with the
network.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lightning_equiv._checks import check_number
from lightning_equiv.symmetry.call import BoundTree
from lightning_equiv.wiring.ranks import num_processes

ChunkSize = int | Literal["auto"] | None

_TINY = 512, 2**14  # rows, and numbers of the largest tensor: all at once
_FIRST = 512, 2**17  # about where a CPU's search begins
_MOST = {"cpu": (2**12, 2**22), "cuda": (2**16, 2**30)}
_MOST_ELSEWHERE = 2**12, 2**22  # where nothing is known of the memory
_BRIEF = 0.003  # seconds of work that are not worth a search
_TRIES = 5  # of a size, since a single timing may meet a busy moment
_SLOW, _TRIES_OF_SLOW = 1.5, 3  # a size that takes so many times the least is tried less, once a measurement
_ALIKE = 0.97  # of times: the larger size is taken, for short timings have the more luck
_THREAD_TIME = os.name == "posix"  # of the processor, which other processes do not lengthen; coarse elsewhere
_SHARE = 0.25  # of the free memory
_MOST_KEYS = 64  # remembered for a network, whose batches may all differ

T = TypeVar("T")


def check_chunk_size(chunk_size: Any) -> None:
    """Raise unless it is "auto", a whole number of at least 1, or None.

    Raises:
        TypeError: a number that is not whole, or something else.
        ValueError: a number below 1, or another word.

    Examples:
        >>> check_chunk_size("auto")
        >>> check_chunk_size("large")
        Traceback (most recent call last):
        ValueError: expected chunk_size to be "auto", a whole number of inputs or None, got 'large'
    """
    if isinstance(chunk_size, str):
        if chunk_size != "auto":
            raise ValueError(f'expected chunk_size to be "auto", a whole number of inputs or None, got {chunk_size!r}')
        return
    check_number("chunk_size", chunk_size, least=1, whole=True, optional=True)


@dataclass
class Learned:
    """What is known of a network's calls of one kind; sizes are repetitions of the inputs.

    Attributes:
        seconds: size -> the least time of a repetition that was seen.
        tries: size -> how often it was timed.
        bytes: at most so many for a repetition; 0 before the first.
        limit: sizes above ran out of memory.
    """

    seconds: dict[int, float] = field(default_factory=dict)
    tries: dict[int, int] = field(default_factory=dict)
    bytes: int = 0
    limit: int | None = None


_learned: WeakKeyDictionary[Callable[..., Any], dict[Any, Learned]] = WeakKeyDictionary()


def learned_of(network: Callable[..., Any], key: Any) -> Learned:
    """What is known of such a call of the network, forgotten with it; a fresh record where it cannot be remembered."""
    try:
        records = _learned.setdefault(network, {})
    except TypeError:  # it takes no weak reference or is not hashable
        return Learned()
    if key not in records and len(records) >= _MOST_KEYS:
        records.pop(next(iter(records)), None)
    return records.setdefault(key, Learned())


@dataclass
class Sizes:
    """The sizes of chunks, in repetitions of the inputs: the largest one that is allowed.

    Attributes:
        most: none is larger.
    """

    most: int

    def next(self, left: int) -> int:
        """The size of the next chunk, where so many repetitions are left to do."""
        return min(self.most, left)

    @contextmanager
    def watching(self, size: int) -> Iterator[None]:
        """Learn from a chunk of this size, which is worked on inside."""
        yield

    def ran_out_of_memory(self, size: int) -> None:
        """Never take such a size again."""
        self.most = size // 2


@dataclass
class TimedSizes(Sizes):
    """Sizes for a CPU: powers of two, towards less time for a repetition.

    From a first size the search goes to the half and the double of the best one so far, until each of the three was
    timed five times; one that is clearly slow is tried three times, in as many measurements. No more than half of what
    is left to do is put into a trial.

    Attributes:
        first: where the search begins.
        learned: what is known and will be.
        tried: sizes that were timed in this measurement.
    """

    first: int
    learned: Learned
    tried: set[int] = field(default_factory=set)

    def next(self, left: int) -> int:
        seconds, tries = self.learned.seconds.copy(), self.learned.tries  # a copy, for other threads write into it
        if not seconds:
            return _power_of_two(min(self.first, self.most, left))
        least = min(seconds.values())
        best = max(size for size, second in seconds.items() if second * _ALIKE <= least)
        if seconds[best] * left < _BRIEF:
            return min(self.most, left)
        trials = {}
        for size in (best // 2, best, best * 2):
            slow = seconds.get(size, 0) >= _SLOW * least
            open_ = tries.get(size, 0) < (_TRIES_OF_SLOW if slow else _TRIES) and not (slow and size in self.tried)
            if 1 <= size <= self.most and open_ and (2 * size <= left or size == left):
                trials[size] = tries.get(size, 0)
        if trials:
            return min(trials, key=lambda size: trials[size])
        return min(best, self.most, left)

    @contextmanager
    def watching(self, size: int) -> Iterator[None]:
        tried = self.learned.tries.get(size, 0)
        if tried >= _TRIES or size != _power_of_two(size):  # known, or a remainder
            yield
            return
        clock = time.thread_time if _THREAD_TIME and torch.get_num_threads() == 1 else time.perf_counter
        start = clock()
        yield
        second = (clock() - start) / size
        self.learned.seconds[size] = min(second, self.learned.seconds.get(size, second))
        self.learned.tries[size] = tried + 1
        self.tried.add(size)

    def ran_out_of_memory(self, size: int) -> None:
        self.most = self.learned.limit = size // 2


@dataclass
class FreeSizes(Sizes):
    """Sizes for a GPU: what a quarter of its free memory holds, from the largest need that was seen.

    The first chunk is one repetition. Its need is read from the allocator's books, so that nothing waits for the
    device; memory that other processes hold is not in them, and running out of it halves the chunk.

    Attributes:
        device: the GPU.
        learned: what is known and will be.
    """

    device: torch.device
    learned: Learned

    def next(self, left: int) -> int:
        if not self.learned.bytes:
            return 1
        held, _, _ = allocations(self.device)
        fitting = int(_SHARE * (total_memory(self.device) - held)) // self.learned.bytes
        return max(1, min(self.most, left, fitting))

    @contextmanager
    def watching(self, size: int) -> Iterator[None]:
        held, before, _ = allocations(self.device)
        yield
        _, after, peak = allocations(self.device)
        need = min(after - before, peak - held)  # either is at least what was held at a time
        self.learned.bytes = max(1, self.learned.bytes, need // size)

    def ran_out_of_memory(self, size: int) -> None:
        self.most = self.learned.limit = size // 2


def allocations(device: torch.device) -> tuple[int, int, int]:
    """Bytes that are held now, that were ever asked for, and that were held at most; nothing waits for the device."""
    stats = torch.cuda.memory_stats(device)
    held, asked, peak = (stats.get(f"allocated_bytes.all.{what}", 0) for what in ("current", "allocated", "peak"))
    return held, asked, peak


def total_memory(device: torch.device) -> int:
    """Bytes of a GPU."""
    total: int = torch.cuda.get_device_properties(device).total_memory
    return total


def chunk_sizes(
    chunk_size: ChunkSize, network: Callable[..., Any], inputs: BoundTree, f_x: BoundTree, total: int
) -> Sizes:
    """The sizes of a measurement's chunks.

    Several processes take sizes from shapes alone: a sharded network's calls are made together, so that all must make
    equally many.

    Args:
        chunk_size: most inputs in one call, None for all of them, or "auto".
        network: that is called.
        inputs: of its call.
        f_x: its output.
        total: K, how many repetitions there are to do.
    """
    n = inputs.inputs.num
    if chunk_size != "auto":
        return Sizes(total if chunk_size is None else max(1, chunk_size // n))
    size = rows, numbers = _rows_and_numbers(inputs)
    if total <= min(_TINY[0] // rows, _TINY[1] // numbers):
        return Sizes(total)
    devices = [t.x.device for t in (*f_x.tensors, *inputs.tensors)]
    device = next((d for d in devices if d.type != "cpu"), devices[0])
    most, first = _fitting(_MOST.get(device.type, _MOST_ELSEWHERE), size), _fitting(_FIRST, size)
    if num_processes() > 1 or device.type not in _MOST:
        return Sizes(first if device.type == "cpu" else _fitting(_MOST_ELSEWHERE, size))
    shapes = tuple((t.path, t.x.dtype, t.x.shape[1:]) for t in inputs.tensors if not (t.shared or t.points_at))
    settings = device, torch.get_num_threads(), torch.is_grad_enabled()
    # a batch of graphs has other numbers of nodes and edges than the last one
    learned = learned_of(network, (shapes, n.bit_length(), rows.bit_length(), settings))
    most = most if learned.limit is None else max(1, min(most, learned.limit))
    if device.type == "cuda":
        return FreeSizes(most, device, learned)
    return TimedSizes(most, _power_of_two(first), learned)


def in_chunks(total: int, sizes: Sizes, work: Callable[[int, int], T]) -> list[T]:
    """work(start, stop) for 0 ... total, in order and in chunks; where memory runs out, in smaller ones.

    Args:
        total: how many repetitions.
        sizes: of the chunks.
        work: what is done with those from `start` to `stop`; again from the same `start` after it ran out of memory.

    Raises:
        torch.OutOfMemoryError: one repetition is too much.

    Examples:
        >>> in_chunks(5, Sizes(2), lambda start, stop: (start, stop))
        [(0, 2), (2, 4), (4, 5)]
    """
    found: list[T] = []
    start = 0
    while start < total:
        size = sizes.next(total - start)
        enough = True
        try:
            with sizes.watching(size):
                found.append(work(start, start + size))
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise torch.OutOfMemoryError(
                    "out of memory while f(g x) was compared with g f(x) for one group element an input, the smallest "
                    f"chunk there is: measure a batch of fewer inputs. Torch's words were: {error}"
                ) from error
            enough = False
        if enough:
            start += size
        else:  # here nothing holds the memory of the call that failed
            sizes.ran_out_of_memory(size)
    return found


def _rows_and_numbers(inputs: BoundTree) -> tuple[int, int]:
    """Of one repetition: rows (inputs, nodes or edges, whichever are most), and numbers of the largest tensor."""
    moved: list[Tensor] = [t.x for t in inputs.tensors if not t.shared]
    counts = [len(rows) for rows in (inputs.inputs.node, inputs.inputs.edge) if rows is not None]
    return max(1, inputs.inputs.num, *counts), max(1, *(x.numel() for x in moved))


def _fitting(most: tuple[int, int], size: tuple[int, int]) -> int:
    """How many repetitions are within most rows and numbers; one always is."""
    return max(1, min(m // s for m, s in zip(most, size, strict=True)))


def _power_of_two(size: int) -> int:
    """The largest one that is not above."""
    return 1 << (size.bit_length() - 1)
