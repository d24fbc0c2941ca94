"""One tensor of a call, with what a symmetry says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lightning_equiv.representations.representation import Representation


@dataclass(frozen=True)
class BoundTensor:
    """A tensor of a call.

    Attributes:
        path: dotted name.
        representation: how an element moves it.
        x: the tensor.
        owner: (rows,) the input of every row; None where row i belongs to input i.
        shared: it belongs to the whole call.
        points_at: its entries are numbers of nodes, edges or graphs of the call; None for anything else.
        version: how often it had been changed in place when it was bound; None where torch does not count that.
    """

    path: str
    representation: Representation
    x: Tensor
    owner: Tensor | None
    shared: bool
    points_at: Literal["node", "edge", "graph"] | None = None
    version: int | None = None
