"""The target of a batch beside a layer's rows: how the group moves it, and its rows."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from lightning_equiv.groups.group import Group
from lightning_equiv.representations.action import wide
from lightning_equiv.representations.representation import Representation
from lightning_equiv.strategies.recm.critic import Rows
from lightning_equiv.symmetry.symmetry import Symmetry
from lightning_equiv.symmetry.tree import Place, describe, held_at, lookup

INVARIANT_SIZE = 32  # numbers that stand for a target that nothing moves


def declared_target(symmetry: Symmetry | None, group: Group, target: Place | None) -> Representation | None:
    """How the group moves the target: as the symmetry's `batch` says at `target`, or like its outputs.

    Raises:
        ValueError: it is not declared.
    """
    if target is None:
        return None
    for spec in () if symmetry is None else (symmetry.batch, symmetry.outputs):
        if not isinstance(spec, Representation) and not callable(target):
            with suppress(ValueError):
                spec = lookup(spec, target)
        if isinstance(spec, Representation):
            return spec
    raise ValueError(
        f"how the group moves {target=} is not declared: pass a Symmetry whose `batch` names it, e.g. "
        f"Symmetry({str(group)!r}, inputs=..., outputs=..., batch={{..., {target!r}: '1o'}}), or whose "
        "`outputs` are one representation"
    )


def read_target(target: Place, batch: Any) -> Tensor:
    """The target of a batch."""
    y = held_at(batch, target)
    if not isinstance(y, Tensor):
        raise ValueError(f"{target=}: expected a tensor, got {describe(y)}")
    return y


def target_rows(y: Tensor, representation: Representation, count: int, dtype: torch.dtype | None = None) -> Rows:
    """A target as `count` rows (in float32 at least, or in `dtype`), each of its own for equally many, in order.

    Raises:
        ValueError: the layer's rows are no multiple of the target's.
    """
    y = y.detach()
    if representation.trivial:
        rows, shape = _invariant(y), torch.Size([INVARIANT_SIZE])
    else:
        last = representation.row_dims
        y = y if y.ndim > last else y[None]  # a single one, without a batch
        rows, shape = wide(y).flatten(-last).flatten(0, -2), y.shape[-last:]
    if count % len(rows):
        raise ValueError(
            f"a relaxed layer has {count} rows, which are no multiple of the {len(rows)} targets of shape "
            f"{tuple(y.shape)}: expected one target for each row, or for equally many rows in order; bring them into "
            "order with a callable, e.g. target=lambda batch: batch.y[batch.batch], or leave `target` out"
        )
    return Rows(rows.repeat_interleave(count // len(rows), 0).to(dtype), shape, representation)


def target_size(representation: Representation, group: Group) -> int:
    """How many numbers stand for one target.

    Raises:
        ValueError: that cannot be known beforehand.
    """
    size = INVARIANT_SIZE if representation.trivial else representation.row_size(group)
    if size is not None:
        return size
    raise ValueError(
        f"expected a target moved as irreps, Point(), CartesianTensor() or Invariant(), got {representation!r}: leave "
        "`target` out and each layer's own output takes its place"
    )


def _invariant(y: Tensor) -> Tensor:
    """(rows, INVARIANT_SIZE): numbers padded or folded, whole numbers one-hot; nothing gets longer."""
    if not y.is_floating_point():
        return nn.functional.one_hot(y.flatten().long() % INVARIANT_SIZE, INVARIANT_SIZE).to(torch.float32)
    rows = wide(y).reshape(-1, 1) if y.ndim <= 1 else wide(y).flatten(0, -2)
    folds = math.ceil(rows.shape[1] / INVARIANT_SIZE)
    rows = nn.functional.pad(rows, (0, folds * INVARIANT_SIZE - rows.shape[1]))
    return rows.unflatten(1, (folds, INVARIANT_SIZE)).sum(1) / math.sqrt(folds)
