"""Train one network several ways, over seeds: table, curves, picture."""

from __future__ import annotations

import argparse
import csv
import json
import logging
import shlex
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar

Case = float | str  # what runs differ in besides the way: a training-set size, a field's strength, a problem
Way = Callable[[Any], list[L.Callback]]  # from the case


@dataclass
class Run:
    """One training."""

    way: str
    case: Case
    seed: int
    val: float
    test: float
    seconds: float
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)


class Curves(L.Callback):
    """Remembers every logged value of some names at every validation."""

    def __init__(self, names: list[str]) -> None:
        self.names, self.curves = names, {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        for name in self.names:
            if name in trainer.callback_metrics:
                value = float(trainer.callback_metrics[name])
                self.curves.setdefault(name, []).append((trainer.global_step, value))


def train(
    way: str,
    case: Case,
    callbacks: list[L.Callback],
    module: L.LightningModule,
    data: L.LightningDataModule,
    *,
    steps: int,
    monitor: str,
    mode: str,
    seed: int,
    names: list[str],
    progress: bool,
) -> Run:
    """Train, and test what validated best; the strict network is what is validated and tested."""
    with tempfile.TemporaryDirectory() as folder:
        curves = Curves(names)
        best = ModelCheckpoint(folder, monitor=f"val_{monitor}", mode=mode)
        trainer = L.Trainer(
            max_steps=steps,
            callbacks=[*callbacks, curves, best, *([RichProgressBar(leave=False)] if progress else [])],
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_model_summary=False,
            enable_progress_bar=progress,
            gradient_clip_val=10.0,
        )
        start = time.perf_counter()
        trainer.fit(module, datamodule=data)
        seconds = time.perf_counter() - start
        (tested,) = trainer.test(module, datamodule=data, ckpt_path="best", verbose=False)
        val = float(best.best_model_score)
    return Run(way, case, seed, val, tested[f"test_{monitor}"], seconds, curves.curves)


def compare(
    ways: dict[str, Way],
    options: argparse.Namespace,
    path: Path,
    *,
    cases: Sequence[Case],
    seeds: int,
    make_module: Callable[[str, Any], L.LightningModule],
    make_data: Callable[[Any], L.LightningDataModule],
    picture: Callable[[list[Run], Path], None],
    unit: str,
    scale: float,
    axis: str = "training samples",
    **settings: Any,
) -> None:
    """Train every way, case and seed; write the table after every run, for a long one may be stopped, then draw.

    Args:
        ways: name -> callbacks of a case.
        options: of the command line.
        path: where table and picture go, without a suffix.
        cases: what the runs differ in besides the way, called `axis` in the table.
        seeds: runs of each.
        make_module: name of the way, case -> a fresh module.
        make_data: case -> its data.
        picture: draws the runs.
        unit: of validation and test in the table.
        scale: what they are multiplied by.
        axis: name of the cases.
        settings: of `train`.
    """
    if options.redraw:
        picture([Run(**run) for run in json.loads(path.with_suffix(".json").read_text())], path)
        return
    quiet()
    torch.set_num_threads(options.threads)
    told = [word for word in sys.argv[1:] if word not in ("--no-progress", "--out", str(options.out))]
    command = shlex.join(["python", f"examples/{Path(sys.argv[0]).name}", *told])
    runs: list[Run] = []
    for case in cases:
        for seed in range(options.seeds or seeds):
            for way in options.ways or ways:
                L.seed_everything(seed, verbose=False)
                module, data = make_module(way, case), make_data(case)
                progress = options.progress
                runs.append(train(way, case, ways[way](case), module, data, seed=seed, progress=progress, **settings))
                print(
                    f"{way}, {axis} {shown(case)}, seed {seed}: test {scale * runs[-1].test:.2f} ({unit})", flush=True
                )
                write(runs, path, command, scale=scale, unit=unit, axis=axis)
    picture(runs, path)
    print(path.with_suffix(".md").read_text())
    print(f"table and picture: {path}.csv, {path}.png")


def arguments(doc: str | None, presets: list[str]) -> argparse.ArgumentParser:
    """The options that every comparison takes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=presets, default="quick")
    parser.add_argument("--ways", nargs="+", help="only these ways of training")
    parser.add_argument("--seeds", type=int, help="number of seeds in place of the preset's")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads; more than one slows tensors this small down"
    )
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--redraw", action="store_true", help="only the picture, from the JSON of an earlier run")
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bars")
    parser.add_argument(
        "--fast-dev-run", action="store_true", help="a few steps of a tiny network, to see that it runs"
    )
    return parser


def quiet() -> None:
    """No hints from Lightning: the tables are the output."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists.*")


def shown(case: Case) -> str:
    """A case in a table."""
    return case if isinstance(case, str) else f"{case:g}"


def spread(values: list[float]) -> str:
    """Mean +- standard deviation over seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} +- {deviation:.2f}"


def table(runs: list[Run], scale: float, unit: str, axis: str) -> list[list[str]]:
    """A row for each case and way."""
    rows = [[axis, "training", "seeds", f"validation {unit}", f"test {unit}", "minutes a run"]]
    for case in dict.fromkeys(r.case for r in runs):
        for way in dict.fromkeys(r.way for r in runs):
            some = [r for r in runs if (r.way, r.case) == (way, case)]
            if some:
                minutes = f"{statistics.mean(r.seconds for r in some) / 60:.1f}"
                val, test = (spread([scale * getattr(r, part) for r in some]) for part in ("val", "test"))
                rows.append([shown(case), way, str(len(some)), val, test, minutes])
    return rows


def write(runs: list[Run], path: Path, command: str, *, scale: float, unit: str, axis: str) -> None:
    """The table as CSV and Markdown, and every run with its curves as JSON."""
    write_table(table(runs, scale, unit, axis), path, command)
    path.with_suffix(".json").write_text(json.dumps([asdict(run) for run in runs]))


def write_table(rows: list[list[str]], path: Path, command: str) -> None:
    """Rows, the first of them the header, as CSV and as Markdown under the command that made them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    lines = [" | ".join(row) for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])]
    text = f"`{command}`\n\n" + "\n".join(f"| {line} |" for line in lines) + "\n"
    path.with_suffix(".md").write_text(text)


def draw(runs: list[Run], path: Path, *, panels: list[tuple[str, str]], scale: dict[str, float]) -> None:
    """A panel for each (logged name, label), for the largest training set: the mean over seeds, the seeds behind it."""
    case = max(r.case for r in runs)
    figure, axes = plt.subplots(1, len(panels), figsize=(4.4 * len(panels), 4.2), layout="constrained", squeeze=False)
    for axis, (name, label) in zip(axes[0], panels, strict=True):
        for i, way in enumerate(dict.fromkeys(r.way for r in runs)):
            curves = [r.curves[name] for r in runs if (r.way, r.case) == (way, case) and name in r.curves]
            if not curves:
                continue
            factor = scale.get(name, 1.0)
            for curve in curves:
                axis.plot(
                    *zip(*[(s, factor * v) for s, v in curve], strict=True), color=f"C{i}", alpha=0.25, linewidth=1
                )
            steps = [s for s, _ in curves[0]]
            means = [factor * statistics.mean(c[k][1] for c in curves) for k in range(min(map(len, curves)))]
            axis.plot(steps[: len(means)], means, color=f"C{i}", label=way)
        axis.set(xlabel="optimiser step", ylabel=label)
        values = [value for line in axis.lines for value in line.get_ydata()]
        if min(values) > 0 and max(values) > 5 * min(values):
            axis.set_yscale("log")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path.with_suffix(".png"), dpi=110)
    plt.close(figure)


def cosine(module: L.LightningModule, lr: float, steps: int) -> dict[str, object]:
    """Adam with a rate that falls to a hundredth along half a cosine."""
    optimizer = torch.optim.Adam(module.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=lr / 100)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
