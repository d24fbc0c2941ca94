"""A call of a network with what its symmetry says of it, looked at once however often it is moved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_equiv.groups.group import AlgebraElement, Group, GroupElement, element_dtype
from lightning_equiv.representations.action import wide
from lightning_equiv.representations.representation import Representation
from lightning_equiv.symmetry.arguments import Arguments
from lightning_equiv.symmetry.bound_tensor import BoundTensor
from lightning_equiv.symmetry.graphs import Inputs, raised_by_pyg, repeat_graphs, shifted
from lightning_equiv.symmetry.subset import take_tensors
from lightning_equiv.symmetry.tree import Rebuild, Tree, describe, join, replaced

TOTAL = "total"  # the whole output beside its parts


@dataclass(frozen=True)
class BoundTree:
    """A tree of tensors of a call: its arguments, its output, or a batch.

    Attributes:
        name: of the spec that describes it: "inputs", "outputs" or "batch".
        tensors: with their representations and owners.
        inputs: of the call.
        put: puts tensors in the places of `tensors`.
        times: how often the inputs have been repeated since `put` was made.
        number: dotted name of the whole number that says how many graphs there are; None without.
    """

    name: str
    tensors: tuple[BoundTensor, ...]
    inputs: Inputs
    put: Rebuild
    times: int = 1
    number: str | None = None

    @property
    def tree(self) -> Tree:
        """The tensors in their containers."""
        return self._holding(t.x for t in self.tensors)

    def _holding(self, tensors: Iterator[Tensor]) -> Tree:
        """The containers with others in the places of `tensors`."""
        tree = self.put(tensors)
        if self.times > 1:
            steps = {t.path: self.inputs.count(t.points_at) // self.times for t in self.tensors if t.points_at}
            repeat_graphs(tree, self.inputs.first(self.times), self.times, steps)
        return tree if self.number is None else replaced(tree, self.number, self.inputs.num)

    def repeat(self, times: int) -> BoundTree:
        """The tree of the same inputs `times` times over, as one of larger tensors."""
        if times == 1:
            return self
        inputs = self.inputs.repeat(times)
        owners = {id(None): None, id(self.inputs.node): inputs.node, id(self.inputs.edge): inputs.edge}

        def again(t: BoundTensor) -> BoundTensor:
            if t.owner is not None and id(t.owner) not in owners:
                owners[id(t.owner)] = shifted(t.owner, times, self.inputs.num)
            owner = owners[id(t.owner)]
            if t.points_at:
                x = t.representation.repeated(t.x, times, self.inputs.count(t.points_at))
                return replace(t, x=x, owner=owner)
            if t.shared:
                return t
            return replace(t, x=t.x.repeat(times, *[1] * (t.x.ndim - 1)), owner=owner)

        return replace(self, tensors=tuple(map(again, self.tensors)), inputs=inputs, times=self.times * times)

    def take(self, index: Tensor) -> BoundTree:
        """The tree of some inputs only, as it is bound from these alone.

        What the whole call shares is passed on. Of graphs, the nodes and edges and all that belongs to them are taken;
        they lie by graph, in the order of `index`, those of one graph in their old order, and numbers of nodes, edges
        and graphs are those of the smaller call. Gradients flow to the tensors of the whole call.

        Args:
            index: (m,) distinct whole numbers of inputs, in the order that the smaller call will have. On the CPU it is
                not waited for; where it lies on a device, the host waits for it, and for the sizes of graphs once.

        Raises:
            ValueError: not distinct numbers of inputs; or graphs that numbers of nodes or edges join.
        """
        tree = None if self.inputs.node is None else self.tree
        tensors, inputs, update = take_tensors(self.tensors, self.inputs, tree, index)
        return BoundTree(self.name, tensors, inputs, lambda x: update(self._holding(x)), number=self.number)

    def move(self, g: GroupElement, times: int = 1) -> BoundTree:
        """The tree `times` times over, as one of larger tensors, moved.

        Args:
            g: one element for every input, `times` times: element k num + i moves input i for the k-th time; or one for
                all.
            times: how often each input is repeated.

        Raises:
            ValueError: another number of elements.
        """
        tree = self.repeat(times)
        if len(g) not in (1, tree.inputs.num):
            raise ValueError(f"expected {tree.inputs.num} elements (one for each input) or one, got {len(g)}")

        def moved(t: BoundTensor) -> BoundTensor:
            own = g if t.owner is None or len(g) == 1 else g[t.owner]
            return replace(t, x=act(self.name, t.path, t.representation, own, t.x))

        return replace(tree, tensors=tuple(map(moved, tree.tensors)))

    def derivative(self, a: AlgebraElement) -> BoundTree:
        """d/dt of the tree moved by exp(t a), at t = 0: A x in the place of every tensor x, 0 where nothing moves it.

        Args:
            a: one element of the Lie algebra for every input, or one for all.

        Raises:
            ValueError: another number of elements.
            NotImplementedError: a representation that does not know its infinitesimal action; the tensor is named.
        """
        if len(a) not in (1, self.inputs.num):
            raise ValueError(f"expected {self.inputs.num} elements (one for each input) or one, got {len(a)}")

        def derived(t: BoundTensor) -> BoundTensor:
            if t.representation.trivial:
                return replace(t, x=torch.zeros_like(t.x))
            own = a if t.owner is None or len(a) == 1 else a[t.owner]
            return replace(t, x=act_infinitesimally(self.name, t.path, t.representation, own, t.x))

        return replace(self, tensors=tuple(map(derived, self.tensors)))

    def holding(self, tensors: Iterable[Tensor]) -> BoundTree:
        """The same tree with others in the places of `tensors`, in their order and shapes."""
        return replace(self, tensors=tuple(replace(t, x=x) for t, x in zip(self.tensors, tensors, strict=True)))

    def check_unchanged(self) -> None:
        """ValueError for a tensor that was changed in place since it was bound."""
        changed = [t.path for t in self.tensors if t.version is not None and t.x._version != t.version]
        if changed:
            raise ValueError(
                f"the network changes {changed[0]!r} of its `{self.name}` in place, so that f(x) and f(g x) are not of "
                "the same x: let it work on a copy, x = x.clone()"
            )

    def parts(self) -> dict[str, Tensor]:
        """The parts of the tensors that move independently, in float32 at least; what is shared is left out.

        Names: "1o" for irreps, "output" for any other representation; nested, "path.1o" and "path".

        Raises:
            ValueError: complex numbers; nothing but shared tensors.
        """
        found: dict[str, Tensor] = {}
        for t in self.tensors:
            if t.representation.shared:
                continue
            if t.x.is_complex():
                place = t.path or "the output"
                raise ValueError(f"expected real numbers at {place!r}, got {t.x.dtype}: return torch.view_as_real(x)")
            if t.x.ndim == 0:
                self.inputs.owner(t.x, t.path, t.representation)  # which it has not: an error
            found.update((part_name(t.path, name), part) for name, part in t.representation.parts(wide(t.x)).items())
        if not found:
            raise ValueError(
                f"expected the network to return tensors that `{self.name}` names, got {describe(self.tree)}"
            )
        return found

    def part_owners(self) -> dict[str, Tensor | None]:
        """The owner of every row of each part, named as in `parts()`; None where row i belongs to input i."""
        return {
            part_name(t.path, name): t.owner
            for t in self.tensors
            if not t.representation.shared
            for name in t.representation.part_names
        }

    def squared_norms(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """|x|^2 (inputs,) of parts named as in `parts()`, and of all together as "total"; a graph's rows are summed.

        In float64, where a device has it: squares of float32 numbers beyond 1e-18 and 1e18 are none of float32.
        """
        squares: dict[str, Tensor] = {}
        for t in self.tensors:
            for name in t.representation.part_names:
                part = part_name(t.path, name)
                if part in parts:
                    x = parts[part].to(element_dtype(parts[part].device))
                    rows = x.square().flatten(1).sum(-1) if x.ndim > 1 else x.square()
                    owned = rows if t.owner is None else rows.new_zeros(self.inputs.num).index_add(0, t.owner, rows)
                    squares[part] = owned
        return {TOTAL: torch.stack(list(squares.values())).sum(0), **squares}

    def gram_matrices(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """<x_i, x_j> (inputs, k, k) of k vectors, as `squared_norms` gives |x|^2 of one.

        Args:
            parts: (k, rows, ...), named as in `parts()`.
        """
        found: dict[str, Tensor] = {}
        for t in self.tensors:
            for name in t.representation.part_names:
                part = part_name(t.path, name)
                if part in parts:
                    x = parts[part].to(element_dtype(parts[part].device))
                    x = x.flatten(2) if x.ndim > 2 else x[..., None]
                    rows = x.transpose(0, 1) @ x.permute(1, 2, 0)  # [row, i, j] = sum_c x_i[row, c] x_j[row, c]
                    owned = rows.new_zeros(self.inputs.num, *rows.shape[1:])
                    found[part] = rows if t.owner is None else owned.index_add(0, t.owner, rows)
        return {TOTAL: torch.stack(list(found.values())).sum(0), **found}

    def pairs(self, other: BoundTree) -> dict[str, tuple[Tensor, Tensor]]:
        """The tensors of two trees of one spec side by side, by name; what a whole call shares is left out."""
        left, right = ({t.path: t.x for t in tree.tensors if not t.representation.shared} for tree in (self, other))
        if left.keys() != right.keys():
            raise ValueError(f"expected tensors at equal places, got {sorted(left)} and {sorted(right)}")
        return {path: (x, right[path]) for path, x in left.items()}


@dataclass(frozen=True)
class BoundCall:
    """A network's call, as its symmetry sees it: made by `Symmetry.bind`.

    Attributes:
        inputs: the arguments.
        unpack: their tree to (args, kwargs).
        bind_output: what binds an output to these inputs.
    """

    inputs: BoundTree
    unpack: Callable[[Tree], Arguments]
    bind_output: Callable[[Tree, Inputs], BoundTree]

    @property
    def num_inputs(self) -> int:
        """How many inputs, or graphs, there are: one element moves each."""
        return self.inputs.inputs.num

    @property
    def device(self) -> torch.device | None:
        """Where the tensors lie."""
        return self.inputs.inputs.device

    def take(self, index: Tensor) -> BoundCall:
        """The call with some of its inputs, or graphs, only; see `BoundTree.take`.

        Args:
            index: (m,) distinct whole numbers of inputs, in the order that the smaller call will have.

        Raises:
            ValueError: not distinct numbers of inputs; or graphs that numbers of nodes or edges join.

        Examples:
            >>> from lightning_equiv import Symmetry
            >>> x = torch.arange(12.0).reshape(4, 3)
            >>> call = Symmetry("SO(3)", "1o", "1o").bind(None, (x,)).take(torch.tensor([2, 0]))
            >>> call.num_inputs, call.arguments()[0]
            (2, (tensor([[6., 7., 8.],
                    [0., 1., 2.]]),))
        """
        return replace(self, inputs=self.inputs.take(index))

    def arguments(self) -> Arguments:
        """(args, kwargs) of the call as it is, in containers of its own."""
        return self.unpack(self.inputs.tree)

    def move(self, g: GroupElement, times: int = 1) -> Arguments:
        """(args, kwargs) of the call `times` times over, moved; see `BoundTree.move`."""
        return self.unpack(self.inputs.move(g, times).tree)

    def output(self, y: Tree, times: int = 1) -> BoundTree:
        """An output of the call, or of the call `times` times over.

        Raises:
            ValueError: it is not what `outputs` says.
        """
        return self.bind_output(y, self.inputs.inputs.repeat(times))

    def move_output(self, g: GroupElement, y: Tree, times: int = 1) -> Tree:
        """g y for an output y of the call, `times` times over; see `BoundTree.move`."""
        return self.output(y).move(g, times).tree


def act(name: str, path: str, representation: Representation, g: GroupElement, x: Tensor) -> Tensor:
    """rho(g) x, where errors name the tensor."""
    if representation.trivial:
        return x
    try:
        return representation(g, x)
    except ValueError as error:
        raise ValueError(f"{path or 'the tensor'!r} in `{name}`: {error}") from error


def act_infinitesimally(name: str, path: str, representation: Representation, a: AlgebraElement, x: Tensor) -> Tensor:
    """d/dt rho(exp(t a)) x at t = 0, where errors name the tensor."""
    try:
        return representation.infinitesimal(a, x)
    except (NotImplementedError, ValueError) as error:
        raise type(error)(f"{path or 'the tensor'!r} in `{name}`: {error}") from error


def part_name(path: str, name: str) -> str:
    """The name of a part of the tensor at `path`."""
    if name or path == TOTAL:  # an output called "total" is not the total
        return join(path, name or "output")
    return path or "output"


def bind_tensors(
    name: str,
    group: Group,
    found: list[tuple[str, Representation, Tensor]],
    put: Rebuild,
    inputs: Inputs,
    index: str | None = None,
    number: str | None = None,
) -> BoundTree:
    """The tensors that `flatten` found, each with its owner, and checked.

    Args:
        name: of the spec.
        group: whose elements will move them.
        found: paths, representations and tensors.
        put: puts others in their places.
        inputs: of the call.
        index: dotted name of the tensor that says which graph each node belongs to.
        number: dotted name of the whole number that says how many graphs there are.

    Raises:
        ValueError: a number of rows that is not the inputs', or a shape that the representation does not fit.
    """
    bound = []
    for path, representation, x in found:
        shared = representation.shared or x.ndim == 0
        by_pyg = inputs.pyg and name != "outputs"
        owner = None if shared else inputs.owner(x, path, representation, by_pyg)
        if not shared:
            if x.layout is not torch.strided:
                raise ValueError(f"{path or 'the tensor'!r} in `{name}`: expected a dense tensor, got {x.layout}")
            try:
                representation.check(group, x.shape)
            except ValueError as error:
                raise ValueError(f"{path or 'the tensor'!r} in `{name}`: {error}") from error
        points_at = None if inputs.node is None else "graph" if path == index else representation.points_at
        if points_at == "edge" and inputs.edge is None:
            raise ValueError(f"{path!r} points at edges, which are not known: call them `edge_index` or NodeIndex()")
        may_point = (shared and name == "inputs" and inputs.node is not None) or (by_pyg and raised_by_pyg(path))
        if points_at is None and may_point:
            _refuse_whole_numbers(path, representation, x)
        version = None if x.is_inference() else x._version
        bound.append(BoundTensor(path, representation, x, owner, shared, points_at, version))
    return BoundTree(name, tuple(bound), inputs, put, number=number)


def _refuse_whole_numbers(path: str, representation: Representation, x: Tensor) -> None:
    """Numbers of nodes that are not declared as such would stay as they are where graphs are repeated."""
    if x.ndim and representation.per is None and not (x.is_floating_point() or x.dtype == torch.bool):
        raise ValueError(
            f"{path!r} holds whole numbers that may point: write NodeIndex() if they are numbers of nodes, "
            "EdgeNumbers() of edges (of triplets, say), GraphNumbers() of graphs, Pointer() where each graph's nodes "
            "begin, and if they are none of these Per('call', Invariant()), or Per('node', ...) or the like"
        )
