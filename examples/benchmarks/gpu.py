"""What things take on a GPU: rotating irreps, measuring an error, a step of each strategy, other networks.

    python examples/benchmarks/gpu.py --device cuda --sizes small medium large --csv docs/results/benchmark_gpu.csv

Each row is compared with the one of its table and size that is named in "against". "copy" is `x.clone()`, the limit of
anything that reads and writes the features once. "arithmetic" is the network alone on inputs that were moved before, in
chunks of the size that was fastest. "plain" is the same module without a strategy. A network with REMUL stands beside
two that are equivariant by construction, e3nn's layers and, where it is installed, se3-transformer-pytorch.

On a GPU the time is that between two events on the stream, on a CPU that of one thread on the processor. The candidates
take turns; the times are medians of rounds, the ratios medians of the ratios within a round. MiB are what the allocator
held at most in one call beyond what it held before (GPU only).
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import e3nn
import lightning as L
import torch
from e3nn import o3
from torch import Tensor, nn

import lightning_equiv
from lightning_equiv import (
    RECM,
    REMUL,
    ConstraintRelaxation,
    GroupAugmentation,
    Invariant,
    Symmetry,
    SymmetryCallback,
    SymmetryCloning,
    equivariance_error,
)
from lightning_equiv.representations.wigner import rotate_irreps

sys.path.insert(0, str(Path(__file__).parents[1]))
from lightning_equiv.networks.e3nn_message_passing import E3nnMessagePassing
from lightning_equiv.networks.transformer import ParticleTransformer

IRREPS = "64x0e+64x1o+64x2e"
LARGEST_DENSE = 1024  # e3nn's dense matrix takes 1.4 GB at this size
NUM_SAMPLES, BODIES = 64, 5
MOVED = {"masses": Invariant(), "positions": "1o", "velocities": "1o"}
SYMMETRY = Symmetry("SO(3)", inputs=MOVED, outputs="1o", batch={**MOVED, "targets": "1o"})
LAYERS = "net.layers.*.update"
HEADER = ["table", "size", "what", "ms", "against", "ratio", "MiB", "device"]
Call = Callable[[], object]


class Size(NamedTuple):
    """Rows of irreps; inputs of a batch; blocks, channels and heads of the Transformer; features and layers of e3nn."""

    rows: tuple[int, ...]
    batch: int
    transformer: tuple[int, int, int]
    e3nn: tuple[str, int]


SIZES = {
    "small": Size((512, 4096), 32, (2, 64, 4), ("16x0e+16x1o", 2)),
    "medium": Size((4096, 65536), 64, (4, 128, 8), ("32x0e+32x1o", 4)),
    "large": Size((65536, 2**20), 256, (10, 384, 8), ("64x0e+64x1o", 4)),
}
FAST_DEV_RUN = Size((8,), 4, (1, 16, 2), ("2x0e+2x1o", 1))


class Bench:
    """Measures on one device, and keeps the rows of the tables."""

    def __init__(self, device: str, rounds: int, fast: bool) -> None:
        self.device, self.rounds, self.fast = torch.device(device), rounds, fast
        self.rows: list[list[str]] = []
        name = torch.cuda.get_device_name(self.device) if self.is_cuda else f"CPU, {torch.get_num_threads()} thread"
        self.name = name

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        torch._dynamo.reset()
        return torch.compile(function, backend="eager" if self.fast else "inductor", dynamic=False)

    def table(self, table: str, size: str, calls: dict[str, Call], against: dict[str, str] | str) -> None:
        """Time calls by turns; each one's ratio is to the call `against` names, the first one if it is a string."""
        times: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            for _ in range(3):  # warm up, compile, learn sizes of chunks
                call()
        memory = {name: self.mebibytes(call) for name, call in calls.items()}
        for _ in range(self.rounds):
            for name, call in calls.items():
                times[name].append(self.milliseconds(call))
        for name, found in times.items():
            other = against if isinstance(against, str) else against[name]
            ratio = statistics.median(a / b for a, b in zip(found, times[other], strict=True))
            self.row(table, size, name, f"{statistics.median(found):.4g}", other, f"{ratio:.2f}", memory[name])

    def row(self, *cells: str) -> None:
        self.rows.append([*cells, self.name])
        print(f"| {' | '.join(cells)} |", flush=True)

    def milliseconds(self, call: Call) -> float:
        if not self.is_cuda:
            start = time.thread_time()
            call()
            return 1000 * max(time.thread_time() - start, 1e-6)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)

    def mebibytes(self, call: Call) -> str:
        if not self.is_cuda:
            return ""
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return f"{(torch.cuda.max_memory_allocated() - before) / 2**20:.1f}"


# ---- irreps ----------------------------------------------------------------------------------------------------------
def by_block(matrix: Tensor, x: Tensor, irreps: o3.Irreps) -> Tensor:
    """Rotated with e3nn's matrices of each degree."""
    parts = [
        torch.einsum("bij,buj->bui", ir.D_from_matrix(matrix), x[:, part].unflatten(1, (mul, ir.dim))).flatten(1)
        for (mul, ir), part in zip(irreps, irreps.slices(), strict=True)
    ]
    return torch.cat(parts, 1)


def dense(matrix: Tensor, x: Tensor, irreps: o3.Irreps) -> Tensor:
    """Rotated with e3nn's matrix of the whole sum."""
    return torch.einsum("bij,bj->bi", irreps.D_from_matrix(matrix), x)


def rotations(bench: Bench, size: Size) -> None:
    irreps = o3.Irreps(IRREPS)
    for n in size.rows:
        exact, x = o3.rand_matrix(n, dtype=torch.float64).to(bench.device), torch.randn(n, irreps.dim).to(bench.device)
        ours, matrix = partial(rotate_irreps, irreps=IRREPS), exact.float()
        calls: dict[str, Call] = {
            "copy": x.clone,
            "ours": partial(ours, exact, x),
            "ours, compiled": partial(bench.compiled(ours), exact, x),
            "e3nn, by block": partial(by_block, matrix, x, irreps),
        }
        if n <= LARGEST_DENSE:
            calls["e3nn, dense"] = partial(dense, matrix, x, irreps)
        expected = rotate_irreps(exact, x, IRREPS)
        for name, call in calls.items():  # a mean: e3nn's angles are inexact in float32 near the poles
            if name != "copy" and (error := float((call() - expected).square().mean().sqrt())) > 1e-3:
                raise RuntimeError(f"{name} is {error:.1e} from what was expected at N = {n}")
        del expected
        bench.table("rotating irreps", f"N = {n}", calls, "copy")


# ---- networks --------------------------------------------------------------------------------------------------------
class CompleteE3nn(E3nnMessagePassing):
    """Message passing between all bodies, so that nothing looks for neighbours."""

    def forward(self, masses: Tensor, positions: Tensor, velocities: Tensor) -> Tensor:
        systems, bodies = masses.shape
        others = torch.arange(bodies - 1, device=masses.device) + 1
        j = (torch.arange(bodies, device=masses.device)[:, None] + others) % bodies
        j = (j + bodies * torch.arange(systems, device=masses.device)[:, None, None]).flatten(0, 1)
        x, v, q = positions.flatten(0, 1), velocities.flatten(0, 1), masses.flatten()[:, None]
        h = self.embed(torch.cat([q, v.square().sum(-1, keepdim=True), v], dim=-1))
        features = h[:, : self.num_scalars], h[:, self.num_scalars :].unflatten(-1, (-1, 3))
        for layer in self.layers:
            edges, towards = self.edges(x[:, None] - x[j], q[:, None] * q[j])
            *features, shift = layer(*features, j, edges, towards, 3**0.5 * v)
            x = x + shift
        return x.view_as(positions)


class Regression(L.LightningModule):
    """The training that a user has already."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Tensor:
        return nn.functional.mse_loss(self.net(*inputs_of(batch)), batch["targets"])


def inputs_of(batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return tuple(batch[key] for key in MOVED)


def bodies(n: int, device: torch.device) -> dict[str, Tensor]:
    shapes = {"masses": (n, BODIES), **dict.fromkeys(("positions", "velocities", "targets"), (n, BODIES, 3))}
    return {key: torch.randn(shape, device=device) for key, shape in shapes.items()}


def transformer(size: Size) -> nn.Module:
    torch.manual_seed(0)
    return ParticleTransformer(*size.transformer)


def message_passing(size: Size) -> nn.Module:
    torch.manual_seed(0)
    return CompleteE3nn(*size.e3nn, num_neighbours=BODIES - 1)


# ---- measuring -------------------------------------------------------------------------------------------------------
@torch.no_grad()
def measuring(bench: Bench, size: Size) -> None:
    for name, network in (("Transformer", transformer(size)), ("e3nn", message_passing(size))):
        network = network.to(bench.device).eval()
        x, n, k = inputs_of(bodies(size.batch, bench.device)), size.batch, 4 if bench.fast else NUM_SAMPLES
        call, g = SYMMETRY.bind(network, x), SYMMETRY.group.sample(k * n, device=bench.device)

        def moved(times: int, x: Any = x, call: Any = call, g: Any = g, n: int = n, k: int = k) -> list[Any]:
            return [x, *(call.move(g[i * n : (i + times) * n], times)[0] for i in range(0, k, times))]

        def arithmetic(chunks: list[Any], network: nn.Module = network) -> None:
            for args in chunks:
                network(*args)

        def ours(chunk_size: Any, network: nn.Module = network, x: Any = x, k: int = k) -> Tensor:
            return equivariance_error(network, x, SYMMETRY, num_samples=k, chunk_size=chunk_size)

        chunks = {times: moved(times) for times in (1, k // 8, k // 2, k) if times}
        speeds = {
            times: min(bench.milliseconds(partial(arithmetic, c)) for _ in range(3)) for times, c in chunks.items()
        }
        best = chunks[min(speeds, key=lambda times: speeds[times])]
        calls: dict[str, Call] = {
            "arithmetic": partial(arithmetic, best),
            'ours, chunk_size="auto"': partial(ours, "auto"),
            "ours, chunk_size=None": partial(ours, None),
        }
        bench.table(f"error of {name}, K = {k}", f"{n} inputs", calls, "arithmetic")


# ---- training --------------------------------------------------------------------------------------------------------
def step_of(bench: Bench, net: nn.Module, strategy: SymmetryCallback | None, batch: dict[str, Tensor]) -> Call:
    """One optimizer step of a hand-written loop; the weights stay where they are."""
    module = Regression(net).to(bench.device)
    if strategy is not None:
        strategy.attach(module)
    if isinstance(strategy, SymmetryCloning):
        strategy.teach(module)
    if isinstance(strategy, ConstraintRelaxation):
        strategy.relax(0.1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    count = 0

    def step() -> None:
        nonlocal count
        if strategy is not None and not isinstance(strategy, ConstraintRelaxation):
            strategy.update(count, 10**6)
        count += 1
        optimizer.zero_grad()
        module.training_step(batch).backward()
        optimizer.step()

    return step


def strategies(bench: Bench, size: Size) -> None:
    batch, shapes = bodies(size.batch, bench.device), [(BODIES,), (BODIES, 3), (BODIES, 3)]
    cloning = partial(
        SymmetryCloning, symmetry=SYMMETRY, inputs=shapes, steps=1, on_failure="warn", mode="break", weight=0.1
    )
    tables: dict[str, tuple[Callable[[Size], nn.Module], dict[str, SymmetryCallback | None]]] = {
        "Transformer": (
            transformer,
            {
                "plain": None,
                "GroupAugmentation": GroupAugmentation(SYMMETRY),
                "REMUL": REMUL(SYMMETRY, "net", target="targets"),
                "REMUL, 4 samples": REMUL(SYMMETRY, "net", target="targets", num_samples=4),
                "REMUL, gradnorm": REMUL(SYMMETRY, "net", target="targets", balance="gradnorm"),
                "SymmetryCloning": cloning(message_passing(size), "net"),
            },
        ),
        "e3nn": (
            message_passing,
            {
                "plain": None,
                "ConstraintRelaxation": ConstraintRelaxation(SYMMETRY, LAYERS, "net"),
                "RECM": RECM(SYMMETRY, LAYERS, "net", target="targets"),
            },
        ),
    }
    for name, (make, found) in tables.items():
        calls = {way: step_of(bench, make(size), strategy, batch) for way, strategy in found.items()}
        bench.table(f"step of {name}", f"{size.batch} inputs", calls, "plain")
        for strategy in filter(None, found.values()):
            strategy.detach()


def networks(bench: Bench, size: Size) -> None:
    batch, remul = bodies(size.batch, bench.device), REMUL(SYMMETRY, "net", target="targets")
    name = "Transformer with REMUL"
    nets: dict[str, nn.Module] = {name: transformer(size), "e3nn": message_passing(size)}
    if importlib.util.find_spec("se3_transformer_pytorch"):
        from lightning_equiv.networks.se3_peer import SE3TransformerPeer

        nets["se3-transformer-pytorch"] = SE3TransformerPeer()
    else:
        print("se3-transformer-pytorch is not installed: left out")
    calls = {way: step_of(bench, net, remul if way == name else None, batch) for way, net in nets.items()}
    sizes = {way: f"{way}, {sum(p.numel() for p in net.parameters()):,} parameters" for way, net in nets.items()}
    bench.table("step", f"{size.batch} inputs", {sizes[way]: call for way, call in calls.items()}, sizes[name])
    remul.detach()

    def inference(net: nn.Module) -> None:
        with torch.no_grad():
            net(*inputs_of(batch))

    calls = {sizes[way]: partial(inference, net.eval()) for way, net in nets.items()}
    bench.table("inference", f"{size.batch} inputs", calls, sizes[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["small"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--csv", type=Path, help="also write the table to this file")
    parser.add_argument("--fast-dev-run", action="store_true", help="one tiny size, two rounds, nothing is compiled")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", message=r"torch\.jit")
    warnings.filterwarnings("ignore", message=".*SymmetryCloning.*")  # one step clones nothing
    bench = Bench(options.device, 2 if options.fast_dev_run else options.rounds, options.fast_dev_run)
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}, e3nn {e3nn.__version__}"
    print(f"{bench.name}, {versions}, lightning_equiv {lightning_equiv.__version__}\n")
    print(f"| {' | '.join(HEADER[:-1])} |\n|{'---|' * (len(HEADER) - 1)}")
    for size in [FAST_DEV_RUN] if options.fast_dev_run else [SIZES[name] for name in options.sizes]:
        for part in (rotations, measuring, strategies, networks):
            part(bench, size)
    if options.csv is not None:
        with options.csv.open("w", newline="") as file:
            csv.writer(file).writerows([HEADER, *bench.rows])
        print(f"written: {options.csv}")


if __name__ == "__main__":
    main()
