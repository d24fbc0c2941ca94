"""Layers that say nothing of a symmetry."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lightning_equiv.layers.layer import LayerFamily


@dataclass(frozen=True)
class Plain(LayerFamily):
    """Any module, with its features in the last dimension or where the representations that are given have them."""

    def matches(self, module: nn.Module) -> bool:
        return True
