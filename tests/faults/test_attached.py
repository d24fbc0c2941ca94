"""A strategy is attached where it is expected to act, or says that it is not; a run that breaks off is restored."""

from __future__ import annotations

import gc
from typing import Any

import lightning as L
import pytest
import torch

from tests.strategies.cases import CASES, Case, each_case
from tests.strategies.toys import Plain, assert_same, loader, snapshot, trainer, weights


def assert_trains_as_the_twin(case: Case, module: L.LightningModule) -> None:
    twin = case.make_twin()
    trainer().fit(twin, loader())
    assert_same(weights(module.net), weights(twin.net))


# ---- attached already ------------------------------------------------------------------------------------------------
@each_case
def test_a_strategy_that_a_loop_has_is_refused_by_a_trainer(case: Case) -> None:
    held, module, strategy = Plain(), Plain(), case.make()
    trainer().fit(held, loader())  # what Lightning itself leaves on a module is there now
    before = snapshot(held)
    strategy.attach(held)
    for other in (module, held):
        with pytest.raises(RuntimeError, match=r"is attached already, to a Plain by hand: `detach\(\)` it first"):
            trainer(strategy).fit(other, loader())
    assert torch.equal(weights(module), weights(Plain()))
    assert strategy.is_attached, "the loop goes on"
    strategy.detach()
    assert snapshot(held) == before


class Nested(L.Callback):
    """Runs another Trainer with the same strategies in the second batch."""

    def __init__(self, verb: str, error: type[Exception] | None) -> None:
        self.verb, self.error, self.ran = verb, error, False

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if args[-1] != 1:
            return
        inner = globals()["trainer"](*(c for c in trainer.callbacks if c is not self))
        if self.error is None:
            getattr(inner, self.verb)(Plain(), loader(), **({} if self.verb == "fit" else {"verbose": False}))
        else:
            with pytest.raises(self.error, match="that another Trainer is fitting"):
                getattr(inner, self.verb)(Plain(), loader())
        self.ran = True


@pytest.mark.parametrize(("verb", "error"), [("fit", RuntimeError), ("validate", None)])
@each_case
def test_a_run_within_a_run_leaves_the_outer_one_alone(case: Case, verb: str, error: Any) -> None:
    module, strategy, nested = Plain(), case.make(), Nested(verb, error)
    trainer(strategy, nested).fit(module, loader())
    assert nested.ran
    assert not strategy.is_attached
    assert_trains_as_the_twin(case, module)


# ---- added too late --------------------------------------------------------------------------------------------------
class Appends(Plain):
    """Adds a strategy to its Trainer in one of its own hooks."""

    late: Any

    def on_train_start(self) -> None:
        self._add("on_train_start")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._add("on_train_batch_start")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self._add("training_step")
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, *_: Any) -> None:
        self._add("on_train_batch_end")

    def on_train_epoch_end(self) -> None:
        self._add("on_train_epoch_end")

    def _add(self, hook: str) -> None:
        if self.late[0] == hook and self.late[1] not in self.trainer.callbacks:
            self.trainer.callbacks.append(self.late[1])


@pytest.mark.parametrize(
    "hook", ["on_train_start", "on_train_batch_start", "training_step", "on_train_batch_end", "on_train_epoch_end"]
)
@each_case
def test_a_strategy_that_is_added_after_fit_began_is_refused(case: Case, hook: str) -> None:
    module = Appends()
    module.late = (hook, case.make())
    with pytest.raises(RuntimeError, match="was added to the Trainer after fit began"):
        trainer().fit(module, loader(n=4))  # one batch
    assert not module.late[1].is_attached


@each_case
def test_it_is_refused_at_the_end_of_its_first_batch(case: Case) -> None:
    class Counts(L.Callback):
        started = 0

        def on_train_batch_start(self, *_: Any) -> None:
            self.started += 1

    module, counts = Appends(), Counts()
    module.late = ("training_step", case.make())
    with pytest.raises(RuntimeError, match="was added to the Trainer after fit began"):
        trainer(counts).fit(module, loader())
    assert counts.started == 1


@each_case
def test_a_strategy_that_is_added_when_fit_begins_acts_or_is_refused(case: Case) -> None:
    class Adds(L.Callback):
        def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.callbacks.append(strategy)

    module, strategy = Plain(), case.make()
    if case.adds_parameters:
        with pytest.raises(RuntimeError, match="no optimizer holds the branches"):
            trainer(Adds()).fit(module, loader())
    else:
        trainer(Adds()).fit(module, loader())
        assert_trains_as_the_twin(case, module)


@each_case
def test_a_strategy_that_is_detached_during_fit_says_so(case: Case) -> None:
    class Detaches(L.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            strategy.detach()

    strategy = case.make()
    with pytest.raises(RuntimeError, match="is not attached to the module, so it would do nothing"):
        trainer(strategy, Detaches()).fit(Plain(), loader())


# ---- a run that breaks off without telling us ------------------------------------------------------------------------
class Untold(L.Callback):
    """Fails in its own `on_exception`, so that later callbacks' are not reached."""

    def on_exception(self, *_: Any) -> None:
        raise ValueError("theirs")


class BreaksOff(Plain):
    """Raises in the third step while it is broken."""

    broken = True

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.broken and batch_idx == 2:
            raise RuntimeError("the user's own")
        return super().training_step(batch, batch_idx)


def broken_off(case: Case) -> tuple[L.Trainer, BreaksOff, Any, dict[str, Any]]:
    """A Trainer that broke off, its module, which works from now on, the strategy that is left, and how it was."""
    module, strategy = BreaksOff(), case.make()
    module.broken = True
    before = snapshot(module)
    run = trainer(Untold(), strategy)
    with pytest.raises(ValueError, match="theirs"):
        run.fit(module, loader())
    assert strategy.is_attached, "what is tested does not happen"
    module.broken = False
    module.net.load_state_dict(Plain().net.state_dict())
    return run, module, strategy, before


@each_case
def test_the_next_attach_of_any_strategy_restores_the_module(case: Case) -> None:
    for other in CASES.values():
        _, module, strategy, before = broken_off(case)
        if other.kind == case.kind == "SymmetryCloning":
            other.make().attach(module)
            assert not strategy.is_attached
            continue
        second = other.make()
        second.name = "another"
        second.attach(module)
        assert not strategy.is_attached
        second.detach()
        assert snapshot(module) == before


@each_case
def test_a_later_run_without_us_restores_the_module(case: Case) -> None:
    _, module, strategy, before = broken_off(case)
    trainer().fit(module, loader())
    assert not strategy.is_attached
    assert snapshot(module) == before
    plain = Plain()
    trainer().fit(plain, loader())
    if not case.adds_parameters:  # their weights were in the module when the optimizer was made
        assert torch.equal(weights(module), weights(plain))


@pytest.mark.parametrize("again", ["same Trainer", "same module", "another module"])
@each_case
def test_the_strategy_is_free_again(case: Case, again: str) -> None:
    run, module, strategy, before = broken_off(case)
    target = module
    if again == "another module":
        target = BreaksOff()
        target.broken = False
    if again == "same Trainer":
        run.callbacks.pop(0)
        run.fit_loop.epoch_progress.reset()
        run.fit_loop.epoch_loop.reset()
        run.fit_loop.epoch_loop.batch_progress.reset()
    else:
        run = trainer(case.make() if again == "same module" else strategy)
    run.fit(target, loader())
    assert not strategy.is_attached
    assert snapshot(target) == before
    if again != "same Trainer":
        assert_trains_as_the_twin(case, target)
    module.net(loader().dataset.x)


class Forgets(L.Callback):
    """Takes every other callback out of the Trainer, so that their `teardown` is not reached."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.callbacks = [self]


@each_case
def test_a_trainer_that_is_forgotten_restores_the_module(case: Case) -> None:
    module, strategy = Plain(), case.make()
    before = snapshot(module)
    run = trainer(strategy, Forgets())
    run.fit(module, loader())
    assert strategy.is_attached, "what is tested does not happen"
    module._trainer = None
    del run
    gc.collect()
    assert not strategy.is_attached
    assert snapshot(module) == before
