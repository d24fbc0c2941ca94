"""Elements and weights that integrate functions on a group exactly."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_equiv._checks import check_number
from lightning_equiv.groups.group import Group, GroupElement
from lightning_equiv.groups.parts import check_compact


def quadrature(group: Group, degree: int) -> tuple[GroupElement, Tensor]:
    """Elements g_i and weights w_i with sum_i w_i u(g_i) = E_g u(g), g uniform, for u up to a degree.

    Exact, to rounding, where u is a sum of matrix entries of irreducible representations up to `degree`: Fourier modes
    of SO(2), degrees J of SO(3) and O(3), each factor of a product by itself. The product of an entry of degree J and
    one of degree K has degrees up to J + K.

    | group | elements | number |
    |---|---|---|
    | SO(2) | equally spaced turns | degree + 1 |
    | SO(3) | Euler angles z y z: equally spaced, Gauss-Legendre in cos(beta), equally spaced | (degree + 1)^2 ((degree + 2) // 2) |
    | O(3) | those of SO(3), and each times the inversion | twice as many |
    | finite | all | order |
    | product | every choice of one from each factor | product |

    Args:
        group: a compact group; S_n with n <= 8.
        degree: the highest degree that is integrated exactly; without meaning for finite groups.

    Returns:
        n elements, and their weights (n,), float64, positive, of sum 1; both on the CPU.

    Raises:
        ValueError: the group is not compact (SE(3), E(3), T(n)), or has too many elements to list.

    Examples:
        >>> from lightning_equiv import SO3
        >>> g, weights = quadrature(SO3(), 2)
        >>> len(g), (weights * g.matrix[:, 0, 0] ** 2).sum()  # the mean of R_xx^2 is 1/3
        (18, tensor(0.3333, dtype=torch.float64))
    """  # noqa: E501
    check_compact(group)
    check_number("degree", degree, least=0, whole=True)
    return group.grid(degree)


def circle_rule(degree: int) -> tuple[Tensor, Tensor]:
    """Angles (degree + 1,) in radians and their weights: exact for Fourier modes up to `degree`."""
    n = degree + 1
    return 2 * torch.pi / n * torch.arange(n, dtype=torch.float64), torch.full((n,), 1 / n, dtype=torch.float64)


def quaternion_rule(degree: int) -> tuple[Tensor, Tensor]:
    """Unit quaternions (n, 4) as w, x, y, z and their weights (n,): exact for Wigner-D entries up to `degree`.

    Rotations by gamma about z, then beta about y, then alpha about z. The sums over alpha and gamma leave d^J_00(beta),
    the Legendre polynomial of degree J in cos(beta).
    """
    around, of_around = circle_rule(degree)
    nodes, of_nodes = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss((degree + 2) // 2))
    alpha, beta, gamma = (a.flatten() for a in torch.meshgrid(around, nodes.acos(), around, indexing="ij"))
    c, s, plus, minus = (beta / 2).cos(), (beta / 2).sin(), (alpha + gamma) / 2, (alpha - gamma) / 2
    q = torch.stack([c * plus.cos(), -s * minus.sin(), s * minus.cos(), c * plus.sin()], dim=-1)
    weights = of_around[:, None, None] * (of_nodes / 2)[:, None] * of_around
    return q, weights.flatten()
