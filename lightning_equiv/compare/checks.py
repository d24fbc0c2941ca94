"""What can be seen to be wrong before anything is trained."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Mapping, Sequence

import lightning as L

from lightning_equiv._checks import check_number
from lightning_equiv.compare.plan import Plan
from lightning_equiv.compare.records import read
from lightning_equiv.compare.way import Way, without_teacher

_OURS = {
    *("max_steps", "max_epochs", "max_time", "fast_dev_run", "barebones"),
    *("callbacks", "logger", "enable_checkpointing", "devices", "num_nodes"),
}
_LARGER = ("accuracy", "auroc", "f1", "precision", "recall")  # words in names of figures of which more is better


def check(plan: Plan, ways: Mapping[str, Way], seeds: Sequence[int], reference: str) -> None:
    """ValueError for what can be seen before anything is trained."""
    steps, seconds, equal = (plan.budget[name] for name in ("steps", "seconds", "equal"))
    check_number("steps", steps, least=1, whole=True, optional=True)
    check_number("seconds", seconds, above=0, optional=True)
    check_number("draws", plan.draws, least=1, whole=True)
    check_number("num_inputs", plan.num_inputs, least=1, whole=True)
    check_number("save_every", plan.save_every, least=0)
    check_number("threads", plan.threads, least=1, whole=True, optional=True)
    if (steps is None) == (seconds is None):
        raise ValueError(
            f"expected `steps`, optimizer steps of a run, or `seconds` in their place, got steps={steps}, "
            f"seconds={seconds}"
        )
    for what, value, options in (("mode", plan.mode, ("min", "max")), ("equal", equal, ("steps", "compute"))):
        if value not in options:
            raise ValueError(f"expected {what} to be one of {options}, got {value!r}")
    if against := [name for name in plan.judged if plan.mode == "min" and any(word in name for word in _LARGER)]:
        raise ValueError(
            f"mode='min' says that smaller is better, also of what is judged, and {against} look like figures of which "
            "more is better: expected figures of one direction; log an error, 1 - accuracy, in the test step, or watch "
            "such a figure in validation, too, with mode='max'"
        )
    if taken := [name for name in plan.trainer if name in _OURS]:
        raise ValueError(f"trainer: {taken} are set by the comparison; expected other arguments of the Trainer")
    if unknown := set(plan.trainer) - set(inspect.signature(L.Trainer.__init__).parameters):
        raise ValueError(f"trainer: the Trainer takes no {sorted(unknown)}")
    if not seeds or len(set(seeds)) < len(seeds) or not all(isinstance(s, int) and s >= 0 for s in seeds):
        raise ValueError(f"expected seeds that differ, 0, 1, ..., at least one, got {list(seeds)}")
    if not ways or not plan.cases:
        raise ValueError(f"expected at least one way and one case, got {list(ways)}, {list(plan.cases)}")
    if reference not in ways:
        raise ValueError(f"expected the reference to be one of the ways {list(ways)}, got {reference!r}")
    counts = {name: len(way.trials()) for name, way in ways.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"expected the same number of trials for all ways, or the sweep favours some; got {counts}")
    for name, way in ways.items():
        for settings in way.trials():
            try:
                tried = way.with_settings(settings)
                made = tried.make_model(plan.model)
                again = tried.make_model(plan.model)
                tried.make_callbacks(without_teacher(plan.given), 0)
            except Exception as error:
                said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
                raise ValueError(f"way {name!r}: {said}") from error
            if not isinstance(made, L.LightningModule):
                raise ValueError(f"way {name!r}: expected a LightningModule, got {type(made).__name__}")
            if {id(p) for p in made.parameters()} & {id(p) for p in again.parameters()}:
                raise ValueError(
                    f"way {name!r}: two models share weights, and each run would go on from the one before: expected "
                    "a model that makes its network, or {class_path: ..., init_args: ...} of the network, not a network"
                )
    for case in plan.cases:
        made_data, second = plan.make_data(case, seeds[0]), plan.make_data(case, seeds[0])
        if not isinstance(made_data, L.LightningDataModule):
            raise ValueError(f"data: expected a LightningDataModule, got {type(made_data).__name__}")
        if made_data is second:
            raise ValueError("data: expected what makes a new LightningDataModule each time, got the same one twice")


def check_pickled(plan: Plan, ways: Mapping[str, Way]) -> None:
    """ValueError where other processes cannot be sent what they train."""
    try:
        pickle.dumps((plan, dict(ways)))
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise ValueError(
            f"jobs: what is trained is sent to other processes: expected functions and classes of a module, or class "
            f"paths, not lambdas or what a function defines inside ({error})"
        ) from None


def check_results(plan: Plan, ways: Mapping[str, Way]) -> None:
    """ValueError where the results hold runs that these would not be comparable with."""
    for record in read(plan.results):
        case, name = record["case"], record["way"]
        if case not in plan.cases or (record["kind"] == "cost" and name not in ways):
            continue
        same = record["fingerprint"] == plan.fingerprint(case)
        if same and name in ways:
            trials = ways[name].trials()
            if record["trial"] is not None:
                trials = trials[record["trial"] : record["trial"] + 1]
            same = record["way_fingerprint"] in [plan.fingerprint_of_way(ways[name].with_settings(t)) for t in trials]
        if not same:
            raise _other_settings(plan, case, name)


def check_settled(plan: Plan, settled: Mapping[tuple[str, str], Way]) -> None:
    """ValueError where the results hold runs with a setting that a sweep, which has grown, no longer chooses."""
    for record in read(plan.results):
        way = settled.get((record["case"], record["way"]))
        if record["kind"] == "run" and way is not None and record["way_fingerprint"] != plan.fingerprint_of_way(way):
            raise _other_settings(plan, record["case"], record["way"])


def _other_settings(plan: Plan, case: str, name: str) -> ValueError:
    of_case = f" of case {case!r}" if case else ""
    return ValueError(
        f"{plan.results} has runs of {name!r}{of_case} that were made with other settings (data, steps, monitor, "
        "Trainer, or the way itself): give another file as `results`, or delete this one"
    )
