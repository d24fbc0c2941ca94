"""What a run remembers while it trains: curves, time, and how to go on after it was killed."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn

from lightning_equiv.compare.seeded import BatchHash, GlobalState


class Clock:
    """Seconds on the wall and of the processor while it runs."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self._since: tuple[float, float] | None = None

    def start(self) -> None:
        self._since = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """Stop; nothing happens where it stands still."""
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since[0]
            self.cpu_seconds += time.process_time() - self._since[1]
            self._since = None

    def read(self) -> tuple[float, float]:
        """Both, also while it runs."""
        if self._since is not None:
            self.stop()
            self.start()
        return self.seconds, self.cpu_seconds


class Watch(L.Callback):
    """Remembers curves and the time of training, and saves what a killed run goes on from.

    Args:
        monitor: logged name that each validation must have.
        watch: further logged names whose curves are wanted.
        batches: hash of the training batches.
        file: where the run is saved.
        every: seconds between two savings, each at the start of an epoch.
    """

    def __init__(self, monitor: str, watch: Sequence[str], batches: BatchHash, file: Path, every: float) -> None:
        self.monitor, self.names, self.batches = monitor, [monitor, *watch], batches
        self.file, self.every = file, every
        self.curve: dict[str, list[list[float]]] = {}
        self.clock, self.steps = Clock(), 0
        self.trains = False  # a strategy may look at batches before training begins, as cloning does
        self._saved = time.monotonic()
        self._random: dict[str, Any] | None = None

    def last(self) -> list[float] | None:
        """Step, seconds and value of the last validation."""
        return self.curve[self.monitor][-1] if self.monitor in self.curve else None

    def diverged(self) -> bool:
        """Whether the last validation was not finite."""
        last = self.last()
        return last is not None and not math.isfinite(last[2])

    # ---- Lightning's hooks ---------------------------------------------------------------------------------------
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save; where a run goes on, draws go on, too. This is the first of all callbacks: the epoch begins here."""
        if self._random is not None:
            self._random["global"].restore()
            torch.cuda.set_rng_state_all(self._random["cuda"])
            self._random = None
            loop = trainer.fit_loop
            loop._restarting = loop.epoch_loop.restarting = False  # the epoch begins, and ends, as any other
        elif trainer.current_epoch and time.monotonic() - self._saved >= self.every:
            # not at the end of an epoch: Lightning would do that end again, and skip its step of the learning rate
            beside = self.file.with_suffix(".writing")
            trainer.save_checkpoint(beside)
            os.replace(beside, self.file)  # a run that is killed now has the earlier one
            self._saved = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.trains = True

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.clock.stop()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember what was logged.

        Raises:
            ValueError: the monitored name is not among it.
        """
        logged = trainer.callback_metrics
        if self.monitor not in logged:
            raise ValueError(f"monitor={self.monitor!r} is not logged in validation: expected one of {sorted(logged)}")
        seconds = self.clock.seconds
        for name in self.names:
            if name in logged:
                self.curve.setdefault(name, []).append([trainer.global_step, seconds, float(logged[name])])
        if trainer.state.fn == TrainerFn.FITTING:
            self.clock.start()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.steps = trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        seconds, cpu_seconds = self.clock.read()
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return {
            "curve": {name: [list(point) for point in points] for name, points in self.curve.items()},
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "batches": self.batches.state_dict(),
            "random": {"global": GlobalState(), "cuda": cuda},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.clock.seconds or self.curve:  # the best weights are tested: the run is over
            return
        self.curve = state_dict["curve"]
        self.clock.seconds, self.clock.cpu_seconds = state_dict["seconds"], state_dict["cpu_seconds"]
        self.batches.load_state_dict(state_dict["batches"])
        self._random = state_dict["random"]
