"""Weights that train with a model but stay out of its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

CONTAINER = "_lightning_equiv_branches"  # what the name of every container begins with


def own_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the user's network by name, without those of containers that hang in it."""
    return {name: p for name, p in network.named_parameters() if CONTAINER not in name}


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies for a checkpoint."""
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


class HiddenParameters(nn.ModuleDict):
    """A container of modules without a trace in the state dict of what holds it.

    Its parameters are trained, moved and synchronised like any others; `state_dict` leaves the destination as it is,
    and loading misses nothing. Its owner keeps them elsewhere (`own_state`, `load_own_state`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_post_hook(_forget_missing)  # type: ignore[no-untyped-call]

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        return {} if destination is None else destination

    def own_state(self) -> dict[str, Any]:
        """The parameters and buffers by name, on the CPU."""
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return on_cpu(tensors)

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Parameters and buffers from `own_state`.

        Raises:
            ValueError: other names or shapes.
        """
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        expected = {name: tuple(t.shape) for name, t in tensors.items()}
        got = {name: tuple(t.shape) for name, t in state.items()}
        if expected != got:
            raise ValueError(f"the checkpoint's branches do not fit the chosen layers: expected {expected}, got {got}")
        for name, tensor in tensors.items():
            tensor.data.copy_(state[name])


def _forget_missing(module: nn.Module, incompatible: Any) -> None:
    """Drop the container's own keys from what a strict load misses (averaging callbacks put `module.` in front)."""
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if CONTAINER not in key]
