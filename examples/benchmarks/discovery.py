"""symmetry_report: the level of its tests, their power for charged particles in a field, and what it says of our data.

levels     500 symmetric data sets a test: how often it rejects at .05 (exact: within [.03, .07])
power      charged particles in fields of 0 to 1 along z: how often T1 finds the field in the labels
problems   gravity, charges, digits, ethanol: the verdicts and the advice

OMP_NUM_THREADS=1 python examples/benchmarks/discovery.py                  all three, about ten minutes
OMP_NUM_THREADS=1 python examples/benchmarks/discovery.py --parts levels   a part
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import torch

from lightning_equiv import Image, Invariant, Permuted, Symmetry, symmetry_report
from lightning_equiv.datasets import (
    DigitsDataModule,
    MoleculesDataModule,
    charged_dataset,
    gravity_dataset,
)
from lightning_equiv.discovery.candidates import subgroups
from lightning_equiv.discovery.conditional_test import conditional_test, turn_back
from lightning_equiv.discovery.exact_test import exact_test
from lightning_equiv.discovery.orbits import moved_features, orbits_of
from lightning_equiv.discovery.sample import sample_of
from lightning_equiv.report.document import Picture
from lightning_equiv.report.pictures import figure, save_png

CHARGES = Symmetry("SO(3)", {"charges": Invariant(), "positions": "1o", "velocities": "1o"}, "1o")
GRAVITY = Symmetry("SO(3)", {"masses": Invariant(), "positions": "1o", "velocities": "1o"}, "1o")
FIELDS = (0.0, 0.03, 0.1, 0.3, 1.0)
SIZES = (200, 500, 1000, 2000, 5000)
LEVEL = 0.05


def clouds(generator, n):
    return torch.randn(n, 8, 3, generator=generator, dtype=torch.float64)


def labelled(generator, n):
    """Three points in preferred poses, and a vector label that turns along with them."""
    x = torch.randn(n, 3, 3, generator=generator, dtype=torch.float64)
    x[:, 0] += torch.tensor([0.0, 0.0, 1.0])
    y = x[:, 0] * (x[:, 1] * x[:, 2]).sum(-1, keepdim=True).tanh() + x[:, 1]
    return x, y + 0.2 * torch.randn(n, 3, generator=generator, dtype=torch.float64)


def centred(generator, n):
    x = clouds(generator, n)
    return x - x.mean(1, keepdim=True)


def random_pairs(generator, n):
    x = torch.randn(n, 3, 3, generator=generator, dtype=torch.float64)
    y = torch.linalg.cross(x[:, 0], x[:, 1])
    return x, y + 0.2 * torch.randn(n, 3, generator=generator, dtype=torch.float64)


LAWS = {  # name: symmetry, data, inputs of a data set, witness
    "T1, SO(3), points": (Symmetry("SO(3)", "1o", Invariant()), clouds, 30, "features"),
    "T1, SO(3), points, MLP": (Symmetry("SO(3)", "1o", Invariant()), clouds, 30, "mlp"),
    "T1, O(3), centred points": (Symmetry("O(3)", "1o", Invariant()), centred, 100, "features"),
    "T1, SO(3), points with vectors": (Symmetry("SO(3)", "1o", "1e"), random_pairs, 100, "features"),
    "T1, C4, images": (
        Symmetry("C4", Image(), Invariant()),
        lambda generator, n: torch.randn(n, 1, 6, 6, generator=generator, dtype=torch.float64),
        30,
        "features",
    ),
    "T1, S5, lists": (
        Symmetry("S5", Permuted(1), Invariant()),
        lambda generator, n: torch.rand(n, 5, generator=generator, dtype=torch.float64),
        30,
        "features",
    ),
    "T3, SO(3), preferred poses": (Symmetry("SO(3)", "1o", "1o"), labelled, 300, "T3"),
}


def levels(options):
    """Of each law: how often the test rejects at .05."""
    repetitions = 4 if options.fast_dev_run else 500
    rows = []
    for name, (symmetry, draw, n, witness) in LAWS.items():
        p = []
        for k in range(repetitions):
            data = draw(torch.Generator().manual_seed(k), n)
            x, y = data if isinstance(data, tuple) else (data, None)
            sample = sample_of(x, symmetry, y)
            candidate = subgroups(symmetry)[-1]
            if witness == "T3":
                p.append(conditional_test(turn_back(sample, candidate, None, k), candidate, 199, k).p)
                continue
            table = orbits_of(sample, candidate, None, None, k).table
            p.append(exact_test(table, witness=witness, draws=199, seed=k).p)
        rates = [sum(v <= level for v in p) / len(p) for level in (0.01, LEVEL, 0.2)]
        rows.append([name, n, repetitions, *(f"{rate:.3f}" for rate in rates)])
        print(*rows[-1])
    write(options, "levels", ["test", "inputs", "data sets", "at .01", "at .05", "at .2"], rows)


def power(options):
    """T1 of inputs with labels, SO(3), on parts of one pool of samples for each field."""
    pool, sizes = (200, (60, 100)) if options.fast_dev_run else (10_000, SIZES)
    rows = []
    for field in FIELDS[-2:] if options.fast_dev_run else FIELDS:
        data = charged_dataset(pool, field=field, seed=1, steps=50 if options.fast_dev_run else 1000)
        sample = sample_of(data, CHARGES, "targets")
        candidate = subgroups(CHARGES)[-1]
        table = few_orbits(sample, candidate, copies=12)
        for n in sizes:
            repetitions = 4 if options.fast_dev_run else 20 if n < 5000 else 10
            found = 0
            for k in range(repetitions):
                rows_of = torch.randperm(pool, generator=torch.Generator().manual_seed(k))[:n]
                found += exact_test(table[rows_of], witness="features", draws=199, seed=k).p <= LEVEL
            rows.append([field, n, repetitions, f"{found / repetitions:.2f}"])
            print(*rows[-1])
    write(options, "power", ["field", "inputs", "data sets", "found at .05"], rows)
    draw(options, rows)


def few_orbits(sample, candidate, copies):
    """Features of the pool and of a few moved copies, with labels, in single precision."""
    generator = torch.Generator().manual_seed(0)
    columns = [moved_features(sample, None, 1, None, None)[0].float()]
    for _ in range(copies):
        g = candidate.draw(sample.num_inputs, generator)
        columns.append(moved_features(sample, g, 1, None, None)[0].float())
    return torch.cat(columns).transpose(0, 1)


def draw(options, rows):
    """The share found against the number of samples."""
    sizes = sorted({int(n) for _, n, *_ in rows})
    found = {(float(field), int(n)): float(share) for field, n, _, share in rows}
    fields = list(dict.fromkeys(field for field, _ in found))
    data = {
        "x": sizes,
        "series": {f"field {field:g}": {"value": [found[field, n] for n in sizes]} for field in fields},
        "lines": {f"level {LEVEL}": [LEVEL] * len(sizes)},
        "x_label": "samples",
        "y_label": "share of data sets",
        "log_x": 10,
    }
    path = options.out / "discovery_power.png"
    save_png(figure([Picture("the field is found", "curve", data, "")]), path)
    print(f"written: {path}")


def problems(options):
    """The verdicts on data whose symmetry is known."""
    n = 60 if options.fast_dev_run else 600
    images = Symmetry("C4", {"images": Image()}, Invariant())
    tasks = {
        "Gravity, turned by at most 10 degrees": (lambda: gravity_dataset(n), GRAVITY, "targets"),
        "Charges without a field": (lambda: charged_dataset(n), CHARGES, "targets"),
        "Charges in a field of 0.3 along z": (lambda: charged_dataset(n, field=0.3), CHARGES, "targets"),
        "Digits, upright": (lambda: DigitsDataModule("rotations kept", train_size=n), images, "labels"),
        "Digits whose label depends on the turn": (
            lambda: DigitsDataModule("rotations broken", train_size=n),
            images,
            "labels",
        ),
    }
    if options.fast_dev_run:
        tasks = dict(list(tasks.items())[3:])
    else:
        molecule = Symmetry("O(3)", {"numbers": Invariant(), "positions": "1o"}, "1o")
        turned = MoleculesDataModule(test_size=n)
        tasks["Ethanol, one trajectory"] = (lambda: MoleculesDataModule(train_size=n), molecule, "forces")
        tasks["Ethanol, each frame turned at random"] = (lambda: turned.samples("ood"), molecule, "forces")
    held, text = {}, ["# What `symmetry_report` says of our own data", ""]
    for name, (data, symmetry, labels) in tasks.items():
        report = symmetry_report(data(), symmetry, labels)
        held[name] = report.as_dict()
        text += [f"## {name}", "", report.conclusion, "", *(f"{line}\n" for line in (*report.advice, *report.notes))]
        text += ["| group | verdict | inputs | labels | in words |", "| --- | --- | --- | --- | --- |"]
        text += [f"| {f.name} | {f.verdict} | {f.on_inputs} | {f.on_labels} | {f.words} |" for f in report.findings]
        text.append("")
        print(name, report.conclusion, *report.advice, sep="\n  ")
    (options.out / "discovery_problems.md").write_text("\n".join(text))
    (options.out / "discovery_problems.json").write_text(json.dumps(held, indent=1) + "\n")
    print(f"written: {options.out / 'discovery_problems.md'}, .json")


def write(options, name, header, rows):
    with (options.out / f"discovery_{name}.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    text = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
    (options.out / f"discovery_{name}.md").write_text(text + "\n")
    print(f"written: {options.out / f'discovery_{name}.md'}, .csv")


PARTS = {"levels": levels, "power": power, "problems": problems}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder of what is written")
    parser.add_argument("--draw", action="store_true", help="only the picture of the power, from its csv")
    parser.add_argument("--fast-dev-run", action="store_true", help="few data sets, to see that it runs")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.draw:
        with (options.out / "discovery_power.csv").open(newline="") as file:
            draw(options, list(csv.reader(file))[1:])
        return
    for part in options.parts:
        PARTS[part](options)


if __name__ == "__main__":
    main()
