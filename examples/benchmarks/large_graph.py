"""One large graph: what the graph itself, a training step, a step with REMUL and a measurement take, by its size.

    python examples/benchmarks/large_graph.py                    10,000, 30,000 and 100,000 points
    python examples/benchmarks/large_graph.py --draw             only the tables and the picture, from what is there

Points lie uniformly in a cube at a constant density, so that the mean degree hardly depends on their number. The
network takes relative positions as they are and predicts a vector for each point. The metric draws K rotations and
shifts of the whole graph. Each figure is made in a process of its own: MiB are what the first call needs at most beyond
what the process held (Linux only), seconds the median of the calls after it, of one thread's time on the processor.
glibc is asked to give every large tensor back when it is freed (MALLOC_MMAP_THRESHOLD_), as it does by itself above
32 MiB: sizes on both sides of that could not be compared otherwise.
Figures are appended one by one to large_graph.jsonl, and one that is there is not made again.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.util
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lightning_equiv import REMUL, EquivarianceError, Invariant, Point, Symmetry
from lightning_equiv.datasets import radius_graph
from lightning_equiv.report.document import Picture
from lightning_equiv.report.pictures import figure, save_png

INPUTS = {"positions": Point(), "charges": Invariant()}
SYMMETRY = Symmetry("SE(3)", INPUTS, "1o", index="batch", num_graphs="num_graphs")
GRAPHS = ("torch_cluster", "scipy")
LEAST_SECONDS = 0.2  # of repeated calls; and at least as many calls as are asked for
PROCESSES = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")


class Layer(nn.Module):
    """Messages of the two ends and the relative position of each edge."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.source, self.target = nn.Linear(channels, channels, bias=False), nn.Linear(channels, channels)
        self.edge = nn.Linear(3, channels, bias=False)
        self.update = nn.Sequential(nn.Linear(2 * channels, channels), nn.SiLU(), nn.Linear(channels, channels))

    def forward(self, h: Tensor, r: Tensor, edge_index: Tensor) -> Tensor:
        i, j = edge_index
        messages = nn.functional.silu(self.source(h)[i] + self.target(h)[j] + self.edge(r))
        return h + self.update(torch.cat([h, torch.zeros_like(h).index_add(0, j, messages)], dim=-1))


class Network(nn.Module):
    """A vector for each point; not equivariant, for the relative positions are features like any other."""

    def __init__(self, layers: int = 2, channels: int = 16) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(1, channels), nn.Linear(channels, 3)
        self.layers = nn.ModuleList(Layer(channels) for _ in range(layers))

    def forward(self, positions: Tensor, charges: Tensor, edge_index: Tensor, batch: Tensor, num_graphs: int) -> Tensor:
        r = positions[edge_index[0]] - positions[edge_index[1]]
        h = self.embed(charges)
        for layer in self.layers:
            h = layer(h, r, edge_index)
        return self.out(h)


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Network()

    def training_step(self, batch: tuple[dict[str, Any], Tensor], batch_idx: int) -> Tensor:
        graph, targets = batch
        return nn.functional.mse_loss(self.net(**graph), targets)


def cloud(points: int, degree: float) -> Tensor:
    """Points with so many others within 1 of each, but for those near the surface."""
    side = (points * 4 / 3 * torch.pi / degree) ** (1 / 3)
    return side * torch.rand(points, 3, generator=torch.Generator().manual_seed(0))


def problem(points: int, degree: float) -> tuple[dict[str, Any], Tensor]:
    """A graph with charges, and the field at each of its points as the target."""
    positions = cloud(points, degree)
    charges = torch.randn(points, 1, generator=torch.Generator().manual_seed(1))
    edges = radius_graph(positions, 1.0)
    r = positions[edges[0]] - positions[edges[1]]
    field = torch.zeros_like(positions).index_add(0, edges[1], charges[edges[0]] * r)
    batch = torch.zeros(points, dtype=torch.long)
    return {"positions": positions, "charges": charges, "edge_index": edges, "batch": batch, "num_graphs": 1}, field


def call_of(what: str, points: int, degree: float) -> Callable[[], Any]:
    """What is timed."""
    kind, _, detail = what.partition(", ")
    if kind == "graph":
        positions = cloud(points, degree)
        return lambda: radius_graph(positions, 1.0, backend=detail).shape[1]
    torch.manual_seed(0)
    module, (graph, field) = Module(), problem(points, degree)
    if kind == "metric":
        metric = EquivarianceError(SYMMETRY, num_samples=int(detail.split()[0]))

        def measure() -> float:
            metric.reset()
            metric.update(module.net, **graph)
            return float(metric.compute())

        return measure
    if kind == "forward":
        return torch.no_grad()(lambda: float(module.net(**graph).square().mean()))
    if kind == "REMUL step":
        REMUL(SYMMETRY, network="net").attach(module)
    optimizer = torch.optim.Adam(module.parameters())

    def step() -> float:
        optimizer.zero_grad()
        loss = module.training_step((graph, field), 0)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def status(name: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most; nan where Linux does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def measured(send: Connection, what: str, points: int, degree: float, repeats: int) -> None:
    """One figure, sent as a row."""
    torch.set_num_threads(1)
    call = call_of(what, points, degree)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held
    before = status("VmRSS")
    value = call()
    row = {"what": what, "points": points, "value": value, "mib": round(status("VmHWM") - before, 1)}
    seconds: list[float] = []
    while len(seconds) < repeats or sum(seconds) < LEAST_SECONDS:
        start = time.thread_time()
        call()
        seconds.append(max(time.thread_time() - start, 1e-6))
    send.send({**row, "seconds": round(statistics.median(seconds), 6), "peak_mib": round(status("VmHWM"), 1)})


def in_a_process(*args: Any) -> dict[str, Any]:
    receive, send = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=measured, args=(send, *args))
    process.start()
    send.close()
    try:
        row: dict[str, Any] = receive.recv()
    except EOFError:
        raise SystemExit(f"the process of {args} ended without a figure: was there enough memory?") from None
    process.join()
    return row


def exponent(points: list[int], values: list[float]) -> float:
    """The slope of log(value) against log(points)."""
    if len(points) < 2:
        return float("nan")
    x, y = (torch.tensor(v, dtype=torch.float64).clamp_min(1e-9).log() for v in (points, values))
    return float((x - x.mean()) @ (y - y.mean()) / (x - x.mean()).square().sum())


def series(rows: list[dict[str, Any]], what: str, key: str) -> tuple[list[int], list[float]]:
    found = sorted((row["points"], row[key]) for row in rows if row["what"] == what)
    return [points for points, _ in found], [value for _, value in found]


def table(rows: list[dict[str, Any]]) -> str:
    """Seconds and MiB by size, and the exponents of both."""
    sizes = sorted({row["points"] for row in rows})
    edges = {row["points"]: row["value"] for row in rows if row["what"].startswith("graph")}
    lines = [
        "| | " + " | ".join(f"{n:,} points, {edges.get(n, 0):,} edges" for n in sizes) + " | time ~ n^ | memory ~ n^ |",
        "|---" * (len(sizes) + 3) + "|",
    ]
    for what in dict.fromkeys(row["what"] for row in rows):
        of = {row["points"]: row for row in rows if row["what"] == what}
        cells = [f"{of[n]['seconds']:.3g} s, {of[n]['mib']:.0f} MiB" if n in of else "" for n in sizes]
        slopes = [f"{exponent(*series(rows, what, key)):.2f}" for key in ("seconds", "mib")]
        lines.append(f"| {' | '.join([what, *cells, *slopes])} |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    sizes, whats = sorted({row["points"] for row in rows}), list(dict.fromkeys(row["what"] for row in rows))
    pictures = []
    for key, label in (("seconds", "seconds"), ("mib", "MiB beyond what was held")):
        found = {what: dict(zip(*series(rows, what, key), strict=True)) for what in whats}
        curves = {what: {"value": [found[what].get(n) for n in sizes]} for what in whats}
        data = {"x": sizes, "series": curves, "x_label": "points", "y_label": label, "log": True, "log_x": 3}
        pictures.append(Picture(label, "curve", data, ""))
    save_png(figure(pictures, one_legend=True), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--draws", type=int, nargs="+", default=[4, 16], help="elements of the metric, K")
    parser.add_argument("--degree", type=float, default=20.0, help="neighbours of a point far from the surface")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder")
    parser.add_argument("--draw", action="store_true", help="only the tables and the picture")
    parser.add_argument("--fast-dev-run", action="store_true", help="tiny sizes")
    args = parser.parse_args()
    if args.fast_dev_run:
        args.sizes, args.draws, args.repeats = [100, 300], [1, 2], 1
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "65536")  # bytes; read when the server of processes starts
    PROCESSES.set_forkserver_preload(["lightning_equiv"])  # imported once for all of them
    args.output.mkdir(parents=True, exist_ok=True)
    log = args.output / "large_graph.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(row["what"], row["points"]) for row in rows}
    graphs = [f"graph, {library}" for library in GRAPHS if importlib.util.find_spec(library)]
    whats = [*graphs, "plain step", "REMUL step", "forward", *(f"metric, {k} draws" for k in args.draws)]
    for points in [] if args.draw else args.sizes:
        for what in whats:
            if (what, points) not in done:
                rows.append(in_a_process(what, points, args.degree, args.repeats))
                with log.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                print(rows[-1], flush=True)
    written = table(rows)
    command = "`python examples/benchmarks/large_graph.py --output docs/results`"
    (args.output / "large_graph.md").write_text(
        f"{command}, two cores, one thread used, while other programs kept the machine busy:\n\n{written}\n"
    )
    with (args.output / "large_graph.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, args.output / "large_graph.png")
    print(f"{written}\nwritten: {args.output / 'large_graph'}.jsonl, .csv, .md, .png")


if __name__ == "__main__":
    main()
