"""EquivarianceMonitor: the callback that measures and logs the equivariance error during validation."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torchmetrics import Metric

from lightning_equiv._checks import check_number
from lightning_equiv.metrics.chunks import ChunkSize
from lightning_equiv.metrics.equivariance_error import EquivarianceError
from lightning_equiv.metrics.functional import Kind
from lightning_equiv.metrics.named_metrics import clash_of, computed, named_metrics, names_of
from lightning_equiv.metrics.plots import check_drawing
from lightning_equiv.metrics.symmetry_metric import SymmetryMetric
from lightning_equiv.symmetry.call import TOTAL
from lightning_equiv.symmetry.symmetry import Symmetry
from lightning_equiv.wiring.call_recorder import CallRecorder, recording_paused
from lightning_equiv.wiring.figure_loggers import log_figure
from lightning_equiv.wiring.network import find_network
from lightning_equiv.wiring.ranks import mean_over_ranks
from lightning_equiv.wiring.watched import COMBINED, logged_now, warn_of_watched_errors


class EquivarianceMonitor(L.Callback):
    r"""Measures how equivariant a network is while it is validated or tested, and logs it.

    The network's calls in the user's own `validation_step` (`test_step`) are recorded; after the step the network is
    run again on moved inputs, see `EquivarianceError` for the formulas; several loaders have one value together. The
    value is logged as `name` (validation) and `test_name` (test).

    A network that always predicts the same is equivariant, so the error alone says nothing of when to stop: that is a
    warning when fit begins. With `combine` the sum of what was learned and of the error is logged after each validation
    in which the error is measured,

        name/combined = task + weight error                in the unit of the task's figure

    with the value that the module logs in `validation_step` under the name `combine`; the weight is what an error of 1
    (an output that has nothing of the symmetry) may cost. `EarlyStopping("equivariance_error/combined")` and
    `ModelCheckpoint(monitor="equivariance_error/combined")` can use it.

    Other metrics are measured on the same calls and logged beside it, each figure under the metric's name:
    "lie_derivative/total", "lie_derivative/x", "spectrum/1", "layers/ends_up/net.0", "angle_profile/90"; a metric with
    a single value under the name alone. Those that draw pictures of themselves (`AngleProfile`, `EquivarianceSpectrum`,
    `LayerwiseError`) are logged as figures, too, to every logger that takes figures (TensorBoard, Weights & Biases,
    MLflow, Comet), as "spectrum/figure".

    Args:
        symmetry: says how a group element moves the network's inputs and outputs.
        network: dotted name of the sub-module that is meant, or "" for the LightningModule itself.
        num_samples: elements drawn for each input; None takes every element of a finite group.
        kind: "relative", "absolute", "orbit_mean" or "max".
        every_n_epochs: measure in every n-th epoch of training.
        num_batches: how many batches of each validation are measured; None measures all.
        chunk_size: most inputs in one call of the network, never fewer than the batch itself; None takes all at once,
            "auto" as many as are fast and fit into memory, see `equivariance_error`.
        per_irrep: log each part of the output as `name`/part too.
        needs_grad: the network differentiates inside (conservative forces).
        seed: of the draws. The same elements are drawn in every validation, so that a curve shows the model's changes.
        name: what the value is called in the log; "test_" is put in front of it during a test.
        prog_bar: show it in the progress bar.
        metrics: torchmetrics Metrics whose `update(network, *args, **kwargs)` measures a network, in a list or in a
            dict of names to them. They are reset, moved to the module's device and summed over ranks as the error is.
        figures_every_n_epochs: log pictures after the first validation, and then whenever so many epochs have passed
            since the last ones; always after a test. None logs none.
        combine: name of the task's figure in the validation, such as "val_loss"; None combines nothing.
        weight: of the error beside it, in units of that figure; negative beside a figure that should be large, such as
            an accuracy, with `mode="max"` of who watches.

    Raises:
        ValueError: `network` names no sub-module, or is never called in the validation step; figures without a metric
            that draws any; two figures would have one name, also those of two monitors; the validation step logs
            nothing under the name `combine`.

    Examples:
        >>> from lightning_equiv import AngleProfile, LieDerivativeError, Symmetry
        >>> symmetry = Symmetry("SO(3)", inputs="1o", outputs="1o")
        >>> monitor = EquivarianceMonitor(symmetry, network="net", num_batches=4)
        >>> more = [LieDerivativeError(symmetry), AngleProfile(symmetry)]
        >>> monitor = EquivarianceMonitor(symmetry, network="net", metrics=more, figures_every_n_epochs=10)
        >>> monitor = EquivarianceMonitor(symmetry, network="net", combine="val_loss", weight=0.1)
        >>> stop = L.pytorch.callbacks.EarlyStopping("equivariance_error/combined", patience=10)
    """

    def __init__(
        self,
        symmetry: Symmetry,
        network: str = "",
        *,
        num_samples: int | None = 8,
        kind: Kind = "relative",
        every_n_epochs: int = 1,
        num_batches: int | None = 8,
        chunk_size: ChunkSize = "auto",
        per_irrep: bool = False,
        needs_grad: bool = False,
        seed: int = 0,
        name: str = "equivariance_error",
        prog_bar: bool = False,
        metrics: Sequence[Metric] | Mapping[str, Metric] = (),
        figures_every_n_epochs: int | None = None,
        combine: str | None = None,
        weight: float = 1.0,
    ) -> None:
        check_number("weight", weight)
        check_number("every_n_epochs", every_n_epochs, least=1, whole=True)
        check_number("num_batches", num_batches, least=1, whole=True, optional=True)
        check_number("figures_every_n_epochs", figures_every_n_epochs, least=1, whole=True, optional=True)
        self.metrics = named_metrics(metrics)
        if clash := clash_of([name, *self.metrics]):
            raise ValueError(
                f"the error and one of `metrics` would be logged as {clash!r}: give one another name, "
                f"metrics={{'{clash}_2': ...}}"
            )
        self.figures_every_n_epochs = figures_every_n_epochs
        if figures_every_n_epochs is not None and not self._pictured():
            raise ValueError(
                "expected a metric that draws a picture in `metrics`, for figures_every_n_epochs="
                f"{figures_every_n_epochs}, e.g. AngleProfile(symmetry), got {list(self.metrics.values())}"
            )
        self.network, self.name, self.prog_bar = network, name, prog_bar
        self.every_n_epochs, self.num_batches = every_n_epochs, num_batches
        self.metric = EquivarianceError(
            symmetry,
            num_samples=num_samples,
            kind=kind,
            chunk_size=chunk_size,
            per_irrep=per_irrep,
            needs_grad=needs_grad,
            seed=seed,
        )
        self.combine, self.weight = combine, weight
        self._recorder: CallRecorder | None = None
        self._measured = 0
        self._ever_called = False
        self._known: dict[str, list[str]] = {}  # of each metric, what its values were called
        self._can_draw, self._said_no_figures = False, False
        self._drawn_in: int | None = None  # the epoch of the last pictures

    def _pictured(self) -> dict[str, Metric]:
        """The metrics that draw pictures of themselves."""
        return {name: m for name, m in self.metrics.items() if getattr(m, "draws_itself", False)}

    # ---- one evaluation ------------------------------------------------------------------------------------------
    def _start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.current_epoch % self.every_n_epochs:
            return
        self._finish()
        self._recorder = CallRecorder(find_network(pl_module, self.network))
        for metric in (self.metric, *self.metrics.values()):
            metric.to(pl_module.device).reset()

    def _before_batch(self) -> None:
        if self._recorder is not None and (self.num_batches is None or self._measured < self.num_batches):
            self._recorder.start()

    def _after_batch(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._recorder is None or (self.num_batches is not None and self._measured >= self.num_batches):
            return
        calls = self._recorder.stop()
        if self.network == "" and trainer.strategy.model is not pl_module:
            calls = calls[:-1]  # DDP sends the step itself through the module's forward, and that call ends last
        if not calls:
            return  # a batch may do without
        network = find_network(pl_module, self.network)
        with trainer.precision_plugin.forward_context(), recording_paused():
            for call in calls:
                for metric in (self.metric, *self.metrics.values()):
                    metric.update(network, *call.args, **call.kwargs)
        self._measured += 1

    def _never_called(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say so: an error until it was called once, as a wrong name; afterwards a training goes on."""
        names = [n for n, _ in pl_module.named_children()]
        step = "test_step" if trainer.testing else "validation_step"
        message = (
            f"EquivarianceMonitor: network={self.network!r} was not called in `{step}`: name the sub-module that "
            f"is, one of {names}, and call it (`self.net(x)`, not `self.net.forward(x)`)"
        )
        if not self._ever_called and not trainer.sanity_checking:
            raise ValueError(message)
        rank_zero_warn(message)

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule, prefix: str = "") -> None:
        if self._recorder is None:
            return
        measured = mean_over_ranks(torch.tensor(float(self._measured), device=pl_module.device))
        if not bool(measured):
            self._never_called(trainer, pl_module)
        else:  # on every rank, also where this one has nothing: the sums are taken together
            self._ever_called = True
            every = {self.name: self.metric, **self.metrics}
            failed = {name for name, metric in every.items() if not self._log_metric(pl_module, prefix, name, metric)}
            if self.combine is not None and not trainer.testing:
                self._log_combined(trainer, pl_module, self.combine)
            if self._figures_due(trainer):
                self._log_figures(trainer, prefix, failed)
        self._finish()

    def _log_combined(self, trainer: L.Trainer, pl_module: L.LightningModule, combine: str) -> None:
        logged = logged_now(trainer)
        if combine not in logged:
            there = sorted({*logged} - {self.name})
            raise ValueError(
                f"EquivarianceMonitor: combine={combine!r} was not logged in `validation_step`: write "
                f"self.log({combine!r}, loss) there, or combine one of {there}"
            )
        both = logged[combine] + self.weight * logged[self.name]
        pl_module.log(f"{self.name}/{COMBINED}", both, sync_dist=True)

    def _log_metric(self, pl_module: L.LightningModule, prefix: str, name: str, metric: Metric) -> bool:
        """Log what a metric computes, NaN where it has no value; whether it has one."""
        main = metric is self.metric
        try:
            values = computed(metric)
            self._known[name] = list(values)
        except ValueError as error:
            rank_zero_warn(f"EquivarianceMonitor: {'' if main else f'{name}: '}{error}")
            values = dict.fromkeys(self._known.get(name) or names_of(metric), float("nan"))
            failed = True
        else:
            failed = False
        for part, value in values.items():
            whole = part == "" or (main and part == TOTAL)
            on_device = torch.as_tensor(value, device=pl_module.device)  # where ranks can take the mean
            pl_module.log(
                prefix + (name if whole else f"{name}/{part}"),
                on_device,
                prog_bar=self.prog_bar and main and whole,
                sync_dist=True,
            )
        return not failed

    def _figures_due(self, trainer: L.Trainer) -> bool:
        if self.figures_every_n_epochs is None or trainer.sanity_checking or not trainer.loggers:
            return False
        if trainer.state.fn != "fit":
            return True
        epoch = trainer.current_epoch
        if self._drawn_in is not None and epoch - self._drawn_in < self.figures_every_n_epochs:
            return False
        self._drawn_in = epoch
        return True

    def _log_figures(self, trainer: L.Trainer, prefix: str, failed: set[str]) -> None:
        """Draw on rank zero what all ranks have seen."""
        for name, metric in self._pictured().items():
            if name in failed:
                continue
            with metric.sync_context(dist_sync_fn=metric.dist_sync_fn, should_sync=metric._to_sync):
                if not (trainer.is_global_zero and self._can_draw):
                    continue
                figure: Any = metric.plot()[0]
                taken = [
                    log_figure(to, f"{prefix}{name}/figure", figure, trainer.global_step) for to in trainer.loggers
                ]
            if "matplotlib.pyplot" in sys.modules:  # of somebody's own metric
                sys.modules["matplotlib.pyplot"].close(figure)
            if not any(taken) and not self._said_no_figures:
                self._said_no_figures = True
                rank_zero_warn(
                    f"EquivarianceMonitor: {' and '.join(type(to).__name__ for to in trainer.loggers)} "
                    "takes no figures: give the Trainer a TensorBoardLogger, WandbLogger, MLFlowLogger or CometLogger, "
                    "or leave out figures_every_n_epochs"
                )

    def _check_names(self, monitors: Sequence[EquivarianceMonitor]) -> None:
        if clash := clash_of([name for monitor in monitors for name in (monitor.name, *monitor.metrics)]):
            of_error = any(monitor.name == clash for monitor in monitors)
            cure = f"name='{clash}_2'" if of_error else f"metrics={{'{clash}_2': ...}}"
            raise ValueError(
                f"two EquivarianceMonitors log {clash!r}, which would be the mean of two figures: give each a name of "
                f"its own, e.g. {cure}"
            )
        held = [metric for monitor in monitors for metric in monitor.metrics.values()]
        if len({id(metric) for metric in held}) < len(held):
            raise ValueError("two EquivarianceMonitors have the same metric: give each one of its own")

    def _check_figures(self, trainer: L.Trainer) -> bool:
        """Whether pictures can be drawn; say so where they cannot, or have nowhere to go."""
        if not trainer.loggers:
            rank_zero_warn("EquivarianceMonitor: figures_every_n_epochs is set, and the Trainer has no logger")
        try:
            check_drawing()
        except ImportError as error:
            rank_zero_warn(f"EquivarianceMonitor: no figures will be logged: {error}")
            return False
        return True

    def _finish(self) -> None:
        if self._recorder is not None:
            self._recorder.remove()
        self._recorder = None
        self._measured = 0

    # ---- Lightning's hooks ---------------------------------------------------------------------------------------
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a second monitor that logs the same names; say so where pictures cannot be drawn."""
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        monitors = [callback for callback in callbacks if isinstance(callback, EquivarianceMonitor)]
        self._check_names(monitors)
        if self.figures_every_n_epochs is not None:
            self._can_draw = self._check_figures(trainer)
        self._drawn_in = None
        self._ever_called = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse a name that does not exist before the first batch. Say so where the error alone ends the training."""
        find_network(pl_module, self.network)
        names = [self.name, *(name for name, metric in self.metrics.items() if isinstance(metric, SymmetryMetric))]
        warn_of_watched_errors(trainer, lambda watched: any(f"{watched}/".startswith(f"{name}/") for name in names))

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin an evaluation: record the network's calls."""
        self._start(trainer, pl_module)

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin an evaluation: record the network's calls."""
        self._start(trainer, pl_module)

    def on_validation_batch_start(self, *_: Any, **__: Any) -> None:
        """Begin to record calls."""
        self._before_batch()

    def on_test_batch_start(self, *_: Any, **__: Any) -> None:
        """Begin to record calls."""
        self._before_batch()

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        """Measure on what the network was called with."""
        self._after_batch(trainer, pl_module)

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        """Measure on what the network was called with."""
        self._after_batch(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log, and take the hooks away."""
        self._log(trainer, pl_module)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log, and take the hooks away."""
        self._log(trainer, pl_module, prefix="test_")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Take the hooks away."""
        self._finish()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the hooks away."""
        self._finish()
