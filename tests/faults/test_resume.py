"""Resuming: with other strategies than were saved, from files that were written to do harm, and from every step."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_equiv import RECM, RegressionModule, RelaxedLayer, SymmetryCallback
from lightning_equiv.datasets.in_memory import ResumableLoader
from tests.strategies.cases import CASES, GRADNORM, Case, each_case
from tests.strategies.recm_by_hand import make_recm
from tests.strategies.relaxed_by_hand import make_relaxation
from tests.strategies.toys import Plain, Rows, loader, make_net, snapshot, trainer, weights

BRANCHES = {name: case for name, case in CASES.items() if case.adds_parameters}
each_with_branches = pytest.mark.parametrize("case", BRANCHES.values(), ids=BRANCHES)
ALL = [*CASES.values(), GRADNORM]


def run(
    module: L.LightningModule, folder: Path, *callbacks: L.Callback, path: Path | None = None, **settings: Any
) -> Any:
    save = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=settings.pop("every", 1))
    made = trainer(*callbacks, save, enable_checkpointing=True, **{"max_epochs": 2, **settings})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`|The dirpath has changed")  # Lightning's
        made.fit(module, ResumableLoader(Rows(), 4), ckpt_path=path)
    return module


# ---- other strategies than were saved --------------------------------------------------------------------------------
@each_with_branches
def test_a_strategy_that_the_checkpoint_lacks_is_named(case: Case, tmp_path: Path) -> None:
    run(Plain(), tmp_path, max_epochs=1)
    module, strategy = Plain(), case.make()
    before = snapshot(module)
    with pytest.raises(RuntimeError, match=rf"the module alone, and none of {case.kind}.*which this run has"):
        run(module, tmp_path, strategy, path=tmp_path / "step=3.ckpt")
    assert snapshot(module) == before


@each_with_branches
@pytest.mark.parametrize("with_another", [False, True])
def test_a_strategy_that_the_run_lacks_is_named(case: Case, with_another: bool, tmp_path: Path) -> None:
    """By a module of ours, or any other strategy; for a user's own module alone Lightning names it in a warning."""
    run(Plain(), tmp_path, case.make(), max_epochs=1)
    module: Any = Plain() if with_another else RegressionModule(make_net(), lr=0.1, optimizer=torch.optim.SGD)
    others: list[SymmetryCallback] = [CASES["augmentation"].make()] if with_another else []
    with pytest.raises(RuntimeError, match=rf"holds weights of {case.kind}.*which this run lacks"):
        run(module, tmp_path, *others, path=tmp_path / "step=3.ckpt")
    assert not any(strategy.is_attached for strategy in others)


def test_one_strategy_in_the_place_of_another_names_both(tmp_path: Path) -> None:
    run(Plain(), tmp_path, make_relaxation(), max_epochs=1)
    with pytest.raises(
        RuntimeError, match=r"holds weights of ConstraintRel.*lacks, and none of RECM.*which this run has"
    ):
        run(Plain(), tmp_path, make_recm(), path=tmp_path / "step=3.ckpt")


@each_case
def test_weights_alone_are_loaded_with_or_without_a_strategy(case: Case, tmp_path: Path) -> None:
    """What the message says works."""
    run(Plain(), tmp_path, case.make(), max_epochs=1)
    module = Plain()
    module.load_state_dict(torch.load(tmp_path / "step=3.ckpt")["state_dict"])
    trainer().fit(module, loader())


# ---- a module that was saved after RECM ------------------------------------------------------------------------------
class Relaxable(RegressionModule):
    def __init__(self, lr: float = 0.05) -> None:
        super().__init__(make_net(), lr=lr, optimizer=torch.optim.SGD)


def test_a_module_that_was_saved_with_relaxed_layers_says_how_it_loads(tmp_path: Path) -> None:
    strategy, module = make_recm(finalize="keep", gain=0.05), Relaxable()
    made = trainer(strategy, max_epochs=2)
    made.fit(module, loader())
    assert type(module.net[0]) is RelaxedLayer
    made.save_checkpoint(tmp_path / "after.ckpt")
    with pytest.raises(ValueError, match=r"\['net.0', 'net.2'\] that RECM.*RECM\(...\).restore\(module, torch.load"):
        Relaxable.load_from_checkpoint(tmp_path / "after.ckpt")
    again = Relaxable()
    make_recm(finalize="keep", gain=0.05).restore(again, torch.load(tmp_path / "after.ckpt", weights_only=False))
    x = loader().dataset.x
    torch.testing.assert_close(again.net(x), module.net(x))
    assert isinstance(strategy, RECM)


# ---- states that were written to do harm -----------------------------------------------------------------------------
class Harmful:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


STATEFUL = [case for case in ALL if case.has_state]


@pytest.mark.parametrize("case", STATEFUL, ids=[case.name for case in STATEFUL])
def test_what_a_state_holds_is_never_run(case: Case, tmp_path: Path) -> None:
    run(Plain(), tmp_path, case.make(), max_epochs=1)
    path, mark = tmp_path / "step=3.ckpt", tmp_path / "harm"
    saved = torch.load(path, weights_only=True)  # a file of ours is safe
    state = saved["callbacks"][case.make().state_key]
    for words in ("os:mkdir", "__import__('os').mkdir('harm')", "tests.strategies.toys.Plain"):
        hostile = dict.fromkeys(state, words) | {"format": state["format"]}
        torch.save({**saved, "callbacks": {case.make().state_key: hostile}}, path)
        module = Plain()
        before = snapshot(module)
        with pytest.raises((TypeError, ValueError, AttributeError, KeyError, RuntimeError)):
            run(module, tmp_path / "on", case.make(), path=path)
        assert snapshot(module) == before
    hostile = {**state, "more": Harmful(mark)}
    torch.save({**saved, "callbacks": {case.make().state_key: hostile}}, path)
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        trainer(case.make()).fit(Plain(), loader(), ckpt_path=path, weights_only=True)
    assert not mark.exists()


# ---- every step ------------------------------------------------------------------------------------------------------
def assert_resumes(case: Case, folder: Path, steps: list[int], **settings: Any) -> None:
    whole = run(Plain(), folder / "whole", case.make(), **settings)
    assert (weights(whole) - weights(Plain())).abs().max() > 1e-3
    for step in steps:
        path = folder / "whole" / f"step={step}.ckpt"
        resumed = run(Plain(), folder / f"{step}", case.make(), path=path, **settings)
        assert torch.equal(weights(resumed), weights(whole)), (case.name, step, settings)


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"accumulate_grad_batches": 2, "max_epochs": 3},
    "clipped": {"gradient_clip_val": 0.1},
    "max_steps": {"max_steps": 9, "max_epochs": -1},
}


@pytest.mark.parametrize("case", ALL, ids=[case.name for case in ALL])
def test_a_run_is_resumed_from_any_step(case: Case, tmp_path: Path) -> None:
    """Two of its steps, other ones for every case, under one setting."""
    i = ALL.index(case)
    name = list(SETTINGS)[i % len(SETTINGS)]
    steps = [1 + i % 5, 6 + i % 3]
    assert_resumes(case, tmp_path, steps, **SETTINGS[name])


@pytest.mark.sweep
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("case", ALL, ids=[case.name for case in ALL])
def test_a_run_is_resumed_from_every_step(case: Case, settings: dict[str, Any], tmp_path: Path) -> None:
    assert_resumes(case, tmp_path, list(range(1, 9)), **settings)
