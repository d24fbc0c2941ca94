"""The layers that RECM leaves relaxed: put into the user's module, taken out again, and taken out of checkpoints."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from lightning_equiv.layers.branch import Branch
from lightning_equiv.layers.relaxed_layer import replace_layers


class KeptLayers:
    """The relaxed layers that a module has after training."""

    def __init__(self) -> None:
        self._places: list[tuple[str, nn.Module, str, nn.Module]] = []
        self._module: weakref.ref[nn.Module] | None = None

    def __reduce__(self) -> tuple[type[KeptLayers], tuple[()]]:
        return KeptLayers, ()  # a copy belongs to no module

    @property
    def names(self) -> list[str]:
        """Their dotted names, which a checkpoint keeps beside the weights."""
        return [path for path, *_ in self._places]

    def put(self, module: nn.Module, branches: list[Branch]) -> None:
        """Put a `RelaxedLayer` wherever the module holds one of the layers."""
        self._module, self._places = weakref.ref(module), replace_layers(module, branches)

    def restore(self, module: nn.Module) -> None:
        """Put the layers back, if this is the module; another one keeps what it has."""
        if self._module is not None and self._module() is module:
            for _, parent, name, layer in self._places:
                setattr(parent, name, layer)
        self._module, self._places = None, []


def without_branches(state: Mapping[str, Any], kept: Iterable[str]) -> dict[str, Any]:
    """A state dict under the keys of the user's layers, where those named `kept` were relaxed when it was saved."""
    plain: dict[str, Any] = {}
    for key, value in state.items():
        place = next((f"{name}." for name in kept if key.startswith(f"{name}.")), "")
        inner = key.removeprefix(place)
        if not place:
            plain[key] = value
        elif inner.startswith("layer."):
            plain[place + inner.removeprefix("layer.")] = value
    return plain
