"""Ways: those that are ready-made, and how a comparison's arguments reach callbacks; what describes a setting."""

from __future__ import annotations

import dataclasses
import enum
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import nn

import lightning_equiv.strategies as strategies
from lightning_equiv import REMUL, Symmetry
from lightning_equiv.compare.made import description, hash_of, make
from lightning_equiv.compare.way import Way, as_ways, ready_made
from lightning_equiv.strategies import SymmetryCallback
from tests.compare.toys import SYMMETRY, Data, Net, run, teacher

GIVEN = {"symmetry": SYMMETRY, "network": "net", "target": 1}
REMULS = ["REMUL(0.1)", "REMUL(1)", "REMUL(10)", "REMUL(GradNorm)", "REMUL(5 %)"]
LAYERS = {"net.0": ("1o", "8x0e")}
TEACHER = {"class_path": "tests.compare.toys.teacher"}


def names(**given):
    return set(ready_made({**GIVEN, **given}))


def test_what_is_given_decides_which_ways_are_ready_made():
    assert set(ready_made({})) == {"plain"}
    without_batch = {"symmetry": Symmetry("SO(3)", "1o", "1o"), "network": "net"}
    assert set(ready_made(without_batch)) == {"plain", *REMULS}
    assert names() == {"plain", "augmentation", *REMULS}
    assert names(layers=LAYERS) == {*names(), "ConstraintRelaxation", "RECM", "ACE", "RPP"}
    assert names(teacher=TEACHER) == {*names(), "SymmetryCloning"}
    assert names(teacher=nn.Linear(3, 3)) == names()  # which does not say what it takes


def test_every_strategy_is_ready_made_when_everything_is_given():
    made = ready_made({**GIVEN, "layers": LAYERS, "teacher": TEACHER})
    paths = {way.callbacks[0]["class_path"] for way in made.values() if way.callbacks}
    classes = [getattr(strategies, name) for name in strategies.__all__ if name != "SymmetryCallback"]
    classes.remove(strategies.EquivarianceProjection)  # its layers have to be declared
    assert {f"{c.__module__}.{c.__qualname__}" for c in classes} <= paths


class Mine(SymmetryCallback):
    """A user's own strategy."""

    def __init__(self, factor: float, network: str = "", seed: int = 0) -> None:
        super().__init__(name="mine", seed=seed)
        self.factor, self.network = factor, network

    def _attach(self, module, undo):
        return None


def test_a_strategy_of_the_users_own_adds_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(Mine, "ready_made", {"mine": {"factor": 2.0}})
    way = ready_made(GIVEN)["mine"]
    (callback,) = way.make_callbacks(GIVEN, seed=5)
    assert (callback.factor, callback.network, callback.seed) == (2.0, "net", 5)
    (record,) = run(tmp_path / "r.jsonl", ways=["mine"])
    assert record["status"] == "ok"


def test_arguments_of_the_comparison_reach_callbacks_that_do_not_say_them():
    said = {"class_path": "REMUL", "init_args": {"network": "other", "weight": 3.0}}
    remul, own = Way([said, REMUL(SYMMETRY, seed=10)], settings={"REMUL.every": 2}).make_callbacks(GIVEN, seed=4)
    assert (remul.network, remul.target, remul.weight, remul.every, remul.seed) == ("other", 1, 3.0, 2, 4)
    assert (own.network, own.target, own.every, own.seed) == ("", None, 1, 14)


def test_a_teacher_is_made_for_the_seed_and_never_shared():
    way = Way([{"class_path": "SymmetryCloning", "init_args": {"inputs": [(3,)]}}])
    first, second = (way.make_callbacks({**GIVEN, "teacher": TEACHER}, seed)[0].teacher for seed in (0, 1))
    assert torch.equal(first.scale, teacher(0).scale)
    assert torch.equal(second.scale, teacher(1).scale)
    one = nn.Linear(3, 3)
    copies = [way.make_callbacks({**GIVEN, "teacher": one}, 0)[0].teacher for _ in range(2)]
    assert len({id(copy.weight) for copy in [*copies, one]}) == 3


def test_ways_as_users_write_them():
    callback = REMUL(SYMMETRY)
    assert list(as_ways(None, GIVEN)) == list(ready_made(GIVEN))
    assert as_ways("plain", GIVEN) == {"plain": Way()}
    assert as_ways(["plain", "augmentation"], GIVEN)["augmentation"].callbacks
    assert as_ways({"a": callback}, GIVEN) == as_ways({"a": [callback]}, GIVEN) == {"a": Way([callback])}
    assert as_ways({"a": {"settings": {"lr": 1}}}, GIVEN) == {"a": Way(settings={"lr": 1})}
    assert Way(sweep={"a": [1, 2], "b": [3]}).trials() == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]


# ---- what tells one setting from another -------------------------------------------------------------------------
class Colour(enum.Enum):
    RED, BLUE = 1, 2


@dataclasses.dataclass(frozen=True)
class Point:
    x: float
    inside: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    x: float


class Base:
    @classmethod
    def make(cls):
        return cls()


class Other(Base):
    pass


def closed(x):
    return lambda: x


def filled(value):
    with torch.no_grad():
        layer = nn.Linear(1, 1)
        layer.weight.fill_(value)
        layer.bias.fill_(0)
    return layer


def spec(weight, inside="1o"):
    symmetry = Symmetry("SO(3)", {"x": "1o", "f": inside}, {"y": inside})
    return {"class_path": "a.B", "init_args": {"c": [{"class_path": "REMUL", "init_args": {"s": [symmetry, weight]}}]}}


DIFFERENT = {
    "lambda": (lambda: 1.0, lambda: 2.0),
    "nested lambda": (lambda: [lambda: 1.0], lambda: [lambda: 2.0]),
    "closure": (closed(1), closed(2)),
    "default": (lambda x=1: x, lambda x=2: x),
    "partial": (partial(Net, lr=0.1), partial(Net, lr=0.2)),
    "class": (Net, Data),
    "bound": (Base.make, Other.make),
    "callback": (REMUL(SYMMETRY, weight=1.0), REMUL(SYMMETRY, weight=2.0)),
    "foreign callback": (StochasticWeightAveraging(0.1), StochasticWeightAveraging(0.2)),
    "group": (Symmetry("SO(3)", "1o", "1o"), Symmetry("O(3)", "1o", "1o")),
    "outputs": (Symmetry("SO(3)", "1o", "1o"), Symmetry("SO(3)", "1o", "0e")),
    "weights": (filled(1.0), filled(2.0)),
    "rate": (nn.Dropout(0.1), nn.Dropout(0.2)),
    "tensor": (torch.ones(2), torch.ones(2, dtype=torch.int64)),
    "array": (np.ones(3), np.zeros(3)),
    "number": (np.float32(1), np.float32(2)),
    "whole": (np.int64(1), np.int64(2)),
    "dataclass": (Point(1.0, Point(2.0)), Point(1.0, Point(3.0))),
    "slots": (Slotted(1.0), Slotted(2.0)),
    "enum": (Colour.RED, Colour.BLUE),
    "dtype": (torch.float32, torch.float64),
    "path": (Path("a"), Path("b")),
    "set": ({"a", "b"}, {"a", "c"}),
    "deep": (spec(1.0), spec(2.0)),
    "deep symmetry": (spec(1.0), spec(1.0, "2e")),
}


def all_hashes():
    return {name: [hash_of(one), hash_of(other)] for name, (one, other) in DIFFERENT.items()}


def test_hashes_tell_settings_apart_and_are_those_of_every_process():
    here = all_hashes()
    assert [name for name, (one, other) in here.items() if one == other] == []
    code = "import json; from tests.compare.test_way import all_hashes; print(json.dumps(all_hashes()))"
    settings = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONHASHSEED": "7"}
    there = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == str(here).replace("'", '"')


def test_hashes_do_not_change_with_use():
    symmetry = Symmetry("SO(3)", "1o", "1o", batch=("1o", "1o"))
    callback = REMUL(symmetry, network="net")
    before = hash_of([symmetry, callback])
    module = Net()
    callback.attach(module)
    callback.detach()
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    symmetry.bind(module.net, (x,), {})
    assert hash_of([symmetry, REMUL(symmetry, network="net")]) == before


def test_a_class_of_a_script_is_the_same_in_its_workers():
    def of(module):
        return type("Net", (L.LightningModule,), {"__module__": module, "__qualname__": "Net"})

    assert description(of("__main__")) == description(of("__mp_main__")) == "__main__.Net"


def test_specs_are_made_in_all_their_depth():
    inner = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 3}}
    made = make({"class_path": "torch.nn.ModuleList", "init_args": {"modules": [inner, inner]}}, "model")
    assert [layer.out_features for layer in made] == [3, 3]
    assert made[0] is not made[1]
    with pytest.raises(ValueError, match=r"model\.modules: Linear refuses its arguments .*; it takes \['in_features'"):
        make(
            {"class_path": "torch.nn.ModuleList", "init_args": {"modules": [{"class_path": "torch.nn.Linear"}]}},
            "model",
        )
