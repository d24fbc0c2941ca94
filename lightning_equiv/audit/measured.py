"""What an audit measures of one call of a network: numbers for each input, from one set of draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_equiv.groups.angles import turns
from lightning_equiv.groups.group import Group, GroupElement
from lightning_equiv.groups.parts import embedded, linear_part, translations
from lightning_equiv.metrics.floor import noise_floor_of, round_trip
from lightning_equiv.metrics.labelled import class_changes_of, label_parts, oriented_errors_of
from lightning_equiv.metrics.lie_derivative import lie_derivative_error
from lightning_equiv.metrics.measurement import Measurement
from lightning_equiv.metrics.orbit import Orbit, exact, orbit
from lightning_equiv.metrics.spectrum import spectra_of
from lightning_equiv.metrics.worst_case import WorstCase
from lightning_equiv.symmetry.call import TOTAL
from lightning_equiv.symmetry.symmetry import Symmetry

Numbers = dict[str, Tensor]  # (n, ..) of each input

ANGLES = tuple(range(0, 181, 15))  # degrees
LENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # units of length of the data
HIGHEST = 4  # degree of the spectrum
_FLOOR_DRAWS = 4
_PART_DRAWS = 8
_ROTATION_DRAWS = 32  # of a group with translations, for its spectrum, which has rotations alone
_ASCENTS = 64  # inputs of a call whose worst case is refined
STEPS = 10  # of the ascent to the worst case


@dataclass
class Drawn:
    """A call while it is measured, and its orbit.

    Attributes:
        measurement: of the call.
        turned: the orbit over the drawn elements of the group.
        whole: the elements are the whole (finite) group.
        labels: of the call.
    """

    measurement: Measurement
    turned: Orbit
    whole: bool
    labels: Any = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def finite(self) -> Tensor:
        """(n,) whether all outputs of an input are numbers."""
        return self.turned.squares()[TOTAL].isfinite().all(0) & self.turned.norms()[TOTAL].isfinite()


def draw(measurement: Measurement, draws: int, labels: Any) -> Drawn:
    """The orbit of a call: the whole of a finite group that is no larger than `draws`, else as many elements."""
    order = measurement.group.order
    whole = order is not None and order <= draws
    turned = orbit(measurement, measurement.elements(None if whole else draws))
    return Drawn(measurement, turned, whole, labels)


def errors(drawn: Drawn) -> Numbers:
    """Squared errors of each input, over all draws and over the first half, and |f(x)|^2; of all parts."""
    squares, norms = drawn.turned.squares(), drawn.turned.norms()
    found = {"largest": squares[TOTAL].amax(0)}
    half = max(1, len(squares[TOTAL]) // 2)
    for part, square in squares.items():
        found |= {f"error/{part}": square.mean(0), f"half/{part}": square[:half].mean(0), f"norm/{part}": norms[part]}
    for part, f in drawn.turned.f_x.items():
        found[f"numbers/{part}"] = drawn.turned.per_input(part, torch.full_like(f[:, 0], f.shape[1]))
    node = drawn.measurement.call.inputs.inputs.node
    if node is not None:
        found["nodes"] = torch.bincount(node, minlength=drawn.turned.num_inputs).to(found["largest"])
    _add_means(drawn, drawn.finite)
    return found


def _add_means(drawn: Drawn, finite: Tensor) -> None:
    """Sums of the turned outputs' rows, and their number: what they have in common, unrelated outputs have, too.

    Turned at random, an output keeps in the mean what no element moves: an energy, a vector's height above the ground.
    """
    m, turned = drawn.measurement, drawn.turned
    rotations = linear_part(m.group)
    f_x = exact(m.f_x)
    if rotations is not None:
        g = rotations.sample(turned.num_inputs, generator=m.generator, device=m.device)
        f_x = f_x.move(g if rotations == m.group else embedded(m.group, g))
    for part, f in f_x.parts().items():
        owner = turned.owners[part]
        rows = f.reshape(turned.f_x[part].shape)[finite if owner is None else finite[owner]]
        drawn.notes.setdefault("means", {}).setdefault(part, []).append((len(rows), rows.sum(0).cpu()))


def spectrum(drawn: Drawn) -> Numbers:
    """Energies of each input by irreducible representation."""
    m, group = drawn.measurement, drawn.measurement.group
    rotations = linear_part(group)
    if rotations is None:
        raise ValueError(f"{group} holds translations alone: see the error over their length")
    if drawn.whole:
        nodes = group.elements(device=m.device)
        weights = torch.full((len(nodes),), 1 / len(nodes), device=m.device, dtype=torch.float64)
        found = spectra_of(drawn.turned, nodes, HIGHEST, weights)
    elif rotations == group:
        found = spectra_of(drawn.turned, drawn.turned.elements, HIGHEST)
    else:
        k = min(drawn.turned.num_samples, _ROTATION_DRAWS)
        g = rotations.sample(k * m.num_inputs, generator=m.generator, device=m.device)
        found = spectra_of(orbit(m, embedded(group, g)), g, HIGHEST)
    numbers = {f"{part}/{name}": e for part, s in found.items() for name, e in s.by_name().items()}
    casimirs = found[TOTAL].harmonics.casimirs
    drawn.notes["casimirs"] = dict(zip(found[TOTAL].harmonics.names, casimirs.tolist(), strict=True))
    return {**numbers, "total": found[TOTAL].total}


def profile(drawn: Drawn) -> Numbers:
    """Squared errors (n, angles) for rotations by given angles about axes at random."""
    m = drawn.measurement
    angles = [a for a in ANGLES if _has_angle(m.group, math.radians(a))]
    if not m.group.rotates or len(angles) < 2:
        raise ValueError(f"{m.group} has no rotations by several angles")
    steps = torch.tensor(angles, dtype=torch.float64).deg2rad().repeat_interleave(m.num_inputs)
    g = turns(m.group, steps, len(steps), generator=m.generator, device=m.device)
    drawn.notes["angles"] = angles
    return {"squares": orbit(m, g).squares()[TOTAL].mT, "norm": drawn.turned.norms()[TOTAL]}


def _has_angle(group: Group, angle: float) -> bool:
    try:
        turns(group, angle, 1)
    except ValueError:
        return False
    return True


def lengths(drawn: Drawn) -> Numbers:
    """Squared errors (n, lengths) for translations by given lengths in directions at random."""
    m, d = drawn.measurement, drawn.measurement.group.translation_dim
    if d is None:
        raise ValueError(f"{m.group} has no translations")
    n = m.num_inputs
    t = torch.randn(len(LENGTHS) * n, d, generator=m.generator, dtype=torch.float64)
    t = t / t.norm(dim=1, keepdim=True) * torch.tensor(LENGTHS, dtype=t.dtype).repeat_interleave(n)[:, None]
    return {
        "squares": orbit(m, translations(m.group, t.to(m.device))).squares()[TOTAL].mT,
        "norm": drawn.turned.norms()[TOTAL],
    }


def group_parts(drawn: Drawn) -> Numbers:
    """Squared errors of each input for parts of the group alone: rotations, reflections, translations, factors."""
    m = drawn.measurement
    found = {
        name: orbit(m, g).squares()[TOTAL].mean(0)
        for name, g in parts_of_group(m.group, _PART_DRAWS * m.num_inputs, m.generator, m.device)
    }
    if len(found) < 2:
        raise ValueError(f"{m.group} has one part")
    return {**found, "norm": drawn.turned.norms()[TOTAL]}


def parts_of_group(
    group: Group, n: int, generator: torch.Generator | None, device: torch.device
) -> Iterator[tuple[str, GroupElement]]:
    """n elements of each part of a group, the other parts at rest."""
    whole = group.sample(n, generator=generator, device=device)
    if len(whole.parts) > 1:
        identity = group.identity(n, device=device).parts
        for i, part in enumerate(whole.parts):
            chosen = [part if j == i else one for j, one in enumerate(identity)]
            yield str(part.group), GroupElement(group, tuple(c for g in chosen for c in g.coordinates))
        return
    rotations = linear_part(group)
    if rotations is not None and rotations != group:
        yield from _sides(group, rotations, n, generator, device)
        yield "translations", translations(group, _shift(whole))
    elif rotations is not None:
        yield from _sides(group, group, n, generator, device)


def _shift(g: GroupElement) -> Tensor:
    translation = g.translation
    assert translation is not None
    return translation


def _sides(
    group: Group, rotations: Group, n: int, generator: torch.Generator | None, device: torch.device
) -> Iterator[tuple[str, GroupElement]]:
    """Proper and improper elements; the proper ones alone where there are no others."""
    g = rotations.sample(4 * n, generator=generator, device=device)
    if rotations.space_dim is None:
        return
    proper = torch.linalg.det(g.matrix) > 0
    for name, mask in (("rotations", proper), ("reflections", ~proper)):
        if int(mask.sum()) >= n:
            yield name, embedded(group, g[mask.nonzero()[:n, 0]])


def worst(drawn: Drawn, refine: Callable[[Tensor, GroupElement], WorstCase]) -> Numbers:
    """The largest error of each input, refined for the worst of them, and the coordinates of its element.

    Args:
        drawn: the call.
        refine: numbers of inputs, and an element for each -> their worst case by ascent.
    """
    n, finite = drawn.turned.num_inputs, drawn.finite
    squares = drawn.turned.squares()[TOTAL]
    largest, first = torch.where(finite, squares, -1.0).max(0)
    elements = drawn.turned.elements[first * n + torch.arange(n, device=first.device)]
    chosen = torch.arange(n, device=first.device)
    divisible = drawn.measurement.call.inputs.inputs.node is None and "chunks" not in drawn.notes
    if divisible and n > _ASCENTS:
        chosen = largest.topk(_ASCENTS).indices.sort().values
    found = refine(chosen, elements[chosen])
    sampled = torch.where(finite, largest, torch.nan).sqrt()
    error = sampled.index_copy(0, chosen, torch.where(finite[chosen], found.errors.to(sampled), torch.nan))
    places = {
        f"element/{i}": c.index_copy(0, chosen, own)
        for i, (c, own) in enumerate(zip(elements.coordinates, found.elements.coordinates, strict=True))
    }
    return {"error": error.fmax(sampled), "sampled": sampled, **places}


def labelled(drawn: Drawn) -> Numbers:
    """Squared errors against labels: as they are, averaged, variance, oriented."""
    found = oriented_errors_of(drawn.turned, label_parts(drawn.measurement, drawn.labels), drawn=not drawn.whole)
    names = ("as_is", "averaged", "variance", "oriented", "numbers")
    return {f"{name}/{part}": getattr(e, name) for part, e in found.items() for name in names}


def classes(drawn: Drawn) -> Numbers:
    """How often a class changes, and accuracies."""
    labels = drawn.labels if isinstance(drawn.labels, Tensor) else None
    found = class_changes_of(drawn.turned, labels)
    return {name: value for name, value in vars(found).items() if value is not None}


def resampling(drawn: Drawn) -> Numbers:
    """What moving the inputs and moving them back loses."""
    m = drawn.measurement
    return {"lost": round_trip(m, m.elements(2))}


def floor(network: Callable[..., Any], args: Any, kwargs: Any, symmetry: Symmetry, drawn: Drawn) -> Numbers:
    """What rounding makes of the error."""
    n, turned, m = drawn.turned.num_inputs, drawn.turned, drawn.measurement
    k = min(_FLOOR_DRAWS, turned.num_samples)
    few = Orbit(turned.elements[: k * n], turned.f_x, {p: w[:k] for p, w in turned.changes.items()}, turned.owners, n)
    found = noise_floor_of(
        network, args, symmetry, few, m.dtype, kwargs=kwargs, chunk_size=m.chunk_size, needs_grad=m.needs_grad
    )
    if m.dtype == torch.float64 and isinstance(network, torch.nn.Module):
        drawn.notes["float32_constants"] = _holds_float32(network)
    return {
        f"{name}/{part}": getattr(own, name)
        for part, own in {TOTAL: found, **found.parts}.items()
        for name in ("rounding", "in_float64", "own", "norm")
    }


def _holds_float32(network: torch.nn.Module) -> bool:
    """Whether a float64 network has constants that were rounded to float32, such as Clebsch-Gordan coefficients."""
    for x in network.buffers():
        short = x.dtype == torch.float64 and bool((x.float().double() == x).all())
        if short and not bool((x * 1024 == (x * 1024).round()).all()):
            return True
    return False


def lie(network: Callable[..., Any], args: Any, kwargs: Any, symmetry: Symmetry, drawn: Drawn) -> Numbers:
    """The Gram matrix of generators."""
    m = drawn.measurement
    if not m.group.dim:
        raise ValueError(f"{m.group} is finite and has no Lie derivative: the errors above are over its elements")
    found = lie_derivative_error(
        network, args, symmetry, kwargs=kwargs, chunk_size=m.chunk_size, needs_grad=m.needs_grad
    )
    drawn.notes["method"], drawn.notes["generators"] = found.method, found.names
    return {"gram": found.grams, "norm": found.norms}
