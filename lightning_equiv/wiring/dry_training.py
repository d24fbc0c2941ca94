"""Run the user's training step once more without a trace, to see what its loss would be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from lightning_equiv.wiring.call_recorder import recording_paused
from lightning_equiv.wiring.dry_validation import metrics_kept
from lightning_equiv.wiring.frozen_randomness import buffers_kept
from lightning_equiv.wiring.override import override
from lightning_equiv.wiring.random_state import random_state_kept
from lightning_equiv.wiring.recomputation import extra_pass
from lightning_equiv.wiring.training_step import loss_of, own_training_step


@contextmanager
def dry_training(module: L.LightningModule, full_precision: bool = False, recorded: bool = False) -> Iterator[None]:
    """Inside, the user's training step, what is differentiated of it included, leaves no trace.

    Nothing is logged, no metric, buffer or random generator moves, no recorder remembers a call, and what is compiled
    runs as it is written. The step begins with the random numbers of the step itself: twice inside two of these is
    twice the same. What it does to attributes of its own (a list it appends to) is done again.

    Args:
        module: whose step it is.
        full_precision: without autocast.
        recorded: whether recorders remember its calls of the network.
    """

    def log(*_: Any, **__: Any) -> None:
        """Nothing."""

    device = module.device.type
    # without the cache, through which the step itself would get weights that were cast in here, with a graph of here
    autocast = torch.autocast(
        device,
        dtype=torch.get_autocast_dtype(device),
        enabled=torch.is_autocast_enabled(device) and not full_precision,
        cache_enabled=False,
    )
    with ExitStack() as undo:
        for context in (
            metrics_kept(module),
            random_state_kept(),
            buffers_kept(module, every=True),
            nullcontext() if recorded else recording_paused(),
            extra_pass(module),
            torch.compiler.set_stance("force_eager"),
            autocast,
        ):
            undo.enter_context(context)
        undo.callback(override(module, "log", log))
        undo.callback(override(module, "log_dict", log))
        yield


def dry_training_loss(module: L.LightningModule, batch: Any, batch_idx: int) -> float | None:
    """The loss of the user's own training step for a batch, without strategies; None where it returns none.

    Recorders remember its calls of the network.
    """
    step = own_training_step(module)
    args = (batch, batch_idx) if is_param_in_hook_signature(step, "batch_idx", min_args=2) else (batch,)
    with dry_training(module, recorded=True), torch.enable_grad():  # a network may differentiate inside
        loss = loss_of(step(*args))
    return None if loss is None else float(loss.detach())
