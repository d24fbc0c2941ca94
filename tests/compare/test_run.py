"""What compare promises of its runs: the same data, steps and first weights for all; what fails is said."""

from __future__ import annotations

import json
import logging
import os
import random
import warnings

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn

from lightning_equiv import REMUL, GroupAugmentation, SymmetryCloning
from lightning_equiv.compare import costs, training
from lightning_equiv.compare.way import Way, ready_made
from lightning_equiv.wiring.override import override
from tests.compare.toys import SYMMETRY, Data, Net, Raises, numbers, run
from tests.helpers import normal

LAYERS = {"net.0": ("1o", "8x0e")}


class Keeps(L.Callback):
    """Keeps the weights of every validation, and of the test, and the batches of the test."""

    def __init__(self, validated, tested, batches=None):
        self.validated, self.tested, self.batches = validated, tested, batches

    def __deepcopy__(self, memo):
        return Keeps(self.validated, self.tested, self.batches)

    def on_validation_end(self, trainer, pl_module):
        self.validated.append((trainer.callback_metrics["val_loss"].item(), output(pl_module)))

    def on_test_end(self, trainer, pl_module):
        self.tested.append((trainer.callback_metrics["test_loss"].item(), output(pl_module)))

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if self.batches is not None:
            self.batches.append([x.tolist() for x in batch])


@pytest.fixture
def soon_measured(monkeypatch):
    """Costs from fewer steps."""
    for name, number in (("_STEPS", 15), ("_WARM_UP", 2), ("_ROUNDS", 2)):
        monkeypatch.setattr(costs, name, number)


def output(module):
    return module.net.eval()(normal(5, 3, dtype=torch.float32)).tolist()


# ---- the same for all --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("source", ["torch", "numpy", "python"])
def test_all_ways_of_a_seed_see_the_same_batches(tmp_path, source):
    tests = {name: [] for name in ("plain", "wide", "drawing", "augmentation", "REMUL", "cloning")}
    shown = {"inputs": lambda batch: batch[0], "steps": 2, "on_failure": "warn"}  # batches, before training begins
    cloning = SymmetryCloning(torch.nn.Identity(), "net", symmetry=SYMMETRY, **shown)
    ways = {
        "plain": Way([Keeps([], [], tests["plain"])]),
        "wide": Way([Keeps([], [], tests["wide"])], settings={"width": 31, "dropout": 0.3}),
        "drawing": Way([Keeps([], [], tests["drawing"])], settings={"draws": True}),
        "augmentation": Way([GroupAugmentation(SYMMETRY), Keeps([], [], tests["augmentation"])]),
        "REMUL": Way([REMUL(SYMMETRY, network="net"), Keeps([], [], tests["REMUL"])]),
        "cloning": Way([cloning, Keeps([], [], tests["cloning"])]),
    }
    data = {"class_path": "tests.compare.toys.Data", "init_args": {"source": source}}
    records = run(tmp_path / "r.jsonl", data=data, ways=ways, seeds=2)
    assert [r["status"] for r in records] == ["ok"] * 12
    by_seed = [{json.dumps(r["batches"]) for r in records if r["seed"] == seed} for seed in (0, 1)]
    assert len(by_seed[0]) == len(by_seed[1]) == 1
    assert by_seed[0] != by_seed[1]
    assert list(records[0]["batches"]) == ["1", "2", "4", "8", "12"]
    assert all(batches == tests["plain"] for batches in tests.values())
    assert tests["plain"][0] != tests["plain"][1]  # of the other seed
    assert len({r["metrics"]["test_loss"] for r in records}) == 12


def test_without_seeded_data_ways_see_other_batches(tmp_path, monkeypatch):
    """So the test above can fail."""

    def only_hashed(data, seed, seen, tested):
        original = data.train_dataloader

        class Seen:
            def __init__(self):
                self.loader = original()

            def __len__(self):
                return len(self.loader)

            def __iter__(self):
                for batch in self.loader:
                    seen(batch)
                    yield batch

        override(data, "train_dataloader", lambda: Seen())

    monkeypatch.setattr(training, "seed_data", only_hashed)
    ways = {"plain": [], "wide": Way(settings={"width": 31}), "drawing": Way(settings={"draws": True})}
    records = run(tmp_path / "r.jsonl", ways=ways)
    hashes = [r["batches"] for r in records]
    assert hashes[0]["1"] == hashes[1]["1"]  # the training begins from the run's seed
    assert hashes[0]["12"] != hashes[2]["12"]


def test_ways_begin_with_the_same_weights(tmp_path):
    ways = ["plain", "augmentation", "REMUL(1)", "REMUL(GradNorm)", "ConstraintRelaxation", "RECM", "SymmetryCloning"]
    teacher = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 3, "out_features": 3}}
    made = {"layers": LAYERS, "teacher": teacher, "seeds": 2, "ways": ways[:4]}
    records = run(tmp_path / "r.jsonl", {"class_path": "tests.compare.toys.Net", "init_args": {"lr": 0.0}}, **made)
    values = [{r["metrics"]["val_loss"] for r in records if r["seed"] == seed} for seed in (0, 1)]
    assert len(values[0]) == len(values[1]) == 1
    assert values[0] != values[1]


def test_nothing_of_the_process_is_changed(tmp_path, soon_measured):
    def state():
        logs = [logging.getLogger(name).level for name in ("lightning", "lightning.pytorch", "lightning.fabric")]
        generators = torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
        return generators, torch.get_num_threads(), logs, os.environ.get("PL_GLOBAL_SEED"), warnings.filters[:]

    before = state()
    run(tmp_path / "r.jsonl", equal="compute", sweep={"lr": [0.1, 0.01]}, threads=2)
    assert state() == before


# ---- what fails --------------------------------------------------------------------------------------------------
def test_a_way_that_fails_is_said_and_the_others_go_on(tmp_path):
    ways = {
        "raises": Way(settings={"fault": "raises", "at": 7}),
        "callback": [Raises()],
        "nan": Way(settings={"fault": "nan"}),
        "plain": [],
    }
    found = {r["way"]: r for r in run(tmp_path / "r.jsonl", ways=ways)}
    assert {name: r["status"] for name, r in found.items()} == {
        "raises": "failed",
        "callback": "failed",
        "nan": "diverged",
        "plain": "ok",
    }
    assert found["raises"]["message"].startswith("ArithmeticError: broken at step 7 (toys.py, line ")
    assert [step for step, _, _ in found["raises"]["curve"]["val_loss"]] == [6]
    assert found["callback"]["message"].startswith("OSError: no space left")
    assert found["nan"]["curve"]["val_loss"][0][2] is None
    assert found["nan"]["metrics"] == {}
    assert found["plain"]["metrics"].keys() == {"val_loss", "test_loss"}


def test_a_constructor_that_fails_is_said_at_once(tmp_path):
    with pytest.raises(ValueError, match="way 'bad': TypeError: no such constructor"):
        run(tmp_path / "r.jsonl", ways={"plain": [], "bad": Way(settings={"fault": "constructor"})})
    assert not (tmp_path / "r.jsonl").exists()


class OutOfMemory(Net):
    """A model that the check can make twice, and a run cannot."""

    made = 0

    def __init__(self):
        super().__init__()
        type(self).made += 1
        if self.made > 2:
            raise MemoryError("no room")


def test_a_constructor_that_fails_in_a_run_is_said(tmp_path):
    found = {r["way"]: r for r in run(tmp_path / "r.jsonl", ways={"large": Way(model=OutOfMemory), "plain": []})}
    assert (found["large"]["status"], found["plain"]["status"]) == ("failed", "ok")
    assert found["large"]["message"].startswith("MemoryError: no room")
    assert (found["large"]["steps"], found["large"]["batches"]) == (0, {})


def test_a_monitor_that_is_not_logged_is_said(tmp_path):
    (record,) = run(tmp_path / "r.jsonl", monitor="val_lss")
    assert record["status"] == "failed"
    assert (
        "monitor='val_lss' is not logged in validation: expected one of ['val_loss', 'val_score']" in record["message"]
    )


# ---- other settings ----------------------------------------------------------------------------------------------
WEIGHTS = {"REMUL": Way([{"class_path": "REMUL", "init_args": {"weight": 1.0}}]), "plain": []}


@pytest.mark.parametrize(
    "changed",
    [
        {"steps": 13},
        {"monitor": "val_score"},
        {"mode": "max"},
        {"data": {"class_path": "tests.compare.toys.Data", "init_args": {"size": 40}}},
        {"model": {"class_path": "tests.compare.toys.Net", "init_args": {"width": 9}}},
        {"ways": {"REMUL": Way([{"class_path": "REMUL", "init_args": {"weight": 2.0}}])}},
        {"ways": {"REMUL": Way([REMUL(SYMMETRY, network="net", weight=1.0, target=1)])}},
        {"trainer": {"gradient_clip_val": 1.0}},
        {"target": None},
        {"seconds": 1.0, "steps": None},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_results_of_other_settings_are_refused(tmp_path, changed):
    run(tmp_path / "r.jsonl", ways=WEIGHTS)
    with pytest.raises(ValueError, match=r"r\.jsonl has runs of '(REMUL|plain)' that were made with other settings"):
        run(tmp_path / "r.jsonl", **{"ways": WEIGHTS, **changed})


def test_more_seeds_more_ways_and_fewer_ways_go_on(tmp_path):
    results = tmp_path / "r.jsonl"
    run(results, ways=WEIGHTS)
    before = results.read_text()
    assert len(run(results, ways={"plain": []})) == 2
    assert results.read_text() == before
    records = run(results, ways={**WEIGHTS, "wide": Way(settings={"width": 31})}, seeds=[0, 4])
    assert results.read_text().startswith(before)
    assert [(r["way"], r["seed"]) for r in records] == [
        *[("REMUL", 0), ("plain", 0), ("wide", 0)],
        *[("REMUL", 4), ("plain", 4), ("wide", 4)],
    ]


# ---- sweeps ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("monitor", "mode"), [("val_loss", "min"), ("val_score", "max")])
def test_the_best_setting_on_validation_is_taken(tmp_path, monitor, mode):
    sweep = {"lr": [1e-4, 0.03, 1e9], "width": [4, 8]}
    records = run(tmp_path / "r.jsonl", sweep=sweep, monitor=monitor, mode=mode, steps=24, judge="test_loss", seeds=2)
    trials = [r for r in records if r["kind"] == "trial"]
    runs = [r for r in records if r["kind"] == "run"]
    assert [r["trial"] for r in trials] == list(range(6))
    assert [r["settings"] for r in trials] == [{"lr": lr, "width": width} for lr in sweep["lr"] for width in (4, 8)]
    assert all("test_loss" not in r["metrics"] and not r["equivariance_error"] for r in trials)
    values = {r["metrics"][monitor]: r["settings"] for r in trials if r["status"] == "ok"}
    best = values[min(values) if mode == "min" else max(values)]
    assert best["lr"] == 0.03
    assert [r["settings"] for r in runs] == [best, best]
    assert all("test_loss" in r["metrics"] for r in runs)
    (chosen,) = [r for r in trials if r["settings"] == best]
    assert chosen["curve"]["val_loss" if mode == "min" else monitor][0][2] == runs[0]["curve"][monitor][0][2]


def test_a_setting_is_taken_by_its_average_over_seeds(tmp_path):
    """One that is a little better on the first seed, and much worse on the second, is not taken."""
    results = tmp_path / "r.jsonl"
    sweep = {"lr": [0.01, 0.03]}
    run(results, sweep=sweep, seeds=2, sweep_seeds=2)
    trials = [r for r in map(json.loads, results.read_text().splitlines()) if r["kind"] == "trial"]
    assert [(r["trial"], r["seed"]) for r in trials] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for values, chosen in (((1.0, 5.0, 2.0, 1.0), 0.03), ((2.0, 1.0, 1.0, 5.0), 0.01)):
        for record, value in zip(trials, values, strict=True):
            record["metrics"]["val_loss"] = value
        results.write_text("".join(json.dumps(r) + "\n" for r in trials))
        runs = [r for r in run(results, sweep=sweep, seeds=2, sweep_seeds=2) if r["kind"] == "run"]
        assert [r["settings"] for r in runs] == [{"lr": chosen}] * 2


def test_a_trial_that_fails_or_diverges_is_never_taken(tmp_path):
    records = run(tmp_path / "r.jsonl", sweep={"fault": ["raises", "nan", "worse", ""]}, monitor="val_score", steps=12)
    assert [r["status"] for r in records] == ["failed", "diverged", "ok", "ok", "ok"]
    assert records[4]["settings"] == {"fault": "worse"}  # val_score is less where the error is more


def test_a_sweep_that_is_written_in_another_order_is_refused(tmp_path):
    run(tmp_path / "r.jsonl", sweep={"lr": [0.001, 0.03]})
    with pytest.raises(ValueError, match="other settings"):
        run(tmp_path / "r.jsonl", sweep={"lr": [0.03, 0.001]})


def test_a_sweep_that_grows_and_chooses_another_setting_is_refused(tmp_path):
    run(tmp_path / "r.jsonl", sweep={"lr": [1e-6, 1e-5]})
    with pytest.raises(ValueError, match="other settings"):
        run(tmp_path / "r.jsonl", sweep={"lr": [1e-6, 1e-5, 0.03]})


def test_a_setting_reaches_the_callback(tmp_path, monkeypatch):
    weights = []
    original = REMUL.attach
    monkeypatch.setattr(REMUL, "attach", lambda self, module: (weights.append(self.weight), original(self, module))[1])
    ways = {"REMUL": Way([{"class_path": "REMUL"}], sweep={"REMUL.weight": [0.5, 7.0]})}
    run(tmp_path / "r.jsonl", ways=ways, steps=6)
    assert weights[:2] == [0.5, 7.0]
    with pytest.raises(ValueError, match=r"settings of \['RMUL'\]: expected names of callbacks"):
        run(tmp_path / "s.jsonl", ways={"REMUL": Way([{"class_path": "REMUL"}], settings={"RMUL.weight": 1.0})})


def test_ways_with_unequal_trials_are_refused(tmp_path):
    ways = {"plain": Way(sweep={"lr": [0.1]}), "REMUL": Way([{"class_path": "REMUL"}], sweep={"lr": [0.1, 0.2]})}
    with pytest.raises(ValueError, match=r"the same number of trials for all ways.*\{'plain': 1, 'REMUL': 2\}"):
        run(tmp_path / "r.jsonl", ways=ways)


def test_an_accuracy_judged_by_the_smaller_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\['test_accuracy'\] look like figures of which more is better"):
        run(tmp_path / "r.jsonl", judge=["test_loss", "test_accuracy"])
    assert not (tmp_path / "r.jsonl").exists()


# ---- equal compute -----------------------------------------------------------------------------------------------
def test_equal_compute_gives_steps_by_measured_costs(tmp_path, soon_measured, monkeypatch):
    results = tmp_path / "r.jsonl"
    many = {"class_path": "REMUL", "init_args": {"num_samples": 64}}
    ways = {"plain": [], "REMUL": [many]}
    records = run(results, ways=ways, equal="compute", steps=100)
    cost = {r["way"]: r for r in records if r["kind"] == "cost"}
    runs = {r["way"]: r for r in records if r["kind"] == "run"}
    seconds = cost["plain"]["fixed_seconds"] + 100 * cost["plain"]["step_seconds"]
    allowed = (seconds - cost["REMUL"]["fixed_seconds"]) / cost["REMUL"]["step_seconds"]
    assert runs["plain"]["steps"] == 100
    assert runs["REMUL"]["steps"] == round(allowed) < 90
    from lightning_equiv.compare import run as module

    monkeypatch.setattr(module, "measure_costs", None)  # it is not called again
    again = run(results, ways=ways, equal="compute", steps=100, seeds=2)
    assert [r["steps"] for r in again if r["kind"] == "run" and r["seed"] == 1] == [100, runs["REMUL"]["steps"]]


def test_a_way_that_comes_later_leaves_the_costs_of_the_others(tmp_path, soon_measured):
    results = tmp_path / "r.jsonl"
    before = run(results, equal="compute", steps=20)
    after = run(results, equal="compute", steps=20, ways=["plain", "REMUL(1)"])
    assert [r for r in after if r["way"] == "plain"] == before
    assert [r["kind"] for r in after] == ["cost", "cost", "run", "run"]


def test_seconds_in_the_place_of_steps(tmp_path, soon_measured):
    cost, record = run(tmp_path / "r.jsonl", steps=None, seconds=0.1)
    assert record["steps"] == round((0.1 - cost["fixed_seconds"]) / cost["step_seconds"])


def test_a_way_without_time_for_a_step_is_refused(tmp_path, soon_measured):
    with pytest.raises(ValueError, match=r"way 'plain' takes \d+ s before its first step, and has 0 s"):
        run(tmp_path / "r.jsonl", steps=None, seconds=1e-6)


def test_costs_are_measured_with_a_schedule_that_looks_at_validation(tmp_path, soon_measured):
    model = {"class_path": "tests.compare.toys.Net", "init_args": {"schedule": "plateau"}}
    assert [r["status"] for r in run(tmp_path / "r.jsonl", model, steps=None, seconds=0.1)[1:]] == ["ok"]


# ---- what is tested ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("steps", [30, 33])
@pytest.mark.parametrize("way", ["plain", "RECM", "ConstraintRelaxation", "REMUL(1)", "SymmetryCloning"])
def test_the_weights_that_validated_best_are_tested(tmp_path, way, steps):
    """From step 12 on the training makes it worse."""
    validated, tested = [], []
    teacher = {"class_path": "tests.compare.toys.teacher"}
    given = {"symmetry": SYMMETRY, "network": "net", "target": 1, "layers": LAYERS, "teacher": teacher}
    ways = {way: Way([*ready_made(given)[way].callbacks, Keeps(validated, tested)])}
    model = {"class_path": "tests.compare.toys.Net", "init_args": {"fault": "worse", "at": 12, "lr": 0.03}}
    (record,) = run(tmp_path / "r.jsonl", model, ways=ways, steps=steps, layers=LAYERS, teacher=teacher)
    assert record["status"] == "ok", record["message"]
    values = [value for value, _ in validated]
    assert len(values) == 5 + (steps == 33)
    assert [value for _, _, value in record["curve"]["val_loss"]] == pytest.approx(values)
    assert record["curve"]["val_loss"][-1][0] == steps
    best = min(range(len(values)), key=values.__getitem__)
    assert best < len(values) - 1
    torch.testing.assert_close(torch.tensor(tested[0][1]), torch.tensor(validated[best][1]), rtol=1e-5, atol=1e-6)
    assert record["metrics"]["val_loss"] == pytest.approx(values[best])
    assert record["metrics"]["test_loss"] == tested[0][0]


def test_a_run_that_gets_better_is_tested_at_its_end(tmp_path):
    validated, tested = [], []
    (record,) = run(tmp_path / "r.jsonl", ways={"plain": [Keeps(validated, tested)]}, steps=33)
    assert min(validated)[0] == validated[-1][0]
    assert tested[0][1] == validated[-1][1]
    assert record["metrics"]["val_loss"] == validated[-1][0]


class Configures(Net):
    """A user's module with callbacks of its own."""

    def configure_callbacks(self):
        return [ModelCheckpoint(monitor="val_loss", dirpath=None), EarlyStopping("val_loss", patience=100)]


def test_a_checkpoint_of_the_module_does_not_take_the_place_of_ours(tmp_path):
    validated, tested = [], []
    ways = {"plain": Way([Keeps(validated, tested)], settings={"fault": "worse", "at": 12, "lr": 0.03})}
    run(tmp_path / "r.jsonl", Configures, ways=ways, steps=30, trainer={"default_root_dir": tmp_path})
    assert tested[0][1] == min(validated)[1] != validated[-1][1]


class Remembers(Net):
    """A module whose checkpoints hold more than tensors."""

    def __init__(self, settings=None):
        super().__init__(fault="worse", at=6)
        self.save_hyperparameters({"settings": Way})


def test_checkpoints_may_hold_what_is_not_a_tensor(tmp_path):
    (record,) = run(tmp_path / "r.jsonl", Remembers, steps=18)
    assert record["status"] == "ok", record["message"]
    assert len(record["curve"]["val_loss"]) == 3


# ---- what is measured --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("tests", "names"), [("one", ["0"]), ("list", ["0", "1"]), ("dict", ["near", "far"]), ("combined", ["near", "far"])]
)
def test_every_kind_of_test_loaders(tmp_path, tests, names):
    data = {"class_path": "tests.compare.toys.Data", "init_args": {"tests": tests}}
    (record,) = run(tmp_path / "r.jsonl", data=data)
    assert record["status"] == "ok", record["message"]
    assert list(record["equivariance_error"]) == names
    assert all(0 < error < 10 for error in record["equivariance_error"].values())
    assert record["judged"] == ["test_loss"] if len(names) == 1 else len(record["judged"]) == 2


def test_without_a_symmetry_no_error_is_measured(tmp_path):
    (record,) = run(tmp_path / "r.jsonl", symmetry=None, network=None, target=None)
    assert record["status"] == "ok"
    assert record["equivariance_error"] == {}
    assert record["profile"] is None


class Energy(nn.Module):
    """Forces: the negative gradient of an energy."""

    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        x = x.detach().requires_grad_()
        return -torch.autograd.grad(self.mlp(x).sum(), x, create_graph=True)[0]


class Forces(Net):
    def __init__(self):
        super().__init__()
        self.net = Energy()

    def validation_step(self, batch, batch_idx):
        with torch.enable_grad():
            super().validation_step(batch, batch_idx)

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        with torch.enable_grad():
            super().test_step(batch, batch_idx)


def test_a_network_that_differentiates_is_measured(tmp_path):
    (record,) = run(tmp_path / "r.jsonl", Forces)
    assert record["status"] == "ok", record["message"]
    assert 0 < record["equivariance_error"]["0"] < 10
    assert record["inference_ms"] > 0


class Eats(L.Callback):
    def on_train_batch_start(self, *_):
        torch.ones(300 * 2**18)  # 300 MiB, and gone


def test_peak_memory(tmp_path):
    ways = {"eats": [Eats()], "plain": []}
    memory = {r["way"]: r["peak_memory"] for r in run(tmp_path / "r.jsonl", ways=ways, steps=2)}
    assert 250 < memory["eats"] - memory["plain"] < 500


def test_extra_figures(tmp_path):
    def extra(module, data):
        return {"extra": sum(len(batch[0]) for batch in data.test_dataloader()), "width": module.net[0].out_features}

    (record,) = run(tmp_path / "r.jsonl", extra=extra)
    assert (record["metrics"]["extra"], record["metrics"]["width"]) == (16, 8)


# ---- bad input ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"steps": None}, "expected `steps`, optimizer steps of a run, or `seconds`"),
        ({"seconds": 5}, "expected `steps`, optimizer steps of a run, or `seconds`"),
        ({"steps": 0}, "steps"),
        ({"steps": None, "seconds": 0}, "seconds"),
        ({"jobs": 0}, "jobs"),
        ({"draws": 0}, "draws"),
        ({"num_inputs": 0}, "num_inputs"),
        ({"save_every": -1}, "save_every"),
        ({"threads": 0}, "threads"),
        ({"mode": "least"}, r"expected mode to be one of \('min', 'max'\), got 'least'"),
        ({"equal": "time"}, r"expected equal to be one of \('steps', 'compute'\)"),
        ({"trainer": {"max_steps": 3}}, r"trainer: \['max_steps'\] are set by the comparison"),
        ({"trainer": {"max_step": 3}}, r"the Trainer takes no \['max_step'\]"),
        ({"seeds": 0}, "expected seeds that differ"),
        ({"seeds": [1, 1]}, "expected seeds that differ"),
        ({"seeds": [-1]}, "expected seeds that differ"),
        ({"ways": {}}, "at least one way"),
        ({"cases": {}}, "at least one way and one case"),
        ({"ways": ["REMUL(1)"], "reference": "plain"}, "the reference to be one of the ways"),
        ({"ways": ["REMUL"]}, r"way 'REMUL' is not ready-made .* expected one of \['plain', .*'REMUL\(1\)'"),
        ({"ways": ["RECM"]}, "RPP need `layers`"),
        ({"ways": {"mine": 3}}, "way 'mine': expected a Way, a list of callbacks"),
        ({"ways": {"mine": {"callback": []}}}, "way 'mine': expected a Way"),
        ({"model": "tests.compare.toys.Nit"}, "tests.compare.toys.Nit is not there"),
        ({"model": "no_such_package.Net"}, "no_such_package.Net is not there"),
        ({"model": "Net"}, "expected a class path with its package, such as package.module.Net"),
        (
            {"model": {"class_path": "tests.compare.toys.Net", "init_args": {"wdth": 3}}},
            r"refuses its arguments .*wdth",
        ),
        ({"model": {"class_path": "tests.compare.toys.Net", "args": {}}}, "expected a function or class that makes it"),
        ({"model": nn.Linear(3, 3)}, "Linear"),
        ({"model": lambda: nn.Linear(3, 3)}, "expected a LightningModule, got Linear"),
        ({"data": dict}, "expected a LightningDataModule, got dict"),
        (
            {"data": {"class_path": "tests.compare.toys.Data", "init_args": {"sz": 3}}},
            r"data: Data refuses its arguments",
        ),
        ({"cases": {"a": {"sz": 3}}}, "data: Data refuses its arguments"),
        ({"ways": {"a": Way(settings={"wdth": 3})}}, "way 'a': model: Net refuses its arguments"),
        ({"ways": {"a": [{"class_path": "REMUL", "init_args": {"wait": 1}}]}}, "way 'a': callbacks: REMUL refuses"),
        ({"model": lambda: Net(), "jobs": 2}, "sent to other processes: expected functions and classes of a module"),
    ],
)
def test_bad_settings_are_refused(tmp_path, settings, says):
    with pytest.raises(ValueError, match=says):
        run(tmp_path / "r.jsonl", **settings)
    assert not (tmp_path / "r.jsonl").exists()


def test_one_network_for_all_runs_is_refused(tmp_path):
    net = Net()

    class Given(Net):
        def __init__(self, net):
            super().__init__()
            self.net = net

    with pytest.raises(ValueError, match="two models share weights"):
        run(tmp_path / "r.jsonl", lambda: Given(net.net))
    data = Data()
    with pytest.raises(ValueError, match="a new LightningDataModule each time"):
        run(tmp_path / "r.jsonl", data=lambda: data)


def test_cases_are_all_done(tmp_path):
    cases = {"small": {"size": 24}, "large": {"size": 64}}
    records = run(tmp_path / "r.jsonl", cases=cases, seeds=2, save_every=0)
    assert [(r["case"], r["seed"]) for r in records] == [("small", 0), ("large", 0), ("small", 1), ("large", 1)]
    alone = run(tmp_path / "alone.jsonl", data={"class_path": "tests.compare.toys.Data", "init_args": {"size": 64}})
    assert {**numbers(records[1]), "case": ""} == numbers(alone[0])
