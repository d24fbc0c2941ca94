"""RECM where processes call its layers a different number of times: one message between them each optimizer step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_equiv.strategies.recm import recurrence
from tests.strategies.recm_by_hand import make_recm, states
from tests.strategies.toys import EachStep, Plain, SavesPerRank, loader, trainer


class Uneven(Plain):
    """The first process never runs the network in its second step, the second one runs it twice in the first."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        calls = 2 if (self.global_rank, batch_idx) == (1, 0) else 0 if (self.global_rank, batch_idx) == (0, 1) else 1
        unused = sum(p.sum() for p in self.net.parameters()) * 0
        return sum([super(Uneven, self).training_step(batch, batch_idx) for _ in range(calls)]) + unused

    def log(self, *_: object, **__: object) -> None:
        """Logged values would be exchanged, too."""


@pytest.mark.slow
def test_processes_that_call_a_layer_a_different_number_of_times(tmp_path: Path) -> None:
    from lightning.pytorch.strategies import DDPStrategy

    strategy = make_recm()

    def save(t: object) -> None:
        torch.save(states(strategy), tmp_path / f"states{torch.distributed.get_rank()}.pt")

    ddp = DDPStrategy(start_method="fork", process_group_backend="gloo")
    trainer(strategy, EachStep(save), SavesPerRank(tmp_path), strategy=ddp, devices=2).fit(Uneven(), loader())
    for name in ("states", ""):
        one, other = (torch.load(tmp_path / f"{name}{rank}.pt") for rank in (0, 1))
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert not torch.equal(one["net.0.weight"], Plain().net[0].weight)


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_one_message_each_optimizer_step(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[Tensor] = []

    def counted(x: Tensor) -> Tensor:
        messages.append(x)
        return x

    monkeypatch.setattr(recurrence, "mean_over_ranks", counted)
    module = Plain()
    module.task = lambda net, x, y: sum((net(x) - y).square().mean() for _ in range(calls)) + 0 * net[0].weight.sum()  # type: ignore[method-assign,assignment]
    trainer(make_recm(), accumulate_grad_batches=2).fit(module, loader())
    assert len(messages) == 3
