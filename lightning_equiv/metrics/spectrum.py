"""The spectrum of the turned-back output: how much of it lies in each irreducible representation of the group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor

from lightning_equiv._checks import check_number
from lightning_equiv.groups.group import GroupElement, moved_to
from lightning_equiv.groups.harmonics import Harmonics, harmonics
from lightning_equiv.groups.parts import embedded, linear_part
from lightning_equiv.groups.product import as_group
from lightning_equiv.groups.quadrature import quadrature
from lightning_equiv.metrics.chunks import ChunkSize
from lightning_equiv.metrics.measurement import Measurement, measuring
from lightning_equiv.metrics.orbit import Orbit, orbit
from lightning_equiv.metrics.plots import as_intervals, draw_shares, new_axes
from lightning_equiv.metrics.ratio_metric import RatioMetric, Sums
from lightning_equiv.symmetry.call import TOTAL
from lightning_equiv.symmetry.symmetry import Symmetry, as_symmetry

REST = "rest"  # beyond the highest degree


@dataclass(frozen=True)
class Spectrum:
    r"""Energies e_rho of a network's turned-back output in the irreducible representations rho of a group, per input.

    With z(g) = rho_out(g)^-1 f(rho_in(g) x), as a function on the group:

        e_rho = E_{g,h} [ z(g) . z(h) kernel_rho(g h^-1) ] >= 0,      sum_rho e_rho = E_g |z(g)|^2

    All figures of the error are weightings of these numbers:

        average    e_0                                        |E_g z|^2: the orbit-averaged network
        variance   sum_{rho > 0} e_rho                        E_g |z - E z|^2: what averaging would remove
        error^2    2 sum_{rho > 0} e_rho                      E_{g,h} |z(g) - z(h)|^2
        profile^2  2 sum e_rho (1 - kernel_rho(h) / kernel_rho(1))     the squared error for one element h
        Lie        sum e_rho casimir_rho                      E_g sum_A |L_A f(g x)|^2, orthonormal generators

    Attributes:
        harmonics: the irreducible representations; the first is the trivial one.
        energies: (irreducibles, n) e_rho in the square of the output's unit. An unbiased estimate may be below 0.
        total: (n,) E_g |z(g)|^2.
    """

    harmonics: Harmonics
    energies: Tensor
    total: Tensor

    @property
    def rest(self) -> Tensor:
        """(n,) the energy beyond the highest degree; 0 for a finite group."""
        return self.total - self.energies.sum(0)

    @property
    def variance(self) -> Tensor:
        """(n,) E_g |z - E z|^2, whatever degree it lies in."""
        return self.total - self.energies[0]

    @property
    def squared_error(self) -> Tensor:
        """(n,) E_{g,h} |z(g) - z(h)|^2: twice the variance, whatever degree it lies in."""
        return 2 * self.variance

    @property
    def lie_derivative(self) -> Tensor:
        """(n,) sum_A |L_A f|^2, averaged over the orbit, of what lies up to the highest degree."""
        return self.harmonics.casimirs.to(self.energies) @ self.energies

    def squared_profile(self, h: GroupElement) -> Tensor:
        """(len(h), n) E_g |z(h g) - z(g)|^2, averaged over conjugates of h, of what lies up to the highest degree.

        Args:
            h: elements, such as rotations by the angles of a profile (the axis does not matter).
        """
        at_one = self.harmonics.kernels(self.harmonics.group.identity(device=h.device))
        missing = 1 - self.harmonics.kernels(h) / at_one  # (irreducibles, len(h))
        return 2 * missing.mT.to(self.energies) @ self.energies

    def by_name(self) -> dict[str, Tensor]:
        """Energies (n,) by the names of the irreducible representations, and the rest."""
        return {**dict(zip(self.harmonics.names, self.energies, strict=True)), REST: self.rest}


@overload
def equivariance_spectrum(
    network: Callable[..., Any],
    args: Any,
    symmetry: Symmetry,
    *,
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int | None = 32,
    highest: int = 6,
    chunk_size: ChunkSize = "auto",
    generator: torch.Generator | None = None,
    per_irrep: Literal[False] = False,
    needs_grad: bool = False,
) -> Spectrum: ...


@overload
def equivariance_spectrum(
    network: Callable[..., Any],
    args: Any,
    symmetry: Symmetry,
    *,
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int | None = 32,
    highest: int = 6,
    chunk_size: ChunkSize = "auto",
    generator: torch.Generator | None = None,
    per_irrep: Literal[True],
    needs_grad: bool = False,
) -> dict[str, Spectrum]: ...


@overload
def equivariance_spectrum(
    network: Callable[..., Any],
    args: Any,
    symmetry: Symmetry,
    *,
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int | None = 32,
    highest: int = 6,
    chunk_size: ChunkSize = "auto",
    generator: torch.Generator | None = None,
    per_irrep: bool,
    needs_grad: bool = False,
) -> Spectrum | dict[str, Spectrum]: ...


def equivariance_spectrum(
    network: Callable[..., Any],
    args: Any,
    symmetry: Symmetry,
    *,
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int | None = 32,
    highest: int = 6,
    chunk_size: ChunkSize = "auto",
    generator: torch.Generator | None = None,
    per_irrep: bool = False,
    needs_grad: bool = False,
) -> Spectrum | dict[str, Spectrum]:
    r"""How a network's distance from equivariance is distributed over the irreducible representations of the group.

    See `Spectrum` for the formula and for what follows from it. Of SE(3) and E(3), which have no uniform distribution,
    the rotations about the origin are taken.

    Args:
        network: f. A module is measured in evaluation mode and put back.
        args: a tuple of the call's positional arguments, or the only argument.
        symmetry: says how a group element moves inputs and outputs.
        kwargs: keyword arguments of the call.
        num_samples: K >= 2 elements drawn for each input, from which every e_rho is estimated without bias; of single
            inputs it may be below 0. None integrates exactly: over a whole finite group, and by a quadrature that is
            exact where the output has no degree above `highest` (2 highest + 1 turns of SO(2), some hundred of SO(3)).
        highest: degree or Fourier mode, of an infinite group.
        chunk_size: most inputs in one call of the network, to bound memory.
        generator: whose random numbers.
        per_irrep: also the spectrum of each part of the output by itself.
        needs_grad: the network differentiates inside (conservative forces).

    Returns:
        The spectrum; with `per_irrep` a dict from "total" and the parts of the output to theirs.

    Raises:
        ValueError: fewer than two samples; a group without spectrum (translations, S_n beyond n = 8).

    Examples:
        >>> symmetry = Symmetry("SO(3)", "1o", "0e")
        >>> component = lambda x: x[:, :1]  # of degree 1
        >>> x = torch.tensor([[0.0, 0.0, 3.0]], dtype=torch.float64)
        >>> spectrum = equivariance_spectrum(component, x, symmetry, num_samples=None, highest=2)
        >>> {name: round(float(e), 6) for name, e in spectrum.by_name().items()}
        {'0': 0.0, '1': 3.0, '2': 0.0, 'rest': 0.0}
        >>> round(float(spectrum.lie_derivative), 6)  # J (J + 1) e_J
        6.0

    Reference:
        Domina, Abbott, Pegolo, Bigi, Ceriotti. How unconstrained machine-learning models learn physical symmetries.
        arXiv 2603.24638. Its `o3::character_projection` is e_rho of a block of the output.
    """
    check_settings(symmetry, num_samples, highest)
    with measuring(
        network, args, symmetry, kwargs=kwargs, chunk_size=chunk_size, generator=generator, needs_grad=needs_grad
    ) as measurement:
        found = spectra(measurement, num_samples, highest)
    return found if per_irrep else found[TOTAL]


def spectra(measurement: Measurement, num_samples: int | None, highest: int) -> dict[str, Spectrum]:
    """The spectrum of every part of the output and of all together as "total", of a measurement."""
    if num_samples is None:
        nodes, weights = quadrature(_group(measurement.group), 2 * highest)
        nodes, weights = nodes.to(measurement.device), moved_to(weights, measurement.device)
        turned = orbit(measurement, measurement.elements(None, embedded(measurement.group, nodes)))
        return spectra_of(turned, nodes, highest, weights)
    n = measurement.num_inputs
    drawn = _group(measurement.group).sample(
        num_samples * n, generator=measurement.generator, device=measurement.device
    )
    return spectra_of(orbit(measurement, embedded(measurement.group, drawn)), drawn, highest)


def spectra_of(
    turned: Orbit, elements: GroupElement, highest: int, weights: Tensor | None = None
) -> dict[str, Spectrum]:
    """The spectrum of every part of the output and of all together as "total", of an orbit.

    Args:
        turned: for K elements of each of n inputs.
        elements: the same in the group's linear part: K n, drawn uniformly; or K nodes for all inputs.
        highest: degree or Fourier mode.
        weights: (K,) of the nodes; None for drawn elements, where pairs of two different draws are taken.
    """
    k = turned.num_samples
    of = harmonics(elements.group, highest)
    pairs = _pairs(elements, k)  # (inputs or 1, K, K) kernels of g_i g_j^-1, one irreducible after the other
    if weights is None:
        weights = torch.full((k,), 1 / k, device=elements.device, dtype=torch.float64)
        two = (1 - torch.eye(k, device=weights.device, dtype=weights.dtype)) / (k * (k - 1))
    else:
        two = weights[:, None] * weights
    norms, along, squares = turned.norms(), turned.along(turned.f_x), turned.squares()
    energies: dict[str, list[Tensor]] = {part: [] for part in norms}
    for i, kernel in enumerate(of.kernels(pairs).unflatten(1, (-1, k, k))):
        for part, changed in turned.paired(two * kernel).items():
            # z = f(x) + w, and f(x) is constant on the orbit: it belongs to the trivial representation alone
            energies[part].append(changed + (norms[part] + 2 * (weights @ along[part]) if i == 0 else 0))
    return {
        part: Spectrum(of, torch.stack(e), norms[part] + weights @ (2 * along[part] + squares[part]))
        for part, e in energies.items()
    }


def _pairs(elements: GroupElement, k: int) -> GroupElement:
    """g_i g_j^-1 of all pairs of the K elements of every input, input by input."""
    inputs = len(elements) // k
    grid = torch.arange(len(elements), device=elements.device).view(k, inputs)  # element k n + i belongs to input i
    first = grid.mT[:, :, None].expand(-1, -1, k).reshape(-1)
    second = grid.mT[:, None, :].expand(-1, k, -1).reshape(-1)
    return elements[first] @ elements.inverse()[second]


def check_settings(symmetry: Symmetry, num_samples: int | None, highest: int) -> None:
    """Raise unless a spectrum can be measured with these settings."""
    check_number("num_samples (pairs of two draws are compared)", num_samples, least=2, whole=True, optional=True)
    harmonics(_group(as_group(as_symmetry(symmetry).group)), highest)


def _group(group: Any) -> Any:
    rotations = linear_part(group)
    if rotations is None:
        raise ValueError(
            f"{group} holds translations alone, which have no spectrum: take EquivarianceError, or elements="
            "translations(...) for a profile over their length"
        )
    return rotations


class EquivarianceSpectrum(RatioMetric):
    r"""How a network's distance from equivariance is distributed over a group's irreducible representations.

        share_rho = sum_x e_rho(x) / sum_x E_g |z(g)|^2,     z(g) = rho_out(g)^-1 f(rho_in(g) x)

    The share of the trivial representation ("0", "0e", ..) is 1 for an equivariant network; the others are the error,
    by degree: 2 sum_{rho > 0} share_rho is the square of the relative error where the data have no preferred
    orientation. All shares and the "rest", beyond the highest degree, sum to 1. See `Spectrum`.

    Args:
        symmetry: says how a group element moves inputs and outputs.
        num_samples: K >= 2 elements drawn for each input; None integrates exactly, see `equivariance_spectrum`.
        highest: degree or Fourier mode, of an infinite group.
        chunk_size: most inputs in one call of the network, to bound memory.
        per_irrep: also the shares of each part of the output by itself, as "part/degree".
        needs_grad: the network differentiates inside (conservative forces).
        seed: of the draws; the k-th update of a metric draws the same elements in every run, other ones on every rank.
        kwargs: of torchmetrics.Metric.

    Raises:
        ValueError: a group without spectrum; `compute` raises where the network returned NaN or infinity.

    Examples:
        >>> metric = EquivarianceSpectrum(Symmetry("SO(3)", inputs="1o", outputs="1o"), highest=2)
        >>> metric.update(torch.nn.Identity(), torch.randn(16, 3))
        >>> {name: abs(round(float(share), 4)) for name, share in metric.compute().items()}
        {'0': 1.0, '1': 0.0, '2': 0.0, 'rest': 0.0}

    Reference:
        @misc{domina2026how,
          title={How unconstrained machine-learning models learn physical symmetries},
          author={Domina, Michelangelo and Abbott, Joseph William and Pegolo, Paolo and Bigi, Filippo and
            Ceriotti, Michele},
          year={2026}, note={arXiv:2603.24638}}
    """

    what = "spectrum's first share"
    log_name = "spectrum"
    draws_itself = True

    def __init__(
        self,
        symmetry: Symmetry,
        *,
        num_samples: int | None = 32,
        highest: int = 6,
        chunk_size: ChunkSize = "auto",
        per_irrep: bool = False,
        needs_grad: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        symmetry = as_symmetry(symmetry)
        check_settings(symmetry, num_samples, highest)
        names = [*harmonics(_group(as_group(symmetry.group)), highest).names, REST]
        parts = [TOTAL, *symmetry.output_parts] if per_irrep else [TOTAL]
        super().__init__(
            symmetry,
            [_figure(part, name) for part in parts for name in names],
            chunk_size=chunk_size,
            needs_grad=needs_grad,
            seed=seed,
            root=False,
            settings=(num_samples, highest),
            **kwargs,
        )
        self.num_samples, self.highest, self._names = num_samples, highest, tuple(names)

    def _measure(self, measurement: Measurement) -> Sums:
        found = spectra(measurement, self.num_samples, self.highest)
        return {
            _figure(part, name): (energy, spectrum.total)
            for part, spectrum in found.items()
            for name, energy in spectrum.by_name().items()
        }

    def _draw(self, val: Mapping[str, Any] | None, ax: Any) -> Any:
        """The shares of the whole output, with intervals."""
        found = as_intervals(self.intervals() if val is None else val)
        figure, axes = new_axes(ax)
        whole = {name: found[name] for name in self._names if name in found}
        draw_shares(axes, whole, "irreducible representation", "share of the output")
        return figure, axes


def _figure(part: str, name: str) -> str:
    return name if part == TOTAL else f"{part}/{name}"
