"""SymmetrizeAtTest: the symmetrized network beside the plain one, in validate, test and predict."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal

import lightning as L
import torch
from torch import nn

from lightning_equiv.symmetrize.symmetrized import MethodName, Symmetrized
from lightning_equiv.symmetry.symmetry import Symmetry
from lightning_equiv.wiring.call_recorder import recording_paused
from lightning_equiv.wiring.dry_validation import Logged, dry_step
from lightning_equiv.wiring.network import check_lightning_module, find_network
from lightning_equiv.wiring.override import override

Stage = Literal["validation", "test", "predict"]


class SymmetrizeAtTest(L.Callback):
    """Evaluates a network symmetrized, beside what it is: one line in the log says what averaging would give.

    After each batch of `trainer.validate` or `trainer.test` the user's own step runs once more, with the network's
    forward replaced by that of a `Symmetrized`, and what it would log is logged as "symmetrized/" and its name. In
    `trainer.predict` what the step returns is kept in `predictions`. The module is never changed between two steps: its
    forward is put back after each, also after an error, and metrics, buffers and random generators do not move.

    Values that are logged as metric objects are left out. The network inside is run K times, see the table of
    `Symmetrized`; hooks on the network itself see one call.

    Args:
        symmetry: says how a group element moves the network's inputs and outputs.
        method: as of `Symmetrized`.
        network: dotted name of the sub-module that is meant, or "" for the LightningModule itself.
        in_fit: also in the validation of `trainer.fit`.
        name: what is put in front of the figures.
        settings: of `Symmetrized`: subgroup="icosahedral", degree=4, points="positions", chunk_size=512 and so on.

    Attributes:
        predictions: what `predict_step` returned of the symmetrized network, batch by batch; a list for each loader
            where there are several.

    Raises:
        ValueError: `network` names no sub-module, or is not called in the step; see also `Symmetrized`.

    Examples:
        >>> symmetry = Symmetry("SO(3)", inputs="1o", outputs="1o")
        >>> callback = SymmetrizeAtTest(symmetry, network="net", subgroup="icosahedral")
    """

    def __init__(
        self,
        symmetry: Symmetry,
        method: MethodName | Callable[..., Any] = "average",
        *,
        network: str = "net",
        in_fit: bool = False,
        name: str = "symmetrized",
        **settings: Any,
    ) -> None:
        self.symmetry, self.method, self.network = symmetry, method, network
        self.in_fit, self.name, self.settings = in_fit, name, settings
        self.predictions: list[Any] = []
        self._symmetrized: Symmetrized | None = None  # during an evaluation
        Symmetrized(nn.Identity(), symmetry, method, **settings)  # says now what it would say in the first batch

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse another package's module."""
        check_lightning_module(pl_module)

    def _step(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        stage: Stage,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> tuple[dict[str, Logged], Any]:
        """What the user's step would log, and returns, with the symmetrized network."""
        network = find_network(pl_module, self.network)
        plain = network.forward
        if self._symmetrized is None:  # one for all batches, which has checked a canonical pose and gone on drawing
            made = Symmetrized(plain, self.symmetry, self.method, **self.settings)
            self._symmetrized = made.to(pl_module.device).eval()
        symmetrized = self._symmetrized
        calls = 0

        @functools.wraps(plain)
        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            return symmetrized(*args, **kwargs)

        with ExitStack() as undo:
            undo.callback(override(network, "forward", forward))
            undo.enter_context(torch.compiler.set_stance("force_eager"))  # a compiled call would not see the override
            undo.enter_context(trainer.precision_plugin.forward_context())
            undo.enter_context(recording_paused())
            found = dry_step(pl_module, stage, batch, batch_idx, dataloader_idx)
        if not calls:
            names = [n for n, _ in pl_module.named_children()]
            raise ValueError(
                f"SymmetrizeAtTest: network={self.network!r} was not called in `{stage}_step`: name the sub-module "
                f"that is, one of {names}, and call it (`self.net(x)`)"
            )
        return found

    def _start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._symmetrized = None

    on_validation_start = on_test_start = on_validation_end = on_test_end = on_predict_end = _start

    def _log(self, pl_module: L.LightningModule, logged: dict[str, Logged]) -> None:
        for key, entry in logged.items():
            pl_module.log(f"{self.name}/{key}", entry.value, on_step=False, on_epoch=True, **entry.settings)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log the figures of the symmetrized network."""
        if trainer.sanity_checking or (trainer.state.fn == "fit" and not self.in_fit):
            return
        self._log(pl_module, self._step(trainer, pl_module, "validation", batch, batch_idx, dataloader_idx)[0])

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log the figures of the symmetrized network."""
        self._log(pl_module, self._step(trainer, pl_module, "test", batch, batch_idx, dataloader_idx)[0])

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget earlier predictions."""
        self._start(trainer, pl_module)
        loaders = len(trainer.num_predict_batches)
        self.predictions = [] if loaders == 1 else [[] for _ in range(loaders)]

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what the symmetrized network predicts."""
        _, predicted = self._step(trainer, pl_module, "predict", batch, batch_idx, dataloader_idx)
        one = len(trainer.num_predict_batches) == 1
        (self.predictions if one else self.predictions[dataloader_idx]).append(predicted)
