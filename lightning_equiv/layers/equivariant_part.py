"""How far a layer's weights are from those that commute with a group, and the nearest that do.

    f(x) = A x + b
    P A = mean_g rho_out(g)^-1 A rho_in(g)      P b = mean_g rho_out(g)^-1 b       the equivariant part of the layer
    e^2 = ( |A - P A|^2 + |b - P b|^2 ) / ( |A|^2 + |b|^2 )                        between 0 and 1

A and b are taken from the layer's own weights (`LayerFamily.matrix`), or else by a call of the layer with unit vectors.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_equiv._random import derived_generator
from lightning_equiv.groups.group import Group
from lightning_equiv.layers.branch import branches_off
from lightning_equiv.layers.layer import Layer, Matrix, check_sizes, flat_sizes, wrong_size
from lightning_equiv.layers.open_layer import OpenLayer
from lightning_equiv.representations.action import wide
from lightning_equiv.representations.linear_maps import LinearMaps
from lightning_equiv.representations.representation import as_representation

_NOTHING = 1e-10  # of a squared norm, from rounding in float32


class EquivariantPart:
    """The equivariant part P of one layer.

    Args:
        layer: linear, with known representations of its input and output.
        group: with which it should commute.

    Raises:
        ValueError: the representations are not known or not of the layer's size, the layer is not linear, no map but
            0 commutes with the group, or the group's mean is not known.

    Examples:
        >>> from torch import nn
        >>> from lightning_equiv.groups.product import as_group
        >>> from lightning_equiv.layers.choose import find_layers
        >>> net = nn.Sequential(nn.Linear(3, 3))
        >>> part = EquivariantPart(find_layers(net, {"0": ("1o", "1o")})[0], as_group("SO(3)"))
        >>> 0 < part.square().item() < 1
        True
        >>> part.project() < 1e-6  # the weight is a multiple of the identity from now on, the bias 0
        True
        >>> part.square().item() < 1e-12
        True
    """

    def __init__(self, layer: Layer, group: Group) -> None:
        self.layer = layer
        if layer.inputs is None or layer.outputs is None:
            raise ValueError(
                f"layer {layer.name!r} ({type(layer.module).__name__}) does not say how {group} moves its input and "
                f"its output: write layers={{{layer.name!r}: (inputs, outputs)}}, such as ('8x0e+8x1o', '8x0e+8x1o')"
            )
        if layer.in_features is None or layer.out_features is None:
            raise ValueError(
                f"layer {layer.name!r} ({type(layer.module).__name__}), from {layer.inputs!r} to {layer.outputs!r}: "
                "expected representations that say how many numbers the features are, such as '8x0e+8x1o'"
            )
        if layer.grid and group.dim:
            raise ValueError(
                f"layer {layer.name!r} ({type(layer.module).__name__}) slides over a grid, which {group} does not move "
                "onto itself: expected a group that turns the kernel on its grid, 'C2', 'C4' or 'D4'"
            )
        check_sizes(layer, group)
        self._of_weights = layer.family.matrix(layer) is not None
        if not self._of_weights:
            OpenLayer(layer)  # ValueError where it is not linear
        A, b = self.matrix()
        places = self._places()
        in_features, out_features = ((*f, *[1] * layer.grid) for f in (layer.in_features, layer.out_features))
        kernel = (*layer.out_features, *places)
        for side, declared, size in (("in", in_features, A.shape[-1]), ("out", kernel, A.shape[-2])):
            if math.prod(declared) != size:
                raise wrong_size(layer, side, declared, (size,))
        try:
            self.maps = LinearMaps(layer.inputs, layer.outputs, in_features, kernel, group)
            one = as_representation("Invariant()")
            self.constants = None if b is None else LinearMaps(one, layer.outputs, (1,), out_features, group)
            self._look_at_random_weights()
        except ValueError as error:
            raise ValueError(f"layer {layer.name!r} ({type(layer.module).__name__}): {error}") from None

    def _places(self) -> tuple[int, ...]:
        """The sides of a convolution's kernel."""
        if not self.layer.grid:
            return ()
        weight = getattr(self.layer.module, "weight", None)
        if self._of_weights and isinstance(weight, Tensor):
            return tuple(weight.shape[-self.layer.grid :])
        return self.layer.family.opened_shapes(self.layer)[1][-self.layer.grid :]

    def _look_at_random_weights(self) -> None:
        """Note whether every value of the weights commutes with the group; ValueError where none does."""
        other = copy.copy(self)
        module = copy.deepcopy(self.layer.module)
        generator = derived_generator("weights")
        for p in module.parameters():
            p.data = torch.randn(p.shape, generator=generator, dtype=torch.float32).to(p)
        other.layer = Layer(**{**self.layer.__dict__, "module": module})
        with torch.no_grad():
            square = other.square().item()
            A, _ = other.matrix()
            part = other.maps.project(wide(A)).square().sum() / wide(A).square().sum()
        self.by_construction = square < _NOTHING
        if part < _NOTHING:
            raise ValueError(
                f"no linear map but 0 from {self.layer.inputs!r} to {self.layer.outputs!r} commutes with "
                f"{self.maps.group}: expected kinds of features on both sides that are alike, such as '8x0e+8x1o'"
            )

    # ---- reading -------------------------------------------------------------------------------------------------
    def matrix(self) -> Matrix:
        """A (.., outputs, inputs) and b (.., outputs), in float32 at least, with gradients to the layer's weights."""
        found = self.layer.family.matrix(self.layer)
        A, b = self._called() if found is None else found
        return wide(A), None if b is None else wide(b)

    def _called(self) -> Matrix:
        """By calling the layer with every unit vector, and with 0."""
        layer, weight = self.layer, next(self.layer.module.parameters())
        size = flat_sizes(layer)[0]
        units = torch.cat([torch.eye(size), torch.zeros(1, size)]).to(weight)
        with branches_off():
            tensor = layer.family.tensor(layer.module.forward(*layer.family.opening_args(layer, units)))
        assert tensor is not None
        y = layer.family.opened_rows(layer, tensor)
        constant = y[-1].unflatten(0, (flat_sizes(layer)[1], -1))[:, 0]  # the same at every place of a grid
        return (y[:-1] - y[-1:]).mT, constant

    def split(self) -> tuple[list[Tensor], list[Tensor]]:
        """[A, b] and [P A, P b]; b is left out where there is none."""
        A, b = self.matrix()
        whole, part = [A], [self.maps.project(A)]
        if b is not None and self.constants is not None:
            whole.append(b)
            part.append(self.constants.project(b[..., None])[..., 0])
        return whole, part

    def square(self) -> Tensor:
        """e^2 of the head of this file; the denominator is held constant: larger weights are no smaller error."""
        A, b = self.matrix()
        whole, squares = [A], [_RestSquare.apply(A, self.maps)]  # type: ignore[no-untyped-call]
        if b is not None and self.constants is not None:
            whole.append(b)
            squares.append(_RestSquare.apply(b[..., None], self.constants))  # type: ignore[no-untyped-call]
        rest = torch.stack(squares).sum()
        norm = torch.stack([w.detach().square().sum() for w in whole]).sum()
        return rest / norm.clamp_min(torch.finfo(norm.dtype).tiny)

    # ---- writing -------------------------------------------------------------------------------------------------
    @torch.enable_grad()
    def project(self) -> float:
        """Write P A and P b into the layer's own weights, in place.

        Returns:
            e, what is left over: of weights that do not train, or from which A is not made as it is.
        """
        used = [p for p in self.layer.module.parameters() if p.requires_grad]
        whole, part = self.split()
        change = [(p - w).detach() for w, p in zip(whole, part, strict=True)]
        if used and self._of_weights:
            # every entry is a weight, which goes by the mean over the entries that it is
            rest = torch.stack([(w * d).sum() for w, d in zip(whole, change, strict=True)]).sum()
            steps = torch.autograd.grad(rest, used, retain_graph=True, allow_unused=True)
            times = torch.autograd.grad(torch.stack([w.sum() for w in whole]).sum(), used, allow_unused=True)
            with torch.no_grad():
                for p, step, n in zip(used, steps, times, strict=True):
                    if step is not None and n is not None:
                        p.add_(step / n)
        elif used:
            A, *b = (x.double().cpu() for x in change)
            constant = b[0] if b else A.new_zeros(flat_sizes(self.layer)[1])
            constant = constant.repeat_interleave(len(A) // len(constant))
            OpenLayer(self.layer).take(torch.cat([A, constant[:, None]], dim=1))
        return float(self.square().detach().sqrt())


class _RestSquare(torch.autograd.Function):
    """|W - P W|^2, with its gradient 2 (W - P W): P is an orthogonal projection, and nothing goes back through it."""

    @staticmethod
    def forward(ctx: Any, W: Tensor, maps: LinearMaps) -> Tensor:
        rest = W - maps.project(W)
        ctx.save_for_backward(rest)
        return rest.square().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (rest,) = ctx.saved_tensors
        return 2 * gradient * rest, None


def equivariant_parts(layers: Sequence[Layer], group: Group, who: str) -> list[EquivariantPart]:
    """Of all layers that do not commute with a group whatever their weights; the others are named in a warning.

    Args:
        layers: linear ones.
        group: with which they should commute.
        who: asks, for the message.

    Raises:
        ValueError: all of them do.
    """
    parts = [EquivariantPart(layer, group) for layer in layers]
    strict = [part.layer.name for part in parts if part.by_construction]
    words = f"{who}: {strict} commute with {group} whatever their weights are, and nothing is to be projected there"
    if len(strict) == len(parts):
        raise ValueError(
            f"{words}: expected ordinary layers, such as nn.Linear, with representations of their features"
        )
    if strict:
        rank_zero_warn(f"{words}: they are left out")
    return [part for part in parts if not part.by_construction]
