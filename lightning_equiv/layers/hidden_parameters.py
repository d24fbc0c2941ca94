"""Weights that train with a model but stay out of its checkpoint."""

from __future__ import annotations

import copy
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
        self.is_copy = False
        self.register_load_state_dict_post_hook(_forget_missing)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> HiddenParameters:
        """A copy of the module holds these weights at rest, in the same places among its `parameters()`.

        Nothing applies or trains them, and the next strategy that is attached takes them out.
        """
        twin = memo[id(self)] = HiddenParameters()
        for name, module in self.items():
            twin[name] = copy.deepcopy(module, memo)
        twin.is_copy = True
        return twin.requires_grad_(requires_grad=False)

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


def remove_copies(module: nn.Module) -> None:
    """Take out the containers that a module has because it is a copy of one that was being trained."""
    for owner in list(module.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, HiddenParameters) and child.is_copy:
                delattr(owner, name)


def common_owner(module: nn.Module, names: list[str]) -> nn.Module:
    """The innermost module that holds all of these, so that its `parameters()` hold the branches too."""
    places = {name.replace("_orig_mod.", ""): name for name, _ in module.named_modules()}
    parents = [places[name].split(".")[:-1] for name in names]
    common: list[str] = []
    for words in zip(*parents, strict=False):
        if len(set(words)) > 1:
            break
        common.append(words[0])
    owner = module.get_submodule(".".join(common))
    # what runs or lists its children must not get one more, and a compiled module hands it on to what it wraps
    while isinstance(owner, nn.ModuleDict | nn.Sequential) or _is_numbered(owner) or hasattr(owner, "_orig_mod"):
        common.pop()
        owner = module.get_submodule(".".join(common))
    return owner


def _is_numbered(module: nn.Module) -> bool:
    """Whether this is a list or a sequence of modules: torch's, escnn's or anybody's."""
    names = [name for name, _ in module.named_children()]
    return bool(names) and all(name.isdigit() for name in names)
