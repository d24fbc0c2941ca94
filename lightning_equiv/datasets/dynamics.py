"""Particles under gravity and under the Coulomb force: initial states, how they move, and their energy.

Everything is float64. The equations commute with rotations, reflections, translations and permutations (an electric
field along z excepted), and so do the integrators: rotating the initial state rotates the result, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_equiv._checks import check_number

STAR_MASS = (1.0, 10.0)  # the bounds of a log-uniform distribution
PLANET_MASS = (0.01, 0.1)
ORBIT_RADIUS = (0.1, 1.0)
VELOCITY_NOISE = 0.01
SOFTENING = 0.1

# Pair coordinates integrated together: few enough for the processor's cache, and fewer than the 32768 from which torch
# divides an operation among threads. On busy cores the threads wait for one another twenty times as long as they work.
_CHUNK = 16384


def sample_gravity(
    num_samples: int, *, num_bodies: int = 4, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Stars with planets in the base pose: all in the x-y plane, the star at rest in the origin.

    Star masses are log-uniform in [1, 10], planet masses in [0.01, 0.1] (G = 1). The distance r of a planet is uniform
    in [0.1, 1] (not its density in the annulus), its direction too. It moves at the circular speed sqrt(M / r), either
    way round, plus N(0, 0.01^2) on both components in the plane. The order of the bodies is random.

    Args:
        num_samples: n >= 1.
        num_bodies: N >= 2, the star included.
        generator: whose random numbers, on the CPU.

    Returns:
        Masses (n, N), positions (n, N, 3), velocities (n, N, 3), float64.

    Raises:
        ValueError: num_samples < 1 or num_bodies < 2.

    Examples:
        >>> import torch
        >>> masses, x, v = sample_gravity(5, generator=torch.Generator().manual_seed(0))
        >>> masses.shape, x.shape, bool((x[..., 2] == 0).all())
        (torch.Size([5, 4]), torch.Size([5, 4, 3]), True)
    """
    check_number("num_samples", num_samples, least=1, whole=True)
    check_number("num_bodies", num_bodies, least=2, whole=True)
    shape = (num_samples, num_bodies - 1)
    star = _log_uniform(STAR_MASS, (num_samples, 1), generator)
    masses = torch.cat([star, _log_uniform(PLANET_MASS, shape, generator)], 1)

    inner, outer = ORBIT_RADIUS
    radius = inner + (outer - inner) * _uniform(shape, generator)
    phase = 2 * math.pi * _uniform(shape, generator)
    speed = (star / radius).sqrt() * _signs(shape, generator)
    positions, velocities = torch.zeros(2, num_samples, num_bodies, 3, dtype=torch.float64)
    positions[:, 1:, :2] = torch.stack([radius * phase.cos(), radius * phase.sin()], -1)
    velocities[:, 1:, :2] = torch.stack([-speed * phase.sin(), speed * phase.cos()], -1)
    velocities[:, 1:, :2] += VELOCITY_NOISE * _normal((*shape, 2), generator)

    order = _uniform(masses.shape, generator).argsort(1)
    sample = torch.arange(num_samples).unsqueeze(1)
    return masses[sample, order], positions[sample, order], velocities[sample, order]


def simulate_gravity(
    masses: Tensor,
    positions: Tensor,
    velocities: Tensor,
    *,
    steps: int = 100,
    dt: float = 0.001,
    gravitational_constant: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Point masses moved by Newton's gravity.

    Semi-implicit Euler, first order and symplectic, as in the published data set:

        v <- v + dt a(x),   x <- x + dt v,   a_i = G sum_j m_j (x_j - x_i) / |x_j - x_i|^3

    Args:
        masses: m, (..., N).
        positions: x, (..., N, 3).
        velocities: v, (..., N, 3).
        steps: number of steps, at least 1.
        dt: length of one step; negative runs the time backwards.
        gravitational_constant: G.

    Returns:
        Final positions and velocities, (..., N, 3), float64 whatever the inputs are. A sample in which two bodies
        coincide is NaN.

    Raises:
        ValueError: shapes do not match, N < 2 or steps < 1.

    Examples:
        >>> import torch
        >>> masses = torch.tensor([1.0, 1e-9])  # a quarter of a circular orbit: T = 2 pi
        >>> x, v = torch.tensor([[0.0, 0, 0], [1, 0, 0]]), torch.tensor([[0.0, 0, 0], [0, 1, 0]])
        >>> x, v = simulate_gravity(masses, x, v, steps=1571)
        >>> x[1].mul(100).round().abs().tolist()
        [0.0, 100.0, 0.0]
    """
    _check_state(masses, positions, velocities)
    i, j = _pairs(masses)
    return _integrate(
        gravitational_constant * masses.double()[..., i] * masses.double()[..., j],
        masses.double(),
        positions,
        velocities,
        steps=steps,
        dt=dt,
        second_order=False,
    )


def gravity_energy(
    masses: Tensor, positions: Tensor, velocities: Tensor, *, gravitational_constant: float = 1.0
) -> Tensor:
    """The total energy of point masses, sum_i m_i |v_i|^2 / 2 - G sum_{i<j} m_i m_j / |x_j - x_i|.

    Args:
        masses: m, (..., N).
        positions: x, (..., N, 3).
        velocities: v, (..., N, 3).
        gravitational_constant: G.

    Returns:
        (...), float64; negative for a bound system.

    Examples:
        >>> import torch
        >>> x, v = torch.tensor([[0.0, 0, 0], [2, 0, 0]]), torch.zeros(2, 3)
        >>> gravity_energy(torch.tensor([3.0, 1.0]), x, v).item()
        -1.5
    """
    _check_state(masses, positions, velocities)
    m, (i, j) = masses.double(), _pairs(masses)
    kinetic = (m * velocities.double().square().sum(-1)).sum(-1) / 2
    return kinetic - (gravitational_constant * m[..., i] * m[..., j] / _distances(positions)).sum(-1)


def sample_charges(
    num_samples: int, *, num_particles: int = 5, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Charges +-1, positions N(0, 0.5^2) along each axis, and velocities of norm 0.5 in any direction; no box.

    Args:
        num_samples: n >= 1.
        num_particles: N >= 2.
        generator: whose random numbers, on the CPU.

    Returns:
        Charges (n, N), positions (n, N, 3), velocities (n, N, 3), float64.

    Raises:
        ValueError: num_samples < 1 or num_particles < 2.

    Examples:
        >>> import torch
        >>> charges, x, v = sample_charges(2, generator=torch.Generator().manual_seed(0))
        >>> sorted(set(charges.flatten().tolist())), v.norm(dim=-1).unique().round(decimals=9).unique().tolist()
        ([-1.0, 1.0], [0.5])
    """
    check_number("num_samples", num_samples, least=1, whole=True)
    check_number("num_particles", num_particles, least=2, whole=True)
    shape = (num_samples, num_particles)
    charges = _signs(shape, generator)
    positions = 0.5 * _normal((*shape, 3), generator)
    directions = torch.nn.functional.normalize(_normal((*shape, 3), generator), dim=-1)
    return charges, positions, 0.5 * directions


def simulate_charges(
    charges: Tensor,
    positions: Tensor,
    velocities: Tensor,
    *,
    steps: int = 1000,
    dt: float = 0.001,
    softening: float = SOFTENING,
    field: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Particles of unit mass moved by the softened Coulomb force and a uniform electric field.

    Leapfrog (velocity Verlet), second order, symplectic and reversible:

        a_i = q_i sum_j q_j (x_i - x_j) / (|x_i - x_j|^2 + softening^2)^(3/2)  +  q_i field e_z

    The field pulls positive charges up and negative ones down: of O(3) only the elements that fix z remain a symmetry.

    Args:
        charges: q, (..., N).
        positions: x, (..., N, 3).
        velocities: v, (..., N, 3).
        steps: number of steps, at least 1.
        dt: length of one step; negative runs the time backwards.
        softening: length below which the force stops growing, > 0.
        field: strength of the field along z; 0 for none.

    Returns:
        Final positions and velocities, (..., N, 3), float64 whatever the inputs are.

    Raises:
        ValueError: shapes do not match, N < 2, steps < 1 or softening <= 0.

    Examples:
        >>> import torch
        >>> x, v = simulate_charges(torch.tensor([1.0, 1.0]), torch.eye(2, 3), torch.zeros(2, 3))
        >>> bool((x[1] - x[0]).norm() > 2**0.5)  # like charges part
        True
    """
    _check_state(charges, positions, velocities)
    check_number("softening", softening, above=0)
    q, (i, j) = charges.double(), _pairs(charges)
    return _integrate(
        -q[..., i] * q[..., j],
        torch.ones_like(q),
        positions,
        velocities,
        steps=steps,
        dt=dt,
        second_order=True,
        softening=softening,
        lift=field * q,
    )


def charged_energy(
    charges: Tensor, positions: Tensor, velocities: Tensor, *, softening: float = SOFTENING, field: float = 0.0
) -> Tensor:
    """The total energy of charged particles of unit mass.

        sum_i ( |v_i|^2 / 2 - q_i field z_i )  +  sum_{i<j} q_i q_j / sqrt(|x_j - x_i|^2 + softening^2)

    Args:
        charges: q, (..., N).
        positions: x, (..., N, 3).
        velocities: v, (..., N, 3).
        softening: as in `simulate_charges`.
        field: as in `simulate_charges`.

    Returns:
        (...), float64.

    Examples:
        >>> import torch
        >>> x, v = torch.tensor([[0.0, 0, 0], [0.6, 0, 0]]), torch.zeros(2, 3)
        >>> round(charged_energy(torch.tensor([1.0, -1.0]), x, v, softening=0.8).item(), 6)
        -1.0
    """
    _check_state(charges, positions, velocities)
    q, (i, j) = charges.double(), _pairs(charges)
    single = velocities.double().square().sum(-1) / 2 - field * q * positions.double()[..., 2]
    return single.sum(-1) + (q[..., i] * q[..., j] / _distances(positions, softening)).sum(-1)


def _uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float64)


def _normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


def _signs(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return 2.0 * torch.randint(2, tuple(shape), generator=generator, dtype=torch.float64) - 1.0


def _log_uniform(bounds: tuple[float, float], shape: Sequence[int], generator: torch.Generator) -> Tensor:
    low, high = bounds
    return low * (high / low) ** _uniform(shape, generator)


def _check_state(weights: Tensor, positions: Tensor, velocities: Tensor) -> None:
    """ValueError for shapes other than (..., N), (..., N, 3), (..., N, 3) with N >= 2."""
    shapes = tuple(weights.shape), tuple(positions.shape), tuple(velocities.shape)
    if len(shapes[0]) < 1 or shapes[0][-1] < 2 or shapes[1] != (*shapes[0], 3) or shapes[2] != shapes[1]:
        raise ValueError(
            "expected masses or charges (..., N), positions (..., N, 3) and velocities (..., N, 3) with equal leading "
            f"dimensions and N >= 2, got {shapes[0]}, {shapes[1]} and {shapes[2]}"
        )


def _pairs(weights: Tensor) -> Tensor:
    """Indices i < j of the pairs of bodies, shape (2, P)."""
    n = weights.shape[-1]
    return torch.triu_indices(n, n, 1, device=weights.device)


def _distances(positions: Tensor, softening: float = 0.0) -> Tensor:
    """Softened distance of every pair i < j, (..., N, 3) -> (..., P)."""
    i, j = _pairs(positions[..., 0])
    difference = positions.double()[..., j, :] - positions.double()[..., i, :]
    return (difference.square().sum(-1) + softening**2).sqrt()


def _integrate(
    attraction: Tensor,
    masses: Tensor,
    positions: Tensor,
    velocities: Tensor,
    *,
    steps: int,
    dt: float,
    second_order: bool,
    softening: float = 0.0,
    lift: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Kick (v += dt a) and drift (x += dt v) in turn under central pair forces.

    Second order begins and ends with half a kick (leapfrog); first order does not (semi-implicit Euler).
    The pair (i, j) attracts with attraction r / (r^2 + softening^2)^(3/2), attraction (..., P), and repels where it is
    negative; lift (..., N) is an additional force along z.
    """
    check_number("steps", steps, least=1, whole=True)
    shape, n = positions.shape, positions.shape[-2]
    i, j = _pairs(masses)
    pair = torch.arange(len(i), device=i.device)
    # incidence[p, j] = 1, incidence[p, i] = -1: two matrix products serve all bodies, and the third law is exact
    incidence = torch.zeros(len(i), n, dtype=torch.float64, device=i.device)
    incidence[pair, j], incidence[pair, i] = 1.0, -1.0

    def to_chunks(tensor: Tensor, *trailing: int) -> list[Tensor]:
        # samples last: the long dimension is the contiguous one
        rows = tensor.double().reshape(-1, *trailing).movedim(0, -1)
        chunks = torch.split(rows, max(1, _CHUNK // (3 * len(i))), -1)
        return [chunk.clone(memory_format=torch.contiguous_format) for chunk in chunks]

    def acceleration(x: Tensor, k: Tensor, m: Tensor, f: Tensor) -> Tensor:
        difference = (incidence @ x.flatten(1)).view(len(i), *x.shape[1:])  # (P, 3, B)
        inverse = difference.square().sum(1).add_(softening**2).rsqrt_()
        pull = k * inverse * inverse * inverse
        force: Tensor = -(incidence.mT @ (pull.unsqueeze(1) * difference).flatten(1)).view_as(x)
        force[:, 2] += f
        return force / m.unsqueeze(1)

    final_x, final_v = [], []
    for k, m, f, x, v in zip(
        to_chunks(attraction, len(i)),
        to_chunks(masses, n),
        to_chunks(torch.zeros_like(masses) if lift is None else lift, n),
        to_chunks(positions, n, 3),
        to_chunks(velocities, n, 3),
        strict=True,
    ):
        for step in range(steps):
            v.add_(acceleration(x, k, m, f), alpha=dt / 2 if second_order and step == 0 else dt)
            x.add_(v, alpha=dt)
        if second_order:
            v.add_(acceleration(x, k, m, f), alpha=dt / 2)
        final_x.append(x)
        final_v.append(v)
    return torch.cat(final_x, -1).movedim(-1, 0).reshape(shape), torch.cat(final_v, -1).movedim(-1, 0).reshape(shape)
