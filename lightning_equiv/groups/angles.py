"""Rotations by a given angle, and the angle of a rotation."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_equiv._checks import check_number
from lightning_equiv._random import private_generator
from lightning_equiv.groups.group import Device, Group, GroupElement, element_dtype
from lightning_equiv.groups.product import as_group


def turns(
    group: Group | str,
    angle: float | Tensor,
    n: int,
    *,
    generator: torch.Generator | None = None,
    device: Device = None,
) -> GroupElement:
    """n elements that rotate by `angle` about axes drawn uniformly: the uniform distribution at that angle.

    SO(3), O(3), SE(3), E(3): proper rotations R(axis, angle), no translation. SO(2), C_n, D_n: by +angle or -angle,
    with equal probability. A product: its one factor with rotations turns, the others stay at their identity.
    `equivariance_error(..., elements=turns("SO(3)", angle, 16))` is the error at that angle.

    Args:
        group: a group with rotations, or its name.
        angle: in radians; one number, or (n,) numbers.
        n: how many; at least 1.
        generator: whose random numbers. The draw is made on the generator's device and then moved. None: a private
            generator that follows `seed_everything`; the global generator is never touched.
        device: where the elements will lie; None: where the generator is.

    Raises:
        ValueError: a group without rotations, a product with two factors that rotate, an angle that is not finite or of
            another shape, or one that is no multiple of 2 pi / n for C_n and D_n.

    Examples:
        >>> g = turns("SE(3)", 0.5, 4)
        >>> angle(g)
        tensor([0.5000, 0.5000, 0.5000, 0.5000], dtype=torch.float64)
    """
    group = as_group(group)
    check_number("n (turns to draw)", n, least=1, whole=True)
    generator = generator if generator is not None else private_generator()
    device = generator.device if device is None else device
    if not isinstance(angle, Tensor):
        check_number("angle", angle)
        angle = torch.full((n,), float(angle), dtype=torch.float64)
    elif angle.shape not in ((), (n,)) or not bool(torch.isfinite(angle).all()):
        raise ValueError(f"expected one finite angle or {n} of them, got {tuple(angle.shape)}: {angle}")
    angle = angle.to(generator.device, element_dtype(generator.device)).expand(n)
    return group.turn_by(angle, generator).to(device, element_dtype(device))


def angle(g: GroupElement) -> Tensor:
    """The rotation angle of each element: cos(a) = (trace R - 1) / 2 in space, of the turn in the plane.

    Of a reflection in space it is that of its proper part det(R) R. A reflection of D_n is a half turn in this sense,
    as its proper part in space turns by pi about an axis in the plane. Translations are ignored, and so are the
    factors of a product that do not rotate. Exact to rounding also near 0 and near pi.

    Args:
        g: n elements of a group with rotations.

    Returns:
        (n,) radians from 0 to pi, float64, on the device of g.

    Raises:
        ValueError: a group without rotations, or a product with two factors that rotate.

    Examples:
        >>> from lightning_equiv import O3, Dihedral
        >>> angle(O3().element(-torch.eye(3)))  # the inversion: no rotation
        tensor([0.], dtype=torch.float64)
        >>> angle(Dihedral(4).elements()) / torch.pi
        tensor([0.0000, 0.5000, 1.0000, 0.5000, 1.0000, 1.0000, 1.0000, 1.0000], dtype=torch.float64)
    """
    return g.group.angle(g)


def plane_angle(matrix: Tensor) -> Tensor:
    """(n,) angles from -pi to pi, counter-clockwise, of rotations (n, 2, 2) of the plane."""
    matrix = matrix.to(element_dtype(matrix.device))
    return torch.atan2(matrix[:, 1, 0] - matrix[:, 0, 1], matrix[:, 0, 0] + matrix[:, 1, 1])


def rotation_angle(matrix: Tensor) -> Tensor:
    """(n,) angles from 0 to pi of orthogonal matrices (n, 3, 3), of the proper part det(R) R.

    atan2(|v|, trace - 1) with v = 2 sin(a) axis from the antisymmetric part: exact to rounding at both ends.
    """
    matrix = matrix.to(element_dtype(matrix.device))
    matrix = matrix * torch.linalg.det(matrix).sign()[:, None, None]
    skew = matrix - matrix.mT
    sine = torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], dim=-1).norm(dim=-1)
    return torch.atan2(sine, matrix.diagonal(dim1=-2, dim2=-1).sum(-1) - 1)
