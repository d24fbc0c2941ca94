"""P1, sets: a strict network that starts on the wrong side of a barrier, and what relaxing it brings.

    python examples/benchmarks/relaxation/sets.py             twenty minutes of a free core; goes on where it stopped
    python examples/benchmarks/relaxation/sets.py --tables    only the tables, from the lines that are there

    f(x) = sum_k a_k sum_j act(alpha_k x_j + beta_k sum_i x_i + b_k) + c        invariant to permutations of the inputs

Student and teacher have this form. Teacher: alpha in [1, 1.5], beta in [-.3, 0], a = 1, b = 0, standardised. Start of
the student: alpha normal ("random") or minus its size ("wrong"; once half of it; "mirrored": with -a), beta 0.1 normal,
a = 1/sqrt(k n), b = c = 0; gradient flow of the strict network cannot cross alpha = 0. Free is the same network with a
dense matrix added to both of its maps, which start at noise of 0.3, and 0.3 a ("absolute": 0.3). Controls: tanh, for
which the mirrored start is the right one; act(z) = z, a deep linear network; and the cyclic group (circulant matrices
with normal rows in place of alpha_k I + beta_k 11^T, of teacher and student).

Adam at 1e-2, cosine to 0, 2500 steps, 256 samples (512 for n >= 8), new in every seed; solved: a mean squared error
below 0.01 on 2048 others. Arms, each of the same number of steps:

    strict; restarts: two of half the steps, the lower training loss kept
    triangle: theta to 1 and back to 0 at 60 % of the run, then dropped; penalty on its norm (.003, .03 in one cell)
    free: for the whole run; drop, nearest, relabel, across: free for half the run, then strict from what projection
    leaves: without the branch; of the sum, averaged; after relabelling each orbit's neurons; after relabelling them all
    block-normalised: strict, the steps of (alpha_k), (beta_k), (a_k) divided by their length, at three times the rate
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
from examples.benchmarks.relaxation.common import Cosine, Lines, Parameters, arguments, finite, losses, train
from examples.benchmarks.relaxation.relabelling import (
    assign_orbits,
    orbit_rows,
    project,
    project_circulant,
    relabel,
    relabel_circulant,
)

STEPS, SEEDS, RATE, NOISE = 2500, 64, 1e-2, 0.3
PENALTIES = (0.0, 0.003, 0.03)
BRANCH = ("W1", "W2")
Data = tuple[Tensor, Tensor]


def cells() -> list[dict[str, Any]]:
    """What is run with all arms each, the important ones first."""
    standard = {"control": "", "n": 8, "k": 1, "start": "wrong", "rate": RATE, "size": 1.0, "noise": "relative"}
    changes: list[dict[str, Any]] = [{}, {"control": "tanh"}, {"n": 5}, {"n": 12}]
    changes += [{"control": "tanh", "start": "mirrored"}]
    changes += [{"control": control, "n": 5, "start": "random"} for control in ("linear", "cyclic", "cyclic linear")]
    changes += [{"n": 5, "start": "random"}, {"rate": 3e-2}, {"rate": 3e-3}]
    changes += [{"n": 5, "k": 3, "start": start} for start in ("random", "wrong")]
    changes += [{"k": 3, "start": "wrong"}, {"start": "random"}, {"size": 0.5}, {"k": 3, "start": "random"}]
    changes += [{"n": 5, "k": 2, "start": start} for start in ("random", "wrong")]
    changes += [{"k": 2, "start": start} for start in ("random", "wrong")]
    changes += [{"n": n, "noise": "absolute"} for n in (5, 8, 12)] + [{"n": 12, "start": "random"}]
    changes += [{"n": n, "start": "random", "noise": "absolute"} for n in (5, 8)]
    changes += [{"control": "tanh", "n": 5}, {"control": "cyclic", "start": "random"}]
    changes += [{"n": 12, "k": k, "start": start} for k in (2, 3) for start in ("random", "wrong")]
    found = [{**standard, **change} for change in changes]
    return [cell for i, cell in enumerate(found) if cell not in found[:i]]


def hidden(p: Parameters, n: int) -> Tensor:
    """Strict incoming weights (S, k, n, n), of invariant or circulant layers."""
    if "u" in p:
        j = torch.arange(n)
        return p["u"][..., (j - j[:, None]) % n]
    return p["alpha"][..., None, None] * torch.eye(n) + p["beta"][..., None, None]


def build(p: Parameters, theta: float = 1.0, *, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """W with the biases (S, k n, n + 1), a (S, k n), c (S,); the branch, where there is one, times theta."""
    W, a = hidden(p, n).flatten(1, 2), p["a"].repeat_interleave(n, 1)
    if "W1" in p and theta != 0:
        W, a = W + theta * p["W1"], a + theta * p["W2"]
    b = p["b"].repeat_interleave(n, 1)[..., None]
    return torch.cat([W, b], 2), a, p["c"]


def start_of(cell: dict[str, Any], seeds: int, generator: torch.Generator) -> Parameters:
    def normal(*shape: int) -> Tensor:
        return torch.randn(seeds, *shape, generator=generator)

    n, k = cell["n"], cell["k"]
    p = {"a": torch.full((seeds, k), (k * n) ** -0.5), "b": torch.zeros(seeds, k), "c": torch.zeros(seeds)}
    if cell["control"].startswith("cyclic"):
        return {"u": normal(k, n) / n**0.5, **p}
    alpha = cell["size"] * normal(k)
    if cell["start"] != "random":
        alpha = -alpha.abs()
    if cell["start"] == "mirrored":
        p["a"] = -p["a"]
    return {"alpha": alpha, "beta": 0.1 * normal(k), **p}


def problem(cell: dict[str, Any], seeds: int, activation: str) -> tuple[Data, Data, Data]:
    """Training, validation and test data of the teachers: x with a row of ones (S, n + 1, B), y (S, B)."""
    n, k = cell["n"], cell["k"]
    generator = torch.Generator().manual_seed(1000 * n + k)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(seeds, *shape, generator=generator)

    teacher = {"a": torch.ones(seeds, k), "b": torch.zeros(seeds, k), "c": torch.zeros(seeds)}
    if cell["control"].startswith("cyclic"):
        teacher["u"] = torch.randn(seeds, k, n, generator=generator) / n**0.5
    else:
        teacher |= {"alpha": uniform(1.0, 1.5, k), "beta": uniform(-0.3, 0.0, k)}
    x, y = [], []
    for size in (512 if n >= 8 else 256, 1024, 2048):
        inputs = torch.randn(seeds, n, size, generator=generator)
        x.append(torch.cat([inputs, torch.ones(seeds, 1, size)], 1))
        W, a, c = build(teacher, n=n)
        act = {"relu": torch.relu, "tanh": torch.tanh, "identity": torch.clone}[activation]
        y.append((a[:, None] @ act(W @ x[-1]))[:, 0] + c[:, None])
    mean, scale = y[2].mean(1, keepdim=True), y[2].std(1, keepdim=True)
    train_set, validation, test = ((x_i, (y_i - mean) / scale) for x_i, y_i in zip(x, y, strict=True))
    return train_set, validation, test


def projected(p: Parameters, kind: str, n: int) -> Parameters:
    """The strict parameters that a projection takes from free ones."""
    strict = {name: value.clone() for name, value in p.items() if name not in BRANCH}
    if kind == "drop":
        return strict
    (S, k), circulant = p["a"].shape, "u" in p
    W_all, a_all, _ = (value.double().numpy() for value in build(p, n=n))
    for s in range(S):
        W, a, b = W_all[s, :, :-1], a_all[s], W_all[s, :, -1]
        if kind == "across":
            neurons = torch.cat([torch.from_numpy(W_all[s]), torch.from_numpy(a)[:, None]], 1).numpy()
            order, _ = assign_orbits(neurons, k)
            rows = orbit_rows(neurons[order], n)
            W, b, a = rows[:, :n], rows[:, n], rows[:, n + 1]
        for o in range(k):
            part = slice(o * n, (o + 1) * n)
            orbit = W[part]
            if kind == "relabel":
                orbit = orbit[(relabel_circulant if circulant else relabel)(orbit)]
            if circulant:
                strict["u"][s, o] = torch.from_numpy(project_circulant(orbit))
            else:
                strict["alpha"][s, o], strict["beta"][s, o] = project(orbit)
            strict["a"][s, o], strict["b"][s, o] = a[part].mean(), b[part].mean()
    return strict


def run(cell: dict[str, Any], seeds: int, steps: int) -> dict[str, Any]:
    """Every arm's test and validation errors of every seed, and the losses on the way."""
    activation = {"tanh": "tanh", "linear": "identity"}.get(cell["control"].split(" ")[-1], "relu")
    n, k, half, rate = cell["n"], cell["k"], steps // 2, cell["rate"]
    data, validation, test = problem(cell, seeds, activation)
    generator = torch.Generator().manual_seed(7)
    p, second = start_of(cell, seeds, generator), start_of(cell, seeds, generator)
    N = n * k
    branch = {
        "W1": NOISE * torch.randn(seeds, N, n, generator=generator),
        "W2": NOISE * torch.randn(seeds, N, generator=generator) * (p["a"][0, 0] if cell["noise"] == "relative" else 1),
    }
    arms: dict[str, dict[str, Any]] = {}

    def loss(p: Parameters, theta: float = 1.0, on: Data = data) -> Tensor:
        return losses(lambda p, theta: build(p, theta, n=n), p, theta, on, activation)

    def finished(arm: str, p: Parameters, **logged: Tensor) -> None:
        arms[arm] = {
            "test": finite(loss(p, on=test)), "validation": finite(loss(p, on=validation)), "train": finite(loss(p)),
            **{name: finite(value) for name, value in logged.items()},
        }  # fmt: skip

    middle: list[Tensor] = []

    def watched(p: Parameters, step: int) -> Tensor:
        value = loss(p)
        if step == half:
            middle.append(value.detach())
        return value

    schedule = Cosine(rate, steps)
    finished("strict", train(p, watched, range(steps), schedule), middle=middle[0])
    normalised = train(p, watched, range(steps), Cosine(3 * rate, steps), blocks=("alpha", "beta", "u", "a"))
    finished("block-normalised", normalised, middle=middle[1])

    short = [train(q, lambda p, _: loss(p), range(half), Cosine(rate, half)) for q in (p, second)]
    better = loss(short[0]) <= loss(short[1])
    kept = {
        name: torch.where(better.view(-1, *[1] * (value.dim() - 1)), value, short[1][name])
        for name, value in short[0].items()
    }
    finished("restarts", kept)

    free = train({**p, **branch}, lambda p, _: loss(p), range(half), schedule)
    finished("free", train(free, lambda p, _: loss(p), range(half, steps), schedule), middle=loss(free))
    for kind in ("drop", "nearest", "relabel", *(["across"] if k > 1 and "u" not in p else [])):
        left = projected(free, kind, n)
        finished(
            kind, train(left, lambda p, _: loss(p), range(half, steps), schedule), middle=loss(free), after=loss(left)
        )

    for penalty in PENALTIES if cell == cells()[0] else PENALTIES[:1]:
        reached: dict[str, Tensor] = {}

        def relaxed(p: Parameters, step: int, penalty: float = penalty, reached: dict[str, Tensor] = reached) -> Tensor:
            theta = max(0.0, 1 - abs(step / steps / 0.3 - 1))
            value = loss(p, theta)
            if step == int(0.3 * steps):
                reached["middle"] = value.detach()
                reached["after"] = loss(p, 0.0).detach()
            if penalty and theta:
                size = p["W1"].square().sum((1, 2)).add(1e-12).sqrt() + p["W2"].square().sum(1).add(1e-12).sqrt()
                value = value + penalty * size
            return value

        q = train({**p, **branch}, relaxed, range(steps), schedule)
        finished(f"triangle {penalty:g}", {name: value for name, value in q.items() if name not in BRANCH}, **reached)
    return {**cell, "arms": arms}


def main() -> None:
    options = arguments(__doc__)
    fast = options.fast_dev_run
    path = options.out / f"relaxation_sets{'_fast' if fast else ''}.jsonl"
    if not options.tables:
        lines = Lines(path)
        todo = cells() if not fast else [c for c in cells() if c["n"] == 5 and c["k"] < 3 and c["start"] == "random"]
        for cell in lines.missing(todo):
            start = time.process_time()
            row = run(cell, *((4, 20) if fast else (SEEDS, STEPS)))
            lines.add({**row, "seconds": round(time.process_time() - start, 1)})
            shares = {arm: sum(v < 0.01 for v in found["test"]) for arm, found in row["arms"].items()}
            print(cell, f"{time.process_time() - start:.0f} s", shares, flush=True)
    tables.sets(path)


if __name__ == "__main__":
    main()
