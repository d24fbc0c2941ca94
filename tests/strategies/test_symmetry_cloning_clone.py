"""What a clone is worth: who can be a student, what the tolerance promises, matched layers, and the cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_equiv import (
    ClonedLayer,
    ConditionalBilinear,
    ConditionalMLP,
    Shifted,
    Symmetry,
    SymmetryCloning,
)
from lightning_equiv._random import derived_generator
from lightning_equiv.strategies.symmetry_cloning.cloning import Pair, clone
from lightning_equiv.strategies.symmetry_cloning.inputs import Draws, Settings, noise
from tests.strategies.cloned_by_hand import SYMMETRY as TURNS
from tests.strategies.cloned_by_hand import Stretch
from tests.strategies.cloning_runs import (
    DATA,
    RING,
    Recording,
    cloning,
    error_of,
    made,
    randn,
    refused,
    relative_mse,
    teach,
    wide_net,
)
from tests.strategies.toys import Plain, make_net, trainer, weights


# ---- conditional and unconditional students --------------------------------------------------------------------------
@pytest.mark.parametrize("resample", ["step", "epoch"])
def test_an_unconditional_student_of_a_family_is_refused(resample: Any) -> None:
    strategy = SymmetryCloning(RING, "net", resample=resample)
    refused(strategy, Plain(nn.Linear(8, 8)), r"called with x alone.*mean over tau, which is 0.*resample='never'")


def test_what_the_refused_student_would_learn_is_useless() -> None:
    """The best h(x) is E_tau Phi = 0, and its relative MSE is 1: by a slow mean, and by cloning all the same."""
    x, tau = randn(20, 8), randn(5000, 3, seed=1)
    phi = torch.stack([RING(x, t.expand(20, -1)) for t in tau])
    assert relative_mse(phi.mean(0), phi[0]) > 0.9
    assert relative_mse(phi.mean(0).expand_as(phi), phi) == pytest.approx(1, abs=5e-3)
    settings = Settings(200, 64, 1e-2, 0.1, "step", "output", 0)
    draws = Draws(RING, noise(((8,),), settings), settings, torch.empty(()))
    assert clone(Pair(made(nn.Linear, 8, 8), RING, "output"), draws, settings, lambda *_: None).error > 0.95


def test_one_member_of_a_family() -> None:
    module, tolerance = Plain(made(nn.Linear, 8, 8)), 0.05
    strategy = cloning(RING, resample="never", steps=1000, tolerance=tolerance)
    teach(strategy, module)
    x, tau = randn(500, 8), torch.randn(1, 3, generator=derived_generator("tau", 0, 0))
    error = relative_mse(module.net(x), RING(x, tau.expand(500, -1)))
    assert error <= 1.2 * (tolerance / 2) ** 2
    assert strategy.report["clone_error"] == pytest.approx(error, rel=0.2)
    shifts = Symmetry(RING.symmetry.group, Shifted(-1), Shifted(-1))
    assert strategy.report["clone_equivariance_error"] == pytest.approx(error_of(module.net, x, shifts), rel=0.2)
    assert relative_mse(module.net(x), RING(x, randn(1, 3, seed=5).expand(500, -1))) > 0.1


@pytest.mark.parametrize(("resample", "tolerance"), [("step", 0.1), ("epoch", 0.25)])
def test_a_linear_student_learns_the_whole_family(resample: Any, tolerance: float) -> None:
    module = Plain(ClonedLayer(made(ConditionalBilinear.like, RING), 1, 1))
    strategy = cloning(RING, "net.student", resample=resample, steps=1500, tolerance=tolerance, batch_size=64)
    teach(strategy, module)
    x, tau = randn(500, 8), randn(500, 3, seed=1)
    assert relative_mse(module.net.student(x, tau), RING(x, tau)) <= 1.2 * (tolerance / 2) ** 2


# ---- what the tolerance promises -------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def taught() -> tuple[Plain, SymmetryCloning]:
    """A perceptron that knows the convolutions of a ring, in a user's network."""
    module = made(lambda: Plain(ClonedLayer(ConditionalMLP.like(RING, width=128), 2, 3)))
    strategy = SymmetryCloning(RING, "net.student", steps=1500, tolerance=0.3, lr=3e-3)
    teach(strategy, module)
    return module, strategy


def test_the_tolerance_bounds_the_error_of_a_family(taught: Any) -> None:
    module, strategy = taught
    student, x, tau = module.net.student, randn(1000, 8, seed=7), randn(1000, 3, seed=8)
    assert relative_mse(student(x, tau), RING(x, tau)) <= 1.1 * (0.3 / 2) ** 2
    error = error_of(student, (x, tau), RING.symmetry)
    assert error <= 1.1 * 0.3
    assert strategy.report["clone_equivariance_error"] == pytest.approx(error, rel=0.1)
    untrained = made(ConditionalMLP.like, RING, width=128)
    assert error_of(untrained, (x, tau), RING.symmetry) > 3 * error


@pytest.mark.parametrize("tolerance", [0.5, 0.2])
def test_the_tolerance_bounds_the_error_of_a_network(tolerance: float) -> None:
    module, teacher = Plain(wide_net()), Stretch()
    strategy = cloning(teacher, symmetry=TURNS, inputs=[(3,)], tolerance=tolerance, steps=2000, batch_size=64)
    teach(strategy, module)
    x = randn(2000, 3, seed=7)
    assert relative_mse(module.net(x), teacher(x)) <= 1.2 * (tolerance / 2) ** 2
    error = error_of(module.net, x, TURNS)
    assert error <= 1.1 * tolerance
    assert strategy.report["clone_equivariance_error"] == pytest.approx(error, rel=0.2)


def test_a_cloned_layer_agrees_with_the_strict_one(taught: Any) -> None:
    layer = taught[0].net
    strict = ClonedLayer(RING, 2, 3)
    strict.load_state_dict(layer.state_dict(), strict=False)
    assert torch.equal(strict.tau, layer.tau)
    x = 10 * randn(500, 2, 8, seed=3)
    assert relative_mse(layer(x), strict(x)) < 0.3**2
    untrained = made(lambda: ClonedLayer(ConditionalMLP.like(RING, width=128), 2, 3))
    untrained.tau.data.copy_(layer.tau)
    assert relative_mse(untrained(x), strict(x)) > 0.8


def test_a_plain_network_takes_over_the_symmetry_of_another() -> None:
    """One line, with inputs from the data; untrained it is far from equivariant."""
    module, x = Plain(wide_net(), lr=0.0), randn(1000, 3, seed=9)
    before = error_of(module.net, x, TURNS)
    trainer(SymmetryCloning(Stretch(), "net", symmetry=TURNS, inputs=[0], tolerance=0.2, lr=1e-2)).fit(module, DATA)
    assert before > 0.2
    assert error_of(module.net, x, TURNS) < before / 5


# ---- layers that are matched -----------------------------------------------------------------------------------------
def test_layers_are_matched() -> None:
    """The hidden layers become equal; of what comes after them nothing is asked."""
    teacher, module = wide_net(16), Plain(made(lambda: nn.Sequential(nn.Linear(3, 16), nn.Linear(16, 5))))
    last = module.net[1].weight.clone()
    x = randn(200, 3)
    assert relative_mse(module.net[0](x), teacher[0](x)) < 1e-12, "the same seed: moved away first"
    module.net[0].weight.data.add_(0.5)
    teach(cloning(teacher, inputs=[(3,)], match={"0": "0"}, tolerance=0.1, steps=1000), module)
    assert relative_mse(module.net[0](x), teacher[0](x)) <= 1.2 * 0.05**2
    assert torch.equal(module.net[1].weight, last)


@pytest.mark.parametrize(
    ("match", "message"),
    [
        ({"first": "a"}, r"'first' names no sub-module of Sequential: the nearest are \['0', '1', '2'\]"),
        ({"0": "bb"}, r"'bb' names no sub-module of Stretch: the nearest are \["),
        ({"0": "b"}, r"shapes \[\(\d+, 16\)\], the teacher \[\(\d+, 3\)\]"),
        ({"0": "a"}, r"shapes \[\(\d+, 16\)\], the teacher \[\(\d+, 12\)\]"),
    ],
)
def test_layers_that_cannot_be_matched(match: Mapping[str, str], message: str) -> None:
    refused(cloning(Stretch(), inputs=[(3,)], match=match), Plain(), message)


def test_outputs_that_do_not_fit() -> None:
    message = r"shapes \[\(\d+, 4\)\], the teacher \[\(\d+, 3\)\]: expected equal ones; choose layers"
    refused(cloning(Stretch(), inputs=[(3,)]), Plain(nn.Linear(3, 4)), message)


# ---- cache -----------------------------------------------------------------------------------------------------------
def test_a_cached_clone_is_not_made_again(tmp_path: Path) -> None:
    settings = {"inputs": [(3,)], "cache": tmp_path / "deep" / "clone.pt", "symmetry": TURNS}
    first, second = Plain(), Plain(make_net(seed=1))
    strategy, again = cloning(Recording(), **settings), cloning(Recording(), **settings)
    teach(strategy, first)
    assert len(Recording.seen) >= 50
    Recording.seen.clear()
    teach(again, second)
    assert len(Recording.seen) < 10, "it is only measured"
    assert torch.equal(weights(first), weights(second))
    assert again.report == pytest.approx(strategy.report)
    assert not torch.equal(weights(first), weights(Plain()))


@pytest.mark.parametrize("other", ["teacher", "its weights", "student", "settings"])
def test_the_cache_of_another_clone_is_refused(other: str, tmp_path: Path) -> None:
    settings = {"inputs": [(3,)], "cache": tmp_path / "clone.pt"}
    teach(cloning(Stretch(), **settings), Plain())
    teacher: nn.Module = nn.Linear(3, 3) if other == "teacher" else Stretch()
    if other == "its weights":
        teacher.a.weight.data += 1e-3
    module = Plain(wide_net(17)) if other == "student" else Plain()
    changes = {"lr": 2e-2} if other == "settings" else {}
    refused(cloning(teacher, **settings, **changes), module, r"clone\.pt belongs to another teacher, student or sett")


def test_a_teacher_with_a_number_in_its_state() -> None:
    """As batch normalisations count their batches."""
    teacher = Stretch()
    teacher.register_buffer("count", torch.tensor(3))
    module = Plain()
    teach(cloning(teacher, inputs=[(3,)]), module)
    assert not torch.equal(weights(module), weights(Plain()))


class Normalised(nn.Module):
    """A student with running statistics, which are no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.net = nn.BatchNorm1d(3), wide_net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.norm(3 + 4 * x))


def test_a_cached_clone_has_its_running_statistics(tmp_path: Path) -> None:
    settings = {"inputs": [(3,)], "cache": tmp_path / "clone.pt", "tolerance": 0.6, "steps": 2000, "batch_size": 64}
    x, errors = randn(500, 3), []
    for module in (Plain(Normalised()), Plain(Normalised())):
        teach(cloning(Stretch(), **settings), module)
        errors.append(relative_mse(module.net.eval()(x), Stretch()(x)))
    assert errors[0] <= 1.2 * 0.3**2
    assert errors[1] == pytest.approx(errors[0], rel=1e-5)
