"""P2, optimizer against relaxation: the largest eigenvalue of the second moments of 16 points, SO(3)-invariant.

    python examples/benchmarks/relaxation/eigenvalue.py             about five minutes of a free core
    python examples/benchmarks/relaxation/eigenvalue.py --tables    only the tables, from the lines that are there

The toy of Manolache and Niepert (arXiv 2609.08381) in outline: Gaussian points as 16 vector channels; three layers of m
scalars and m vectors; 8192 / 512 / 2048 clouds, new in every seed; 1000 steps, cosine to 0. Here minibatches of 256 in
place of full batches, and weights N(0, 1 / fan_in), biases 0.

    v' = V v,   s <- SiLU(A [s, |v'|] + b),   v <- v' * sigmoid(G s + d);       prediction r s + c

Relaxed: a dense matrix D from all inputs of a layer (scalars and components) to all outputs of its linear maps, times
theta, which goes to 1 at 30 % and back to 0 at 60 % of the run; D starts at 0. Block-normalised Adam: the steps of each
of V, A, G, r and D divided by their largest singular value. Four rates an arm over two decades, three times as large
where normalised; the rate with the best mean validation error is taken.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))
import torch
from torch import Tensor

from examples.benchmarks.relaxation import tables
from examples.benchmarks.relaxation.common import Cosine, Lines, Parameters, arguments, finite, train

POINTS, LAYERS, BATCH, STEPS, SEEDS = 16, 3, 256, 1000, 8
SIZES = (8192, 512, 2048)
RATES = tuple(10 ** (-3 + 2 * i / 3) for i in range(4))
ARMS = {  # relaxed, normalised
    "Adam": (False, False),
    "block-normalised Adam": (False, True),
    "relaxed, Adam": (True, False),
    "relaxed, block-normalised Adam": (True, True),
}


def start_of(m: int, relaxed: bool, seeds: int) -> Parameters:
    """Parameters of all seeds; those of a seed are the same in every arm."""
    generator = torch.Generator().manual_seed(m)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(seeds, rows, columns, generator=generator) / columns**0.5

    p: Parameters = {}
    for layer in range(LAYERS):
        scalars, vectors = (0, POINTS) if layer == 0 else (m, m)
        p[f"V{layer}"], p[f"A{layer}"] = matrix(m, vectors), matrix(m, scalars + m)
        p[f"G{layer}"] = matrix(m, m)
        p[f"b{layer}"], p[f"d{layer}"] = torch.zeros(seeds, m), torch.zeros(seeds, m)
        if relaxed:
            p[f"D{layer}"] = torch.zeros(seeds, 4 * m, scalars + 3 * vectors)
    return {**p, "r": matrix(1, m), "c": torch.zeros(seeds, 1)}


def predicted(p: Parameters, x: Tensor, theta: float = 0.0) -> Tensor:
    """(S, B) of points (S, 16, 3, B)."""
    S, _, _, B = x.shape
    v, s = x, x.new_zeros(S, 0, B)
    for layer in range(LAYERS):
        mixed = (p[f"V{layer}"] @ v.flatten(2)).unflatten(2, (3, B))
        m = mixed.shape[1]
        added: Tensor | float = 0.0
        if theta:
            dense = theta * (p[f"D{layer}"] @ torch.cat([s, v.flatten(1, 2)], 1))
            added, mixed = dense[:, :m], mixed + dense[:, m:].unflatten(1, (m, 3))
        norms = mixed.square().sum(2).add(1e-6).sqrt()
        s = torch.nn.functional.silu(p[f"A{layer}"] @ torch.cat([s, norms], 1) + p[f"b{layer}"][..., None] + added)
        v = mixed * torch.sigmoid(p[f"G{layer}"] @ s + p[f"d{layer}"][..., None])[:, :, None]
    return (p["r"] @ s)[:, 0] + p["c"]


def clouds(seeds: int, sizes: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """Points (seeds, N, 16, 3) and standardised largest eigenvalues (seeds, N) of each set."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(seeds, sum(sizes), POINTS, 3, generator=generator)
    y = torch.linalg.eigvalsh(x.mT @ x / POINTS)[..., -1]
    y = (y - y.mean()) / y.std()
    return list(zip(x.split(sizes, 1), y.split(sizes, 1), strict=True))


def error(p: Parameters, data: tuple[Tensor, Tensor], copies: int) -> Tensor:
    """Mean squared error of the strict network, each run (S,)."""
    x, y = (part.repeat(copies, *[1] * (part.dim() - 1)) for part in data)
    return (predicted(p, x.permute(0, 2, 3, 1)) - y).square().mean(1)


def run(arm: str, m: int, seeds: int, steps: int, sizes: tuple[int, ...]) -> dict[str, Any]:
    """All rates and seeds of an arm at once: S = rates * seeds."""
    relaxed, normalised = ARMS[arm]
    data, validation, test = clouds(seeds, sizes)
    copies = len(RATES)
    p = {name: value.repeat(copies, *[1] * (value.dim() - 1)) for name, value in start_of(m, relaxed, seeds).items()}
    rates = torch.tensor(RATES).repeat_interleave(seeds) * (3 if normalised else 1)
    generator = torch.Generator().manual_seed(1)
    per_epoch, order = max(1, sizes[0] // BATCH), torch.empty(0)
    rows = torch.arange(seeds)[:, None]
    middle: list[Tensor] = []

    def loss(p: Parameters, step: int) -> Tensor:
        nonlocal order
        if step % per_epoch == 0:
            order = torch.rand(seeds, sizes[0], generator=generator).argsort(1)
        picked = order[:, step % per_epoch * BATCH :][:, :BATCH]
        x, y = data[0][rows, picked].permute(0, 2, 3, 1), data[1][rows, picked]
        theta = max(0.0, 1 - abs(step / steps / 0.3 - 1)) if relaxed else 0.0
        value = (predicted(p, x.repeat(copies, 1, 1, 1), theta) - y.repeat(copies, 1)).square().mean(1)
        if int(0.25 * steps) <= step < int(0.3 * steps):
            middle.append(value.detach())
        return value

    blocks = [name for name in p if name[0] in "VAGrD"] if normalised else []
    q = train(p, loss, range(steps), Cosine(rates, steps), blocks)
    found = {
        "test": error(q, test, copies),
        "validation": error(q, validation, copies),
        "train": error(q, data, copies),
    }
    found["middle"] = torch.stack(middle).mean(0) if middle else found["train"]
    return {name: [finite(v) for v in value.detach().view(copies, seeds)] for name, value in found.items()}


def main() -> None:
    options = arguments(__doc__)
    fast = options.fast_dev_run
    path = options.out / f"relaxation_eigenvalue{'_fast' if fast else ''}.jsonl"
    if not options.tables:
        lines = Lines(path)
        for cell in lines.missing([{"width": m, "arm": arm} for m in ((4,) if fast else (16, 32)) for arm in ARMS]):
            size = (2, 10, (512, 32, 32)) if fast else (SEEDS, STEPS, SIZES)
            start = time.process_time()
            found = run(cell["arm"], cell["width"], *size)
            scale = 3 if ARMS[cell["arm"]][1] else 1
            seconds = round(time.process_time() - start, 1)
            lines.add({**cell, "rates": [float(f"{scale * r:.3g}") for r in RATES], **found, "seconds": seconds})
            print(cell, seconds, "s", [f"{sum(v) / len(v):.3f}" for v in found["validation"]], flush=True)
    tables.eigenvalue(path)


if __name__ == "__main__":
    main()
