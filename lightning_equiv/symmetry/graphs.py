"""Which input of a call each row of its tensors belongs to; for graphs, whose nodes and edges share an element."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_equiv.representations.representation import Representation
from lightning_equiv.symmetry.tree import Tree, children, describe, is_graph, leaves, named, tensors


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
    """

    num: int
    node: Tensor | None = None
    edge: Tensor | None = None
    device: torch.device | None = None

    def owner(self, x: Tensor, path: str) -> Tensor | None:
        """(rows,) the input of every row of x; None where row i belongs to input i."""
        if self.node is not None and self.edge is not None and "edge" in path.rpartition(".")[2]:
            owner: Tensor | None = self.edge
        elif self.node is not None and x.shape[:1] == self.node.shape:
            owner = self.node
        else:
            owner = None
        expected = self.num if owner is None else len(owner)
        if x.shape[:1] != (expected,):
            graphs = "" if self.node is None else f" (one for each graph) or {len(self.node)} (one for each node)"
            raise ValueError(
                f"{path or 'the tensor'!r} has shape {tuple(x.shape)}, but {expected} rows{graphs} are expected: "
                "the first dimension counts the inputs; for a tensor of the whole call write Invariant(shared=True)"
            )
        return owner

    def repeat(self, times: int) -> Inputs:
        """The same inputs `times` times over."""
        if times == 1:
            return self
        node, edge = (None if t is None else shifted(t, times, self.num) for t in (self.node, self.edge))
        return Inputs(self.num * times, node, edge, self.device)


def shifted(index: Tensor, times: int, step: int) -> Tensor:
    """`index` `times` times over along its last dimension, each time `step` higher."""
    return torch.cat([index + i * step for i in range(times)], dim=-1)


def graphs_of(tree: Tree) -> Iterator[Tree]:
    """The PyG graphs of a call: the only argument, or one of several."""
    return (graph for graph in (tree, *(children(tree) or {}).values()) if is_graph(graph))


def find_inputs(
    tree: Tree,
    found: list[tuple[str, Representation, Tensor]],
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
    graph = next(graphs_of(tree), None)
    if graph is not None:
        inputs = _of_graph(graph)
    elif index is not None:
        inputs = _of_index(dict(leaves(tree)), index, num_graphs)
    else:
        if pointing := [path for path, representation, _ in found if representation.points_at_nodes]:
            raise ValueError(
                f"{pointing[0]!r} points at nodes, but which graph a node belongs to is not known: write "
                "index=..., or Invariant(shared=True) for one fixed graph of all inputs"
            )
        rows = [x for _, representation, x in found if not (representation.shared or x.ndim == 0)]
        if not rows:
            raise ValueError(
                f"no tensor of {describe(tree)} has a batch dimension: expected at least one that is not shared"
            )
        inputs = Inputs(rows[0].shape[0], device=rows[0].device)
    if inputs.num < 1:
        raise ValueError(f"expected at least one input, got an empty batch: {describe(tree)}")
    return inputs


def _of_graph(graph: Tree) -> Inputs:
    """The inputs of a PyG Data or Batch."""
    node, edge_index = getattr(graph, "batch", None), getattr(graph, "edge_index", None)
    if node is None:
        device = next(x for _, x in tensors(graph)).device
        node, num = torch.zeros(graph.num_nodes, dtype=torch.long, device=device), 1
    else:
        num_graphs = getattr(graph, "num_graphs", None)  # a Data with `batch` written by hand has none
        num = _largest(node) + 1 if num_graphs is None else int(num_graphs)
    return Inputs(num, node, None if edge_index is None else node[edge_index[0]], node.device)


def _of_index(held: dict[str, Any], index: str | int, num_graphs: str | int | None) -> Inputs:
    """The inputs of a call whose graphs a tensor names."""
    node = held[index_path(held, index)]
    if node.dtype != torch.long or node.ndim != 1:
        raise ValueError(f"{index=}: expected whole numbers (nodes,), got {tuple(node.shape)} {node.dtype}")
    edges = [x for path, x in held.items() if named(path, "edge_index") and isinstance(x, Tensor)]
    num = _largest(node) + 1 if num_graphs is None else _number(held, num_graphs)
    return Inputs(num, node, node[edges[0][0]] if edges else None, node.device)


def index_path(held: dict[str, Any], index: str | int, name: str = "index") -> str:
    """The dotted name of the tensor that is meant by `index`."""
    paths = [path for path, x in held.items() if isinstance(x, Tensor)]
    matches = [path for path in paths if path == str(index)] or [path for path in paths if named(path, index)]
    if not matches:
        raise ValueError(f"{name}={index!r} names no tensor of the call: it holds {paths}")
    return matches[0]


def _number(held: dict[str, Any], num_graphs: str | int) -> int:
    """A whole number of that name among the arguments, or the rows of the tensor of that name."""
    whole = [value for path, value in held.items() if named(path, num_graphs) and isinstance(value, int)]
    return whole[0] if whole else len(held[index_path(held, num_graphs, "num_graphs")])


def _largest(node: Tensor) -> int:
    """The largest entry, for which the host waits for the device; -1 where there is none."""
    return int(node.max()) if len(node) else -1


def repeat_graphs(tree: Tree, inputs: Inputs, times: int) -> None:
    """Bring the bookkeeping of repeated PyG graphs, copies already, up to date; `inputs` are those before."""
    for graph in graphs_of(tree):
        assert inputs.node is not None
        num_nodes = len(inputs.node)
        if getattr(graph, "edge_index", None) is not None:
            graph["edge_index"] = shifted(graph["edge_index"], times, num_nodes)
        graph["batch"] = shifted(inputs.node, times, inputs.num)
        ptr = getattr(graph, "ptr", None)
        if ptr is not None:
            graph["ptr"] = torch.cat([ptr[:1], shifted(ptr[1:], times, num_nodes)])
        if "num_nodes" in graph.keys():  # noqa: SIM118 (a PyG object is no mapping)
            graph["num_nodes"] = num_nodes * times
        if hasattr(graph, "_num_graphs"):
            graph._num_graphs = inputs.num * times
