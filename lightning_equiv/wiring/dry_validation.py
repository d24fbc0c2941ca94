"""Run the user's validation step once more without a trace, to see what it would log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torchmetrics import Metric

from lightning_equiv.wiring.frozen_randomness import buffers_kept
from lightning_equiv.wiring.override import override
from lightning_equiv.wiring.random_state import random_state_kept


def dry_validation_step(
    module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int
) -> dict[str, Tensor]:
    """What `module.validation_step` would log for a batch; nothing is logged.

    No metric, buffer or random generator of the module moves.
    Values that are metric objects are left out: their value belongs to the whole epoch. A module without a Trainer has
    one validation loader.
    """
    seen: dict[str, Tensor] = {}

    def log(name: str, value: Any, *_: Any, **__: Any) -> None:
        if not isinstance(value, Metric):
            seen[name] = torch.as_tensor(value, device=module.device).detach()

    def log_dict(dictionary: dict[str, Any], *_: Any, **__: Any) -> None:
        for name, value in dictionary.items():
            log(name, value)

    # by position and as many as Lightning passes
    args: tuple[Any, ...] = (batch,)
    if is_param_in_hook_signature(module.validation_step, "batch_idx", min_args=2):
        args += (batch_idx,)
    if module._trainer is not None and len(module.trainer.num_val_batches) > 1:
        args += (dataloader_idx,)
    with ExitStack() as undo, metrics_kept(module), random_state_kept(), buffers_kept(module):
        undo.callback(override(module, "log", log))
        undo.callback(override(module, "log_dict", log_dict))
        module.validation_step(*args)
    return seen


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
