"""A module that brings its strategies: what reaches the Trainer, what is refused, the loss for manual optimisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_equiv import REMUL, EquivarianceMonitor, GroupAugmentation, SymmetryMixin
from lightning_equiv._random import derived_generator
from tests.strategies.toys import SYMMETRY, Plain, loader, make_net, trainer, weights


class Brings(SymmetryMixin, Plain):
    symmetry, symmetry_network = SYMMETRY, "net"


def test_trains_as_with_the_strategy_in_the_trainer() -> None:
    ours, twin = Brings(), Plain()
    ours.strategies = [REMUL(SYMMETRY, "net", weight=2.0)]
    run = trainer()
    run.fit(ours, loader(), loader())
    trainer(REMUL(SYMMETRY, "net", weight=2.0)).fit(twin, loader(), loader())
    assert torch.equal(weights(ours), weights(twin))
    assert any("equivariance_error" in name for name in run.callback_metrics)
    trainer().fit(ours, loader(), loader())  # the same strategies in a second Trainer
    assert "training_step" not in ours.__dict__


def test_a_monitor_of_the_trainers_is_left_alone() -> None:
    module, monitor = Brings(), EquivarianceMonitor(SYMMETRY, network="net", name="mine")
    run = trainer(monitor)
    run.fit(module, loader(), loader())
    assert [c for c in run.callbacks if isinstance(c, EquivarianceMonitor)] == [monitor]


def test_a_duplicate_is_named() -> None:
    module = Brings()
    module.strategies = [REMUL(SYMMETRY, "net")]
    with pytest.raises(ValueError, match="REMUL is in the Trainer's callbacks and in `strategies` of Brings"):
        trainer(REMUL(SYMMETRY, "net", name="other")).fit(module, loader())
    trainer(GroupAugmentation(SYMMETRY)).fit(module, loader())  # of another kind


@pytest.mark.parametrize("anchored", [True, False])
def test_the_loss_is_the_one_written_by_hand(anchored: bool) -> None:
    module = Brings()
    x, y = next(iter(loader()))
    loss = module.equivariance_loss(x, target=y if anchored else None, num_samples=2)
    g = SYMMETRY.group.sample(2 * len(x), generator=derived_generator("equivariance_loss", 0, (0, 0)))
    R = g.matrix.to(x)
    pairs = [(module.net(R[i] @ x[i % 4]), R[i] @ (y if anchored else module.net(x))[i % 4]) for i in range(len(R))]
    expected = torch.stack([(a - b).square().mean() for a, b in pairs]).mean()
    torch.testing.assert_close(loss, expected)
    assert loss != module.equivariance_loss(x, target=y if anchored else None, num_samples=2), "every call draws again"


def test_manual_optimisation_with_two_optimizers() -> None:
    """A generator that is asked to be equivariant, and a critic."""

    class Gan(Brings):
        def __init__(self) -> None:
            super().__init__()
            self.critic = make_net(1)
            self.automatic_optimization = False
            self.losses: list[Tensor] = []

        def training_step(self, batch: Any, batch_idx: int) -> None:
            x, _ = batch
            one, other = self.optimizers()
            self.losses.append(self.equivariance_loss(x))
            for optimizer, loss in (
                (one, self.losses[-1] - 0.01 * self.critic(self.net(x)).mean()),
                (other, self.critic(self.net(x).detach()).square().mean()),
            ):
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [torch.optim.Adam(net.parameters(), 1e-2) for net in (self.net, self.critic)]

    module = Gan()
    trainer(max_epochs=10).fit(module, loader())
    assert torch.stack(module.losses[-6:]).mean() < torch.stack(module.losses[:6]).mean() / 2


def test_bad_input() -> None:
    class Bare(SymmetryMixin):
        pass

    with pytest.raises(ValueError, match="`symmetry` of Bare"):
        Bare().equivariance_loss(torch.zeros(2, 3))
    module = Brings()
    with pytest.raises(ValueError, match="expected loss"):
        module.equivariance_loss(torch.zeros(2, 3), loss="huber")
    module.symmetry_network = "nett"
    with pytest.raises(ValueError, match="symmetry_network='nett'"):
        module.equivariance_loss(torch.zeros(2, 3))
    assert Bare().configure_callbacks() == []


def test_a_resumed_run_draws_what_the_uninterrupted_one_would(tmp_path: Any) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Adds(Brings):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) + self.equivariance_loss(batch[0], target=batch[1])

    def fit(epochs: int, ckpt_path: str | None = None) -> Tensor:
        module = Adds()
        save = ModelCheckpoint(tmp_path, filename=f"{{epoch}}-{epochs}", save_top_k=-1)
        trainer(save, max_epochs=epochs, enable_checkpointing=True).fit(module, loader(), ckpt_path=ckpt_path)
        return weights(module)

    whole = fit(3)
    assert torch.equal(fit(3, str(tmp_path / "epoch=0-3.ckpt")), whole)
