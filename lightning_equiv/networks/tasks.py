"""The trainings that users have already: nothing in them knows of a symmetry."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lightning_equiv.networks.unconstrained import unconstrained
from lightning_equiv.optim.block_adam import BlockNormalizedAdam


class Task(L.LightningModule):
    """A network with Adam, whose rate falls along half a cosine to a hundredth, and figures of each test set by name.

    Args:
        net: the network.
        lr: the first learning rate.
        block_normalized: with `BlockNormalizedAdam`.
        free: a glob on names of layers that have a dense matrix beside them for good, as in `unconstrained`.
        restart: in the middle of the run begin anew from other first weights: two trainings of half the length, of
            which a choice by validation takes the better one.
    """

    def __init__(
        self,
        net: nn.Module,
        lr: float = 1e-3,
        block_normalized: bool = False,
        free: str | None = None,
        restart: bool = False,
    ) -> None:
        super().__init__()
        self.net, self.lr, self.block_normalized = net, lr, block_normalized
        if free is not None:
            unconstrained(self, free)
        self.second = drawn_anew(net) if restart else None

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Begin anew, where that is wanted."""
        if self.second is not None and self.global_step == self.half_way():
            self.net.load_state_dict(self.second)
            optimizer = self.optimizers()
            assert isinstance(optimizer, LightningOptimizer)
            optimizer.state.clear()

    def half_way(self) -> int:
        """Steps of the first of two trainings."""
        return (int(self.trainer.estimated_stepping_batches) + 1) // 2

    def figures(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of validation and test, by name."""
        raise NotImplementedError

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log them."""
        size = len(next(iter(batch.values())))
        self.log_dict({f"val_{name}": x for name, x in self.figures(batch).items()}, batch_size=size)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log them under the name of the test set, where there are several."""
        trainer: Any = self.trainer
        names = trainer.datamodule.test_names
        end = f"_{names[dataloader_idx]}" if len(names) > 1 else ""
        found = {f"test_{name}{end}": x for name, x in self.figures(batch).items()}
        self.log_dict(found, batch_size=len(next(iter(batch.values()))), add_dataloader_idx=False)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam."""
        optimizer = (
            BlockNormalizedAdam(self, lr=self.lr)
            if self.block_normalized
            else torch.optim.Adam(self.parameters(), lr=self.lr)
        )
        steps, low = int(self.trainer.estimated_stepping_batches), self.lr / 100
        scheduler = (
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=low)
            if self.second is None
            else torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, self.half_way(), eta_min=low)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Particles(Task):
    """Where particles will be: mean squared error of their positions, from masses (or charges) and velocities."""

    def figures(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mean squared error."""
        of_each = batch["masses"] if "masses" in batch else batch["charges"]
        predicted = self.net(of_each, batch["positions"], batch["velocities"])
        return {"mse": nn.functional.mse_loss(predicted, batch["targets"])}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The mean squared error."""
        return self.figures(batch)["mse"]


class Classifier(Task):
    """Which class: trained by cross entropy; its accuracy, and the rest to 100, its error, in per cent.

    Args:
        net: the network.
        lr: the first learning rate.
        key: what it takes of a batch.
        settings: of `Task`.
    """

    def __init__(self, net: nn.Module, lr: float = 1e-3, key: str = "points", **settings: Any) -> None:
        super().__init__(net, lr, **settings)
        self.key = key

    def figures(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Accuracy, error, cross entropy."""
        logits = self.net(batch[self.key])
        accuracy = 100 * (logits.argmax(-1) == batch["labels"]).float().mean()
        entropy = nn.functional.cross_entropy(logits, batch["labels"])
        return {"accuracy": accuracy, "error": 100 - accuracy, "cross_entropy": entropy}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy."""
        return nn.functional.cross_entropy(self.net(batch[self.key]), batch["labels"])


def drawn_anew(network: nn.Module) -> dict[str, Tensor]:
    """Other first weights: those there are, shuffled, with random signs, except for what is constant.

    Weights drawn independently from a law that is even are then drawn from that law again.
    """
    state = {name: value.clone() for name, value in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        value = parameter.detach().flatten()[torch.randperm(parameter.numel())].view_as(parameter)
        signs = torch.randint(2, value.shape).to(value) * 2 - 1
        state[name] = value * signs if value.min() < 0 else value
    return state
