"""compare: which strategy for my data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock

from lightning_equiv._checks import check_number
from lightning_equiv.compare.checks import check, check_pickled, check_results, check_settled
from lightning_equiv.compare.comparison import Comparison
from lightning_equiv.compare.costs import affordable_steps, measure_costs
from lightning_equiv.compare.executors import processes
from lightning_equiv.compare.made import Spec, class_of
from lightning_equiv.compare.plan import Extra, Plan
from lightning_equiv.compare.progress import Progress
from lightning_equiv.compare.records import Record, RunKey, append, key_of, read
from lightning_equiv.compare.training import train
from lightning_equiv.compare.way import PLAIN, Way, as_ways
from lightning_equiv.layers.choose import Layers
from lightning_equiv.symmetry.symmetry import Symmetry, as_symmetry
from lightning_equiv.symmetry.tree import Places
from lightning_equiv.wiring.random_state import random_state_kept

Job = tuple[RunKey, Way, int]  # and the steps


def compare(
    model: Spec,
    data: Spec,
    *,
    ways: Mapping[str, Any] | Sequence[str] | None = None,
    symmetry: Symmetry | None = None,
    network: str | None = None,
    target: Places | None = None,
    layers: Layers | None = None,
    teacher: Any = None,
    seeds: int | Sequence[int] = 5,
    cases: Mapping[str, Mapping[str, Any]] | None = None,
    monitor: str = "val_loss",
    mode: Literal["min", "max"] = "min",
    judge: str | Sequence[str] = (),
    steps: int | None = None,
    seconds: float | None = None,
    equal: Literal["steps", "compute"] = "steps",
    sweep: Mapping[str, Sequence[Any]] | None = None,
    sweep_seeds: int = 1,
    trainer: Mapping[str, Any] | None = None,
    watch: Sequence[str] = (),
    extra: Extra | str | None = None,
    draws: int = 16,
    num_inputs: int = 256,
    results: str | Path = "comparison.jsonl",
    jobs: int = 1,
    executor: Executor | None = None,
    threads: int | None = None,
    save_every: float = 60.0,
    retry: bool = False,
    reference: str | None = None,
    title: str = "",
    progress: bool = True,
) -> Comparison:
    r"""Which strategy for my data: every way of training, over several seeds, in one table with advice.

    All ways of a seed have the same data, the same batches in the same order, the same steps (or seconds) and are
    tested with the weights that validated best. What a run finds is one JSON line, see `compare/records.py`, appended
    to `results` at once. A run that is there is not repeated: the same call goes on where an earlier one was
    interrupted, a run that was killed from the last epoch that it saved, and several processes may share one file.

    Args:
        model: makes a fresh LightningModule: a function or class, a class path, or `{"class_path": ..., "init_args":
            {...}}`. Its first weights are those of the run's seed.
        data: makes the LightningDataModule, likewise. It is passed the run's seed as `seed`, if it takes one.
        ways: name -> `Way`, callbacks, or None for the one that is ready-made by this name; or names of ready-made
            ones. None takes all of those: "plain", "augmentation", "REMUL(1)", ..., as far as the following allow.
        symmetry: says how a group element moves the network's inputs and outputs; without it no error is measured.
        network: dotted name of the sub-module whose symmetry is meant.
        target: where labels are in a batch, for REMUL and RECM; or where those of each output are.
        layers: which layers ConstraintRelaxation, RECM, ACE and RPP relax.
        teacher: SymmetryCloning's: a network, or what makes one (of a `seed`, if it takes one).
        seeds: how many, or which; at least three, or nothing can be told apart.
        cases: name -> keyword arguments of the data, such as {"field 1": {"field": 1.0}}; all is done for each.
        monitor: what validation logs that chooses the best weights, and a sweep's best setting.
        mode: whether less of it is better, "min", or more, "max".
        judge: what test logs that the ways are compared by; by default `monitor` with "test" in the place of "val", or
            all figures whose names begin with that.
        steps: optimizer steps of a run; with `equal="compute"` those of `reference`.
        seconds: in the place of steps: each way takes the steps that its measured cost allows in this time.
        equal: "steps", or "compute": every way has the seconds of the reference, by step costs that are measured side
            by side before.
        sweep: setting -> values that are tried for each way that has no sweep of its own; the best on validation is
            taken. All ways have the same number of trials. A name with a dot is a callback's argument, "REMUL.weight",
            others are keyword arguments of the model, "lr".
        sweep_seeds: the first so many seeds try the values; what is best on their average is taken for all.
        trainer: further arguments of the Trainer, such as `gradient_clip_val` or `val_check_interval`.
        watch: further logged names whose curves are kept.
        extra: (module, data) -> further figures of the tested module, by name; or the dotted path of this function.
        draws: group elements for each input of an equivariance error.
        num_inputs: at most so many inputs of each test set are measured for it.
        results: the file of JSON lines.
        jobs: processes that train at a time; one each.
        executor: where runs go in the place of processes of this machine: any `concurrent.futures.Executor`, such as
            `dask.distributed.Client().get_executor()`. Workers write to `results`, which they all must reach. What
            a way or data draws from Python's or NumPy's global generator comes out the same there only where a
            worker's other threads draw nothing from it; dask's do, from Python's.
        threads: of torch in one run; None shares the cores among `jobs`.
        save_every: seconds between two savings of a run, each at the start of an epoch.
        retry: do runs again that failed.
        reference: the way that others are compared with: "plain" where there is one, else the first.
        title: of the page.
        progress: show a progress bar over all runs.

    Returns:
        The comparison: `print()` it, `save("table.html")`, `advice` in words.

    Raises:
        ValueError: settings that do not go together; a way that cannot be made; results that were made with other
            settings.
        RuntimeError: a worker died.

    Examples:
        >>> from lightning_equiv import compare  # doctest: +SKIP
        >>> compare(MyModule, MyData, symmetry=symmetry, network="net", steps=2000).print()  # doctest: +SKIP
    """
    check_number("jobs", jobs, least=1, whole=True)
    check_number("sweep_seeds", sweep_seeds, least=1, whole=True)
    given = {
        "symmetry": None if symmetry is None else as_symmetry(symmetry),
        "network": network,
        "target": target,
        "layers": layers,
        "teacher": teacher,
    }
    given = {name: value for name, value in given.items() if value is not None}
    with random_state_kept():
        found = {name: _with_sweep(way, sweep) for name, way in as_ways(ways, given).items()}
    plan = Plan(
        model=model,
        data=data,
        given=given,
        cases={"": {}} if cases is None else cases,
        monitor=monitor,
        mode=mode,
        judged=[judge] if isinstance(judge, str) else list(judge),
        trainer=dict(trainer or {}),
        watch=list(watch),
        extra=class_of(extra, "extra") if isinstance(extra, str) else extra,
        draws=draws,
        num_inputs=num_inputs,
        results=Path(results).absolute(),
        budget={"steps": steps, "seconds": seconds, "equal": equal},
        save_every=save_every,
        threads=_threads(jobs) if threads is None and executor is None else threads,
        retry=retry,
    )
    reference = reference or (PLAIN if PLAIN in found else next(iter(found), PLAIN))
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    with random_state_kept():
        check(plan, found, numbers, reference)
        if executor is None and jobs > 1:
            check_pickled(plan, found)
    check_results(plan, found)
    with ExitStack() as pool:
        if executor is None and jobs > 1:
            executor = pool.enter_context(processes(jobs))
        bar = pool.enter_context(_bar(plan, found, numbers, sweep_seeds, progress))
        costs = _costs(plan, found, numbers[0], executor, bar)
        steps_of = _steps(plan, found, reference, costs)
        settled = _tuned(plan, found, numbers[:sweep_seeds], steps_of, executor, bar)
        check_settled(plan, settled)
        runs = [
            (RunKey(case, name, seed), settled[case, name], steps_of[case, name])
            for seed in numbers
            for case in plan.cases
            for name in found
        ]
        _do(plan, runs, executor, bar)
    return Comparison(read(plan.results), reference=reference, title=title)


def _costs(
    plan: Plan, ways: Mapping[str, Way], seed: int, executor: Executor | None, bar: Progress
) -> dict[tuple[str, str], Record]:
    """What each way costs, in each case; measured where the results do not have it yet."""
    if plan.budget["equal"] == "steps" and plan.budget["seconds"] is None:
        return {}
    plan.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(plan.folder / "costs.lock"):  # of several processes one measures
        known = {(r["case"], r["way"]): r for r in read(plan.results) if r["kind"] == "cost"}
        for case in plan.cases:
            if all((case, name) in known for name in ways):
                continue
            bar.now("measuring what a step costs")
            first = {name: way.with_settings(way.trials()[0]) for name, way in ways.items()}
            if executor is None:
                measured = measure_costs(plan, first, case, seed)
            else:  # where they will train
                measured = executor.submit(measure_costs, plan, first, case, seed).result()
            again = [r for r in measured if (case, r["way"]) in known]
            paces = [known[case, r["way"]]["step_seconds"] / r["step_seconds"] for r in again]
            pace = statistics.median(paces) if paces else 1.0  # what is known stays; the machine may be slower now
            for record in measured:
                if (case, record["way"]) not in known:
                    record |= {name: pace * record[name] for name in ("fixed_seconds", "step_seconds")}
                    append(plan.results, record)
                    known[case, record["way"]] = record
    return known


def _steps(
    plan: Plan, ways: Mapping[str, Way], reference: str, costs: Mapping[tuple[str, str], Record]
) -> dict[tuple[str, str], int]:
    """Steps of each case and way."""
    steps, seconds = plan.budget["steps"], plan.budget["seconds"]
    found = {}
    for case in plan.cases:
        allowed = seconds
        if seconds is None and costs:
            cost = costs[case, reference]
            allowed = cost["fixed_seconds"] + steps * cost["step_seconds"]
        for name in ways:
            affordable = steps if allowed is None else affordable_steps(costs[case, name], allowed)
            if affordable < 1:
                raise ValueError(
                    f"way {name!r} takes {costs[case, name]['fixed_seconds']:.0f} s before its first step, and has "
                    f"{allowed:.0f} s: leave it out, or give more steps or seconds"
                )
            found[case, name] = affordable
    return found


def _tuned(
    plan: Plan,
    ways: Mapping[str, Way],
    seeds: Sequence[int],
    steps: Mapping[tuple[str, str], int],
    executor: Executor | None,
    bar: Progress,
) -> dict[tuple[str, str], Way]:
    """Each case's ways with the settings of a sweep that validated best."""
    trials = [
        (RunKey(case, name, seed, number), way.with_settings(settings), steps[case, name])
        for case in plan.cases
        for name, way in ways.items()
        if way.sweep
        for number, settings in enumerate(way.trials())
        for seed in seeds
    ]
    _do(plan, trials, executor, bar)
    records = {key_of(r): r for r in read(plan.results)}
    settled, sign = {}, 1 if plan.mode == "min" else -1
    for case in plan.cases:
        for name, way in ways.items():
            values = []
            for number in range(len(way.trials())) if way.sweep else ():
                tried = [records[RunKey(case, name, seed, number)] for seed in seeds]
                values.append(sum(sign * _or_worst(r["metrics"].get(plan.monitor), sign) for r in tried))
            chosen = way.trials()[values.index(min(values))] if values else {}
            settled[case, name] = way.with_settings(chosen)
    return settled


def _or_worst(value: float | None, sign: int) -> float:
    return sign * math.inf if value is None else value


def _do(plan: Plan, jobs: Sequence[Job], executor: Executor | None, bar: Progress) -> None:
    """Do the runs that are not there yet; wait for those that another process has in hand."""
    there = {key_of(r): r for r in read(plan.results)}
    missing = [job for job in jobs if not _is_there(there.get(job[0]), plan.retry)]
    bar.found(len(jobs) - len(missing))
    elsewhere = []
    for job, record in _trained(plan, missing, executor, bar):
        if record is None:
            elsewhere.append(job)
            continue
        bar.finished("" if executor is None else f"{_said(job[0])} is done")
        if record["status"] != "ok":
            bar.say(f"{_said(job[0])} {record['status']}: {record['message'] or 'its validation was not finite'}")
    for job in elsewhere:
        bar.now(f"waiting for {_said(job[0])}, which another process has in hand")
        train(plan, *job, wait=True)
        bar.finished()


def _trained(
    plan: Plan, jobs: Sequence[Job], executor: Executor | None, bar: Progress
) -> Iterator[tuple[Job, Record | None]]:
    if executor is None:
        for job in jobs:
            bar.now(_said(job[0]))
            yield job, train(plan, *job)
        return
    futures = {executor.submit(train, plan, *job): job for job in jobs}
    try:
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except Exception as error:
                raise RuntimeError(
                    f"a worker died ({type(error).__name__}: {error}). For want of memory, perhaps: fewer `jobs` need "
                    "less. Or it could not begin: a script that is run with `jobs` calls compare under `if __name__ == "
                    "'__main__':`. What is finished is kept: the same call goes on from there"
                ) from error
    finally:
        for future in futures:
            future.cancel()


def _bar(plan: Plan, ways: Mapping[str, Way], seeds: Sequence[int], sweep_seeds: int, progress: bool) -> Progress:
    trials = len(seeds[:sweep_seeds]) * sum(len(way.trials()) for way in ways.values() if way.sweep)
    total = len(plan.cases) * (len(ways) * len(seeds) + trials)
    return Progress(total, progress)


def _said(key: RunKey) -> str:
    trial = "" if key.trial is None else f", trial {key.trial}"
    return f"{key.way}{key.case and f', {key.case}'}, seed {key.seed}{trial}"


def _with_sweep(way: Way, sweep: Mapping[str, Sequence[Any]] | None) -> Way:
    return way if way.sweep or not sweep else replace(way, sweep=sweep)


def _is_there(record: Record | None, retry: bool) -> bool:
    return record is not None and not (retry and record["status"] == "failed")


def _threads(jobs: int) -> int | None:
    """The cores are shared."""
    return None if jobs == 1 else max(1, torch.get_num_threads() // jobs)
