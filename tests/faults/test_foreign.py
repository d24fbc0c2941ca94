"""Numbers that are none, and modules of another package."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_equiv import REMUL
from tests.strategies.cases import CASES, GRADNORM, Case, each_case
from tests.strategies.faults import change_batch, skip_bad_steps
from tests.strategies.toys import SYMMETRY, EachStep, Plain, loader, make_net, trainer


def tensors(state: Any) -> list[Tensor]:
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else []
    return [state] if isinstance(state, Tensor) else [x for value in values for x in tensors(value)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("case", [*CASES.values(), GRADNORM], ids=[*CASES, GRADNORM.name])
def test_no_state_holds_what_is_no_number(case: Case, batch: int, bad: float) -> None:
    """Where the user skips a step whose loss is none."""
    strategy = case.make()
    states: list[Any] = []
    module = skip_bad_steps(change_batch(Plain(), batch, lambda loss: 0 if loss is None else loss * bad))
    trainer(strategy, EachStep(lambda _: states.append(strategy.state_dict()))).fit(module, loader())
    assert len(states) == 6
    assert all(torch.isfinite(x).all() for x in tensors(states) if x.is_floating_point())


def test_gradnorm_goes_on_after_a_loss_that_is_no_number() -> None:
    def fit(batch: int | None) -> tuple[Tensor, Tensor]:
        module, strategy = Plain(lr=0.0), REMUL(SYMMETRY, "net", balance="gradnorm", gradnorm_lr=0.2)
        if batch is not None:
            skip_bad_steps(change_batch(module, batch, lambda loss: 0 if loss is None else loss * float("nan")))
        states: list[Any] = []
        trainer(strategy, EachStep(lambda _: states.append(strategy.state_dict()))).fit(module, loader())
        return torch.stack([state["weights"] for state in states]), states[-1]["first_losses"]

    (good, first), (weights, _), (late, second) = fit(None), fit(2), fit(0)
    assert torch.equal(weights[:2], good[:2])
    assert torch.equal(weights[2], weights[1])
    assert not torch.equal(weights[3], weights[2])
    assert torch.equal(late[0], torch.ones(2))
    assert not torch.equal(late[1], late[0])
    assert torch.isfinite(second).all()
    assert not torch.equal(first, second)


@each_case
def test_a_module_of_another_package_is_refused_in_words(case: Case) -> None:
    """As of `import pytorch_lightning as pl`."""
    theirs = type("LightningModule", (nn.Module,), {"__module__": "pytorch_lightning.core.module"})
    module = type("Users", (theirs,), {})()
    module.net, module.automatic_optimization = make_net(), True
    for hook in (lambda strategy: strategy.attach(module), lambda s: s.setup(trainer(s), module, "fit")):
        with pytest.raises(TypeError, match=r"got Users of pytorch_lightning.*write `import lightning as L`"):
            hook(case.make())
        assert not module.net._forward_hooks
