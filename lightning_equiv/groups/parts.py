"""A group without its translations, and its translations alone."""

from __future__ import annotations

from torch import Tensor

from lightning_equiv.groups.group import Group, GroupElement
from lightning_equiv.groups.product import as_group


def linear_part(group: Group) -> Group | None:
    """The group of the linear maps R of x -> R x + t: compact, so that its functions have a spectrum.

    SO(3) of SE(3), O(3) of E(3), factor by factor in a product. A compact group is its own linear part.

    Args:
        group: any group.

    Returns:
        The group, or None where nothing is left, as of T(3).

    Examples:
        >>> from lightning_equiv import as_group
        >>> str(linear_part(as_group("SE(3) x T(3) x S5"))), linear_part(as_group("T(3)"))
        ('SO(3) x S5', None)
    """
    return group.linear_part


def embedded(group: Group, g: GroupElement) -> GroupElement:
    """Elements R of `linear_part(group)` as the elements x -> R x of `group`: without translation.

    Args:
        group: any group.
        g: n elements of its linear part.

    Returns:
        n elements of `group`, on the device and in the precision of g.

    Raises:
        ValueError: g belongs to another group.

    Examples:
        >>> from lightning_equiv import SE3, SO3
        >>> embedded(SE3(), SO3().sample(5)).translation.abs().max()
        tensor(0., dtype=torch.float64)
    """
    if g.group != group.linear_part:
        raise ValueError(f"expected elements of {group.linear_part}, the linear part of {group}, got {g!r}")
    return group.embed(g)


def translations(group: Group | str, t: Tensor) -> GroupElement:
    """The pure shifts x -> x + t of a group.

    Args:
        group: T(n), SE(3), E(3), or a product with one of them, whose other factors stay at their identity; or its
            name.
        t: (n, d) real translations, in the unit of length of the data; d is the dimension of the space.

    Returns:
        n elements of `group`, on the device and in the precision of t.

    Raises:
        ValueError: a group without translations, a product with two factors that translate, or t of another shape.

    Examples:
        >>> import torch
        >>> g = translations("SE(3)", torch.tensor([[0.0, 0.0, 2.0]]))
        >>> g.translation, bool((g.matrix == torch.eye(3)).all())
        (tensor([[0., 0., 2.]]), True)
    """
    group = as_group(group)
    d = group.translation_dim
    if d is not None and not (t.is_floating_point() and t.ndim == 2 and t.shape[1] == d):
        raise ValueError(f"expected real translations of shape (n, {d}), got {tuple(t.shape)} {t.dtype}")
    return group.shift(t)


def check_compact(group: Group) -> None:
    """ValueError for a group without a uniform distribution, whose functions have no sum over degrees."""
    if not group.compact:
        rest = group.linear_part
        instead = "nothing is left of it" if rest is None else f"take its rotations, `linear_part(group)`: {rest}"
        raise ValueError(f"{group} is not compact, its translations have no uniform distribution: {instead}")
