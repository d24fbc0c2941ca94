"""How fast features in irreps are rotated: against a plain copy of them, and against e3nn's dense matrix.

    python examples/benchmark_wigner.py --csv wigner.csv

Times are the fastest of many calls, taken in turn with the copy that they are compared with: the machine may be shared.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path

import torch
from e3nn import o3

from lightning_equiv.representations.wigner import rotate_irreps

LARGEST_DENSE = 1024  # e3nn's matrix takes 1.4 GB at this size, and 22 GB at 16384


def milliseconds(calls: list[Callable[[], object]], repeats: int) -> list[float]:
    best = [float("inf")] * len(calls)
    for _ in range(repeats):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
    return [1000 * seconds for seconds in best]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--irreps", default="64x0e+64x1o+64x2e")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 1024, 16384])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--csv", type=Path, help="also write the table to this file")
    parser.add_argument("--fast-dev-run", action="store_true", help="one small size, few repeats")
    args = parser.parse_args()
    if args.fast_dev_run:
        args.sizes, args.repeats = [8], 2

    irreps = o3.Irreps(args.irreps)
    header = ["N", "clone ms", "ours ms", "ours/clone", "e3nn ms", "e3nn/ours"]
    rows = []
    print(f"{irreps}, float32 features, float64 matrices, {torch.get_num_threads()} threads")
    print("".join(f"{name:>12}" for name in header))
    for n in args.sizes:
        matrix, x = o3.rand_matrix(n, dtype=torch.float64), torch.randn(n, irreps.dim)

        def ours(matrix=matrix, x=x) -> torch.Tensor:
            return rotate_irreps(matrix, x, irreps)

        def dense(matrix=matrix, x=x) -> torch.Tensor:
            return torch.einsum("bij,bj->bi", irreps.D_from_matrix(matrix.to(x.dtype)), x)

        clone_ms, ours_ms = milliseconds([x.clone, ours], args.repeats)
        row = [str(n), f"{clone_ms:.4f}", f"{ours_ms:.4f}", f"{ours_ms / clone_ms:.1f}", "", ""]
        if n <= LARGEST_DENSE:
            torch.testing.assert_close(ours(), dense(), atol=1e-4, rtol=1e-4)
            (dense_ms,) = milliseconds([dense], min(args.repeats, 3))
            row[4:] = [f"{dense_ms:.1f}", f"{dense_ms / ours_ms:.0f}"]
        rows.append(row)
        print("".join(f"{cell or '-':>12}" for cell in row))
    if args.csv is not None:
        with args.csv.open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
        print(f"written: {args.csv}")


if __name__ == "__main__":
    main()
