"""How much of a network's task error is symmetry error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lightning_equiv.groups.group import GroupElement
from lightning_equiv.metrics.chunks import ChunkSize
from lightning_equiv.metrics.labelled import OrientedErrors, oriented_errors
from lightning_equiv.symmetry.symmetry import Symmetry
from lightning_equiv.symmetry.tree import Tree


@dataclass(frozen=True)
class SymmetryShare:
    r"""The mean square error of a network, split into what averaging over the group removes and what it does not.

        E_g |z(g) - y|^2  =  |Pi f - y|^2  +  Var_g z,    z(g) = rho_out(g)^-1 f(rho_in(g) x)
           oriented            averaged         variance

    All are means over inputs of squares per number of the output.

    Attributes:
        as_is: |f(x) - y|^2, in the data's own orientation.
        oriented: in a random orientation.
        averaged: of the orbit average.
        variance: over the orbit.
        share: variance / oriented, between 0 and 1: the part of the error that `Symmetrized` takes away.
        standard_error: of the share, over inputs.
        num_inputs: how many there were.
    """

    as_is: float
    oriented: float
    averaged: float
    variance: float
    share: float
    standard_error: float
    num_inputs: int

    def __str__(self) -> str:
        share, error = 100 * self.share, 100 * self.standard_error
        return (
            f"{share:.1f} % (+- {error:.1f}) of the squared error in a random orientation is symmetry error: "
            f"{self.oriented:.4g} of the network, {self.averaged:.4g} of its orbit average; as is {self.as_is:.4g} "
            f"({self.num_inputs} inputs)"
        )


def symmetry_share(
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
    needs_grad: bool = False,
) -> SymmetryShare:
    """Which part of a network's squared error is symmetry error: what `Symmetrized` would take away.

    The estimate is unbiased for any number of draws; `oriented_errors` has the same figures input by input.

    Args:
        network: f. A module is measured in evaluation mode and put back.
        args: a tuple of the call's positional arguments, or the only argument.
        symmetry: says how a group element moves inputs and outputs.
        labels: y, shaped as the output is.
        kwargs: keyword arguments of the call.
        num_samples: at least 2 elements drawn for each input; None takes every element of a finite group.
        elements: these, each for every input, in the place of drawn ones.
        chunk_size: most inputs in one call of the network.
        generator: whose random numbers.
        needs_grad: the network differentiates inside (conservative forces).

    Raises:
        ValueError: labels that are not shaped as the output is; fewer than two samples.

    Examples:
        >>> from lightning_equiv import Symmetry
        >>> symmetry = Symmetry("SO(3)", "1o", "1o")
        >>> x = torch.randn(100, 3)
        >>> shifted = lambda x: x + torch.tensor([0.3, 0.0, 0.0])  # an average turns the shift away
        >>> round(symmetry_share(shifted, x, symmetry, labels=x, num_samples=200).share, 1)
        1.0
    """
    errors = oriented_errors(
        network,
        args,
        symmetry,
        labels,
        kwargs=kwargs,
        num_samples=num_samples,
        elements=elements,
        chunk_size=chunk_size,
        generator=generator,
        needs_grad=needs_grad,
    )
    assert isinstance(errors, OrientedErrors)
    numbers = float(errors.numbers.sum())
    means = {
        name: float(getattr(errors, name).sum()) / numbers for name in ("as_is", "oriented", "averaged", "variance")
    }
    share = means["variance"] / means["oriented"] if means["oriented"] else 0.0
    n = len(errors.numbers)
    rest = errors.variance - share * errors.oriented  # of a ratio of sums: the residual's, over the denominator
    total = float(errors.oriented.sum())
    deviation = float(rest.square().sum().sqrt()) / total * (n / (n - 1)) ** 0.5 if n > 1 and total else float("nan")
    return SymmetryShare(**means, share=share, standard_error=deviation, num_inputs=n)
