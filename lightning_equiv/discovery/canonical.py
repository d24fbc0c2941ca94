"""The orientation of an input, c(x) with c(g x) = g c(x), by vectors or a score that nothing trained."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lightning_equiv._random import derived_generator
from lightning_equiv.discovery.candidates import Candidate
from lightning_equiv.discovery.moments import mean_vectors
from lightning_equiv.discovery.orbits import moved_features
from lightning_equiv.discovery.sample import Sample
from lightning_equiv.discovery.witness import ridge_witness
from lightning_equiv.groups.group import AlgebraElement, GroupElement
from lightning_equiv.groups.product import as_group
from lightning_equiv.symmetrize.frames import gram_schmidt

_TRIES = 24  # elements among which a large group's orientation is looked for
_NUM_AXES, _ANGLES = 40, 6  # of trial rotations


def orientations(sample: Sample, candidate: Candidate, seed: int) -> GroupElement | None:
    """c(x) of every input, elements of the candidate; None where inputs have no vectors to make them of.

    A frame of two vectors (with the handedness of a third), the angle of one about an axis, or the element of a finite
    group that turns the input back to the highest value of a random score.

    Args:
        sample: the inputs.
        candidate: the group.
        seed: of the weights of vectors and features.
    """
    generator = derived_generator("canonical", seed)
    if candidate.kind == "finite":
        assert candidate.elements is not None
        best = _highest_score(sample, candidate.elements, generator)
        return candidate.elements[best].inverse()
    if candidate.kind == "other":
        return None
    vectors = mean_vectors(sample.call.inputs, candidate.group)  # (n, k, d)
    if not vectors.shape[1]:
        return None
    size = vectors.square().sum(-1).mean(0).sqrt()
    vectors = vectors[:, size > 1e-6 * size.max()] / size[size > 1e-6 * size.max()][:, None]
    weights = torch.randn(3, vectors.shape[1], generator=generator, dtype=vectors.dtype)
    mixed = torch.einsum("jk,nkd->jnd", weights, vectors)
    if candidate.kind == "axis":
        return _turn(candidate, mixed[0])
    if _parallel(mixed[0], mixed[1]):
        return None
    frame = gram_schmidt(mixed[:2].transpose(0, 1), reflections=False)
    if candidate.name != "SO(3)" and len(candidate.group.generators()):
        third = (mixed[2] * frame[..., 2]).sum(-1)
        frame = torch.cat([frame[..., :2], (frame[..., 2] * torch.where(third < 0, -1.0, 1.0)[:, None])[..., None]], -1)
    return GroupElement(candidate.group, (frame,))


def numbers_of(candidate: Candidate, c: GroupElement) -> Tensor:
    """(n, k) an orientation in numbers: entries of its matrix, cosine and sine of its angle, or which element it is."""
    if candidate.kind == "space":
        return c.matrix.flatten(1)
    if candidate.kind == "axis":
        angle = _angle(candidate, c)
        return torch.stack([angle.cos(), angle.sin(), (2 * angle).cos(), (2 * angle).sin()], 1)
    elements = candidate.elements
    assert elements is not None
    same = torch.ones(len(c), len(elements), dtype=torch.bool)
    for own, all_of_them in zip(c.coordinates, elements.coordinates, strict=True):
        apart = (own[:, None] - all_of_them[None]).abs().flatten(2) if own.ndim > 1 else own[:, None] - all_of_them
        same &= (apart.abs().amax(-1) if apart.ndim > 2 else apart.abs()) < 1e-6
    return same[:, 1:].double()


def turned_back(sample: Sample, c: GroupElement) -> Sample:
    """The sample with c(x)^-1 acting on every input and label."""
    back = c.inverse()
    call = replace(sample.call, inputs=sample.call.inputs.move(back))
    labels = None if sample.labels is None else sample.labels.move(back)
    return replace(sample, call=call, labels=labels)


def canonical_sample(sample: Sample, candidate: Candidate, seed: int) -> Sample:
    """The inputs in one orientation; by the best of some random elements where there is no better way."""
    c = orientations(sample, candidate, seed)
    if c is None:
        generator = derived_generator("canonical", seed)
        tries = candidate.draw(_TRIES, generator)
        c = tries[_highest_score(sample, tries, generator)].inverse()
    return turned_back(sample, c)


def _highest_score(sample: Sample, elements: GroupElement, generator: torch.Generator) -> Tensor:
    """(n,) which element moves an input to the highest value of a random score of its features."""
    n = sample.num_inputs
    alone = Sample(sample.symmetry, sample.call, None, sample.units)
    values = torch.stack(
        [moved_features(alone, elements[torch.full((n,), k)], 1, None, None)[0][0] for k in range(len(elements))]
    )  # (elements, n, features)
    weights = torch.randn(values.shape[-1], generator=generator, dtype=values.dtype)
    spread = values.flatten(0, 1).std(0)  # over whole orbits, so that moved inputs are scored alike
    weights = torch.where(spread > 0, weights / spread.clamp_min(1e-300), 0.0)
    return (values @ weights).argmax(0)


def _turn(candidate: Candidate, v: Tensor) -> GroupElement:
    """Rotations about the candidate's axis by the angle of v (n, d)."""
    if candidate.axis is None:
        angle = torch.atan2(v[:, 1], v[:, 0])
        return candidate.group.exp(AlgebraElement(candidate.group, (angle[:, None],)))
    a, b = _normal_to(candidate.axis)
    angle = torch.atan2(v @ b, v @ a)
    return candidate.group.exp(AlgebraElement(candidate.group, (angle[:, None] * candidate.axis,)))


def _angle(candidate: Candidate, c: GroupElement) -> Tensor:
    if candidate.axis is None:
        return torch.atan2(c.matrix[:, 1, 0], c.matrix[:, 0, 0])
    a, b = _normal_to(candidate.axis)
    turned = c.matrix @ a
    return torch.atan2(turned @ b, turned @ a)


def _normal_to(axis: Tensor) -> tuple[Tensor, Tensor]:
    """Two directions normal to an axis and to each other, right-handed."""
    least = torch.eye(3, dtype=axis.dtype)[axis.abs().argmin()]
    a = torch.linalg.cross(least, axis)
    a = a / a.norm()
    return a, torch.linalg.cross(axis, a)


def _parallel(v: Tensor, w: Tensor) -> bool:
    """Whether vectors (n, 3) give no frames, since most lie along each other."""
    across = torch.linalg.cross(v, w).norm(dim=-1) / v.norm(dim=-1).clamp_min(1e-300)
    return float(across.median()) < 1e-6 * float(w.norm(dim=-1).median())


def kept_axis(sample: Sample, table: Tensor, train: Tensor, classes: int | None) -> Tensor:
    """(3,) the axis about which the data can be turned with the least change, from the half that trains.

    How far turns about an axis u shift the mean score is, for vectors, a quadratic form u^T Q u: Q is fitted to many
    axes, and the smallest eigenvector is the answer. Witness and shift are of different quarters of the data.

    Args:
        sample: the data.
        table: (units, 1 + copies, features) of the whole group.
        train: units that may be looked at.
        classes: of the labels.
    """
    group = as_group(sample.symmetry.group)
    one, other = train[::2], train[1::2]
    _, w_one = ridge_witness(table[one])
    _, w_other = ridge_witness(table[other])
    weights = torch.zeros(len(table), table.shape[-1], dtype=table.dtype)
    weights[one], weights[other] = w_other / len(one), w_one / len(other)
    of_train = torch.isin(sample.units, train).nonzero()[:, 0]
    part = Sample(
        sample.symmetry, sample.call.take(of_train), None if sample.labels is None else sample.labels.take(of_train),
        sample.units[of_train],
    )  # fmt: skip
    own = weights[part.units] / torch.bincount(sample.units)[part.units][:, None]
    axes, angles = _axes(), torch.arange(_ANGLES) * (2 * math.pi / _ANGLES)
    n, scores = part.num_inputs, []
    for axis in axes:
        coefficients = (angles[1:, None] * axis).repeat_interleave(n, 0)
        g = group.exp(AlgebraElement(group, (coefficients,)))
        moved, _ = moved_features(part, g, _ANGLES - 1, classes, None)
        still, _ = moved_features(part, None, 1, classes, None)
        mean = (moved.sum(0) + still[0]) / _ANGLES
        scores.append(((still[0] - mean) * own).sum())
    a, b = torch.triu_indices(3, 3)
    design = axes[:, a] * axes[:, b]
    form = torch.zeros(3, 3, dtype=torch.float64)
    form[a, b] = torch.linalg.lstsq(design, torch.stack(scores)[:, None]).solution[:, 0]
    _, vectors = torch.linalg.eigh((form + form.T) / 2)
    axis = vectors[:, 0]
    return axis * axis[axis.abs().argmax()].sign()


def _axes() -> Tensor:
    """(40, 3) axes spread evenly over half a sphere."""
    k = torch.arange(_NUM_AXES, dtype=torch.float64) + 0.5
    z, turn = k / _NUM_AXES, k * math.pi * (1 + math.sqrt(5))
    radius = (1 - z * z).sqrt()
    return torch.stack([radius * turn.cos(), radius * turn.sin(), z], 1)


def angle_between(a: Tensor, b: Tensor) -> float:
    """Degrees between two axes."""
    cosine = float((a / a.norm()) @ (b / b.norm()))
    return math.degrees(math.acos(min(1.0, abs(cosine))))
