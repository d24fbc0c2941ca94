"""Layers from invariants to invariants, beside which a branch breaks no symmetry."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_equiv._random import derived_generator
from lightning_equiv.groups.group import Group
from lightning_equiv.layers.layer import Layer
from lightning_equiv.representations.representation import Representation


def check_that_something_moves(layers: Sequence[Layer], group: Group, who: str) -> None:
    """Raise where no branch can break a symmetry, warn where some cannot.

    Args:
        layers: all that are relaxed.
        group: whose elements should move their features.
        who: the strategy, for the message.

    Raises:
        ValueError: all layers map invariants to invariants.
    """
    invariant = [layer.name for layer in layers if is_invariant(layer, group)]
    if not invariant:
        return
    words = (
        f"{who}: {invariant} map invariants of {group} to invariants: a branch there breaks no symmetry, only adds "
        "weights, and what it learns says nothing of one. "
    )
    if len(invariant) == len(layers):
        raise ValueError(
            f"{words}Expected at least one layer whose features the group moves, such as vectors or coordinates; a "
            "network that makes invariants of its inputs at once has none, use REMUL or GroupAugmentation with a plain "
            "one"
        )
    rank_zero_warn(f"{words}Leave them out of `layers`")


def is_invariant(layer: Layer, group: Group) -> bool:
    """Whether it is known that no element moves what goes in and comes out; 16 of them are tried."""
    sides = ((layer.inputs, layer.in_features), (layer.outputs, layer.out_features))
    return all(
        representation is not None
        and features is not None
        and not _moves(representation, group, (*features, *[2] * layer.grid))
        for representation, features in sides
    )


def _moves(representation: Representation, group: Group, shape: tuple[int, ...]) -> bool:
    generator = derived_generator("moves")
    x = torch.randn(16, *shape, dtype=torch.float64, generator=generator)
    g = group.sample(len(x), generator=generator)
    return not torch.allclose(representation(g, x), x)
