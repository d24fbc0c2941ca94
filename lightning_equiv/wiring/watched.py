"""What stops a training or chooses its checkpoints, and what an evaluation has logged so far."""

from __future__ import annotations

from collections.abc import Callable

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

COMBINED = "combined"  # a monitor's task + weight * error ends with this


def warn_of_watched_errors(trainer: L.Trainer, is_error: Callable[[str], bool]) -> None:
    """Say so where EarlyStopping or ModelCheckpoint looks for the smallest of what is small without any learning.

    Args:
        trainer: whose callbacks are looked at.
        is_error: whether an equivariance error is logged under such a name.
    """
    watching: list[EarlyStopping | Checkpoint] = [*trainer.early_stopping_callbacks, *trainer.checkpoint_callbacks]
    for callback in watching:
        if not isinstance(callback, EarlyStopping | ModelCheckpoint) or callback.mode != "min":
            continue
        name = callback.monitor
        if name is None or name.endswith(f"/{COMBINED}") or not is_error(name):
            continue
        rank_zero_warn(
            f"{type(callback).__name__} looks for the smallest {name!r}, and a network that has learned nothing, or "
            "always predicts the same, is equivariant: it will take the first epochs for the best. Watch the task "
            f"instead, {type(callback).__name__}('val_loss'), or both: EquivarianceMonitor(..., combine='val_loss') "
            f"logs 'equivariance_error/{COMBINED}'"
        )


def logged_now(trainer: L.Trainer) -> dict[str, Tensor]:
    """The means of what the running evaluation has logged so far, in its steps; nothing of an earlier one.

    Call it at the end of the evaluation's epoch, on every rank.
    """
    results = trainer._results
    return {} if results is None else dict(results.metrics(on_step=False)["callback"])
