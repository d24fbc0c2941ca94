"""What the tests of faults share: callbacks that break a run, twins that call a net often."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lightning_equiv import SO3, GroupAugmentation
from lightning_equiv._random import derived_generator
from tests.strategies.cloned_by_hand import AnnealedByHand, ClonedByHand
from tests.strategies.recm_by_hand import RecmByHand
from tests.strategies.relaxed_by_hand import LIE, NORM, RelaxedByHand, slow_root
from tests.strategies.test_contract import Case, turn
from tests.strategies.toys import Plain, make_net

Task = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]


class Killed(L.Callback):
    """The process dies at once after an optimizer step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def breaks(hook: str, error: BaseException) -> L.Callback:
    """A callback that raises in a hook, though not in the sanity check."""

    def fail(trainer: L.Trainer, *_: Any, **__: Any) -> None:
        if not trainer.sanity_checking:
            raise error

    callback = L.Callback()
    setattr(callback, hook, fail)
    return callback


def change_batch(module: Plain, index: int, change: Callable[[Any], Any]) -> Plain:
    """The module, whose step returns `change(loss)` in one batch; `change(None)` where no network ran."""
    step = module.training_step

    def training_step(batch: Any, batch_idx: int) -> Any:
        loss = step(batch, batch_idx) if batch_idx != index or change(None) is not None else None
        return change(loss) if batch_idx == index else loss

    module.training_step = training_step  # type: ignore[method-assign]
    return module


def optimise_by_hand(module: Plain) -> Plain:
    """The module with two optimizers, one for each layer, and manual optimisation."""
    loss = module.training_step

    def training_step(batch: Any, batch_idx: int) -> None:
        optimizers = module.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        module.manual_backward(loss(batch, batch_idx))
        for optimizer in optimizers:
            optimizer.step()

    module.automatic_optimization = False
    module.training_step = training_step  # type: ignore[method-assign]
    return two_optimizers(module)


def two_optimizers(module: Plain) -> Plain:
    """The module with an optimizer for each layer."""
    module.configure_optimizers = lambda: [  # type: ignore[method-assign]
        torch.optim.SGD(layer.parameters(), lr=module.lr) for layer in (module.net[0], module.net[2])
    ]
    return module


# ---- a network that is called often, or holds a layer twice ----------------------------------------------------------
def shared_net(how: str) -> nn.Module:
    """A network of two passes through `make_net()`: the same layers, or layers whose weights are the same."""
    first, second = make_net(), make_net()
    if how == "one layer under two names":
        return nn.Sequential(*first, *first)
    for i in (0, 2):
        second[i].weight, second[i].bias = first[i].weight, first[i].bias
    return nn.Sequential(*first, *second)


def once(net: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.mse_loss(net(x), y)


def on_both_sides(net: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """A step that calls the network twice."""
    return nn.functional.mse_loss(net(x), y) + nn.functional.l1_loss(net(-x), -y)


class Tasked(Plain):
    """A user's module with another loss."""

    task: Task = staticmethod(once)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.task(self.net, *batch)


class TaskedByHand(Tasked):
    """The twin of REMUL, anchored on predictions, and of augmentation."""

    def __init__(self, case: Case, net: nn.Module | None = None) -> None:
        super().__init__(net)
        self.case = case

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert self.case.by_hand is not None
        (x, y), by_hand = batch, self.case.by_hand
        draws = derived_generator(*self.case.key, 0, 0, (self.current_epoch, batch_idx))
        if isinstance(self.case.make(), GroupAugmentation):
            R = SO3().sample(len(x), generator=draws).matrix
            return self.task(self.net, turn(R, x), turn(R, y))
        terms = []
        for x_k in (x, -x) if self.task is on_both_sides else (x,):  # the calls of a step, in their order
            R = SO3().sample(self.case.num_samples * len(x), generator=draws).matrix
            terms.append(by_hand(self.net, x_k, y, R) - nn.functional.mse_loss(self.net(x_k), y))
        return self.task(self.net, x, y) + sum(terms) / len(terms)


class TaskedClonedByHand(ClonedByHand, Tasked):
    """The twin of symmetry cloning, which asks the user's own step."""


class TaskedRelaxedByHand(RelaxedByHand, Tasked):
    """The twin of constraint relaxation: the means are over the rows of all calls of a layer."""

    passes: Callable[[Any, Tensor], Tensor] = staticmethod(lambda net, x: net(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        theta, seen = self.theta(), ([], [])

        def net(x: Tensor) -> Tensor:
            h = self.net[0](x) + theta * (x @ self.W.T)
            a = torch.tanh(h)
            seen[0].append(x.detach())
            seen[1].append(a.detach())
            return self.net[2](a) + theta * (a @ self.V.T)

        loss = self.task(lambda x: self.passes(net, x), *batch)
        if theta == 0:
            return loss
        x, a = (torch.cat(rows) for rows in seen)
        lie = slow_root(x, lambda v, L: self.W @ (L @ v)) + slow_root(a, lambda v, L: -(L @ (self.V @ v)))
        norm = (x @ self.W.T).square().sum(-1).mean().sqrt() + (a @ self.V.T).square().sum(-1).mean().sqrt()
        return loss + LIE * lie + NORM * norm


class TaskedRecmByHand(RecmByHand, Tasked):
    """The twin of RECM: theta of every call of a layer, and states that take up their mean."""

    passes: Callable[[Any, Tensor], Tensor] = staticmethod(lambda net, x: net(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        y = batch[1]

        def net(x: Tensor) -> Tensor:
            h = self.net[0](x) + self.theta(0, x, y, batch_idx, vectors=True).to(x) * self.branches[0](x)
            a = torch.tanh(h)
            return self.net[2](a) + self.theta(1, a, y, batch_idx, vectors=False).to(a) * self.branches[1](a)

        return self.task(lambda x: self.passes(net, x), *batch)


class TaskedAnnealedByHand(AnnealedByHand, TaskedClonedByHand):
    """The twin of symmetry cloning that lets go slowly."""


TASKED = {
    AnnealedByHand: TaskedAnnealedByHand,
    RelaxedByHand: TaskedRelaxedByHand,
    RecmByHand: TaskedRecmByHand,
    ClonedByHand: TaskedClonedByHand,
}


def tasked_twin(case: Case, task: Task = once, net: nn.Module | None = None) -> Tasked:
    """The twin of a case for a step with another loss, or with another network."""
    twin = TASKED.get(case.twin, TaskedByHand)(case, net)  # type: ignore[call-overload]
    twin.task = task
    return twin
