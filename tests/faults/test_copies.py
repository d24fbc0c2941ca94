"""A copy of the module that is made while it trains works by itself."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import lightning as L
import torch
from torch import nn

from lightning_equiv.layers.hidden_parameters import CONTAINER
from tests.strategies.cases import Case, each_case
from tests.strategies.toys import Plain, loader, trainer, weights


class Snapshot(L.Callback):
    """Copies the module after the second step."""

    def __init__(self, how: Any = copy.deepcopy) -> None:
        self.how, self.copy = how, None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == 2:
            pl_module.zero_grad()
            self.copy = self.how(pl_module)
            self.state = {key: value.clone() for key, value in pl_module.state_dict().items()}


def snapshot(case: Case) -> Plain:
    look, original = Snapshot(), Plain()
    trainer(case.make(), look).fit(original, loader())
    module = look.copy
    assert isinstance(module, Plain)
    assert module is not original
    assert list(module.state_dict()) == list(look.state)
    assert all(torch.equal(value, look.state[key]) for key, value in module.state_dict().items())
    return module


def fresh(module: nn.Module) -> Plain:
    """A module that no strategy ever saw, with the same weights."""
    new = Plain()
    new.load_state_dict(module.state_dict())
    return new


@each_case
def test_a_copy_is_the_users_module(case: Case) -> None:
    """It calls its own step and its own layers, and trains as one that was never trained with a strategy."""
    module = snapshot(case)
    expected = fresh(module)
    assert module.training_step.__self__ is module  # type: ignore[attr-defined]
    x = torch.randn(5, 3)
    assert torch.equal(module.net(x), expected.net(x)), "no branch is applied"
    for m in (module, expected):
        trainer(gradient_clip_val=0.5).fit(m, loader())
    for key, value in expected.state_dict().items():
        assert torch.equal(module.state_dict()[key], value)
    assert not any(p.requires_grad for name, p in module.named_parameters() if CONTAINER in name)


@each_case
def test_a_copy_trains_with_the_strategy(case: Case) -> None:
    """A fresh strategy takes out what the copy still had of another's."""
    module = snapshot(case)
    expected = fresh(module)
    for m in (module, expected):
        trainer(case.make()).fit(m, loader())
    assert torch.equal(weights(module), weights(expected))
    assert list(dict(module.named_modules())) == list(dict(expected.named_modules()))


@each_case
def test_the_original_goes_on(case: Case) -> None:
    copied, plain = Plain(), Plain()
    trainer(case.make(), Snapshot()).fit(copied, loader())
    trainer(case.make()).fit(plain, loader())
    assert torch.equal(weights(copied), weights(plain))


@each_case
def test_an_attribute_of_the_users_instance_is_copied(case: Case) -> None:
    """A step that the user put on the instance is, as ever, the function that it was."""
    original, strategy = Plain(), case.make()
    step = original.training_step
    original.training_step = lambda batch, batch_idx: step(batch, batch_idx)  # type: ignore[method-assign]
    mine = original.training_step
    strategy.attach(original)
    assert copy.deepcopy(original).__dict__.get("training_step") is mine
    strategy.detach()
    assert original.training_step is mine


def test_a_pickled_wrapper_is_the_copys_own_method() -> None:
    from lightning_equiv import REMUL
    from tests.strategies.toys import SYMMETRY

    original, strategy = Plain(), REMUL(SYMMETRY, "net")
    strategy.attach(original)
    original.net._forward_hooks.clear()  # torch does not pickle hooks that are closures
    original.net._forward_pre_hooks.clear()
    again = pickle.loads(pickle.dumps(original))
    assert again.training_step.__self__ is again
    strategy.detach()
