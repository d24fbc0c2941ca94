"""Every hook of a callback and of the module fails at its first, second and third call: nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.strategies.cases import CASES, GRADNORM, RETAIN, Case
from tests.strategies.toys import Plain, assert_same, loader, make_net, snapshot, trainer, weights

OF_CALLBACKS = [
    *(
        "setup",
        "on_fit_start",
        "on_sanity_check_start",
        "on_sanity_check_end",
        "on_train_start",
        "on_train_epoch_start",
    ),
    *("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_train_batch_end", "on_validation_start", "on_validation_epoch_start"),
    *("on_validation_batch_start", "on_validation_batch_end", "on_validation_epoch_end", "on_validation_end"),
    *("on_save_checkpoint", "state_dict", "on_train_epoch_end", "on_train_end", "on_fit_end", "teardown"),
]
OF_MODULES = [
    *("setup", "configure_model", "configure_optimizers", "configure_callbacks", "on_fit_start", "on_train_start"),
    *("on_train_epoch_start", "on_train_batch_start", "training_step", "on_before_zero_grad", "on_before_backward"),
    *("backward", "on_after_backward", "on_before_optimizer_step", "configure_gradient_clipping", "optimizer_step"),
    *("optimizer_zero_grad", "lr_scheduler_step", "on_train_batch_end", "on_validation_start", "validation_step"),
    *("on_validation_epoch_start", "on_validation_batch_start", "on_validation_batch_end", "on_validation_epoch_end"),
    *("on_validation_end", "on_validation_model_eval", "on_validation_model_train", "transfer_batch_to_device"),
    *("on_before_batch_transfer", "on_after_batch_transfer", "on_save_checkpoint", "on_train_epoch_end"),
    *("on_train_end", "on_fit_end", "teardown", "prepare_data", "train_dataloader", "val_dataloader"),
]
FAULTS = [
    (owner, hook, call)
    for owner, hooks in (("first", OF_CALLBACKS), ("last", OF_CALLBACKS), ("module", OF_MODULES))
    for hook in hooks
    for call in (1, 2, 3)
]
STRATEGIES = [*CASES.values(), GRADNORM]


class Theirs(Exception):
    """What a hook raises."""


def failing(original: Callable[..., Any], call: int) -> Callable[..., Any]:
    """The hook, which raises when it is called for the n-th time."""
    calls = 0

    def hook(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Theirs
        return original(*args, **kwargs)

    return hook


class Loaded(Plain):
    """Brings its data, and a schedule of its learning rate."""

    def train_dataloader(self) -> Any:
        return loader(n=12)

    def val_dataloader(self) -> Any:
        return loader(n=8)

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=1.0), "interval": "step"}
        ]


def module_that_fails(hook: str, call: int) -> Loaded:
    original = getattr(Loaded, hook)
    fails = failing(original, call)

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        return fails(self, batch, batch_idx)

    def any_hook(self: Any, *args: Any, **kwargs: Any) -> Any:
        return fails(self, *args, **kwargs)

    return type("Breaks", (Loaded,), {hook: step if hook in ("training_step", "validation_step") else any_hook})()


def bombard(case: Case, owner: str, hook: str, call: int, folder: Path) -> bool:
    """Whether the fault came about; nothing is left on the module, and the strategy is free."""
    strategy, callback, module = case.make(), L.Callback(), Loaded()
    if owner == "module":
        module = module_that_fails(hook, call)
    else:
        setattr(callback, hook, failing(getattr(callback, hook), call))
    before = snapshot(module)
    save = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    run = trainer(
        *[callback, strategy, save][:: 1 if owner == "first" else -1], max_epochs=3, enable_checkpointing=True
    )
    try:
        run.fit(module)
        broke = False
    except Theirs:
        broke = True
    after, place = snapshot(module), (case.name, owner, hook, call)
    for part in before.keys() - {"modes"}:  # a validation that breaks off stays in evaluation mode, whoever is there
        assert after[part] == before[part], (*place, part)
    assert all(p.requires_grad for p in module.parameters()), place
    assert not strategy.is_attached, place
    assert not strategy._stage_undo._exit_callbacks, place
    strategy.attach(fresh := Plain())
    strategy.detach()
    assert snapshot(fresh) == snapshot(Plain()), place
    return broke


@pytest.mark.parametrize("case", STRATEGIES, ids=[case.name for case in STRATEGIES])
def test_a_hook_that_fails_leaves_nothing_behind(case: Case, tmp_path: Path) -> None:
    """Each fault for one strategy."""
    mine = FAULTS[STRATEGIES.index(case) :: len(STRATEGIES)]
    broke = [bombard(case, *fault, tmp_path) for fault in mine]
    assert sum(broke) > len(mine) / 2, "hardly anything failed"


@pytest.mark.sweep
@pytest.mark.parametrize("case", STRATEGIES, ids=[case.name for case in STRATEGIES])
def test_every_hook_that_fails_leaves_nothing_behind(case: Case, tmp_path: Path) -> None:
    assert sum(bombard(case, *fault, tmp_path) for fault in FAULTS) > len(FAULTS) / 2


@pytest.mark.parametrize("case", STRATEGIES, ids=[case.name for case in STRATEGIES])
def test_a_strategy_whose_own_state_fails_is_restored(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where no memory is left for its copy."""

    def fails() -> dict[str, Any]:
        raise Theirs

    module, strategy = module_that_fails("training_step", 2), case.make()
    before = snapshot(module)
    monkeypatch.setattr(strategy, "own_state", fails)
    with pytest.raises(Theirs):
        trainer(strategy).fit(module)
    assert not strategy.is_attached
    assert snapshot(module) == before


def test_a_strategy_is_as_new_after_a_fault(tmp_path: Path) -> None:
    for case in STRATEGIES:
        strategy, modules = case.make(), [Plain(make_net()), Plain(make_net())]
        with pytest.raises(Theirs):
            trainer(strategy).fit(module_that_fails("on_train_batch_end", 2))
        for one, module in zip((strategy, case.make()), modules, strict=True):
            trainer(one).fit(module, loader())
        assert_same(*map(weights, modules))


@pytest.mark.parametrize("hook", ["on_fit_start", "configure_optimizers", "training_step"])
def test_what_is_frozen_trains_again_after_a_fault(hook: str) -> None:
    module, strategy = module_that_fails(hook, 1), RETAIN.make()
    module.head = torch.nn.Linear(3, 3)
    with pytest.raises(Theirs):
        trainer(strategy).fit(module)
    assert all(p.requires_grad for p in module.parameters())
