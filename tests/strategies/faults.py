"""What the tests of faults share: callbacks that break a run, modules and networks that are unlike the examples."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from tests.strategies.toys import Plain, make_net


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


def skip_bad_steps(module: Plain) -> Plain:
    """The module, whose optimizer does not move where a gradient is no number."""

    def on_before_optimizer_step(_: torch.optim.Optimizer) -> None:
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        if not all(gradient.isfinite().all() for gradient in gradients):
            for gradient in gradients:
                gradient.zero_()

    module.on_before_optimizer_step = on_before_optimizer_step  # type: ignore[method-assign]
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


def on_both_sides(net: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """A step that calls the network twice."""
    return nn.functional.mse_loss(net(x), y) + nn.functional.l1_loss(net(-x), -y)
