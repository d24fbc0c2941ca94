"""Recording, logging and global switches belong to one run, one thread and one step."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.connectors import data_connector
from torch import Tensor, nn

from lightning_equiv import REMUL, EquivarianceError
from lightning_equiv.layers.branch import branches_off
from lightning_equiv.wiring.call_recorder import CallRecorder, recording_paused
from lightning_equiv.wiring.override import override
from tests.helpers import normal
from tests.strategies.cases import Case, Fails, each_case
from tests.strategies.relaxed_by_hand import make_relaxation
from tests.strategies.toys import SYMMETRY, Plain, loader, make_net, trainer, weights


def in_threads(*functions: Callable[[], Any]) -> None:
    """Run functions side by side; an error of one is an error here."""
    errors: list[BaseException] = []

    def guarded(function: Callable[[], Any]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# ---- threads --------------------------------------------------------------------------------------------------------
def test_a_comparison_in_another_thread_pauses_no_recorder() -> None:
    recorder, paused, done = CallRecorder(net := make_net()), threading.Event(), threading.Event()

    def compares() -> None:
        with recording_paused():
            paused.set()
            assert done.wait(10)

    def steps() -> None:
        recorder.start()
        other = threading.Thread(target=compares)
        other.start()
        assert paused.wait(10)
        net(torch.randn(2, 3))
        done.set()
        other.join()

    in_threads(steps)
    assert len(recorder.stop()) == 1


def test_a_recorder_that_is_stopped_in_a_pause_stays_stopped() -> None:
    recorder = CallRecorder(net := make_net())
    recorder.start()
    with recording_paused():
        recorder.stop()
    net(torch.randn(2, 3))
    assert recorder.stop() == []


@each_case
def test_trainings_in_two_threads_are_those_of_one(case: Case) -> None:
    """As a search for hyper-parameters with two jobs runs them, while a third thread measures."""
    if case.prepare is not None:
        pytest.skip("it copies a teacher of e3nn, which torch.fx traces: no other thread may run a module meanwhile")
    # in a process of its own, where Lightning does not replace DataLoader.__init__ for a moment: its threads race there
    run = multiprocessing.get_context("fork").Process(target=train_two_at_once, args=(case,))
    run.start()
    run.join()
    assert run.exitcode == 0


def train_two_at_once(case: Case) -> None:
    data_connector._replace_dunder_methods = lambda *_: nullcontext()
    alone = Plain()
    trainer(case.make()).fit(alone, loader())
    pair, running = [(Plain(), case.make()), (Plain(), case.make())], threading.Event()

    def measures() -> None:
        net, metric = make_net(), EquivarianceError(SYMMETRY)
        while not running.is_set():
            metric.update(net, normal(4, 3, dtype=torch.float32))

    def trains() -> None:
        try:
            in_threads(*(lambda run=run: trainer(run[1]).fit(run[0], loader()) for run in pair))
        finally:
            running.set()

    in_threads(measures, trains)
    for module, _ in pair:
        assert torch.equal(weights(module), weights(alone))


def test_the_branches_of_another_thread_stay_on() -> None:
    module, strategy = Plain(), make_relaxation()
    strategy.attach(module)
    strategy.relax(1.0)
    x = torch.randn(2, 3)
    with torch.no_grad():
        relaxed = module.net(x)
        seen: list[Tensor] = []

        def elsewhere() -> None:
            with branches_off():
                off.set()
                assert done.wait(10)

        off, done = threading.Event(), threading.Event()
        other = threading.Thread(target=elsewhere)
        other.start()
        assert off.wait(10)
        seen.append(module.net(x))
        done.set()
        other.join()
        with branches_off():
            seen.append(module.net(x))
    strategy.detach()
    assert torch.equal(seen[0], relaxed)
    assert torch.equal(seen[1], make_net()(x))


def test_functions_that_were_taken_back_are_known_by_themselves() -> None:
    """Also where somebody's wrapper copied the attributes of one."""
    import functools

    module = nn.Module()
    first = override(module, "f", ours := lambda: 1)
    first()
    theirs = functools.wraps(ours)(lambda: 2)
    second = override(module, "f", theirs)
    third = override(module, "f", lambda: 3)
    third()
    assert module.f() == 2, "theirs stays"
    second()
    assert "f" not in module.__dict__


# ---- a step that fails ---------------------------------------------------------------------------------------------
def test_recording_ends_with_a_step_that_fails() -> None:
    """A loop that goes on after an error, such as memory that ran out, keeps nothing of it."""
    module, remul = Fails(), REMUL(SYMMETRY, "net")
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    recorders: list[CallRecorder] = []
    start = CallRecorder.start
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CallRecorder, "start", lambda self: (recorders.append(self), start(self))[1])
        remul.attach(module)
        batch = next(iter(loader()))
        module.training_step(batch, 0)
        net = module.net
        module.task = lambda net, x, y: net(x).sum() / {}  # type: ignore[assignment, method-assign]
        with pytest.raises(TypeError):
            module.training_step(batch, 0)
    for _ in range(100):
        net(batch[0])
    assert recorders
    assert recorders[0]._calls == []
    remul.detach()


@pytest.mark.parametrize("first", ["after", "before"])
def test_recording_ends_where_another_strategy_fails(first: str) -> None:
    module = Plain()
    module.log = lambda *_, **__: None  # type: ignore[method-assign]

    def fails(*_: Any) -> Tensor:
        raise KeyError("theirs")

    strategies = [REMUL(SYMMETRY, "net", name="one"), REMUL(SYMMETRY, "net", name="two")]
    for strategy in strategies:
        strategy.attach(module)
    kept: list[CallRecorder] = []
    start = CallRecorder.start
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CallRecorder, "start", lambda self: (kept.append(self), start(self))[1])
        patch.setattr(strategies[0], "_total" if first == "after" else "generator", fails)
        with pytest.raises(KeyError):
            module.training_step(next(iter(loader())), 0)
    module.net(torch.randn(4, 3))
    assert len(kept) == 2
    assert all(recorder.stop() == [] for recorder in kept)
    for strategy in strategies:
        strategy.detach()


# ---- logging -------------------------------------------------------------------------------------------------------
@each_case
def test_a_loop_by_hand_after_a_trainer_had_the_module(case: Case) -> None:
    class Quiet(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.task(self.net, *batch)

    module, strategy = Quiet(), case.make()
    trainer().fit(module, loader())
    strategy.attach(module)
    strategy.update(0, 1)
    module.training_step(next(iter(loader())), 0).backward()
    strategy.detach()
