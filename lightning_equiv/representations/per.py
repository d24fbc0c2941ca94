"""Whose the rows of a tensor are, where their number does not tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from lightning_equiv._checks import check_number
from lightning_equiv.groups.group import AlgebraElement, Group, GroupElement
from lightning_equiv.representations.representation import Representation, as_representation

Owner = Literal["node", "edge", "graph", "call"]


@dataclass(frozen=True)
class Per(Representation):
    """A tensor that has a row for each node, edge or graph of a call: `Per("edge", "1o")` for the shifts of edges.

    Needed only where the number of rows has two readings, as on graphs with as many edges as nodes, and where a graph
    has several rows: a unit cell of three vectors, (3 graphs, 3), is `Per("graph", "1o", rows=3)`.

    Args:
        owner: "node", "edge", "graph" (or input), or "call" for one tensor of the whole call, which nothing may move.
        representation: how an element moves a row.
        rows: how many rows each of them has, one after the other.

    Examples:
        >>> import torch
        >>> from lightning_equiv import Symmetry
        >>> symmetry = Symmetry("SO(3)", {"pos": "1o", "cell": Per("graph", "1o", rows=3)}, "1o", index="batch")
        >>> batch = torch.tensor([0, 0, 0, 1, 1])
        >>> data = {"pos": torch.randn(5, 3), "cell": torch.eye(3).repeat(2, 1), "batch": batch}
        >>> symmetry.bind(None, (data,)).num_inputs
        2
    """

    owner: Owner
    representation: Representation
    rows: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "representation", as_representation(self.representation))
        if self.owner not in get_args(Owner):
            raise ValueError(f"expected the owner of rows to be one of {get_args(Owner)}, got {self.owner!r}")
        check_number("rows", self.rows, least=1, whole=True)
        if self.representation.per is not None or self.representation.shared:
            raise ValueError(f"{self.representation!r} says itself whose its rows are: write it without Per")
        if self.owner == "call" and not self.representation.trivial:
            raise ValueError(f"expected what the whole call shares to be Invariant(), got {self.representation!r}")

    def action(self, g: GroupElement, x: Tensor) -> Tensor:
        return self.representation.action(g, x)

    def infinitesimal(self, a: AlgebraElement, x: Tensor) -> Tensor:
        return self.representation.infinitesimal(a, x)

    def contract(self, weight: Tensor, g: GroupElement, x: Tensor, times: int, matrices: dict[Any, Tensor]) -> Tensor:
        return self.representation.contract(weight, g, x, times, matrices)

    def check(self, group: Group, shape: Any) -> None:
        self.representation.check(group, shape)

    def check_group(self, group: Group) -> None:
        self.representation.check_group(group)

    @property
    def trivial(self) -> bool:  # type: ignore[override]
        return self.representation.trivial

    @property
    def per(self) -> Owner:  # type: ignore[override]
        return self.owner

    @property
    def shared(self) -> bool:  # type: ignore[override]
        return self.owner == "call"

    @property
    def row_dims(self) -> int:  # type: ignore[override]
        return self.representation.row_dims

    @property
    def part_names(self) -> tuple[str, ...]:
        return self.representation.part_names

    def parts(self, x: Tensor) -> dict[str, Tensor]:
        return self.representation.parts(x)

    def row_size(self, group: Group) -> int | None:
        return self.representation.row_size(group)

    def __repr__(self) -> str:
        rows = "" if self.rows == 1 else f", rows={self.rows}"
        return f"Per({self.owner!r}, {self.representation!r}{rows})"
