"""The Lie derivative of a network: how fast its equivariance is lost, for each generator of the group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_equiv._checks import check_number
from lightning_equiv.groups.group import AlgebraElement, Group
from lightning_equiv.groups.product import as_group
from lightning_equiv.metrics.chunks import ChunkSize
from lightning_equiv.metrics.derivative import Method, check_method, directional_derivative, step_size
from lightning_equiv.metrics.functional import reduce_sums
from lightning_equiv.metrics.measurement import Measurement, measuring
from lightning_equiv.metrics.subgroups import describe_kept, generator_names
from lightning_equiv.representations.action import wide
from lightning_equiv.symmetry.call import TOTAL, BoundTree
from lightning_equiv.symmetry.symmetry import Symmetry, as_symmetry
from lightning_equiv.wiring.call_recorder import recording_paused

_ROWS = 512  # of a chunk, about where a CPU's cache ends


@dataclass(frozen=True)
class LieDerivative:
    """What `lie_derivative_error` measured, in sums over an input's outputs.

    Attributes:
        group: whose algebra has the generators A_i.
        grams: (n, dim, dim) <L_i f, L_j f> at each input.
        norms: (n,) |f(x)|^2.
        method: by which the derivatives were found.
        parts: the same two of every part of the output, by its name, where asked for.
    """

    group: Group
    grams: Tensor
    norms: Tensor
    method: str
    parts: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the generators: "x", "y", "z" (rotations), "tx", "ty", "tz" (translations), "rotation" (of the plane)."""
        return generator_names(self.group)

    @property
    def error(self) -> Tensor:
        """(n,) the relative figure of each input; 0 for an equivariant network."""
        return _relative(_traces(self.grams), self.norms)

    @property
    def total(self) -> Tensor:
        """The relative figure over all inputs."""
        return _relative(_traces(self.grams).sum(), self.norms.sum())

    def figures(self) -> dict[str, Tensor]:
        """The relative figures over all inputs: "total" and each generator's; of a part, "1o/total" and "1o/x"."""
        found = {}
        for part, (grams, norms) in {TOTAL: (self.grams, self.norms), **self.parts}.items():
            front = "" if part == TOTAL else f"{part}/"
            squares = grams.diagonal(dim1=-2, dim2=-1).sum(0)
            found[front + TOTAL] = _relative(squares.sum(), norms.sum())
            for name, square in zip(self.names, squares, strict=True):
                found[front + name] = _relative(square, norms.sum())
        return found

    @property
    def gram(self) -> Tensor:
        """(dim, dim) M_ij = sum_x <L_i f, L_j f> / sum_x |f(x)|^2; the root of its trace is `total`."""
        numerator, denominator = self.grams.sum(0), self.norms.sum()
        return torch.where(numerator == 0, 0.0, numerator / denominator)

    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues of `gram` (dim,), in ascending order, and its eigenvectors (dim, dim), as columns.

        The first columns are the directions of the algebra that the network keeps best, the last that it breaks most.
        """
        values, vectors = torch.linalg.eigh(self.gram.cpu())
        return values, vectors

    def kept(self, floor: float) -> str:
        """The subgroup that the network keeps: "all", "none", "rotations about z", "rotations about (1, 2, 2)/3".

        Args:
            floor: the figure, of an element of length 1, up to which a direction counts as kept: what an exactly
                equivariant network reads at the same precision. Below 1e-7 of `total` the spectrum is rounding.
        """
        check_number("floor", floor, least=0)
        return describe_kept(self.group, self.gram.cpu(), floor)


def lie_derivative_error(
    network: Callable[..., Any],
    args: Any,
    symmetry: Symmetry,
    *,
    kwargs: Mapping[str, Any] | None = None,
    method: Method | Literal["auto"] = "auto",
    chunk_size: ChunkSize = "auto",
    per_irrep: bool = False,
    needs_grad: bool = False,
) -> LieDerivative:
    r"""How fast a network loses its equivariance where a small group element moves the input, for each generator.

        (L_A f)(x) = d/dt rho_out(e^{-tA}) f(rho_in(e^{tA}) x) at t = 0  =  J_f(x) A_in x - A_out f(x)
        M_ij = sum_x <L_i f, L_j f> / sum_x |f(x)|^2        total = sqrt( tr M )        of generator i: sqrt( M_ii )

    with A_i the generators of the group: rotations by a radian about x, y and z, translations by a unit of length along
    them, which `total` adds up. It says nothing of reflections or other elements that are not connected to the
    identity, and it sees rough errors more than smooth ones: an error of angular momentum J counts J(J+1)/2 times as
    much as in `equivariance_error`. No random numbers are drawn.

    An exactly equivariant network reads the rounding error, 1e-15 in float64 and about 1e-6 in float32. On images
    (`Image`, `VectorField`) it reads far more: A x is the slope of a cubic interpolant, by k^2/6 too small for a wave
    of k radians a pixel. This floor is what a pointwise function, which commutes with every rotation, reads in the
    network's place: tanh(2 x) 0.03 where k = 0.3, 0.3 where k = 0.8, and 9 on white noise; a Gaussian filter of 1.5
    pixels 0.004, 0.04 and 2. Measure both on your images before the network.

    Args:
        network: f. A module is measured in evaluation mode and put back.
        args: a tuple of the call's positional arguments, or the only argument.
        symmetry: says how a group element moves inputs and outputs; by representations that know their derivatives.
        kwargs: keyword arguments of the call.
        method: how the network is differentiated: "jvp", "double_backward", "central_difference", or "auto", the first
            of them that runs and is found right along one direction; see `LieDerivative.method`.
        chunk_size: most inputs in one call of the network, to bound memory; never fewer than the batch itself.
        per_irrep: also of each part of the output by itself.
        needs_grad: the network differentiates inside (conservative forces): run it with gradients enabled.

    Returns:
        A value with `error` (n,) of each input, `total`, `figures()` by generator ("x", .., "tx", .., "rotation"),
        `gram` (M), `spectrum()`, `kept(floor)` in words, and the `method` that was used. Figures are from 0, an
        equivariant network, upwards without bound.

    Raises:
        ValueError: a finite group; the symmetry does not mirror the call or the output; an unknown method, or one that
            half precision does not allow.
        NotImplementedError: a representation that does not know its derivative, or a network that the named method does
            not know.

    Examples:
        >>> symmetry = Symmetry("SO(3)", "1o", "1o")
        >>> x = torch.randn(5, 3, dtype=torch.float64)
        >>> float(lie_derivative_error(lambda x: x.norm(dim=-1, keepdim=True) * x, x, symmetry).total) < 1e-12
        True
        >>> stretched = lie_derivative_error(lambda x: x * torch.tensor([1.0, 1.0, 2.0]), x, symmetry)
        >>> stretched.kept(floor=1e-6), stretched.method
        ('rotations about z', 'jvp')

    Reference:
        Gruver, Finzi, Goldblum, Wilson. The Lie Derivative for Measuring Learned Equivariance. ICLR 2023. arXiv
        2210.02984.
    """
    check_method(method)
    group = check_algebra(symmetry)
    with measuring(network, args, symmetry, kwargs=kwargs, chunk_size=chunk_size, needs_grad=needs_grad) as measurement:
        grams, used = lie_grams(measurement, method)
        norms = measurement.f_x.squared_norms(measurement.parts)
    parts = {part: (grams[part], norms[part]) for part in measurement.parts} if per_irrep else {}
    return LieDerivative(group, grams[TOTAL], norms[TOTAL], used, parts)


def check_algebra(symmetry: Symmetry) -> Group:
    """The group of a symmetry; ValueError for a finite one."""
    group = as_group(as_symmetry(symmetry).group)
    if group.dim == 0:
        raise ValueError(
            f"expected a group with a Lie algebra, got {group}, which is finite: measure every element of it instead, "
            "EquivarianceError(symmetry, num_samples=None)"
        )
    return group


def lie_grams(measurement: Measurement, method: Method | Literal["auto"]) -> tuple[dict[str, Tensor], Method]:
    """<L_i f, L_j f> (n, dim, dim) per input, for the total and every output part, and the method that was used.

    They are float64 where the device has it, whatever the network computes in.

    Args:
        measurement: of a network's call.
        method: how the network is differentiated; "auto" is decided on one direction that has a part of all generators.
    """
    n, algebra = measurement.num_inputs, measurement.group.algebra(device=measurement.device)
    if method == "auto":
        method = _along(measurement, _generic(measurement, algebra), 1, method)[1]
    chunk_size = _ROWS if measurement.chunk_size == "auto" else measurement.chunk_size
    step = len(algebra) if chunk_size is None else max(1, chunk_size // n)
    if method == "central_difference":
        step = 1  # every direction has a step size of its own
    chunks: list[dict[str, Tensor]] = []
    for start in range(0, len(algebra), step):
        own = algebra[start : start + step]
        times = len(own)
        each = own[torch.arange(times, device=own.device).repeat_interleave(n)]
        parts = _along(measurement, each, times, method)[0].parts()
        chunks.append({part: x.unflatten(0, (times, -1)) for part, x in parts.items()})
    whole = {part: torch.cat([chunk[part] for chunk in chunks]) for part in chunks[0]}
    return measurement.f_x.gram_matrices(whole), method


def _along(
    measurement: Measurement, a: AlgebraElement, times: int, method: Method | Literal["auto"]
) -> tuple[BoundTree, Method]:
    """L_A f = J_f(x) A_in x - A_out f(x) of the call `times` times over, for one a of each input or one for all."""
    call = measurement.call
    inputs, outputs = call.inputs.repeat(times), measurement.f_x.repeat(times)
    places = _moved(inputs)
    velocity = inputs.derivative(a).tensors

    def function(xs: list[Tensor]) -> list[Tensor]:
        tensors = [t.x for t in inputs.tensors]
        for place, x in zip(places, xs, strict=True):
            tensors[place] = x
        args, kwargs = call.unpack(inputs.holding(tensors).tree)
        with recording_paused():
            y = measurement.network(*args, **kwargs)
        return [t.x for t in call.output(y, times).tensors if not t.representation.shared]

    primals, tangents = ([tree[place].x for place in places] for tree in (inputs.tensors, velocity))
    _, derivatives, used = directional_derivative(function, primals, tangents, method)
    turned = outputs.holding(wide(t.x) for t in outputs.tensors).derivative(a)
    found = iter(derivatives)
    tensors = [t.x if t.representation.shared else wide(next(found)) - t.x for t in turned.tensors]
    return turned.holding(tensors), used


def _moved(tree: BoundTree) -> list[int]:
    """The places of the tensors that elements move."""
    return [i for i, t in enumerate(tree.tensors) if not t.representation.trivial]


def _generic(measurement: Measurement, algebra: AlgebraElement) -> AlgebraElement:
    """One direction that has a part of every generator, each as large as the inputs that it moves."""
    inputs = measurement.call.inputs
    places = _moved(inputs)
    sizes = []
    for i in range(len(algebra)):
        tangents = inputs.derivative(algebra[i]).tensors
        pairs = [[tree[place].x for place in places] for tree in (inputs.tensors, tangents)]
        sizes.append(step_size(*pairs) if places else torch.ones((), device=algebra.device))
    size = torch.stack(sizes).to(algebra.coefficients)
    uneven = 1 + torch.arange(len(algebra), device=algebra.device) / len(algebra)  # lest two of them cancel
    return AlgebraElement(algebra.group, ((uneven * size / size.max())[None],))


def _traces(grams: Tensor) -> Tensor:
    return grams.diagonal(dim1=-2, dim2=-1).sum(-1)


def _relative(square: Tensor, norm: Tensor) -> Tensor:
    return reduce_sums(square, norm, "relative")
