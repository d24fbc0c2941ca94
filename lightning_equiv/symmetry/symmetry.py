"""A symmetry: a group, and how its elements move everything that goes into and comes out of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_equiv.groups.group import Group, GroupElement
from lightning_equiv.groups.product import as_group
from lightning_equiv.representations.invariant import NodeIndex
from lightning_equiv.representations.representation import Representation
from lightning_equiv.symmetry.arguments import pack
from lightning_equiv.symmetry.call import BoundCall, BoundTree, act, bind_tensors, part_name
from lightning_equiv.symmetry.graphs import Inputs, find_inputs, index_path, number_path
from lightning_equiv.symmetry.tree import Spec, Tree, as_spec, declared, flatten, leaves, named


@dataclass(frozen=True)
class Symmetry:
    """A group, and how its elements move a network's inputs and outputs.

        f(g x) = g f(x)    for every g in the group: f is equivariant.

    Args:
        group: the group, or its name: "SO(3)", "O(3)", "SE(3)", "E(3)", "SO(2)", "C4", "D4", "S5", "SO(3) x S5".
        inputs: how an element moves the arguments of the network. A tuple goes by position, a dict by the arguments'
            names, and positions where these have none: {0: "1o", "mass": "0e"} for `forward(*args, **kwargs)` (or it
            mirrors the one dict, dataclass or PyG graph that the network takes), nested as the arguments are; a single
            representation is the only argument. Leaves are representations, irreps such as "16x0e+1o", or callables.
            Every tensor must be named; what nothing moves is `Invariant()`.
        outputs: how an element moves what the network returns.
        batch: how an element moves a batch of the dataloader, for strategies that move labels (GroupAugmentation).
        index: the name of the tensor that says which graph each node belongs to, so that every graph gets an
            element of its own. A PyG graph brings its own.
        num_graphs: beside `index`, the name of an argument that says how many graphs there are: a whole number, or a
            tensor with a row for each (or a `Pointer`). Without it the largest entry of `index` is asked for, and the
            host waits for the device once a call.

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
    num_graphs: str | int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "group", as_group(self.group))
        for name in ("inputs", "outputs", "batch"):
            spec = as_spec(getattr(self, name))
            if name == "inputs" and isinstance(spec, Representation):
                spec = (spec,)  # the only argument
            object.__setattr__(self, name, spec)
            for path, representation in declared(getattr(self, name)):
                if representation.ignored and name != "outputs":
                    raise ValueError(f"`{name}` ignores {path!r}: Ignored() is for outputs, an input takes Invariant()")
                try:
                    representation.check_group(as_group(self.group))
                except ValueError as error:
                    raise ValueError(f"`{name}`: {error}") from None
        for name in ("inputs", "outputs"):
            if getattr(self, name) is None:
                raise ValueError(
                    f"expected `{name}` to say how elements of {self.group} move the network's {name}, got None"
                )
        if self.num_graphs is not None and self.index is None:
            raise ValueError(f"num_graphs={self.num_graphs!r} goes with `index`, which graph each node belongs to")

    # ---- a call, its output, a batch ---------------------------------------------------------------------------------
    def bind(
        self, network: Callable[..., Any] | None, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> BoundCall:
        """A network's call as this symmetry sees it, to be moved as often as one likes.

        Args:
            network: whose signature matches positions with names, where `inputs` goes by one and the call by the
                other; None will do elsewhere. It is not called.
            args: positional arguments of the call.
            kwargs: keyword arguments of the call.

        Raises:
            ValueError: a tensor that `inputs` does not name or does not fit, an empty batch, or a dict of specs that
                can be read in two ways.

        Examples:
            >>> import torch
            >>> from lightning_equiv import SO3
            >>> call = Symmetry("SO(3)", inputs="1o", outputs="1o").bind(None, (torch.randn(8, 3),))
            >>> (gx,), _ = call.move(SO3().sample(16), times=2)
            >>> call.num_inputs, gx.shape
            (8, torch.Size([16, 3]))
        """
        tree, unpack = pack(self.inputs, network, args, kwargs or {})
        return BoundCall(self._bind("inputs", tree), unpack, self.bind_output)

    def bind_output(self, output: Tree, inputs: Inputs) -> BoundTree:
        """What a network returned for these inputs."""
        found, put = flatten("outputs", self.outputs, output)
        return bind_tensors("outputs", as_group(self.group), found, put, inputs)

    def bind_batch(self, batch: Tree) -> BoundTree:
        """A batch of the dataloader, as `batch` describes it."""
        return self._bind("batch", batch)

    def _bind(self, name: str, tree: Tree) -> BoundTree:
        """Arguments or a batch, with their own inputs."""
        held = {} if self.index is None else dict(leaves(tree))

        def undeclared(path: str) -> Representation | None:
            """The index of nodes, and edges beside it, need no spec."""
            known = self.index is not None and (named(path, self.index) or named(path, "edge_index"))
            return NodeIndex() if known else None

        found, put = flatten(name, getattr(self, name), tree, undeclared)
        inputs = find_inputs(tree, found, self.index, self.num_graphs)
        index = None if self.index is None or inputs.node is None else index_path(held, self.index)
        number = None if index is None or self.num_graphs is None or inputs.pyg else number_path(held, self.num_graphs)
        return bind_tensors(name, as_group(self.group), found, put, inputs, index, number)

    @property
    def output_parts(self) -> tuple[str, ...]:
        """Names of the parts of an output, as `BoundTree.parts` gives them."""
        found = [(path, r) for path, r in declared(self.outputs) if not r.shared]
        return tuple(dict.fromkeys(part_name(path, name) for path, r in found for name in r.part_names))

    def move_inputs(
        self, g: GroupElement, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) of a network call moved by g: one element for each input (graph), or one for all."""
        return self.bind(None, args, kwargs).move(g)

    def move_outputs(self, g: GroupElement, output: Tree) -> Tree:
        """A network's output moved by g, one element for each row (or one for all); for graphs see `bind`."""
        found, put = flatten("outputs", self.outputs, output)
        return put(x if x.ndim == 0 else act("outputs", path, r, g, x) for path, r, x in found)

    def move_batch(self, g: GroupElement, batch: Tree) -> Tree:
        """A batch of the dataloader moved by g, as `batch` says."""
        return self.bind_batch(batch).move(g).tree


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
