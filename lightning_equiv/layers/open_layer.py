"""A layer as the matrix that it is: opened, to read it, and taken, to write into its weights.

    f(x) = A x + b        the matrix [A b] is linear in the layer's weights p:  [A b] = M p
    taken                 the change of p of least size with the least |M dp - change|^2, by conjugate gradients (CGLS)

Both go through the layer's own forward: a layer of any library that is linear in its input and in its weights is opened
without its code being known, and what its weights cannot express is left over.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_equiv.groups.group import Group
from lightning_equiv.layers.branch import branches_off
from lightning_equiv.layers.layer import Layer, flat_sizes
from lightning_equiv.representations.invariant import Invariant
from lightning_equiv.representations.linear_maps import LinearMaps

_MOST_ITERATIONS = 500
_LINEAR = 1e-6  # relative size of what is not linear, in float64
_SOLVED = 1e-13  # relative size of the gradient at which the least squares are solved; its rounding is less

Weights = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class OpenMaps:
    """All matrices [A b] of an opened layer, and what of them commutes with a group.

    Attributes:
        weights: the maps of which A is one.
        constants: those of which b is one: from something invariant to the output.
    """

    weights: LinearMaps
    constants: LinearMaps

    def project(self, matrix: Tensor) -> Tensor:
        """[P A, P b] of [A b]."""
        return torch.cat([self.weights.project(matrix[:, :-1]), self.constants.project(matrix[:, -1:])], dim=1)

    def soften(self, matrix: Tensor, t: float) -> Tensor:
        """The heat kernel at t on [A b]."""
        return torch.cat([self.weights.soften(matrix[:, :-1], t), self.constants.soften(matrix[:, -1:], t)], dim=1)


class OpenLayer:
    """A chosen layer that is linear, opened: its matrix [A b], with the constant as the last column.

    A convolution is opened as its kernel: the rows of the matrix are the output's features at each place that one pixel
    of the input reaches. All is done in float64 on the CPU, on a copy.

    Args:
        layer: with the shapes of its features.

    Raises:
        ValueError: the layer is not linear in its input or in its weights, or cannot be called with its features alone.

    Examples:
        >>> from lightning_equiv.layers.choose import find_layers
        >>> net = nn.Sequential(nn.Linear(2, 3))
        >>> opened = OpenLayer(find_layers(net, "0")[0])
        >>> opened.matrix().shape
        torch.Size([3, 3])
        >>> left_over = opened.take(torch.ones(3, 3))
        >>> round(float(left_over.norm()), 6)
        0.0
    """

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        # as it trains: some layers cache in eval() what they make of their weights
        self._module = copy.deepcopy(layer.module).cpu().double().train().requires_grad_(False)
        self._frozen = torch.zeros(())  # what weights that do not train contribute
        self._names = [name for name, p in layer.module.named_parameters() if p.requires_grad]
        if not self._names:
            raise _cannot(layer, "has no weights of its own that train")
        self._check(torch.Generator().manual_seed(0))

    # ---- reading -------------------------------------------------------------------------------------------------
    def matrix(self) -> Tensor:
        """[A b], (outputs, inputs + 1), of the layer's weights as they are now."""
        return self._matrix(self._weights()).detach()

    def branch_matrix(self, network: nn.Module) -> Tensor:
        """[W 0] of a linear branch beside the layer, (outputs, inputs + 1).

        Args:
            network: the branch.
        """
        family, network = self.layer.family, copy.deepcopy(network).cpu().double().eval()
        (x, *_), f_x = self._call(self._weights(), self._units())
        tensor = family.tensor(f_x)
        assert tensor is not None
        with torch.no_grad():
            rows = family.opened_rows(self.layer, family.apply(self.layer, network, x, tensor))
        return (rows - rows[-1:]).mT

    def _weights(self) -> Weights:
        own = dict(self.layer.module.named_parameters())
        return {name: own[name].detach().cpu().double() for name in self._names}

    def _units(self) -> Tensor:
        """A row for every input, and one of zeros."""
        size = flat_sizes(self.layer)[0]
        return torch.cat([torch.eye(size, dtype=torch.float64), torch.zeros(1, size, dtype=torch.float64)])

    def _matrix(self, weights: Weights) -> Tensor:
        y = self._rows(weights, self._units())
        return torch.cat([y[:-1] - y[-1:], y[-1:]]).mT

    def _rows(self, weights: Weights, rows: Tensor) -> Tensor:
        """The layer of flat rows (n, inputs), as (n, outputs)."""
        family, output = self.layer.family, self._call(weights, rows)[1]
        tensor = family.tensor(output)
        if tensor is None:
            raise _cannot(self.layer, f"returns {type(output).__name__}, no tensor")
        return family.opened_rows(self.layer, tensor)

    def _call(self, weights: Weights, rows: Tensor) -> tuple[tuple[Tensor, ...], object]:
        args = self.layer.family.opening_args(self.layer, rows)
        with branches_off():
            try:
                return args, torch.func.functional_call(self._module, weights, args)
            except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
                shapes = [tuple(x.shape) for x in args]
                raise _cannot(self.layer, f"cannot be called with tensors of shapes {shapes}: {error}") from error

    def _check(self, generator: torch.Generator) -> None:
        """ValueError unless the layer is linear in its input and in its weights."""
        one, other = (
            {name: torch.randn(w.shape, generator=generator, dtype=w.dtype) for name, w in self._weights().items()}
            for _ in range(2)
        )
        A, B = self._matrix(one), self._matrix(other)
        x = torch.randn(3, A.shape[1] - 1, generator=generator, dtype=torch.float64)
        scale = A.abs().max() + B.abs().max()
        self._frozen = self._matrix({name: torch.zeros_like(w) for name, w in one.items()}).detach()
        if (self._rows(one, x) - x @ A[:, :-1].mT - A[:, -1]).abs().max() > _LINEAR * scale * x.abs().max() * len(A.mT):
            raise _cannot(self.layer, "is not linear in its input")
        both = self._matrix({name: one[name] + other[name] for name in one})
        if not (both + self._frozen - A - B).abs().max() <= _LINEAR * scale:  # NaN at weights that are 0, too
            raise _cannot(self.layer, "is not linear in its weights")

    # ---- what commutes -------------------------------------------------------------------------------------------
    def maps(self, group: Group) -> OpenMaps:
        """What of the layer's matrices [A b] commutes with a group.

        Raises:
            ValueError: the layer does not say how its features move, or the group's mean over them is not known.
        """
        layer = self.layer
        if layer.inputs is None or layer.outputs is None:
            raise ValueError(
                f"layer {layer.name!r} ({type(layer.module).__name__}) does not say how {group} moves its features: "
                f"write layers={{{layer.name!r}: (inputs, outputs)}} with irreps such as '16x0e+8x1o'"
            )
        inputs, outputs = layer.family.opened_shapes(layer)
        maps = OpenMaps(
            LinearMaps(layer.inputs, layer.outputs, inputs, outputs, group),
            LinearMaps(Invariant(), layer.outputs, (1,), outputs, group),
        )
        maps.project(self.matrix())  # a mean that is not known is said now
        return maps

    # ---- writing -------------------------------------------------------------------------------------------------
    def take(self, change: Tensor) -> Tensor:
        """Change the layer's weights in place, so that its matrix changes by this much, as far as they can express it.

        Args:
            change: (outputs, inputs + 1), in float64.

        Returns:
            What is left over, of the same shape.
        """
        weights = {name: torch.zeros_like(w).requires_grad_() for name, w in self._weights().items()}

        def transposed(residual: Tensor) -> list[Tensor]:
            found = torch.autograd.grad(
                (self._matrix(weights) * residual).sum(), [*weights.values()], allow_unused=True
            )
            return [torch.zeros_like(w) if g is None else g for g, w in zip(found, weights.values(), strict=True)]

        change = change.detach()
        residual, solution = change.clone(), [torch.zeros_like(w) for w in weights.values()]
        slope = transposed(residual)
        direction, size = slope, _square(slope)
        # |M^T r| against |M| |change|, not against its first value: that is rounding where nothing can be expressed
        solved = _SOLVED**2 * self._stretch(weights) * change.square().sum()
        for _ in range(_MOST_ITERATIONS):
            if float(size) <= float(solved):
                break
            step = self._matrix(dict(zip(weights, direction, strict=True))).detach() - self._frozen
            length = size / step.square().sum()
            solution = [s + length * d for s, d in zip(solution, direction, strict=True)]
            residual = residual - length * step
            slope = transposed(residual)
            size, before = _square(slope), size
            direction = [s + size / before * d for s, d in zip(slope, direction, strict=True)]
        own = dict(self.layer.module.named_parameters())
        with torch.no_grad():
            for name, s in zip(weights, solution, strict=True):
                own[name].add_(s.to(own[name]))
        return residual

    def _stretch(self, weights: Weights) -> Tensor:
        """|M p|^2 / |p|^2 of some p: the scale of M, squared."""
        generator = torch.Generator().manual_seed(0)
        p = {name: torch.randn(w.shape, generator=generator, dtype=w.dtype) for name, w in weights.items()}
        return (self._matrix(p).detach() - self._frozen).square().sum() / _square([*p.values()])


def _square(tensors: list[Tensor]) -> Tensor:
    return torch.stack([t.square().sum() for t in tensors]).sum()


def _cannot(layer: Layer, why: str) -> ValueError:
    return ValueError(
        f"layer {layer.name!r} ({type(layer.module).__name__}) {why}: expected a layer that is linear in its input and "
        "in weights of its own, to be opened as a matrix; choose other layers (of ConstraintRelaxation also "
        "projection='drop', which leaves their weights alone)"
    )
