"""Which input of a call each row of its tensors belongs to; for graphs, whose nodes and edges share an element."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_equiv.representations.representation import Representation
from lightning_equiv.symmetry.tree import (
    Found,
    Tree,
    children,
    describe,
    is_graph,
    join,
    leaves,
    map_tensors,
    named,
    rebuild,
    tensors,
)


@dataclass(frozen=True)
class Inputs:
    """The inputs of a call: one element moves each.

    Without graphs row i of every tensor belongs to input i. With graphs every graph is an input, and its nodes and
    edges belong to it.

    Attributes:
        num: how many there are.
        node: (nodes,) the graph of every node; None without graphs.
        edge: (edges,) the graph of every edge; None without edges.
        device: where the tensors lie.
        pyg: they are a PyG graph, where what is called "edge..." has a row for each edge.
    """

    num: int
    node: Tensor | None = None
    edge: Tensor | None = None
    device: torch.device | None = None
    pyg: bool = False

    def owner(self, x: Tensor, path: str, representation: Representation, by_pyg: bool = False) -> Tensor | None:
        """(rows,) the input of every row of x; None where row i belongs to input i.

        Args:
            x: the tensor.
            path: its dotted name.
            representation: which may say what a row belongs to; else the number of rows does.
            by_pyg: whether "edge" in the name says so, as it does on a PyG graph.

        Raises:
            ValueError: a number of rows that is not theirs, or one that can be read in two ways.
        """
        counts = {"graph": self.num}
        counts |= {name: len(t) for name, t in (("node", self.node), ("edge", self.edge)) if t is not None}
        declared: str | None = representation.per
        if declared is None and by_pyg and "edge" in path.rpartition(".")[2] and "edge" in counts:
            declared = "edge"
        expected: dict[str, int] = (
            counts if declared is None else {declared: counts.get(declared, 0) * representation.rows}
        )
        readings = [name for name, count in expected.items() if x.shape[:1] == (count,) and name in counts]
        if not readings:
            raise ValueError(self._wrong_rows(x, path, expected, counts))
        owners = [self._owner(name, representation.rows) for name in readings]
        if len(owners) > 1 and not all(self._same(owners[0], other) for other in owners[1:]):
            write = " or ".join(f"Per({name!r}, ...)" for name in readings)
            raise ValueError(
                f"{path or 'the tensor'!r} has {len(x)} rows, and there are as many {'s as '.join(readings)}s, in "
                f"another order: say what a row belongs to, {write}"
            )
        return owners[0]

    def _owner(self, name: str, rows: int) -> Tensor | None:
        """(rows,) the input of each node, edge or graph, which have so many rows each; None for one a graph."""
        owner = self.node if name == "node" else self.edge if name == "edge" else None
        if rows == 1:
            return owner
        return (torch.arange(self.num, device=self.device) if owner is None else owner).repeat_interleave(rows)

    def _same(self, a: Tensor | None, b: Tensor | None) -> bool:
        """Whether two readings mean the same, for which the host waits for the device; None is row i, input i."""
        a, b = (torch.arange(self.num, device=self.device) if t is None else t for t in (a, b))
        return torch.equal(a, b)

    def _wrong_rows(self, x: Tensor, path: str, expected: dict[str, int], counts: dict[str, int]) -> str:
        """The message where no number of rows fits."""
        if missing := [name for name in expected if name not in counts]:
            return (
                f"{path or 'the tensor'!r} is declared to have a row for each {missing[0]}, but {missing[0]}s of the "
                "call are not known: write `index`, the tensor that says which graph each node belongs to, and call "
                "the edges `edge_index` or NodeIndex()"
            )
        if self.node is None:
            ways, several = f"{expected['graph']} rows", "for graphs `index`, the tensor of each node's graph"
        else:
            several = "for three rows a graph Per('graph', ..., rows=3)"
            ways = "rows for " + " or ".join(f"each {name} ({count})" for name, count in expected.items())
        whole = x.ndim > 1 and not x.is_floating_point() and self.node is not None
        cure = "NodeIndex() if its entries are numbers of nodes" if whole else "Invariant(shared=True)"
        return (
            f"{path or 'the tensor'!r} has shape {tuple(x.shape)}, but {ways} are expected: the first dimension "
            f"counts the inputs; for a tensor of the whole call write {cure}, {several}"
        )

    def count(self, points_at: Literal["node", "edge", "graph"]) -> int:
        """How many nodes, edges or graphs there are; 0 where they are not known."""
        if points_at == "graph":
            return self.num
        pointed = self.node if points_at == "node" else self.edge
        return 0 if pointed is None else len(pointed)

    def first(self, times: int) -> Inputs:
        """The inputs before they were repeated `times` times."""
        node, edge = (None if t is None else t[: len(t) // times] for t in (self.node, self.edge))
        return Inputs(self.num // times, node, edge, self.device, self.pyg)

    def repeat(self, times: int) -> Inputs:
        """The same inputs `times` times over."""
        if times == 1:
            return self
        node, edge = (None if t is None else shifted(t, times, self.num) for t in (self.node, self.edge))
        return Inputs(self.num * times, node, edge, self.device, self.pyg)


def shifted(index: Tensor, times: int, step: int) -> Tensor:
    """`index` `times` times over along its last dimension, each time `step` higher."""
    return torch.cat([index + i * step for i in range(times)], dim=-1)


def raised_by_pyg(path: str) -> bool:
    """Whether PyG takes a key for numbers of nodes or graphs, which it raises where it puts graphs together."""
    key = path.rpartition(".")[2]
    return "index" in key or "batch" in key or key == "face"


def graphs_of(tree: Tree) -> Iterator[tuple[str, Tree]]:
    """The PyG graphs of a call, the only argument or some of several, with their dotted names."""
    places = {"": tree, **(children(tree) or {})}
    return ((str(path), graph) for path, graph in places.items() if is_graph(graph))


def find_inputs(
    tree: Tree,
    found: Found,
    index: str | int | None,
    num_graphs: str | int | None,
) -> Inputs:
    """The inputs of a call.

    Args:
        tree: the call's arguments.
        found: its tensors.
        index: name of the tensor that says which graph each node belongs to; a PyG graph brings its own.
        num_graphs: name of what says how many graphs there are; None asks the tensor `index`, and so the device.

    Raises:
        ValueError: no tensor has a batch dimension, the batch is empty, or a name is wrong.
    """
    graphs = [graph for _, graph in graphs_of(tree)]
    if graphs:
        inputs = _of_graph(graphs[0], found)
    elif index is not None:
        inputs = _of_index(dict(leaves(tree)), found, index, num_graphs)
    else:
        if pointing := [path for path, representation, _ in found if representation.points_at is not None]:
            raise ValueError(
                f"{pointing[0]!r} points at nodes, but which graph a node belongs to is not known: write "
                "index=..., or Invariant(shared=True) for one fixed graph of all inputs"
            )
        rows = [(r, x) for _, r, x in found if not (r.shared or x.ndim == 0)]
        if not rows:
            raise ValueError(
                f"no tensor of {describe(tree)} has a batch dimension: expected at least one that is not shared"
            )
        representation, x = rows[0]
        inputs = Inputs(representation.num_owners(x), device=x.device)
    if inputs.num < 1:
        raise ValueError(f"expected at least one input, got an empty batch: {describe(tree)}")
    return inputs


def _edges(found: Found) -> list[Tensor]:
    """An edge index of another name, (2, edges), where there is one only."""
    pointing = [x for _, r, x in found if r.points_at == "node" and x.ndim == 2 and len(x) == 2]
    return pointing if len(pointing) == 1 else []


def _of_graph(graph: Tree, found: Found) -> Inputs:
    """The inputs of a PyG Data or Batch."""
    node, edge_index = getattr(graph, "batch", None), getattr(graph, "edge_index", None)
    if node is None:
        device = next(x for _, x in tensors(graph)).device
        node, num = torch.zeros(graph.num_nodes, dtype=torch.long, device=device), 1
    else:
        num_graphs = getattr(graph, "num_graphs", None)  # a Data with `batch` written by hand has none
        num = _largest(node) + 1 if num_graphs is None else int(num_graphs)
    edges = _edges(found) if edge_index is None else [edge_index]
    return Inputs(num, node, node[edges[0][0]] if edges else None, node.device, pyg=True)


def _of_index(held: dict[str, Any], found: Found, index: str | int, num_graphs: str | int | None) -> Inputs:
    """The inputs of a call whose graphs a tensor names."""
    node = held[index_path(held, index)]
    if node.dtype != torch.long or node.ndim != 1:
        raise ValueError(f"{index=}: expected whole numbers (nodes,), got {tuple(node.shape)} {node.dtype}")
    edges = [x for path, x in held.items() if named(path, "edge_index") and isinstance(x, Tensor)] or _edges(found)
    num = _largest(node) + 1 if num_graphs is None else _number(held, found, num_graphs)
    return Inputs(num, node, node[edges[0][0]] if edges else None, node.device)


def index_path(held: dict[str, Any], index: str | int, name: str = "index") -> str:
    """The dotted name of the tensor that is meant by `index`."""
    paths = [path for path, x in held.items() if isinstance(x, Tensor)]
    matches = [path for path in paths if path == str(index)] or [path for path in paths if named(path, index)]
    if not matches:
        raise ValueError(f"{name}={index!r} names no tensor of the call: it holds {paths}")
    return matches[0]


def number_path(held: dict[str, Any], num_graphs: str | int) -> str | None:
    """The dotted name of the whole number that is meant by `num_graphs`; None where a tensor is."""
    return next((path for path, value in held.items() if named(path, num_graphs) and isinstance(value, int)), None)


def _number(held: dict[str, Any], found: Found, num_graphs: str | int) -> int:
    """A whole number of that name among the arguments, or how many graphs the tensor of that name has rows of."""
    whole = number_path(held, num_graphs)
    if whole is not None:
        return int(held[whole])
    place = index_path(held, num_graphs, "num_graphs")
    return next(representation.num_owners(x) for path, representation, x in found if path == place)


def _largest(node: Tensor) -> int:
    """The largest entry, for which the host waits for the device; -1 where there is none."""
    return int(node.max()) if len(node) else -1


def repeat_graphs(tree: Tree, inputs: Inputs, times: int, steps: dict[str, int]) -> None:
    """Bring the bookkeeping of repeated PyG graphs, copies already, up to date.

    Args:
        tree: the repeated arguments.
        inputs: those before.
        times: how often they were repeated.
        steps: by how much the entries of tensors moved up, by their dotted names; these are repeated already.
    """
    for path, graph in graphs_of(tree):
        _repeat_graph(path, graph, inputs, times, steps)


def _repeat_graph(path: str, graph: Tree, inputs: Inputs, times: int, steps: dict[str, int]) -> None:
    """One of them, with its dotted name."""
    assert inputs.node is not None
    num_nodes, edges = len(inputs.node), join(path, "edge_index")
    if getattr(graph, "edge_index", None) is not None and edges not in steps:
        graph["edge_index"] = shifted(graph["edge_index"], times, num_nodes)
    graph["batch"] = shifted(inputs.node, times, inputs.num)
    ptr = getattr(graph, "ptr", None)
    if ptr is not None and join(path, "ptr") not in steps:
        graph["ptr"] = torch.cat([ptr[:1], shifted(ptr[1:], times, num_nodes)])
    if "num_nodes" in graph.keys():  # noqa: SIM118 (a PyG object is no mapping)
        graph["num_nodes"] = num_nodes * times
    if hasattr(graph, "_num_graphs"):
        graph._num_graphs = inputs.num * times
    if hasattr(graph, "_slice_dict"):  # by which `to_data_list` takes a batch apart
        map_lists(lambda values: values * times, graph)
        graph._slice_dict = {key: _again(s, times) for key, s in graph._slice_dict.items()}
        if isinstance(getattr(graph, "_num_nodes", None), list):
            graph._num_nodes = graph._num_nodes * times
        raised = {edges: num_nodes, **steps}
        graph._inc_dict = map_incs(lambda inc, at: _again_inc(inc, times, raised.get(at, 0)), graph._inc_dict, path)


def map_lists(function: Callable[[list[Any]], list[Any]], graph: Tree) -> None:
    """Put function(values) in the place of a PyG batch's lists of one value a graph, such as names."""

    def mapped(held: Any, slices: Any) -> Any:
        if isinstance(slices, Mapping) and isinstance(held, Mapping):
            return {**held, **{key: mapped(held[key], s) for key, s in slices.items() if key in held}}
        return function(held) if isinstance(held, list) and isinstance(slices, Tensor) else held

    for key in graph._slice_dict.keys() & graph.keys():
        graph[key] = mapped(graph[key], graph._slice_dict[key])


def map_incs(function: Callable[[Tensor, str], Tensor], incs: Any, path: str) -> Any:
    """By how much PyG raised the entries of each graph, with function(increments, dotted name of their tensor)."""
    if isinstance(incs, Tensor):
        return function(incs, path)
    held = children(incs)
    return incs if held is None else rebuild(incs, {k: map_incs(function, i, join(path, k)) for k, i in held.items()})


def _again(slices: Any, times: int) -> Any:
    """Where a key's rows begin in each graph, and the last ones end, the graphs `times` times over."""
    if not isinstance(slices, Tensor):
        return map_tensors(lambda s: _again(s, times), slices)
    ends = slices[1:] + torch.arange(times)[:, None] * slices[-1]
    return torch.cat([slices[:1], ends.flatten()])


def _again_inc(incs: Tensor, times: int, step: int) -> Tensor:
    """By how much a key's entries were raised in each graph, the graphs `times` times over."""
    return torch.cat([incs + i * step for i in range(times)])
