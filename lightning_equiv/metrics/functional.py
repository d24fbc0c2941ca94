"""The one comparison, f(g x) against g f(x), and everything computed from it.

This is the only place where the two sides are formed: what a metric measures and what a loss trains are the same
numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_equiv.groups.group import Group, GroupElement
from lightning_equiv.groups.product import as_group
from lightning_equiv.representations.representation import Representation
from lightning_equiv.symmetry.symmetry import Layout, Symmetry
from lightning_equiv.symmetry.tree import Spec, Tree, describe, join, leaf_pairs, map_tensors, map_tree
from lightning_equiv.wiring.call_recorder import recording_paused

Kind = Literal["relative", "absolute", "orbit_mean", "max"]
TOTAL = "total"
Distance = Callable[[Tensor, Tensor], Tensor]

_distances: dict[str, Distance] = {
    "mse": nn.functional.mse_loss,
    "l1": nn.functional.l1_loss,
    "cross_entropy": nn.functional.cross_entropy,  # of logits and class labels
}


def compare(
    network: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    symmetry: Symmetry,
    g: GroupElement,
    *,
    f_x: Tree,
) -> tuple[Tree, Tree]:
    """The two sides of the comparison, f(g x) and g f(x).

    K group elements for each of n inputs are folded into one batch of K n, in one call of the network.

    Args:
        network: f, called once.
        args: positional arguments of the call, x.
        kwargs: keyword arguments of the call.
        symmetry: says how g moves x and f(x).
        g: K n elements; element k n + i moves input i for the k-th time.
        f_x: f(x), the output for the unmoved inputs; or labels to be moved in its place.

    Returns:
        f_gx and g_fx, each like f_x with K n rows in place of n.
    """
    tree, unpack = symmetry.pack(args, kwargs, network)
    layout = symmetry.layout(symmetry.inputs, tree)
    times = len(g) // layout.num_elements
    gx = symmetry.move(g, symmetry.inputs, symmetry.repeat(symmetry.inputs, tree, layout, times), layout.repeat(times))
    moved_args, moved_kwargs = unpack(gx)
    with recording_paused():
        f_gx = network(*moved_args, **moved_kwargs)
    return f_gx, move_output(symmetry, g, f_x, layout, times)


def equivariance_loss(
    network: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    symmetry: Symmetry,
    *,
    anchor: Tree,
    distance: Distance,
    num_samples: int,
    detach_target: bool,
    generator: torch.Generator,
) -> tuple[Tensor, int]:
    """mean_i l( f(g_i x_i), g_i y_i ), summed over the tensors of nested outputs, and the number of inputs.

    Args:
        network: f.
        args: positional arguments of the call, x.
        kwargs: keyword arguments of the call.
        symmetry: says how g moves x and y.
        anchor: y: labels, or f(x).
        distance: l.
        num_samples: group elements for each input.
        detach_target: no gradient through g y.
        generator: whose random numbers.
    """
    tree, _ = symmetry.pack(args, kwargs, network)
    layout = symmetry.layout(symmetry.inputs, tree)
    n = num_samples * layout.num_elements
    g = as_group(symmetry.group).sample(n, generator=generator, device=layout.device)
    f_gx, g_anchor = compare(network, args, kwargs, symmetry, g, f_x=anchor)
    pairs = leaf_pairs(symmetry.outputs, f_gx, g_anchor)
    loss = torch.stack([distance(a, b.detach() if detach_target else b) for a, b in pairs]).sum()
    return loss, layout.num_elements


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


def move_output(symmetry: Symmetry, g: GroupElement, output: Tree, layout: Layout, times: int) -> Tree:
    """G f(x) for `times` elements g per input: the output repeated, then moved."""

    def again(_: str, representation: Representation, x: Tensor) -> Tensor:
        return x if x.ndim == 0 or representation.shared else x.repeat(times, *[1] * (x.ndim - 1))

    if times > 1:
        output = map_tree(again, symmetry.outputs, output, what="outputs")
    return symmetry.move(g, symmetry.outputs, output, layout.repeat(times), what="outputs")


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
    sums = equivariance_sums(
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
    errors = {part: reduce_sums(*pair, kind) for part, pair in sums.items()}
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
    """
    if kind not in get_args(Kind):
        raise ValueError(f"expected kind to be one of {get_args(Kind)}, got {kind!r}")
    args, kwargs = args if isinstance(args, tuple) else (args,), kwargs or {}
    tree, unpack = symmetry.pack(args, kwargs, network)
    layout = symmetry.layout(symmetry.inputs, tree)
    n = layout.num_elements
    with _measuring(network, needs_grad):
        if needs_grad:
            # a tensor made in inference mode takes no gradient, and the caller's own shall get none
            args, kwargs = unpack(map_tensors(lambda x: x.detach().clone(), tree))
        with recording_paused():
            f_x = map_tensors(torch.clone, network(*args, **kwargs))  # its next call may use the same memory again
        parts = output_parts(symmetry, f_x)
        device = next(iter(parts.values())).device
        elements = _elements(symmetry, num_samples, n, generator, device)
        paths = part_paths(symmetry)
        norms = _total(_squares(parts, layout, paths))
        gathered: dict[str, list[Tensor]] = {}
        for g in _chunks(elements, n, chunk_size):
            times = len(g) // n
            f_gx, g_fx = compare(network, args, kwargs, symmetry, g, f_x=f_x)
            left, right = output_parts(symmetry, f_gx), output_parts(symmetry, g_fx)
            difference = {part: left[part] - right[part] for part in left}
            if kind == "orbit_mean":
                summed = {part: d.unflatten(0, (times, -1)).sum(0) for part, d in difference.items()}
                for part, d in summed.items():
                    gathered.setdefault(part, []).append(d)
                continue
            for part, square in _total(_squares(difference, layout.repeat(times), paths)).items():
                gathered.setdefault(part, []).append(square.unflatten(0, (times, n)))
        count = len(elements) // n
        if kind == "orbit_mean":
            means = {part: torch.stack(sums).sum(0) / count for part, sums in gathered.items()}
            squares = {part: square[None] for part, square in _total(_squares(means, layout, paths)).items()}
        else:
            squares = {part: torch.cat(chunks) for part, chunks in gathered.items()}  # (K, n)
        ones = torch.ones(n, device=device)
        if kind == "relative":
            return {part: (square.mean(0), norms[part]) for part, square in squares.items()}
        if kind == "max":
            return {part: (square.amax(0).sqrt(), ones) for part, square in squares.items()}
        return {part: (square.sqrt().mean(0), ones) for part, square in squares.items()}


def output_parts(symmetry: Symmetry, output: Tree) -> dict[str, Tensor]:
    """A network's output as a flat dict of its parts (rows, ...), one an irrep, in float32 or better.

    Names are those of `part_paths`. What is shared by the whole call is left out: it belongs to no input.
    """
    parts: dict[str, Tensor] = {}

    def collect(path: str, representation: Representation, x: Tensor) -> None:
        x = x.detach()
        if x.is_complex():
            raise ValueError(
                f"expected real numbers at {path or 'the output'!r}, got {x.dtype}: return torch.view_as_real(x)"
            )
        x = x if x.dtype in (torch.float32, torch.float64) else x.float()
        if representation.shared:
            return
        assert isinstance(symmetry.group, Group)
        representation.check(symmetry.group, x.shape)
        parts.update((_part_name(path, name), part) for name, part in representation.parts(x).items())

    map_tree(collect, symmetry.outputs, output, what="outputs")
    if not parts:
        raise ValueError(f"expected the network to return tensors that `outputs` names, got {describe(output)}")
    return parts


def part_paths(symmetry: Symmetry) -> dict[str, str]:
    """The parts of an output that `outputs` describes, each with the dotted path of the tensor that holds it.

    Names: "1o" for an irreps output, "output" for any other; nested, "path.1o" and "path".
    """

    def walk(path: str, spec: Spec) -> Iterator[tuple[str, str]]:
        if isinstance(spec, Representation):
            if not spec.shared:
                yield from ((_part_name(path, name), path) for name in spec.part_names)
        elif spec is not None:
            for key, value in spec.items() if isinstance(spec, Mapping) else enumerate(spec):
                yield from walk(join(path, key), value)

    return dict(walk("", symmetry.outputs))


def _part_name(path: str, irrep: str = "") -> str:
    if irrep or path == TOTAL:  # an output called "total" is not the total
        return join(path, irrep or "output")
    return path or "output"


def _squares(parts: Mapping[str, Tensor], layout: Layout, paths: Mapping[str, str]) -> dict[str, Tensor]:
    """Squared norms (num_elements,) of every part, summed over the rows of a graph."""
    squares = {}
    for part, x in parts.items():
        owner = layout.owner(x, paths[part])
        rows = x.square().flatten(1).sum(-1) if x.ndim > 1 else x.square()
        squares[part] = rows if owner is None else rows.new_zeros(layout.num_elements).index_add(0, owner, rows)
    return squares


def _total(squares: dict[str, Tensor]) -> dict[str, Tensor]:
    return {TOTAL: torch.stack(list(squares.values())).sum(0), **squares}


def _elements(
    symmetry: Symmetry, num_samples: int | None, n: int, generator: torch.Generator | None, device: torch.device
) -> GroupElement:
    """K elements for each of n inputs, sample by sample; the whole group for None."""
    assert isinstance(symmetry.group, Group)
    if num_samples is None:
        every = symmetry.group.elements(device=device)
        return every[torch.arange(len(every), device=device).repeat_interleave(n)]
    if num_samples < 1:
        raise ValueError(f"expected num_samples to be at least 1 (or None for a whole finite group), got {num_samples}")
    return symmetry.group.sample(num_samples * n, generator=generator, device=device)


def _chunks(elements: GroupElement, n: int, chunk_size: int | None) -> Iterator[GroupElement]:
    step = len(elements) if chunk_size is None else max(1, chunk_size // n) * n
    for start in range(0, len(elements), step):
        yield elements[start : start + step]


@contextmanager
def _measuring(network: Callable[..., Any], needs_grad: bool) -> Iterator[None]:
    """Evaluation mode and gradients as asked; both put back."""
    with ExitStack() as stack:
        if isinstance(network, nn.Module):
            stack.enter_context(evaluating(network))
        if needs_grad:
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad() if needs_grad else torch.no_grad())
        yield


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """`network` in evaluation mode, every sub-module's own mode put back at the end."""
    training = [module for module in network.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


__all__ = [
    "Kind",
    "compare",
    "equivariance_error",
    "equivariance_sums",
    "evaluating",
    "output_parts",
    "part_paths",
    "reduce_sums",
]
