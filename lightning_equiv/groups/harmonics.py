"""Irreducible characters of a group: what a function on it is split by."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_equiv._checks import check_number
from lightning_equiv.groups.group import Group, GroupElement, moved_to
from lightning_equiv.groups.parts import check_compact


@dataclass(frozen=True, eq=False)
class Harmonics:
    """The irreducible representations of a compact group, and the projectors onto them.

    A function z on the group with values in R^k is a sum of parts z_rho, one for each irreducible rho. With g and h
    drawn uniformly, the mean square of a part is

        e_rho = E_g |z_rho(g)|^2 = E_{g,h} [ z(g) . z(h) kernel_rho(g h^-1) ] >= 0,      sum_rho e_rho = E_g |z(g)|^2

    kernel_rho is d chi_rho, dimension times character, of a complex-irreducible rho, and chi_m + chi_-m = 2 cos(m a)
    of a pair of Fourier modes +-m. The kernels are projectors:

        E_h [ kernel_rho(g h^-1) kernel_sigma(h k^-1) ] = delta_{rho,sigma} kernel_rho(g k^-1)

    and kernel_rho(1) is the number of independent functions in the part.

    Attributes:
        group: the group.
        names: of the irreducibles, the trivial one first. Degrees "0", "1", .. of SO(3); "0e", "0o", "1e", .. of O(3),
            with the sign under the inversion; Fourier modes "0", "1", .. of SO(2) and C_n; "A1", "A2", "B1", "B2",
            "E1", .. of D_n; partitions "[4]", "[3,1]", .. of S_n; "1 x [3,1]" of a product.
        dims: (len(names),) whole numbers, the dimension d of each; 2 for a pair of modes +-m.
        casimirs: (len(names),) float64, the eigenvalue of minus the Laplacian at unit angular speed: J (J + 1) of
            SO(3) and O(3), m^2 of SO(2), 0 of a finite group, the sum over the factors of a product.
        highest: the highest degree or mode of an infinite group; of a finite group all are there.

    Examples:
        >>> from lightning_equiv import SO3
        >>> degrees = harmonics(SO3(), highest=2)
        >>> degrees.names, degrees.dims.tolist(), degrees.casimirs.tolist()
        (('0', '1', '2'), [1, 3, 5], [0.0, 2.0, 6.0])
        >>> degrees.kernels(SO3().identity())[:, 0]  # (2J+1)^2
        tensor([ 1.,  9., 25.], dtype=torch.float64)
    """

    group: Group
    names: tuple[str, ...]
    dims: Tensor
    casimirs: Tensor
    highest: int

    def kernels(self, h: GroupElement) -> Tensor:
        """The reproducing kernels at elements of the group: d chi(h), or 2 cos(m a) of a pair of modes.

        Args:
            h: n elements of `group`, such as g_i g_j^-1.

        Returns:
            (len(names), n) float64, on the device of h.

        Raises:
            ValueError: h belongs to another group.

        Examples:
            >>> from lightning_equiv import Cyclic
            >>> harmonics(Cyclic(3)).kernels(Cyclic(3).elements())
            tensor([[ 1.0000,  1.0000,  1.0000],
                    [ 2.0000, -1.0000, -1.0000]], dtype=torch.float64)
        """
        if h.group != self.group:
            raise ValueError(f"expected elements of {self.group}, got {h!r}")
        return self.group.kernels(h, self.highest)


def harmonics(group: Group, highest: int = 6) -> Harmonics:
    """The irreducible representations of a compact group.

    Args:
        group: SO(2), SO(3), O(3), C_n, D_n, S_n with n <= 8, or a product of these.
        highest: bounds the degrees J and the modes m of infinite groups; without meaning for finite ones.

    Raises:
        ValueError: the group is not compact (SE(3), E(3), T(n)), or S_n with n > 8.

    Examples:
        >>> from lightning_equiv import O3, Dihedral, Permutation
        >>> harmonics(O3(), highest=1).names
        ('0e', '0o', '1e', '1o')
        >>> harmonics(Dihedral(6) * Permutation(2)).names[:4]
        ('A1 x [2]', 'A1 x [1,1]', 'A2 x [2]', 'A2 x [1,1]')
    """
    check_compact(group)
    check_number("highest", highest, least=0, whole=True)
    found = group.irreducibles(highest)
    return Harmonics(
        group,
        tuple(r.name for r in found),
        torch.tensor([r.dim for r in found]),
        torch.tensor([r.casimir for r in found], dtype=torch.float64),
        highest,
    )


def cosines(angle: Tensor, highest: int) -> Tensor:
    """(highest + 1, n): cos(m a) for m = 0 .. highest of angles (n,) in radians."""
    return (torch.arange(highest + 1, device=angle.device)[:, None] * angle).cos()


# ---- the symmetric group ---------------------------------------------------------------------------------------------
def partitions(n: int, largest: int | None = None) -> list[tuple[int, ...]]:
    """The ways to write n as a sum of falling whole numbers, the largest first.

    They name the irreducible representations of S_n, (n) the trivial one, and the classes of its elements by the
    lengths of their cycles, (1, .., 1) that of the identity.

    Examples:
        >>> partitions(4)
        [(4,), (3, 1), (2, 2), (2, 1, 1), (1, 1, 1, 1)]
    """
    if n == 0:
        return [()]
    most = n if largest is None else min(n, largest)
    return [(first, *rest) for first in range(most, 0, -1) for rest in partitions(n - first, first)]


def symmetric_characters(n: int) -> Tensor:
    """The character table of S_n: irreducibles in rows, classes in columns, both as `partitions` lists them.

    Examples:
        >>> symmetric_characters(3)
        tensor([[ 1,  1,  1],
                [-1,  0,  2],
                [ 1, -1,  1]])
    """
    shapes = partitions(n)
    return torch.tensor([[_character(_beads(shape), cycles) for cycles in shapes] for shape in shapes])


def cycle_class(permutation: Tensor) -> Tensor:
    """(m,) numbers of the classes, in the order of `partitions`, of permutations (m, n) i -> permutation[:, i].

    A class is known by how many things g, g^2, .., g^n leave in place: those in cycles whose length divides the power.
    """
    n, places = permutation.shape[-1], torch.arange(permutation.shape[-1], device=permutation.device)
    key, power = torch.zeros_like(permutation[:, 0]), permutation
    for _ in range(n):
        key = key * (n + 1) + (power == places).sum(-1)
        power = permutation.gather(-1, power)
    classes = []
    for cycles in partitions(n):
        fixed = [sum(length for length in cycles if k % length == 0) for k in range(1, n + 1)]
        classes.append(functools.reduce(lambda so_far, count: so_far * (n + 1) + count, fixed, 0))
    known, order = moved_to(torch.tensor(classes), key.device).sort()
    return order[torch.searchsorted(known, key)]


def _beads(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A partition as beads on a line: row i of length l, counted from below, is a bead at l + i."""
    return tuple(length + i for i, length in enumerate(reversed(shape)))


@functools.cache
def _character(beads: tuple[int, ...], cycles: tuple[int, ...]) -> int:
    """Murnaghan-Nakayama: take off border strips as long as the first cycle, in every way, then the other cycles.

    To take a strip off is to move a bead back by its length to a free place; each bead that is jumped is a row more in
    the strip, and changes the sign.
    """
    if not cycles:
        return 1
    length, total = cycles[0], 0
    for bead in beads:
        place = bead - length
        if place >= 0 and place not in beads:
            jumped = sum(place < other < bead for other in beads)
            moved = tuple(sorted({*beads, place} - {bead}))
            total += (-1) ** jumped * _character(moved, cycles[1:])
    return total
