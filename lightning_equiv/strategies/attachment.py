"""What exists while a strategy is attached to a module; and what a run that broke off has left attached."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerStatus
from torch import nn


@dataclass(eq=False)
class Attachment:
    """What exists while a strategy is attached to a module, and no longer.

    Attributes:
        module: what it is attached to.
        run: the Trainer that restores the module; None where a loop written by hand does.
        parts: what the strategy itself put there.
        undo: undoes the attachment.
        evaluation_undo: what the end of an evaluation, or of the attachment, undoes.
        draw_key: where in the run the next draw is made; None in a loop that calls no `update`.
        num_draws: draws without a key, or calls of `update` for one step.
        ended: training came to its end.
    """

    module: L.LightningModule
    run: weakref.ref[L.Trainer] | None
    parts: Any = None
    undo: ExitStack = field(default_factory=ExitStack)
    evaluation_undo: ExitStack = field(default_factory=ExitStack)
    draw_key: tuple[int, ...] | None = None
    num_draws: int = 0
    ended: bool = False

    @property
    def is_left_over(self) -> bool:
        """Whether its Trainer is gone, or broke off without restoring the module."""
        if self.run is None:
            return False
        trainer = self.run()
        return trainer is None or trainer.state.status != TrainerStatus.RUNNING

    def is_of(self, trainer: L.Trainer) -> bool:
        """Whether this Trainer restores the module."""
        return self.run is not None and self.run() is trainer


# the strategies that were attached to a module; each has `restore_left_over`
_strategies: weakref.WeakKeyDictionary[nn.Module, weakref.WeakSet[Any]] = weakref.WeakKeyDictionary()


def strategies_of(module: nn.Module) -> list[Any]:
    """The strategies that are, or were, attached to a module."""
    return list(_strategies.get(module, ()))


def check_optimizers(module: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """RuntimeError where the optimizers of a checkpoint held weights of other strategies than the module has now.

    torch would say no more than that a parameter group has another size.
    """
    states = checkpoint.get("callbacks") or {}
    saved = {key for key, state in states.items() if isinstance(state, Mapping) and {"format", "branches"} <= {*state}}
    present = {s.state_key for s in strategies_of(module) if s.is_attached and s.adds_parameters}
    saved |= present & {*states}  # in whatever format
    if saved == present or not checkpoint.get("optimizer_states"):
        return
    missing, others = ", ".join(sorted(saved - present)), ", ".join(sorted(present - saved))
    raise RuntimeError(
        "the optimizer in the checkpoint holds weights of "
        f"{f'{missing}, which this run lacks' if missing else 'the module alone'}"
        f"{f', and none of {others}, which this run has' if others else ''}: expected the strategies of the run that "
        "is resumed, with their names; to begin again from its weights alone, write "
        "`module.load_state_dict(torch.load(path)['state_dict'])`, without ckpt_path"
    )


def run_of(module: L.LightningModule, strategy: L.Callback) -> weakref.ref[L.Trainer] | None:
    """The Trainer that runs this module with this strategy just now."""
    trainer: Any = module._trainer
    if trainer is None or trainer.state.status != TrainerStatus.RUNNING or strategy not in trainer.callbacks:
        return None
    return weakref.ref(trainer)


def remember(strategy: Any, attachment: Attachment) -> None:
    """Restore the module when another strategy is attached to it, or the Trainer is forgotten."""
    _strategies.setdefault(attachment.module, weakref.WeakSet()).add(strategy)
    trainer = None if attachment.run is None else attachment.run()
    if trainer is not None:
        forgotten = weakref.finalize(trainer, _restore, weakref.ref(strategy))
        forgotten.atexit = False
        attachment.undo.callback(forgotten.detach)


def restoring_step(module: nn.Module) -> Callable[[Any], Any]:
    """Passes the batch of a training step on, once what is left over on the module is gone."""
    strategies = _strategies[module]

    def before(batch: Any) -> Any:
        for strategy in list(strategies):
            strategy.restore_left_over()
        return batch

    return before


def _restore(strategy: weakref.ref[Any]) -> None:
    found = strategy()
    if found is not None:
        found.restore_left_over()
