"""P1 again, by the strategy itself: `ConstraintRelaxation` on layers of a user's, in the place of arms written out.

    python examples/benchmarks/relaxation/sets_callback.py             twelve minutes of a free core
    python examples/benchmarks/relaxation/sets_callback.py --tables    only the table, from the lines that are there

The networks, data, starts and steps are those of `sets.py`, n = 8, k = 1, the wrong start; 64 networks stand side by
side in one module, each by itself. The first weights of the branches are the strategy's, of several sizes.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))
import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from examples.benchmarks.relaxation.common import Lines, arguments, finite, mcnemar, paired, read, wilson
from examples.benchmarks.relaxation.sets import RATE, SEEDS, STEPS, Data, cells, problem, start_of
from lightning_equiv import ConstraintRelaxation

LAYERS = {"nets.*.0": ("Permuted(-1)", "Permuted(-1)"), "nets.*.2": ("Permuted(-1)", "Invariant()")}


class Mixing(nn.Module):
    """alpha x_i + beta sum_j x_j + b: the maps from n numbers to n numbers that commute with S_n."""

    def __init__(self, n: int, alpha: float, beta: float) -> None:
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.tensor(alpha)), nn.Parameter(torch.tensor(beta))
        self.b = nn.Parameter(torch.zeros(()))
        self.in_features = self.out_features = n

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * x + self.beta * x.sum(-1, keepdim=True) + self.b


class Sum(nn.Module):
    """a sum_i h_i + c."""

    def __init__(self, n: int, a: float) -> None:
        super().__init__()
        self.a, self.c = nn.Parameter(torch.tensor(a)), nn.Parameter(torch.zeros(()))
        self.in_features, self.out_features = n, 1

    def forward(self, h: Tensor) -> Tensor:
        return self.a * h.sum(-1, keepdim=True) + self.c


class Networks(L.LightningModule):
    """The networks of all seeds; their losses are added, so that they never meet."""

    def __init__(self, cell: dict[str, Any], seeds: int) -> None:
        super().__init__()
        p = start_of(cell, seeds, torch.Generator().manual_seed(7))
        starts = zip(*(p[name][:, 0].tolist() for name in ("alpha", "beta", "a")), strict=True)
        n = cell["n"]
        self.nets = nn.ModuleList(
            nn.Sequential(Mixing(n, alpha, beta), nn.ReLU(), Sum(n, a)) for alpha, beta, a in starts
        )

    def losses(self, data: Data) -> Tensor:
        x, y = data  # (seeds, n + 1, samples) with a last row of ones
        found = [net(x_i[:-1].T)[:, 0] - y_i for net, x_i, y_i in zip(self.nets, x, y, strict=True)]
        return torch.stack(found).square().mean(1)

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        return self.losses(batch).sum()


def train(cell: dict[str, Any], arm: dict[str, Any] | None, seeds: int, steps: int) -> dict[str, list[float]]:
    """Test and training errors of every seed at the end, and what the projection made of the training errors."""
    data, _, test = problem(cell, seeds, "relu")
    module = Networks(cell, seeds)
    strategy = None if arm is None else ConstraintRelaxation(f"S{cell['n']}", LAYERS, **arm)
    if strategy is not None:
        strategy.attach(module)
    optimizer = torch.optim.Adam(module.parameters(), RATE, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    middle: dict[str, list[float]] = {}
    for step in range(steps):
        if strategy is not None:
            if step == steps // 2:
                middle["middle"] = finite(module.losses(data))
            strategy.update(step, steps)
        optimizer.zero_grad()
        loss = module.training_step(data, step)
        if step == steps // 2:
            middle["after"] = finite(module.losses(data))
        loss.backward()
        optimizer.step()
        schedule.step()
    if strategy is not None:
        strategy.finish(module)
    with torch.no_grad():
        return {"test": finite(module.losses(test)), "train": finite(module.losses(data)), **middle}


def arms() -> dict[str, dict[str, Any] | None]:
    """Settings of the strategy; None trains without."""
    found: dict[str, dict[str, Any] | None] = {"strict": None, "defaults": {}}
    for scale in (0.3, 0.1, 1.0):
        for projection in ("drop", "nearest", "relabel"):
            free = {"schedule": "constant", "lie_weight": 0.0, "norm_weight": 0.0}
            found[f"{projection}, {scale:g}"] = {"projection": projection, "init_scale": scale, **free}
    return found


def table(path: Path) -> None:
    """Shares of the seeds that are solved, as Markdown and CSV."""
    rows = read(path)
    shares: list[list[Any]] = []
    lines = [
        f"`{json.loads(path.read_text().splitlines()[0])['command']}`",
        "",
        "| n | arm, `init_scale` | solved (95 % Wilson) | minus strict (95 %, paired) | p (McNemar) | "
        "median training loss: relaxed / after projection | median test error |",
        "| ---: | --- | --- | --- | ---: | --- | ---: |",
    ]
    for n in sorted({row["n"] for row in rows}):
        own = {row["arm"]: row for row in rows if row["n"] == n}
        strict = np.asarray(own["strict"]["test"]) < 0.01
        for arm, row in own.items():
            solved = np.asarray(row["test"]) < 0.01
            shares.append([n, arm, int(solved.sum()), len(solved)])
            low, high = wilson(int(solved.sum()), len(solved))
            mean, below, above, _ = paired(solved, strict)
            differs = f"{mean:+.2f} ({below:+.2f}, {above:+.2f}) | {mcnemar(solved, strict):.2g}"
            differs = "– | –" if arm == "strict" else differs
            middle = " / ".join(f"{np.median(row[key]):.2g}" for key in ("middle", "after") if key in row)
            lines.append(
                f"| {n} | {arm} | {solved.mean():.2f} ({low:.2f}, {high:.2f}) | {differs} | "
                f"{middle} | {np.median(row['test']):.2g} |"
            )
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    with path.with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["n", "arm", "solved", "seeds"], *shares])
    print(f"written: {path}, .md, .csv")
    print("\n".join([*lines, f"written: {path}, .md"]))


def main() -> None:
    options = arguments(__doc__)
    fast = options.fast_dev_run
    path = options.out / f"relaxation_sets_callback{'_fast' if fast else ''}.jsonl"
    if not options.tables:
        lines = Lines(path)
        todo = [{"n": 8, "arm": arm} for arm in arms()]
        for cell in lines.missing(todo if not fast else todo[:3]):
            problem_cell = {**cells()[0], "n": cell["n"]}
            seeds, steps = (2, 8) if fast else (SEEDS, STEPS)
            row = train(problem_cell, arms()[cell["arm"]], seeds, steps)
            lines.add({**cell, **row})
            print(cell, sum(v < 0.01 for v in row["test"]), flush=True)
    table(path)


if __name__ == "__main__":
    main()
