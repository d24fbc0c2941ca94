"""Modules change their mode by their own `train()` and `eval()`, and go back by them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_equiv import REMUL, EquivarianceError
from lightning_equiv.metrics.functional import equivariance_error
from lightning_equiv.wiring.evaluation import evaluating
from lightning_equiv.wiring.frozen_randomness import buffer_versions, frozen_randomness
from tests.helpers import normal
from tests.strategies.cases import Case, each_case
from tests.strategies.toys import SYMMETRY, Plain, Rows, assert_same, loader, make_net, trainer, weights


class Filtered(nn.Linear):
    """As escnn's R2Conv: `eval()` builds a filter from the weights, `train()` drops it."""

    filter: Tensor

    def train(self, mode: bool = True) -> Filtered:
        if mode:
            self._buffers.pop("filter", None)
        elif self.training:
            self.register_buffer("filter", self.weight.clone())
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight if self.training else self.filter, self.bias)


def filtered() -> nn.Sequential:
    net = make_net()
    new = nn.Sequential(Filtered(3, 16), nn.Tanh(), Filtered(16, 3))
    new.load_state_dict(net.state_dict())
    return new


def test_an_error_is_that_of_evaluation_whatever_the_mode() -> None:
    net, x = filtered(), normal(8, 3, dtype=torch.float32)
    errors = [
        equivariance_error(model(), x, SYMMETRY, generator=torch.Generator().manual_seed(0))
        for model in (net.train, net.eval, make_net)
    ]
    assert errors[0].min() > 0.1
    assert torch.equal(errors[0], errors[1])
    assert torch.equal(errors[1], errors[2])


@each_case
def test_a_network_with_a_mode_of_its_own_trains_and_evaluates(case: Case) -> None:
    ours, twin = Plain(filtered()), case.make_twin()
    trainer(case.make()).fit(ours, loader(), loader())
    trainer().fit(twin, loader(), loader())
    assert_same(weights(ours.net), weights(twin.net))
    assert all(module.training for module in ours.modules())
    EquivarianceError(SYMMETRY).update(ours.net, Rows().x)
    assert list(ours.net.state_dict()) == list(make_net().state_dict())
    assert_same(ours.net.eval()(Rows().x), ours.net.train()(Rows().x))


def test_every_mode_is_put_back() -> None:
    class Keeps(nn.Sequential):
        """Its normalisation stays in evaluation mode, as of a frozen backbone."""

        def train(self, mode: bool = True) -> Keeps:
            super().train(mode)
            self[1].eval()
            return self

    net = nn.Sequential(Keeps(nn.Linear(3, 3), nn.BatchNorm1d(3)).train(), Filtered(3, 3), nn.Dropout(), Filtered(3, 3))
    net[3].eval()
    held = net[3].filter
    before = [module.training for module in net.modules()]
    for context, evaluated in (
        (evaluating(net), True),
        (frozen_randomness(net, buffer_versions(net)), False),
        (frozen_randomness(net, buffer_versions(net), evaluate=True), True),
    ):
        with context:
            assert hasattr(net[1], "filter") == evaluated
            assert net[0][1].training is False
            assert net[2].training is False
        assert [module.training for module in net.modules()] == before
        assert not hasattr(net[1], "filter")
        assert net[3].filter is held, "what was in evaluation mode is not touched"
    assert net[0][1].track_running_stats


def test_the_second_pass_of_an_equivariant_network_reads_zero() -> None:
    """In training mode its weights are used, and not a filter of another moment."""

    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = Filtered(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale(x.norm(dim=-1, keepdim=True))

    run = trainer(REMUL(SYMMETRY, "net"))
    run.fit(Plain(Scales()), loader(), loader())
    assert float(run.callback_metrics["remul/equivariance_loss"]) < 1e-12


def test_a_low_rank_weight_that_evaluation_merges_is_trained_by_the_second_pass() -> None:
    class Merges(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 3)
            self.a, self.merged = nn.Parameter(torch.zeros(3, 3)), False

        def train(self, mode: bool = True) -> Any:
            if mode == self.merged:
                self.weight.data += -self.a.data if mode else self.a.data
                self.merged = not mode
            return super().train(mode)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + (0 if self.merged else x @ self.a.T)

    net = Merges()
    net.weight.requires_grad_(False)
    module = Plain(net)
    module.task = staticmethod(lambda net, x, y: 0 * net(x).sum())  # type: ignore[assignment, method-assign]
    trainer(REMUL(SYMMETRY, "net", weight=10.0)).fit(module, loader())
    assert net.a.abs().max() > 1e-2
