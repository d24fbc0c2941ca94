"""The training of a network of molecules that a user has already, and how well dynamics with it keeps the energy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lightning_equiv.datasets import MoleculesDataModule
from lightning_equiv.networks.molecules import E3nnForces, MolecularTransformer, SchNetForces

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "transformer": MolecularTransformer,
    "schnet": SchNetForces,
    "e3nn": E3nnForces,
}

BOLTZMANN = 8.617333e-5  # eV / K
INERTIA = 103.642697  # eV in one atomic mass unit (Angstrom / fs)^2
MASSES = {1: 1.008, 6: 12.011, 7: 14.007, 8: 15.999, 9: 18.998, 15: 30.974, 16: 32.06, 17: 35.45}
TOO_HOT = 10.0  # times the mean kinetic energy at the start


class MolecularModule(L.LightningModule):
    """Energies and forces by mean squared errors; nothing in it knows of a symmetry.

        loss = mean (E - E')^2 / energy_scale^2 + force_weight mean (F - F')^2 / force_scale^2

    Args:
        network: "transformer", "schnet", "e3nn", or what makes a network.
        settings: of the network, by keyword.
        lr: Rate of Adam at the start; it falls to zero along half a cosine.
        force_weight: Of the second term.
        energy_scale: In eV, about the standard deviation of the data.
        force_scale: In eV per Angstrom, about the standard deviation of the data.
    """

    def __init__(
        self,
        network: str | Callable[..., nn.Module] = "transformer",
        settings: dict[str, Any] | None = None,
        *,
        lr: float = 2e-3,
        force_weight: float = 10.0,
        energy_scale: float = 0.15,
        force_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if isinstance(network, str) and network not in NETWORKS:
            raise ValueError(f"expected network to be one of {sorted(NETWORKS)} or a function, got {network!r}")
        make = NETWORKS[network] if isinstance(network, str) else network
        self.net = make(**(settings or {}))
        self.lr, self.force_weight = lr, force_weight
        self.energy_scale, self.force_scale = energy_scale, force_scale

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """The loss."""
        loss = self.loss(self.net(batch["numbers"], batch["positions"]), batch)
        self.log("train_loss", loss, batch_size=len(batch["energy"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        """Loss and mean absolute errors."""
        out = self.net(batch["numbers"], batch["positions"])
        logged = {"loss": self.loss(out, batch), **mean_errors(out, batch)}
        self.log_dict({f"val_{name}": value for name, value in logged.items()}, batch_size=len(batch["energy"]))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Mean absolute errors on each of the data module's test sets."""
        trainer: Any = self.trainer
        name = trainer.datamodule.test_names[dataloader_idx]
        errors = mean_errors(self.net(batch["numbers"], batch["positions"]), batch)
        logged = {f"test_{error}_{name}": value for error, value in errors.items()}
        self.log_dict(logged, add_dataloader_idx=False, batch_size=len(batch["energy"]))

    def loss(self, out: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        """See the class."""
        energy = nn.functional.mse_loss(out["energy"], batch["energy"]) / self.energy_scale**2
        forces = nn.functional.mse_loss(out["forces"], batch["forces"]) / self.force_scale**2
        return energy + self.force_weight * forces

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam, its rate along half a cosine."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        steps = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: (1 + math.cos(math.pi * i / steps)) / 2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def mean_errors(out: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mean absolute errors in meV and in meV per Angstrom, over all components."""
    return {
        "energy_mae": 1000 * nn.functional.l1_loss(out["energy"], batch["energy"]),
        "force_mae": 1000 * nn.functional.l1_loss(out["forces"], batch["forces"]),
    }


def drift(
    module: MolecularModule,
    data: MoleculesDataModule,
    *,
    num_frames: int = 8,
    steps: int = 300,
    step: float = 0.5,
    temperature: float = 300.0,
    seed: int = 0,
) -> dict[str, float]:
    """How well dynamics at constant energy keeps the energy: velocity Verlet from the first frames of "id".

    The net force, which accelerates the molecule as a whole, is taken off, so that the centre of mass stays at the
    origin as in the data.

    Args:
        module: whose network is asked for energies and forces.
        data: whose test frames are the start.
        num_frames: molecules, at most `data.test_size`.
        steps: of the integration.
        step: in fs.
        temperature: of the velocities at the start, in K.
        seed: of the velocities at the start.

    Returns:
        {"energy_drift": the absolute slope of the total energy in meV per atom and ps, fitted by least squares until a
        frame blows up, its mean over the frames where it is finite; "blown_up": the share of frames that at some time
        had a kinetic energy that is not finite or more than ten times its mean at this temperature}.
    """
    samples = data.samples("id")
    numbers = samples["numbers"][:num_frames].to(module.device)
    x = samples["positions"][:num_frames].to(module.device).double()
    dtype = next((p.dtype for p in module.parameters()), x.dtype)
    mass = INERTIA * torch.tensor([[MASSES[z] for z in row] for row in numbers.tolist()], device=x.device).double()
    mass = mass[..., None]  # in eV (fs / Angstrom)^2
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device) * (BOLTZMANN * temperature / mass).sqrt()
    v = v - (mass * v).sum(1, keepdim=True) / mass.sum(1, keepdim=True)

    def at(x: Tensor) -> tuple[Tensor, Tensor]:
        out = module.net(numbers, x.to(dtype))
        forces = out["forces"].double()
        # the molecule stays where it is: a network that predicts forces directly may pull at the whole of it
        return out["energy"].double(), forces - mass / mass.sum(1, keepdim=True) * forces.sum(1, keepdim=True)

    was_training = module.training
    module.eval()
    kinetic, total = [], []
    with torch.no_grad():
        energy, forces = at(x)
        for _ in range(steps):
            v = v + step / 2 * forces / mass
            x = x + step * v
            energy, forces = at(x)
            v = v + step / 2 * forces / mass
            kinetic.append((mass * v.square()).sum((1, 2)) / 2)
            total.append(energy + kinetic[-1])
    module.train(was_training)

    n = numbers.shape[1]
    # False for NaN
    cool = (torch.stack(kinetic) <= TOO_HOT * 3 * n / 2 * BOLTZMANN * temperature).double().cumprod(0)
    kept = cool.bool() | (torch.arange(steps, device=x.device)[:, None] < 2)  # a slope needs two times
    time = step / 1000 * torch.arange(steps, dtype=x.dtype, device=x.device)[:, None]  # ps
    time = torch.where(kept, time - (time * kept).sum(0) / kept.sum(0), 0.0)
    slopes = (time * torch.where(kept, torch.stack(total), 0.0)).sum(0) / time.square().sum(0)  # eV / ps
    slopes = slopes[slopes.isfinite()]
    return {"energy_drift": float(1000 / n * slopes.abs().mean()), "blown_up": float(1 - cool[-1].mean())}
