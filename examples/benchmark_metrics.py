"""How fast the equivariance error is measured: against the bare arithmetic of its forward passes.

    python examples/benchmark_metrics.py --csv docs/results/benchmark_metrics.csv

The arithmetic is the network alone on inputs that were moved before: n for f(x) and K n for f(g x), in chunks of the
size n 2^k that was fastest for this network. Ours moves the inputs, runs the network as often, moves the outputs and
takes the norms; chunk_size="auto" is the default, chunk_size=None folds all K n into one call. The loop runs the
network once for each of the K and moves with the same code. e3nn.util.test.equivariance_error turns the whole batch by
one rotation in each of K trials, runs f(x) again in every trial and keeps the largest entry; it wants irreps, so it is
asked for the e3nn layer only. One thread, whose time on the processor counts, which other programs do not lengthen;
medians of rounds in which the candidates take turns, the ratios medians of the ratios within a round; "first" is ours
where nothing is known of the network yet. MiB are what a call needs at most beyond what the process held (Linux only).
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from e3nn import o3
from e3nn.util.test import equivariance_error as e3nn_equivariance_error
from torch import Tensor, nn

from lightning_equiv import Symmetry, equivariance_error
from lightning_equiv.networks.egnn import EGNN

IRREPS = "16x0e+8x1o+4x2e"
MOST_SECONDS = 40  # for one network, in more than five rounds


class MLP(nn.Sequential):
    """Vectors of five bodies, flattened and back."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Flatten(), nn.Linear(15, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 15),
            nn.Unflatten(1, (5, 3)),
        )  # fmt: skip


class Transformer(nn.Module):
    """Five bodies as five tokens."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.into, self.out = nn.Linear(3, width), nn.Linear(width, 3)
        self.blocks = nn.TransformerEncoder(layer, blocks, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.blocks(self.into(x)))


class TensorProduct(nn.Module):
    """An input times itself, in all ways that keep the symmetry."""

    def __init__(self) -> None:
        super().__init__()
        self.product = o3.FullyConnectedTensorProduct(IRREPS, IRREPS, IRREPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, x)


class GraphNetwork(EGNN):
    """EGNN on graphs whose edges are given, as many from each node."""

    def forward(self, pos: Tensor, velocity: Tensor, charge: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        j = edge_index[1].view(len(pos), -1)
        products = charge[:, None] * charge[j]
        h = self.embed(torch.cat([charge, velocity.square().sum(-1, keepdim=True)], dim=-1))
        x, v = pos, velocity
        for layer in self.layers:
            h, x, v = layer(h, x, v, j, products)
        return x


def graphs(num: int, nodes: int, neighbours: int) -> tuple[Tensor, ...]:
    """Arguments of `GraphNetwork`: each node sends to others of its graph that are drawn."""
    others = torch.rand(num * nodes, nodes).argsort(-1)[:, :neighbours]
    i = torch.arange(num * nodes)
    edge_index = torch.stack([i.repeat_interleave(neighbours), (others + i[:, None] // nodes * nodes).flatten()])
    pos, velocity, charge = (torch.randn(num * nodes, d) for d in (3, 3, 1))
    return pos, velocity, charge, edge_index, i // nodes


class Case(NamedTuple):
    """A network, the arguments of its call and how they move; K group elements for each input."""

    name: str
    network: nn.Module
    args: tuple[Tensor, ...]
    symmetry: Symmetry
    num_samples: int
    num_inputs: int
    e3nn: bool = False


def cases(small: bool) -> list[Case]:
    """What is measured."""
    n, k, many = (4, 2, 4) if small else (64, 16, 64)
    num, nodes, neighbours = (2, 4, 2) if small else (64, 50, 20)
    bodies, irreps = Symmetry("SO(3)", "1o", "1o"), Symmetry("SO(3)", IRREPS, IRREPS)
    graph = {"pos": "1o", "velocity": "1o", "charge": "0e"}
    x = torch.randn(n, 5, 3)
    return [
        Case("MLP, width 128", MLP(128), (x,), bodies, k, n),
        Case("Transformer, 2 blocks of 64", Transformer(64, 2), (x,), bodies, k, n),
        Case("MLP, width 1024", MLP(64 if small else 1024), (x,), bodies, many, n),
        Case("Transformer, 4 blocks of 128", Transformer(*(64, 1) if small else (128, 4)), (x,), bodies, many, n),
        Case(f"e3nn product {IRREPS}", TensorProduct(), (torch.randn(n, o3.Irreps(IRREPS).dim),), irreps, k, n, True),
        Case(
            f"EGNN, {nodes} nodes, {nodes * neighbours} edges",
            GraphNetwork(32, 2),
            graphs(num, nodes, neighbours),
            Symmetry("SO(3)", graph, "1o", index="batch"),
            k,
            num,
        ),
    ]


@torch.no_grad()
def looped(case: Case, seed: int) -> Tensor:
    """The same number, one forward pass for each draw."""
    network, x, symmetry, n, k = case.network, case.args, case.symmetry, case.num_inputs, case.num_samples
    elements = symmetry.group.sample(k * n, generator=torch.Generator().manual_seed(seed))
    call = symmetry.bind(network, x)
    f_x = network(*x)
    owner = torch.arange(n) if len(f_x) == n else x[-1]  # the graph of each node

    def squares(y: Tensor) -> Tensor:
        return torch.zeros(n).index_add(0, owner, y.square().flatten(1).sum(-1))

    total = torch.zeros(n)
    for i in range(k):
        g = elements[i * n : (i + 1) * n]
        args, _ = call.move(g)
        total += squares(network(*args) - call.move_output(g, f_x))
    return (total / k / squares(f_x)).sqrt()


@torch.no_grad()
def moved(case: Case, times: int) -> list[tuple[Tensor, ...]]:
    """The inputs K times over in chunks of `times`, moved, and the inputs as they are."""
    n, call = case.num_inputs, case.symmetry.bind(case.network, case.args)
    elements = case.symmetry.group.sample(case.num_samples * n, generator=torch.Generator().manual_seed(0))
    chunks = [elements[i : i + times * n] for i in range(0, len(elements), times * n)]
    return [case.args, *(call.move(g, len(g) // n)[0] for g in chunks)]


@torch.no_grad()
def forwards(network: nn.Module, chunks: list[tuple[Tensor, ...]]) -> None:
    """The bare arithmetic."""
    for args in chunks:
        network(*args)


def seconds(call: Callable[[], object]) -> float:
    """Time of one call on the processor."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


def memory(call: Callable[[], object]) -> str:
    """MiB that the process grows by at most in one call; "" where the system does not tell."""

    def status(name: str) -> int:
        return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith(name))

    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held
        before = status("VmRSS")
    except OSError:
        return ""
    call()
    return f"{max(0, status('VmHWM') - before) / 1024:.0f}"


def fastest(case: Case, tries: int) -> int:
    """The number of repetitions 2^k in a chunk whose arithmetic takes the least time."""
    sizes = [2**i for i in range(case.num_samples.bit_length())]
    chunks = {times: moved(case, times) for times in sizes}
    found = {times: [] for times in sizes}
    for _ in range(tries):
        for times in sizes:
            found[times].append(seconds(lambda times=times: forwards(case.network, chunks[times])))
    return min(sizes, key=lambda times: min(found[times]))


def measured(case: Case, rounds: int) -> list[str]:
    """A row of the table."""
    n, network = case.num_inputs, case.network
    network.eval()

    def ours(chunk_size: Any) -> Tensor:
        options = {"num_samples": case.num_samples, "chunk_size": chunk_size}
        generator = torch.Generator().manual_seed(0)
        return equivariance_error(network, case.args, case.symmetry, generator=generator, **options)

    best = fastest(case, 3)
    chunks = moved(case, best)
    calls: dict[str, Callable[[], object]] = {
        "arithmetic": lambda: forwards(network, chunks),
        "ours": lambda: ours("auto"),
        "folded": lambda: ours(None),
        "loop": lambda: looped(case, 0),
    }
    if case.e3nn:
        irreps, k = [IRREPS], case.num_samples
        calls["e3nn"] = lambda: e3nn_equivariance_error(
            network, list(case.args), irreps, irreps, ntrials=k, do_parity=False
        )
    first = seconds(calls["ours"])  # nothing is known of the network: sizes are tried
    torch.testing.assert_close(ours("auto"), looped(case, 0), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(ours("auto"), ours(None), rtol=1e-4, atol=1e-6)
    once = sum(seconds(call) for call in calls.values())
    rounds = max(min(rounds, 5), min(rounds, int(MOST_SECONDS / once)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 2):
        for name, call in calls.items():  # they take turns, so that a busy moment meets them all
            second = seconds(call)
            if turn >= 2:  # the first two warm up
                times[name].append(second)

    def ratio(a: str, b: str) -> str:
        return f"{statistics.median(x / y for x, y in zip(times[a], times[b], strict=True)):.2f}"

    arithmetic = statistics.median(times["arithmetic"])
    return [
        case.name,
        str(sum(parameter.numel() for parameter in network.parameters())),
        str(case.num_samples),
        str((case.num_samples + 1) * n),
        str(best * n),
        f"{1000 * arithmetic:.2f}",
        ratio("ours", "arithmetic"),
        f"{first / arithmetic:.2f}",
        ratio("folded", "arithmetic"),
        ratio("loop", "arithmetic"),
        ratio("e3nn", "ours") if case.e3nn else "",
        *(memory(calls[name]) for name in ("ours", "folded", "loop")),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="most rounds; fewer where they take long, but five")
    parser.add_argument("--only", default="", help="networks whose name has this in it")
    parser.add_argument("--csv", type=Path, help="also write the table to this file")
    parser.add_argument("--fast-dev-run", action="store_true", help="small sizes, two rounds")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    header = ["network", "parameters", "K", "rows", "best chunk", "arithmetic ms", "ours/arithmetic"]
    header += ["first/arithmetic", "folded/arithmetic", "loop/arithmetic", "e3nn/ours"]
    header += ["ours MiB", "folded MiB", "loop MiB"]
    rounds = 2 if args.fast_dev_run else args.rounds
    rows = [measured(case, rounds) for case in cases(args.fast_dev_run) if args.only in case.name]

    print(f"equivariance error, float32, {torch.get_num_threads()} thread, torch {torch.__version__}")
    widths = [max(len(r[i]) for r in [header, *rows]) + 2 for i in range(len(header))]
    for row in [header, *rows]:
        print(row[0].ljust(widths[0]) + "".join(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)))
    if args.csv is not None:
        with args.csv.open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
        print(f"written: {args.csv}")


if __name__ == "__main__":
    main()
