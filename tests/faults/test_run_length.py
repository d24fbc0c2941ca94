"""Schedules where the number of optimizer steps changes during a run, or is not what was expected."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler

from lightning_equiv.strategies.run_length import run_length
from tests.strategies.cases import CASES, Case
from tests.strategies.relaxed_by_hand import make_relaxation
from tests.strategies.toys import Plain, loader, trainer

SCHEDULED = {name: case for name, case in CASES.items() if case.needs_end}


class Looks(L.Callback):
    """What a relaxation's theta is in every optimizer step, and at the end."""

    def __init__(self, strategy: Any) -> None:
        self.strategy, self.thetas, self.last, self.steps = strategy, {}, None, 0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.thetas.setdefault(trainer.global_step, float(self.strategy.branches[0].theta))

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.last, self.steps = float(self.strategy.branches[0].theta), trainer.global_step


def thetas(strategy: Any, *callbacks: L.Callback, **settings: Any) -> Looks:
    looks = Looks(strategy)
    trainer(strategy, *callbacks, looks, **settings).fit(Plain(), loader(n=40), loader())
    return looks


@pytest.mark.parametrize("schedule", [{0: 1, 2: 4}, {0: 5, 3: 1}, {1: 2, 4: 3}, {0: 2, 9: 4}])
@pytest.mark.parametrize("limits", [{"max_epochs": 6}, {"max_epochs": 6, "max_steps": 17}], ids=["epochs", "steps"])
def test_the_steps_of_an_accumulation_schedule_are_counted(schedule: dict[int, int], limits: dict[str, int]) -> None:
    seen: list[int] = []

    class Asks(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            seen.append(run_length(trainer, strategy))

    strategy = make_relaxation(end=1.0)
    looks = thetas(strategy, GradientAccumulationScheduler(dict(schedule)), Asks(), **limits)
    assert set(seen) == {looks.steps}
    assert looks.steps == min(limits.get("max_steps", 1000), looks.steps)


def test_theta_rises_and_falls_once_under_an_accumulation_schedule() -> None:
    looks = thetas(make_relaxation(end=1.0), GradientAccumulationScheduler({0: 1, 2: 4}), max_epochs=6)
    values = list(looks.thetas.values())
    turns = [a < b for a, b in pairwise(values)]
    assert turns == sorted(turns, reverse=True), "it rises twice"
    assert max(values) > 0.4
    assert looks.last == 0.0


@pytest.mark.parametrize(
    ("callbacks", "settings"),
    [
        ([EarlyStopping("val_loss", stopping_threshold=1e9)], {"max_epochs": 5}),
        ([], {"max_epochs": 5, "limit_train_batches": 3}),
        ([], {"max_epochs": 10_000, "max_time": {"milliseconds": 100}}),
    ],
    ids=["early stopping", "fewer batches", "max_time"],
)
def test_theta_is_0_at_the_end_whatever_was_expected(callbacks: list[L.Callback], settings: dict[str, Any]) -> None:
    looks = thetas(make_relaxation(end=1.0), *callbacks, **settings)
    assert any(looks.thetas.values())
    assert looks.last == 0.0
    assert thetas(make_relaxation(end=1.0, horizon=10_000), max_epochs=1).last == 0.0


@pytest.mark.parametrize("case", SCHEDULED.values(), ids=SCHEDULED)
def test_every_schedule_ends_with_the_run(case: Case) -> None:
    strategy, said = case.make(), []
    set_progress = strategy.set_progress

    def remember(step: int, total: int) -> None:
        said.append((step, total))
        set_progress(step, total)

    strategy.set_progress = remember  # type: ignore[method-assign]
    run = trainer(strategy, GradientAccumulationScheduler({0: 3, 1: 1}), max_epochs=3)
    run.fit(Plain(), loader())
    assert {total for _, total in said} == {run.global_step}
    assert said[-1] == (run.global_step, run.global_step)
