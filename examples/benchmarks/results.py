"""docs/results.md, its tables and pictures, and the README's first table, from the JSON lines in docs/results.

    python examples/benchmarks/results.py

Nothing is trained: each file of lines is made by its configuration, which stands above its table.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from textwrap import indent

from lightning_equiv import Comparison
from lightning_equiv.compare.advice import advice
from lightning_equiv.compare.command import configuration
from lightning_equiv.compare.statistics import compared, paired_difference

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
MARKS = "<!-- made by examples/benchmarks/results.py -->", "<!-- until here -->"


@dataclass(frozen=True)
class Experiment:
    """A configuration, perhaps with a preset, and what to know about it."""

    config: str
    preset: str | None = None
    words: str = ""

    @property
    def name(self) -> str:
        return f"{self.config}{f'_{self.preset}' if self.preset else ''}"

    @property
    def command(self) -> str:
        preset = f" --preset {self.preset}" if self.preset else ""
        return f"python -m lightning_equiv compare \\\n    --config examples/benchmarks/{self.config}.yaml{preset}"

    def settings(self) -> dict[str, object]:
        return configuration(ROOT / "examples" / "benchmarks" / f"{self.config}.yaml", self.preset)

    def load(self) -> Comparison:
        settings = self.settings()
        return Comparison.load(
            RESULTS / f"{self.name}.jsonl", reference=settings.get("reference"), title=str(settings["title"])
        )


STRICT = ("strict", "strict, block-normalised", "strict, restarted")  # the rivals of relaxing
KEPT = ("unconstrained", "RECM", "ACE, resilient")  # what may end with branches
RELAXATION = (
    "The symmetry is exact. Each way has the best of three rates on three seeds; a restart is two trainings of half "
    "the length; "
    f"{' and '.join([', '.join(KEPT[:-1]), KEPT[-1]])} may keep their branches."
)
AGAIN = (
    "`REMUL(5 %)` was trained again when its second loss had changed; its times and memory are those of its first "
    "runs, made beside the others."
)
EXPERIMENTS = [
    Experiment("gravity", words=AGAIN),
    Experiment("gravity", "compute", words=AGAIN),
    Experiment("projection", words="A plain Transformer, without a sweep of rates."),
    Experiment("projection", "compute"),
    Experiment("charges_sizes", words="1000 samples are `field 0` of the next table."),
    Experiment("charges_field"),
    Experiment("solids"),
    Experiment("relaxation_charges", words=RELAXATION),
    Experiment("relaxation_deep", words=RELAXATION),
    *(Experiment("relaxation_solids", preset, RELAXATION) for preset in (None, "fresh", "two", "four", "many", "deep")),
    Experiment("digits_shifts"),
    Experiment("digits_turns"),
    Experiment("ethanol", words="The training of the teacher is not in the cost of cloning."),
    Experiment("aspirin"),
]


@dataclass(frozen=True)
class Claim:
    """What a paper says, and what was measured of it.

    Args:
        paper: who says it.
        says: the claim.
        measured: what was measured, each with whether it bears the claim out: True, False, or None for neither.
        cause: what was found of the cause, where it fails.
    """

    paper: str
    says: str
    measured: Callable[[dict[str, Comparison]], Iterator[tuple[str, bool | None]]]
    cause: str = ""

    def row(self, found: dict[str, Comparison]) -> str | None:
        """A row of the table; None where nothing was measured yet."""
        parts = list(self.measured(found))
        if not parts:
            return None
        verdicts = [verdict for _, verdict in parts]
        if all(verdicts):
            holds = "yes"
        elif any(verdicts):
            holds = "in part"
        else:
            holds = "no" if False in verdicts else "not told apart"
        text = "; ".join(sentence for sentence, _ in parts)
        return f"| {self.paper}: {self.says} | {text}.{f' {self.cause}' if self.cause else ''} | {holds} |"


def against(
    c: Comparison, case: str, figure: str, way: str, others: Sequence[str], or_equal: bool = False
) -> Iterator[tuple[str, bool | None]]:
    """A way against others, which were planned: told apart by a t test at 5 % over the number of these pairs."""
    table, mode = c.figures(case, figure), c.mode(case)
    where = f" ({case})" if case else ""
    others = [other for other in others if other in table and way in table]
    equal = []
    for other in others:
        pairs = compared({w: table[w] for w in (way, other)}, mode=mode, level=1 - 0.05 / len(others))
        if not pairs:
            continue  # fewer than three seeds
        if not pairs[0].told:
            d = paired_difference(table, way, other, relative=pairs[0].relative)
            low, high = (f"{v:+.1%}" if d.relative else f"{v:+.3g}" for v in (d.low, d.high))
            equal.append(f"{other} ({low} to {high})")
            continue
        (sentence, *_) = advice({w: table[w] for w in (other, way)}, {}, mode=mode, reference=other, figure=figure)
        yield sentence.rstrip(".") + where, pairs[0].better == way
    if equal:
        yield f"{way} was not told apart from {' and '.join(equal)}{where}", True if or_equal else None


def remul(found: dict[str, Comparison]) -> Iterator[tuple[str, bool | None]]:
    if c := found.get("gravity"):
        weights = [w for w in c.figures("", "test_mse_ood") if w.startswith("REMUL")]
        best = min(weights, key=lambda w: fmean(c.figures("", "test_mse_ood")[w].values()))
        peers = [w for w in ("e3nn network", "SE(3)-Transformer") if w in c.ways]
        yield from against(c, "", "test_mse_ood", best, peers, or_equal=True)
        for peer in peers:
            ratio = c.inference("")[peer] / c.inference("")[best]
            yield f"{peer} takes {ratio:.1f} times its inference time", ratio >= 10


def relaxation(found: dict[str, Comparison]) -> Iterator[tuple[str, bool | None]]:
    for name in ("charges_sizes", "charges_field", "solids"):
        if c := found.get(name):
            for case in c.cases if name != "charges_field" else ["field 0"]:
                yield from against(c, case, c.judged(case)[0], "ConstraintRelaxation", ["strict"])


def relaxation_pays(found: dict[str, Comparison]) -> Iterator[tuple[str, bool | None]]:
    """Each problem: what was told from strict; whether something relaxed is better, and better than its rivals."""
    for name, c in found.items():
        if not name.startswith("relaxation_"):
            continue
        figure = c.judged("")[0]
        table, mode = c.figures("", figure), c.mode("")
        others = [way for way in table if way != "strict"]
        told = []
        for way in others:
            pairs = compared({w: table[w] for w in ("strict", way)}, mode=mode, level=1 - 0.05 / len(others))
            if pairs and pairs[0].told:
                words = "better" if pairs[0].better == way else "worse"
                told.append((way, words, f"{way} {words} by {abs(pairs[0].value):.0%}"))
        means = {way: fmean(values.values()) * (1 if mode == "min" else -1) for way, values in table.items()}
        winners = [way for way, words, _ in told if words == "better" and way not in STRICT]
        rivals = [means[way] for way in STRICT if way in means]
        pays = any(means[way] < min(rivals) for way in winners)
        text = ", ".join(words for *_, words in told) or "nothing was told apart from strict"
        title = c.title.removeprefix("Relaxing ")
        yield f"{title}: {text}", True if pays else (False if told else None)


def recm(found: dict[str, Comparison]) -> Iterator[tuple[str, bool | None]]:
    if c := found.get("charges_field"):
        rivals = ["strict", "ConstraintRelaxation", "unconstrained", "ACE", "ACE, resilient"]
        for case in c.cases:
            yield from against(c, case, c.judged(case)[0], "RECM", rivals, or_equal=True)


def cloning(found: dict[str, Comparison]) -> Iterator[tuple[str, bool | None]]:
    for name in ("digits_shifts", "digits_turns"):
        if c := found.get(name):
            symmetry = name.partition("_")[2]
            for case, way, others in (("kept", "cloned, retain", ["plain"]), ("broken", "cloned, break", ["strict"])):
                for sentence, verdict in against(c, case, c.judged(case)[0], way, others):
                    yield f"{symmetry}, {sentence}", verdict


CLAIMS = [
    Claim(
        "REMUL",
        "approaches or beats equivariant networks out of distribution, at a tenth of their inference time",
        remul,
    ),
    Claim(
        "Constraint relaxation",
        "improves the training of strict networks",
        relaxation,
        "The branch is dropped at the end, and with it what it has learned; [more](constraint_relaxation.md).",
    ),
    Claim(
        "Relaxing pays",
        "a network relaxed while it trains ends better than strict ones, with rates tuned alike, also than one begun "
        "twice or trained by block-normalised Adam",
        relaxation_pays,
    ),
    Claim("RECM", "needs no tuning, and is best or equal best however much the symmetry is broken", recm),
    Claim("Symmetry cloning", "a clone keeps its symmetry or gives it up, as it is asked to", cloning),
]


def listed(excerpt: str) -> str:
    """The excerpt with paragraphs of advice, "what: a sentence. A sentence. ...", as lists."""
    blocks = excerpt.split("\n\n")
    tables = next((k for k, block in enumerate(blocks) if block.startswith(("|", "**"))), len(blocks))
    for k, block in enumerate(blocks[:tables]):
        what, colon, sentences = block.partition(": ")
        each = re.split(r"(?<=\.) ", sentences)
        if colon and len(each) > 2:
            blocks[k] = f"{what}:\n\n" + "\n".join(f"* {sentence}" for sentence in each)
    return "\n\n".join(blocks)


def page(found: dict[str, Comparison]) -> str:
    """The page, in Markdown."""
    experiments = [e for e in EXPERIMENTS if e.name in found]
    runs = [r for c in found.values() for r in (*c.runs, *c.trials)]
    hours = sum(r["cpu_seconds"] for r in runs) / 3600
    lines = [
        "# Results",
        "",
        MARKS[0],
        "",
        "`make results` writes this page from the JSON lines in `docs/results`, a run each; the command above a table "
        "makes its lines, on two cores of a CPU, one thread a run. [Comparing](comparing.md) says how a comparison is "
        f"made, and what its intervals mean. Sizes are small, {len(runs)} trainings in {hours:.1f} core-hours "
        "(validation and measuring not counted): the presets of the configurations have larger ones.",
        "",
        "## What the papers claim, and what was measured",
        "",
        "Each line asks for a few pairs of ways alone, by paired t tests over the seeds at 5 % over their number; the "
        "tables below compare all pairs, which takes more to tell two apart.",
        "",
        "| claim | measured here | holds here? |",
        "|---|---|---|",
        *filter(None, (claim.row(found) for claim in CLAIMS)),
        "",
    ]
    for e in experiments:
        c = found[e.name]
        commits = ", ".join(dict.fromkeys(f"`{(r.get('versions') or {}).get('commit', '?')}`" for r in c.runs))
        lines += [
            f"## {c.title}",
            "",
            indent(e.command, "    "),
            "",
            f"{len(c.runs)} runs, made at {commits}. {e.words}".strip(),
            "",
            listed(c.excerpt(f"results/{e.name}.png")),
        ]
    return "\n".join(lines)


def first_table(c: Comparison) -> str:
    """The README's first table: each way on gravitating bodies."""
    figures = {name: c.figures("", name) for name in ("test_mse_id", "test_mse_ood")}
    errors, cost, inference = c.equivariance_errors("")["ood"], c.costs(""), c.inference("")
    lines = [
        "| | MSE × 1e-3 as in training | turned further | equivariance error | cost of a step | of inference |",
        "|---|---|---|---|---|---|",
    ]
    for way in c.ways:
        if all(way in figures[name] for name in figures):
            means = (f"{1e3 * fmean(figures[name][way].values()):.2f}" for name in figures)
            error = f"{fmean(errors[way].values()):.2g}"
            lines.append(f"| {way} | {' | '.join(means)} | {error} | {cost[way]:.2f} | {inference[way]:.2f} |")
    return "\n".join(lines)


def put(text: str, path: Path) -> None:
    """Put a text between the marks of a file."""
    before, _, rest = path.read_text(encoding="utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    path.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write everything here, and leave README and docs alone")
    parser.add_argument("--fast-dev-run", action="store_true", help="only the first experiment")
    options = parser.parse_args()
    folder = options.out or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    experiments = EXPERIMENTS[: 1 if options.fast_dev_run else None]
    found = {e.name: e.load() for e in experiments if (RESULTS / f"{e.name}.jsonl").exists()}
    for name, c in found.items():
        c.save(folder / f"{name}.csv")
        c.save(folder / f"{name}.png")
    own = folder / "results.md" if options.out else ROOT / "docs" / "results.md"
    own.write_text(page(found), encoding="utf-8")
    if "gravity" in found and not options.out:
        put(first_table(found["gravity"]), ROOT / "README.md")
    print(f"written: {own}" + (" and the first table of README.md" if "gravity" in found and not options.out else ""))
    for name in found:
        print(f"written: {folder / name}.csv, .png")


if __name__ == "__main__":
    sys.exit(main())
