"""Trained networks, made equivariant without training: task error, equivariance error and time of every method.

    OMP_NUM_THREADS=1 python examples/benchmarks/symmetrize.py          a few minutes
    OMP_NUM_THREADS=1 python examples/benchmarks/symmetrize.py --draw   the picture, from what is there, and the path

An ordinary Transformer is trained on gravitating bodies that are turned by at most 10 degrees, as it is, with
augmentation and with REMUL: data, sizes, steps and learning rates are those of examples/benchmarks/gravity.yaml, one
seed. Each is then symmetrized in every way. Beside them are two equivariant networks trained on the same data, an e3nn
network and, where se3-transformer-pytorch is installed, an SE(3)-Transformer.

"as in training" and "turned further" are mean squared errors of 1000 systems turned by at most 10, and by 90 to 180
degrees; the equivariance error is the relative one under SO(3), of 128 of each; milliseconds are the median of a
thread's time for 128 systems. Writes symmetrize.csv, .md and .png.

symmetrize_crossing.md is of a random network on five points that are stretched along an axis until two eigenvalues of
their covariance change places, in 1000 steps.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import lightning as L
import torch
from torch import Tensor, nn

from lightning_equiv import (
    REMUL,
    EquivarianceError,
    GroupAugmentation,
    Invariant,
    Point,
    Symmetrized,
    Symmetry,
    symmetry_share,
)
from lightning_equiv.datasets import GravityDataModule
from lightning_equiv.networks.e3nn_message_passing import E3nnMessagePassing
from lightning_equiv.networks.scaled import Scaled
from lightning_equiv.networks.se3_peer import SE3TransformerPeer
from lightning_equiv.networks.tasks import Particles
from lightning_equiv.networks.transformer import ParticleTransformer
from lightning_equiv.report.document import Picture
from lightning_equiv.report.pictures import figure, save_png

MOVED = {"masses": Invariant(), "positions": "1o", "velocities": "1o"}
SO3 = Symmetry("SO(3)", inputs=MOVED, outputs="1o", batch={**MOVED, "targets": "1o"})
O3 = Symmetry("O(3)", inputs=MOVED, outputs="1o")
SIZES = {"train_size": 100, "val_size": 1000, "test_size": 1000, "steps_per_epoch": 100}
METHODS: dict[str, tuple[Symmetry, dict[str, Any]] | None] = {
    "as it is": None,
    "12 elements": (SO3, {"subgroup": "tetrahedral"}),
    "24 elements": (SO3, {"subgroup": "octahedral"}),
    "60 elements": (SO3, {"subgroup": "icosahedral"}),
    "24 elements and their mirror images": (O3, {"subgroup": "octahedral"}),
    "60 random turns": (SO3, {"num_samples": 60}),
    "4 frames": (SO3, {"method": "frame", "points": "positions"}),
    "8 frames": (O3, {"method": "frame", "points": "positions"}),
    "12 weighted frames": (SO3, {"method": "weighted_frame", "points": "positions"}),
    "canonical pose": (SO3, {"method": "canonical", "points": "positions"}),
}
COLUMNS = ("network", "method", "mse_id", "mse_ood", "equivariance_error", "ms", "times_plain")


def transformer() -> nn.Module:
    return ParticleTransformer(num_blocks=3, num_channels=64, num_heads=4)


def e3nn_network() -> nn.Module:
    return Scaled(E3nnMessagePassing(hidden="16x0e+16x1o", num_layers=3))


def se3_transformer() -> nn.Module:
    return SE3TransformerPeer(dim=8, depth=1, heads=2)


WAYS: dict[str, Any] = {  # network, learning rate, callbacks
    "plain": (transformer, 1e-3, lambda: []),
    "augmentation": (transformer, 1e-3, lambda: [GroupAugmentation(SO3)]),
    "REMUL(10)": (transformer, 3e-3, lambda: [REMUL(SO3, "net", weight=10.0, target="targets")]),
    "e3nn network": (e3nn_network, 1e-2, lambda: []),
    "SE(3)-Transformer": (se3_transformer, 1e-3, lambda: []),
}


def trained(way: str, steps: int, sizes: dict[str, int]) -> nn.Module:
    make, lr, callbacks = WAYS[way]
    L.seed_everything(0, verbose=False)
    module = Particles(make(), lr=lr)
    trainer = L.Trainer(
        max_steps=steps,
        gradient_clip_val=10.0,
        accelerator="cpu",
        callbacks=callbacks(),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=GravityDataModule(**sizes))
    return module.net.eval()


def tests(sizes: dict[str, int]) -> dict[str, dict[str, Tensor]]:
    """The two test sets, whole."""
    data = GravityDataModule(**sizes)
    data.setup("test")
    found = {}
    for name, loader in zip(data.test_names, data.test_dataloader(), strict=True):
        batches = list(loader)
        found[name] = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
    return found


def inputs(batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return tuple(batch[key] for key in MOVED)


@torch.no_grad()
def row(network: nn.Module, name: str, method: str, sets: dict[str, dict[str, Tensor]], repeats: int) -> dict[str, Any]:
    errors = {key: float(nn.functional.mse_loss(network(*inputs(b)), b["targets"])) for key, b in sets.items()}
    metric = EquivarianceError(SO3, num_samples=2)
    for batch in sets.values():
        metric.update(network, *(x[:128] for x in inputs(batch)))
    some = tuple(x[:128] for x in inputs(sets["id"]))
    seconds = []
    for _ in range(repeats):
        start = time.thread_time()
        network(*some)
        seconds.append(time.thread_time() - start)
    return {
        "network": name,
        "method": method,
        "mse_id": errors["id"],
        "mse_ood": errors["ood"],
        "equivariance_error": float(metric.compute()),
        "ms": 1e3 * statistics.median(seconds[1:]),
    }


def measure(steps: int, sizes: dict[str, int], repeats: int) -> tuple[list[dict[str, Any]], list[str]]:
    sets, rows, shares = tests(sizes), [], []
    for way in WAYS:
        start = time.thread_time()
        try:
            network = trained(way, steps, sizes)
        except ImportError as error:
            print(f"left out: {way}: {error}")
            continue
        print(f"{way}: trained in {time.thread_time() - start:.0f} s", flush=True)
        own = METHODS if way in ("plain", "augmentation", "REMUL(10)") else {"as it is": None}
        for method, made in own.items():
            torch.manual_seed(0)  # the same turns for all
            wrapped = network if made is None else Symmetrized(network, made[0], **made[1]).eval()
            rows.append(row(wrapped, way, method, sets, repeats))
            print("  ", *(f"{v:.3g}" if isinstance(v, float) else v for v in rows[-1].values()), flush=True)
        if len(own) > 1:
            batch = sets["id"]
            share = symmetry_share(network, inputs(batch), SO3, batch["targets"], num_samples=24)
            shares.append(f"{way}: {share}")
            print("  ", share, flush=True)
    first = rows[0]["ms"]
    return [{**r, "times_plain": r["ms"] / first} for r in rows], shares


def table(rows: list[dict[str, Any]], shares: list[str]) -> str:
    lines = [
        "| network | symmetrized by | MSE × 1e-3 as in training | turned further | equivariance error "
        "| ms for 128 | × plain |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        error = f"{r['equivariance_error']:.2g}"
        numbers = (
            f"{1e3 * r['mse_id']:.2f}",
            f"{1e3 * r['mse_ood']:.2f}",
            error,
            f"{r['ms']:.1f}",
            f"{r['times_plain']:.1f}",
        )
        lines.append(f"| {r['network']} | {r['method']} | {' | '.join(numbers)} |")
    return "\n".join([*lines, "", *(f"* {share}" for share in shares), ""])


@torch.no_grad()
def crossing(samples: int = 1001) -> str:
    """A table: the largest and the median change of an output along a path on which two eigenvalues cross."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    u, _, v = torch.linalg.svd(q - q.mean(0), full_matrices=False)
    along = torch.linspace(0.7, 1.3, samples, dtype=torch.float64)
    scales = torch.stack([along, torch.ones_like(along), torch.full_like(along, 2.0)], dim=-1)
    path = (u * scales[:, None]) @ v  # covariance V^T diag(scales^2) V
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(15, 32), nn.Tanh(), nn.Linear(32, 1)).double()
    symmetry = Symmetry("SO(3)", Point(), Invariant())
    methods: dict[str, dict[str, Any]] = {
        "4 frames": {"method": "frame"},
        "20 weighted frames": {"method": "weighted_frame"},
        "8 weighted frames": {"method": "weighted_frame", "num_frames": 8},
        "24 elements": {"subgroup": "octahedral"},
        "canonical pose": {"method": "canonical"},
    }
    lines = [
        "| symmetrized by | largest step | median step | equivariance error | inputs without a frame |",
        "|---|---|---|---|---|",
    ]
    for name, settings in methods.items():
        symmetrized = Symmetrized(network, symmetry, **settings)
        steps = symmetrized(path).diff(dim=0).abs()
        metric = EquivarianceError(symmetry, num_samples=4)
        metric.update(symmetrized, path[: samples // 3])
        numbers = (f"{float(x):.1e}" for x in (steps.max(), steps.median(), metric.compute()))
        found = Symmetrized(network, symmetry, **settings)
        found(path)
        lines.append(f"| {name} | {' | '.join(numbers)} | {found.num_degenerate} of {samples} |")
    return "\n".join([*lines, ""])


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Both errors against the time, a row for each network that was symmetrized, the equivariant ones in each."""
    pictures = []
    networks = list(dict.fromkeys(r["network"] for r in rows))
    whole = [name for name in networks if sum(r["network"] == name for r in rows) == 1]
    for network in networks:
        if network in whole:
            continue
        for key, measured in (("equivariance_error", "equivariance error"), ("mse_ood", "MSE, turned further")):
            series = {
                r["method"] if r["network"] == network else r["network"]: {"x": [float(r["ms"])], "y": [float(r[key])]}
                for r in rows
                if r["network"] in (network, *whole)
            }
            data = {"series": series, "x_label": "ms for 128 inputs", "y_label": measured, "log": True}
            pictures.append(Picture(f"{network}: {measured}", "scatter", data, ""))
    save_png(figure(pictures, one_legend=True), path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="of each training; 1000 by default")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder of what is written")
    parser.add_argument("--draw", action="store_true", help="only the picture, from the csv")
    parser.add_argument("--fast-dev-run", action="store_true", help="two steps on few samples, to see that it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    fast = options.fast_dev_run
    path = options.output / f"symmetrize{'_fast_dev_run' if fast else ''}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not options.draw:
        few = {"train_size": 8, "val_size": 8, "test_size": 8, "steps_per_epoch": 2}
        with contextlib.redirect_stderr(sys.stdout):
            rows, shares = measure(2 if fast else options.steps, few if fast else SIZES, 3 if fast else 9)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in r.items()} for r in rows)
        text = table(rows, shares)
        path.with_suffix(".md").write_text(text, encoding="utf-8")
        print(text)
    with path.open() as file:
        draw(list(csv.DictReader(file)), path.with_suffix(".png"))
    text = crossing(31 if fast else 1001)
    path.with_name(f"{path.stem}_crossing.md").write_text(text, encoding="utf-8")
    print(text)
    crossing = path.with_name(f"{path.stem}_crossing.md")
    print(f"written: {path}, .md, .png")
    print(f"written: {crossing}")
