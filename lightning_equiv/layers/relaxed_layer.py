"""What a relaxed layer is when training is over: a module f(x) + theta n(x) in the layer's place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from lightning_equiv.layers.branch import Branch, relaxed, tensors


class RelaxedLayer(nn.Module):
    """f(x) + theta n(x): a layer, a branch that knows no symmetry, and a constant.

    An ordinary module, which saves, loads, exports and compiles. What is asked of it and it does not have (irreps_in,
    weight, ..) is the layer's.

    Args:
        branch: the layer, what hangs on it and how its features lie; its normalised weights become plain ones.

    Attributes:
        layer: f, the user's module.
        branch: n.
        theta: how much of it is kept, a buffer.
    """

    theta: torch.Tensor

    def __init__(self, branch: Branch) -> None:
        super().__init__()
        branch.network.eval()  # or taking the norm off would take one more power iteration
        for module in branch.network.modules():
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight")
        self.layer = branch.layer.module
        self.branch = branch.network
        self.register_buffer("theta", branch.theta.detach().clone().to(next(branch.network.parameters())))
        self._geometry = Branch(replace(branch.layer, inputs=None, outputs=None), branch.network)
        self.register_forward_hook(_nothing)  # or torch's fused Transformer layers read the weights and pass it by

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """f(x) + theta n(x) of the first tensor x."""
        output = self.layer(*args, **kwargs)
        x, _ = tensors(self._geometry.layer, args, kwargs, output)
        return relaxed(self._geometry, self.theta, x, output)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)


def _nothing(*_: Any) -> None:
    """A hook that does nothing."""


def replace_layers(module: nn.Module, branches: list[Branch]) -> list[tuple[str, nn.Module, str, nn.Module]]:
    """Put a `RelaxedLayer` wherever the module holds one of the layers.

    Returns:
        Each place: its dotted name, the parent, the name in the parent, and the layer that was there.
    """
    places = []
    for branch in branches:
        layer, replacement = branch.layer.module, RelaxedLayer(branch)
        for path, parent in list(module.named_modules(remove_duplicate=False)):  # one parent may have two names
            for name, child in list(parent._modules.items()):
                if child in (layer, replacement) and parent is not replacement:
                    places.append((f"{path}.{name}" if path else name, parent, name, layer))
                    setattr(parent, name, replacement)
    return places
