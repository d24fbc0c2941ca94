"""Networks of molecules: forces against slopes, symmetry, training, and dynamics against closed forms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torch_geometric")

from lightning_equiv import GroupAugmentation, equivariance_error
from lightning_equiv.datasets import MoleculesDataModule, molecules
from lightning_equiv.networks.molecular_module import BOLTZMANN, INERTIA, MolecularModule, drift
from lightning_equiv.networks.molecules import SYMMETRY, E3nnForces, MolecularTransformer, SchNetForces
from tests.helpers import normal

NUMBERS = torch.tensor([row[0] for row in molecules.MOLECULES["ethanol"]])
ETHANOL = torch.tensor([row[1:] for row in molecules.MOLECULES["ethanol"]]).double()
SMALL: dict[str, Any] = {
    "transformer": lambda: MolecularTransformer(2, 16, 2),
    "schnet": lambda: SchNetForces(16, 2, 8),
    "e3nn": lambda: E3nnForces(8, 2),
    "e3nn, conservative": lambda: E3nnForces(8, 2, conservative=True),
}
CONSERVATIVE = ["schnet", "e3nn, conservative"]


def geometries(b: int = 4) -> tuple[Tensor, Tensor]:
    x = ETHANOL + 0.1 * normal(b, *ETHANOL.shape)
    return NUMBERS.repeat(b, 1), x - x.mean(1, keepdim=True)


def springs(positions: Tensor) -> dict[str, Tensor]:
    """Every atom on a spring of 5 eV / Angstrom^2: energy and forces in closed form."""
    away = positions - ETHANOL
    return {"energy": 2.5 * away.square().sum((1, 2)), "forces": -5 * away}


class Toy(MoleculesDataModule):
    """Frames about ethanol, with energies and forces of springs."""

    def _draw(self, split: str, seed: int) -> dict[str, Tensor]:
        n = self._size(split)
        x = ETHANOL + 0.1 * torch.randn(n, 9, 3, generator=torch.Generator().manual_seed(seed)).double()
        samples = {"numbers": NUMBERS.repeat(n, 1), "positions": x, **springs(x)}
        return {name: t.float() if t.is_floating_point() else t for name, t in samples.items()}


def toy(**changed: int) -> Toy:
    sizes = {"num_frames": 400, "train_size": 64, "val_size": 16, "test_size": 8, "batch_size": 16}
    return Toy(**{**sizes, "eval_batch_size": 8, **changed})


def trainer(tmp_path: Path, steps: int, *callbacks: L.Callback) -> L.Trainer:
    return L.Trainer(
        max_steps=steps,
        callbacks=list(callbacks),
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class TestNetworks:
    """What all of them promise."""

    @pytest.mark.parametrize("name", CONSERVATIVE)
    @pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
    def test_forces_are_the_negative_gradient(self, name: str, mode: Any) -> None:
        network = SMALL[name]().double()
        with mode():
            numbers, x = geometries(2)
            out = network(numbers, x)
            assert out["forces"].requires_grad == (mode is torch.enable_grad)
            for atom, axis in ((0, 0), (3, 1), (8, 2)):
                step = torch.zeros_like(x)
                step[:, atom, axis] = 1e-5
                slope = (network(numbers, x + step)["energy"] - network(numbers, x - step)["energy"]) / 2e-5
                torch.testing.assert_close(out["forces"][:, atom, axis], -slope, rtol=0, atol=1e-8)
        assert out["forces"].abs().mean() > 1e-3

    @pytest.mark.parametrize("name", SMALL)
    def test_symmetry(self, name: str) -> None:
        args = geometries()
        error = equivariance_error(SMALL[name]().double(), args, SYMMETRY, needs_grad=True, per_irrep=True)
        assert {part.split(".")[0] for part in error} == {"total", "energy", "forces"}
        if name == "transformer":
            assert error["total"].min() > 0.1
        else:
            assert error["total"].max() < 1e-10
            single = equivariance_error(SMALL[name](), (args[0], args[1].float()), SYMMETRY, needs_grad=True)
            assert single.max() < 1e-4

    @pytest.mark.parametrize("name", SMALL)
    def test_samples_do_not_meet_and_atoms_have_no_order(self, name: str) -> None:
        network, (numbers, x) = SMALL[name]().double(), geometries()
        out = network(numbers, x)
        alone = network(numbers[1:2], x[1:2])
        order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
        mixed = network(numbers[:, order], x[:, order])
        assert out["energy"].shape == (4,)
        assert out["forces"].shape == x.shape
        for name_, rows in (("energy", out["energy"]), ("forces", out["forces"][:, order])):
            torch.testing.assert_close(alone[name_], out[name_][1:2], rtol=0, atol=1e-10)
            torch.testing.assert_close(mixed[name_], rows, rtol=0, atol=1e-10)

    @pytest.mark.parametrize("name", SMALL)
    def test_every_weight_learns(self, name: str) -> None:
        network, args = SMALL[name]().double(), geometries()
        out = network(*args)
        (out["energy"].square().sum() + (out["forces"] - 1).square().sum()).backward()
        still = {key for key, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
        assert not still


class TestModule:
    """`MolecularModule`."""

    @pytest.mark.parametrize("network", ["transformer", "schnet", "e3nn"])
    def test_training(self, network: str, tmp_path: Path) -> None:
        module, data = MolecularModule(network, lr=3e-3), toy(steps_per_epoch=10)
        samples = data.samples("val")
        start = module.loss(module.net(samples["numbers"], samples["positions"]), samples).item()
        run = trainer(tmp_path, 30)
        run.fit(module, datamodule=data)
        logged = run.callback_metrics
        assert {"val_loss", "val_force_mae", "val_energy_mae"} <= set(logged)
        assert float(logged["val_loss"]) < 0.8 * start
        assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)

    def test_errors_by_hand(self, tmp_path: Path) -> None:
        class Off(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.shift = nn.Parameter(torch.tensor(0.1))

            def forward(self, numbers: Tensor, positions: Tensor) -> dict[str, Tensor]:
                out = springs(positions)
                return {"energy": out["energy"].float() - self.shift, "forces": out["forces"].float() + 2 * self.shift}

        module, data = MolecularModule(Off, force_weight=3.0, energy_scale=0.5, force_scale=2.0), toy()
        run = trainer(tmp_path, 1)
        run.validate(module, datamodule=data, verbose=False)
        expected = {"val_energy_mae": 100, "val_force_mae": 200, "val_loss": 0.01 / 0.25 + 3 * 0.04 / 4}
        assert {key: float(run.callback_metrics[key]) for key in expected} == pytest.approx(expected, rel=1e-3)
        run.test(module, datamodule=data, verbose=False)
        assert {key: round(float(value)) for key, value in run.callback_metrics.items()} == {
            "test_energy_mae_id": 100,
            "test_energy_mae_ood": 100,
            "test_force_mae_id": 200,
            "test_force_mae_ood": 200,
        }

    def test_the_rate_falls_along_half_a_cosine(self, tmp_path: Path) -> None:
        rates = []

        class Rates(L.Callback):
            def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
                rates.append(trainer.optimizers[0].param_groups[0]["lr"])

        trainer(tmp_path, 8, Rates()).fit(
            MolecularModule(SMALL["transformer"], lr=0.01), datamodule=toy(steps_per_epoch=4)
        )
        assert rates == pytest.approx([0.005 * (1 + math.cos(math.pi * i / 8)) for i in range(8)])

    def test_augmentation_turns_positions_and_forces(self, tmp_path: Path) -> None:
        seen = []

        class Watched(MolecularModule):
            def training_step(self, batch: dict[str, Tensor]) -> Tensor:
                seen.append(batch)
                return super().training_step(batch)

        data = toy(steps_per_epoch=1)
        trainer(tmp_path, 1, GroupAugmentation(SYMMETRY)).fit(Watched(SMALL["transformer"]), datamodule=data)
        (batch,) = seen
        kept = data.samples("train")
        row = (kept["energy"][:, None] - batch["energy"]).abs().argmin(0)
        for name in ("positions", "forces"):
            assert (batch[name] - kept[name][row]).abs().max() > 0.1
            lengths = torch.cdist(batch[name], batch[name])
            torch.testing.assert_close(lengths, torch.cdist(kept[name][row], kept[name][row]), rtol=0, atol=1e-4)

    def test_unknown_network(self) -> None:
        with pytest.raises(ValueError, match=r"one of .*'schnet'.* or a function, got 'painn'"):
            MolecularModule("painn")


class TestDrift:
    """`drift`."""

    class Springs(nn.Module):
        """The springs, and a force across the displacement, which no energy has; it remembers where it was asked."""

        def __init__(self, across: float = 0.0) -> None:
            super().__init__()
            self.across, self.seen = across, []

        def forward(self, numbers: Tensor, positions: Tensor) -> dict[str, Tensor]:
            self.seen.append(positions)
            out = springs(positions)
            axis = torch.tensor([0.0, 0.0, 1.0], dtype=positions.dtype).expand_as(positions)
            return {**out, "forces": out["forces"] + self.across * torch.linalg.cross(axis, positions - ETHANOL)}

    def test_springs_keep_their_energy(self) -> None:
        result = drift(MolecularModule(self.Springs), toy(), num_frames=4)
        assert result["energy_drift"] < 0.5
        assert result["blown_up"] == 0

    def test_positions_of_a_harmonic_motion(self) -> None:
        """Distances of equal atoms from each other swing with one frequency; the net force drops out of them."""
        module = MolecularModule(self.Springs)
        drift(module, toy(), num_frames=4, steps=200, step=0.1)
        x = torch.stack(module.net.seen)[:, :, 4:]  # the hydrogens
        away = (x[:, :, 1:] - x[:, :, :1]) - (ETHANOL[5:] - ETHANOL[4])
        omega = math.sqrt(5 / (1.008 * INERTIA))  # rad / fs
        time = 0.1 * torch.arange(201, dtype=x.dtype)[:, None, None, None]
        last = away[-1] - away[0] * math.cos(20 * omega)
        closed = away[0] * torch.cos(omega * time) + last / math.sin(20 * omega) * torch.sin(omega * time)
        torch.testing.assert_close(away, closed, rtol=0, atol=1e-4)
        assert (away - away[0]).abs().max() > 0.05

    def test_slope_against_a_fit_by_numpy(self) -> None:
        """The energy that a force across brings in, from the positions alone."""
        module = MolecularModule(lambda: self.Springs(across=0.3))
        result = drift(module, toy(), num_frames=4, steps=100, step=0.5)
        x = torch.stack(module.net.seen)
        mass = INERTIA * torch.tensor([12.011, 12.011, 15.999] + 6 * [1.008]).double()[:, None]
        centre = (mass * x).sum(2)
        torch.testing.assert_close(centre, centre[:1].expand_as(centre), rtol=0, atol=1e-6)
        v = (x[2:] - x[:-2]) / 1.0  # of velocity Verlet, exactly
        energy = torch.stack([springs(frame)["energy"] for frame in x[1:-1]]) + (mass * v.square()).sum((2, 3)) / 2
        slopes = np.polyfit(0.0005 * np.arange(99), energy.numpy(), 1)[0]
        assert 1000 / 9 * np.abs(slopes).mean() > 50
        # the last of the 100 steps has no velocity by differences
        assert result["energy_drift"] == pytest.approx(1000 / 9 * np.abs(slopes).mean(), rel=0.1)

    def test_velocities_are_those_of_the_temperature(self) -> None:
        module = MolecularModule(lambda: self.Springs())
        drift(module, toy(test_size=100), num_frames=100, steps=1, step=0.001, temperature=300)
        start, after = module.net.seen
        mass = INERTIA * torch.tensor([12.011, 12.011, 15.999] + 6 * [1.008]).double()[:, None]
        kinetic = (mass * ((after - start) / 0.001).square()).sum((1, 2)) / 2
        # without the motion of the whole: 3 N - 3 halves of k T
        assert kinetic.mean().item() == pytest.approx(12 * BOLTZMANN * 300, rel=0.1)

    def test_blown_up(self) -> None:
        class Away(nn.Module):
            def forward(self, numbers: Tensor, positions: Tensor) -> dict[str, Tensor]:
                bad = torch.tensor([0.0, 1.0, math.nan, 0.0], dtype=positions.dtype)[:, None, None]
                return {"energy": positions.new_zeros(4), "forces": 1e3 * bad * positions}

        result = drift(MolecularModule(Away), toy(), num_frames=4, steps=20)
        assert result["blown_up"] == 0.5
        assert result["energy_drift"] > 1e6  # of the frame that explodes, until it does; the one of NaN has no slope
