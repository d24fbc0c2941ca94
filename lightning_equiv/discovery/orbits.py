"""The orbits of a sample: features of every input, and of copies of it that elements of a group have moved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_equiv._random import derived_generator
from lightning_equiv.discovery.candidates import Candidate
from lightning_equiv.discovery.moments import features
from lightning_equiv.discovery.sample import Sample
from lightning_equiv.groups.group import GroupElement
from lightning_equiv.symmetry.arguments import parameters
from lightning_equiv.symmetry.call import BoundTree

_COPIES = 63  # of each input, of an infinite or a large group
_NUMBERS = 6e7  # of a table
_ROWS = 20000  # moved at a time

Features = Callable[..., Any]


@dataclass(frozen=True)
class Orbits:
    """What the tests of one group look at. Means over the inputs of a unit stand for the unit.

    Attributes:
        table: (units, 1 + copies, features); first the data as they are, then moved.
        alone: how many of the features, the first, are of inputs without labels.
    """

    table: Tensor
    alone: int

    def of_inputs(self) -> Tensor:
        """Without labels."""
        return self.table[..., : self.alone]


def moved_features(
    sample: Sample, g: GroupElement | None, times: int, classes: int | None, witness: Features | None
) -> tuple[Tensor, int]:
    """(times, n, features) of a sample moved by g, one element for each input and time; and how many are of inputs.

    Raises:
        ValueError: a witness that does not return a row of features for each input.
    """
    group = sample.symmetry.group
    inputs, labels = sample.call.inputs, sample.labels
    moved = inputs if g is None else inputs.move(g, times)
    beside: BoundTree | None = None
    if labels is not None:
        beside = labels if g is None else labels.move(g, times)
    own = None
    if witness is not None:
        args, kwargs = sample.call.unpack(moved.tree)
        with torch.no_grad():
            own = called(witness, args, kwargs)
        n = sample.num_inputs * (1 if g is None else times)
        if not isinstance(own, Tensor) or own.shape[:1] != (n,):
            got = tuple(own.shape) if isinstance(own, Tensor) else type(own).__name__
            raise ValueError(f"expected the witness to return features ({n}, k), a row for each input, got {got}")
    alone, joint = features(moved, beside, group, classes, own)  # type: ignore[arg-type]
    found = torch.cat([alone, joint], 1)
    return found.reshape(1 if g is None else times, sample.num_inputs, found.shape[1]), alone.shape[1]


def called(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a function returns; a dict of arguments is given by name to one that takes these names."""
    if len(args) == 1 and not kwargs and isinstance(args[0], dict) and set(args[0]) <= set(parameters(function)):
        return function(**args[0])
    return function(*args, **kwargs)


def orbits_of(sample: Sample, candidate: Candidate, classes: int | None, witness: Features | None, seed: int) -> Orbits:
    """Features of the data, and of copies moved by Haar elements, or by all elements of a finite group.

    The inputs of one unit are moved by one element.

    Args:
        sample: the data.
        candidate: the group.
        classes: how many the labels are numbers of.
        witness: features of the user's own.
        seed: of the elements, with the candidate's name.
    """
    first, alone = moved_features(sample, None, 1, classes, witness)
    n, width = sample.num_inputs, first.shape[-1]
    if candidate.elements is not None:
        copies = len(candidate.elements) - 1
    else:
        copies = int(max(8, min(_COPIES, _NUMBERS / (n * max(1, width)))))
    generator = derived_generator("orbits", seed, candidate.name)
    at_once, columns = max(1, _ROWS // n), [_means(first, sample)]
    for start in range(0, copies, at_once):
        times = min(at_once, copies - start)
        if candidate.elements is not None:
            number = torch.arange(start + 1, start + times + 1).repeat_interleave(n)
            g = candidate.elements[number]
        else:
            own = candidate.draw(times * sample.num_units, generator)
            g = own[(torch.arange(times)[:, None] * sample.num_units + sample.units).flatten()]
        found, _ = moved_features(sample, g, times, classes, witness)
        columns.append(_means(found, sample))
    return Orbits(torch.cat(columns, 1), alone)


def _means(found: Tensor, sample: Sample) -> Tensor:
    """(times, n, features) to means over units (units, times, features)."""
    if sample.num_units == sample.num_inputs:
        return found.transpose(0, 1)
    counts = torch.bincount(sample.units, minlength=sample.num_units)
    total = found.new_zeros(len(found), sample.num_units, found.shape[-1]).index_add(1, sample.units, found)
    return (total / counts[:, None]).transpose(0, 1)
