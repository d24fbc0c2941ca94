"""Calls of a layer without rows: no edges, an empty mask, a mixture of experts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.strategies.cases import CASES, Case
from tests.strategies.recm_by_hand import make_recm
from tests.strategies.toys import EachStep, Plain, loader, make_net, trainer, weights

WITH_BRANCHES = pytest.mark.parametrize(
    "case", [case for case in CASES.values() if case.adds_parameters], ids=lambda case: case.name
)


class AlsoEmpty(nn.Sequential):
    """The network of the other tests; each layer runs on no rows, too, before or after the others."""

    def __init__(self, first: bool) -> None:
        super().__init__(*make_net())
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            nothing = layer(x[:0]) if self.first else None
            y = layer(x)
            nothing = layer(x[:0]) if nothing is None else nothing
            assert nothing.shape == (0, *y.shape[1:])
            x = y
        return x


@WITH_BRANCHES
@pytest.mark.parametrize("first", [True, False])
def test_a_call_without_rows_counts_nothing(case: Case, first: bool) -> None:
    plain, also_empty = Plain(), Plain(AlsoEmpty(first))
    for module in (plain, also_empty):
        trainer(case.make(), max_epochs=2).fit(module, loader())
    assert torch.equal(weights(plain), weights(also_empty))


class Experts(nn.Sequential):
    """Two networks of which every other batch goes to the second, and no row to the first."""

    def __init__(self) -> None:
        super().__init__(*make_net())
        self.scale, self.calls = nn.Parameter(torch.ones(3)), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        mine, others = (x, x[:0]) if self.calls % 2 else (x[:0], x)
        for i in range(3):
            mine = self[i](mine)
        return torch.cat([mine, others * self.scale])


@WITH_BRANCHES
def test_a_run_with_some_batches_without_rows(case: Case) -> None:
    module, strategy = Plain(Experts()), case.make()
    finite: list[bool] = []

    def look(_: Any) -> None:
        finite.extend(bool(torch.isfinite(p).all()) for p in module.parameters())

    trainer(strategy, EachStep(look), max_epochs=2).fit(module, loader())
    assert all(finite), "those of the branches, too"
    assert len(finite) > 12 * 5, "the branches are among the parameters"


def test_a_relaxed_layer_without_rows() -> None:
    module = Plain()
    trainer(make_recm(finalize="keep", threshold=0.0)).fit(module, loader())
    assert module.net(torch.randn(0, 3)).shape == (0, 3)
    assert type(module.net[0]).__name__ == "RelaxedLayer"
