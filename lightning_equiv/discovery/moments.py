"""What is told of an input in a fixed number of features: moments of its vectors, pooled images, values in order.

Features are what the tests look at; they need not be complete, for a test with poor features only misses more. A group
element moves inputs first, and features are taken of what is moved, so that every representation will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_equiv.groups.group import Group
from lightning_equiv.symmetry.bound_tensor import BoundTensor
from lightning_equiv.symmetry.call import BoundTree

_MOST_COMPONENTS = 12  # of vectors of one thing, of which all products are taken
_MOST_SCALARS = 4  # of one thing
_MOST_ORDERED = 4  # things that are looked at one by one
_MOST_NUMBERS = 32  # of a list whose squares and neighbours are taken
_PIXELS = 8  # to which an image is pooled, along each side
_MOST_CLASSES = 12
_MOST_JOINT = 1000  # features


@dataclass(frozen=True)
class Part:
    """A tensor as rows of what belongs to one input or one thing of it.

    Attributes:
        rows: (rows, numbers), float64.
        owner: (rows,) input of each.
        things: tells apart which rows belong to the same things: "" is a row for each input.
        kind: what an element does with the numbers of a row.
        from_labels: it is of a label.
    """

    rows: Tensor
    owner: Tensor
    things: str
    kind: str
    from_labels: bool = False


def parts_of(tree: BoundTree, group: Group, labels: bool = False, classes: int | None = None) -> list[Part]:
    """The tensors of a tree as rows: scalars, vectors, and what is neither ("grid")."""
    n = tree.inputs.num
    return [_part(t, group, n, labels, classes) for t in tree.tensors if not t.shared and not t.points_at]


def _part(t: BoundTensor, group: Group, n: int, labels: bool, classes: int | None) -> Part:
    x = t.x.detach()
    if labels and not x.is_floating_point() and classes is not None and t.representation.trivial:
        x = torch.nn.functional.one_hot(x.reshape(len(x), -1)[:, 0].clamp(0, classes - 1).long(), classes)
    x = x.double()
    size = None if t.representation.trivial else t.representation.row_size(group)
    if t.representation.trivial:
        kind, rows = "scalars", x.reshape(len(x), -1)
    elif size is None:
        kind, rows = "grid", _pooled_image(x)
    else:
        kind = "vectors"
        dims = t.representation.acts_on
        x = x.movedim(dims[0], -1) if t.representation.row_dims == 1 else x.flatten(-t.representation.row_dims)
        rows = x.reshape(len(x), -1, x.shape[-1]) if x.ndim > 2 else x
    if t.owner is not None:
        flat = rows.reshape(len(rows), -1)
        return Part(flat, t.owner, f"rows of {len(t.x)}", kind, labels)
    if rows.ndim == 3:
        things = rows.shape[1]
        owner = torch.arange(n).repeat_interleave(things)
        return Part(rows.flatten(0, 1), owner, f"{things} each" if things > 1 else "", kind, labels)
    return Part(rows, torch.arange(n), "", kind, labels)


def _pooled_image(x: Tensor) -> Tensor:
    """(n, numbers): of a square grid at most 8 x 8 pixels."""
    if x.ndim >= 3 and x.shape[-1] == x.shape[-2] > 1:
        channels = x.reshape(len(x), -1, *x.shape[-2:])
        if channels.shape[1] > 3:
            channels = channels.mean(1, keepdim=True)
        if x.shape[-1] > _PIXELS:
            channels = torch.nn.functional.adaptive_avg_pool2d(channels, _PIXELS)
        return channels.flatten(1)
    flat = x.flatten(1)
    return flat if flat.shape[1] <= 256 else torch.nn.functional.adaptive_avg_pool1d(flat[:, None], 256)[:, 0]


def features(
    inputs: BoundTree, labels: BoundTree | None, group: Group, classes: int | None = None, own: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Features (n, a) of inputs, and (n, b) of inputs with their labels.

    Args:
        inputs: of a call.
        labels: beside them.
        group: whose representations move them.
        classes: how many there are, of labels that are numbers of classes.
        own: (n, c) features of inputs that stand in the place of the moments.
    """
    n = inputs.inputs.num
    parts = scalars_per_thing(parts_of(inputs, group))
    alone = _moments(parts, n) if own is None else own.double().reshape(n, -1)
    if labels is None:
        return alone, alone[:, :0]
    beside = parts_of(labels, group, True, classes)
    joint = [_moments(scalars_per_thing([*parts, *beside]), n, joint=True)]
    scalars = [p.rows for p in beside if p.kind == "scalars" and p.things == "" and len(p.rows) == n]
    for rows in scalars:
        for column in rows[:, :_MOST_CLASSES].T:
            joint.append(alone * column[:, None])
    return alone, torch.cat(joint, 1)[:, :_MOST_JOINT]


def _moments(parts: Sequence[Part], n: int, joint: bool = False) -> Tensor:
    """(n, features): first, second and fourth moments of vectors; with `joint` those in which labels take part."""
    found: list[Tensor] = []
    means: list[tuple[Tensor, bool]] = []  # of vectors, and whether labels take part
    for things in dict.fromkeys(p.things for p in parts):
        own = [p for p in parts if p.things == things]
        vectors = [p for p in own if p.kind == "vectors"]
        found += [m for p in own if p.kind == "grid" and p.from_labels == joint for m in _grid_moments(p, n)]
        if not vectors:
            continue
        weights = _weights(own, vectors, joint)
        for p in vectors:
            for weight, of_labels in weights:
                if not joint or of_labels or p.from_labels:
                    mean = _mean(weight[:, None] * p.rows, p.owner, n)
                    found.append(mean)
                    means.append((mean, of_labels or p.from_labels))
                elif joint:
                    means.append((_mean(weight[:, None] * p.rows, p.owner, n), False))
        found += _products(vectors, n, joint)
    found += _outer(means, joint) + _determinants(means, joint)
    return torch.cat(found, 1) if found else torch.zeros(n, 0, dtype=torch.float64)


def _weights(own: Sequence[Part], vectors: Sequence[Part], joint: bool) -> list[tuple[Tensor, bool]]:
    """What a thing's vectors are weighted with: 1, its scalars, its size, its place; and whether that is of a label."""
    rows, owner = len(vectors[0].rows), vectors[0].owner
    found = [(torch.ones(rows, dtype=torch.float64), False)]
    count = rows // (int(owner.max()) + 1)
    each = vectors[0].things.endswith("each")
    if each and count <= _MOST_ORDERED:  # one by one: all but the last, which the mean knows
        places = torch.eye(count, dtype=torch.float64).repeat(rows // count, 1)
        found += [(column, False) for column in places[:, :-1].T]
    for p in own:
        if p.kind == "scalars" and len(p.rows) == rows and (joint or not p.from_labels):
            found += [(column, p.from_labels) for column in p.rows[:, :_MOST_SCALARS].T]
    if vectors[0].things == "":
        return found
    size = vectors[0].rows.norm(dim=-1)
    found += [(size, False), (size.square(), False)]
    if each and count > _MOST_ORDERED:
        found.append((torch.linspace(-1, 1, count, dtype=torch.float64).repeat(rows // count), False))
    return found


def scalars_per_thing(parts: Sequence[Part]) -> list[Part]:
    """Scalars of things as rows of them: (n, 5) masses of five bodies beside (n, 5, 3) positions."""
    counts = {p.things for p in parts if p.kind == "vectors" and p.things.endswith("each")}
    found = []
    for p in parts:
        things = f"{p.rows.shape[1]} each" if p.rows.ndim == 2 else ""
        if p.kind == "scalars" and p.things == "" and things in counts:
            n, count = p.rows.shape
            p = Part(p.rows.reshape(-1, 1), torch.arange(n).repeat_interleave(count), things, p.kind, p.from_labels)
        found.append(p)
    return found


def _products(vectors: Sequence[Part], n: int, joint: bool) -> list[Tensor]:
    """Second moments of all components, and fourth ones of each."""
    x = torch.cat([p.rows for p in vectors], 1)
    of_labels = torch.cat([torch.full((p.rows.shape[1],), p.from_labels) for p in vectors])
    if x.shape[1] > _MOST_COMPONENTS:
        used = ~of_labels | joint
        kept = of_labels if joint else used
        return [_mean(x[:, kept].square(), vectors[0].owner, n)]
    a, b = torch.triu_indices(x.shape[1], x.shape[1])
    takes_part = of_labels[a] | of_labels[b]
    chosen = takes_part if joint else ~takes_part
    found = [_mean(x[:, a[chosen]] * x[:, b[chosen]], vectors[0].owner, n)]
    own = of_labels if joint else ~of_labels
    return [*found, _mean(x[:, own] ** 4, vectors[0].owner, n)]


def _outer(means: Sequence[tuple[Tensor, bool]], joint: bool) -> list[Tensor]:
    """Products of the mean vectors of labels with those of inputs, where they belong to different things."""
    if not joint:
        return []
    labels = [m for m, of_labels in means if of_labels][:2]
    inputs = [m for m, of_labels in means if not of_labels][:4]
    return [(y[:, :, None] * x[:, None]).flatten(1) for y in labels for x in inputs if y.shape[1] * x.shape[1] <= 81]


def _determinants(means: Sequence[tuple[Tensor, bool]], joint: bool) -> list[Tensor]:
    """What changes its sign under a reflection: determinants of mean vectors."""
    found = []
    for d in (2, 3):
        own = [(m, of_labels) for m, of_labels in means if m.shape[1] == d][:6]
        for i in range(len(own) - d + 1):
            chosen = own[i : i + d]
            if any(of_labels for _, of_labels in chosen) == joint:
                found.append(torch.linalg.det(torch.stack([m for m, _ in chosen], 1))[:, None])
    return found


def _grid_moments(p: Part, n: int) -> list[Tensor]:
    if len(p.rows) != n or not torch.equal(p.owner, torch.arange(n)):
        return [_mean(p.rows, p.owner, n), _mean(p.rows.square(), p.owner, n)]
    if p.rows.shape[1] > _MOST_NUMBERS:
        return [p.rows]
    return [p.rows, p.rows.square(), p.rows * p.rows.roll(-1, 1)]


def _mean(rows: Tensor, owner: Tensor, n: int) -> Tensor:
    """(n, numbers) of the rows of each input."""
    counts = torch.zeros(n, dtype=torch.float64).index_add(0, owner, torch.ones(len(owner), dtype=torch.float64))
    total = torch.zeros(n, rows.shape[1], dtype=torch.float64).index_add(0, owner, rows)
    return total / counts.clamp_min(1)[:, None]


def mean_vectors(inputs: BoundTree, group: Group) -> Tensor:
    """(n, k, d) vectors that move along with an input: means of its vectors with weights that nothing moves."""
    parts = scalars_per_thing(parts_of(inputs, group))
    n, found = inputs.inputs.num, []
    for things in dict.fromkeys(p.things for p in parts if p.kind == "vectors"):
        own = [p for p in parts if p.things == things]
        vectors = [p for p in own if p.kind == "vectors" and p.rows.shape[1] in (group.space_dim, 3)]
        for p in vectors:
            moved = p.rows[:, : group.space_dim]
            found += [_mean(weight[:, None] * moved, p.owner, n) for weight, _ in _weights(own, [p], False)]
    return torch.stack(found, 1) if found else torch.zeros(n, 0, 0, dtype=torch.float64)


def label_summary(labels: BoundTree, inputs: BoundTree, group: Group, classes: int | None) -> tuple[Tensor, list[str]]:
    """(n, numbers) what a label says, and the names of the numbers: classes, values, means of vectors over the things.

    Means of vectors are also weighted with the scalars of the things that have them: what pulls a charge up pulls
    another charge down, and the mean over both is 0.
    """
    n = inputs.inputs.num
    own = scalars_per_thing([*parts_of(inputs, group), *parts_of(labels, group, True, classes)])
    found, names = [], []
    for p in own:
        if not p.from_labels:
            continue
        if p.kind == "vectors":
            scalars = [q for q in own if q.kind == "scalars" and not q.from_labels and q.things == p.things]
            weights = [torch.ones(len(p.rows), dtype=torch.float64)]
            weights += [c for q in scalars if len(q.rows) == len(p.rows) for c in q.rows[:, :_MOST_SCALARS].T]
            for k, weight in enumerate(weights):
                found.append(_mean(weight[:, None] * p.rows, p.owner, n))
                names += [f"{'weighted ' if k else ''}mean {c}" for c in _components(p.rows.shape[1])]
        else:
            found.append(_mean(p.rows, p.owner, n)[:, :_MOST_NUMBERS])
            names += [f"{'class' if classes else 'value'} {k}" for k in range(found[-1].shape[1])]
    return torch.cat(found, 1), names


def _components(count: int) -> list[str]:
    return list("xyz"[:count]) if count <= 3 else [str(k) for k in range(count)]
