"""The weighted mean of a network's outputs over elements of a group, each turned back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_equiv.groups.group import GroupElement
from lightning_equiv.metrics.chunks import ChunkSize, Sizes, chunk_sizes, in_chunks
from lightning_equiv.metrics.orbit import exact
from lightning_equiv.symmetry.bound_tensor import BoundTensor
from lightning_equiv.symmetry.call import BoundCall, BoundTree
from lightning_equiv.symmetry.graphs import graphs_of


@dataclass(frozen=True, eq=False)
class Chosen:
    """The elements that a method takes for each of n inputs.

    Attributes:
        elements: K n; element k n + i moves input i for the k-th time.
        weights: (K, n) of sum 1 over k.
        degenerate: (n,) inputs for which the method has no elements; None where there can be none.
    """

    elements: GroupElement
    weights: Tensor
    degenerate: Tensor | None = None

    @property
    def times(self) -> int:
        """K."""
        return len(self.weights)

    def one(self, generator: torch.Generator) -> Chosen:
        """One of the elements of each input, drawn by the weights."""
        n = self.weights.shape[1]
        drawn = torch.multinomial(self.weights.detach().T.cpu(), 1, generator=generator)[:, 0].to(self.weights.device)
        index = drawn * n + torch.arange(n, device=drawn.device)
        return Chosen(self.elements[index], torch.ones_like(self.weights[:1]), self.degenerate)


@dataclass(frozen=True, eq=False)
class Mean:
    r"""A mean over elements.

        mean = sum_k w_k z(h_k),    z(h) = rho_out(h)^-1 f(rho_in(h) x)

    Attributes:
        output: shaped as the network's output.
        squares: sum_k w_k z(h_k)^2 of every tensor of the output, number by number, where asked for.
    """

    output: BoundTree
    squares: list[Tensor] | None


def mean_over(
    network: Callable[..., Any], call: BoundCall, chosen: Chosen, chunk_size: ChunkSize, squares: bool = False
) -> Mean:
    """The mean of the outputs turned back; K copies of the inputs are folded into the batch, chunk by chunk.

    Sums are taken in float64. Whole numbers that the whole call shares, and outputs that the symmetry ignores, are
    those of the first call of the network.

    Args:
        network: f.
        call: x, bound by the symmetry.
        chosen: elements and weights.
        chunk_size: most inputs in one call of the network, never fewer than the batch itself.
        squares: also the mean squares.

    Raises:
        ValueError: an output of whole numbers that has a row for each input, of which there is no mean.
    """
    n, times = call.num_inputs, chosen.times
    template: list[BoundTree] = []

    def work(start: int, stop: int) -> list[tuple[Tensor, Tensor | None]]:
        h = chosen.elements[start * n : stop * n]
        args, kwargs = call.move(h, stop - start)
        output = call.output(network(*args, **kwargs), stop - start)
        if not torch.compiler.is_compiling():
            call.inputs.check_unchanged()
        back = exact(output).move(h.inverse())
        sums = [_sums(t, chosen.weights[start:stop], squares) for t in back.tensors]
        if not template:
            holds_graph = next(graphs_of(output.tree), None) is not None
            template.append(output.take(torch.arange(n)) if holds_graph else output)
        return sums

    if torch.compiler.is_compiling():
        whole = chunk_size is None or isinstance(chunk_size, str)
        sizes = Sizes(times if whole else max(1, int(chunk_size or 1) // n))
    else:
        sizes = chunk_sizes(chunk_size, network, call.inputs, call.inputs, times)
    totals: list[tuple[Tensor, Tensor | None]] = []

    def add(start: int, stop: int) -> None:
        for i, (value, square) in enumerate(work(start, stop)):
            if start == 0:
                totals.append((value, square))
            elif _averaged(template[0].tensors[i]):
                before, before_square = totals[i]
                both = None if square is None or before_square is None else before_square + square
                totals[i] = before + value, both

    in_chunks(times, sizes, add)
    (first,) = template
    output = first.holding(
        total.to(t.x.dtype) if _averaged(t) else total for t, (total, _) in zip(first.tensors, totals, strict=True)
    )
    return Mean(output, [s for _, s in totals if s is not None] if squares else None)


def put_in(output: BoundTree, part: BoundTree, index: Tensor) -> BoundTree:
    """An output with the rows of some inputs from another one, of a call with these inputs alone.

    Args:
        output: of all inputs.
        part: of the inputs `index`.
        index: (m,) ascending.
    """
    member = torch.zeros(output.inputs.num, dtype=torch.bool, device=index.device)
    member[index] = True

    def replaced(t: BoundTensor, new: BoundTensor) -> BoundTensor:
        if not _averaged(t):
            return t
        if t.owner is None:
            return replace(t, x=t.x.index_copy(0, index, new.x))
        owner = t.owner[: len(t.x)]
        rows = member[owner].nonzero()[:, 0]
        rows = rows[owner[rows].argsort(stable=True)]
        return replace(t, x=t.x.index_copy(0, rows, new.x))

    return replace(output, tensors=tuple(map(replaced, output.tensors, part.tensors)))


def chosen_from(output: BoundTree, other: BoundTree, mask: Tensor) -> BoundTree:
    """An output with the rows of the inputs in `mask` (n,) from another one of the same call."""

    def replaced(t: BoundTensor, new: BoundTensor) -> BoundTensor:
        if not _averaged(t):
            return t
        own = mask if t.owner is None else mask[t.owner[: len(t.x)]]
        return replace(t, x=torch.where(own.reshape(-1, *[1] * (t.x.ndim - 1)), new.x, t.x))

    return replace(output, tensors=tuple(map(replaced, output.tensors, other.tensors)))


def _averaged(t: BoundTensor) -> bool:
    """Whether there is a mean of it."""
    return not t.shared and (t.x.is_floating_point() or t.x.is_complex())


def _sums(t: BoundTensor, weights: Tensor, squares: bool) -> tuple[Tensor, Tensor | None]:
    """sum_k w_k z_k and sum_k w_k z_k^2 over the repetitions of an output's tensor; the tensor where there is none."""
    if t.shared:
        return t.x, None
    if not _averaged(t):
        raise ValueError(
            f"the output {t.path!r} holds {t.x.dtype}, of which there is no mean: let the network return real numbers "
            "(probabilities in the place of classes), or declare it as Ignored()"
        )
    times = len(weights)
    z = t.x.unflatten(0, (times, len(t.x) // times))
    w = weights if t.owner is None else weights[:, t.owner[: z.shape[1]]]
    w = w.reshape(*z.shape[:2], *[1] * (z.ndim - 2)).to(t.x.real.dtype)
    return (w * z).sum(0), (w * z.abs().square()).sum(0) if squares else None
