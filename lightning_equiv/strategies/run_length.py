"""How many optimizer steps a run has."""

from __future__ import annotations

import math

import lightning as L
from lightning.pytorch.callbacks import GradientAccumulationScheduler


def run_length(trainer: L.Trainer, strategy: L.Callback) -> int:
    """Optimizer steps of the whole run, or the strategy's `horizon`.

    To be called after training has started: asked earlier, the Trainer sets up its loaders, which are then not restored
    in mid-epoch.

    Raises:
        ValueError: the run has no known end.
    """
    horizon = getattr(strategy, "horizon", None)
    return _ending(_estimated_steps(trainer) if horizon is None else horizon, strategy)


def check_ends(trainer: L.Trainer, strategy: L.Callback) -> None:
    """ValueError for a run without a known end, as far as the Trainer alone can tell."""
    if getattr(strategy, "horizon", None) is None and trainer.max_epochs == -1 and trainer.max_steps == -1:
        _ending(math.inf, strategy)


def _estimated_steps(trainer: L.Trainer) -> float:
    """The Trainer's estimate is for the accumulation of this epoch; a `GradientAccumulationScheduler` has others."""
    estimate = trainer.estimated_stepping_batches
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    scheduler = next((c for c in callbacks if isinstance(c, GradientAccumulationScheduler)), None)
    epochs, batches = trainer.max_epochs or 0, trainer.num_training_batches
    if scheduler is None or epochs < 1 or not math.isfinite(batches):
        return estimate
    starts = sorted(start for start in scheduler.scheduling if start < epochs)
    ends = [*starts[1:], epochs]
    steps = sum(
        math.ceil(batches / scheduler.scheduling[start]) * (end - start)
        for start, end in zip(starts, ends, strict=True)
    )
    return steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)


def _ending(total: float, strategy: L.Callback) -> int:
    if not math.isfinite(total) or total < 1:
        hint = ", or say horizon=<optimizer steps>" if hasattr(strategy, "horizon") else ""
        raise ValueError(
            f"{type(strategy).__name__} needs to know how long the run is, but the Trainer's horizon is {total}: "
            f"set max_epochs or max_steps{hint}; for a loader without a length it is max_steps"
        )
    return int(total)
