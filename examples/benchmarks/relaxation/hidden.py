"""P3, wrong hidden representation: a strict network that cannot represent its teacher, and what relaxing it finds.

    python examples/benchmarks/relaxation/hidden.py             about five minutes of a free core
    python examples/benchmarks/relaxation/hidden.py --tables    only the tables, from the lines that are there

    f(x) = sum_k a_k sum_{g in G / H_k} relu(w_k . g x + b_k) + c       w_k fixed by H_k, a subgroup of G

C_4 on R^4 and S_3 on R^3, by permutations. Teacher: 1 or 2 regular orbits (H = 1), w normal, b 0.3 normal, a = 1,
standardised. Students are twice as wide: (a) orbits of a proper quotient alone (C_4/C_2, S_3/S_2), (b) half of the
width each, (c) regular orbits. Adam at 1e-2, cosine to 0, 3000 steps, 512 samples; solved: a mean squared error below
0.01 on 2048 others. Arms: strict; restarts; free (the ordinary network of that width, for the whole run); free for half
the run, then strict from: drop, the start's weights as trained beside the branch; nearest, averaged over the start's
orbits; choice, the orbits of any type that `orbits.py` finds in the same width. It searches once more at the end.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))
import torch
from torch import Tensor

from examples.benchmarks.relaxation import tables
from examples.benchmarks.relaxation.common import Cosine, Lines, Parameters, arguments, finite, losses, train
from examples.benchmarks.relaxation.orbits import Group, cyclic, is_linear, search, symmetric_3

STEPS, SEEDS, RATE, NOISE, SAMPLES = 3000, 64, 1e-2, 0.3, 512
GROUPS = {"C4": cyclic(4), "S3": symmetric_3()}
STUDENTS = ("quotient", "half", "regular")


class Orbits:
    """Strict networks whose orbits may differ from seed to seed: every orbit is summed over all of G, over |H|."""

    def __init__(self, group: Group, kinds: list[list[str]]) -> None:
        self.matrices = torch.as_tensor(group.matrices, dtype=torch.float32)
        self.P = torch.stack([torch.stack([as_float(group.projection(k)) for k in row]) for row in kinds])
        self.stabiliser = torch.tensor([[len(group.subgroups[k]) for k in row] for row in kinds], dtype=torch.float32)

    def build(self, p: Parameters, theta: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        w = (self.P @ p["w"][..., None])[..., 0]  # fixed by the stabiliser
        W = torch.einsum("gij,skj->skgi", self.matrices, w)
        b = p["b"][..., None, None].expand(*W.shape[:3], 1)
        a = (p["a"] / self.stabiliser)[..., None].expand(W.shape[:3])
        return torch.cat([W, b], 3).flatten(1, 2), a.flatten(1), p["c"]


def as_float(matrix: Any) -> Tensor:
    return torch.as_tensor(matrix, dtype=torch.float32)


def as_double(values: Tensor) -> Any:
    return values.double().numpy()


def kinds_of(student: str, group: Group, width: int) -> list[str]:
    """Orbit types of a student."""
    quotient = next(kind for kind in group.subgroups if "/" in kind)
    regular = {"quotient": 0, "half": width // 2, "regular": width}[student] // group.order
    return [quotient] * ((width - regular * group.order) // group.width(quotient)) + ["regular"] * regular


def found_parameters(group: Group, W: Tensor, a: Tensor, c: Tensor, width: int) -> tuple[Orbits, Parameters, list[Any]]:
    """Strict networks of the orbits that the search finds in the free ones, and which they are."""
    searched = [search(group, W[s].double().numpy(), a[s].double().numpy(), width) for s in range(len(W))]
    rows = []
    for found in searched:
        row = []
        for orbit in found.orbits:
            amplitude = orbit.a * len(group.subgroups[orbit.kind])
            row.append((orbit.kind, orbit.d * abs(amplitude) ** 0.5, amplitude / abs(amplitude) ** 0.5))
        if is_linear(found.linear, sum(abs(o.a) for o in found.orbits)):
            row += [("trivial", found.linear, 1.0), ("trivial", -found.linear, -1.0)]
            found.linear = found.linear * 0
        rows.append(row)
    slots, n = max(1, *map(len, rows)), W.shape[2] - 1
    kinds = [[o[0] for o in row] + ["trivial"] * (slots - len(row)) for row in rows]
    p = {"w": torch.zeros(len(W), slots, n), "b": torch.zeros(len(W), slots), "a": torch.zeros(len(W), slots)}
    for s, row in enumerate(rows):
        for k, (_, d, amplitude) in enumerate(row):
            p["w"][s, k], p["b"][s, k], p["a"][s, k] = as_float(d[:-1]), float(d[-1]), float(amplitude)
    p["c"] = c + torch.tensor([float(found.linear[-1]) for found in searched])
    return Orbits(group, kinds), p, searched


def run(cell: dict[str, Any], seeds: int, steps: int) -> dict[str, Any]:
    """Errors of every arm and seed, and the orbit types that were found."""
    group, k, half = GROUPS[cell["group"]], cell["k"], steps // 2
    n, width = group.matrices.shape[1], 2 * k * group.order
    generator = torch.Generator().manual_seed(100 * n + k)

    def normal(*shape: int) -> Tensor:
        return torch.randn(seeds, *shape, generator=generator)

    teacher = {"w": normal(k, n), "b": 0.3 * normal(k), "a": torch.ones(seeds, k), "c": torch.zeros(seeds)}
    sets = []
    for size in (SAMPLES, 2048):
        x = torch.cat([normal(n, size), torch.ones(seeds, 1, size)], 1)
        W, a, _ = Orbits(group, [["regular"] * k] * seeds).build(teacher)
        sets.append((x, (a[:, None] @ torch.relu(W @ x))[:, 0]))
    mean, scale = sets[1][1].mean(1, keepdim=True), sets[1][1].std(1, keepdim=True)
    data, test = ((x, (y - mean) / scale) for x, y in sets)

    kinds = kinds_of(cell["student"], group, width)
    strict = Orbits(group, [kinds] * seeds)
    rows = [slot * group.order + g for slot, kind in enumerate(kinds) for g in group.representatives(kind)]
    places = [slot for slot, kind in enumerate(kinds) for _ in group.representatives(kind)]

    def start() -> Parameters:
        a = torch.full((seeds, len(kinds)), width**-0.5)
        return {"w": normal(len(kinds), n) / n**0.5, "b": 0 * a, "a": a, "c": torch.zeros(seeds)}

    p, second = start(), start()
    branch = {"W1": NOISE * normal(width, n + 1) / n**0.5, "W2": NOISE * normal(width) * width**-0.5}

    def relaxed(p: Parameters, theta: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """One neuron for each coset, and the branch."""
        W, _, c = strict.build(p)
        return W[:, rows] + p["W1"], p["a"][:, places] + p["W2"], c

    arms: dict[str, dict[str, Any]] = {}
    schedule = Cosine(RATE, steps)

    def trained(build: Any, p: Parameters, part: range, schedule: Cosine = schedule) -> Parameters:
        return train(p, lambda p, _: losses(build, p, 0.0, data, "relu"), part, schedule)

    def loss(build: Any, p: Parameters) -> Tensor:
        return losses(build, p, 0.0, data, "relu").detach()

    def finished(arm: str, build: Any, p: Parameters, **logged: Tensor) -> None:
        arms[arm] = {"test": finite(losses(build, p, 0.0, test, "relu")), "train": finite(loss(build, p))}
        arms[arm] |= {name: finite(value) for name, value in logged.items()}

    finished("strict", strict.build, trained(strict.build, p, range(steps)))
    short = [trained(strict.build, q, range(half), Cosine(RATE, half)) for q in (p, second)]
    better = loss(strict.build, short[0]) <= loss(strict.build, short[1])
    kept = {
        name: torch.where(better.view(-1, *[1] * (value.dim() - 1)), value, short[1][name])
        for name, value in short[0].items()
    }
    finished("restarts", strict.build, kept)

    free = trained(relaxed, {**p, **branch}, range(half))
    middle = loss(relaxed, free)
    finished("free", relaxed, trained(relaxed, free, range(half, steps)), middle=middle)
    dropped = {name: value for name, value in free.items() if name not in branch}
    W, a, c = relaxed(free)
    nearest = {**dropped, "w": torch.zeros_like(p["w"])}
    for slot, kind in enumerate(kinds):
        inside = [i for i, place in enumerate(places) if place == slot]
        back = strict.matrices[group.representatives(kind)]
        nearest["w"][:, slot] = torch.einsum("gji,sgj->si", back, W[:, inside, :n]) / len(inside)
        nearest["b"][:, slot], nearest["a"][:, slot] = W[:, inside, n].mean(1), a[:, inside].mean(1)
    chosen, q, searched = found_parameters(group, W, a, c, width)
    for arm, layers, left in (
        ("drop", strict, dropped),
        ("nearest", strict, nearest),
        ("choice", chosen, q),
    ):
        after, q = loss(layers.build, left), trained(layers.build, left, range(half, steps))
        finished(arm, layers.build, q, middle=middle, after=after)
    # Once more at the end of the last arm, "choice": one neuron of each orbit stands for it.
    W, a, _ = chosen.build({**q, "a": q["a"] * group.order})
    at_end = [
        search(group, *neurons, width)
        for neurons in zip(*(as_double(v[:, :: group.order]) for v in (W, a)), strict=True)
    ]
    return {
        **cell, "width": width, "arms": arms,
        "types": [found.types(group) for found in searched],
        "cost": [round(float(found.cost), 4) for found in searched],
        "types at the end": [found.types(group) for found in at_end],
    }  # fmt: skip


def main() -> None:
    options = arguments(__doc__)
    fast = options.fast_dev_run
    path = options.out / f"relaxation_hidden{'_fast' if fast else ''}.jsonl"
    if not options.tables:
        lines = Lines(path)
        cells = [
            {"group": g, "k": k, "student": s} for k in ((1,) if fast else (1, 2)) for g in GROUPS for s in STUDENTS
        ]
        for cell in lines.missing(cells):
            start = time.process_time()
            row = run(cell, *((3, 20) if fast else (SEEDS, STEPS)))
            lines.add({**row, "seconds": round(time.process_time() - start, 1)})
            shares = {arm: sum(v < 0.01 for v in found["test"]) for arm, found in row["arms"].items()}
            ends = Counter(str({t: c for t, c in found.items() if c}) for found in row["types at the end"])
            print(cell, f"{time.process_time() - start:.0f} s", shares, ends.most_common(3), flush=True)
    tables.hidden(path)


if __name__ == "__main__":
    main()
