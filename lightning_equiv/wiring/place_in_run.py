"""Where in a Trainer's run something happens: what a draw depends on, so that a resumed run draws the same."""

from __future__ import annotations

from typing import Any


def place_in_run(trainer: Any) -> tuple[str | int, ...]:
    """The stage with its place: (epoch, batch) while training, else (optimizer steps so far, batch)."""
    stage = str(trainer.state.stage.value) if trainer.state.stage else ""
    if trainer.training:
        return stage, trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx
    loops = {"fit": trainer.fit_loop.epoch_loop.val_loop, "validate": trainer.validate_loop, "test": trainer.test_loop}
    loop = loops.get(trainer.state.fn or "")
    return stage, trainer.global_step, 0 if loop is None else loop.batch_progress.current.ready
