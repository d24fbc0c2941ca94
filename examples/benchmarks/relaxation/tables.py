"""Tables and pictures of the three problems, from their result lines: a .csv, .md and .png beside each .jsonl."""

from __future__ import annotations

import csv
import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from examples.benchmarks.relaxation.common import mcnemar, paired, read, wilson
from lightning_equiv.report.pictures import PALETTE, save_png, style

SOLVED = 0.01
Row = dict[str, Any]


def solved(found: Row) -> np.ndarray:
    return np.array(found["test"]) < SOLVED


def arm_rows(cell: Row, arms: dict[str, Row]) -> list[Row]:
    """Of each arm: share solved with a Wilson interval, its paired difference from strict, medians of the losses."""
    rows, reference = [], solved(arms["strict"])
    for arm, found in arms.items():
        good = solved(found)
        low, high = wilson(int(good.sum()), len(good))
        difference, difference_low, difference_high, error = paired(good, reference)
        rows.append({
            **cell, "arm": arm, "seeds": len(good), "solved": good.mean(), "low": low, "high": high,
            "minus strict": difference, "minus strict low": difference_low, "minus strict high": difference_high,
            "standard error": error, "p": mcnemar(good, reference),
            "below 1e-4": float(np.mean(np.array(found["test"]) < 1e-4)),
            "median test": statistics.median(found["test"]),
            "median training loss in mid-run": statistics.median(found["middle"]) if "middle" in found else "",
            "median training loss after projection": statistics.median(found["after"]) if "after" in found else "",
        })  # fmt: skip
    return rows


def write_csv(path: Path, rows: list[Row]) -> None:
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def write_md(path: Path, *parts: str, like: Path | None = None) -> None:
    made_by = json.loads((like or path).read_text().splitlines()[0])
    since = f", made at commit {made_by['commit']} by the script of that time" if "commit" in made_by else ""
    path.with_suffix(".md").write_text("\n\n".join([f"`{made_by['command']}`{since}", *parts]) + "\n")
    print(f"written: {path}, .md, .csv, .png")


def markdown(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def interval(row: Row) -> str:
    return f"{row['solved']:.2f} ({row['low']:.2f}, {row['high']:.2f})"


def signed(row: Row) -> str:
    return f"{row['minus strict']:+.2f} ({row['minus strict low']:+.2f}, {row['minus strict high']:+.2f})"


def by_cell(rows: list[Row], keys: list[str], value: Any) -> str:
    """A table with a line for each cell and a column for each arm."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    cells = list(dict.fromkeys(tuple(row[k] for k in keys) for row in rows))
    at = {(*(row[k] for k in keys), row["arm"]): row for row in rows}
    lines = [
        [str(v) for v in cell] + [value(at[(*cell, a)]) if (*cell, a) in at else "" for a in arms] for cell in cells
    ]
    return markdown([*keys, *arms], lines)


def medians(row: Row) -> str:
    texts = (row[f"median {name}"] for name in ("training loss in mid-run", "training loss after projection", "test"))
    return " / ".join("" if text == "" else f"{text:.2g}" for text in texts)


def sets(path: Path) -> None:
    keys = ["control", "n", "k", "start", "rate", "size", "noise"]
    lines = sorted(
        read(path), key=lambda r: (r["control"], r["noise"] != "relative", -r["size"], r["k"], r["n"], r["rate"])
    )
    rows = [row for line in lines for row in arm_rows({k: line[k] for k in keys}, line["arms"])]
    write_csv(path, rows)
    write_md(
        path,
        "Share of the seeds that are solved, with 95 % Wilson intervals:",
        by_cell(rows, keys, interval),
        "Minus strict, paired by seed, with 95 % intervals by bootstrap:",
        by_cell([row for row in rows if row["arm"] != "strict"], keys, signed),
        "Medians: training loss in mid-run / right after projection / test error at the end (triangle: at its peak / "
        "then without the branch / the same):",
        by_cell(rows, keys, medians),
        "Each arm at the best of its rates, by the share solved on validation data (n = 8, k = 1, wrong start):",
        best_rates(lines),
    )
    write_md(path.with_name(f"{path.stem}_excerpt.jsonl"), excerpt(lines), like=path)
    shown = [
        line for line in lines
        if line["rate"] == 0.01 and line["size"] == 1 and line["noise"] == "relative" and line["k"] in (1, 3)
        and (line["start"] == "mirrored" or (line["start"] == "wrong" and not line["control"]))
    ]  # fmt: skip
    if shown:  # a fast run has none of these cells
        picture(path, [
        (title(line), arm_rows({}, {arm: line["arms"][arm] for arm in ARMS if arm in line["arms"]})) for line in shown
    ])  # fmt: skip


ARMS = ("strict", "restarts", "block-normalised", "free", "triangle 0", "drop", "nearest", "relabel", "across")
_BEST = ("relabel", "across")


def excerpt(lines: list[Row]) -> str:
    """The shares alone of the cells with the sheet's rate, and what relabelling adds to strict, with its interval."""
    shown = [
        line for line in lines
        if line["rate"] == 0.01 and line["size"] == 1 and line["noise"] == "relative"
    ]  # fmt: skip
    header = ["problem", *ARMS, "relabelling minus strict (95 %)"]
    table = []
    for line in shown:
        rows = {row["arm"]: row for row in arm_rows({}, line["arms"])}
        best = rows[_BEST[1] if _BEST[1] in rows and line["k"] > 1 else _BEST[0]]
        cells = [f"{rows[arm]['solved']:.2f}" if arm in rows else "" for arm in ARMS]
        table.append([title(line), *cells, signed(best)])
    return markdown(header, table)


def title(line: Row) -> str:
    return f"{line['control'] or 'relu'}, n = {line['n']}, k = {line['k']}, {line['start']}"


def best_rates(lines: list[Row]) -> str:
    swept = {"control": "", "n": 8, "k": 1, "start": "wrong", "size": 1.0, "noise": "relative"}
    runs = [line for line in lines if all(line[k] == v for k, v in swept.items())]
    if not runs:
        return "no runs yet"
    best: dict[str, tuple[float, float, Row]] = {}
    for line in runs:
        for arm, found in line["arms"].items():
            share = float(np.mean(np.array(found["validation"]) < SOLVED))
            if arm not in best or share > best[arm][0]:
                best[arm] = share, line["rate"] * (3 if arm == "block-normalised" else 1), found
    rows = arm_rows({}, {arm: found for arm, (_, _, found) in best.items()})
    lines_ = [[row["arm"], f"{best[row['arm']][1]:g}", interval(row), signed(row)] for row in rows]
    return markdown(["arm", f"best of {len(runs)} rates", "solved", "minus strict"], lines_)


def picture(path: Path, panels: list[tuple[str, list[Row]]]) -> None:
    """Share solved with intervals by arm, a panel for each cell."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    arms = list(dict.fromkeys(row["arm"] for _, found in panels for row in found))
    with style():
        figure = Figure(figsize=(2.0 + 2.2 * columns, 0.5 + (0.24 * len(arms) + 0.4) * rows), layout="constrained")
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        for axis in axes.flat[len(panels) - columns : len(panels)]:
            axis.tick_params(axis="x", labelbottom=True)
        for axis, (name, found) in zip(axes.flat, panels, strict=False):
            strict = next(row["solved"] for row in found if row["arm"] == "strict")
            axis.axvline(strict, color="0.7", linewidth=1)
            for row in found:
                colour, marker = (
                    (PALETTE[1], "s") if row["arm"] in ("relabel", "across", "choice") else (PALETTE[0], "o")
                )
                y = arms.index(row["arm"])
                axis.plot([row["low"], row["high"]], [y, y], color=colour)
                axis.plot(row["solved"], y, marker, color=colour, markersize=5)
            axis.set_title(name, fontsize=9.5, fontweight="normal")
            axis.set_xlim(-0.03, 1.03)
            axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            axis.set_yticks(range(len(arms)), arms)
            axis.grid(axis="x")
        if not axes[0, 0].yaxis_inverted():
            axes[0, 0].invert_yaxis()
        figure.supxlabel("share of the seeds that are solved, 95 % interval", fontsize=9.5)
        save_png(figure, path.with_suffix(".png"))


def error_text(value: float) -> str:
    return f"{value:.3f}" if value < 100 else "diverged"


def eigenvalue(path: Path) -> None:
    rows, curves = [], []
    for width in dict.fromkeys(line["width"] for line in read(path)):
        lines = {line["arm"]: line for line in read(path) if line["width"] == width}
        tested = {}
        for arm, line in lines.items():
            means = [statistics.fmean(values) for values in line["validation"]]
            at = int(np.argmin(means))
            tested[arm] = np.array(line["test"][at])
            low, middle = line["train"][at], line["middle"][at]
            error = paired(tested[arm], tested["Adam"])
            n = len(low)
            rows.append({
                "width": width, "arm": arm, "seeds": n, "rate": line["rates"][at],
                "test": tested[arm].mean(), "spread": tested[arm].std(ddof=1) / n**0.5,
                "minus Adam": error[0], "minus Adam low": error[1], "minus Adam high": error[2],
                "training": statistics.fmean(low), "training loss in mid-run, relaxed": statistics.fmean(middle),
            })  # fmt: skip
            curves.append((width, arm, line["rates"], [statistics.fmean(v) for v in line["test"]]))
    write_csv(path, rows)
    header = ["width", "arm", "rate", "test error", "minus Adam (95 %)", "training error", "training loss in mid-run"]
    table = [
        [
            str(r["width"]), r["arm"], f"{r['rate']:.3g}", f"{r['test']:.4f} ± {r['spread']:.4f}",
            f"{r['minus Adam']:+.4f} ({r['minus Adam low']:+.4f}, {r['minus Adam high']:+.4f})",
            f"{r['training']:.4f}", f"{r['training loss in mid-run, relaxed']:.4f}",
        ]
        for r in rows
    ]  # fmt: skip
    sweep = [
        [str(w), arm, *(f"{rate:.3g}: {error_text(value)}" for rate, value in zip(x, y, strict=True))]
        for w, arm, x, y in curves
    ]
    count = len(curves[0][2])
    write_md(
        path,
        "Mean squared error of the standardised eigenvalue, mean ± standard error over the seeds, at the rate that is "
        "best on validation data; differences paired by seed:",
        markdown(header, table),
        "Test error by rate:",
        markdown(["width", "arm", *(f"rate {i + 1}" for i in range(count))], sweep),
    )
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    widths = list(dict.fromkeys(w for w, *_ in curves))
    figure, axes = plt.subplots(1, len(widths), figsize=(4.2 * len(widths), 3.2), squeeze=False, layout="constrained")
    for axis, width in zip(axes[0], widths, strict=True):
        for w, arm, rates, values in curves:
            if w == width:
                axis.plot(
                    rates, values, "o-" if "relaxed" not in arm else "s--", label=arm, color=f"C{'block' in arm:d}"
                )
        axis.set(xscale="log", xlabel="rate", ylabel="test error", title=f"width {width}")
        axis.set_ylim(0, min(1.1, axis.get_ylim()[1]))
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path.with_suffix(".png"), dpi=110)
    plt.close(figure)


def hidden(path: Path) -> None:
    keys = ["group", "k", "student"]
    students = ["quotient", "half", "regular"]
    lines = sorted(read(path), key=lambda row: (row["k"], row["group"], students.index(row["student"])))
    rows = [row for line in lines for row in arm_rows({k: line[k] for k in keys}, line["arms"])]
    write_csv(path, rows)
    found = []
    for line in lines:
        cell = [str(line[k]) for k in keys]
        right = {"regular": line["k"]}
        ends = [{kind: count for kind, count in types.items() if count} for types in line["types at the end"]]
        common = Counter(", ".join(f"{count} {kind}" for kind, count in end.items()) for end in ends).most_common(4)
        found.append([
            *cell, f"{sum(end == right for end in ends)} of {len(ends)}",
            f"{sum(end.get('regular', 0) == line['k'] for end in ends)} of {len(ends)}",
            "; ".join(f"{name} ({count})" for name, count in common), f"{statistics.median(line['cost']):.3f}",
        ])  # fmt: skip
    write_md(
        path,
        "Share of the seeds that are solved, with 95 % Wilson intervals:",
        by_cell(rows, keys, interval),
        "Minus strict, paired by seed, with 95 % intervals by bootstrap:",
        by_cell([row for row in rows if row["arm"] != "strict"], keys, signed),
        "Share of the seeds with a test error below 1e-4:",
        by_cell(rows, keys, lambda row: f"{row['below 1e-4']:.2f}"),
        "Medians: training loss in mid-run / right after projection / test error at the end:",
        by_cell(rows, keys, medians),
        "Which orbits `choice` has at its end (teacher: k regular ones and nothing else); cost: what the search "
        "changed at half of the run, as a part of the network:",
        markdown([*keys, "the teacher's", "as many regular ones", "most often", "median cost"], found),
    )
    shares = by_cell(rows, keys, lambda row: f"{row['solved']:.2f}")
    write_md(path.with_name(f"{path.stem}_excerpt.jsonl"), shares, like=path)
    picture(path, [(f"{r['group']}, k = {r['k']}, {r['student']}", arm_rows({}, r["arms"])) for r in lines])
