"""From data to inputs and labels, bound once, in an order that does not depend on the order of the data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_equiv.representations.invariant import Invariant
from lightning_equiv.symmetry.arguments import Arguments
from lightning_equiv.symmetry.batches import TRAINING_FIRST, batches_of
from lightning_equiv.symmetry.bound_tensor import BoundTensor
from lightning_equiv.symmetry.call import BoundCall, BoundTree
from lightning_equiv.symmetry.symmetry import Symmetry
from lightning_equiv.symmetry.tree import Tree, children, describe, held_at, is_graph, replaced, tensors

FEWEST = 20  # independent inputs
_NEAR = 0.5  # squared distance of neighbours in the data, in that of any two, below which they look dependent
_BESIDE = ("edge_index",)


@dataclass(frozen=True)
class Sample:
    """Inputs with their labels, each once.

    Attributes:
        symmetry: says how they are moved.
        call: the inputs.
        labels: moved as the symmetry's outputs; None without.
        units: (n,) the number of the independent unit (trajectory, molecule) of each input.
        notes: what was found on the way.
    """

    symmetry: Symmetry
    call: BoundCall
    labels: BoundTree | None
    units: Tensor
    notes: tuple[str, ...] = ()

    @property
    def num_inputs(self) -> int:
        """How many inputs there are."""
        return self.call.num_inputs

    @property
    def num_units(self) -> int:
        """How many of them are independent."""
        return int(self.units.max()) + 1


def sample_of(
    data: Any,
    symmetry: Symmetry,
    labels: Any = None,
    groups: Any = None,
    inputs: Callable[[Any], Any] | None = None,
    num_inputs: int | None = None,
) -> Sample:
    """What is tested: the inputs that a symmetry names in the data, and their labels.

    Args:
        data: a batch, a list or loader of batches, a data set, or a LightningDataModule, of which the training set is
            taken.
        symmetry: whose `inputs` name what is moved; labels are moved as its `outputs`.
        labels: a tensor or tree of labels; or where they are in a batch: a key, an index, a path, a function of it.
        groups: which inputs belong together, such as the frames of one trajectory: a tensor (inputs,), or where it is
            in a batch.
        inputs: batch -> what is moved, where that is not seen from the symmetry's `inputs`.
        num_inputs: at most so many are taken, at random.

    Raises:
        ValueError: fewer than 20 independent inputs, labels that are all equal, or data that do not fit.
    """
    batches = _merged_graphs(list(batches_of(data, TRAINING_FIRST)))
    if not batches:
        raise ValueError(f"expected at least {FEWEST} inputs, got no batch at all")
    calls = [symmetry.bind(None, *_arguments(batch, symmetry, inputs)) for batch in batches]
    call = _joined(symmetry, calls)
    y = _looked_up(batches, labels, "labels")
    bound = None if y is None else _bound_labels(symmetry, calls, call, y)
    ids = _identity(_looked_up(batches, groups, "groups"), call.num_inputs)
    notes = [] if groups is not None else _dependent(call)
    digests = _digests([*call.inputs.tensors, *(() if bound is None else bound.tensors)], call.num_inputs)
    order = sorted({digest: i for i, digest in reversed(list(enumerate(digests)))}.items())
    dropped = call.num_inputs - len(order)
    if dropped:
        notes.append(f"{dropped} of {call.num_inputs} inputs are copies of others, and were left out.")
    chosen = torch.tensor([i for _, i in order[:num_inputs]])
    if num_inputs is not None and len(order) > num_inputs:
        notes.append(f"{num_inputs} of {len(order)} inputs were taken, at random.")
    units = _numbered([ids[i] for i in chosen.tolist()])
    found = Sample(symmetry, call.take(chosen), None if bound is None else bound.take(chosen), units, tuple(notes))
    _check(found)
    return found


def _check(sample: Sample) -> None:
    """ValueError for what no test can say anything of."""
    if sample.num_units < FEWEST:
        grouped = sample.num_units < sample.num_inputs
        what = f"{sample.num_units} groups of inputs" if grouped else f"{sample.num_inputs} inputs"
        more = "trajectories or molecules" if grouped else "of them"
        raise ValueError(
            f"expected at least {FEWEST} independent inputs, got {what}: half of them train the test and half are "
            f"tested, which tells nothing below that number; collect more {more}"
        )
    if sample.labels is not None:
        held = [t.x for t in sample.labels.tensors if not t.shared]
        if all(bool((x == x.reshape(-1)[0]).all()) for x in held):
            raise ValueError(
                f"the labels of all {sample.num_inputs} inputs are equal, so that nothing about them can be tested: "
                "leave `labels` out, or say where the true ones are"
            )
    for t in (*sample.call.inputs.tensors, *(() if sample.labels is None else sample.labels.tensors)):
        if t.x.is_floating_point() and not bool(torch.isfinite(t.x).all()):
            raise ValueError(f"expected finite numbers, got NaN or infinity in {t.path or 'the tensor'!r}")


def _arguments(batch: Any, symmetry: Symmetry, inputs: Callable[[Any], Any] | None) -> Arguments:
    """What the symmetry's `inputs` name in a batch, as the arguments of a call."""
    spec = symmetry.inputs
    if inputs is not None:
        value = inputs(batch)
        if isinstance(value, tuple):
            return value, {}
        return ((), dict(value)) if isinstance(value, Mapping) else ((value,), {})
    if is_graph(batch):
        return (batch,), {}
    if isinstance(spec, Mapping) and isinstance(batch, Mapping):
        beside = [str(key) for key in (symmetry.index, symmetry.num_graphs) if key is not None]
        wanted = [key for key in batch if key in spec or key in beside or (beside and key in _BESIDE)]
        if missing := [key for key in spec if key not in batch]:
            raise ValueError(f"`inputs` of the symmetry name {missing[0]!r}, and a batch is {describe(batch)}")
        return ({key: batch[key] for key in wanted},), {}
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(spec, tuple) and isinstance(batch, tuple | list) and len(batch) >= len(spec):
        return tuple(batch[: len(spec)]), {}
    held = children(batch)
    if isinstance(batch, tuple | list) and len(batch) and children(batch[0]) is not None:
        return _arguments(batch[0], symmetry, None)  # (inputs, labels)
    if isinstance(spec, tuple) and len(spec) == 1 and isinstance(batch, Mapping) and len(batch) == 1:
        return (next(iter(batch.values())),), {}
    if held is None or isinstance(spec, tuple) or isinstance(batch, tuple | list):
        raise ValueError(
            f"`inputs` of the symmetry are {spec!r} and a batch is {describe(batch)}: write `inputs` as a dict of the "
            "batch's keys, or say inputs=lambda batch: (batch['x'],)"
        )
    return (batch,), {}


def _merged_graphs(batches: list[Any]) -> list[Any]:
    """PyG graphs as one batch of them; all else as it is."""
    if not batches or not is_graph(batches[0]):
        return batches
    from torch_geometric.data import Batch

    found = [graph for b in batches for graph in (b.to_data_list() if hasattr(b, "to_data_list") else [b])]
    return [Batch.from_data_list(found)]


def _is_place(where: Any) -> bool:
    """Whether it says where something is, and is not the thing itself."""
    if isinstance(where, Mapping):
        return all(map(_is_place, where.values()))
    path = isinstance(where, list | tuple) and all(isinstance(k, str | int) for k in where) and len(where) < FEWEST
    return path or callable(where) or isinstance(where, str | int)


def _looked_up(batches: Sequence[Any], where: Any, what: str) -> list[Tree] | None:
    """The labels or groups of each batch."""
    if where is None:
        return None
    if _is_place(where):
        return [held_at(batch, where, what) for batch in batches]
    if len(batches) != 1:
        raise ValueError(f"expected `{what}` to say where they are in a batch, got values, and {len(batches)} batches")
    return [torch.as_tensor(where) if next(tensors(where), None) is None else where]


def _joined(symmetry: Symmetry, calls: Sequence[BoundCall]) -> BoundCall:
    """Several calls as one; numbers of nodes and graphs go on where those of the call before end."""
    if len(calls) == 1:
        return calls[0]
    first, nodes, graphs = calls[0].inputs, 0, 0
    columns: list[list[Tensor]] = [[] for _ in first.tensors]
    for call in calls:
        for column, t in zip(columns, call.inputs.tensors, strict=True):
            shift = {"node": nodes, "graph": graphs, None: 0}.get(t.points_at, 0)
            column.append(t.x + shift if t.points_at else t.x)
        node = call.inputs.inputs.node
        nodes, graphs = nodes + (0 if node is None else len(node)), graphs + call.num_inputs
    joined = [
        column[0] if t.shared and not t.points_at else torch.cat(column, -1 if t.points_at else 0)
        for column, t in zip(columns, first.tensors, strict=True)
    ]
    tree = first.put(iter(joined))
    if first.number is not None:
        tree = replaced(tree, first.number, graphs)
    return symmetry.bind(None, *calls[0].unpack(tree))


def _bound_labels(symmetry: Symmetry, calls: Sequence[BoundCall], call: BoundCall, y: list[Tree]) -> BoundTree:
    """The labels of all inputs, as the symmetry's outputs; class numbers are not moved."""
    if all(isinstance(part, Tensor) and not part.is_floating_point() for part in y):
        classes = Symmetry(symmetry.group, symmetry.inputs, Invariant(), index=symmetry.index)
        return classes.bind_output(torch.cat([part.reshape(len(part), -1)[:, 0] for part in y]), call.inputs.inputs)
    bound = [own.output(part) for own, part in zip(calls, y, strict=True)]
    whole = [torch.cat([b.tensors[k].x for b in bound]) for k in range(len(bound[0].tensors))]
    return call.output(bound[0].put(iter(whole)))


def _identity(groups: list[Tree] | None, n: int) -> list[Any]:
    """Whatever tells the groups apart, for each input."""
    if groups is None:
        return list(range(n))
    found = [value for part in groups for value in torch.as_tensor(part).tolist()]
    if len(found) != n:
        raise ValueError(f"expected `groups` to have a number for each of {n} inputs, got {len(found)}")
    return found


def _numbered(ids: Sequence[Any]) -> Tensor:
    """0, 1, .. in the order in which they come."""
    numbers: dict[Any, int] = {}
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in ids])


def _digests(tensors: Sequence[BoundTensor], n: int) -> list[bytes]:
    """What tells one input from another, whatever else is in the data."""
    hashes = [hashlib.blake2b(digest_size=16) for _ in range(n)]
    for t in tensors:
        if t.shared or t.points_at:
            continue
        rows, owner = t.x.detach().cpu().reshape(len(t.x), -1), t.owner
        rows = (rows.double() if rows.is_floating_point() else rows.long()) + 0  # -0. is 0.
        if owner is None:
            for h, row in zip(hashes, rows.numpy(), strict=True):
                h.update(row.tobytes())
        else:
            for row, i in zip(rows.numpy(), owner.tolist(), strict=True):
                hashes[i].update(row.tobytes())
    return [h.digest() for h in hashes]


def _dependent(call: BoundCall) -> list[str]:
    """A word of warning where inputs look like the frames of a trajectory."""
    for t in call.inputs.tensors:
        if not t.shared and t.owner is None and t.x.is_floating_point() and not t.representation.trivial:
            x = t.x.detach().double().reshape(len(t.x), -1)
            near, any_two = (x[1:] - x[:-1]).square().sum(-1).mean(), 2 * x.var(0).sum()
            if len(x) > 2 and bool(near < _NEAR * any_two):
                return [
                    "Inputs that follow each other in the data resemble each other, as the frames of a trajectory do. "
                    "The p-values hold for independent inputs: say by `groups=` which belong together."
                ]
    return []
