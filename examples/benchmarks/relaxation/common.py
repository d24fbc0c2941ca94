"""What the three problems share: batched networks of one hidden layer, the training loop, statistics, result lines.

A leading dimension S of every tensor runs over the seeds: they are trained together and never meet.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Parameters = dict[str, Tensor]
Build = Callable[[Parameters, float], tuple[Tensor, Tensor, Tensor]]

ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    # in place, and the derivative as a function of the output
    "relu": (Tensor.relu_, Tensor.sign_),
    "tanh": (Tensor.tanh_, lambda h: h.square_().neg_().add_(1)),
    "identity": (lambda z: z, lambda h: h.fill_(1.0)),
}


class MeanSquaredError(torch.autograd.Function):
    """Of y = a act(W [x, 1]) + c for every seed, with its gradient by hand: three times as fast as autograd.

    Shapes: W (S, N, n + 1), a (S, N), c (S,); x (S, n + 1, B) with a last row of ones, y (S, B); result (S,).
    """

    @staticmethod
    def forward(ctx: Any, W: Tensor, a: Tensor, c: Tensor, x: Tensor, y: Tensor, activation: str) -> Tensor:
        act, derivative = ACTIVATIONS[activation]
        h = act(torch.bmm(W, x))
        r = torch.baddbmm(c[:, None, None], a[:, None], h).sub_(y[:, None])  # residuals (S, 1, B)
        loss = r.square().mean((1, 2))
        if any(ctx.needs_input_grad):
            r.mul_(2 / y.shape[1])
            da = torch.bmm(r, h.transpose(1, 2))[:, 0]
            dW = torch.bmm(derivative(h).mul_(r), x.transpose(1, 2)).mul_(a[..., None])
            ctx.save_for_backward(dW, da, r.sum((1, 2)))
        return loss

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        dW, da, dc = ctx.saved_tensors
        return dW * g[:, None, None], da * g[:, None], dc * g, None, None, None


def losses(build: Build, p: Parameters, theta: float, data: tuple[Tensor, Tensor], activation: str) -> Tensor:
    """Mean squared error of each seed (S,)."""
    return MeanSquaredError.apply(*build(p, theta), *data, activation)


def finite(value: Tensor) -> list[float]:
    """Four digits of each seed's value; what diverged counts as 1e9."""
    return [float(f"{v:.3e}") for v in value.detach().nan_to_num(1e9, 1e9).tolist()]


class Cosine:
    """A rate, or one for each seed (S,), that falls to 0 with the cosine over `total` steps."""

    def __init__(self, rate: float | Tensor, total: int) -> None:
        self.rate, self.total = rate, total

    def at(self, step: int) -> Any:
        return self.rate * 0.5 * (1 + math.cos(math.pi * step / self.total))


def train(
    p: Parameters,
    loss: Callable[[Parameters, int], Tensor],
    steps: range,
    schedule: Cosine,
    blocks: Container[str] = (),
) -> Parameters:
    """Adam on every seed's loss (S,); steps of `blocks` are divided by their spectral norm, seed by seed."""
    p = {name: value.detach().clone().requires_grad_() for name, value in p.items()}
    if not blocks and not isinstance(schedule.rate, Tensor):
        adam = torch.optim.Adam(p.values(), fused=True)
        for step in steps:
            adam.param_groups[0]["lr"] = schedule.at(step)
            adam.zero_grad()
            loss(p, step).sum().backward()
            adam.step()
        return {name: value.detach() for name, value in p.items()}
    first = {name: torch.zeros_like(value) for name, value in p.items()}
    second = {name: torch.zeros_like(value) for name, value in p.items()}
    for count, step in enumerate(steps, 1):
        gradients = torch.autograd.grad(loss(p, step).sum(), list(p.values()), allow_unused=True)
        with torch.no_grad():
            rate = torch.as_tensor(schedule.at(step))
            for (name, value), gradient in zip(p.items(), gradients, strict=True):
                if gradient is None:  # a branch at level 0
                    continue
                first[name].lerp_(gradient, 0.1)
                second[name].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                below = (second[name] / (1 - 0.999**count)).sqrt_().add_(1e-8)
                update = first[name] / below.mul_(1 - 0.9**count)
                if name in blocks:
                    update = update / spectral_norm(update).clamp_min(1e-30)
                value.addcmul_(update, rate.view(-1, *[1] * (value.dim() - 1)), value=-1)
    return {name: value.detach() for name, value in p.items()}


def spectral_norm(update: Tensor) -> Tensor:
    """Largest singular value of each seed's matrix (S, m, n); of a vector (S, m), a matrix of one row, its length.

    By power iteration from the longest row, to about 1 %: exact singular values cost more than all else.
    """
    if update.dim() == 2:
        return update.norm(dim=1, keepdim=True)
    longest = update.norm(dim=2).argmax(1)
    v = update[torch.arange(len(update)), longest][..., None]
    for _ in range(8):
        v = update.mT @ (update @ (v / v.norm(dim=1, keepdim=True).clamp_min(1e-30)))
    return v.norm(dim=1, keepdim=True).sqrt()


# Statistics


def wilson(count: int, total: int) -> tuple[float, float]:
    """95 % interval of a share."""
    z, share = 1.959964, count / total
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return (centre - half) / (1 + z * z / total), (centre + half) / (1 + z * z / total)


def paired(arm: np.ndarray, reference: np.ndarray, draws: int = 4000) -> tuple[float, float, float, float]:
    """Mean difference over the seeds, its 95 % interval by bootstrap over them, and its standard error."""
    difference = np.asarray(arm, float) - np.asarray(reference, float)
    n = len(difference)
    picks = np.random.default_rng(0).integers(0, n, (draws, n))
    low, high = np.quantile(difference[picks].mean(1), [0.025, 0.975])
    error = difference.std(ddof=1) / math.sqrt(n) if n > 1 else float("nan")
    return float(difference.mean()), float(low), float(high), float(error)


def mcnemar(arm: np.ndarray, reference: np.ndarray) -> float:
    """Exact two-sided p of paired successes: of the seeds where only one arm succeeds, a half is expected."""
    from scipy.stats import binomtest

    only = int((arm & ~reference).sum()), int((~arm & reference).sum())
    return float(binomtest(only[0], sum(only)).pvalue) if sum(only) else 1.0


# Result lines


class Lines:
    """Finished cells, a JSON line each; the first line is the command that made them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(json.dumps({"command": command()}) + "\n")
        self.rows = read(path)

    def missing(self, cells: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        done = [{k: row[k] for k in cells[0]} for row in self.rows] if cells else []
        yield from (cell for cell in cells if cell not in done)

    def add(self, row: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


def command() -> str:
    script = Path(sys.argv[0]).resolve()
    words = [word for word in sys.argv[1:] if word != "--tables"]
    return " ".join(["python", "/".join(script.parts[-4:]), *words])


def arguments(doc: str | None) -> argparse.Namespace:
    """The words that the three scripts share; torch is set to one thread."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder of what is written")
    parser.add_argument("--tables", action="store_true", help="only the tables, from the lines that are there")
    parser.add_argument("--fast-dev-run", action="store_true", help="a few steps and seeds, to see that it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    return options
