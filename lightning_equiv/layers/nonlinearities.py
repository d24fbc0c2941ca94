"""What a network's nonlinearities switch on: the numbers whose sign decides, read by hooks, without an edit.

    nn.ReLU and its kind, pointwise      the input x
    vector neurons' (Leaky)ReLU          <q, d> of a feature q with its learned direction d = U v
    e3nn's Activation, also in Gate      the even scalars that pass an activation

Functional ones (`torch.relu`) are called by no module, and are not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from lightning_equiv.layers.hidden_parameters import CONTAINER

POINTWISE = (
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ReLU6, nn.ELU, nn.CELU, nn.SELU),
    *(nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Softplus),
)
WHAT = "nn.ReLU and its kind, vector neurons' VN...ReLU with a `map_to_dir` or `direction`, e3nn's Activation and Gate"
Seen = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class Nonlinearity:
    """A nonlinearity of a network.

    Attributes:
        name: dotted.
        module: the module.
        kind: "pointwise", "vectors" or "e3nn".
    """

    name: str
    module: nn.Module
    kind: str


def find_nonlinearities(network: nn.Module) -> list[Nonlinearity]:
    """Those inside a network that can be read, see the head of this file, but for those of relaxed layers' branches."""
    found: list[Nonlinearity] = []
    for name, module in network.named_modules():
        inside = any(name.startswith(f"{other.name}.") for other in found)
        kind = None if inside or CONTAINER in name else _kind(module)
        if kind is not None:
            found.append(Nonlinearity(name, module, kind))
    return found


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, torch.jit.ScriptModule):
        return None  # takes no hooks
    if isinstance(module, POINTWISE):
        return "pointwise"
    if fnmatchcase(type(module).__name__, "VN*ReLU") and _direction(module) is not None:
        return "vectors"
    if any(cls.__module__.startswith("e3nn.") and cls.__name__ == "Activation" for cls in type(module).__mro__):
        return "e3nn"
    return None


def _direction(module: nn.Module) -> nn.Module | None:
    """The map to d: of the published layers, or of one that takes and returns vectors as the layer does."""
    direction = getattr(module, "map_to_dir", getattr(module, "direction", None))
    return direction if isinstance(direction, nn.Module) else None


@contextmanager
def watched(network: nn.Module, nonlinearities: list[Nonlinearity], seen: Seen) -> Iterator[None]:
    """Inside, every call of a nonlinearity calls `seen` with its name and what decides, (samples, units, points).

    Points are whatever is neither: points of a cloud, places of a grid, edges. Where every sample has one row of units,
    the rows are the points of one sample: those of a batch, or a batch of graphs' nodes. Units are the last
    dimension, but the second behind a convolution or a batch norm.
    """
    behind = {"dim": -1}  # where the layer that ran last has its units
    with ExitStack() as undo:
        for module in network.modules():
            if isinstance(module, nn.Linear | _ConvNd | _NormBase | nn.GroupNorm):
                dim = -1 if isinstance(module, nn.Linear) else 1

                def ran(*_: Any, dim: int = dim) -> None:
                    behind["dim"] = dim

                undo.callback(module.register_forward_hook(ran).remove)
        for found in nonlinearities:
            if found.kind == "vectors":
                _watch_vectors(found, seen, undo)
                continue

            def enters(module: nn.Module, args: Any, found: Nonlinearity = found) -> None:
                if found.kind == "e3nn":
                    seen(found.name, arranged(_even_scalars(module, args[0]), -1))
                else:
                    seen(found.name, arranged(args[0], behind["dim"]))

            undo.callback(found.module.register_forward_pre_hook(enters).remove)
        yield


def arranged(x: Tensor, dim: int) -> Tensor:
    """(samples, units, points) of a tensor with its units in a dimension; (rows, units) as (1, units, rows)."""
    x = x.detach()
    if x.ndim < 3:
        return x.reshape(-1, x.shape[-1] if x.ndim else 1).mT[None]
    return x.movedim(dim, 1).flatten(2)


def _even_scalars(activation: Any, x: Tensor) -> Tensor:
    """What passes the activations of e3nn's module; an odd scalar has no sign of its own."""
    parts, start = [x[..., :0]], 0
    for (mul, ir), act in zip(activation.irreps_in, activation.acts, strict=True):
        if act is not None and ir.p == 1:
            parts.append(x[..., start : start + mul])
        start += mul * ir.dim
    return torch.cat(parts, -1)


def _watch_vectors(found: Nonlinearity, seen: Seen, undo: ExitStack) -> None:
    """<q, d> of vectors (batch, channels, 3, ..).

    q is the layer's input, or what its own linear map, and norm, made of it. The published maps are `nn.Linear`, of
    channels that were moved to the end.
    """
    module, direction = found.module, _direction(found.module)
    assert direction is not None
    held: dict[str, Tensor] = {}

    def vectors(map_: nn.Module, output: Tensor) -> Tensor:
        return output.transpose(1, -1) if isinstance(map_, nn.Linear) else output

    def enters(_: nn.Module, args: Any) -> None:
        held["q"] = args[0]

    def mapped(map_: nn.Module, _: Any, output: Tensor) -> None:
        held["q"] = vectors(map_, output)

    def directed(map_: nn.Module, _: Any, output: Tensor) -> None:
        held["d"] = vectors(map_, output)

    def leaves(*_: Any) -> None:
        along = (held["q"] * held["d"]).sum(2)
        held.clear()
        seen(found.name, arranged(along, 1))

    undo.callback(module.register_forward_pre_hook(enters).remove)
    for name in ("map_to_feat", "batchnorm"):
        part = getattr(module, name, None)
        if isinstance(part, nn.Module):
            undo.callback(part.register_forward_hook(mapped).remove)
    undo.callback(direction.register_forward_hook(directed).remove)
    undo.callback(module.register_forward_hook(leaves).remove)
