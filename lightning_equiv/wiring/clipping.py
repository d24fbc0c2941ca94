"""Clip the gradients of added weights apart from the model's, so that the model's are clipped as without them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
from torch import nn

from lightning_equiv.wiring.override import override


def clip_apart(module: L.LightningModule, parameters: Iterable[nn.Parameter]) -> Callable[[], None]:
    """Hide the gradients of `parameters` while the module clips, then clip them by themselves, in the same way.

    Returns:
        What takes this back.
    """
    ours = list(parameters)
    before = module.configure_gradient_clipping

    def configure_gradient_clipping(
        optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        gradients = [p.grad for p in ours]
        for p in ours:
            p.grad = None
        before(optimizer, gradient_clip_val, gradient_clip_algorithm)
        for p, gradient in zip(ours, gradients, strict=True):
            p.grad = gradient
        if not gradient_clip_val or not ours:
            return
        if gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(ours, gradient_clip_val)
        else:
            nn.utils.clip_grad_norm_(ours, gradient_clip_val)

    put_back = override(module, "configure_gradient_clipping", configure_gradient_clipping)

    def restore() -> None:
        ours.clear()  # where somebody wrapped ours, it stays and passes everything on
        put_back()

    return restore
