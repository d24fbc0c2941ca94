"""Permutations of n things: the symmetric group S_n."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_equiv._checks import check_number
from lightning_equiv.groups.group import (
    AlgebraElement,
    Device,
    Group,
    GroupElement,
    Irreducible,
    element_dtype,
    moved_to,
)
from lightning_equiv.groups.harmonics import cycle_class, partitions, symmetric_characters
from lightning_equiv.groups.product import register_group

_MOST_LISTED = 8


@dataclass(frozen=True)
class Permutation(Group):
    """S_n: all orderings of n things. An element sends thing i to place permutation[i].

    Args:
        n: how many things.

    Examples:
        >>> g = Permutation(3).element(torch.tensor([[1, 2, 0]]))
        >>> (g @ g @ g).permutation
        tensor([[0, 1, 2]])
    """

    n: int
    dim = 0

    def __post_init__(self) -> None:
        check_number("n (things to permute)", self.n, least=1, most=10**7, whole=True)

    @property
    def order(self) -> int:  # type: ignore[override]
        """n!"""
        return math.factorial(self.n)

    def element(self, permutation: Tensor) -> GroupElement:
        """The elements i -> permutation[..., i], checked.

        Args:
            permutation: (m, n) or (n,) whole numbers.

        Raises:
            ValueError: a row that is not an ordering of 0 .. n-1.
        """
        whole = not (permutation.is_floating_point() or permutation.is_complex())
        if permutation.ndim in (1, 2) and permutation.shape[-1] == self.n and len(permutation) and whole:
            rows = permutation.reshape(-1, self.n).long()
            if bool((rows.sort(-1).values == torch.arange(self.n, device=rows.device)).all()):
                return GroupElement(self, (rows,))
        raise ValueError(
            f"expected orderings of 0 .. {self.n - 1}, whole numbers of shape ({self.n},) or (m, {self.n}), "
            f"got {permutation.tolist()}"
        )

    def draw(self, n: int, generator: torch.Generator | None, device: torch.device) -> tuple[Tensor, ...]:
        return (torch.rand(n, self.n, generator=generator, device=device, dtype=torch.float64).argsort(-1),)

    def identity(self, n: int = 1, *, device: Device = None, dtype: torch.dtype | None = None) -> GroupElement:
        return GroupElement(self, (torch.arange(self.n, device=device).repeat(n, 1),))

    def compose(self, g: GroupElement, h: GroupElement) -> GroupElement:
        return GroupElement(self, (g.coordinates[0].gather(-1, h.coordinates[0]),))  # (g h)(i) = g(h(i))

    def inverse(self, g: GroupElement) -> GroupElement:
        return GroupElement(self, (g.coordinates[0].argsort(-1),))

    def elements(self, *, device: Device = None) -> GroupElement:
        if self.n > _MOST_LISTED:
            raise ValueError(f"{self} has {self.order} elements, too many to list: draw some with `sample(n)` instead")
        return GroupElement(self, (moved_to(torch.tensor(list(itertools.permutations(range(self.n)))), device),))

    def generators(self, *, device: Device = None) -> GroupElement:
        """A cycle through all places, and the exchange of the first two."""
        places = torch.arange(self.n, device=device)
        exchange = places.clone()
        exchange[:2] = exchange[:2].flip(0)
        return GroupElement(self, (torch.stack([places.roll(-1), exchange]),))

    def exp(self, a: AlgebraElement) -> GroupElement:
        return self.identity(len(a), device=a.device)

    def irreducibles(self, highest: int) -> list[Irreducible]:
        self._check_characters()
        characters = symmetric_characters(self.n)[:, -1]  # of the class 1 + 1 + ..: the identity
        names = [f"[{','.join(map(str, shape))}]" for shape in partitions(self.n)]
        return [Irreducible(name, int(d)) for name, d in zip(names, characters, strict=True)]

    def kernels(self, g: GroupElement, highest: int) -> Tensor:
        self._check_characters()
        characters = symmetric_characters(self.n).to(g.device, element_dtype(g.device))
        return (characters[:, -1:] * characters)[:, cycle_class(g.permutation)]

    def _check_characters(self) -> None:
        if self.n > _MOST_LISTED:
            raise ValueError(
                f"the irreducible representations of {self} are too many: a spectrum needs n <= {_MOST_LISTED}; "
                "take the metric `equivariance_error`, which draws permutations"
            )

    def permutation(self, g: GroupElement) -> Tensor:
        return g.coordinates[0]

    def __str__(self) -> str:
        return f"S{self.n}"


register_group("S5", r"S(\d+)", Permutation)
