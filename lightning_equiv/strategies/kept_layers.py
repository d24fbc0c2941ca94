"""Layers that a strategy leaves relaxed: put into the user's module, taken out again, taken out of checkpoints."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

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
        for _, parent, name, layer in self._places_of(module):
            setattr(parent, name, layer)
        self._module, self._places = None, []

    @contextmanager
    def lifted(self, module: nn.Module) -> Iterator[None]:
        """The layers put back from here on; where what is inside fails, all is as before, weights too."""
        earlier = self._module, self._places
        relaxed = [(parent, name, parent._modules[name]) for _, parent, name, _ in self._places_of(module)]
        weights = [(t, t.detach().clone()) for t in (*module.parameters(), *module.buffers())]
        self.restore(module)
        try:
            yield
        except BaseException:
            for tensor, before in weights:
                tensor.data.copy_(before)
            for parent, name, layer in relaxed:
                setattr(parent, name, layer)
            self._module, self._places = earlier
            raise

    def _places_of(self, module: nn.Module) -> list[tuple[str, nn.Module, str, nn.Module]]:
        return self._places if self._module is not None and self._module() is module else []


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


def check_names(what: str, expected: Iterable[str], got: Iterable[str]) -> None:
    """ValueError where names are missing or too many."""
    missing, others = sorted({*expected} - {*got}), sorted({*got} - {*expected})
    if missing or others:
        raise ValueError(
            f"the checkpoint does not fit the {what}: it lacks {missing} and has {others} besides; expected the module "
            "and the strategy that were saved"
        )


def check_finite(tree: Any, place: str = "the checkpoint") -> None:
    """ValueError for NaN or infinity in any tensor or number of nested dicts and lists."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            check_finite(value, f"{place}[{name!r}]")
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            check_finite(value, f"{place}[{i}]")
    elif isinstance(tree, Tensor | float) and not bool(torch.isfinite(torch.as_tensor(tree)).all()):
        raise ValueError(f"{place} is not finite: expected numbers, restore a checkpoint from before they were lost")
