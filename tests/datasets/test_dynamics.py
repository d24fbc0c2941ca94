"""How particles start and move: against closed forms, scipy and the symmetries of the laws."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.spatial.transform import Rotation
from torch import Tensor

from lightning_equiv.datasets import (
    charged_energy,
    gravity_energy,
    sample_charges,
    sample_gravity,
    simulate_charges,
    simulate_gravity,
)

State = tuple[Tensor, Tensor, Tensor]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _gravity(n: int = 64, num_bodies: int = 4, seed: int = 0) -> State:
    """Systems without close encounters, so that a finite step is accurate."""
    masses, x, v = sample_gravity(8 * n, num_bodies=num_bodies, generator=_generator(seed))
    apart = torch.cdist(x, x).add(10 * torch.eye(num_bodies)).amin((1, 2)) > 0.3
    return masses[apart][:n], x[apart][:n], v[apart][:n]


def _charges(n: int = 64, seed: int = 0) -> State:
    return sample_charges(n, generator=_generator(seed))


def _slow_acceleration(weights: np.ndarray, x: np.ndarray, *, gravity: bool, field: float = 0.0) -> np.ndarray:
    """Newton's and Coulomb's law, one pair at a time."""
    total = np.zeros_like(x)
    for a in range(len(x)):
        for b in range(len(x)):
            if a == b:
                continue
            r = x[b] - x[a]
            if gravity:
                total[a] += weights[b] * r / np.linalg.norm(r) ** 3
            else:
                total[a] -= weights[a] * weights[b] * r / (r @ r + 0.1**2) ** 1.5
        if not gravity:
            total[a, 2] += weights[a] * field
    return total


def _solve(weights: Tensor, x: Tensor, v: Tensor, time: float, *, gravity: bool, field: float = 0.0) -> Tensor:
    shape = x.shape

    def derivative(_: float, y: np.ndarray) -> np.ndarray:
        place, speed = y.reshape(2, *shape)
        return np.stack([speed, _slow_acceleration(weights.numpy(), place, gravity=gravity, field=field)]).ravel()

    start = torch.stack([x, v]).numpy().ravel()
    solution = solve_ivp(derivative, (0, time), start, method="DOP853", rtol=1e-11, atol=1e-12)
    return torch.from_numpy(solution.y[:, -1].reshape(2, *shape)[0].copy())


class TestPhysics:
    """`simulate_gravity` and `simulate_charges`."""

    def test_circular_two_body_orbit(self) -> None:
        # both bodies circle their centre of mass with omega^2 = G M / d^3
        big, small, distance, constant = 3.0, 1.0, 0.8, 2.0
        total = big + small
        omega = math.sqrt(constant * total / distance**3)
        radii = torch.tensor([-small, big], dtype=torch.float64) * distance / total
        x = torch.stack([radii, torch.zeros(2), torch.zeros(2)], -1)
        v = torch.stack([torch.zeros(2), omega * radii, torch.zeros(2)], -1)
        steps, time = 5000, 0.7 * 2 * math.pi / omega
        final, _ = simulate_gravity(
            torch.tensor([big, small]), x, v, steps=steps, dt=time / steps, gravitational_constant=constant
        )
        phase = omega * time
        expected = torch.stack([radii * math.cos(phase), radii * math.sin(phase), torch.zeros(2)], -1)
        torch.testing.assert_close(final, expected, rtol=0, atol=4e-3)
        assert (final - x).norm(dim=-1).min() > 0.1

    def test_gravity_against_scipy(self) -> None:
        masses, x, v = _gravity(3)
        exact = torch.stack([_solve(*state, 0.1, gravity=True) for state in zip(masses, x, v, strict=True)])
        errors = []
        for steps in (100, 1000, 10000):
            final, _ = simulate_gravity(masses, x, v, steps=steps, dt=0.1 / steps)
            errors.append((final - exact).abs().max().item())
        assert errors[0] < 5e-3
        assert errors[-1] < 5e-5
        # first order: ten times smaller for a tenth of the step
        assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)
        assert errors[1] / errors[2] == pytest.approx(10, rel=0.1)

    @pytest.mark.parametrize("field", [0.0, 0.7])
    def test_charges_against_scipy(self, field: float) -> None:
        state = _charges(3, seed=1)
        exact = torch.stack([_solve(*one, 1.0, gravity=False, field=field) for one in zip(*state, strict=True)])
        errors = []
        for steps in (1000, 2000):
            final, _ = simulate_charges(*state, steps=steps, dt=1 / steps, field=field)
            errors.append((final - exact).abs().max().item())
        assert errors[0] < 1e-3
        # second order: four times smaller for half the step
        assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)

    def test_energy_twins(self) -> None:
        masses, x, v = (tensor[0] for tensor in _gravity(1))
        charges, y, w = (tensor[0] for tensor in _charges(1))
        gravity, charged = 0.0, 0.0
        for a in range(len(masses)):
            gravity += 0.5 * float(masses[a] * v[a] @ v[a])
            gravity -= sum(3.0 * float(masses[a] * masses[b] / (x[a] - x[b]).norm()) for b in range(a))
        for a in range(len(charges)):
            charged += 0.5 * float(w[a] @ w[a]) - 0.3 * float(charges[a] * y[a, 2])
            charged += sum(
                float(charges[a] * charges[b]) / math.sqrt(float((y[a] - y[b]).square().sum()) + 0.2**2)
                for b in range(a)
            )
        assert gravity_energy(masses, x, v, gravitational_constant=3.0).item() == pytest.approx(gravity, rel=1e-12)
        assert charged_energy(charges, y, w, softening=0.2, field=0.3).item() == pytest.approx(charged, rel=1e-12)

    def test_gravity_energy_drift(self) -> None:
        state = _gravity()
        before = gravity_energy(*state)
        drift = []
        for steps in (100, 200):
            after = gravity_energy(state[0], *simulate_gravity(*state, steps=steps, dt=0.1 / steps))
            drift.append(((after - before) / before).abs().median().item())
        assert drift[0] < 2e-4
        assert drift[0] / drift[1] == pytest.approx(2, rel=0.2)

    @pytest.mark.parametrize("field", [0.0, 0.5])
    def test_charged_energy_drift(self, field: float) -> None:
        state = _charges(200)
        before = charged_energy(*state, field=field)
        drift = []
        for steps in (500, 1000):
            after = charged_energy(
                state[0], *simulate_charges(*state, steps=steps, dt=1 / steps, field=field), field=field
            )
            drift.append(((after - before) / before).abs().median().item())
        assert drift[1] < 2e-5
        assert drift[0] / drift[1] == pytest.approx(4, rel=0.2)

    def test_momentum(self) -> None:
        masses, x, v = _gravity()
        _, u = simulate_gravity(masses, x, v)
        mass = masses.unsqueeze(-1)
        torch.testing.assert_close((mass * u).sum(1), (mass * v).sum(1), rtol=0, atol=1e-12)
        charges, y, w = _charges()
        moved, u = simulate_charges(charges, y, w, steps=200)
        torch.testing.assert_close(u.sum(1), w.sum(1), rtol=0, atol=1e-11)
        spin = torch.linalg.cross(y, w).sum(1)
        torch.testing.assert_close(torch.linalg.cross(moved, u).sum(1), spin, rtol=0, atol=1e-11)
        # a field adds (total charge) x field x time along z
        _, u = simulate_charges(charges, y, w, steps=200, field=2.0)
        gained = torch.stack([torch.zeros(len(y)), torch.zeros(len(y)), charges.sum(1) * 2.0 * 0.2], -1)
        torch.testing.assert_close(u.sum(1) - w.sum(1), gained.double(), rtol=0, atol=1e-11)

    def test_time_runs_backwards(self) -> None:
        charges, x, v = _charges(8)
        there, speed = simulate_charges(charges, x, v, steps=200, field=0.3)
        back, back_speed = simulate_charges(charges, there, speed, steps=200, dt=-0.001, field=0.3)
        torch.testing.assert_close(back, x, rtol=0, atol=1e-10)
        torch.testing.assert_close(back_speed, v, rtol=0, atol=1e-10)

    @pytest.mark.parametrize("improper", [False, True])
    @pytest.mark.parametrize(
        ("simulate", "state"),
        [(simulate_gravity, _gravity()), (simulate_charges, _charges())],
        ids=["gravity", "charges"],
    )
    def test_equivariance(self, simulate: Callable[..., tuple[Tensor, Tensor]], state: State, improper: bool) -> None:
        weights, x, v = state
        turn = torch.from_numpy(Rotation.random(None, np.random.default_rng(0)).as_matrix()) * (-1 if improper else 1)
        order = torch.randperm(x.shape[1], generator=_generator(3))
        shift = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
        f_gx, _ = simulate(weights[:, order], (x @ turn.T + shift)[:, order], (v @ turn.T)[:, order], steps=50)
        g_fx = (simulate(weights, x, v, steps=50)[0] @ turn.T + shift)[:, order]
        torch.testing.assert_close(f_gx, g_fx, rtol=0, atol=1e-12)

    def test_field_breaks_all_but_the_z_axis(self) -> None:
        charges, x, v = _charges()
        for axis, exact in (([0, 0, 1.0], True), ([1.0, 0, 0], False)):
            turn = torch.from_numpy(Rotation.from_rotvec(axis).as_matrix())
            f_gx, _ = simulate_charges(charges, x @ turn.T, v @ turn.T, steps=50, field=1.0)
            g_fx = simulate_charges(charges, x, v, steps=50, field=1.0)[0] @ turn.T
            assert ((f_gx - g_fx).abs().max() < 1e-12).item() is exact

    def test_leading_shapes_types_and_inputs(self) -> None:
        weights, x, v = (tensor.float() for tensor in _charges(700))  # more than one chunk
        kept = x.clone(), v.clone()
        final, speed = simulate_charges(weights, x, v, steps=5)
        assert final.dtype == speed.dtype == torch.float64
        assert torch.equal(x, kept[0])
        assert torch.equal(v, kept[1])
        folded, _ = simulate_charges(weights.view(7, 100, 5), x.view(7, 100, 5, 3), v.view(7, 100, 5, 3), steps=5)
        torch.testing.assert_close(folded.view(700, 5, 3), final, rtol=0, atol=1e-13)
        single, _ = simulate_charges(weights[699], x[699], v[699], steps=5)
        torch.testing.assert_close(single, final[699], rtol=0, atol=1e-13)

    def test_bad_input(self) -> None:
        charges, x, v = _charges(2)
        with pytest.raises(ValueError, match=r"got \(2, 4\), \(2, 5, 3\) and \(2, 5, 3\)"):
            simulate_charges(charges[:, :4], x, v)
        with pytest.raises(ValueError, match="N >= 2"):
            simulate_gravity(charges[:, :1], x[:, :1], v[:, :1])
        with pytest.raises(ValueError, match="expected steps to be a whole number of at least 1, got 0"):
            simulate_gravity(charges, x, v, steps=0)
        with pytest.raises(ValueError, match="expected softening to be a finite number above 0"):
            simulate_charges(charges, x, v, softening=0.0)


class TestSamples:
    """`sample_gravity` and `sample_charges`."""

    def test_base_pose_is_planar_and_circular(self) -> None:
        masses, x, v = sample_gravity(500, generator=_generator())
        centred = torch.cat([x - x.mean(1, keepdim=True), v], 1)
        assert torch.linalg.svdvals(centred)[:, -1].max() < 1e-12
        star = masses.argmax(1)
        sample = torch.arange(500)
        assert x[sample, star].abs().max() == 0
        assert v[sample, star].abs().max() == 0
        assert star.bincount(minlength=4).min() > 80  # permuted
        planet = masses < 1
        radius, speed = x[planet].norm(dim=-1), v[planet].norm(dim=-1)
        assert radius.min() >= 0.1
        assert radius.max() <= 1.0
        assert radius.mean().item() == pytest.approx(0.55, abs=0.03)
        circular = (masses.amax(1, keepdim=True).expand(-1, 4)[planet] / radius).sqrt()
        assert (speed - circular).std().item() == pytest.approx(0.01, rel=0.1)
        spin = torch.linalg.cross(x[planet], v[planet])[:, 2]
        assert (spin > 0).double().mean().item() == pytest.approx(0.5, abs=0.06)

    def test_masses_are_log_uniform(self) -> None:
        masses, _, _ = sample_gravity(4000, generator=_generator())
        for values, low in ((masses[masses >= 1], 1.0), (masses[masses < 1], 0.01)):
            exponent = (values / low).log10()
            assert exponent.min() >= 0
            assert exponent.max() <= 1
            assert exponent.mean().item() == pytest.approx(0.5, abs=0.02)
            assert exponent.var().item() == pytest.approx(1 / 12, rel=0.05)

    def test_charges(self) -> None:
        charges, x, v = sample_charges(4000, generator=_generator())
        assert set(charges.flatten().tolist()) == {-1.0, 1.0}
        assert charges.mean().abs() < 0.03
        assert x.std().item() == pytest.approx(0.5, rel=0.02)
        torch.testing.assert_close(v.norm(dim=-1), torch.full_like(charges, 0.5))
        assert v.mean((0, 1)).abs().max() < 0.01

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match="expected num_samples to be a whole number of at least 1, got 0"):
            sample_gravity(0, generator=_generator())
        with pytest.raises(ValueError, match="expected num_bodies to be a whole number of at least 2, got 1"):
            sample_gravity(1, num_bodies=1, generator=_generator())
        with pytest.raises(ValueError, match="expected num_particles to be a whole number of at least 2, got 1"):
            sample_charges(1, num_particles=1, generator=_generator())
