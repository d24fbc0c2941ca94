"""REMUL with a part of the batch, every few steps, near the identity, or to a tolerance: twins written by hand."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_equiv import SO3
from lightning_equiv._random import derived_generator
from lightning_equiv.wiring.ranks import mean_over_ranks
from tests.strategies.toys import Plain, turn


class SecondPassByHand(Plain):
    """A second loss of the network's own predictions; a subclass says of which inputs, and how it is weighed."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__(net)
        self.number = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        calls: list[Tensor] = []

        def called(x: Tensor) -> Tensor:
            calls.append(x)
            return self.net(x)

        loss = self.task(called, *batch)
        generator = derived_generator("REMUL", "remul", 0, self.global_rank, (self.current_epoch, batch_idx))
        self.number = self.trainer.fit_loop.epoch_loop.total_batch_idx
        return self.second(loss, calls, generator)

    def second(self, loss: Tensor, calls: list[Tensor], generator: torch.Generator) -> Tensor:
        raise NotImplementedError

    def pair(self, x: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(turn(R, x)), turn(R, self.net(x))


class PartByHand(SecondPassByHand):
    """weight mse over a random third of the inputs."""

    def second(self, loss: Tensor, calls: list[Tensor], generator: torch.Generator) -> Tensor:
        terms = []
        for x in calls:
            some = x[torch.randperm(len(x), generator=generator)[: max(1, round(len(x) / 3))]]
            R = SO3().sample(len(some), generator=generator).matrix
            terms.append(nn.functional.mse_loss(*self.pair(some, R)))
        return loss + 0.5 * sum(terms) / len(terms)


class EveryByHand(SecondPassByHand):
    """2 weight mse in every second step."""

    def second(self, loss: Tensor, calls: list[Tensor], generator: torch.Generator) -> Tensor:
        if self.number % 2:
            return loss
        terms = [nn.functional.mse_loss(*self.pair(x, SO3().sample(len(x), generator=generator).matrix)) for x in calls]
        return loss + 2 * 0.5 * sum(terms) / len(terms)


class NearByHand(SecondPassByHand):
    """weight mse for rotations by 0.2 radians, by Rodrigues' formula."""

    def second(self, loss: Tensor, calls: list[Tensor], generator: torch.Generator) -> Tensor:
        terms = []
        for x in calls:
            a = torch.randn(len(x), 3, generator=generator, dtype=torch.float64)
            k = torch.linalg.cross(
                (a / a.norm(dim=1, keepdim=True))[:, None].expand(-1, 3, -1), torch.eye(3).double().expand(len(x), 3, 3)
            ).mT
            R = torch.eye(3) + math.sin(0.2) * k + (1 - math.cos(0.2)) * k @ k
            terms.append(nn.functional.mse_loss(*self.pair(x, R)))
        return loss + 0.5 * sum(terms) / len(terms)


class DualByHand(SecondPassByHand):
    """beta e^2 / tolerance^2, with beta by dual ascent in its logarithm; one process."""

    tolerance, most = 2.0, 0.1

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__(net)
        self.beta, self.square, self.scale, self.log_beta, self.steps = 0.0, 0.0, 0.0, 0.0, 0
        self.size, self.largest = 0.0, 0.0

    def second(self, loss: Tensor, calls: list[Tensor], generator: torch.Generator) -> Tensor:
        errors, sizes = [], []
        for x in calls:
            sizes.append(self.net(x).detach().square().sum() / len(x))
            a, b = self.pair(x, SO3().sample(len(x), generator=generator).matrix)
            errors.append((a - b).square().sum() / self.net(x).detach().square().sum() / self.tolerance**2)
        error = sum(errors) / len(errors)
        total = loss + self.beta * error
        seen = torch.stack([error, loss, sum(sizes) / len(sizes)]).detach().double()
        now, task, size = mean_over_ranks(seen).tolist()
        self.size = size if not self.steps else self.size + 0.05 * (size - self.size)
        self.largest = max(self.largest, self.size)
        self.square = now if not self.steps else self.square + 0.05 * (now - self.square)
        if self.steps < 10:
            self.scale += (abs(task) - self.scale) / (self.steps + 1)
        if not self.steps:
            self.log_beta = math.log(min(1e-3, 0.01 / now))
        self.log_beta += 0.03 * max(-1.0, min(1.0, math.log(self.square) / 2))
        self.log_beta = max(math.log(1e-6), min(math.log(self.most), self.log_beta))
        self.steps += 1
        self.beta = math.exp(self.log_beta) * self.scale * self.size / self.largest
        return total
