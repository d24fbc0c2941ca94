"""What the records of a comparison say: figures, differences, costs, failures and advice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from lightning_equiv.audit.words import enumerated
from lightning_equiv.compare.advice import advice
from lightning_equiv.compare.records import Record, key_of, only
from lightning_equiv.compare.statistics import Difference, Mode, is_relative, paired_difference

Figures = dict[str, dict[int, float]]
"""Way -> seed -> number."""


class Failure(NamedTuple):
    """A run that gives no figures, and why."""

    case: str
    way: str
    seed: int
    status: str
    message: str


@dataclass(frozen=True, init=False, eq=False)
class Results:
    """The runs of a comparison; a figure is of the runs that ended well.

    Attributes:
        runs: in the order of the records.
        trials: of a sweep.
        timed: what steps cost, measured side by side, for a comparison at equal compute.
        reference: the way that the others are compared with.
    """

    runs: tuple[Record, ...]
    trials: tuple[Record, ...]
    timed: tuple[Record, ...]
    reference: str

    def __init__(self, records: Iterable[Record], *, reference: str | None = None) -> None:
        kinds: dict[str, list[Record]] = {"run": [], "trial": [], "cost": []}
        for record in records:
            if record.get("kind") not in kinds:
                raise ValueError(f"expected records of kind {', '.join(kinds)}, got {record.get('kind')!r}")
            kinds[record["kind"]].append(record)
        if not kinds["run"]:
            raise ValueError("expected the records of at least one run, got none: run the comparison first")
        keys = [key_of(record) for kind in kinds.values() for record in kind]
        if twice := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
            raise ValueError(
                f"expected each run once, got {twice[0]} more than once: leave out one of the results files"
            )
        ways = list(dict.fromkeys(record["way"] for record in kinds["run"]))
        if reference is not None and reference not in ways:
            raise ValueError(f"expected the reference to be one of the ways {ways}, got {reference!r}")
        object.__setattr__(self, "runs", tuple(kinds["run"]))
        object.__setattr__(self, "trials", tuple(kinds["trial"]))
        object.__setattr__(self, "timed", tuple(kinds["cost"]))
        object.__setattr__(self, "reference", reference or ("plain" if "plain" in ways else ways[0]))
        for case in self.cases:
            self._check_fingerprints(case)

    # ---- what was run ----------------------------------------------------------------------------------------------
    @property
    def records(self) -> list[Record]:
        """All of them."""
        return [*self.timed, *self.trials, *self.runs]

    @property
    def ways(self) -> tuple[str, ...]:
        """In the order in which they first occur."""
        return tuple(dict.fromkeys(record["way"] for record in self.runs))

    @property
    def cases(self) -> tuple[str, ...]:
        """In the order in which they first occur; ("",) where there is one only."""
        return tuple(dict.fromkeys(record["case"] for record in self.runs))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of all runs, from the least."""
        return tuple(sorted({record["seed"] for record in self.runs}))

    def judged(self, case: str) -> tuple[str, ...]:
        """The figures that the ways are compared by."""
        return tuple(dict.fromkeys(name for r in only(self.runs, case=case) for name in r.get("judged") or ()))

    def mode(self, case: str) -> Mode:
        """Whether a small figure is the better one, "min" or "max"."""
        return next((r["mode"] for r in only(self.runs, case=case) if r.get("mode")), "min")

    # ---- numbers ---------------------------------------------------------------------------------------------------
    def numbers(self, case: str, number: Callable[[Record], Any]) -> Figures:
        """A number of each run that ended well; of the ways that have one, in order.

        Args:
            case: of the runs.
            number: of a record; what is no finite number is left out.
        """
        found: Figures = {}
        for way in self.ways:
            runs = sorted(only(self.runs, case=case, way=way, status="ok"), key=lambda r: int(r["seed"]))
            values = {r["seed"]: float(v) for r in runs if _finite(v := number(r))}
            if values:
                found[way] = values
        return found

    def figures(self, case: str, name: str) -> Figures:
        """One of the metrics.

        Args:
            case: of the runs.
            name: of the metric.
        """
        return self.numbers(case, lambda r: (r.get("metrics") or {}).get(name))

    def equivariance_errors(self, case: str) -> dict[str, Figures]:
        """Of each test set the relative equivariance errors."""
        sets = dict.fromkeys(s for r in only(self.runs, case=case) for s in r.get("equivariance_error") or {})
        found = {s: self.numbers(case, lambda r, s=s: (r.get("equivariance_error") or {}).get(s)) for s in sets}  # type: ignore[misc]
        return {s: figures for s, figures in found.items() if figures}

    def costs(self, case: str) -> dict[str, float]:
        """Time of a training step, relative to the reference's: the median over seeds of the ratio within a seed.

        On a CPU its own time counts. Where steps were timed side by side, that is what counts.

        Args:
            case: of the runs.
        """
        timed = {r["way"]: r["step_seconds"] for r in self.timed if r["case"] == case and r["way"] in self.ways}
        if self.reference in timed:
            return {way: seconds / timed[self.reference] for way, seconds in timed.items()}
        return self._ratios(case, lambda r: _quotient(training_seconds(r), r.get("steps")))

    def inference(self, case: str) -> dict[str, float]:
        """Time of inference, relative to the reference's: the median over seeds of the ratio within a seed.

        Args:
            case: of the runs.
        """
        return self._ratios(case, lambda r: r.get("inference_ms"))

    def _ratios(self, case: str, number: Callable[[Record], Any]) -> dict[str, float]:
        """Within a seed, where both ran on one kind of device."""
        numbers = self.numbers(case, number)
        device = {(r["way"], r["seed"]): r.get("device") for r in only(self.runs, case=case)}
        base = {seed: value for seed, value in numbers.get(self.reference, {}).items() if value > 0}
        found = {}
        for way, own in numbers.items():
            seeds = [s for s in own if s in base and device[way, s] == device[self.reference, s]]
            if seeds:
                found[way] = median(own[s] / base[s] for s in seeds)
        return found

    # ---- comparison ------------------------------------------------------------------------------------------------
    @property
    def differences(self) -> dict[str, dict[str, dict[str, Difference]]]:
        """Case -> judged figure -> way -> its difference from the reference, paired by seed.

        It is relative where small is good and all figures are positive.
        """
        return {case: {name: self._differences(case, name) for name in self.judged(case)} for case in self.cases}

    def _differences(self, case: str, name: str) -> dict[str, Difference]:
        table = self.figures(case, name)
        relative = is_relative(table, self.mode(case))
        base = table.get(self.reference, {})
        return {
            way: paired_difference(table, way, self.reference, relative=relative)
            for way, own in table.items()
            if way != self.reference and own.keys() & base.keys()
        }

    @property
    def advice(self) -> list[str]:
        """What to do, in sentences; of several cases each begins with its case."""
        several = len(self.cases) > 1
        return [f"{case}: {s}" if several else s for case in self.cases for s in self.advice_on(case)]

    def advice_on(self, case: str) -> list[str]:
        """What to do in one case: sentences, or a paragraph for each of several judged figures, headed by its name.

        Args:
            case: of the runs.
        """
        each = {name: self._advice(case, name) for name in self.judged(case)}
        if len(each) < 2:
            return [s for sentences in each.values() for s in sentences]
        return [f"`{name}`: {' '.join(sentences)}" for name, sentences in each.items()]

    def _advice(self, case: str, name: str) -> list[str]:
        table, problems = self.figures(case, name), self.problems.get(case, {})
        if self.reference not in table:
            return [f"`{self.reference}`, which the others are compared with, has no `{name}`: run it again."]
        return advice(
            table,
            self.costs(case),
            mode=self.mode(case),
            reference=self.reference,
            figure=name,
            problems=problems,
        )

    # ---- what went wrong -------------------------------------------------------------------------------------------
    @property
    def failures(self) -> tuple[Failure, ...]:
        """Runs that failed or diverged, and those that ended without one of the judged figures."""
        found = []
        for r in self.runs:
            status, message = r["status"], str(r.get("message") or "")
            if status == "ok":
                metrics = r.get("metrics") or {}
                missing = [name for name in self.judged(r["case"]) if not _finite(metrics.get(name))]
                if not missing:
                    continue
                status, message = "no figure", "; ".join(f"{name} is {metrics.get(name)}" for name in missing)
            found.append(Failure(r["case"], r["way"], r["seed"], status, message))
        return tuple(found)

    @property
    def problems(self) -> dict[str, dict[str, str]]:
        """Case -> way -> how many of its runs failed, and with which message; of the ways that have any."""
        found: dict[str, dict[str, str]] = {}
        for case, way in dict.fromkeys((f.case, f.way) for f in self.failures):
            own = [f for f in self.failures if (f.case, f.way) == (case, way)]
            runs = len(only(self.runs, case=case, way=way))
            messages = list(dict.fromkeys(f.message for f in own if f.message))
            more = len(messages) - 1
            others = f" (and {more} other message{'s' if more > 1 else ''})" if more > 0 else ""
            why = f": {messages[0]}{others}" if messages else ""
            ended = enumerated(list(dict.fromkeys(_ENDED.get(f.status, f.status) for f in own)))
            found.setdefault(case, {})[way] = f"{ended} in {len(own)} of {runs} runs{why}"
        return found

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences on test inputs that were trained on, and on ways that were trained on other batches."""
        other: dict[tuple[str, str, str], list[int]] = {}
        for case in self.cases:
            for seed in self.seeds:
                runs = only(self.runs, case=case, seed=seed, status="ok")
                runs = sorted((r for r in runs if r.get("batches")), key=lambda r: bool(r["way"] != self.reference))
                for r in runs[1:]:
                    if not _same_batches(r["batches"], runs[0]["batches"]):
                        other.setdefault((case, r["way"], runs[0]["way"]), []).append(seed)
        shares = {
            case: [r["trained_on"] for r in only(self.runs, case=case) if r.get("trained_on")] for case in self.cases
        }
        again = [
            f"Take care: {100 * median(own):.2g} % of the test inputs{f' in {case}' if case else ''} were trained on; "
            "the data module splits anew for the test, perhaps: give its split a generator."
            for case, own in shares.items()
            if own
        ]
        return (*again, *self._other_batches(other))

    def _other_batches(self, other: dict[tuple[str, str, str], list[int]]) -> tuple[str, ...]:
        return tuple(
            f"Take care: `{way}` was trained on other batches than `{base}` with {_seeds(seeds)}"
            f"{f' in {case}' if len(self.cases) > 1 else ''}; the difference between them may come from the data."
            for (case, way, base), seeds in other.items()
        )

    def _check_fingerprints(self, case: str) -> None:
        runs = [r for r in only(self.runs, case=case) if r.get("fingerprint")]
        runs.sort(key=lambda r: bool(r["way"] != self.reference))
        other = [r for r in runs if r["fingerprint"] != runs[0]["fingerprint"]]
        if not other:
            return
        each = [
            f"{way!r} ({_seeds([r['seed'] for r in other if r['way'] == way])})"
            for way in dict.fromkeys(r["way"] for r in other)
        ]
        where = f" of case {case!r}" if case else ""
        raise ValueError(
            f"expected all runs{where} to have the same data, steps, monitor and Trainer, but {enumerated(each)} "
            f"{'has' if len(each) == 1 else 'have'} others than {runs[0]['way']!r} (seed {runs[0]['seed']}): "
            "write them to another results file"
        )


_ENDED = {"no figure": "ended without a figure"}


def training_seconds(record: Record) -> float | None:
    """Of the processor where it trained on one, else by the clock."""
    return record.get("cpu_seconds") if on_cpu(record) else record.get("seconds")


def on_cpu(record: Record) -> bool:
    """Whether it was trained on a CPU."""
    return str(record.get("device", "")).startswith("cpu")


def _same_batches(some: dict[str, str], others: dict[str, str]) -> bool:
    """Whether the first batches were equal, as many as both have seen."""
    return all(some[count] == others[count] for count in some.keys() & others.keys())


def _quotient(value: float | None, count: int | None) -> float | None:
    return value / count if value is not None and count else None


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _seeds(seeds: Sequence[int]) -> str:
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {enumerated([str(s) for s in seeds])}"
