"""What the equivariance error costs on a task: figures that need labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor

from lightning_equiv._checks import check_number
from lightning_equiv.groups.group import GroupElement
from lightning_equiv.metrics.chunks import ChunkSize
from lightning_equiv.metrics.measurement import Measurement, measuring
from lightning_equiv.metrics.orbit import Orbit, orbit
from lightning_equiv.symmetry.call import TOTAL
from lightning_equiv.symmetry.symmetry import Symmetry
from lightning_equiv.symmetry.tree import Tree


@dataclass(frozen=True)
class OrientedErrors:
    r"""Squared errors against labels y, per input, summed over the numbers of the output.

    With z(g) = rho_out(g)^-1 f(rho_in(g) x), the output in a random orientation, turned back:

        E_g |z(g) - y|^2  =  |E_g z - y|^2  +  E_g |z - E z|^2
           oriented            averaged          variance

    The variance is what orbit averaging would remove from the error in a random orientation.

    Attributes:
        as_is: (n,) |f(x) - y|^2, in the data's own orientation.
        averaged: (n,) |E_g z - y|^2, estimated without bias: of single inputs it may be below 0.
        variance: (n,) E_g |z - E z|^2, estimated without bias.
        oriented: (n,) E_g |z - y|^2.
        numbers: (n,) how many numbers the output of an input has; a root mean square error is the root of
            sum(errors) / sum(numbers).
    """

    as_is: Tensor
    averaged: Tensor
    variance: Tensor
    oriented: Tensor
    numbers: Tensor

    def rmse(self, name: str) -> Tensor:
        """The root mean square error per number over all inputs; `name` of an attribute."""
        return (getattr(self, name).sum() / self.numbers.sum()).clamp_min(0).sqrt()


@overload
def oriented_errors(
    network: Callable[..., Any],
    args: Any,
    symmetry: Symmetry,
    labels: Tree,
    *,
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int | None = 32,
    elements: GroupElement | None = None,
    chunk_size: ChunkSize = "auto",
    generator: torch.Generator | None = None,
    per_irrep: Literal[False] = False,
    needs_grad: bool = False,
) -> OrientedErrors: ...


@overload
def oriented_errors(
    network: Callable[..., Any],
    args: Any,
    symmetry: Symmetry,
    labels: Tree,
    *,
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int | None = 32,
    elements: GroupElement | None = None,
    chunk_size: ChunkSize = "auto",
    generator: torch.Generator | None = None,
    per_irrep: Literal[True],
    needs_grad: bool = False,
) -> dict[str, OrientedErrors]: ...


@overload
def oriented_errors(
    network: Callable[..., Any],
    args: Any,
    symmetry: Symmetry,
    labels: Tree,
    *,
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int | None = 32,
    elements: GroupElement | None = None,
    chunk_size: ChunkSize = "auto",
    generator: torch.Generator | None = None,
    per_irrep: bool,
    needs_grad: bool = False,
) -> OrientedErrors | dict[str, OrientedErrors]: ...


def oriented_errors(
    network: Callable[..., Any],
    args: Any,
    symmetry: Symmetry,
    labels: Tree,
    *,
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int | None = 32,
    elements: GroupElement | None = None,
    chunk_size: ChunkSize = "auto",
    generator: torch.Generator | None = None,
    per_irrep: bool = False,
    needs_grad: bool = False,
) -> OrientedErrors | dict[str, OrientedErrors]:
    r"""How much of a network's task error is due to its distance from equivariance.

    See `OrientedErrors` for the formulas.

    Args:
        network: f. A module is measured in evaluation mode and put back.
        args: a tuple of the call's positional arguments, or the only argument.
        symmetry: says how a group element moves inputs and outputs.
        labels: y, shaped as the output is.
        kwargs: keyword arguments of the call.
        num_samples: K >= 2 elements drawn for each input; None takes every element of a finite group.
        elements: these, each for every input, in the place of drawn ones: `oriented` is then the task error for inputs
            that are moved by them, such as `turns(group, angle, 16)`.
        chunk_size: most inputs in one call of the network, to bound memory.
        generator: whose random numbers.
        per_irrep: also of each part of the output by itself.
        needs_grad: the network differentiates inside (conservative forces).

    Raises:
        ValueError: labels that are not shaped as the output is; fewer than two samples.

    Examples:
        >>> symmetry = Symmetry("SO(3)", "1o", "1o")
        >>> x = torch.randn(100, 3)
        >>> shifted = lambda x: x + torch.tensor([0.3, 0.0, 0.0])
        >>> errors = oriented_errors(shifted, x, symmetry, labels=x)  # averaging turns the shift away
        >>> round(float(errors.rmse("oriented")), 3), round(float(errors.rmse("averaged")), 1)
        (0.173, 0.0)

    Reference:
        metatrain's "O3-averaged RMSE", "equivariance RMSE" and "oriented RMSE" are the roots of the means of
        `averaged`, `variance` and `oriented`.
    """
    check_number("num_samples (a variance needs two)", num_samples, least=2, whole=True, optional=True)
    with measuring(
        network, args, symmetry, kwargs=kwargs, chunk_size=chunk_size, generator=generator, needs_grad=needs_grad
    ) as measurement:
        turned = orbit(measurement, measurement.elements(num_samples, elements))
        drawn = num_samples is not None and elements is None
        found = oriented_errors_of(turned, label_parts(measurement, labels), drawn=drawn)
    return found if per_irrep else found[TOTAL]


def label_parts(measurement: Measurement, labels: Tree) -> dict[str, Tensor]:
    """(rows, d) labels of every output part, as `Orbit.f_x` has them.

    Raises:
        ValueError: labels that are not shaped as the output is.
    """
    try:
        bound = measurement.call.output(labels)
    except ValueError as error:
        raise ValueError(f"expected labels that are shaped as the network's output: {error}") from None
    for y, f in zip(bound.tensors, measurement.f_x.tensors, strict=True):
        if y.x.shape != f.x.shape:
            place = f" of {y.path!r}" if y.path else ""
            raise ValueError(
                f"expected labels{place} of shape {tuple(f.x.shape)}, as the network's output, got {tuple(y.x.shape)}: "
                "reshape them, e.g. labels=lambda batch: batch['y'][:, None]"
            )
    return {part: (y.flatten(1) if y.ndim > 1 else y[:, None]).double() for part, y in bound.parts().items()}


def oriented_errors_of(turned: Orbit, labels: dict[str, Tensor], drawn: bool = True) -> dict[str, OrientedErrors]:
    """The errors of every part of the output and of all together as "total", of an orbit.

    Args:
        turned: for K elements of each of n inputs.
        labels: (rows, d) of every part.
        drawn: the elements are draws, so that means over K of them are corrected; else they are the whole group.
    """
    k = turned.num_samples
    residual = {part: f - labels[part] for part, f in turned.f_x.items()}
    along, squares = turned.along(residual), turned.squares()
    mean = turned.mean_squares()
    found: dict[str, OrientedErrors] = {}
    ones = {part: turned.per_input(part, torch.full_like(f[:, 0], f.shape[1])) for part, f in turned.f_x.items()}
    own = {part: turned.per_input(part, r.square().sum(-1)) for part, r in residual.items()}
    for values in (ones, own):
        values[TOTAL] = torch.stack(list(values.values())).sum(0)
    for part in along:
        variance = squares[part].mean(0) - mean[part]
        oriented = own[part] + 2 * along[part].mean(0) + squares[part].mean(0)
        if drawn:
            variance = variance * k / (k - 1)
        found[part] = OrientedErrors(own[part], oriented - variance, variance, oriented, ones[part])
    return found


@dataclass(frozen=True)
class ClassChanges:
    r"""How a classifier's answers change on the orbits of its inputs, per input.

    Attributes:
        changed: (n,) share of the elements that change the class which is predicted.
        divergence: (n,) mean Kullback-Leibler divergence KL( p(x) || p(g x) ) in nats.
        right: (n,) 1.0 where the class that is predicted for x is the label; None without labels.
        right_oriented: (n,) share of the elements for which the class that is predicted for g x is the label.
        right_averaged: (n,) 1.0 where the class of the mean probabilities over the elements is the label.
    """

    changed: Tensor
    divergence: Tensor
    right: Tensor | None = None
    right_oriented: Tensor | None = None
    right_averaged: Tensor | None = None


def class_changes(
    network: Callable[..., Any],
    args: Any,
    symmetry: Symmetry,
    labels: Tensor | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int | None = 32,
    chunk_size: ChunkSize = "auto",
    generator: torch.Generator | None = None,
    needs_grad: bool = False,
) -> ClassChanges:
    """For which share of the inputs a group element changes the class that a network predicts.

    Args:
        network: f, which returns logits (n, classes) that no element moves.
        args: a tuple of the call's positional arguments, or the only argument.
        symmetry: says how a group element moves inputs and outputs.
        labels: (n,) class numbers, for the accuracies.
        kwargs: keyword arguments of the call.
        num_samples: elements drawn for each input; None takes every element of a finite group.
        chunk_size: most inputs in one call of the network, to bound memory.
        generator: whose random numbers.
        needs_grad: the network differentiates inside (conservative forces).

    Raises:
        ValueError: an output that is not one tensor of logits, or labels that are not class numbers.

    Examples:
        >>> from lightning_equiv import Invariant
        >>> symmetry = Symmetry("SO(2)", "1o", Invariant())
        >>> above = lambda x: x[:, :1] * torch.tensor([0.0, 1.0])  # x > 0: half of all turns change the answer
        >>> changes = class_changes(above, torch.randn(200, 3), symmetry)
        >>> abs(float(changes.changed.mean()) - 0.5) < 0.05
        True
    """
    with measuring(
        network, args, symmetry, kwargs=kwargs, chunk_size=chunk_size, generator=generator, needs_grad=needs_grad
    ) as measurement:
        return class_changes_of(orbit(measurement, measurement.elements(num_samples)), labels)


def class_changes_of(turned: Orbit, labels: Tensor | None = None) -> ClassChanges:
    """How answers change, of an orbit whose only output is logits.

    Raises:
        ValueError: another output, or labels that are not class numbers.
    """
    if len(turned.f_x) != 1 or turned.f_x[next(iter(turned.f_x))].shape[-1] < 2:
        raise ValueError(f"expected one output of logits (n, classes), got the outputs {sorted(turned.f_x)}")
    ((part, f_x),) = turned.f_x.items()
    answers, own = (f_x + turned.changes[part]).log_softmax(-1), f_x.log_softmax(-1)
    predicted, first = answers.argmax(-1), own.argmax(-1)
    changed = (predicted != first).double().mean(0)
    divergence = (own.exp() * (own - answers)).sum(-1).mean(0)
    if labels is None:
        return ClassChanges(changed, divergence)
    if labels.is_floating_point() or labels.shape != first.shape:
        raise ValueError(f"expected labels as {len(first)} class numbers, got {tuple(labels.shape)} {labels.dtype}")
    averaged = answers.exp().mean(0).argmax(-1)
    right = ((p == labels).double() for p in (first, averaged))
    as_is, of_mean = right
    return ClassChanges(changed, divergence, as_is, (predicted == labels).double().mean(0), of_mean)
