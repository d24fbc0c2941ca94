"""`python -m lightning_equiv compare`: a comparison from a configuration file, whose mistakes are one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lightning_equiv.__main__ import main
from lightning_equiv.compare import command
from lightning_equiv.compare.command import configuration, merged

CONFIG = {
    "model": {"class_path": "tests.compare.toys.Net", "init_args": {"width": 6}},
    "data": {"class_path": "tests.compare.toys.Data"},
    "symmetry": {"group": "SO(3)", "inputs": "1o", "outputs": "1o", "batch": ["1o", "1o"]},
    "network": "net",
    "target": 1,
    "ways": {"plain": None, "own": {"callbacks": [{"class_path": "REMUL", "init_args": {"weight": 2.0}}]}},
    "steps": 6,
    "seeds": 2,
    "trainer": {"accelerator": "cpu"},
    "draws": 2,
    "num_inputs": 4,
    "presets": {"wide": {"model": {"init_args": {"width": 31}}, "steps": 3}, "fast": {"seeds": 3}},
}


class Shown:
    """In the place of the comparison: what it was made of."""

    made: list[tuple[list[dict], dict]] = []  # noqa: RUF012 (the test's)

    def __init__(self, records, **settings):
        self.records = records
        self.made.append((records, settings))

    @classmethod
    def load(cls, path, **settings):
        return cls(list(map(json.loads, Path(path).read_text().splitlines())), **settings)

    def print(self):
        print(f"{len(self.records)} records")

    def save(self, path):
        Path(path).write_text("saved")
        return path


@pytest.fixture
def config(tmp_path, monkeypatch):
    from lightning_equiv.compare import run

    monkeypatch.setattr(run, "Comparison", Shown)
    monkeypatch.setattr(command, "Comparison", Shown)
    monkeypatch.setattr(Shown, "made", [])
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    return path


def ran(*words):
    main(["compare", "--config", *map(str, words), "--no-progress"])
    return Shown.made[-1][0]


def keys(records):
    return [(r["way"], r["seed"]) for r in records]


def test_a_configuration_is_run_and_goes_on(config, capsys):
    assert keys(ran(config, "--threads", 1)) == [("plain", 0), ("own", 0), ("plain", 1), ("own", 1)]
    assert "4 records\nruns: mine.jsonl" in capsys.readouterr().out
    lines = Path("mine.jsonl").read_text()
    records = ran(config, "--seeds", 3, "--save", "a.html", "b.md")
    assert len(records) == 6
    assert {r["parameters"] for r in records} == {45}
    assert Path("mine.jsonl").read_text().startswith(lines)
    assert capsys.readouterr().out.splitlines() == ["6 records", "written: a.html", "written: b.md", "runs: mine.jsonl"]


def test_ways_results_and_presets(config):
    records = ran(config, "--ways", "own", "REMUL(10)", "--results", "some.jsonl", "--preset", "wide", "--seeds", 1)
    assert keys(records) == [("own", 0), ("REMUL(10)", 0)]
    assert {(r["parameters"], r["steps"]) for r in records} == {(220, 3)}
    assert Path("some.jsonl").exists()
    assert not Path("mine.jsonl").exists()


def test_a_fast_run_leaves_the_results_alone(config):
    ran(config, "--ways", "plain", "--seeds", 1)
    before = Path("mine.jsonl").read_text()
    records = ran(config, "--fast-dev-run")
    assert keys(records) == [("plain", 0), ("own", 0)]
    assert {r["steps"] for r in records} == {2}
    assert Path("mine.jsonl").read_text() == before
    assert len(ran(config, "--fast-dev-run")) == 2  # again, and not from what is there
    assert sorted(path.name for path in Path().iterdir()) == [
        "mine.jsonl",
        "mine.jsonl.lock",
        "mine.jsonl.runs",
        "mine.yaml",
    ]


def test_draw_trains_nothing(config, monkeypatch):
    ran(config, "--ways", "plain")
    monkeypatch.setattr(command, "compare", None)
    assert keys(ran(config, "--draw")) == [("plain", 0), ("plain", 1)]


def test_jobs_and_retry_reach_compare(config, monkeypatch):
    got = {}

    def compare(**settings):
        got.update(settings)
        return Shown([])

    monkeypatch.setattr(command, "compare", compare)
    ran(config, "--jobs", 2, "--retry", "--threads", 3)
    assert (got["jobs"], got["retry"], got["threads"], got["progress"]) == (2, True, 3, False)


def test_numbers_as_in_json(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("{model: a, data: b, sweep: {lr: [1e-3, 1E4, -2.5e+3, 1.e-2, 10, 1.5, '1e-3', e3, 1e]}}")
    assert configuration(path)["sweep"]["lr"] == [1e-3, 1e4, -2500.0, 0.01, 10, 1.5, "1e-3", "e3", "1e"]


def test_changes_are_merged_in_all_their_depth():
    config = {"a": {"b": {"c": 1, "d": [1, 2]}}, "e": 1}
    assert merged(config, {"a": {"b": {"d": [3]}}, "f": None}) == {"a": {"b": {"c": 1, "d": [3]}}, "e": 1, "f": None}
    assert config == {"a": {"b": {"c": 1, "d": [1, 2]}}, "e": 1}


@pytest.mark.parametrize(
    ("changes", "words", "says"),
    [
        (
            {"sead": 3},
            [],
            "'sead' is none of [",
        ),
        ({"sead": 3}, [], "; 'seeds'?"),
        ({"model": None}, [], "lacks"),
        ({"data": {"class_path": "tests.compare.toys.Dta"}}, [], "tests.compare.toys.Dta is not there"),
        ({"ways": ["REMUL"]}, [], "way 'REMUL' is not ready-made"),
        ({}, ["--preset", "big"], "--preset big: "),
        ({}, ["--ways", "other"], "way 'other' is not ready-made"),
        ({}, ["--seeds", "x"], "invalid int value: 'x'"),
        ({"symmetry": {"group": "SO(3)"}}, [], "inputs"),
    ],
)
def test_mistakes_are_one_line(config, capsys, changes, words, says):
    changed = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    config.write_text(yaml.safe_dump(changed, sort_keys=False))
    with pytest.raises(SystemExit) as stopped:
        ran(config, *words)
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_a_file_that_is_not_there_or_no_mapping(config, capsys):
    for text, says in ((None, "No such file"), ("- 1", "expected a mapping")):
        config.unlink() if text is None else config.write_text(text)
        with pytest.raises(SystemExit):
            ran(config)
        assert says in capsys.readouterr().err
