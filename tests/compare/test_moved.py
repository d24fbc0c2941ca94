"""Results that were written when the networks lay in the folder of the examples are recognised as what they are."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from lightning_equiv.compare import made
from lightning_equiv.compare.plan import Plan
from lightning_equiv.compare.way import Way
from lightning_equiv.networks.tasks import Particles

ROOT = Path(__file__).parents[2]


class Compared(Exception):
    """Nothing is trained."""


@pytest.mark.parametrize("name", ["gravity", "digits_turns"])
def test_every_committed_run_is_one_of_its_configuration(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command, run = (importlib.import_module(f"lightning_equiv.compare.{part}") for part in ("command", "run"))
    records = [json.loads(line) for line in (ROOT / f"docs/results/{name}.jsonl").read_text().splitlines()]

    def compared(plan: Plan, ways: dict[str, Way]) -> None:
        settings = {way: [w.with_settings(trial) for trial in w.trials()] for way, w in ways.items()}
        prints = {way: {plan.fingerprint_of_way(w) for w in trials} for way, trials in settings.items()}
        for record in records:
            assert record["fingerprint"] == plan.fingerprint(record["case"])
            assert record["way_fingerprint"] in prints[record["way"]]
        raise Compared

    monkeypatch.setattr(run, "check", lambda *_: None)
    monkeypatch.setattr(run, "check_results", compared)
    config = command.configuration(ROOT / "examples" / "benchmarks" / f"{name}.yaml")
    with pytest.raises(Compared):
        run.compare(**{key: value for key, value in config.items() if key != "save"})
    monkeypatch.setattr(made, "_MOVED", {})
    with pytest.raises(AssertionError):
        run.compare(**{key: value for key, value in config.items() if key != "save"})


def test_a_name_and_its_class_are_told_from_others() -> None:
    paths: list[Any] = [f"{room}.networks.tasks.Particles" for room in ("examples", "lightning_equiv")]
    assert len({made.hash_of(path) for path in [*paths, Particles]}) == 1
    assert made.hash_of("lightning_equiv.networks.tasks.Classifier") != made.hash_of(paths[0])


def test_no_configuration_names_a_class_that_the_wheel_does_not_have() -> None:
    """e3nn installs a package `examples`, so that ours is found in no folder but the repository."""
    files = [*ROOT.glob("examples/**/*.yaml")]
    assert len(files) >= 15
    assert [path.name for path in files if "examples.networks" in path.read_text()] == []
    assert [path.name for path in files if "class_path: examples" in path.read_text()] == []
