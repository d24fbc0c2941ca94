"""Tensors that no element moves: invariants of every input, and whole numbers that point at nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lightning_equiv.groups.group import AlgebraElement, GroupElement
from lightning_equiv.representations.representation import Representation


@dataclass(frozen=True)
class Invariant(Representation):
    """A tensor that no element moves: masses, atomic numbers, class labels.

    Args:
        shared: the tensor has no batch dimension: it belongs to the whole call, like a temperature or a fixed graph,
            and is passed on once however many inputs there are. An input without any dimension always is.

    Examples:
        >>> from lightning_equiv import SO3
        >>> Invariant()(SO3().sample(2), torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """

    shared: bool = False
    trivial = True

    def action(self, g: GroupElement, x: Tensor) -> Tensor:
        return x

    def infinitesimal(self, a: AlgebraElement, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def contract(self, weight: Tensor, g: GroupElement, x: Tensor, times: int, matrices: dict[Any, Tensor]) -> Tensor:
        return nn.functional.linear(x.flatten(1), weight).repeat(times, 1)


@dataclass(frozen=True)
class NodeIndex(Representation):
    """Whole numbers that point at nodes, such as an edge index (2, edges): no element moves them.

    A tensor called `edge_index` needs no such entry.
    """

    shared = True
    trivial = True
    points_at: ClassVar[Literal["node", "edge", "graph"] | None] = "node"

    def action(self, g: GroupElement, x: Tensor) -> Tensor:
        return x

    def infinitesimal(self, a: AlgebraElement, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


@dataclass(frozen=True)
class EdgeNumbers(NodeIndex):
    """Whole numbers that point at edges, such as the two edges of a triplet (triplets,): no element moves them."""

    points_at = "edge"


@dataclass(frozen=True)
class GraphNumbers(NodeIndex):
    """Whole numbers that point at graphs, such as the graph of every edge (edges,), beside `index`."""

    points_at = "graph"


@dataclass(frozen=True)
class Pointer(NodeIndex):
    """Where each graph's nodes begin, and the last one's end, (graphs + 1,): PyG's `ptr`. No element moves it."""

    bounds = True

    def num_owners(self, x: Tensor) -> int:
        return len(x) - 1

    def repeated(self, x: Tensor, times: int, step: int) -> Tensor:
        return torch.cat([x[:1], super().repeated(x[1:], times, step)])


@dataclass(frozen=True)
class Ignored(Representation):
    """A part of an output at which nobody looks, whatever it is: neither moved nor compared.

    `outputs={"forces": "1o", "*": Ignored()}` ignores all that is not named.
    """

    shared = True
    trivial = True
    ignored = True

    def action(self, g: GroupElement, x: Tensor) -> Tensor:
        return x

    def infinitesimal(self, a: AlgebraElement, x: Tensor) -> Tensor:
        return torch.zeros_like(x)
