"""RECM written by hand: u, its average over the group and the states, with loops over samples and elements."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lightning_equiv import RECM, SO3
from lightning_equiv._random import derived_generator
from tests.strategies.relaxed_by_hand import LAYERS, BranchesByHand, clip_each
from tests.strategies.toys import SYMMETRY, Plain

GAIN = 0.4


def make_recm(**changes: Any) -> RECM:
    settings = {"target": 1, "gain": GAIN, "critic_width": 8, "state_dim": 3, "finalize": "drop"}
    return RECM(SYMMETRY, LAYERS, "net", **{**settings, **changes})


class RecmByHand(BranchesByHand):
    """The twin: branches, u and w are modules of the module; states take up the mean over the calls of a layer."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__(net)
        strategy, borrowed = make_recm(), Plain()
        strategy.attach(borrowed)  # only to start from the same numbers
        self.branches = nn.ModuleList(copy.deepcopy(b.network) for b in strategy.branches)
        self.critics = nn.ModuleList(copy.deepcopy(r.critic) for r in strategy.recurrences.values())
        strategy.detach()
        self.h = [s.w.detach().double() / s.w.detach().double().norm() for s in self.critics]
        self.squares: list[Any] = [None, None]
        self.seen: list[list[tuple[Tensor, Tensor]]] = [[], []]
        self.step = 0

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        ours = [*self.branches.parameters(), *self.critics.parameters()]
        clip_each(gradient_clip_val, gradient_clip_algorithm, self.net.parameters(), ours)

    def gain(self) -> float:
        p = self.step / self.trainer.estimated_stepping_batches
        return GAIN if p < 0.5 else GAIN * (2 - 2 * p)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.step = self.global_step

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.global_step == self.step:
            return  # gradients are being accumulated
        b = self.gain()
        for i, seen in enumerate(self.seen):
            s, squares = (sum(values) / len(seen) for values in zip(*seen, strict=True))
            self.h[i] = (1 - b) * self.h[i].to(s) + b * s
            held = sum(self.squares[i]) / len(self.squares[i])  # those of the first step differ
            self.squares[i] = [(1 - b) * held + b * squares] * len(self.squares[i])
        self.seen = [[], []]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.y, self.batch_idx = batch[1], batch_idx
        return super().training_step(batch, batch_idx)

    def relaxed(self, x: Tensor) -> Tensor:
        self.levels = [self.theta(0, x, self.y, self.batch_idx, vectors=True)]
        a = torch.tanh(self.net[0](x) + self.levels[0].to(x.dtype) * self.branches[0](x))
        self.levels.append(self.theta(1, a, self.y, self.batch_idx, vectors=False))
        return self.net[2](a) + self.levels[1].to(a.dtype) * self.branches[1](a)

    def again(self, x: Tensor) -> Tensor:
        first, second = (level.detach() for level in self.levels)
        self.branches.eval()  # another pass moves no power iteration
        a = torch.tanh(self.net[0](x) + first * self.branches[0](x))
        output = self.net[2](a) + second * self.branches[1](a)
        self.branches.train()
        return output

    def theta(self, i: int, x: Tensor, y: Tensor, batch_idx: int, vectors: bool) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            wide = torch.promote_types(x.dtype, torch.float32)
            xs, ys = of_every_rank(x.detach().to(wide)), of_every_rank(y.to(wide))
            squares = [torch.stack([x.square().mean(), y.square().mean()]) for x, y in zip(xs, ys, strict=True)]
            if self.squares[i] is None:
                self.squares[i] = squares
            u_i = self.critics[i]
            inner, outer = (
                m.weight.to(wide) / torch.linalg.svdvals(m.weight.to(wide))[0] for m in (u_i.inner, u_i.outer)
            )
            bias, w = u_i.inner.bias.to(wide), u_i.w.to(wide)

            def u(x: Tensor, y: Tensor, rank: int) -> Tensor:
                p, q = self.squares[i][rank].sqrt()
                z = torch.cat([x / p, y / q]) / (len(x) + len(y)) ** 0.5
                return outer @ nn.functional.gelu(inner @ z + bias) / 1.1289042

            every = []  # s of each process
            for rank, (x, y) in enumerate(zip(xs, ys, strict=True)):
                place = (self.current_epoch, batch_idx)
                draws = derived_generator("RECM", "recm", 0, rank, place)
                R, n = SO3().sample(4 * 512, generator=draws).matrix.to(wide), len(x)
                s = torch.zeros(3, dtype=wide)
                for j in range(n):
                    turned = [u(R[m * n + j] @ x[j] if vectors else x[j], R[m * n + j] @ y[j], rank) for m in range(4)]
                    s = s + (u(x[j], y[j], rank) - sum(turned) / 4) / n
                every.append(s)
            self.seen[i].append((sum(every).detach() / len(every), sum(squares) / len(squares)))
            b = self.gain()
            return w @ ((1 - b) * self.h[i].to(wide) + b * every[self.global_rank]) / w.norm()


def of_every_rank(x: Tensor) -> list[Tensor]:
    """What every process holds: each computes the sums of all."""
    if not torch.distributed.is_initialized():
        return [x]
    held = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(held, x)
    return held


def states(strategy: RECM) -> dict[str, Tensor]:
    return {name: r.h.clone() for name, r in strategy.recurrences.items()}


def thetas(strategy: RECM) -> list[float]:
    return [abs(v["theta"]) for v in strategy.report]
