"""Choose layers of a model, and know how a group element moves what goes into and comes out of them."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_equiv.layers.families.escnn import EscnnFields
from lightning_equiv.layers.hidden_parameters import CONTAINER
from lightning_equiv.representations.irreps import IrrepsTensor
from lightning_equiv.representations.representation import Representation, as_representation

Chooser = str | type | Callable[[str, nn.Module], bool]
Layers = Chooser | Sequence[Chooser] | Mapping[str, tuple[Any, Any]]


@dataclass(frozen=True, eq=False)
class Layer:
    """A chosen layer.

    Its features are one dimension of a tensor, or two neighbouring ones such as the channels and components of vector
    neurons. `inputs` and `outputs` move a tensor (rows, *features).

    Attributes:
        name: dotted name in the model.
        module: the layer.
        inputs: how an element moves its (first) input; None where that is not known.
        outputs: how an element moves its output; None where that is not known.
        dims: the dimensions that hold the features: (-1,) for most, (1, 2) for vector neurons (batch, channels, 3, ..),
            (1,) for convolutions, whose features are all dimensions between the batch and the grid.
        in_features: shape of the input's features; None where only a call will tell.
        out_features: shape of the output's features.
    """

    name: str
    module: nn.Module
    inputs: Representation | None
    outputs: Representation | None
    dims: tuple[int, ...]
    in_features: tuple[int, ...] | None
    out_features: tuple[int, ...] | None

    @property
    def grid(self) -> int:
        """Dimensions of the grid that a convolution slides over, the last of its tensors; 0 for any other layer."""
        return grid_dims(self.module)


def grid_dims(module: nn.Module) -> int:
    """Dimensions of the grid of a convolution (torch's, escnn's, or any module with a weight (.., k, k)), else 0."""
    kernel, weight = getattr(module, "kernel_size", None), getattr(module, "weight", None)
    if isinstance(kernel, tuple):
        return len(kernel)
    return 2 if kernel is not None or (isinstance(weight, Tensor) and weight.ndim >= 4) else 0


def find_layers(module: nn.Module, layers: Layers) -> list[Layer]:
    """The layers that are meant, in the model's order.

    Args:
        module: the model.
        layers: a glob on dotted names ("net.layers.*.update"), a type, a predicate (name, module) -> bool, a list of
            these, or a dict from globs to (input representation, output representation).

    Raises:
        ValueError: a glob, type or predicate matches nothing (the nearest names are shown), or a representation is not
            one.
    """
    if isinstance(layers, Mapping):
        choosers: list[Any] = list(layers)
        given = {glob: tuple(map(as_representation, pair)) for glob, pair in layers.items()}
    else:
        choosers = list(layers) if isinstance(layers, Sequence) and not isinstance(layers, str) else [layers]
        given = {}
    # a compiled module puts a name of its own in between, which is not the user's; nor are the branches of another
    named = {name.replace("_orig_mod.", ""): m for name, m in module.named_modules() if name and CONTAINER not in name}
    chosen: dict[str, Layer] = {}
    for chooser in choosers:
        matches = [name for name, m in named.items() if _matches(chooser, name, m)]
        if not matches:
            raise ValueError(_nothing_matched(chooser, named, module))
        outermost = [name for name in matches if not any(name.startswith(f"{other}.") for other in matches)]
        for name in outermost:  # what lies inside a chosen layer is part of it
            chosen[name] = _describe(name, named[name], given.get(chooser) if isinstance(chooser, str) else None)
    return [chosen[name] for name in named if name in chosen]


def _matches(chooser: Any, name: str, module: nn.Module) -> bool:
    if isinstance(chooser, str):
        return fnmatch.fnmatchcase(name, chooser)
    if isinstance(chooser, type):
        return isinstance(module, chooser)
    if callable(chooser):
        return bool(chooser(name, module))
    raise TypeError(f"expected layers as a glob, a type, a predicate (name, module) -> bool or a list, got {chooser!r}")


def _nothing_matched(chooser: Any, named: Mapping[str, nn.Module], module: nn.Module) -> str:
    if isinstance(chooser, str):
        near = difflib.get_close_matches(chooser, named, n=3, cutoff=0.3) or list(named)[:5]
        return f"layers={chooser!r} matches no layer of {type(module).__name__}: the nearest names are {near}"
    types = sorted({type(m).__name__ for m in named.values()})
    return f"layers={chooser!r} matches no layer of {type(module).__name__}: its layers are of types {types}"


def _describe(name: str, module: nn.Module, given: tuple[Representation, ...] | None) -> Layer:
    """What the module itself says of its features, or what the user gave."""
    if given is not None:
        inputs, outputs = given
        features = inputs.feature_shape(_sizes(module, "in")), outputs.feature_shape(_sizes(module, "out"))
        dims = (1,) if grid_dims(module) else inputs.feature_dims
        return Layer(name, module, inputs.of_features(), outputs.of_features(), dims, *features)
    irreps_in = getattr(module, "irreps_in1", getattr(module, "irreps_in", None))
    irreps_out = getattr(module, "irreps_out", None)
    if irreps_in is not None and irreps_out is not None:  # e3nn
        inputs, outputs = IrrepsTensor(irreps_in), IrrepsTensor(irreps_out)
        return Layer(name, module, inputs, outputs, (-1,), (inputs.irreps.dim,), (outputs.irreps.dim,))
    in_type, out_type = getattr(module, "in_type", None), getattr(module, "out_type", None)
    if in_type is not None and out_type is not None and grid_dims(module):  # escnn
        inputs, outputs = EscnnFields(in_type), EscnnFields(out_type)
        return Layer(name, module, inputs, outputs, (1,), (in_type.size,), (out_type.size,))
    sizes = _sizes(module, "in"), _sizes(module, "out")
    if type(module).__name__.startswith("VN") and None not in sizes:  # vector neurons
        vectors = IrrepsTensor("1o")
        return Layer(name, module, vectors, vectors, (1, 2), (sizes[0] or 0, 3), (sizes[1] or 0, 3))
    dims = (1,) if grid_dims(module) else (-1,)
    in_features, out_features = (None if size is None else (size,) for size in sizes)
    return Layer(name, module, None, None, dims, in_features, out_features)


def _sizes(module: nn.Module, side: str) -> int | None:
    """Number of input ("in") or output ("out") channels, by the names that the field gives to it."""
    if grid_dims(module) and not isinstance(module, _ConvNd):
        return None  # a group convolution's channels come with orientations: its shapes are what a call shows
    inner = getattr(module, "map_to_feat", None)  # the published vector neurons
    for owner, name in ((module, f"{side}_features"), (module, f"{side}_channels"), (inner, f"{side}_features")):
        size = getattr(owner, name, None)
        if isinstance(size, int):
            return size
    return None


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The tensor that a layer was called with, the first one; escnn's geometric tensors are opened."""
    for value in (*args, *kwargs.values()):
        value = getattr(value, "tensor", value)
        if isinstance(value, Tensor):
            return value
    return None
