"""ModelPruning beside a strategy with branches prunes the user's weights, or is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelPruning
from torch import nn

from tests.strategies.cases import CASES, Case
from tests.strategies.toys import Plain, loader, trainer

WITH_BRANCHES = pytest.mark.parametrize(
    "case", [case for case in CASES.values() if case.adds_parameters], ids=lambda case: case.name
)


def pruned_part(module: nn.Module) -> float:
    zero = [p == 0 for p in module.parameters()]
    return float(torch.cat([z.flatten() for z in zero]).float().mean())


def pruning(**options: Any) -> ModelPruning:
    return ModelPruning("l1_unstructured", amount=0.5, use_lottery_ticket_hypothesis=False, **options)


@WITH_BRANCHES
def test_pruning_in_front_or_by_name_takes_the_users_weights(case: Case) -> None:
    plain, front, named = Plain(), Plain(), Plain()
    trainer(pruning()).fit(plain, loader())
    expected = pruned_part(plain)
    assert 0.4 < expected < 0.6
    trainer(pruning(), case.make()).fit(front, loader())
    chosen = [(named.net[i], name) for i in (0, 2) for name in ("weight", "bias")]  # type: ignore[index]
    trainer(case.make(), pruning(parameters_to_prune=chosen)).fit(named, loader())
    assert pruned_part(front) == pruned_part(named) == pytest.approx(expected, abs=0.02)
    assert list(front.state_dict()) == list(named.state_dict()) == list(plain.state_dict())


@WITH_BRANCHES
def test_pruning_that_would_take_branches_is_refused(case: Case) -> None:
    module = Plain()
    with pytest.raises(RuntimeError, match=f"would take the branches of {case.kind}: expected it before"):
        trainer(case.make(), pruning()).fit(module, loader())
    assert [type(m) for m in module.modules()] == [type(m) for m in Plain().modules()]
