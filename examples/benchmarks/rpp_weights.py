"""RPP's weight of the free pathways: validation error and what stays, with and without a field that breaks symmetry.

    python examples/benchmarks/rpp_weights.py

Charged particles and an e3nn network, as in examples/cli/rpp.yaml. Prints a Markdown table, and writes
docs/results/rpp_weights.csv.
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
from pathlib import Path
from statistics import fmean

import lightning as L

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from lightning_equiv import ACE, RPP  # noqa: E402
from lightning_equiv.datasets import ChargedDataModule  # noqa: E402
from lightning_equiv.networks.e3nn_message_passing import E3nnMessagePassing  # noqa: E402
from lightning_equiv.networks.tasks import Particles  # noqa: E402

LAYERS = "net.layers.*.update"
WAYS = {
    "strict": lambda: [],
    "ACE, resilient": lambda: [ACE("O(3)", LAYERS, "net", mode="resilient")],
    **{f"RPP, a = {a:g}": (lambda a=a: [RPP("O(3)", LAYERS, "net", free_weight=a)]) for a in (0.01, 0.1, 1, 10, 100)},
}
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def run(way: str, field: float, seed: int, steps: int, size: int) -> dict[str, float | str]:
    """Train once."""
    L.seed_everything(seed, verbose=False)
    data = ChargedDataModule(
        train_size=size, val_size=size, test_size=8, batch_size=min(size, 50), field=field, steps_per_epoch=steps
    )
    module, callbacks = Particles(E3nnMessagePassing(hidden="8x0e+8x1o", num_layers=2), lr=1e-2), WAYS[way]()
    trainer = L.Trainer(
        callbacks=callbacks, max_epochs=1, accelerator="cpu", gradient_clip_val=10.0, num_sanity_val_steps=0, **QUIET
    )
    trainer.fit(module, data)
    [figures] = trainer.validate(module, data, verbose=False)
    report = callbacks[0].report if callbacks else []
    shares = sorted((row["share"] for row in report if "share" in row), reverse=True)
    return {
        "way": way,
        "field": field,
        "seed": seed,
        "val_mse": figures["val_mse"],
        "relaxed_layers": sum(not row["strict"] for row in report),
        "largest_share": shares[0] if shares else "",
    }


def main() -> None:
    """Train all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--fast-dev-run", action="store_true", help="two steps of each")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    steps, seeds, size = (2, 1, 8) if args.fast_dev_run else (args.steps, args.seeds, 1000)
    fields = (0.0, 1.0)
    rows = [run(way, field, seed, steps, size) for field in fields for way in WAYS for seed in range(seeds)]
    with (args.out / "rpp_weights.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print("| | " + " | ".join(f"field {field:g} | its relaxed layers, largest share" for field in fields) + " |")
    print("|---" * (1 + 2 * len(fields)) + "|")
    for way in WAYS:
        cells = []
        for field in fields:
            runs = [row for row in rows if (row["way"], row["field"]) == (way, field)]
            shares = [float(row["largest_share"]) for row in runs if row["largest_share"] != ""]
            kept = fmean(float(row["relaxed_layers"]) for row in runs)
            cells += [
                " / ".join(f"{row['val_mse']:.4f}" for row in runs),
                f"{kept:g}{f', {fmean(shares):.2g}' if shares else ''}",
            ]
        print(f"| {way} | " + " | ".join(cells) + " |")
    print(f"written: {args.out / 'rpp_weights.csv'}")


if __name__ == "__main__":
    main()
