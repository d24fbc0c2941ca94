"""Report cards: one Transformer trained three ways, before and after, and a SchNet with conservative forces.

The Transformer is that of nbody_remul.py, on bodies that were turned by at most 10 degrees in training: as it is, with
augmentation, with REMUL. The SchNet is torch-geometric's, trained for a moment on small clusters of atoms that are
drawn here (Morse potentials between pairs); its forces are the gradient of its energy.

    python examples/audit_demo.py --preset quick       a few minutes on two cores
    python examples/audit_demo.py --preset full        a larger Transformer, 8,000 steps
    python examples/audit_demo.py --redraw             only the pages, from the figures of an earlier run

Writes the figures of each network (.json) and, of those that belong together, one page (.html, .md), one picture (.png)
and one table (.csv): audit_nbody, audit_nbody_training, audit_schnet.
"""

from __future__ import annotations

import argparse
import csv
import logging
import warnings
from pathlib import Path

import lightning as L
import torch
from nbody_remul import SYMMETRY, WAYS
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import SchNet

from lightning_equiv import EquivarianceReport, Invariant, Point, Symmetry, audit
from lightning_equiv.datasets import radius_graph
from lightning_equiv.datasets.nbody import GravityDataModule
from lightning_equiv.networks.tasks import Particles
from lightning_equiv.networks.transformer import ParticleTransformer
from lightning_equiv.report.pictures import save_png

PAGES = {  # what stands side by side, by its name on the page; one network is a page by itself
    "audit_nbody": {"plain": "nbody_plain", "augmentation": "nbody_augmentation", "REMUL": "nbody_remul"},
    "audit_nbody_training": {"before training": "nbody_untrained", "after training": "nbody_plain"},
    "audit_schnet": {"SchNet": "schnet"},
}
TRANSFORMERS = {"fast": (1, 16, 2), "quick": (3, 64, 4), "full": (4, 128, 8)}  # blocks, channels, heads
STEPS = {"fast": 2, "quick": 3000, "full": 8000}
SCHNET_STEPS = {"quick": 500, "full": 5000}
CUTOFF = 4.0  # Angstrom


# ---- bodies under gravity -------------------------------------------------------------------------------------------
def nbody_reports(options: argparse.Namespace) -> dict[str, EquivarianceReport]:
    """The Transformer before training, and trained three ways."""
    preset = "fast" if options.fast_dev_run else options.preset
    data = GravityDataModule(
        test_size=32 if options.fast_dev_run else 2000, eval_batch_size=256, steps_per_epoch=250, seed=options.seed
    )

    def report(name: str, net: nn.Module) -> EquivarianceReport:
        sizes = {"draws": 4, "num_inputs": 16} if options.fast_dev_run else {}
        return audit(net, data, SYMMETRY, labels="targets", name=name, progress=options.progress, **sizes)

    reports = {}
    for way, name in {"plain": "plain", "augmentation": "augmentation", "REMUL": "REMUL(10)"}.items():
        L.seed_everything(options.seed, verbose=False)
        module = Particles(ParticleTransformer(*TRANSFORMERS[preset]))
        if way == "plain":
            reports["nbody_untrained"] = report("untrained Transformer", module.net)
        L.Trainer(
            max_steps=STEPS[preset],
            max_epochs=-(-STEPS[preset] // len(data.train_dataloader())),  # so that the bar knows how many
            gradient_clip_val=10.0,
            limit_val_batches=0,
            callbacks=WAYS[name].make_callbacks({}, options.seed),
            accelerator=options.accelerator,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=options.progress,
        ).fit(module, datamodule=data)
        reports[f"nbody_{way.lower()}"] = report(f"Transformer, {way}", module.net)
    return reports


# ---- energies and forces --------------------------------------------------------------------------------------------
class EnergyAndForces(nn.Module):
    """SchNet, and the forces that follow from its energy."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.schnet = SchNet(hidden, hidden, 3, num_gaussians=32, cutoff=CUTOFF, interaction_graph=edges)

    def forward(self, data: Data) -> dict[str, Tensor]:
        """An energy for each molecule, a force for each atom."""
        with torch.enable_grad():
            positions = data.pos.detach().requires_grad_(True)
            energy = self.schnet(data.z, positions, data.batch).squeeze(-1)
            (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
        return {"energy": energy, "forces": -gradient}


def edges(positions: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of atoms up to the cutoff, and their distances."""
    pairs = radius_graph(positions.detach(), CUTOFF, batch)
    return pairs, (positions[pairs[0]] - positions[pairs[1]]).norm(dim=-1)


def molecule(generator: torch.Generator) -> Data:
    """Four to eight atoms of hydrogen, carbon and oxygen near the points of a grid, with Morse potentials of 1 eV."""
    grid = 1.4 * torch.cartesian_prod(*[torch.arange(3.0)] * 3)
    atoms = int(torch.randint(4, 9, (), generator=generator))
    places = grid[torch.randperm(27, generator=generator)[:atoms]]
    positions = places - places.mean(0) + 0.15 * torch.randn(atoms, 3, generator=generator)
    kinds = torch.randint(0, 3, (atoms,), generator=generator)
    radius = torch.tensor([0.4, 0.75, 0.7])[kinds]
    positions.requires_grad_(True)
    i, j = torch.triu_indices(atoms, atoms, 1)
    away = (positions[i] - positions[j]).norm(dim=-1) - radius[i] - radius[j]
    energy = ((1 - (-1.5 * away).exp()).square() - 1).sum()
    (gradient,) = torch.autograd.grad(energy, positions)
    z = torch.tensor([1, 6, 8])[kinds]
    return Data(pos=positions.detach(), z=z, energy=energy.detach()[None], forces=-gradient)


def schnet_report(options: argparse.Namespace) -> EquivarianceReport:
    """Trained on energies and forces, asked for E(3)."""
    generator = torch.Generator().manual_seed(options.seed)
    molecules = [molecule(generator) for _ in range(64 if options.fast_dev_run else 1256)]
    train_set, test_set = molecules[:-32], molecules[-32:]
    if not options.fast_dev_run:
        train_set, test_set = molecules[:1000], molecules[1000:]
    L.seed_everything(options.seed, verbose=False)
    net = EnergyAndForces(8 if options.fast_dev_run else 64)
    steps = 2 if options.fast_dev_run else SCHNET_STEPS[options.preset]
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = Batch.from_data_list([train_set[k] for k in torch.randint(len(train_set), (32,), generator=generator)])
        out = net(batch)
        loss = nn.functional.mse_loss(out["energy"], batch.energy)
        loss = loss + 10 * nn.functional.mse_loss(out["forces"], batch.forces)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    symmetry = Symmetry("E(3)", inputs={"pos": Point(), "z": Invariant()}, outputs={"energy": "0e", "forces": "1o"})
    return audit(
        net,
        DataLoader(test_set, batch_size=32),
        symmetry,
        labels=lambda batch: {"energy": batch.energy, "forces": batch.forces},
        units={"energy": "eV", "forces": "eV/Å"},
        name=f"SchNet, trained for {steps} steps",
        draws=4 if options.fast_dev_run else 64,
        progress=options.progress,
    )


# ---- pages ----------------------------------------------------------------------------------------------------------
def write_page(name: str, reports: dict[str, EquivarianceReport], out: Path, command: str) -> None:
    """One page, one picture, one table."""
    if len(reports) == 1:
        (page,) = reports.values()
    else:
        page = EquivarianceReport.compare(list(reports.values()), names=list(reports))
    page.save(out / f"{name}.html")
    (out / f"{name}.md").write_text(f"`{command}`\n\n![All pictures]({name}.png)\n\n{page.markdown()}")
    save_png(page.figure(), out / f"{name}.png")
    with (out / f"{name}.csv").open("w", newline="") as file:
        rows = [[name, r.verdict, *(f"{v:.3g}" for v in r.error)] for name, r in reports.items()]
        csv.writer(file).writerows([["network", "verdict", "relative error", "low", "high"], *rows])


def main(arguments: list[str] | None = None) -> dict[str, EquivarianceReport]:
    """Train, audit, write the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(SCHNET_STEPS), default="quick")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads; more than one slows tensors this small down"
    )
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--redraw", action="store_true", help="only the pages, from the JSON of an earlier run")
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bars")
    parser.add_argument("--fast-dev-run", action="store_true", help="a few steps of tiny networks, to see that it runs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # the tables are the output
    warnings.filterwarnings("ignore", module="lightning")
    names = {name for page in PAGES.values() for name in page.values()}
    if options.redraw:
        reports = {name: EquivarianceReport.load(options.out / f"audit_{name}.json") for name in names}
    else:
        reports = {"schnet": schnet_report(options), **nbody_reports(options)}
        for name, report in reports.items():
            report.save(options.out / f"audit_{name}.json")
    command = f"python examples/audit_demo.py --preset {options.preset}"
    for name, page in PAGES.items():
        write_page(name, {title: reports[key] for title, key in page.items()}, options.out, command)
        print((options.out / f"{name}.csv").read_text())
    for name in PAGES:
        print(f"written: {options.out / name}.html, .md, .csv, .png")
    print(f"written: {', '.join(f'{options.out}/audit_{name}.json' for name in reports)}")
    return reports


if __name__ == "__main__":
    main()
