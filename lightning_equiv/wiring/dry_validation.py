"""Run the user's validation step (test step, predict step) once more without a trace, to see what it would log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torchmetrics import Metric

from lightning_equiv.wiring.frozen_randomness import buffers_kept
from lightning_equiv.wiring.override import override
from lightning_equiv.wiring.random_state import random_state_kept

_TOGETHER = "batch_size", "add_dataloader_idx", "sync_dist", "reduce_fx"


@dataclass(frozen=True)
class Logged:
    """A value that a step would log.

    Attributes:
        value: detached, on the module's device.
        settings: of `log` that say how batches, loaders and ranks are put together, as far as they were given.
    """

    value: Tensor
    settings: dict[str, Any]


def dry_validation_step(
    module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int
) -> dict[str, Tensor]:
    """What `module.validation_step` would log for a batch; nothing is logged. See `dry_step`."""
    logged, _ = dry_step(module, "validation", batch, batch_idx, dataloader_idx)
    return {name: entry.value for name, entry in logged.items()}


def dry_step(
    module: L.LightningModule,
    stage: Literal["validation", "test", "predict"],
    batch: Any,
    batch_idx: int,
    dataloader_idx: int,
) -> tuple[dict[str, Logged], Any]:
    """What the step of a stage would log for a batch, by name, and what it returns; nothing is logged.

    No metric, buffer or random generator of the module moves.
    Values that are metric objects are left out: their value belongs to the whole epoch. A module without a Trainer has
    one loader.
    """
    seen: dict[str, Logged] = {}

    def log(name: str, value: Any, *_: Any, **settings: Any) -> None:
        if not isinstance(value, Metric):
            kept = {key: settings[key] for key in _TOGETHER if key in settings}
            seen[name] = Logged(torch.as_tensor(value, device=module.device).detach(), kept)

    def log_dict(dictionary: dict[str, Any], *_: Any, **settings: Any) -> None:
        for name, value in dictionary.items():
            log(name, value, **settings)

    step = getattr(module, f"{stage}_step")
    # by position and as many as Lightning passes
    args: tuple[Any, ...] = (batch,)
    if is_param_in_hook_signature(step, "batch_idx", min_args=2):
        args += (batch_idx,)
    numbers = {"validation": "num_val_batches", "test": "num_test_batches", "predict": "num_predict_batches"}
    if module._trainer is not None and len(getattr(module.trainer, numbers[stage])) > 1:
        args += (dataloader_idx,)
    with ExitStack() as undo, metrics_kept(module), random_state_kept(), buffers_kept(module):
        undo.callback(override(module, "log", log))
        undo.callback(override(module, "log_dict", log_dict))
        returned = step(*args)
    return seen, returned


@contextmanager
def metrics_kept(module: L.LightningModule) -> Iterator[None]:
    """Inside, the metrics of a module may be updated: their states are put back."""
    metrics = [m for m in module.modules() if isinstance(m, Metric)]
    states = [(m._update_count, m._computed, m._copy_state_dict()) for m in metrics]
    try:
        yield
    finally:
        for metric, (count, computed, state) in zip(metrics, states, strict=True):
            metric._update_count, metric._computed = count, computed
            for name, value in state.items():
                setattr(metric, name, value)
