"""ConstraintRelaxation's projections: what of the branches goes into the user's layers."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from e3nn import o3
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_equiv import ConstraintRelaxation, EquivarianceError, Symmetry
from lightning_equiv.networks.vector_neurons import VNBlock, VNLinear
from lightning_equiv.strategies.constraint_relaxation.projection import LayerProjection, Projection, format_report
from tests.helpers import global_seed, normal
from tests.strategies.relaxed_by_hand import make_nearest
from tests.strategies.toys import EachStep, Plain, loader, snapshot, trainer, weights

N = 5
SETS = {"net.0": ("Permuted(-1)", "Permuted(-1)"), "net.2": ("Permuted(-1)", "Invariant()")}


class Sets(nn.Module):
    """alpha x_i + beta sum_j x_j + b."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha, self.beta, self.b = (nn.Parameter(torch.tensor(w)) for w in (-1.0, 0.2, 0.1))
        self.in_features = self.out_features = N

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * x + self.beta * x.sum(-1, keepdim=True) + self.b


class Sum(nn.Module):
    """a sum_i h_i + c."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.tensor(0.0))
        self.in_features, self.out_features = N, 1

    def forward(self, h: Tensor) -> Tensor:
        return self.a * h.sum(-1, keepdim=True) + self.c


class Skip(nn.Module):
    """Hidden features that something else reads, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Sets(), Sum()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        out: Tensor = self.second(h) + h[..., :1]
        return out


class Quiet(Plain):
    """Logs nothing: for loops without a Trainer; skips the batches that it is told to."""

    skips = False

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if self.skips else self.task(self.net, *batch)


def sets(between: nn.Module | None = None) -> Quiet:
    return Quiet(nn.Sequential(Sets(), between or nn.ReLU(), Sum()))


def set_data() -> DataLoader[Any]:
    x = normal(22, N, seed=1).float()
    return DataLoader(list(zip(x, torch.relu(x).sum(-1, keepdim=True), strict=True)), 4)


def folded(module: Plain, strategy: ConstraintRelaxation, batch: Any) -> None:
    """The step in which the branches are folded, without training."""
    strategy.attach(module)
    strategy.update(0, 4)
    module.training_step(batch, 0)
    strategy.update(2, 4)
    module.training_step(batch, 1)


def error(module: Plain, group: str) -> float:
    symmetry = Symmetry(group, "Permuted(-1)" if group == "S5" else "1o", "Invariant()" if group == "S5" else "1o")
    metric = EquivarianceError(symmetry, num_samples=8)
    metric.update(module.net, normal(16, N if group == "S5" else 3).to(weights(module).dtype))
    return float(metric.compute())


@pytest.mark.parametrize("projection", ["nearest", "relabel"])
def test_the_network_is_the_users_own_and_strict(projection: Any) -> None:
    """Its keys, types and hooks are what they were; it commutes to rounding; its weights are not the dropped ones."""
    module, dropped = sets().double(), sets().double()
    before = snapshot(module)
    for network, kind in ((module, projection), (dropped, "drop")):
        strategy = ConstraintRelaxation(
            "S5", SETS, projection=kind, schedule="constant", init_scale=1.0, lie_weight=0, norm_weight=0
        )
        trainer(strategy, precision="64-true", max_epochs=2).fit(network, set_data_of(torch.float64))
    assert snapshot(module) == before
    assert error(module, "S5") < 1e-12
    assert not torch.allclose(weights(module), weights(dropped), atol=1e-3)


def set_data_of(dtype: torch.dtype) -> DataLoader[Any]:
    return DataLoader([(x.to(dtype), y.to(dtype)) for x, y in set_data().dataset], 4)


def test_the_report_is_what_happened() -> None:
    """Losses of the batch with branches, dropped and folded, written out; nothing is left over of what commutes."""
    module, batch = sets(), next(iter(set_data()))
    strategy = ConstraintRelaxation("S5", SETS, projection="nearest", init_scale=1.0)
    strategy.attach(module)
    strategy.update(0, 4)
    relaxed = module.training_step(batch, 0).detach().float()
    branches = [b.network.weight.detach().double() for b in strategy.branches]
    alpha, beta = (float(w.detach()) for w in (module.net[0].alpha, module.net[0].beta))
    logged: dict[str, Any] = {}
    strategy.log_values = lambda _, values, batch_size: logged.update(values)  # type: ignore[method-assign]
    strategy.update(2, 4)
    after = module.training_step(batch, 1).detach().float()
    torch.testing.assert_close(logged["projection/loss_relaxed"], relaxed)
    torch.testing.assert_close(logged["projection/loss"], after)
    torch.testing.assert_close(logged["projection/loss_dropped"], sets().training_step(batch, 0).detach())
    t, s = branches[0].trace(), branches[0].sum()
    d, o = t / N, (s - t) / (N * (N - 1))
    assert float(module.net[0].alpha.detach()) == pytest.approx(alpha + float(d - o), abs=1e-6)
    assert float(module.net[0].beta.detach()) == pytest.approx(beta + float(o), abs=1e-6)
    assert float(module.net[2].a.detach()) == pytest.approx(0.7 + float(branches[1].mean()), abs=1e-6)
    assert [layer["layer"] for layer in strategy.projection_report] == ["net.0", "net.2"]
    assert max(layer["left_over"] for layer in strategy.projection_report) < 1e-10
    assert all(0 < layer["kept"] < 1 for layer in strategy.projection_report)
    assert all(layer["hidden"] == "" for layer in strategy.projection_report)


def test_a_relabelled_strict_network_is_found_again() -> None:
    """Branches that permute the hidden neurons: "nearest" loses the function, "relabel" has it exactly."""
    batch = next(iter(set_data_of(torch.float64)))
    for projection in ("nearest", "relabel"):
        module = sets().double()
        expected = module.training_step(batch, 0).detach()  # the sum behind does not see the order of the neurons
        strategy = ConstraintRelaxation("S5", SETS, projection=projection, init_scale=0.0)
        strategy.attach(module)
        A = -torch.eye(N, dtype=torch.float64) + 0.2
        strategy.branches[0].network.weight.data.copy_(A[[2, 0, 1, 4, 3]] - A)
        strategy.update(0, 4)
        torch.testing.assert_close(module.training_step(batch, 0).detach(), expected)
        strategy.update(2, 4)
        after = module.training_step(batch, 1).detach()
        hidden = [layer["hidden"] for layer in strategy.projection_report]
        if projection == "relabel":
            assert hidden == ["permutation", ""]
            torch.testing.assert_close(after, expected)
        else:
            assert hidden == ["", ""]
            assert abs(after - expected) > 0.01


def test_a_strict_network_is_left_alone() -> None:
    """To rounding: with branches of 0 the best relabelling is none."""
    module, batch = sets().double(), next(iter(set_data_of(torch.float64)))
    before = weights(module.net)
    folded(module, ConstraintRelaxation("S5", SETS, projection="relabel", init_scale=0.0), batch)
    torch.testing.assert_close(weights(module.net), before, atol=1e-12, rtol=0)


def test_without_a_nonlinearity_hidden_features_are_turned() -> None:
    module, batch = sets(nn.Identity()), next(iter(set_data()))
    strategy = ConstraintRelaxation("S5", SETS, projection="relabel", init_scale=1.0)
    folded(module, strategy, batch)
    assert strategy.projection_report[0]["hidden"] == "orthogonal"


def test_hidden_features_that_something_else_reads_are_left_alone() -> None:
    module, batch = Quiet(Skip()), next(iter(set_data()))
    layers = {"net.first": SETS["net.0"], "net.second": SETS["net.2"]}
    strategy = ConstraintRelaxation("S5", layers, projection="relabel", init_scale=1.0)
    folded(module, strategy, batch)
    assert [layer["hidden"] for layer in strategy.projection_report] == ["", ""]


@pytest.mark.parametrize("kind", ["e3nn", "vector neurons"])
def test_layers_of_libraries_take_what_commutes(kind: str) -> None:
    """The folded network is the strict one whose maps are the means over rotations of the relaxed ones."""
    with global_seed(0):
        net = (
            nn.Sequential(o3.Linear("1o", "8x1o"), o3.Linear("8x1o", "1o"))
            if kind == "e3nn"
            else nn.Sequential(nn.Unflatten(1, (1, 3)), VNBlock(1, 4), VNLinear(4, 1), nn.Flatten(1))
        )
    module = Quiet(net).double()
    layers = "net.*" if kind == "e3nn" else ["net.1.linear", "net.2"]
    batch = next(iter(loader(dtype=torch.float64)))
    strategy = ConstraintRelaxation("O(3)", layers, projection="nearest", init_scale=1.0)
    strategy.attach(module)
    strategy.update(0, 4)
    first = strategy.branches[0]
    W = first.network.weight.detach().reshape(-1, 3, 3)  # (out channels, 3, 3): one vector comes in
    x = torch.eye(3, dtype=torch.float64)
    layer: Any = first.layer.module
    shaped = x if kind == "e3nn" else x[:, None]
    with strategy.projected():
        before = layer(shaped).detach().reshape(3, -1, 3)
    strategy.update(2, 4)
    module.training_step(batch, 1)
    expected = before + torch.einsum("cii,jk->jck", W, x) / 3
    torch.testing.assert_close(layer(shaped).detach().reshape(3, -1, 3), expected, atol=1e-6, rtol=0)
    assert error(module, "O(3)") < 1e-6


def test_a_training_that_ends_early_drops_them_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    module = sets()
    strategy = ConstraintRelaxation("S5", SETS, projection="relabel")
    stops = EachStep(lambda run: setattr(run, "should_stop", True))
    with caplog.at_level(logging.INFO):
        trainer(strategy, stops, max_epochs=3).fit(module, set_data())
    assert any("ended before 50% of the run" in message for message in caplog.messages)
    assert strategy.projection_report == []
    assert error(module, "S5") < 1e-6


def test_a_batch_that_is_skipped_folds_nothing() -> None:
    module, batch = sets(), next(iter(set_data()))
    strategy = ConstraintRelaxation("S5", SETS, projection="nearest", init_scale=1.0)
    strategy.attach(module)
    strategy.update(2, 4)
    module.skips, before = True, weights(module.net)
    module.training_step(batch, 0)
    assert torch.equal(weights(module.net), before)
    module.skips = False
    module.training_step(batch, 1)
    assert len(strategy.projection_report) == 2
    assert not torch.equal(weights(module.net), before)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"projection": "fold"}, "expected projection to be 'drop', 'nearest' or 'relabel', got 'fold'"),
        ({"projection": "nearest", "branch": "mlp"}, "has a nonlinearity: expected branch='linear'"),
        ({"projection": "relabel", "end": 1}, "expected end < 1"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make_nearest(**changes)


@pytest.mark.parametrize(
    ("net", "group", "layers", "match"),
    [
        (nn.Sequential(nn.Linear(3, 3)), "SO(3)", "net.0", "does not say how SO\\(3\\) moves its features"),
        (nn.Sequential(nn.Linear(3, 3)), "T(3)", {"net.0": ("1o", "1o")}, "moves no features linearly"),
        (nn.Sequential(nn.Linear(3, 3), nn.Tanh()), "SO(3)", {"net": ("1o", "1o")}, "is not linear in its input"),
    ],
)
def test_layers_that_cannot_take_branches_are_refused_before_training(
    net: nn.Module, group: str, layers: Any, match: str
) -> None:
    module = Quiet(net)
    module.example_input_array = torch.zeros(2, 3)
    before = snapshot(module)
    with pytest.raises(ValueError, match=match):
        trainer(ConstraintRelaxation(group, layers, projection="nearest")).fit(module, loader())
    assert snapshot(module) == before


def test_a_long_report_names_the_layers_of_which_least_was_kept() -> None:
    layers = [LayerProjection(layer=f"l{i}", branch=1.0, kept=1 - i / 100, left_over=0.0, hidden="") for i in range(20)]
    lines = format_report("Name", layers, {"a": torch.tensor(0.5), "b": None, "c": torch.tensor(1.5)}).splitlines()
    assert lines[0] == "Name: loss with branches 0.5, dropped ?, folded into the layers 1.5"
    assert [line.split(":")[0].strip() for line in lines[1:3]] == ["l19", "l18"]
    assert lines[-1].strip() == "and 8 layers of which more was kept"


def test_the_projection_is_idempotent() -> None:
    """Folding branches of 0 into what was folded changes nothing."""
    module, batch = sets().double(), next(iter(set_data_of(torch.float64)))
    strategy = ConstraintRelaxation("S5", SETS, projection="nearest", init_scale=1.0)
    folded(module, strategy, batch)
    before = weights(module.net)
    again = Projection(strategy.branches, strategy.group, relabel=False)
    again.fold(lambda: None)
    torch.testing.assert_close(weights(module.net), before, atol=1e-12, rtol=0)
