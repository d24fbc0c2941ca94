"""A layer that was chosen, and the family that knows its features: what a new family writes."""

from __future__ import annotations

import fnmatch
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from lightning_equiv.groups.group import Group
from lightning_equiv.layers.branch_networks import LinearBranch, MLPBranch
from lightning_equiv.representations.representation import Representation, RepresentationLike, as_representation

Types: TypeAlias = str | type | Sequence[str | type]
Matrix: TypeAlias = tuple[Tensor, Tensor | None]  # A (.., outputs, inputs) and b (.., outputs)


class Block(NamedTuple):
    """A matrix in a parameter: `rows * columns` neighbouring numbers of `parameter.flatten()`, from `start` on."""

    start: int
    rows: int
    columns: int


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
        family: what knows its tensors and makes its branch.
    """

    name: str
    module: nn.Module
    inputs: Representation | None
    outputs: Representation | None
    dims: tuple[int, ...]
    in_features: tuple[int, ...] | None
    out_features: tuple[int, ...] | None
    family: LayerFamily

    @property
    def grid(self) -> int:
        """Dimensions of the grid that a convolution slides over, the last of its tensors; 0 for any other layer."""
        return self.family.grid(self.module)


class LayerFamily(ABC):
    """The layers of one library: where their features lie, how they move, and what is a branch beside them.

    A new family says which modules are its members (`matches`) and how their features move (`representations`), and
    overrides the other answers only where they differ.

    Examples:
        >>> class Mixing(nn.Linear):
        ...     '''Mixes vectors (rows, 3, channels).'''
        >>> class MixingLayers(LayerFamily):
        ...     def matches(self, module):
        ...         return isinstance(module, Mixing)
        ...
        ...     def representations(self, module):
        ...         return "IrrepsTensor('1o', dim=-2)", "IrrepsTensor('1o', dim=-2)"
        >>> layer = MixingLayers().describe("mixing", Mixing(8, 16, bias=False))
        >>> layer.in_features, layer.out_features
        ((3, 8), (3, 16))
    """

    # ---- what a layer is -----------------------------------------------------------------------------------------
    @abstractmethod
    def matches(self, module: nn.Module) -> bool:
        """Whether a module is of this family."""

    def composite(self, module: nn.Module) -> bool:
        """Whether a module's parts are its own business, as those of e3nn's `NormActivation` are.

        A type, or `**` in a glob, passes by what lies inside; it is chosen by all its levels.
        """
        return False

    def representations(self, module: nn.Module) -> tuple[RepresentationLike, RepresentationLike] | None:
        """How an element moves the module's (first) input and its output; None where the module does not say.

        `dim` of a representation says where in the tensors the features lie, `Representation.feature_dims`.
        """
        return None

    def channels(self, module: nn.Module) -> tuple[int | None, int | None]:
        """Numbers of input and output channels, by their names in torch; None where only a call will tell."""

        def size(side: str) -> int | None:
            named = (getattr(module, f"{side}_{word}", None) for word in ("features", "channels"))
            return next((value for value in named if isinstance(value, int)), None)

        return size("in"), size("out")

    def grid(self, module: nn.Module) -> int:
        """Dimensions of the grid that a convolution slides over; 0 for a layer that is none."""
        return 0

    def blocks(self, module: nn.Module, name: str, shape: torch.Size) -> list[Block]:
        """The matrices in a parameter of the module's own, each from all channels of an irrep to all of an irrep.

        Args:
            module: of this family.
            name: of the parameter in the module.
            shape: of the parameter.

        Returns:
            None of a vector; a parameter that is a matrix is one.
        """
        return [Block(0, *shape)] if len(shape) == 2 else []

    def describe(
        self, name: str, module: nn.Module, given: tuple[RepresentationLike, RepresentationLike] | None = None
    ) -> Layer:
        """The module with its features.

        Args:
            name: dotted name in the model.
            module: of this family.
            given: representations of input and output that take the place of the family's own.
        """
        pair = given or self.representations(module)
        sizes = self.channels(module)
        if pair is None:
            in_features, out_features = (None if size is None else (size,) for size in sizes)
            return Layer(name, module, None, None, (-1,), in_features, out_features, self)
        inputs, outputs = map(as_representation, pair)
        dims = self.feature_dims(module, outputs if inputs.trivial else inputs)
        if not outputs.trivial and self.feature_dims(module, outputs) != dims:
            raise ValueError(
                f"layer {name!r} ({type(module).__name__}): the features of its input, moved as {inputs!r}, lie in "
                f"dimensions {dims}, those of its output, {outputs!r}, in {self.feature_dims(module, outputs)}: "
                "expected the same for both"
            )
        moves = inputs.of_features(dims), outputs.of_features(dims)
        shapes = inputs.feature_shape(sizes[0], dims), outputs.feature_shape(sizes[1], dims)
        return Layer(name, module, *moves, dims, *shapes, self)

    def feature_dims(self, module: nn.Module, representation: Representation) -> tuple[int, ...]:
        """The dimensions of the module's tensors that hold their features."""
        return representation.feature_dims

    def features(self, layer: Layer, x: Tensor) -> tuple[int, ...]:
        """The shape of the features of a tensor that goes into or comes out of the layer.

        Raises:
            ValueError: the tensor has not these dimensions.
        """
        n = x.ndim
        if any(not -n <= d < n for d in layer.dims) or len({d % n for d in layer.dims}) < len(layer.dims):
            raise ValueError(
                f"layer {layer.name!r} ({type(layer.module).__name__}): expected its features in dimensions "
                f"{layer.dims}, got a tensor of shape {tuple(x.shape)}: write the `dim` of its representations, "
                f"{layer.inputs!r} and {layer.outputs!r}, as it is in this tensor"
            )
        return tuple(x.shape[d] for d in layer.dims)

    # ---- what goes into and comes out of it ----------------------------------------------------------------------
    def tensor(self, value: Any) -> Tensor | None:
        """The tensor of features in what a layer takes or returns; None if there is none."""
        return value if isinstance(value, Tensor) else None

    def wrapped(self, tensor: Tensor, like: Any) -> Any:
        """The inverse of `tensor`: a value such as `like` that holds another tensor."""
        return tensor

    def first_tensor(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
        """The tensor that a layer was called with, the first one."""
        return next((x for x in map(self.tensor, (*args, *kwargs.values())) if x is not None), None)

    # ---- the layer as a matrix (`layers.open_layer`, `layers.equivariant_part`) --------------------------------------
    def matrix(self, layer: Layer) -> Matrix | None:
        """The layer as the matrix A and the constant b of its output A x + b, with gradients to its weights.

        Every entry is one of the weights, or 0. Several matrices from the same features to the same are stacked in
        front. Of a convolution the rows of A are the output's features at every place of the kernel.

        Args:
            layer: with the shapes of its features.

        Returns:
            None where only a call of the layer will tell.
        """
        module = layer.module
        if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
            return None
        assert layer.in_features is not None
        times, b = math.prod(layer.in_features[:-1]), module.bias
        if times == 1:
            return module.weight, b
        # the same for every component
        return torch.kron(torch.eye(times).to(module.weight), module.weight), None if b is None else b.repeat(times)

    def opening_args(self, layer: Layer, rows: Tensor) -> tuple[Tensor, ...]:
        """What the layer is called with, the inverse of `rows`: flat features (n, inputs) as its tensors have them."""
        assert layer.in_features is not None
        n = max(len(layer.dims) + 1, *(d + 1 if d >= 0 else -d for d in layer.dims))
        x = rows.reshape(len(rows), *[1] * (n - 1 - len(layer.dims)), *layer.in_features)
        return (x.movedim(list(range(-len(layer.dims), 0)), layer.dims),)

    def opened_rows(self, layer: Layer, tensor: Tensor) -> Tensor:
        """What the layer returned for these, as (n, outputs)."""
        return self.rows(layer, tensor)

    def opened_shapes(self, layer: Layer) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of the flat inputs and outputs that the matrix maps, on which the layer's representations act."""
        assert layer.in_features is not None
        assert layer.out_features is not None
        return layer.in_features, layer.out_features

    # ---- the branch beside it ------------------------------------------------------------------------------------
    def branch(self, layer: Layer, kind: str, scale: float) -> nn.Module:
        """A network without symmetry from rows of input features to rows of output features.

        Args:
            layer: with `in_features` and `out_features`.
            kind: "linear" or "mlp".
            scale: standard deviation of n(x) over that of x at the start; 0 starts at n = 0.
        """
        return {"linear": LinearBranch, "mlp": MLPBranch}[kind](*flat_sizes(layer), scale)

    def rows(self, layer: Layer, x: Tensor) -> Tensor:
        """A tensor (..., features, ...) of the layer as (rows, features)."""
        dims = [d % x.ndim for d in layer.dims]
        rows = x.movedim(dims, list(range(-len(dims), 0))).flatten(-len(dims))
        return rows.flatten(0, -2) if rows.ndim > 1 else rows[None]  # a single one, without a batch

    def unrows(self, layer: Layer, rows: Tensor, output: Tensor) -> Tensor:
        """Rows of output features in the shape of the layer's output, the inverse of `rows`."""
        assert layer.out_features is not None
        dims = [d % output.ndim for d in layer.dims]
        leading = [n for d, n in enumerate(output.shape) if d not in dims]
        return rows.reshape(*leading, *layer.out_features).movedim(list(range(-len(dims), 0)), dims)

    def apply(self, layer: Layer, network: nn.Module, x: Tensor, f_x: Tensor) -> Tensor:
        """n(x), in the shape of f(x)."""
        last = len(layer.dims)
        if isinstance(network, LinearBranch) and layer.dims == tuple(range(1, last + 1)) and x.ndim > last + 1:
            # features (batch, *features, ..), as of vector neurons: a product from the left moves no memory
            assert layer.out_features is not None
            n_x = network.weight @ x.flatten(1, last).flatten(2)
            return n_x.unflatten(1, layer.out_features).reshape(f_x.shape)
        return self.unrows(layer, network(self.rows(layer, x)), f_x)


def is_of(module: nn.Module, types: Types) -> bool:
    """Whether a module is of one of these types, each a class or a glob on the names of its class and their bases.

    Examples:
        >>> is_of(nn.Linear(2, 2), nn.Linear), is_of(nn.Linear(2, 2), ["Conv*", "Lin*"]), is_of(nn.ReLU(), "Lin*")
        (True, True, False)
    """
    if isinstance(types, str):
        return any(fnmatch.fnmatchcase(cls.__name__, types) for cls in type(module).__mro__)
    if isinstance(types, type):
        return isinstance(module, types)
    return any(is_of(module, one) for one in types)


def wrong_size(layer: Layer, side: str, declared: Sequence[int] | None, measured: Sequence[int]) -> ValueError:
    """What is raised where a layer's features ("in" or "out") are not as large as their representation says."""
    word, representation = ("input", layer.inputs) if side == "in" else ("output", layer.outputs)
    return ValueError(
        f"layer {layer.name!r} ({type(layer.module).__name__}): its {word} is declared as {representation!r}, "
        f"features {tuple(declared or ())}, but has features {tuple(measured)} in dimensions {layer.dims}: expected "
        f"equal shapes; write layers={{{layer.name!r}: (inputs, outputs)}} with representations of that size, and with "
        "`dim=` where they are not along the last dimension"
    )


def check_sizes(layer: Layer, group: Group) -> None:
    """ValueError where a group does not move features of the layer's shapes in the way that is declared."""
    for word, representation, features in (
        ("input", layer.inputs, layer.in_features),
        ("output", layer.outputs, layer.out_features),
    ):
        if representation is not None and features is not None:
            try:
                representation.check(group, torch.Size((1, *features, *[1] * layer.grid)))
            except ValueError as error:
                raise ValueError(
                    f"layer {layer.name!r} ({type(layer.module).__name__}), features {features} of its {word}: {error}"
                ) from None


def check_moves(layer: Layer, group: Group) -> None:
    """ValueError where it is said how the layer's features move and the group does not move them so."""
    if layer.inputs is None or layer.outputs is None:
        return
    for representation in (layer.inputs, layer.outputs):
        try:
            representation.check_group(group)
        except ValueError as error:
            raise ValueError(f"layer {layer.name!r} ({type(layer.module).__name__}): {error}") from None
    check_sizes(layer, group)


def flat_sizes(layer: Layer) -> tuple[int, int]:
    """How many numbers the features of the layer's input and output are."""
    assert layer.in_features is not None
    assert layer.out_features is not None
    return math.prod(layer.in_features), math.prod(layer.out_features)
