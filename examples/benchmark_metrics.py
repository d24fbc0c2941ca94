"""How fast the equivariance error is measured: against a plain loop over the group elements, and against e3nn's helper.

    python examples/benchmark_metrics.py --csv metrics.csv

Ours folds K rotations of every input into one batch. The loop runs the network once for each of the K and moves with
the same code; both read the same numbers. e3nn.util.test.equivariance_error turns the whole batch by one rotation in
each of K trials, runs f(x) again in every trial and keeps the largest entry; it wants irreps, so it is asked for the
e3nn layer only. One thread; times are medians of rounds in which the candidates take turns.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from e3nn import o3
from e3nn.util.test import equivariance_error as e3nn_equivariance_error
from torch import Tensor, nn

from lightning_equiv import Symmetry, equivariance_error

IRREPS = "16x0e+8x1o+4x2e"


class MLP(nn.Sequential):
    """Vectors of five bodies, flattened and back."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Flatten(), nn.Linear(15, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 15),
            nn.Unflatten(1, (5, 3)),
        )  # fmt: skip


class Transformer(nn.Module):
    """Five bodies as five tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.into, self.out = nn.Linear(3, width), nn.Linear(width, 3)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.blocks(self.into(x)))


class TensorProduct(nn.Module):
    """An input times itself, in all ways that keep the symmetry."""

    def __init__(self) -> None:
        super().__init__()
        self.product = o3.FullyConnectedTensorProduct(IRREPS, IRREPS, IRREPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, x)


@torch.no_grad()
def looped(network: nn.Module, x: Tensor, symmetry: Symmetry, num_samples: int, generator: torch.Generator) -> Tensor:
    """The same number, one forward pass for each draw."""
    f_x = network(x)
    square = torch.zeros(len(x))
    elements = symmetry.group.sample(num_samples * len(x), generator=generator)
    for k in range(num_samples):
        g = elements[k * len(x) : (k + 1) * len(x)]
        (gx,), _ = symmetry.move_inputs(g, (x,))
        d = network(gx) - symmetry.move_outputs(g, f_x)
        square += d.square().flatten(1).sum(-1)
    return (square / num_samples / f_x.square().flatten(1).sum(-1)).sqrt()


def milliseconds(calls: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median time of each call; they take turns, so that a busy moment meets them all."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + 2):
        for call, seen in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if turn >= 2:  # the first two warm up
                seen.append(1000 * (time.perf_counter() - start))
    return [statistics.median(seen) for seen in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--samples", type=int, default=16, help="K, group elements for each input")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--csv", type=Path, help="also write the table to this file")
    parser.add_argument("--fast-dev-run", action="store_true", help="small sizes, two rounds")
    args = parser.parse_args()
    if args.fast_dev_run:
        args.batch, args.samples, args.rounds = 4, 2, 2
    torch.set_num_threads(1)
    torch.manual_seed(0)

    bodies = Symmetry("SO(3)", inputs="1o", outputs="1o")
    cases = {
        "MLP, width 128": (MLP(128), bodies, torch.randn(args.batch, 5, 3)),
        "Transformer, 2 blocks of 64": (Transformer(64), bodies, torch.randn(args.batch, 5, 3)),
        f"e3nn product {IRREPS}": (
            TensorProduct(),
            Symmetry("SO(3)", inputs=IRREPS, outputs=IRREPS),
            torch.randn(args.batch, o3.Irreps(IRREPS).dim),
        ),
    }
    header = ["network", "batch", "K", "forward ms", "ours ms", "loop ms", "loop/ours", "e3nn ms", "e3nn/ours"]
    rows = []
    for name, (network, symmetry, x) in cases.items():
        network.eval()

        def ours(seed: int = 0, network=network, symmetry=symmetry, x=x) -> Tensor:
            generator = torch.Generator().manual_seed(seed)
            return equivariance_error(network, x, symmetry, num_samples=args.samples, generator=generator)

        def loop(seed: int = 0, network=network, symmetry=symmetry, x=x) -> Tensor:
            return looped(network, x, symmetry, args.samples, torch.Generator().manual_seed(seed))

        def theirs(network=network, x=x) -> object:
            return e3nn_equivariance_error(network, [x], [IRREPS], [IRREPS], ntrials=args.samples, do_parity=False)

        @torch.no_grad()
        def forward(network=network, x=x) -> Tensor:
            return network(x)

        torch.testing.assert_close(ours(), loop(), rtol=1e-4, atol=1e-5)
        with_e3nn = name.startswith("e3nn")
        times = milliseconds([forward, ours, loop, *([theirs] if with_e3nn else [])], args.rounds)
        row = [name, str(args.batch), str(args.samples), f"{times[0]:.2f}", f"{times[1]:.2f}", f"{times[2]:.2f}"]
        row += [f"{times[2] / times[1]:.2f}"]
        row += [f"{times[3]:.2f}", f"{times[3] / times[1]:.2f}"] if with_e3nn else ["", ""]
        rows.append(row)

    print(f"equivariance error, float32, {torch.get_num_threads()} thread, torch {torch.__version__}")
    widths = [max(len(r[i]) for r in [header, *rows]) + 2 for i in range(len(header))]
    for row in [header, *rows]:
        print(row[0].ljust(widths[0]) + "".join(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)))
    if args.csv is not None:
        with args.csv.open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])


if __name__ == "__main__":
    main()
