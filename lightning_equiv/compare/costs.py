"""What a step of each way costs, measured side by side, for comparisons at equal compute."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch

from lightning_equiv.compare.plan import Plan
from lightning_equiv.compare.records import Record
from lightning_equiv.compare.seeded import seed_all, seed_data
from lightning_equiv.compare.training import make_trainer, quiet
from lightning_equiv.compare.versions import versions
from lightning_equiv.compare.way import Way
from lightning_equiv.wiring.random_state import random_state_kept

_STEPS, _WARM_UP, _ROUNDS = 40, 8, 5
_LONG = 5.0  # seconds before the first step from which on a way is measured once
SEED = -1  # of the records


class _Stopwatch(L.Callback):
    """When the first batch began, and how long each step took; of the processor's time where it computes."""

    def __init__(self) -> None:
        self.start = self.first = 0.0
        self.steps: list[float] = []
        self._before = self._paused = 0.0

    def begin(self, device: torch.device) -> None:
        self.clock = time.process_time if device.type == "cpu" else time.perf_counter
        self.start = self.clock()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.first = self._before = self.clock()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._paused = self.clock()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._before += self.clock() - self._paused

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        now = self.clock()
        self.steps.append(now - self._before)
        self._before = now


def measure_costs(plan: Plan, ways: Mapping[str, Way], case: str, seed: int) -> list[Record]:
    """Seconds before the first step, and of a step, of each way; the ways take turns.

    Args:
        plan: of the comparison.
        ways: without sweeps.
        case: whose data.
        seed: of the runs that are timed.
    """
    fixed: dict[str, float] = {}
    steps: dict[str, list[float]] = {name: [] for name in ways}
    with quiet(plan.threads), random_state_kept():
        for turn in range(_ROUNDS):
            for name, way in ways.items():
                if turn and fixed[name] > _LONG:
                    continue
                watch = _Stopwatch()
                seed_all("costs", seed)
                module, callbacks = way.make_model(plan.model), way.make_callbacks(plan.given, seed)
                data = plan.make_data(case, seed)
                seed_data(data, seed, lambda batch: None)
                data.prepare_data()
                data.setup("fit")
                once = {"limit_val_batches": 1, "enable_checkpointing": False}  # a schedule may look at validation
                trainer = make_trainer(plan, _STEPS, [*callbacks, watch], **once)
                watch.begin(trainer.strategy.root_device)
                trainer.fit(module, datamodule=data)
                fixed.setdefault(name, watch.first - watch.start)
                steps[name].append(statistics.median(watch.steps[_WARM_UP:]))
    records = []
    for name, way in ways.items():
        record = {
            "kind": "cost",
            "case": case,
            "way": name,
            "seed": SEED,
            "trial": None,
            "fixed_seconds": fixed[name],
            "step_seconds": min(steps[name]),  # of the round that was disturbed least
            "fingerprint": plan.fingerprint(case),
            "way_fingerprint": plan.fingerprint_of_way(way),
            "versions": versions(),
        }
        records.append(record)
    return records


def affordable_steps(cost: Record, seconds: float) -> int:
    """Steps that a way can take in so many seconds; 0 where its preparation takes longer."""
    return max(0, round((seconds - cost["fixed_seconds"]) / cost["step_seconds"]))
