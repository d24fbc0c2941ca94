"""A strategy's state belongs to a strategy, a module and a fit; what a checkpoint holds is checked first."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_equiv import RECM, RelaxedLayer
from tests.strategies.cases import CASES, GRADNORM, RETAIN, Case
from tests.strategies.recm_by_hand import make_recm
from tests.strategies.toys import Plain, loader, make_net, snapshot, trainer, weights

ALL = [*CASES.values(), GRADNORM]
each_state = pytest.mark.parametrize("case", ALL, ids=[case.name for case in ALL])


def fit(module: Plain, *callbacks: L.Callback, path: Path | None = None, **settings: Any) -> Plain:
    trainer(*callbacks, max_epochs=2, **settings).fit(module, loader(), ckpt_path=path)
    return module


class Reversed(Plain):
    """Another task: what it leaves in a strategy is of no use to others."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return 7 * super().training_step((batch[0], -5 * batch[1]), batch_idx)


# ---- whose state it is -----------------------------------------------------------------------------------------------
@each_state
def test_a_strategy_trains_another_module_as_a_new_one_does(case: Case) -> None:
    used, alone = case.make(), fit(Plain(), case.make())
    fit(Reversed(), used)
    assert torch.equal(weights(fit(Plain(), used)), weights(alone))


@each_state
def test_a_run_that_failed_leaves_nothing_for_another_module(case: Case, tmp_path: Path) -> None:
    """Also where it was resumed, and failed before the strategy was attached."""

    class Late(Plain):
        def on_fit_start(self) -> None:
            raise ValueError("theirs")

        def configure_optimizers(self) -> Any:
            raise ValueError("theirs")

    save = ModelCheckpoint(tmp_path, filename="saved")
    fit(Reversed(), case.make(), save, enable_checkpointing=True)
    used = case.make()
    run = trainer(used, ModelCheckpoint(tmp_path, filename="saved"), max_epochs=3, enable_checkpointing=True)
    with pytest.raises(ValueError, match="theirs"):
        run.fit(Late(), loader(), ckpt_path=tmp_path / "saved.ckpt")
    assert torch.equal(weights(fit(Plain(), used)), weights(fit(Plain(), case.make())))


# ---- copies ----------------------------------------------------------------------------------------------------------
COPIED: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda it: pickle.loads(pickle.dumps(it)),
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("how", COPIED)
@pytest.mark.parametrize("when", ["before a fit", "after a fit", "after a fault", "while attached"])
@pytest.mark.parametrize("case", [*ALL, RETAIN], ids=[case.name for case in [*ALL, RETAIN]])
def test_a_copy_of_a_strategy_trains_as_a_new_one(case: Case, when: str, how: str) -> None:
    def module() -> Plain:
        made = Plain()
        torch.manual_seed(0)
        made.head = torch.nn.Linear(3, 3)  # for what freezes the network
        made.task = lambda net, x, y: torch.nn.functional.mse_loss(made.head(net(x)), y)
        return made

    strategy, held = case.make(), module()
    if when == "after a fit":
        fit(held, strategy)
    elif when == "after a fault":
        with pytest.raises(ZeroDivisionError):
            fit(held, strategy, Breaks())
    elif when == "while attached":
        strategy.attach(held)
    twin = COPIED[how](strategy)
    assert not twin.is_attached
    assert torch.equal(weights(fit(module(), twin)), weights(fit(module(), case.make())))
    strategy.detach()


class Breaks(L.Callback):
    def on_train_batch_end(self, *args: Any) -> None:
        if args[-1] == 2:
            raise ZeroDivisionError


@pytest.mark.parametrize("inputs", [[0], lambda batch: batch[0]], ids=["keys", "a function"])
def test_inputs_from_the_data_are_copied_with_the_strategy(inputs: Any) -> None:
    from tests.strategies.cloned_by_hand import make_cloning

    strategy = make_cloning(inputs=inputs)
    twin = copy.deepcopy(strategy) if callable(inputs) else pickle.loads(pickle.dumps(strategy))
    assert torch.equal(weights(fit(Plain(), twin)), weights(fit(Plain(), strategy)))


# ---- RECM.restore ----------------------------------------------------------------------------------------------------
def recm() -> RECM:
    return make_recm(finalize="keep", gain=0.05)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("recm")
    fit(Plain(), recm(), ModelCheckpoint(folder, filename="saved"), enable_checkpointing=True)
    return torch.load(folder / "saved.ckpt", weights_only=True)


def without_a_layer(state: dict[str, Any]) -> None:
    del state["layers"]["net.0"]


def with_another_layer(state: dict[str, Any]) -> None:
    state["layers"]["net.9"] = state["layers"]["net.0"]


def with_nan_in_h(state: dict[str, Any]) -> None:
    state["layers"]["net.0"]["h"][0] = float("nan")


def with_an_infinite_branch(state: dict[str, Any]) -> None:
    next(iter(state["branches"].values())).view(-1)[0] = float("inf")


def without_a_branch(state: dict[str, Any]) -> None:
    del state["branches"][next(iter(state["branches"]))]


def of_another_format(state: dict[str, Any]) -> None:
    state["format"] = -1


def without_layers(state: dict[str, Any]) -> None:
    del state["layers"]


STATES = [without_a_layer, with_another_layer, with_nan_in_h, with_an_infinite_branch, without_a_branch]
DAMAGED = {change.__name__: change for change in [*STATES, of_another_format, without_layers]}
SPOILED: dict[str, Callable[[dict[str, Any]], None]] = {
    "a weight is missing": lambda weights: weights.pop("net.2.bias"),
    "a weight is not a number": lambda weights: weights["net.0.weight"].view(-1)[0].fill_(float("nan")),
    "a weight has another shape": lambda weights: weights.update({"net.2.bias": torch.zeros(4)}),
    "a weight too many": lambda weights: weights.update({"net.3.bias": torch.zeros(4)}),
}


@pytest.mark.parametrize("kept", [False, True], ids=["strict", "with relaxed layers"])
@pytest.mark.parametrize("damage", [*DAMAGED, *SPOILED])
def test_a_damaged_checkpoint_is_refused_and_changes_nothing(damage: str, kept: bool, saved: Any) -> None:
    strategy, checkpoint, module = recm(), copy.deepcopy(saved), Plain()
    if damage in DAMAGED:
        DAMAGED[damage](checkpoint["callbacks"][strategy.state_key])
    else:
        SPOILED[damage](checkpoint["state_dict"])
    if kept:
        fit(module, strategy)
        assert type(module.net[0]) is RelaxedLayer
    before, start = snapshot(module), weights(module)
    with pytest.raises((ValueError, RuntimeError, KeyError)):
        strategy.restore(module, checkpoint)
    assert snapshot(module) == before
    assert torch.equal(weights(module), start)
    assert not strategy.is_attached
    again, fresh = fit(Plain(), strategy), fit(Plain(), recm())
    assert torch.equal(weights(again), weights(fresh)), "the next fit is not broken"
    if kept:
        strategy = recm()
    strategy.restore(target := Plain(), saved)
    assert type(target.net[0]) is RelaxedLayer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_a_layer, r"does not fit the layers of RECM.*it lacks \['net.0'\]"),
        (with_another_layer, r"has \['net.9'\] besides"),
        (with_nan_in_h, r"\['layers'\]\['net.0'\]\['h'\] is not finite"),
        (of_another_format, "in format -1, expected"),
    ],
)
def test_what_is_said_of_a_damaged_checkpoint(change: Any, message: str, saved: Any) -> None:
    strategy, checkpoint = recm(), copy.deepcopy(saved)
    change(checkpoint["callbacks"][strategy.state_key])
    with pytest.raises((ValueError, RuntimeError), match=message):
        strategy.restore(Plain(), checkpoint)


def test_a_module_that_is_relaxed_already_is_restored_again(saved: Any) -> None:
    strategy, module = recm(), Plain(make_net())
    fit(module, strategy)
    strategy.restore(module, saved)
    recm().restore(fresh := Plain(), saved)
    assert torch.equal(weights(module), weights(fresh))
    assert type(module.net[0]) is RelaxedLayer
    assert type(module.net[0].layer) is torch.nn.Linear
