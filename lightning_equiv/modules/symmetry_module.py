"""SymmetryModule: a ready LightningModule for supervised learning around any network; regression, classification."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.parsing import collect_init_args
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.regression import MeanAbsoluteError

from lightning_equiv._checks import check_number
from lightning_equiv.modules.primitives import as_primitive
from lightning_equiv.modules.symmetry_mixin import SymmetryMixin
from lightning_equiv.optim.parameters import ParametersOf
from lightning_equiv.strategies.attachment import check_optimizers
from lightning_equiv.strategies.base import SymmetryCallback
from lightning_equiv.symmetry.symmetry import Symmetry, as_symmetry
from lightning_equiv.symmetry.tree import Tree, describe, is_graph, lookup, tensors

Key = str | int | Sequence[str | int]
Loss = Callable[[Any, Any], Tensor]
LossName = Literal["mse", "l1", "huber", "cross_entropy", "binary_cross_entropy"]
LOSSES: dict[str, Loss] = {
    "mse": nn.functional.mse_loss,
    "l1": nn.functional.l1_loss,
    "huber": nn.functional.huber_loss,
    "cross_entropy": nn.functional.cross_entropy,
    "binary_cross_entropy": nn.functional.binary_cross_entropy_with_logits,
}

_OBJECTS = "lightning_equiv_objects"  # in a checkpoint: names of the arguments that it does not hold


class SymmetryModule(SymmetryMixin):
    """Supervised learning of any network, with its symmetry and its strategies.

        min over the network f    mean loss( f(x), y )

    The network is called with everything of a batch but the target: positional arguments from a tuple (x, ..., y),
    keyword arguments from a dict, the graph itself from a PyG batch. Logs `train_loss`, `val_loss`, `test_loss`, the
    metrics as `val_NAME` and `test_NAME`, and what the strategies and the monitor of the symmetry log.

    Arguments that are numbers, strings, containers of these or a symmetry are in `hparams` and in every checkpoint, as
    primitives; objects are not, and `load_from_checkpoint(path, net=Net())` is called with them again. A subclass whose
    constructor takes numbers and strings, and a module made by the command line, load with `path` alone.

    Args:
        net: the network f.
        loss: "mse", "l1", "huber", "cross_entropy", "binary_cross_entropy" (of logits), or a callable (prediction,
            target) -> scalar.
        target: where y is in a batch: a key or an index; by default the last of a tuple.
        inputs: where the network's arguments are, if not everywhere else: keys in their order, or {argument: key}.
            A tuple without target, for prediction, that has more than one element needs it.
        symmetry: how a group element moves what goes into and comes out of `net`; brings a monitor.
        strategies: for training; their `network` is "net".
        metrics: by name, for validation and test; each with one value.
        optimizer: parameters -> optimizer: a class of `torch.optim`, `BlockNormalizedAdam`, or a `functools.partial` of
            one.
        lr: learning rate of all parameters, and what `Tuner.lr_find` sets; None is the optimizer's own.
        scheduler: optimizer -> learning-rate scheduler.
        interval: whether the scheduler counts epochs or optimizer steps.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an unknown loss; a batch without the target; an object that `load_from_checkpoint` was called
            without.

    Examples:
        >>> from lightning_equiv import REMUL
        >>> symmetry = Symmetry("SO(3)", inputs="1o", outputs="1o")
        >>> module = SymmetryModule(nn.Linear(3, 3), symmetry=symmetry, strategies=[REMUL(symmetry, "net")], lr=0.01)
        >>> x, y = torch.randn(2, 8, 3)
        >>> module.predict_step((x, y)).shape  # the target is left out
        torch.Size([8, 3])
        >>> module.hparams["symmetry"]["group"], module.hparams["lr"]
        ('SO(3)', 0.01)
    """

    symmetry_network = "net"

    def __init__(
        self,
        net: nn.Module,
        *,
        loss: LossName | Loss = "mse",
        target: Key = -1,
        inputs: Sequence[Key] | Mapping[str, Key] | None = None,
        symmetry: Symmetry | Mapping[str, Any] | None = None,
        strategies: Sequence[SymmetryCallback] = (),
        metrics: Mapping[str, Metric] | None = None,
        optimizer: Callable[[Iterable[Any]], Optimizer] = torch.optim.Adam,
        lr: float | None = None,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__()
        self._save_arguments(inspect.currentframe())
        if not isinstance(net, nn.Module):
            raise TypeError(f"expected net to be a network, an nn.Module, got {net!r}")
        if not callable(loss) and not (isinstance(loss, str) and loss in LOSSES):
            raise ValueError(f"expected loss to be one of {', '.join(map(repr, LOSSES))} or a callable, got {loss!r}")
        check_number("lr", lr, least=0, optional=True)
        if interval not in ("epoch", "step"):
            raise ValueError(f"expected interval to be 'epoch' or 'step', got {interval!r}")
        named = isinstance(metrics, Mapping) and all(isinstance(m, Metric | MetricCollection) for m in metrics.values())
        if metrics is not None and (not named or "loss" in metrics):
            raise ValueError(f"expected metrics by name, {{'mae': ...}}, other names than 'loss', got {metrics!r}")
        if not isinstance(strategies, Sequence) or not all(isinstance(s, SymmetryCallback) for s in strategies):
            raise TypeError(f"expected strategies to be a list of strategies, got {strategies!r}")
        if not callable(optimizer):
            raise TypeError(f"expected optimizer to be a callable (parameters) -> optimizer, got {optimizer!r}")
        if scheduler is not None and not callable(scheduler):
            raise TypeError(f"expected scheduler to be a callable (optimizer) -> scheduler or None, got {scheduler!r}")
        self.net, self.lr = net, None if lr is None else float(lr)
        self.target = tuple(target) if isinstance(target, list) else target  # to be looked up in a dict
        self.inputs = [inputs] if isinstance(inputs, str | int) else inputs
        self.loss: Loss = LOSSES[loss] if isinstance(loss, str) else loss
        self.symmetry = None if symmetry is None else as_symmetry(symmetry)
        self.strategies = list(strategies)
        self.optimizer, self.scheduler, self.interval = optimizer, scheduler, interval
        self.metrics: dict[str, Metric | MetricCollection] = dict(
            self.default_metrics() if metrics is None else metrics
        )
        self._measured: dict[str, MetricCollection] = {}  # by stage and loader, during an evaluation

    # ---- checkpoints ---------------------------------------------------------------------------------------------
    def _save_arguments(self, frame: Any) -> None:
        """`save_hyperparameters` for a constructor that takes objects, too; `frame` is that of the constructor."""
        *_, passed = collect_init_args(frame, [], classes=(type(self),))  # to the class itself, not to its bases
        # what Lightning finds: also of the bases, and of a module that makes this one in its constructor
        names = {name for call in collect_init_args(frame, []) for name in call}
        parameters = inspect.signature(type(self).__init__).parameters
        self._passed = [n for n, value in passed.items() if n not in parameters or value is not parameters[n].default]
        self._objects: list[str] = []
        self.save_hyperparameters(ignore=list(names))
        if "_instantiator" in self.hparams:  # of LightningCLI: what a configuration file says, of objects too
            self.save_hyperparameters()
            return
        kept = {}
        for name, value in passed.items():
            with suppress(TypeError, ValueError):
                kept[name] = as_primitive(value)
        self._objects = [name for name in self._passed if name not in kept]
        self.save_hyperparameters(kept, ignore=list(names - kept.keys()))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which arguments the checkpoint does not hold."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[_OBJECTS] = self._objects

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """ValueError for what `load_from_checkpoint` cannot load, or was called without; a warning for strategies."""
        super().on_load_checkpoint(checkpoint)
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            check_optimizers(self, checkpoint)
        if self._trainer is None:
            self._check_layers(checkpoint)
        missing = [name for name in checkpoint.get(_OBJECTS, ()) if name not in self._passed]
        if not missing or self._trainer is not None:  # a Trainer resumes with the module that it is given
            return
        again = ", ".join(f"{name}=..." for name in missing)
        message = f"no checkpoint holds objects: write {type(self).__name__}.load_from_checkpoint(path, {again})"
        if missing != ["strategies"]:
            raise ValueError(f"expected {', '.join(missing)} to be given again, for {message}")
        rank_zero_warn(f"the module is loaded without its strategies, for {message} to train with them")

    def _check_layers(self, checkpoint: dict[str, Any]) -> None:
        """ValueError for a checkpoint with layers that a strategy left relaxed, which the class alone does not have."""
        for key, state in (checkpoint.get("callbacks") or {}).items():
            if isinstance(state, Mapping) and {"format", "branches"} <= {*state} and state.get("kept"):
                strategy = key.split("{")[0]
                raise ValueError(
                    f"the checkpoint was saved after fit, with layers {state['kept']} that {key} left relaxed: make "
                    f"the module and the strategy as they were, and write {strategy}(...).restore(module, "
                    "torch.load(path))"
                )

    # ---- to override ---------------------------------------------------------------------------------------------
    def default_metrics(self) -> Mapping[str, Metric]:
        """The metrics where no `metrics` are given."""
        return {}

    def arguments(self, batch: Tree) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) of the network, from a batch with or without target; override it for other batches."""
        if isinstance(self.inputs, Mapping):
            return (), {name: lookup(batch, key, "inputs") for name, key in self.inputs.items()}
        if self.inputs is not None:
            return tuple(lookup(batch, key, "inputs") for key in self.inputs), {}
        # where the target, or what holds it, is in the batch
        place = self.target.split(".")[0] if isinstance(self.target, str) else self.target
        place = place if isinstance(place, str | int) else place[0]
        if isinstance(batch, Mapping):
            left_out = self.target if self.target in batch else place
            return (), {name: value for name, value in batch.items() if name != left_out}
        if isinstance(batch, tuple | list):
            n = len(batch)
            if n == 1 or not isinstance(place, int) or not -n <= place < n:  # it has no target
                return tuple(batch), {}
            return tuple(value for i, value in enumerate(batch) if i != place % n), {}
        if isinstance(batch, Tensor) or is_graph(batch):
            return (batch,), {}
        raise ValueError(
            f"expected a batch that is a tuple, a dict, a tensor or a graph, got {describe(batch)}: give "
            f"inputs=[...], keys of the network's arguments in it, or override `{type(self).__name__}.arguments`"
        )

    def labels(self, batch: Tree) -> Tree:
        """The target y of a batch; override it for other batches."""
        n = len(batch) if isinstance(batch, tuple | list) else 0
        if n > 1 and isinstance(self.target, int) and -n <= self.target < 0:
            return batch[self.target]
        if self.target == -1:
            raise ValueError(f"expected `target` to say where the label is, got a batch that is {describe(batch)}")
        return lookup(batch, self.target)

    def check(self, prediction: Tree, target: Tree) -> None:
        """ValueError where prediction and target cannot belong together."""
        if self.loss in LOSSES.values() and not (isinstance(prediction, Tensor) and isinstance(target, Tensor)):
            raise ValueError(
                f"expected a tensor from the network and one as target, got {describe(prediction)} and "
                f"{describe(target)}: give a `loss` (prediction, target) -> scalar, and `metrics` (or {{}} for none)"
            )

    # ---- one batch -----------------------------------------------------------------------------------------------
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.net(*args, **kwargs)

    def loss_of(self, batch: Tree) -> tuple[Tensor, Tree, Tree]:
        """(loss, prediction, target) of a batch."""
        target = self.labels(batch)
        args, kwargs = self.arguments(batch)
        prediction = self.net(*args, **kwargs)
        self.check(prediction, target)
        return self.loss(prediction, target), prediction, target

    # ---- Lightning's hooks ---------------------------------------------------------------------------------------
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Logs `train_loss`."""
        loss, _, target = self.loss_of(batch)
        if self._trainer is not None:  # without a Trainer nothing is logged
            self.log("train_loss", loss, batch_size=_rows(target))
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logs `val_loss` and the metrics."""
        self._evaluate("val", batch, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logs `test_loss` and the metrics."""
        self._evaluate("test", batch, dataloader_idx)

    def predict_step(self, batch: Any, *_: Any) -> Any:
        """The network's output, whether the batch has a target or not."""
        args, kwargs = self.arguments(batch)
        return self.net(*args, **kwargs)

    def _evaluate(self, stage: str, batch: Any, loader: int) -> None:
        loss, prediction, target = self.loss_of(batch)
        rows, key = _rows(target), f"{stage}_{loader}"
        self.log(f"{stage}_loss", loss, batch_size=rows, prog_bar=stage == "val", sync_dist=True)
        if key not in self._measured:
            # groups of metrics that look equal after one batch would share one state
            collection = MetricCollection(self.metrics, prefix=f"{stage}_", compute_groups=False)
            self._measured[key] = collection.clone().to(self.device)
        self._measured[key].update(prediction, target)
        for name, metric in self._measured[key].items():
            self.log(name, metric, on_step=False, on_epoch=True, batch_size=rows, metric_attribute=f"{name}_{loader}")

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self._measured = {}

    def on_test_epoch_start(self) -> None:
        """Forget the last test."""
        self._measured = {}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer at `lr`, and its scheduler."""
        optimizer = self.optimizer(ParametersOf(self))
        if self.lr is not None:
            for group in optimizer.param_groups:
                group["lr"] = self.lr
        if self.scheduler is None:
            return optimizer
        scheduler = self.scheduler(optimizer)
        monitor = getattr(scheduler, "monitor", "val_loss")  # for ReduceLROnPlateau
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": self.interval, "monitor": monitor},
        }


class RegressionModule(SymmetryModule):
    """Regression: `SymmetryModule` that measures the mean absolute error.

    Args:
        net: the network; its output has the shape of the target.

    The other arguments are those of `SymmetryModule`.

    Raises:
        ValueError: prediction and target of different shapes, which would be broadcast.

    Examples:
        A model with its symmetry and its strategy, which `load_from_checkpoint(path)` builds again:

        >>> from lightning_equiv import REMUL
        >>> class Forces(RegressionModule):
        ...     def __init__(self, width: int = 64, weight: float = 1.0) -> None:
        ...         symmetry = Symmetry("O(3)", inputs="1o", outputs="1o")
        ...         net = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, 3))
        ...         super().__init__(net, symmetry=symmetry, strategies=[REMUL(symmetry, "net", weight=weight)])
        >>> Forces(width=16).hparams["width"]
        16
    """

    def default_metrics(self) -> Mapping[str, Metric]:
        """The mean absolute error."""
        return {"mae": MeanAbsoluteError()}

    def check(self, prediction: Tree, target: Tree) -> None:
        """ValueError for different shapes."""
        super().check(prediction, target)
        if isinstance(prediction, Tensor) and isinstance(target, Tensor) and prediction.shape != target.shape:
            raise ValueError(
                f"expected a prediction of the target's shape {tuple(target.shape)}, got {tuple(prediction.shape)}: "
                f"reshape one of them, e.g. in `{type(self).__name__}.labels`"
            )


class ClassificationModule(SymmetryModule):
    """Classification: `SymmetryModule` that measures the accuracy.

    Args:
        net: the network; its output are logits (batch, classes, ...), the target whole numbers (batch, ...).
        num_classes: number of classes.
        loss: as for `SymmetryModule`.
        settings: the other arguments of `SymmetryModule`.

    Raises:
        ValueError: the number of logits is not that of the classes.

    Examples:
        >>> symmetry = Symmetry("C4", inputs="Image()", outputs="Invariant()")
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> module = ClassificationModule(net, num_classes=10, symmetry=symmetry)
        >>> module.training_step((torch.randn(5, 1, 8, 8), torch.arange(5)), 0).shape
        torch.Size([])
    """

    def __init__(
        self, net: nn.Module, *, num_classes: int, loss: LossName | Loss = "cross_entropy", **settings: Any
    ) -> None:
        self.num_classes = num_classes
        super().__init__(net, loss=loss, **settings)

    def default_metrics(self) -> Mapping[str, Metric]:
        """The fraction of samples that are classified correctly."""
        return {"accuracy": MulticlassAccuracy(self.num_classes, average="micro")}

    def check(self, prediction: Tree, target: Tree) -> None:
        """ValueError where the shape of the logits or of the target does not fit."""
        super().check(prediction, target)
        if isinstance(prediction, Tensor) and prediction.shape[1:2] != (self.num_classes,):
            raise ValueError(
                f"expected logits of shape (batch, {self.num_classes}, ...), got {tuple(prediction.shape)}: the "
                "network's last layer or num_classes is wrong"
            )
        classes = prediction.shape[:1] + prediction.shape[2:]
        if isinstance(target, Tensor) and target.shape not in (classes, prediction.shape):
            raise ValueError(
                f"expected classes of shape {tuple(classes)} beside logits of shape {tuple(prediction.shape)}, got "
                f"{tuple(target.shape)}: reshape them in `{type(self).__name__}.labels`"
            )


def _rows(target: Tree) -> int | None:
    """Number of samples in a batch, for the log."""
    first = next((t for _, t in tensors(target)), None)
    return len(first) if first is not None and first.ndim else None
