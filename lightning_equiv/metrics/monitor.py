"""EquivarianceMonitor: the callback that measures and logs the equivariance error during validation."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_equiv._checks import check_number
from lightning_equiv.metrics.chunks import ChunkSize
from lightning_equiv.metrics.equivariance_error import EquivarianceError
from lightning_equiv.metrics.functional import Kind
from lightning_equiv.symmetry.call import TOTAL
from lightning_equiv.symmetry.symmetry import Symmetry
from lightning_equiv.wiring.call_recorder import CallRecorder
from lightning_equiv.wiring.network import find_network
from lightning_equiv.wiring.ranks import mean_over_ranks


class EquivarianceMonitor(L.Callback):
    r"""Measures how equivariant a network is while it is validated or tested, and logs it.

    The network's calls in the user's own `validation_step` (`test_step`) are recorded; after the step the network is
    run again on moved inputs, see `EquivarianceError` for the formulas; several loaders have one value together. The
    value is logged as `name` (validation) and `test_name` (test), so `EarlyStopping(monitor="equivariance_error")` and
    `ModelCheckpoint` can use it.

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

    Raises:
        ValueError: `network` names no sub-module, or is never called in the validation step.

    Examples:
        >>> from lightning_equiv import Symmetry
        >>> monitor = EquivarianceMonitor(Symmetry("SO(3)", inputs="1o", outputs="1o"), network="net", num_batches=4)
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
    ) -> None:
        check_number("every_n_epochs", every_n_epochs, least=1, whole=True)
        check_number("num_batches", num_batches, least=1, whole=True, optional=True)
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
        self._recorder: CallRecorder | None = None
        self._measured = 0
        self._ever_called = False

    # ---- one evaluation ------------------------------------------------------------------------------------------
    def _start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.current_epoch % self.every_n_epochs:
            return
        self._finish()
        self._recorder = CallRecorder(find_network(pl_module, self.network))
        self.metric.to(pl_module.device).reset()

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
        with trainer.precision_plugin.forward_context():
            for call in calls:
                self.metric.update(network, *call.args, **call.kwargs)
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
            self.metric._update_count = max(1, self.metric._update_count)
            try:
                value = self.metric.compute()
            except ValueError as error:
                rank_zero_warn(f"EquivarianceMonitor: {error}")
                value = torch.tensor(float("nan"), device=pl_module.device)
            errors: dict[str, Tensor] = value if isinstance(value, dict) else {TOTAL: value}
            for part, error_ in errors.items():
                name = prefix + (self.name if part == TOTAL else f"{self.name}/{part}")
                pl_module.log(name, error_, prog_bar=self.prog_bar and part == TOTAL, sync_dist=True)
        self._finish()

    def _finish(self) -> None:
        if self._recorder is not None:
            self._recorder.remove()
        self._recorder = None
        self._measured = 0

    # ---- Lightning's hooks ---------------------------------------------------------------------------------------
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a second monitor of the same name."""
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if sum(isinstance(c, EquivarianceMonitor) and c.name == self.name for c in callbacks) > 1:
            raise ValueError(
                f"two EquivarianceMonitors log {self.name!r}, which would be the mean of two figures: give each a name "
                f"of its own, e.g. name='{self.name}_2'"
            )
        self._ever_called = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse a name that does not exist before the first batch."""
        find_network(pl_module, self.network)

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
