"""Some inputs of a call only: which rows of its tensors are theirs, and what becomes of numbers of nodes and graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_equiv.symmetry.bound_tensor import BoundTensor
from lightning_equiv.symmetry.graphs import Inputs, graphs_of, map_incs, map_lists
from lightning_equiv.symmetry.tree import Tree, join, map_tensors

PointsAt = Literal["node", "edge", "graph"]


class Rows(NamedTuple):
    """Which rows of a tensor are left.

    Attributes:
        kept: (left,) their old places, in their new order.
        owner: (left,) the new number of each one's input; None where row i belongs to input i.
    """

    kept: Tensor
    owner: Tensor | None


class Numbers(NamedTuple):
    """Whole numbers that point at nodes, edges or graphs, a column of them for each thing: an edge, a triplet.

    Attributes:
        x: (..., columns).
        points_at: what they are numbers of.
    """

    x: Tensor
    points_at: PointsAt


@dataclass(frozen=True)
class Subset:
    """Some inputs of a call, or whole graphs, in an order of their own.

    Attributes:
        index: (m,) their numbers, on the host.
        kept: (m,) the same where the tensors lie.
        inputs: those alone, numbered anew.
        rows: which are left, by the id of their old owner.
        columns: which are left of whole numbers that point, by their dotted names.
        new: (nodes, edges or graphs,) the new number of each; of those that are left out, no number.
        shifts: (m,) by how much these numbers went up in each graph, on the host.
    """

    index: Tensor
    kept: Tensor
    inputs: Inputs
    rows: dict[int, Rows]
    columns: dict[str, Tensor]
    new: dict[PointsAt, Tensor]
    shifts: dict[PointsAt, Tensor]

    def renumbered(self, path: str, numbers: Numbers) -> Tensor:
        """(..., left) the columns that are left, with the new numbers."""
        x = numbers.x.index_select(-1, self.columns[path])
        return self.new[numbers.points_at][x.long()].to(x.dtype)

    def bounds(self, x: Tensor) -> Tensor:
        """(m + 1,) where each graph's rows begin, and the last one's end, of the same for all, (graphs + 1,)."""
        sizes = x.diff()[self.index if x.device.type == "cpu" else self.kept]
        return torch.cat([x[:1], x[:1] + sizes.cumsum(0).to(x.dtype)])


def take_tensors(
    tensors: Sequence[BoundTensor], inputs: Inputs, tree: Tree, index: Tensor
) -> tuple[tuple[BoundTensor, ...], Inputs, Callable[[Tree], Tree]]:
    """The tensors of some inputs, these inputs, and what brings PyG graphs up to date that hold the tensors.

    Args:
        tensors: of all inputs.
        inputs: of the call.
        tree: in which the tensors lie; asked for PyG graphs only.
        index: (m,) which inputs.

    Raises:
        ValueError: see `find_subset`.
    """
    device = inputs.device or next((t.x.device for t in tensors), torch.device("cpu"))
    pointing = {t.path: Numbers(t.x, t.points_at) for t in tensors if t.points_at}
    edges = undeclared_edges(tree, pointing)
    bounds = {t.path for t in tensors if t.representation.bounds}
    numbers = {path: value for path, value in (pointing | edges).items() if path not in bounds}
    subset = find_subset(inputs, index, device, [t.owner for t in tensors], numbers)

    def taken(t: BoundTensor) -> BoundTensor:
        if t.shared and not t.points_at:
            return t
        rows = subset.rows[id(t.owner)]
        if t.path in numbers:
            x = subset.renumbered(t.path, numbers[t.path])
        else:
            x = subset.bounds(t.x) if t.path in bounds else t.x.index_select(0, rows.kept)
        return replace(t, x=x, owner=rows.owner, version=None if x.is_inference() else x._version)

    update = bookkeeping(tree, subset, numbers, {t.path: t.shared and not t.points_at for t in tensors})
    return tuple(map(taken, tensors)), subset.inputs, update


def check_index(index: Tensor, num: int) -> Tensor:
    """The index on the host, for which it waits for the device where the index lies there.

    Args:
        index: of some inputs.
        num: how many inputs there are.

    Raises:
        ValueError: not distinct whole numbers from 0 to num - 1, or none at all.
    """
    whole = isinstance(index, Tensor) and not (
        index.is_floating_point() or index.is_complex() or index.dtype == torch.bool
    )
    if not whole or index.ndim != 1:
        got = f"{tuple(index.shape)} {index.dtype}" if isinstance(index, Tensor) else repr(index)
        raise ValueError(f"expected `index` to be a tensor of whole numbers (inputs,), got {got}")
    host = index.detach().to("cpu", torch.long, copy=True)
    if len(host) == 0:
        raise ValueError("expected `index` to name at least one input, got an empty tensor")
    numbers = host.tolist()
    low, high = min(numbers), max(numbers)
    if low < 0 or high >= num:
        wrong = low if low < 0 else high
        raise ValueError(f"expected `index` to hold numbers of the {num} inputs, 0 to {num - 1}, got {wrong}")
    if len(set(numbers)) < len(numbers):
        twice = max(numbers, key=numbers.count)
        raise ValueError(f"expected `index` to name every input once at most, got {twice} twice")
    return host


def find_subset(
    inputs: Inputs, index: Tensor, device: torch.device, owners: Iterable[Tensor | None], numbers: Mapping[str, Numbers]
) -> Subset:
    """Some inputs of a call. For graphs the host waits for the device once, for their sizes.

    Args:
        inputs: all of them.
        index: which, in their new order; waited for where it lies on a device.
        device: where the tensors lie.
        owners: of the rows of the call's tensors.
        numbers: that point, by the dotted names of their tensors.

    Raises:
        ValueError: an index that is none, see `check_index`; or numbers that join different graphs.
    """
    host = check_index(index, inputs.num)
    kept = uploaded(host, device) if index.device != device else index.long()
    known = {id(owner): owner for owner in (*owners, inputs.node, inputs.edge) if owner is not None}
    if inputs.node is None:
        rows = {key: _rows_of_each(host, len(owner) // inputs.num, device) for key, owner in known.items()}
        alone = Inputs(len(host), device=inputs.device)
        return Subset(host, kept, alone, {id(None): Rows(kept, None), **rows}, {}, {}, {})
    return _subset_of_graphs(inputs, host, kept, known, numbers)


def _rows_of_each(index: Tensor, rows: int, device: torch.device) -> Rows:
    """Those of inputs without graphs that have so many rows each, one after the other."""
    kept = (index[:, None] * rows + torch.arange(rows)).flatten()
    return Rows(uploaded(kept, device), torch.arange(len(index), device=device).repeat_interleave(rows))


def _subset_of_graphs(
    inputs: Inputs, host: Tensor, kept: Tensor, owners: dict[int, Tensor], numbers: Mapping[str, Numbers]
) -> Subset:
    """The rows and columns of the chosen graphs, sorted by the graphs' new order; those of one keep their order."""
    assert inputs.node is not None
    num, m = inputs.num, len(host)
    rank = torch.full((num,), m, device=kept.device)
    rank[kept] = torch.arange(m, device=kept.device)
    graph_of = {"node": inputs.node, "edge": inputs.edge, "graph": torch.arange(num, device=kept.device)}
    of: list[Tensor] = list(owners.values())
    strays = [torch.zeros((), dtype=torch.long, device=kept.device)] * len(of)
    for x, points_at in numbers.values():
        pointed = graph_of[points_at]
        assert pointed is not None
        graphs = pointed[x.long()]
        first = graphs if graphs.ndim == 1 else graphs.flatten(0, -2)[0]
        of.append(first)
        strays.append((graphs != first).sum())
    sizes = [first.new_zeros(num, dtype=torch.long).index_add(0, first, torch.ones_like(first)) for first in of]
    counts = torch.stack([torch.cat([size, stray[None]]) for size, stray in zip(sizes, strays, strict=True)]).cpu()
    for (path, value), stray in zip(numbers.items(), counts[len(owners) :, -1].tolist(), strict=True):
        if stray:
            raise ValueError(
                f"{path!r} joins {value.points_at}s of different graphs: some inputs of the call do not go without "
                "the others"
            )
    left = counts[:, host].sum(1).tolist()
    places = [rank[first].argsort(stable=True)[:count] for first, count in zip(of, left, strict=True)]
    rows = {key: Rows(p, rank[owner[p]]) for (key, owner), p in zip(owners.items(), places, strict=False)}
    new: dict[PointsAt, Tensor] = {"graph": rank}
    shifts: dict[PointsAt, Tensor] = {"graph": torch.arange(m) - host}
    pointed_at: dict[PointsAt, Tensor | None] = {"node": inputs.node, "edge": inputs.edge}
    for name, owner in pointed_at.items():
        if owner is not None:
            place, size = rows[id(owner)].kept, counts[list(owners).index(id(owner)), :-1]
            new[name] = torch.full((len(owner),), -1, device=kept.device)
            new[name][place] = torch.arange(len(place), device=kept.device)
            shifts[name] = _begins(size[host]) - _begins(size)[host]
    edge = None if inputs.edge is None else rows[id(inputs.edge)].owner
    alone = Inputs(m, rows[id(inputs.node)].owner, edge, inputs.device, inputs.pyg)
    columns = dict(zip(numbers, places[len(owners) :], strict=True))
    return Subset(host, kept, alone, {id(None): Rows(kept, None), **rows}, columns, new, shifts)


def _begins(sizes: Tensor) -> Tensor:
    """Where each graph begins whose sizes these are."""
    return sizes.cumsum(0) - sizes


def uploaded(index: Tensor, device: torch.device) -> Tensor:
    """Numbers of the host where the tensors lie, without a wait for the device."""
    upload = device.type == "cuda"
    return (index.pin_memory() if upload else index).to(device, non_blocking=upload)


# ---- PyG -------------------------------------------------------------------------------------------------------------
def undeclared_edges(tree: Tree, declared: Iterable[str]) -> dict[str, Numbers]:
    """The edge lists of PyG graphs that no spec names, by their dotted names."""
    found = {join(path, "edge_index"): getattr(graph, "edge_index", None) for path, graph in graphs_of(tree)}
    return {path: Numbers(x, "node") for path, x in found.items() if x is not None and path not in declared}


def bookkeeping(
    tree: Tree, subset: Subset, numbers: Mapping[str, Numbers], declared: Mapping[str, bool]
) -> Callable[[Tree], Tree]:
    """What brings the bookkeeping of PyG graphs up to date, copies already, in which the tensors of a subset lie.

    Args:
        tree: the whole call's.
        subset: of its inputs.
        numbers: that point, by the dotted names of their tensors.
        declared: dotted names of the tensors that a spec names, with whether each is one of the whole call, which
            belongs to no graph when a batch is taken apart.
    """
    taken: dict[str, Tensor] = {}  # what no spec names
    for path, graph in graphs_of(tree):
        edges, batch, ptr = (join(path, key) for key in ("edge_index", "batch", "ptr"))
        if edges in numbers and edges not in declared:
            taken[edges] = subset.renumbered(edges, numbers[edges])
        if getattr(graph, "batch", None) is not None and batch not in declared and subset.inputs.node is not None:
            taken[batch] = subset.inputs.node
        if getattr(graph, "ptr", None) is not None and ptr not in declared:
            taken[ptr] = subset.bounds(graph["ptr"])
    points_at = {path: value.points_at for path, value in numbers.items()}
    passed_on = {path for path, shared in declared.items() if shared}

    def update(tree: Tree) -> Tree:
        for path, graph in graphs_of(tree):
            for key in ("edge_index", "batch", "ptr"):
                if join(path, key) in taken:
                    graph[key] = taken[join(path, key)]
            _update(path, graph, subset, points_at, passed_on)
        return tree

    return update


def _update(path: str, graph: Any, subset: Subset, points_at: Mapping[str, PointsAt], shared: set[str]) -> None:
    """How many graphs and nodes there are, and how a batch is taken apart."""
    index = subset.index
    if "num_nodes" in graph.keys() and subset.inputs.node is not None:  # noqa: SIM118 (a PyG object is no mapping)
        graph["num_nodes"] = len(subset.inputs.node)
    if hasattr(graph, "_num_graphs"):
        graph._num_graphs = len(index)
    if not hasattr(graph, "_slice_dict"):
        return

    def raised(inc: Tensor, place: str) -> Tensor:
        """What PyG added in each graph, so that taking it off gives the numbers in the graph alone, as before."""
        inc = inc[index.to(inc.device)]
        shift = subset.shifts[points_at[place]] if place in points_at else torch.zeros_like(index)
        return inc + shift.to(inc).view(-1, *[1] * (inc.ndim - 1))

    map_lists(lambda values: [values[i] for i in index.tolist()], graph)
    if isinstance(getattr(graph, "_num_nodes", None), list):
        graph._num_nodes = [graph._num_nodes[i] for i in index.tolist()]
    own = [key for key in graph._slice_dict if join(path, key) not in shared]
    graph._slice_dict = {key: map_tensors(subset.bounds, graph._slice_dict[key]) for key in own}
    graph._inc_dict = {key: map_incs(raised, graph._inc_dict[key], join(path, key)) for key in own}
