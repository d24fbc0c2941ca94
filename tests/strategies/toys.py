"""Small models and data that the strategy tests share; nothing in them knows of a symmetry."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_equiv import SO3, Symmetry
from lightning_equiv._random import derived_generator
from tests.helpers import global_seed, normal

SYMMETRY = Symmetry("SO(3)", inputs="1o", outputs="1o", batch=("1o", "1o"))
LR = 0.05
Task = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]  # (net, x, y) -> loss


class Rows(Dataset):
    """(x, y) pairs of vectors, y = |x| x with a push along z, in a fixed order."""

    def __init__(self, n: int = 22, dtype: torch.dtype = torch.float32) -> None:
        x = normal(n, 3, seed=1)
        self.x, self.y = x.to(dtype), (x * x.norm(dim=-1, keepdim=True) + torch.tensor([0, 0, 0.3])).to(dtype)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i], self.y[i]


def loader(n: int = 22, batch_size: int = 4, dtype: torch.dtype = torch.float32) -> DataLoader:
    """Six batches, the last one ragged."""
    return DataLoader(Rows(n, dtype), batch_size)


def batches(data: Iterable[Any]) -> DataLoader:
    """A loader of batches that are made already."""
    return DataLoader(list(data), batch_size=None)


def make_net(seed: int = 0) -> nn.Module:
    """An MLP on vectors, the same every time."""
    with global_seed(seed):
        return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 3))


def once(net: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The loss of an ordinary step: one call of the network."""
    return nn.functional.mse_loss(net(x), y)


class Plain(L.LightningModule):
    """A user's regression; `net` is the network whose symmetry is meant, `task` the loss of a step."""

    task: Task = staticmethod(once)

    def __init__(self, net: nn.Module | None = None, lr: float = LR) -> None:
        super().__init__()
        self.net, self.lr = net if net is not None else make_net(), lr

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.task(self.net, *batch)
        self.log("user_loss", loss, on_epoch=True, on_step=False, sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", nn.functional.mse_loss(self.net(x), y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class EachStep(L.Callback):
    """Calls a function when a batch has been trained on."""

    def __init__(self, function: Callable[[L.Trainer], None]) -> None:
        self.function = function

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.function(trainer)


class SavesPerRank(L.Callback):
    """Writes the weights of every rank when training ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        torch.save(pl_module.state_dict(), self.folder / f"{trainer.global_rank}.pt")


def trainer(*callbacks: L.Callback, **kwargs: Any) -> L.Trainer:
    """A quiet Trainer on the CPU for one epoch."""
    defaults = dict(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return L.Trainer(callbacks=list(callbacks), **{**defaults, **kwargs})


def draws(*key: Any) -> Callable[[int], Tensor]:
    """n -> (n, 3, 3): the rotations that a strategy draws for this key, one call's after the other's."""
    generator = derived_generator(*key)
    return lambda n: SO3().sample(n, generator=generator).matrix


def rotations(n: int, *key: Any) -> Tensor:
    """(n, 3, 3): the first rotations that a strategy draws for this key."""
    return draws(*key)(n)


def turn(R: Tensor, x: Tensor) -> Tensor:
    """Every row by its own rotation."""
    return torch.einsum("nij,n...j->n...i", R.to(x), x)


def snapshot(module: nn.Module) -> dict[str, Any]:
    """Everything of a module that a strategy might leave behind."""
    ours = {
        k: v for k, v in module.__dict__.items() if not k.startswith("_") and k not in ("net", "prepare_data_per_node")
    }
    return {
        "attributes": sorted(ours),
        "training_step": getattr(module.__dict__.get("training_step"), "__qualname__", None),
        "keys": list(module.state_dict()),
        "modules": {name: type(m) for name, m in module.named_modules()},
        "hooks": {
            f"{name}.{hooks}": len(getattr(m, hooks))
            for name, m in module.named_modules()
            for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
        },
        "modes": {name: m.training for name, m in module.named_modules()},
    }


def weights(module: nn.Module) -> Tensor:
    """All weights in one vector."""
    return torch.cat([p.detach().double().flatten() for p in module.parameters()])


def error_of(net: nn.Module) -> float:
    """The loss on all rows at once, as a loader of one batch validates them."""
    with torch.no_grad():
        return float(nn.functional.mse_loss(net(Rows().x), Rows().y))


def assert_same(actual: Any, expected: Any) -> None:
    """Equal but for the order in which float32 numbers were added."""
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
