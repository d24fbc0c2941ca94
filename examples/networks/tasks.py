"""The trainings that users have already: nothing in them knows of a symmetry."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn


class Task(L.LightningModule):
    """A network with Adam, whose rate falls along half a cosine to a hundredth, and figures of each test set by name.

    Args:
        net: the network.
        lr: the first learning rate.
    """

    def __init__(self, net: nn.Module, lr: float = 1e-3) -> None:
        super().__init__()
        self.net, self.lr = net, lr

    def figures(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of validation and test, by name."""
        raise NotImplementedError

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log them."""
        size = len(next(iter(batch.values())))
        self.log_dict({f"val_{name}": x for name, x in self.figures(batch).items()}, batch_size=size)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log them under the name of the test set, where there are several."""
        names = self.trainer.datamodule.test_names
        end = f"_{names[dataloader_idx]}" if len(names) > 1 else ""
        found = {f"test_{name}{end}": x for name, x in self.figures(batch).items()}
        self.log_dict(found, batch_size=len(next(iter(batch.values()))), add_dataloader_idx=False)

    def configure_optimizers(self) -> dict[str, Any]:
        """Adam."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=self.lr / 100)
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
    """Which class: accuracy in per cent, trained by cross entropy.

    Args:
        net: the network.
        lr: the first learning rate.
        key: what it takes of a batch.
    """

    def __init__(self, net: nn.Module, lr: float = 1e-3, key: str = "points") -> None:
        super().__init__(net, lr)
        self.key = key

    def figures(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The accuracy."""
        right = self.net(batch[self.key]).argmax(-1) == batch["labels"]
        return {"accuracy": 100 * right.float().mean()}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy."""
        return nn.functional.cross_entropy(self.net(batch[self.key]), batch["labels"])
