"""The one comparison, f(g x) against g f(x), and everything computed from it.

This is the only place where the two sides are formed: what a metric measures and what a loss trains are the same
numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_equiv.groups.group import GroupElement
from lightning_equiv.groups.product import as_group
from lightning_equiv.symmetry.call import TOTAL, BoundCall, BoundTree
from lightning_equiv.symmetry.symmetry import Symmetry, as_symmetry
from lightning_equiv.symmetry.tree import Tree, map_tensors
from lightning_equiv.wiring.call_recorder import recording_paused
from lightning_equiv.wiring.evaluation import evaluating
from lightning_equiv.wiring.frozen_randomness import buffers_kept
from lightning_equiv.wiring.random_state import random_state_kept

Kind = Literal["relative", "absolute", "orbit_mean", "max"]
Distance = Callable[[Tensor, Tensor], Tensor]

_MOST_ELEMENTS = 2**16  # that are all taken
_WITHOUT_GRADIENTS = ("not require grad", "requires_grad", "Inference tensor", "inference tensor")  # in torch's errors

_distances: dict[str, Distance] = {
    "mse": nn.functional.mse_loss,
    "l1": nn.functional.l1_loss,
    "cross_entropy": nn.functional.cross_entropy,  # of logits and class labels
}


def compare(
    network: Callable[..., Any], call: BoundCall, g: GroupElement, f_x: BoundTree
) -> tuple[BoundTree, BoundTree]:
    """The two sides of the comparison, f(g x) and g f(x).

    K group elements for each of n inputs are folded into one batch of K n, in one call of the network.

    Args:
        network: f, called once.
        call: x, bound by the symmetry.
        g: K n elements; element k n + i moves input i for the k-th time.
        f_x: f(x), the output for the unmoved inputs; or labels to be moved in its place.

    Returns:
        f_gx and g_fx, each like f_x with K n rows in place of n.
    """
    times = len(g) // call.num_inputs
    args, kwargs = call.move(g, times)
    with recording_paused():
        f_gx = network(*args, **kwargs)
    return call.output(f_gx, times), f_x.move(g, times)


class NoGradientError(RuntimeError):
    """f(g x) has no gradient where f(x) has one."""


def equivariance_losses(
    network: Callable[..., Any],
    call: BoundCall,
    symmetry: Symmetry,
    *,
    anchor: BoundTree,
    distance: Distance,
    num_samples: int,
    detach_target: bool,
    generator: torch.Generator,
    labelled: Collection[str] | None = None,
    f_x: BoundTree | None = None,
) -> dict[str, Tensor]:
    """mean_i l( f(g_i x_i), g_i y_i ) of each output that is compared, by its dotted name.

    Args:
        network: f.
        call: x, bound by the symmetry.
        symmetry: whose elements are drawn.
        anchor: y: labels, or f(x).
        distance: l.
        num_samples: group elements for each input.
        detach_target: no gradient through g y.
        generator: whose random numbers.
        labelled: the outputs that are compared; None compares all.
        f_x: the output for the unmoved inputs, where f(g x) must have a gradient as that has.

    Raises:
        NoGradientError: f(x) has a gradient and f(g x) has none.
    """
    g = as_group(symmetry.group).sample(num_samples * call.num_inputs, generator=generator, device=call.device)
    f_gx, g_anchor = compare(network, call, g, anchor)
    pairs = {path: pair for path, pair in f_gx.pairs(g_anchor).items() if labelled is None or path in labelled}
    if f_x is not None:
        first = {t.path: t.x.requires_grad for t in f_x.tensors}
        if lost := [path for path, (a, _) in pairs.items() if first[path] > a.requires_grad]:
            raise NoGradientError(
                "expected the outputs of the network's second pass to have a gradient as those of the first, got none "
                f"for {', '.join(path or 'its output' for path in lost)}: a network that differentiates inside must "
                "build its graph whenever it is in training mode and gradients are enabled (create_graph=self.training)"
            )
    return {path: distance(a, b.detach() if detach_target else b) for path, (a, b) in pairs.items()}


def as_distance(loss: str | Distance) -> Distance:
    """The distance that a name stands for.

    Raises:
        ValueError: an unknown name.
    """
    if callable(loss):
        return loss
    if not isinstance(loss, str) or loss not in _distances:
        raise ValueError(f"expected loss to be one of {sorted(_distances)} or a callable, got {loss!r}")
    return _distances[loss]


def equivariance_error(
    network: Callable[..., Any],
    args: Any,
    symmetry: Symmetry,
    *,
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int | None = 8,
    kind: Kind = "relative",
    chunk_size: int | None = None,
    generator: torch.Generator | None = None,
    per_irrep: bool = False,
    needs_grad: bool = False,
) -> Tensor | dict[str, Tensor]:
    r"""How far a network is from equivariant, for each input.

    With K group elements g per input x, and d = f(g x) - g f(x), in the L2 norm of the whole output:

        relative     sqrt( mean_g |d|^2 / |f(x)|^2 )     0: equivariant; about sqrt(2): as far as two unrelated outputs
        absolute     mean_g |d|                          in the unit of the output
        orbit_mean   | mean_g d |                        0 does not imply equivariance
        max          max_g |d|

    Args:
        network: f. A module is measured in evaluation mode and put back.
        args: a tuple of the call's positional arguments, or the only argument.
        symmetry: says how a group element moves inputs and outputs.
        kwargs: keyword arguments of the call.
        num_samples: K, elements drawn for each input; None takes every element of a finite group.
        kind: which error.
        chunk_size: most inputs in one call of the network, to bound memory; never fewer than the batch itself.
        generator: whose random numbers.
        per_irrep: also the error of each part of the output by itself, see Returns.
        needs_grad: the network differentiates inside (conservative forces): run it with gradients enabled.

    Returns:
        (n,) errors, one an input (a graph), on the device of the output; 0 for an exactly equivariant network.
        With `per_irrep` a dict from "total" and the parts ("0e", "1o", or "name.1o" for nested outputs) to these.

    Raises:
        ValueError: the symmetry does not mirror the call or the output; an empty batch; an unknown kind.

    Examples:
        >>> symmetry = Symmetry("SO(3)", "1o", "1o")
        >>> float(equivariance_error(lambda x: 2 * x, torch.randn(5, 3), symmetry).max()) < 1e-6
        True
        >>> float(equivariance_error(lambda x: x + 1, torch.randn(5, 3), symmetry).min()) > 0.01
        True

    Reference:
        Elhag, Rusch, Di Giovanni, Bronstein. Relaxed Equivariance via Multitask Learning. arXiv 2410.17878.
    """
    sums, dtype = _measure(
        network,
        args,
        symmetry,
        kwargs=kwargs,
        num_samples=num_samples,
        kind=kind,
        chunk_size=chunk_size,
        generator=generator,
        needs_grad=needs_grad,
    )
    errors = {part: reduce_sums(*pair, kind).to(dtype) for part, pair in sums.items()}
    return errors if per_irrep else errors[TOTAL]


def reduce_sums(numerator: Tensor, denominator: Tensor, kind: Kind) -> Tensor:
    """The error from what `equivariance_sums` gives, for one input or summed over many; 0 / 0 is 0."""
    error = torch.where(numerator == 0, 0.0, numerator / denominator)
    return error.sqrt() if kind == "relative" else error


def equivariance_sums(
    network: Callable[..., Any],
    args: Any,
    symmetry: Symmetry,
    *,
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int | None,
    kind: Kind,
    chunk_size: int | None = None,
    generator: torch.Generator | None = None,
    needs_grad: bool = False,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Numerator and denominator (n,), (n,) of `equivariance_error` per input, for the total and every output part.

    Numerators and denominators of many batches can be summed (or, for "max", their maximum taken) and then reduced.
    They are float64 where the device has it, whatever the network computes in.
    """
    return _measure(
        network,
        args,
        symmetry,
        kwargs=kwargs,
        num_samples=num_samples,
        kind=kind,
        chunk_size=chunk_size,
        generator=generator,
        needs_grad=needs_grad,
    )[0]


def _measure(
    network: Callable[..., Any],
    args: Any,
    symmetry: Symmetry,
    *,
    kwargs: Mapping[str, Any] | None,
    num_samples: int | None,
    kind: Kind,
    chunk_size: int | None,
    generator: torch.Generator | None,
    needs_grad: bool,
) -> tuple[dict[str, tuple[Tensor, Tensor]], torch.dtype]:
    """What `equivariance_sums` returns, and the precision of the network's output, at least float32."""
    if kind not in get_args(Kind):
        raise ValueError(f"expected kind to be one of {get_args(Kind)}, got {kind!r}")

    symmetry = as_symmetry(symmetry)

    def run(*args: Any, **kwargs: Any) -> Tree:
        with recording_paused():
            try:
                y = network(*args, **kwargs)
            except RuntimeError as error:
                if needs_grad or not any(words in str(error) for words in _WITHOUT_GRADIENTS):
                    raise
                raise RuntimeError(
                    "the network differentiates inside (conservative forces?), and gradients are off while it is "
                    f"measured: write needs_grad=True. Torch's words were: {error}"
                ) from error
            return map_tensors(Tensor.detach, y)

    with _measuring(network, needs_grad, generator):
        x = args if isinstance(args, tuple) else (args,), dict(kwargs or {})
        if needs_grad:  # a tensor made in inference mode takes no gradient, and the caller's own must get none
            x = map_tensors(lambda x: x.detach().clone(), x)
        call = symmetry.bind(network, *x)
        n = call.num_inputs
        args, kwargs = call.arguments()  # containers of its own, which it may write into
        f_x = call.output(map_tensors(torch.clone, run(*args, **kwargs)))  # the next call may use the same memory
        call.inputs.check_unchanged()
        parts = f_x.parts()
        norms = f_x.squared_norms(parts)
        first = next(iter(parts.values()))
        elements = _elements(symmetry, num_samples, n, generator, first.device)
        gathered: dict[str, list[Tensor]] = {}
        for g in _chunks(elements, n, chunk_size):
            times = len(g) // n
            f_gx, g_fx = compare(run, call, g, f_x)
            left, right = f_gx.parts(), g_fx.parts()
            difference = {part: left[part] - right[part] for part in left}
            if kind == "orbit_mean":
                found = {part: d.unflatten(0, (times, -1)).sum(0) for part, d in difference.items()}
            else:
                found = {part: s.unflatten(0, (times, n)) for part, s in f_gx.squared_norms(difference).items()}
            for part, values in found.items():
                gathered.setdefault(part, []).append(values)
        call.inputs.check_unchanged()
        if kind == "orbit_mean":
            means = {part: torch.stack(sums).sum(0) / (len(elements) // n) for part, sums in gathered.items()}
            squares = {part: square[None] for part, square in f_x.squared_norms(means).items()}
        else:
            squares = {part: torch.cat(chunks) for part, chunks in gathered.items()}  # (K, n)
        ones = torch.ones_like(norms[TOTAL])
        if kind == "relative":
            return {part: (square.mean(0), norms[part]) for part, square in squares.items()}, first.dtype
        if kind == "max":
            return {part: (square.amax(0).sqrt(), ones) for part, square in squares.items()}, first.dtype
        return {part: (square.sqrt().mean(0), ones) for part, square in squares.items()}, first.dtype


def _elements(
    symmetry: Symmetry, num_samples: int | None, n: int, generator: torch.Generator | None, device: torch.device
) -> GroupElement:
    """K elements for each of n inputs, sample by sample; the whole group for None."""
    group = as_group(symmetry.group)
    if num_samples is None:
        if group.order is not None and group.order > _MOST_ELEMENTS:
            raise ValueError(
                f"num_samples=None takes every element of {group}, which has {group.order} (more than "
                f"{_MOST_ELEMENTS}): draw some of them, e.g. num_samples=8"
            )
        every = group.elements(device=device)
        return every[torch.arange(len(every), device=device).repeat_interleave(n)]
    if num_samples < 1:
        raise ValueError(f"expected num_samples to be at least 1 (or None for a whole finite group), got {num_samples}")
    return group.sample(num_samples * n, generator=generator, device=device)


def _chunks(elements: GroupElement, n: int, chunk_size: int | None) -> Iterator[GroupElement]:
    step = len(elements) if chunk_size is None else max(1, chunk_size // n) * n
    for start in range(0, len(elements), step):
        yield elements[start : start + step]


@contextmanager
def _measuring(network: Callable[..., Any], needs_grad: bool, generator: torch.Generator | None) -> Iterator[None]:
    """Evaluation mode and gradients as asked; modes, buffers and the global generators are put back."""
    with ExitStack() as stack:
        if isinstance(network, nn.Module):
            stack.enter_context(evaluating(network))
        if needs_grad:
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad() if needs_grad else torch.no_grad())
        if isinstance(network, nn.Module):
            stack.enter_context(buffers_kept(network))
        if generator is not torch.default_generator:  # whose elements are to be others in the next call
            stack.enter_context(random_state_kept())
        yield
