"""What the example scripts share: their command line, and what is done with a comparison."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lightning_equiv import Comparison


def arguments(doc: str | None, steps: int, draw: bool = False) -> argparse.Namespace:
    """The words of the command line.

    Args:
        doc: of the script.
        steps: of a run, where the command line says nothing else.
        draw: whether the script knows --draw.

    Returns:
        `runs`, arguments of `compare`; `sizes`, arguments of the data, empty but for --fast-dev-run; `path` of what is
        written, without an ending; and the words themselves.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="at least 3, or nothing can be told apart; 1 by default")
    parser.add_argument("--steps", type=int, default=steps, help=f"of a run; {steps} by default")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; 1 by default")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of what is written")
    parser.add_argument("--fast-dev-run", action="store_true", help="two steps on few samples, to see that it runs")
    if draw:
        parser.add_argument("--draw", action="store_true", help="only the picture, from the table of an earlier run")
    options = parser.parse_args()
    fast = options.fast_dev_run
    options.path = options.out / f"{Path(sys.argv[0]).stem}{'_fast_dev_run' if fast else ''}"
    options.sizes = {"train_size": 10, "val_size": 10, "test_size": 10, "steps_per_epoch": 2} if fast else {}
    options.runs = {
        "seeds": options.seeds,
        "steps": 2 if fast else options.steps,
        "jobs": options.jobs,
        "threads": 1,  # more slow tensors this small down
        "results": f"{options.path}.jsonl",
        **({"num_inputs": 4, "draws": 2} if fast else {}),
    }
    return options


def show(comparison: Comparison, options: argparse.Namespace) -> None:
    """Print advice and table, write page, table and picture."""
    comparison.print()
    for ending in ("html", "csv", "png"):
        print(f"written: {comparison.save(f'{options.path}.{ending}')}")
    print(f"runs: {options.runs['results']}")
