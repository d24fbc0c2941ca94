"""Linear maps between two representations of a group: the part that commutes with it, and how far the rest is from it.

    P W = mean_g rho_out(g)^-1 W rho_in(g)         the equivariant part of W: orthogonal, since rho is
    L   = sum_i C_i^T C_i                          C_i W = W drho_in(A_i) - drho_out(A_i) W, A_i a basis of the algebra
                                                   C_j W = W rho_in(g_j) - rho_out(g_j) W, g_j generators of the rest
    exp(-t L) W                                    the heat kernel of the group at t: W for t = 0, P W for t = infinity

For SO(3), L is the Casimir operator: J(J+1) on the part of W that turns with the total angular momentum J. For a finite
group it is the Laplacian of its Cayley graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from lightning_equiv.groups.group import Group, GroupElement
from lightning_equiv.representations.representation import Copies, Representation

_MOST_SUMMED = 24  # elements of a finite group over which a mean is taken
_MOST_UNKNOWNS = 2500  # numbers in a map between two irreducible parts, whose spectrum is computed
_ZERO = 1e-8  # eigenvalues of L under which it is 0: the smallest others are 2 - 2 cos(2 pi / n)


@dataclass(frozen=True, eq=False)
class LinearMaps:
    """All matrices from the features of an input to those of an output, and what of them commutes with a group.

    Args:
        inputs: how an element moves the input, a tensor (rows, *in_features).
        outputs: how it moves the output, (rows, *out_features).
        in_features: shape of the input's features; a matrix has their product as columns.
        out_features: shape of the output's features; their product is a matrix's rows.
        group: of rotations, reflections, permutations, ..; of a group with translations its linear part.

    Raises:
        ValueError: the group's mean over these representations is not known.

    Examples:
        >>> from lightning_equiv.groups.product import as_group
        >>> from lightning_equiv.representations.representation import as_representation
        >>> vectors = as_representation("2x1o")
        >>> maps = LinearMaps(vectors, vectors, (6,), (6,), as_group("SO(3)"))
        >>> W = torch.randn(6, 6)
        >>> blocks = W.reshape(2, 3, 2, 3).diagonal(dim1=1, dim2=3).mean(-1)  # a number for each pair of channels
        >>> torch.allclose(maps.project(W), torch.kron(blocks, torch.eye(3)), atol=1e-6)
        True
    """

    inputs: Representation
    outputs: Representation
    in_features: tuple[int, ...]
    out_features: tuple[int, ...]
    group: Group
    _filters: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)
    _bases: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, Tensor]]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        if self.group.linear_part is None:
            raise ValueError(f"{self.group} moves no features linearly: expected a group with rotations, such as SO(3)")
        object.__setattr__(self, "group", self.group.linear_part)
        for word, representation, features in (
            ("input", self.inputs, self.in_features),
            ("output", self.outputs, self.out_features),
        ):
            _check_orthogonal(word, representation, features, self.group)

    # ---- what commutes -------------------------------------------------------------------------------------------
    def project(self, W: Tensor) -> Tensor:
        """P W, the mean over the group, of matrices W (..., out, in)."""
        if self._listed is not None:
            n = len(self._listed)
            return self._moved_mean(W, torch.full((n,), 1 / n, dtype=torch.float64))
        flat = W.flatten(-2)
        result = torch.zeros_like(flat)
        for places, basis in self._commuting(W):
            result[..., places] = flat[..., places] @ basis.mT @ basis
        return result.unflatten(-1, W.shape[-2:])

    def soften(self, W: Tensor, t: float) -> Tensor:
        """exp(-t L) W of matrices W (..., out, in): the mean over random walks of length t from the identity.

        Args:
            W: matrices.
            t: 0 leaves W as it is, infinity projects it.
        """
        if t == float("inf"):
            return self.project(W)
        if self._listed is not None:
            return self._moved_mean(W, torch.linalg.matrix_exp(-t * self._laplacian)[0])
        result = torch.zeros_like(W)
        for i, of_input in enumerate(self._kinds[0]):
            for o, of_output in enumerate(self._kinds[1]):
                eigenvalues, vectors = self._spectrum(o, i)
                d_out, d_in = of_output.size, of_input.size
                kernel = vectors.mT @ (torch.exp(-t * eigenvalues)[:, None] * vectors)
                kernel = kernel.to(W).reshape(d_out, d_in, d_out, d_in)
                rows, columns = (c.places.to(W.device) for c in (of_output, of_input))
                block = W[..., rows[:, :, None, None], columns]  # (..., copies, d_out, copies, d_in)
                result[..., rows[:, :, None, None], columns] = torch.einsum("xyab,...iajb->...ixjy", kernel, block)
        return result

    # ---- a finite group: sums over its elements ------------------------------------------------------------------
    @cached_property
    def _listed(self) -> GroupElement | None:
        """All elements, the identity first, of a small finite group."""
        order = self.group.order
        return self.group.elements() if order is not None and order <= _MOST_SUMMED else None

    @cached_property
    def _laplacian(self) -> Tensor:
        """L on functions of a finite group, (order, order) in float64: that of the Cayley graph."""
        elements = self._listed
        assert elements is not None
        places = torch.eye(len(elements), dtype=torch.float64)
        numbers = torch.stack([c.double() for c in elements.coordinates], dim=-1).flatten(1)
        laplacian = torch.zeros_like(places)
        for s in self.group.generators():
            product = elements @ s
            coordinates = torch.stack([c.double() for c in product.coordinates], dim=-1).flatten(1)
            step = places[torch.cdist(coordinates, numbers).argmin(-1)]  # row g has its 1 at g s
            laplacian += 2 * places - step - step.mT
        return laplacian

    def _moved_mean(self, W: Tensor, weights: Tensor) -> Tensor:
        """sum_g p(g) rho_out(g) W rho_in(g)^-1."""
        assert self._listed is not None
        total = torch.zeros_like(W)
        for g, p in zip(self._listed.to(W.device), weights.tolist(), strict=True):
            columns = self.outputs(g, W.mT.reshape(-1, *self.out_features)).reshape(W.mT.shape).mT
            moved = self.inputs(g, columns.reshape(-1, *self.in_features)).reshape(W.shape)
            total = total + p * moved  # a row of W rho_in(g)^-1 is rho_in(g) of the row
        return total

    # ---- any other group: the spectrum of L, between one copy of each kind of feature ------------------------------
    @cached_property
    def _kinds(self) -> tuple[list[Copies], list[Copies]]:
        return self.inputs.copies(self.in_features), self.outputs.copies(self.out_features)

    def _commuting(self, like: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of every pair of kinds between whose copies something commutes with the group: places and basis.

        Where the maps between their copies lie in a flattened matrix, (copies, copies, numbers of one map), and what
        commutes, as orthonormal rows.
        """
        key = like.device, like.dtype
        if key not in self._bases:
            columns, found = math.prod(self.in_features), []
            for i, of_input in enumerate(self._kinds[0]):
                for o, of_output in enumerate(self._kinds[1]):
                    eigenvalues, vectors = self._spectrum(o, i)
                    basis = vectors[eigenvalues < _ZERO]
                    if len(basis):
                        places = of_output.places[:, None, :, None] * columns + of_input.places[:, None]
                        found.append((places.flatten(2).to(like.device), basis.to(like)))
            self._bases[key] = found
        return self._bases[key]

    def _spectrum(self, o: int, i: int) -> tuple[Tensor, Tensor]:
        """Eigenvalues of L on maps from one copy of kind i to one of kind o, and eigenvectors as rows."""
        if (o, i) not in self._filters:
            of_input, of_output = self._kinds[0][i], self._kinds[1][o]
            size = of_output.size * of_input.size
            if size > _MOST_UNKNOWNS:
                raise ValueError(
                    f"the mean over {self.group} of maps from {of_input.representation!r} to "
                    f"{of_output.representation!r} is not known: one such map has {size} numbers, expected at most "
                    f"{_MOST_UNKNOWNS}; name a smaller group, or irreps"
                )
            units = torch.eye(size, dtype=torch.float64).unflatten(-1, (of_output.size, of_input.size))
            C = torch.stack([C.flatten(1) for C in _commutators(units, of_input, of_output, self.group)])
            eigenvalues, vectors = torch.linalg.eigh(torch.einsum("kun,kvn->uv", C, C))
            self._filters[o, i] = eigenvalues, vectors.mT.contiguous()
        return self._filters[o, i]


def _commutators(W: Tensor, inputs: Copies, outputs: Copies, group: Group) -> Iterator[Tensor]:
    """C_i W and C_j W of the head of this file for maps W (n, out, in) between single copies."""

    def of_rows(act: Callable[[Tensor], Tensor]) -> Tensor:
        return act(W.reshape(-1, *inputs.shape)).reshape(W.shape)

    def of_columns(act: Callable[[Tensor], Tensor]) -> Tensor:
        return act(W.mT.reshape(-1, *outputs.shape)).reshape(W.mT.shape).mT

    for a in group.algebra():
        left, right = (partial(c.representation.infinitesimal, a) for c in (inputs, outputs))
        yield -of_rows(left) - of_columns(right)  # drho is antisymmetric
    for g in group.generators():
        left, right = partial(inputs.representation, g.inverse()), partial(outputs.representation, g)
        yield of_rows(left) - of_columns(right)


def _check_orthogonal(word: str, representation: Representation, features: tuple[int, ...], group: Group) -> None:
    """ValueError unless a group moves the features by orthogonal matrices, whose mean over it is then known."""
    representation.check_group(group)
    representation.check(group, torch.Size((1, *features)))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, *features, generator=generator, dtype=torch.float64)
    y = torch.randn(4, *features, generator=generator, dtype=torch.float64)
    g = group.sample(1, generator=generator)
    g_x, g_y, g_sum = representation(g, x), representation(g, y), representation(g, x + 2 * y)
    linear = torch.allclose(g_sum, g_x + 2 * g_y, atol=1e-6)
    if not (linear and torch.allclose((g_x * g_y).flatten(1).sum(1), (x * y).flatten(1).sum(1), atol=1e-6)):
        raise ValueError(
            f"the mean over {group} is not known for features of the {word} that are moved as {representation!r}: "
            "expected a linear action that keeps lengths (orthogonal matrices), such as irreps or permutations"
        )
