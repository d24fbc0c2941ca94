"""A symmetry: a group, and how its elements move everything that goes into and comes out of a network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_equiv.groups.group import Group, GroupElement
from lightning_equiv.groups.product import as_group
from lightning_equiv.representations.invariant import NodeIndex
from lightning_equiv.representations.representation import Representation
from lightning_equiv.symmetry.tree import Spec, Tree, as_spec, children, describe, is_graph, leaves, map_tree, tensors


@dataclass(frozen=True)
class Layout:
    """How many elements a call needs and which of them moves which row.

    Without graphs every input has one element: row i of every tensor is moved by element i. With graphs every graph has
    one and its nodes and edges share it.

    Attributes:
        num_elements: inputs, or graphs.
        node: (nodes,) the graph of every node; None without graphs.
        edge: (edges,) the graph of every edge; None without edges.
        device: where the tensors lie.
    """

    num_elements: int
    node: Tensor | None = None
    edge: Tensor | None = None
    device: torch.device | None = None

    def owner(self, x: Tensor, path: str) -> Tensor | None:
        """(rows,) the element of every row of x; None where row i has element i."""
        if self.node is not None and self.edge is not None and "edge" in path.rpartition(".")[2]:
            owner: Tensor | None = self.edge
        elif self.node is not None and x.shape[:1] == self.node.shape:
            owner = self.node
        else:
            owner = None
        expected = self.num_elements if owner is None else len(owner)
        if x.shape[:1] != (expected,):
            graphs = "" if self.node is None else f" (one for each graph) or {len(self.node)} (one for each node)"
            raise ValueError(
                f"{path or 'the tensor'!r} has shape {tuple(x.shape)}, but {expected} rows{graphs} are expected: "
                "the first dimension counts the inputs; for a tensor of the whole call write Invariant(shared=True)"
            )
        return owner

    def repeat(self, times: int) -> Layout:
        """The layout of the same inputs `times` times over."""
        node, edge = (None if t is None else _shifted(t, times, self.num_elements) for t in (self.node, self.edge))
        return Layout(self.num_elements * times, node, edge, self.device)


@dataclass(frozen=True)
class Symmetry:
    """A group, and how its elements move a network's inputs and outputs.

        f(g x) = g f(x)    for every g in the group: f is equivariant.

    Args:
        group: the group, or its name: "SO(3)", "O(3)", "SE(3)", "E(3)", "SO(2)", "C4", "D4", "S5", "SO(3) x S5".
        inputs: how an element moves the arguments of the network. A tuple goes by position, a dict by the arguments'
            names (or mirrors the one dict, dataclass or PyG graph that the network takes), nested as the arguments are;
            a single representation is the only argument. Leaves are representations, irreps such as "16x0e+1o", or
            callables. Every tensor must be named; what nothing moves is `Invariant()`.
        outputs: how an element moves what the network returns.
        batch: how an element moves a batch of the dataloader, for strategies that move labels (GroupAugmentation).
        index: the name of the tensor that says which graph each node belongs to, so that every graph gets an
            element of its own. A PyG graph brings its own.

    Raises:
        ValueError: an unknown group or representation, or one that needs a matrix (a permutation) of a group without.

    Examples:
        >>> import torch
        >>> symmetry = Symmetry("SO(3)", inputs=("1o", "0e"), outputs="1o")
        >>> g = symmetry.group.sample(8)
        >>> x, m = torch.randn(8, 3), torch.rand(8, 1)
        >>> (gx, gm), _ = symmetry.move_inputs(g, (x, m))
        >>> torch.allclose(gx * gm, symmetry.move_outputs(g, x * m), atol=1e-6)
        True
    """

    group: Group | str
    inputs: Spec
    outputs: Spec
    batch: Spec = field(default=None, kw_only=True)
    index: str | int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "group", as_group(self.group))
        for name in ("inputs", "outputs", "batch"):
            spec = as_spec(getattr(self, name))
            if name == "inputs" and isinstance(spec, Representation):
                spec = (spec,)  # the only argument
            object.__setattr__(self, name, spec)
            for representation in leaves(getattr(self, name)):
                try:
                    representation.check_group(as_group(self.group))
                except ValueError as error:
                    raise ValueError(f"`{name}`: {error}") from None
        for name in ("inputs", "outputs"):
            if getattr(self, name) is None:
                raise ValueError(
                    f"expected `{name}` to say how elements of {self.group} move the network's {name}, got None"
                )

    # ---- what a user calls ---------------------------------------------------------------------------------------
    def move_inputs(
        self, g: GroupElement, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) of a network call moved by g: one element for each input (graph), or one for all."""
        tree, unpack = self.pack(args, kwargs or {})
        return unpack(self.move(g, self.inputs, tree, self.layout(self.inputs, tree)))

    def move_outputs(self, g: GroupElement, output: Tree) -> Tree:
        """A network's output moved by g, one element for each row (or one for all); for graphs use `move`."""
        return self.move(g, self.outputs, output, Layout(len(g)), what="outputs")

    def move_batch(self, g: GroupElement, batch: Tree) -> Tree:
        """A batch of the dataloader moved by g, as `batch` says."""
        return self.move(g, self.batch, batch, self.layout(self.batch, batch, what="batch"), what="batch")

    # ---- what the rest of the library builds on ------------------------------------------------------------------
    def pack(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], network: Callable[..., Any] | None = None
    ) -> tuple[Tree, Callable[[Tree], tuple[tuple[Any, ...], dict[str, Any]]]]:
        """A call's arguments as one tree that `inputs` mirrors, and the way back to (args, kwargs).

        Args:
            args: positional arguments of the call.
            kwargs: keyword arguments of the call.
            network: whose parameter names match positions with names; needed only where call and spec differ in that.
        """
        n, keywords = len(args), list(kwargs)
        if isinstance(self.inputs, Mapping):
            names = _parameter_names(network)[:n] if n else []
            passed = [*args, *kwargs.values()]
            held = children(passed[0]) if len(passed) == 1 else None
            by_name = set(self.inputs) <= {*names, *keywords}
            nested = by_name and any(isinstance(spec, Mapping | tuple) for spec in self.inputs.values())
            if held is not None and not nested and (set(self.inputs) <= set(held) or not by_name):
                return passed[0], lambda tree: ((tree,), {}) if n else ((), {keywords[0]: tree})
            if len(names) < n:
                raise ValueError(
                    f"`inputs` goes by name ({', '.join(map(str, self.inputs))}) but the network was called with {n} "
                    "arguments by position whose names are unknown: write `inputs` as a tuple"
                )
            tree: Tree = dict(zip([*names, *keywords], [*args, *kwargs.values()], strict=True))
            return tree, lambda tree: (tuple(tree[k] for k in names), {k: tree[k] for k in keywords})
        names = _parameter_names(network) if keywords else []
        if missing := [k for k in keywords if k not in names[n:]]:
            raise ValueError(
                f"the network was called with the keyword {missing[0]!r} whose position is unknown: "
                f"write `inputs` as a dict of keyword names, e.g. {{{missing[0]!r}: ...}}"
            )
        places = [names.index(k) for k in keywords]
        flat = list(args) + [None] * (max(places, default=n - 1) + 1 - n)
        for place, key in zip(places, keywords, strict=True):
            flat[place] = kwargs[key]
        return tuple(flat), lambda tree: (tuple(tree[:n]), {k: tree[p] for k, p in zip(keywords, places, strict=True)})

    def layout(self, spec: Spec, tree: Tree, what: str = "inputs") -> Layout:
        """How many elements `tree` needs; see `Layout`.

        Raises:
            ValueError: no tensor has a batch dimension, the batch is empty, or `index` names nothing.
        """
        found: list[tuple[str, Representation, Tensor]] = []
        map_tree(lambda *leaf: found.append(leaf), self._complete(spec, tree), tree, what=what)
        graph = self._graph(tree)
        if graph is not None:
            node, num_graphs, edge_index = graph
            edge = None if edge_index is None else node[edge_index[0]]
            layout = Layout(num_graphs, node, edge, node.device)
        else:
            if pointing := [path for path, r, _ in found if r.points_at_nodes]:
                raise ValueError(
                    f"{pointing[0]!r} points at nodes, but which graph a node belongs to is not known: write "
                    "index=..., or Invariant(shared=True) for one fixed graph of all inputs"
                )
            rows = [x for _, r, x in found if not _is_shared(r, x)]
            if not rows:
                raise ValueError(
                    f"no tensor of {describe(tree)} has a batch dimension: expected at least one that is not shared"
                )
            layout = Layout(rows[0].shape[0], device=rows[0].device)
        if layout.num_elements < 1:
            raise ValueError(f"expected at least one input, got an empty batch: {describe(tree)}")
        for path, representation, x in found:
            if not _is_shared(representation, x):
                layout.owner(x, path)
                assert isinstance(self.group, Group)
                try:
                    representation.check(self.group, x.shape)
                except ValueError as error:
                    raise ValueError(f"{repr(path) if path else 'the tensor'} in `{what}`: {error}") from error
        return layout

    def move(self, g: GroupElement, spec: Spec, tree: Tree, layout: Layout, what: str = "inputs") -> Tree:
        """`tree` moved by g, one element for every input (graph) of the layout, or one for all."""
        if len(g) not in (1, layout.num_elements):
            raise ValueError(f"expected {layout.num_elements} elements (one for each input) or one, got {len(g)}")

        def act(path: str, representation: Representation, x: Tensor) -> Tensor:
            if representation.trivial:
                return x
            owner = None if len(g) == 1 else layout.owner(x, path)
            try:
                return representation(g if owner is None else g[owner], x)
            except ValueError as error:
                raise ValueError(f"{repr(path) if path else 'the tensor'} in `{what}`: {error}") from error

        return map_tree(act, self._complete(spec, tree), tree, what=what)

    def repeat(self, spec: Spec, tree: Tree, layout: Layout, times: int, what: str = "inputs") -> Tree:
        """`tree` with its inputs (graphs) `times` times over, as one larger batch."""
        if times == 1:
            return tree
        num_nodes = 0 if layout.node is None else len(layout.node)
        index = self._index_path(tree)

        def again(path: str, representation: Representation, x: Tensor) -> Tensor:
            if path == index:
                return _shifted(x, times, layout.num_elements)
            if representation.points_at_nodes:
                return _shifted(x, times, num_nodes)
            return x if _is_shared(representation, x) else x.repeat(times, *[1] * (x.ndim - 1))

        out = map_tree(again, self._complete(spec, tree), tree, what=what)
        for graph in (out, *(children(out) or {}).values()):
            if is_graph(graph):
                _repeat_graph(graph, times, num_nodes, layout)
        return out

    def _complete(self, spec: Spec, tree: Tree) -> Spec:
        """`spec` with entries for the bookkeeping of graphs: the tensor named by `index`, and `edge_index`."""
        held = children(tree)
        if self.index is None or held is None or is_graph(tree):
            return spec
        extra = {key: NodeIndex() for key in held if key == "edge_index" or str(key) == str(self.index)}
        if isinstance(spec, Mapping):
            return {**extra, **spec}
        if isinstance(spec, tuple) and len(spec) < len(held):
            spec = (*spec, *[None] * (len(held) - len(spec)))
        return (
            tuple(extra.get(i, s) if s is None else s for i, s in enumerate(spec)) if isinstance(spec, tuple) else spec
        )

    def _index_path(self, tree: Tree) -> str | None:
        if self.index is None:
            return None
        paths = [path for path, _ in tensors(tree)]
        matches = [p for p in paths if p == str(self.index)] or [
            p for p in paths if p.rpartition(".")[2] == str(self.index)
        ]
        if not matches:
            raise ValueError(f"index={self.index!r} names no tensor of the call: it holds {paths}")
        return matches[0]

    def _graph(self, tree: Tree) -> tuple[Tensor, int, Tensor | None] | None:
        """(graph of every node, number of graphs, edge index), or None where the inputs are no graphs."""
        graph = next((t for t in (tree, *(children(tree) or {}).values()) if is_graph(t)), None)
        if graph is not None:
            node = getattr(graph, "batch", None)
            if node is None:
                node = torch.zeros(graph.num_nodes, dtype=torch.long, device=next(x for _, x in tensors(graph)).device)
                return node, 1, getattr(graph, "edge_index", None)
            num_graphs = getattr(graph, "num_graphs", None)  # a Data with `batch` written by hand has none
            return node, _count(node) if num_graphs is None else int(num_graphs), getattr(graph, "edge_index", None)
        path = self._index_path(tree)
        if path is None:
            return None
        named = dict(tensors(tree))
        node = named[path]
        if node.dtype != torch.long or node.ndim != 1:
            raise ValueError(
                f"index={self.index!r}: expected whole numbers (nodes,), got {tuple(node.shape)} {node.dtype}"
            )
        edges = [x for p, x in named.items() if p.rpartition(".")[2] == "edge_index"]
        return node, _count(node), edges[0] if edges else None


def _is_shared(representation: Representation, x: Tensor) -> bool:
    return x.ndim == 0 or representation.shared


def _count(node: Tensor) -> int:
    """How many graphs the nodes belong to."""
    return int(node.max()) + 1 if len(node) else 0


def _shifted(index: Tensor, times: int, step: int) -> Tensor:
    """`index` `times` times over along its last dimension, each time `step` higher."""
    return torch.cat([index + i * step for i in range(times)], dim=-1)


def _repeat_graph(graph: Tree, times: int, num_nodes: int, layout: Layout) -> None:
    """Bring the bookkeeping of a repeated PyG graph (a copy already) up to date."""
    assert layout.node is not None
    if getattr(graph, "edge_index", None) is not None:
        graph["edge_index"] = _shifted(graph["edge_index"], times, num_nodes)
    graph["batch"] = _shifted(layout.node, times, layout.num_elements)
    ptr = getattr(graph, "ptr", None)
    if ptr is not None:
        graph["ptr"] = torch.cat([ptr[:1], _shifted(ptr[1:], times, num_nodes)])
    if "num_nodes" in graph.keys():  # noqa: SIM118 (a PyG object is no mapping)
        graph["num_nodes"] = num_nodes * times
    if hasattr(graph, "_num_graphs"):
        graph._num_graphs = layout.num_elements * times


def _parameter_names(network: Callable[..., Any] | None) -> list[str]:
    """Names of a network's positional parameters, self left out; empty where they cannot be known."""
    if network is None:
        return []
    network = getattr(network, "_orig_mod", network)  # a compiled module hides its signature
    parameters = inspect.signature(getattr(network, "forward", network)).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters if p.kind in kinds]


def as_symmetry(value: Symmetry | Mapping[str, Any]) -> Symmetry:
    """The symmetry that a dict of its arguments stands for, as a checkpoint or a configuration file holds it.

    Raises:
        TypeError: neither; a group alone does not say how its elements move anything.
    """
    if isinstance(value, Symmetry):
        return value
    if isinstance(value, Mapping):
        return Symmetry(**value)
    raise TypeError(f"expected a Symmetry, e.g. Symmetry('SO(3)', inputs='1o', outputs='1o'), got {value!r}")
