"""What every strategy must satisfy when a run goes wrong, or goes otherwise than the examples do.

As in the contract, a case is a strategy and the same training written by hand, its twin.
"""

from __future__ import annotations

import functools
import multiprocessing
import signal
import weakref
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateFinder, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_equiv import EquivarianceMonitor
from lightning_equiv.datasets.in_memory import ResumableLoader
from tests.strategies.cases import Case, Fails, each_case
from tests.strategies.faults import (
    Killed,
    breaks,
    change_batch,
    on_both_sides,
    optimise_by_hand,
    shared_net,
    skip_bad_steps,
    two_optimizers,
)
from tests.strategies.toys import SYMMETRY, Plain, Rows, assert_same, loader, make_net, snapshot, trainer, weights

Fit = Callable[..., None]  # (module, *callbacks)


def situation(name: str) -> Callable[[Any], Any]:
    """A row of the table: a test of every case."""

    def mark(test: Any) -> Any:
        return pytest.mark.situation(name)(each_case(test))

    return mark


def fits(batches: DataLoader | None = None, val: DataLoader | None = None, **settings: Any) -> Fit:
    """Training with a Trainer's settings."""

    def fit(module: Plain, *callbacks: L.Callback) -> None:
        trainer(*callbacks, **settings).fit(module, batches if batches is not None else loader(), val)

    return fit


def assert_equals_twin(case: Case, fit: Fit, ours: Plain | None = None, twin: Plain | None = None) -> None:
    """Both are trained by `fit`: their weights moved and are equal, and nothing is left on ours."""
    ours, twin = ours or Plain(), twin or case.make_twin()
    before, start = snapshot(ours), weights(ours.net)
    fit(ours, case.make())
    fit(twin)
    assert snapshot(ours) == before
    assert_trained(ours, start)
    assert_same(weights(ours.net), weights(twin.net))


def assert_trained(module: Plain, start: Tensor) -> None:
    assert (weights(module.net) - start).abs().max() > 1e-3, "nothing was trained"


def assert_breaks(
    case: Case, fit: Fit, make: Callable[[], Plain] = Plain, error: type[BaseException] = RuntimeError
) -> None:
    """`fit` ends in an error; the module is as it was before, and the strategy is free and trains as if new."""
    plain, module, strategy = make(), make(), case.make()
    before = snapshot(module)
    with pytest.raises(error, match=r"theirs|^1$"):
        fit(plain)
    with pytest.raises(error, match=r"theirs|^1$"):  # Lightning's own SystemExit(1)
        fit(module, strategy)
    # a validation that breaks off stays in evaluation mode, whoever is there
    assert snapshot(module) == {**before, "modes": snapshot(plain)["modes"]}
    assert_equals_twin(case, lambda module, *ours: fits()(module, *(strategy for _ in ours)))


# ---- runs that end early -------------------------------------------------------------------------------------------
def fit_and_save(folder: Path, *callbacks: L.Callback, ckpt_path: str | None = None) -> Plain:
    module = Plain()
    save = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=2)
    trainer(*callbacks, save, max_epochs=3, enable_checkpointing=True).fit(
        module, ResumableLoader(Rows(), 4), ckpt_path=ckpt_path
    )
    return module


def kill_and_resume(folder: Path, make: Callable[[], list[L.Callback]]) -> None:
    whole = fit_and_save(folder / "whole", *make())
    assert_trained(whole, weights(make_net()))
    run = multiprocessing.get_context("fork").Process(
        target=fit_and_save, args=(folder / "killed", *make(), Killed(step=11))
    )
    run.start()
    run.join()
    assert run.exitcode == -signal.SIGKILL
    saved = sorted(path.name for path in (folder / "killed").iterdir())
    assert saved == ["step=10.ckpt", "step=2.ckpt", "step=4.ckpt", "step=6.ckpt", "step=8.ckpt"]  # 6 steps an epoch
    resumed = fit_and_save(folder / "killed", *make(), ckpt_path=str(folder / "killed" / "step=10.ckpt"))
    assert torch.equal(weights(resumed), weights(whole))


def test_lightning_alone_resumes_bit_for_bit_in_mid_epoch(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, list)


@situation("killed in mid-epoch and resumed")
def test_killed_and_resumed(case: Case, tmp_path: Path) -> None:
    kill_and_resume(tmp_path, lambda: [case.make()])


class Interrupted(Fails):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx == 2:
            signal.raise_signal(signal.SIGINT)
        return super().training_step(batch, batch_idx)


@situation("Ctrl-C")
def test_ctrl_c(case: Case) -> None:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background has none
    try:
        assert_breaks(case, fits(), Interrupted, SystemExit)
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores the second Ctrl-C, and all later ones


@situation("an error in another callback's hook")
def test_another_callback_fails(case: Case) -> None:
    def fit(hook: str, error: type[BaseException], first: bool, module: Plain, *ours: L.Callback) -> None:
        callbacks = [breaks(hook, error("theirs")), *ours]
        fits(val=loader())(module, *callbacks[:: 1 if first else -1])

    for hook in ("on_train_batch_end", "on_validation_epoch_end"):
        for error, first in ((SystemExit, True), (ValueError, False)):
            assert_breaks(case, functools.partial(fit, hook, error, first), error=error)


class WithoutOptimizer(Plain):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        raise RuntimeError("theirs")


@situation("an error before the first batch")
def test_something_fails_before_training(case: Case) -> None:
    for hook in ("setup", "on_fit_start", "on_train_start"):
        later = breaks(hook, RuntimeError("theirs"))
        assert_breaks(case, lambda module, *ours, later=later: fits()(module, *ours, later))
    assert_breaks(case, fits(), WithoutOptimizer)


@situation("max_steps in mid-epoch")
def test_max_steps(case: Case) -> None:
    assert_equals_twin(case, fits(max_epochs=-1, max_steps=8))


@situation("max_time, and no other end")
def test_max_time(case: Case, record_property: Any) -> None:
    module, soon = Plain(), timedelta(milliseconds=60)
    before, start = snapshot(module), weights(module)
    fit = fits(max_epochs=-1, max_time=soon)
    if case.needs_end:
        with pytest.raises(ValueError, match=r"how long the run is.*set max_epochs or max_steps"):
            fit(module, case.make())
        assert snapshot(module) == before
        record_property("refused", "a schedule needs an end")
        fit = fits(max_epochs=10_000, max_time=soon)
    fit(module, case.make())
    assert snapshot(module) == before
    assert_trained(module, start)
    assert torch.isfinite(weights(module)).all()


@situation("early stopping")
def test_early_stopping(case: Case) -> None:
    def fit(module: Plain, *callbacks: L.Callback) -> None:
        stop = EarlyStopping("val_loss", stopping_threshold=1e9)
        run = trainer(*callbacks, stop, max_epochs=3)
        run.fit(module, loader(), loader())
        assert run.global_step == 6

    assert_equals_twin(case, fit)


# ---- other callbacks and tools -------------------------------------------------------------------------------------
@situation("stochastic weight averaging after ours")
def test_stochastic_weight_averaging_after(case: Case) -> None:
    def fit(module: Plain, *callbacks: L.Callback) -> None:
        average = StochasticWeightAveraging(swa_lrs=0.02, swa_epoch_start=1, annealing_epochs=2)
        fits(max_epochs=3)(module, *callbacks, average)

    assert_equals_twin(case, fit)


@situation("stochastic weight averaging before ours")
def test_stochastic_weight_averaging_before(case: Case, record_property: Any) -> None:
    def fit(module: Plain, *callbacks: L.Callback) -> None:
        average = StochasticWeightAveraging(swa_lrs=0.02, swa_epoch_start=1, annealing_epochs=2)
        fits(max_epochs=3)(module, average, *callbacks)

    if case.adds_parameters:  # it pairs the parameters of its copy with the module's by their order
        with pytest.raises(RuntimeError, match="must come after"):
            fit(Plain(), case.make())
        record_property("refused", "must come after ours")
    else:
        assert_equals_twin(case, fit)


@situation("learning-rate finder")
def test_lr_find(case: Case, tmp_path: Path) -> None:
    module, strategy = Plain(), case.make()
    run = trainer(strategy, default_root_dir=tmp_path)
    before = snapshot(module)
    Tuner(run).lr_find(module, loader(), num_training=10, update_attr=False)
    assert snapshot(module) == before
    assert torch.equal(weights(module), weights(Plain()))
    assert strategy.state_dict() == {}, "something is left of the trial run"
    assert_equals_twin(case, lambda module, *ours: run.fit(module, loader()) if ours else fits()(module), module)


@situation("learning-rate finder among the callbacks")
def test_lr_finder_as_a_callback(case: Case, tmp_path: Path) -> None:
    def fit(first: bool, module: Plain, *ours: L.Callback) -> None:
        finder = LearningRateFinder(num_training_steps=10, update_attr=False)
        callbacks = [finder, *ours] if ours else []  # twins do not save what they remember
        fits(default_root_dir=tmp_path)(module, *callbacks[:: 1 if first else -1])

    for first in (True, False):
        assert_equals_twin(case, functools.partial(fit, first))


class Sized(Plain):
    batch_size = 2

    def train_dataloader(self) -> DataLoader:
        return loader(batch_size=self.batch_size)

    val_dataloader = train_dataloader


@situation("batch-size finder")
def test_scale_batch_size(case: Case, tmp_path: Path) -> None:
    module, plain, strategy = Sized(), Sized(), case.make()
    run = trainer(strategy, default_root_dir=tmp_path)
    for tuned, its in ((module, run), (plain, trainer(default_root_dir=tmp_path))):
        Tuner(its).scale_batch_size(tuned, init_val=2, max_trials=2, steps_per_trial=2)
    assert snapshot(module) == snapshot(plain)  # Lightning sets the size that it found
    assert module.batch_size == plain.batch_size == 4
    assert torch.equal(weights(module), weights(Plain()))
    assert strategy.state_dict() == {}, "something is left of the trial run"
    assert_equals_twin(case, lambda module, *ours: run.fit(module) if ours else fits()(module), module)


@situation("overfit_batches")
def test_overfit_batches(case: Case) -> None:
    assert_equals_twin(case, fits(overfit_batches=2, max_epochs=4))


@situation("fast_dev_run")
def test_fast_dev_run(case: Case) -> None:
    for batches in (True, 3):
        assert_equals_twin(case, fits(val=loader(), fast_dev_run=batches))


@situation("validate, test or predict without fit")
def test_evaluation_alone(case: Case) -> None:
    class Evaluated(Plain):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("test_loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]))

        def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.net(batch[0])

    module, alone = Evaluated(), Evaluated()
    before = snapshot(module)
    for verb in ("validate", "test", "predict"):
        ours, theirs = (
            getattr(trainer(*callbacks), verb)(m, DataLoader(Rows(), batch_size=4))
            for m, callbacks in ((module, [case.make()]), (alone, []))
        )
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        assert snapshot(module) == {**before, "modes": snapshot(alone)["modes"]}
    assert torch.equal(weights(module), weights(alone))


# ---- other modules -------------------------------------------------------------------------------------------------
@situation("two optimizers")
def test_two_optimizers(case: Case, record_property: Any) -> None:
    before = snapshot(Plain())
    module = two_optimizers(Plain())
    with pytest.raises(RuntimeError, match="only supported with manual optimization"):  # Lightning's own
        fits()(module, case.make())
    del module.configure_optimizers
    assert snapshot(module) == before
    if not case.changes_loss:
        assert_equals_twin(case, fits(), optimise_by_hand(Plain()), optimise_by_hand(case.make_twin()))
        return
    module = optimise_by_hand(Plain())
    before = snapshot(module)
    has_a_loss_of_its_own = case.kind == "REMUL"
    with pytest.raises(RuntimeError, match=r"manual optimisation.*automatic_optimization = True") as refused:
        fits()(module, case.make())
    assert ("SymmetryMixin" in str(refused.value)) == has_a_loss_of_its_own, "the cure for that case"
    assert snapshot(module) == before
    assert torch.equal(weights(module), weights(Plain()))
    record_property("refused", "changes the loss" + (": see SymmetryMixin" if has_a_loss_of_its_own else ""))


@situation("frozen layers")
def test_frozen_layers(case: Case) -> None:
    frozen: list[Tensor] = []

    class Freeze(L.Callback):
        def on_train_start(self, _: L.Trainer, module: L.LightningModule) -> None:
            module.net[0].requires_grad_(False)  # after the twin of symmetry cloning has taught it
            frozen.append(module.net[0].weight.clone())

    ours = Plain()
    ours.net[0].requires_grad_(False)
    if case.folds:
        with pytest.raises(ValueError, match="has no weights of its own that train"):
            fits()(ours, case.make())
        return
    assert_equals_twin(case, lambda module, *callbacks: fits()(module, *callbacks, Freeze()), ours)
    assert torch.equal(ours.net[0].weight, frozen[0])
    if case.prepare is None:  # or frozen weights were taught before training
        assert torch.equal(ours.net[0].weight, make_net()[0].weight)
    assert [p.requires_grad for p in ours.net.parameters()] == [False, False, True, True]


@situation("shared layers and tied weights")
def test_shared_layers(case: Case) -> None:
    for how in ("one layer under two names", "two layers with the same weights"):
        twin = case.make_twin(shared_net(how))
        if case.adds_parameters:
            last = twin.net[3:]  # relaxed too where they are the same layers
            twin.passes = lambda net, x, how=how, last=last: net(net(x)) if how.startswith("one") else last(net(x))
        assert_equals_twin(case, fits(), Plain(shared_net(how)), twin)


@situation("a network called twice in a step")
def test_called_twice(case: Case, record_property: Any) -> None:
    ours = Plain()
    ours.task = on_both_sides
    if case.called_twice is None:
        assert_equals_twin(case, fits(), ours, case.make_twin(task=on_both_sides))
        return
    before = snapshot(ours)
    with pytest.raises(case.called_twice.error, match=case.called_twice.match):
        fits()(ours, case.make())
    assert snapshot(ours) == before
    record_property("refused", case.called_twice.words)


# ---- other data ----------------------------------------------------------------------------------------------------
@situation("a loss of NaN")
def test_nan_loss(case: Case) -> None:
    def bad(module: Plain) -> Plain:
        return change_batch(module, 2, lambda loss: 0 if loss is None else loss * float("nan"))

    module, strategy = bad(Plain()), case.make()
    before = snapshot(module)
    fits(val=loader())(module, strategy)
    assert snapshot(module) == before
    assert torch.isnan(weights(module)).all()  # as without us
    assert_equals_twin(case, lambda module, *ours: fits()(module, *(strategy for _ in ours)))  # nothing stays in it


@situation("NaN, and a user who skips such steps")
def test_skipped_nan(case: Case) -> None:
    def bad(module: Plain) -> Plain:
        return skip_bad_steps(change_batch(module, 2, lambda loss: 0 if loss is None else loss * float("nan")))

    if not case.reads_task_loss:
        assert_equals_twin(case, fits(max_epochs=2), bad(Plain()), bad(case.make_twin()))
    module, batches = skip_bad_steps(Plain()), loader()
    batches.dataset.x[9] = float("nan")
    fits(batches, max_epochs=2)(module, case.make())
    assert torch.isfinite(weights(module)).all()
    good = skip_bad_steps(Plain())
    fits(max_epochs=2)(good, case.make())
    torch.testing.assert_close(weights(module), weights(good), rtol=0, atol=0.1)  # it trained on the other batches
    assert_trained(module, weights(Plain()))


@situation("a step that returns None")
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_step_that_returns_none(case: Case) -> None:
    twin = change_batch(case.make_twin(), 2, lambda loss: None)
    commit = twin.on_train_batch_end
    twin.on_train_batch_end = lambda outputs, batch, i: None if i == 2 else commit(outputs, batch, i)
    assert_equals_twin(case, fits(), change_batch(Plain(), 2, lambda loss: None), twin)


class Forgets(Plain):
    """Looks, after a validation, which outputs of the network are still in memory."""

    kept: list[bool]

    def on_validation_epoch_start(self) -> None:
        self.outputs: list[weakref.ref[Tensor]] = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        output = self.net(batch[0])
        self.outputs.append(weakref.ref(output))

    def on_validation_epoch_end(self) -> None:
        self.kept = [output() is not None for output in self.outputs]


@situation("a last step that returns None, then validation")
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_none_before_validation(case: Case) -> None:
    module = change_batch(Forgets(), 5, lambda loss: None)
    fits(val=loader())(module, case.make())
    assert module.kept == [False] * 6


@situation("an empty validation set")
@pytest.mark.filterwarnings("ignore:Total length of `DataLoader` across ranks is zero")
def test_empty_validation_set(case: Case) -> None:
    for monitors in (0, 1):

        def fit(module: Plain, *callbacks: L.Callback, monitors: int = monitors) -> None:
            watch = [EquivarianceMonitor(SYMMETRY, network="net") for _ in range(monitors)]
            fits(val=DataLoader(Rows(0), 4))(module, *callbacks, *watch)

        assert_equals_twin(case, fit)


@situation("a last batch of one sample")
def test_ragged_batches(case: Case) -> None:
    assert_equals_twin(case, fits(loader(n=9)))
    assert_equals_twin(case, fits(loader(n=4, batch_size=1)))


# ---- checkpoints ---------------------------------------------------------------------------------------------------
@situation("a state of another format")
def test_state_of_another_format(case: Case, tmp_path: Path, record_property: Any) -> None:
    def fit(*callbacks: L.Callback, ckpt_path: str | None = None, module: Plain | None = None) -> None:
        save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        trainer(*callbacks, save, max_epochs=2, enable_checkpointing=True).fit(
            module or Plain(), loader(), ckpt_path=ckpt_path
        )

    fit(case.make())
    saved, key = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True), case.make().state_key
    if not case.has_state:
        assert key not in saved["callbacks"]
        pytest.skip("has no state")
    fit(case.make(), ckpt_path=str(tmp_path / "epoch=0.ckpt"))  # its own
    for change in ({"format": -1}, {}):
        state = {name: value for name, value in saved["callbacks"][key].items() if name != "format"}
        path = tmp_path / "changed.ckpt"
        torch.save({**saved, "callbacks": {**saved["callbacks"], key: {**state, **change}}}, path)
        module = Plain()
        before = snapshot(module)
        with pytest.raises(RuntimeError, match="format"):
            fit(case.make(), ckpt_path=str(path), module=module)
        assert snapshot(module) == before
    record_property("refused", "says which format it expects")
