"""RECM by itself: its levels against the law of the data, its certificate, what it leaves behind and refuses."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from e3nn import o3
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from scipy.optimize import linprog
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_equiv import (
    RECM,
    REMUL,
    CartesianTensor,
    GroupAugmentation,
    GroupElement,
    Image,
    Invariant,
    IrrepsTensor,
    Point,
    Symmetry,
    as_group,
)
from lightning_equiv.layers.relaxed_layer import RelaxedLayer, without_branches
from lightning_equiv.representations.representation import Representation
from lightning_equiv.strategies.recm import recurrence
from lightning_equiv.strategies.recm.critic import (
    GELU_SLOPE,
    INVARIANT_SIZE,
    Draw,
    LipschitzCritic,
    Rows,
    mean_squares,
    target_rows,
    violation,
)
from tests.helpers import default_dtype, global_seed, normal, seeded
from tests.strategies.recm_by_hand import make_recm
from tests.strategies.relaxed_by_hand import LAYERS
from tests.strategies.toys import SYMMETRY, Plain, error_of, loader, make_net, snapshot, trainer, weights

mse = nn.functional.mse_loss
IRREPS = "2x0e+1x0o+3x1o+1x1e+2x2e"


def batches(data: Iterable[Any]) -> DataLoader:
    return DataLoader(list(data), batch_size=None)


def states(strategy: RECM) -> dict[str, Tensor]:
    return {name: r.h.clone() for name, r in strategy.recurrences.items()}


def thetas(strategy: RECM) -> list[float]:
    return [abs(v["theta"]) for v in strategy.report]


def critics_of(make: Callable[[], RECM], module: L.LightningModule) -> dict[str, LipschitzCritic]:
    """What a strategy made like this one starts from."""
    strategy = make()
    strategy.attach(module)
    copies = {name: copy.deepcopy(r.critic) for name, r in strategy.recurrences.items()}
    strategy.detach()
    return copies


class EachStep(L.Callback):
    """Calls a function when a batch has been trained on."""

    def __init__(self, function: Callable[[L.Trainer], None]) -> None:
        self.function = function

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.function(trainer)


class Scored(Plain):
    """With a test that measures what validation measures."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", mse(self.net(batch[0]), batch[1]))


# ---- theta and the law of the data -----------------------------------------------------------------------------------


class Gated(nn.Module):
    """An SO(3)-equivariant network of a vector and its length."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = o3.Linear("0e+1o", "8x0e+8x1o"), o3.Linear("8x0e+8x1o", "1o")

    def forward(self, x: Tensor) -> Tensor:
        s, v = self.first(x).split([8, 24], -1)
        v = v.unflatten(-1, (8, 3)) * torch.sigmoid(s)[..., None]
        return self.second(torch.cat([nn.functional.silu(s), v.flatten(-2)], -1))


class Regression(Plain):
    def __init__(self) -> None:
        with global_seed():
            super().__init__(Gated())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def law(n: int, push: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs 0e+1o, |x| and x, and targets 1o, |x| x / 2 and a push along z that no rotation moves."""
    x = normal(n, 3, seed=seed).float()
    r = x.norm(dim=-1, keepdim=True)
    return torch.cat([r, x], -1), x * r / 2 + push * r * torch.tensor([0.0, 0.0, 1.0])


def learn(push: float, target: Any = "1o", *before: L.Callback, relax: bool = True) -> tuple[list[float], float]:
    """|theta| of both layers after 300 batches, each drawn anew, and the error on other samples."""
    symmetry = Symmetry("SO(3)", inputs="0e+1o", outputs="1o", batch=("0e+1o", target))
    module, strategy = Regression(), RECM(symmetry, "net.*", "net", target=1, gain=0.1)
    stream = batches(law(256, push, seed=1 + i) for i in range(300))
    trainer(*before, *([strategy] if relax else [])).fit(module, stream)
    x, y = law(2000, push)
    with torch.no_grad():
        return thetas(strategy), float(mse(module.net(x), y))


def test_an_asymmetric_law_is_relaxed_as_far_as_it_is_asymmetric_and_a_symmetric_one_is_not() -> None:
    (symmetric, strict_enough), (some, error_some), (much, error_much) = (learn(push) for push in (0.0, 0.3, 1.0))
    assert max(symmetric) < 5e-3
    assert strict_enough < 0.02
    for none, a, b in zip(symmetric, some, much, strict=True):
        assert 10 * none < a
        assert 1.5 * a < b
    _, strict_some = learn(0.3, relax=False)
    _, strict_much = learn(1.0, relax=False)
    assert error_some < strict_some / 5
    assert error_much < strict_much / 20


def test_augmentation_makes_any_data_symmetric() -> None:
    symmetry = Symmetry("SO(3)", inputs="0e+1o", outputs="1o", batch=("0e+1o", "1o"))
    assert max(learn(1.0, "1o", GroupAugmentation(symmetry))[0]) < 5e-3


@pytest.mark.parametrize("wrong", [Invariant(), "3x0e"])
def test_a_wrong_representation_of_the_target_is_seen(wrong: Any) -> None:
    assert max(learn(0.0, wrong)[0]) > 1e-2


def test_theta_zero_is_the_base_network_bit_for_bit() -> None:
    module, x = Plain(), loader().dataset.x
    base = module.net(x)
    strategy = make_recm(start="equivariant")
    strategy.attach(module)
    assert all(b.active for b in strategy.branches)
    assert torch.equal(module.eval().net(x), base)
    assert torch.equal(module.train().net(x), base)
    strategy.detach()
    strategy = make_recm()
    strategy.attach(module)
    assert not torch.equal(module.net(x), base)
    for b in strategy.branches:
        b.theta = torch.zeros_like(b.theta)
    assert torch.equal(module.net(x), base)
    strategy.detach()


# ---- u and the certificate -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_u_is_1_lipschitz(scale: float) -> None:
    torch.manual_seed(0)
    u = LipschitzCritic(12, 32, 8).double()
    with torch.no_grad():
        for p in u.parameters():
            p.mul_(scale)
        a = torch.cat([normal(500, 12, seed=i) * size for i, size in enumerate((0.01, 1.0, 30.0))])
        b = torch.cat([a[:750] + 1e-3 * normal(750, 12, seed=5), normal(750, 12, seed=6)])
        assert ((u(a) - u(b)).norm(dim=-1) <= (1 + 1e-6) * (a - b).norm(dim=-1)).all()
    slopes = torch.linalg.matrix_norm(torch.vmap(torch.func.jacrev(u))(a), 2)
    assert slopes.max() <= 1 + 1e-6
    assert slopes.max() > 0.1


def test_the_bound_on_the_slope_is_reached() -> None:
    """One hidden number at sqrt(2), where GELU is steepest: its slope there is Phi(sqrt 2) + sqrt 2 phi(sqrt 2)."""
    u = LipschitzCritic(5, 1, 1).double()
    u.inner.bias.data.fill_(math.sqrt(2))
    slope = torch.func.jacrev(u)(torch.zeros(5, dtype=torch.float64)).norm()
    assert slope.item() == pytest.approx(1, abs=1e-6)
    assert pytest.approx((1 + math.erf(1)) / 2 + math.exp(-1) / math.sqrt(math.pi), abs=1e-6) == GELU_SLOPE


C4 = as_group("C4")
PLANE = Symmetry("C4", inputs=Point(), outputs=Point(), batch=(Point(), Point()))


def everything(n: int) -> Draw:
    """All four turns of n rows."""
    return Draw(C4.elements()[torch.arange(4).repeat_interleave(n)], 4)


def lopsided() -> tuple[Tensor, Tensor]:
    """Ten rows of six pairs of points in the plane, some of them several times."""
    times = torch.tensor([3, 1, 2, 1, 1, 2])
    x = normal(6, 2) + torch.tensor([1.0, 0.5])
    y = x + normal(6, 2, seed=1) / 2
    return x.repeat_interleave(times, 0), y.repeat_interleave(times, 0)


def wasserstein(x: Tensor, y: Tensor) -> float:
    """W1 between the law of z and its average over C4, by linear programming."""
    R = [torch.tensor([[c, -s], [s, c]], dtype=torch.float64) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    z = [torch.cat([x @ r.T / x.square().mean().sqrt(), y @ r.T / y.square().mean().sqrt()], 1) / 2 for r in R]
    cost = torch.cdist(z[0], torch.cat(z)).numpy()  # from row i to turned row j
    n, m = cost.shape
    leaves, arrives = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    masses = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    return float(linprog(cost.ravel(), A_eq=np.concatenate([leaves, arrives]), b_eq=masses).fun)


def test_theta_never_exceeds_the_wasserstein_gap_whatever_u_learns() -> None:
    x, y = lopsided()
    gap = wasserstein(x, y)
    x_rows, y_rows = Rows(x, (2,), Point()), Rows(y, (2,), Point())
    squares, draw = mean_squares(x_rows, y_rows), everything(len(x))
    torch.manual_seed(0)
    u = LipschitzCritic(4, 32, 8).double()
    adversary = torch.optim.Adam(u.parameters(), lr=0.01)
    for _ in range(300):
        s = violation(u, x_rows, y_rows, draw, squares)
        theta = (u.direction() @ s).abs()
        assert theta <= s.norm() + 1e-12
        assert s.norm() <= gap + 1e-6
        adversary.zero_grad()
        (-theta).backward()
        adversary.step()
    assert theta > 0.6 * gap


def test_theta_stays_under_the_wasserstein_gap_while_a_network_trains() -> None:
    """From theta = 0, on the whole law at every step: h is an average of s, each at most as long as the gap."""
    x, y = lopsided()
    torch.manual_seed(0)
    module = Plain(nn.Sequential(nn.Linear(2, 2, bias=False)).double())
    strategy = RECM(PLANE, {"net.0": (Point(), Point())}, target=1, start="equivariant", gain=0.3)
    seen: list[float] = []
    look = EachStep(lambda _: seen.append(abs(float(strategy.branches[0].theta))))
    module.configure_optimizers = lambda: torch.optim.Adam(module.parameters(), lr=0.03)  # type: ignore[method-assign]
    trainer(strategy, look).fit(module, batches([(x, y + 5)] * 150))
    gap = wasserstein(x, y + 5)
    assert max(seen) <= gap + 1e-6
    assert max(seen) > 0.3 * gap


def test_no_u_sees_anything_in_a_symmetric_law() -> None:
    x, y = lopsided()
    turned = everything(len(x))
    x, y = (Point()(turned.elements, v.repeat(4, 1)) for v in (x, y))
    x_rows, y_rows = Rows(x, (2,), Point()), Rows(y, (2,), Point())
    for seed in range(5):
        torch.manual_seed(seed)
        u = LipschitzCritic(4, 32, 8).double()
        s = violation(u, x_rows, y_rows, everything(len(x)), mean_squares(x_rows, y_rows))
        assert s.norm() < 1e-6
        wrong = Rows(y, (2,), Invariant())
        assert violation(u, x_rows, wrong, everything(len(x)), mean_squares(x_rows, y_rows)).norm() > 1e-3


# ---- rows and draws --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [(), (4,)])
@pytest.mark.parametrize("group", ["SO(3)", "O(3)", "C4"])
def test_irreps_are_projected_as_if_they_were_moved_first(group: str, channels: tuple[int, ...]) -> None:
    shape = (*channels, o3.Irreps(IRREPS).dim)
    numbers, n, times = math.prod(shape), 5, 3
    rows, weight = Rows(normal(n, numbers), shape, IrrepsTensor(IRREPS)), normal(7, numbers, seed=1)
    draw = Draw(as_group(group).sample(2 * n * times, generator=seeded()), times)
    expected = nn.functional.linear(rows.moved(draw), weight)
    torch.testing.assert_close(rows.projected(weight, draw), expected)
    assert (expected - rows.projected(weight).repeat(times, 1)).abs().max() > 0.1


def test_irreps_are_projected_as_with_the_matrices_of_e3nn() -> None:
    n, times, irreps = 4, 2, o3.Irreps(IRREPS)
    elements = as_group("O(3)").sample(n * times, generator=seeded())
    assert len(set(torch.linalg.det(elements.matrix).round().tolist())) == 2, "turns and reflections"
    x, W = normal(n, 2, irreps.dim), normal(7, 2, irreps.dim, seed=1)
    with default_dtype(torch.float64):
        D = irreps.D_from_matrix(elements.matrix)
    rows = Rows(x.flatten(1), (2, irreps.dim), IrrepsTensor(irreps))
    projected = rows.projected(W.flatten(1), Draw(elements, times))
    for m in range(times):
        for i in range(n):
            expected = sum(W[:, c] @ D[m * n + i] @ x[i, c] for c in range(2))
            torch.testing.assert_close(projected[m * n + i], expected)


def test_a_small_group_is_summed_in_full() -> None:
    """The state after one step, from 0: b s, with s by a loop over rows and turns."""

    def make() -> RECM:
        symmetry = Symmetry("C4", inputs="1o", outputs="1o", batch=("1o", "1o"))
        return RECM(symmetry, LAYERS, target=1, gain=0.5, start="equivariant", num_samples=1)

    x, y = (t.double() for t in (loader().dataset.x, loader().dataset.y))
    module = Plain().double()
    u = critics_of(make, module)["net.0"].double()
    strategy = make()
    after: list[Tensor] = []
    look = EachStep(lambda _: after.append(states(strategy)["net.0"]))
    trainer(strategy, look).fit(module, batches([(x, y)]))
    p, q, s = x.square().mean().sqrt(), y.square().mean().sqrt(), torch.zeros(8, dtype=torch.float64)
    for a, b in zip(x, y, strict=True):
        for k in range(4):
            c, d = math.cos(k * math.pi / 2), math.sin(k * math.pi / 2)
            R = torch.tensor([[c, -d, 0], [d, c, 0], [0, 0, 1]], dtype=torch.float64)
            z, gz = (torch.cat([v / p, w / q])[None] / math.sqrt(6) for v, w in ((a, b), (R @ a, R @ b)))
            s += (u(z) - u(gz))[0].detach() / 4 / len(x)
    torch.testing.assert_close(after[0].double(), 0.5 * s, rtol=1e-5, atol=1e-9)
    assert s.norm() > 1e-3


@pytest.mark.parametrize(("group", "draws"), [("C16", False), ("D8", False), ("C20", True), ("SO(3)", True)])
def test_only_large_groups_are_drawn_from(group: str, draws: bool) -> None:
    """What is drawn depends on the strategy's name, first weights do not."""

    def run(name: str) -> dict[str, Tensor]:
        symmetry = Symmetry(group, inputs="1o", outputs="1o", batch=("1o", "1o"))
        strategy = RECM(symmetry, LAYERS, target=1, name=name, finalize="drop")
        trainer(strategy).fit(Plain(), loader())
        return states(strategy)

    one, other = run("one"), run("other")
    assert all(torch.equal(one[layer], other[layer]) != draws for layer in one)


def test_targets_of_nodes_and_of_graphs() -> None:
    """(graphs, nodes, 3) row by row; (graphs, 3) each for all nodes of its graph, in order."""
    y = normal(4, 5, 3)
    nodes, rho = target_rows(y, IrrepsTensor("1o"), 20), IrrepsTensor("1o")
    assert torch.equal(nodes.values, y.reshape(20, 3))
    assert (nodes.shape, nodes.representation) == ((3,), rho)
    graphs = target_rows(y[:, 0], rho, 20).values
    assert torch.equal(graphs, torch.stack([y[i // 5, 0] for i in range(20)]))


def test_invariant_targets() -> None:
    one = target_rows(normal(4), Invariant(), 8).values
    assert one.shape == (8, INVARIANT_SIZE)
    assert torch.equal(one[:, 0], normal(4).repeat_interleave(2))
    assert not one[:, 1:].any()
    y = normal(4, 7)
    some = target_rows(y, Invariant(), 4).values
    assert torch.equal(some[:, :7], y)
    assert not some[:, 7:].any()
    y, other = normal(50, 100), normal(50, 100, seed=1)
    many, others = (target_rows(v, Invariant(), 50).values for v in (y, other))
    assert many.shape == (50, INVARIANT_SIZE)
    assert ((many - others).norm(dim=-1) <= (y - other).norm(dim=-1) + 1e-12).all()
    repeated = target_rows(normal(50, 32).repeat(1, 3), Invariant(), 50).values
    torch.testing.assert_close(repeated.norm(dim=-1), normal(50, 32).repeat(1, 3).norm(dim=-1))


def test_class_labels() -> None:
    labels = torch.tensor([0, 2, 31, 33])
    one_hot = target_rows(labels, Invariant(), 4).values
    assert one_hot.argmax(-1).tolist() == [0, 2, 31, 1]
    assert torch.equal(one_hot.sum(-1), torch.ones(4))
    assert torch.equal(one_hot.max(-1).values, torch.ones(4))


def test_cartesian_targets() -> None:
    y = normal(4, 3, 3)
    rows = target_rows(y, CartesianTensor(2), 8)
    assert torch.equal(rows.values, y.flatten(1).repeat_interleave(2, 0))
    g = as_group("O(3)").sample(8, generator=seeded())
    moved = rows.moved(Draw(g, 1)).unflatten(1, (3, 3))
    torch.testing.assert_close(moved, g.matrix @ y.repeat_interleave(2, 0) @ g.matrix.mT)


@pytest.mark.parametrize("count", [7, 3])
def test_targets_that_do_not_go_into_the_rows(count: int) -> None:
    with pytest.raises(ValueError, match=rf"{count} rows, which are no multiple of the 4 targets of shape \(4, 3\)"):
        target_rows(normal(4, 3), IrrepsTensor("1o"), count)


# ---- evaluation, checkpoints, processes ------------------------------------------------------------------------------


def test_evaluation_leaves_the_state_alone_and_needs_no_target(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy, seen = make_recm(gain=0.05), []
    x = loader().dataset.x

    class Unlabelled(Plain):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            before = states(strategy), torch.get_rng_state()
            with monkeypatch.context() as patch:
                patch.setattr(strategy, "generator", lambda: pytest.fail("random numbers were drawn"))
                strategy_on, strategy_again = self.net(batch), self.net(batch)
            after = states(strategy), torch.get_rng_state()
            assert all(torch.equal(before[0][name], h) for name, h in after[0].items())
            assert torch.equal(before[1], after[1])
            assert torch.equal(strategy_on, strategy_again)
            by_hand = batch
            for m, b in zip((self.net[0], self.net[2]), strategy.branches, strict=True):
                by_hand = torch.tanh(by_hand) if m is self.net[2] else by_hand
                strict = nn.functional.linear(by_hand, m.weight, m.bias)
                by_hand = strict + (b.theta * b.network(by_hand)).to(strict)
            torch.testing.assert_close(strategy_on, by_hand)
            seen.append(float(strategy.branches[0].theta))

    module = Unlabelled()
    run = trainer(strategy, max_epochs=2, num_sanity_val_steps=1)
    run.fit(module, loader(), batches([x, x[:3]]))
    assert len(seen) == 5, "one batch before training, then two an epoch"
    assert seen[0] == pytest.approx(1)
    assert 0.1 < abs(seen[1]) < 0.95
    assert seen[1] == seen[2]


def test_the_state_is_in_the_checkpoint_and_comes_back(tmp_path: Path) -> None:
    strategy = make_recm()
    save = ModelCheckpoint(tmp_path, filename="saved")
    trainer(strategy, save, max_epochs=2, enable_checkpointing=True).fit(Plain(), loader())
    again, seen = make_recm(), []

    class Look(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.extend((name, r.h.clone(), r.squares.clone()) for name, r in again.recurrences.items())

    save = ModelCheckpoint(tmp_path, filename="again")
    run = trainer(again, save, Look(), max_epochs=3, enable_checkpointing=True)
    run.fit(Plain(), loader(), ckpt_path=str(tmp_path / "saved.ckpt"))
    assert len(seen) == 2
    for name, h, squares in seen:
        ended = strategy.recurrences[name]
        assert torch.equal(h, ended.h)
        assert torch.equal(squares, ended.squares)
        assert not torch.equal(h, again.recurrences[name].h), "and goes on from there"


class SavesStates(L.Callback):
    """Writes the states of every rank when training ends."""

    def __init__(self, strategy: RECM, folder: Path) -> None:
        self.strategy, self.folder = strategy, folder

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        torch.save(states(self.strategy), self.folder / f"{trainer.global_rank}.pt")


@pytest.mark.slow
def test_two_processes_hold_one_state(tmp_path: Path) -> None:
    from lightning.pytorch.strategies import DDPStrategy

    strategy = make_recm()
    ddp = DDPStrategy(start_method="fork", process_group_backend="gloo")
    trainer(strategy, SavesStates(strategy, tmp_path), strategy=ddp, devices=2).fit(Plain(), loader())
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert set(one) == set(LAYERS)
    for name, h in one.items():
        assert torch.equal(h, other[name])
        assert 0 < h.norm() < 1


# ---- what is left after fit ------------------------------------------------------------------------------------------


def kept(**changes: Any) -> tuple[Scored, RECM, L.Trainer]:
    """A module that was trained and keeps its relaxed layers."""
    module, strategy = Scored(), make_recm(**{"finalize": "keep", "gain": 0.05, **changes})
    run = trainer(strategy, max_epochs=2)
    run.fit(module, loader(), loader(batch_size=22))
    return module, strategy, run


def test_relaxed_layers_stay_and_predict_what_was_validated() -> None:
    module, strategy, run = kept()
    assert [type(module.net[i]) for i in (0, 2)] == [RelaxedLayer, RelaxedLayer]
    assert [float(module.net[i].theta) for i in (0, 2)] == pytest.approx([v["theta"] for v in strategy.report])
    assert not any(v["strict"] for v in strategy.report)
    relaxed = error_of(module.net)
    assert relaxed == pytest.approx(float(run.callback_metrics["val_loss"]), rel=1e-6)
    for i in (0, 2):
        module.net[i].theta.zero_()
    assert abs(error_of(module.net) - relaxed) > 1e-3


def test_a_relaxed_layer_is_f_plus_theta_n() -> None:
    layer = kept()[0].net[0]
    x = loader().dataset.x
    assert type(layer.layer) is nn.Linear
    assert torch.linalg.matrix_norm(layer.branch.weight, 2) < 1.2, "normalised, by one step of power iteration a batch"
    expected = x @ layer.layer.weight.T + layer.layer.bias + layer.theta * (x @ layer.branch.weight.T)
    torch.testing.assert_close(layer(x), expected)
    assert layer.in_features == 3, "what it has not is the layer's"
    assert layer.weight is layer.layer.weight
    with pytest.raises(AttributeError, match="no_such_thing"):
        layer.no_such_thing  # noqa: B018
    assert set(layer.state_dict()) == {"theta", "layer.weight", "layer.bias", "branch.weight"}


def test_a_branch_cannot_undo_a_small_theta() -> None:
    """A matrix of norm 1, by one step of power iteration a batch, or an output of RMS 1, whatever its weights are."""
    for branch in ("linear", "mlp"):
        strategy, module = make_recm(branch=branch), Plain()
        strategy.attach(module)
        (_, b), x = strategy.branches, normal(500, 16).float()
        n_x = b.network(x)
        with torch.no_grad():
            for p in b.network.parameters():
                p.mul_(100)
        if branch == "mlp":
            torch.testing.assert_close(n_x.square().mean(-1), torch.ones(500), rtol=1e-3, atol=0)
            torch.testing.assert_close(b.network(x).square().mean(-1), torch.ones(500), rtol=1e-3, atol=0)
        else:
            assert (n_x.norm(dim=-1) <= 1.001 * x.norm(dim=-1)).all()
            torch.testing.assert_close(b.network(x), n_x, rtol=1e-2, atol=1e-2)
        strategy.detach()


def test_layers_below_the_threshold_are_the_users() -> None:
    _, strategy, _ = kept()
    low, high = sorted(thetas(strategy))
    assert low < high
    module, strategy, run = kept(threshold=(low + high) / 2)
    strict = {v["layer"]: v["strict"] for v in strategy.report}
    assert sorted(strict.values()) == [False, True]
    types = {f"net.{i}": nn.Linear if strict[f"net.{i}"] else RelaxedLayer for i in (0, 2)}
    assert {f"net.{i}": type(module.net[i]) for i in (0, 2)} == types
    assert error_of(module.net) == pytest.approx(float(run.callback_metrics["val_loss"]), rel=1e-6)


def test_nothing_is_left_where_everything_is_dropped() -> None:
    for changes in ({"finalize": "drop"}, {"finalize": "keep", "threshold": 10.0}):
        module = Plain()
        before = snapshot(module)
        strategy = make_recm(**changes)
        trainer(strategy).fit(module, loader())
        assert snapshot(module)["modules"] == before["modules"]
        assert (snapshot(module)["keys"], snapshot(module)["hooks"]) == (before["keys"], before["hooks"])
        assert len(strategy.report) == 2


def test_a_layer_in_several_places_is_replaced_in_all() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3)
            self.b = self.a
            self.inner = nn.ModuleList([nn.Tanh(), self.a])

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.inner[0](self.inner[1](self.a(x))))

    module, strategy = Plain(Twice()), RECM(SYMMETRY, {"net.a": ("1o", "1o")}, target=1)
    run = trainer(strategy)
    run.fit(module, loader(), loader(batch_size=22))
    assert type(module.net.a) is RelaxedLayer
    assert module.net.b is module.net.a
    assert module.net.inner[1] is module.net.a
    assert error_of(module.net) == pytest.approx(float(run.callback_metrics["val_loss"]), rel=1e-6)


@pytest.mark.parametrize("branch", ["linear", "mlp"])
def test_what_is_kept_is_an_ordinary_module(branch: str, tmp_path: Path) -> None:
    net, x = kept(branch=branch)[0].net.eval(), loader().dataset.x
    expected = net(x).detach()
    other = copy.deepcopy(net)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.zero_()
    assert not torch.equal(other(x), expected)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), expected)
    torch.save(net, tmp_path / "net.pt")
    assert torch.equal(torch.load(tmp_path / "net.pt", weights_only=False)(x), expected)
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), expected)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(net, backend="aot_eager", fullgraph=True)(x).detach(), expected)
    torch.testing.assert_close(net.double()(x.double()).float(), expected)


def test_a_representation_that_cannot_be_saved_does_not_hinder_saving(tmp_path: Path) -> None:
    layers = {"net.0": (lambda g, x: IrrepsTensor("1o")(g, x), "16x0e")}
    module, strategy = Plain(), RECM(SYMMETRY, layers, "net", target=1)
    trainer(strategy).fit(module, loader())
    assert type(module.net[0]) is RelaxedLayer
    torch.save(module.net, tmp_path / "net.pt")
    x = loader().dataset.x
    assert torch.equal(torch.load(tmp_path / "net.pt", weights_only=False)(x), module.net(x))


def test_a_second_fit_goes_on() -> None:
    module, strategy, _ = kept()
    ended, seen = [v["theta"] for v in strategy.report], []
    look = EachStep(lambda _: seen.append([float(b.theta) for b in strategy.branches]))
    assert max(map(abs, ended)) < 0.9
    trainer(strategy, look).fit(module, batches([next(iter(loader()))] * 3))
    assert len(seen) == 3
    assert seen[0] == pytest.approx(ended, abs=0.1)
    assert [type(module.net[i]) for i in (0, 2)] == [RelaxedLayer, RelaxedLayer]
    assert type(module.net[0].layer) is nn.Linear


# ---- checkpoints tested later ----------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Scored, RECM, Path, float]:
    """Module, strategy, the file that was written half-way, and the loss that was validated then."""
    module, strategy = Scored(), make_recm(finalize="keep", evaluate="relaxed", gain=0.05)
    save, seen = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1), []

    class Look(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append(float(trainer.callback_metrics["val_loss"]))

    run = trainer(strategy, save, Look(), max_epochs=4, enable_checkpointing=True, num_sanity_val_steps=0)
    run.fit(module, loader(), loader(batch_size=22))
    assert abs(seen[1] - seen[3]) > 1e-3
    return module, strategy, tmp_path / "epoch=1.ckpt", seen[1]


def score(module: L.LightningModule, *callbacks: L.Callback, **kwargs: Any) -> float:
    run = trainer(*callbacks)
    (metrics,) = run.test(module, loader(batch_size=22), verbose=False, weights_only=False, **kwargs)
    return metrics["test_loss"]


NO_SAVING = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # who tests need not save again


@NO_SAVING
def test_a_checkpoint_is_tested_by_the_strategy_that_wrote_it(trained: Any) -> None:
    module, strategy, path, loss = trained
    assert score(module, strategy, ckpt_path=str(path)) == pytest.approx(loss, rel=1e-6)
    assert [type(module.net[i]) for i in (0, 2)] == [RelaxedLayer, RelaxedLayer]
    assert type(module.net[0].layer) is nn.Linear
    assert score(module) == pytest.approx(loss, rel=1e-6), "what is left needs no strategy"
    assert score(module, strategy) == pytest.approx(loss, rel=1e-6)


@NO_SAVING
def test_a_checkpoint_is_tested_by_another_strategy_and_another_trainer(trained: Any) -> None:
    _, _, path, loss = trained
    module = Scored()
    assert score(module, make_recm(finalize="keep", gain=0.05), ckpt_path=str(path)) == pytest.approx(loss, rel=1e-6)
    assert [type(module.net[i]) for i in (0, 2)] == [RelaxedLayer, RelaxedLayer]
    assert "on_load_checkpoint" not in module.__dict__


@NO_SAVING
def test_a_checkpoint_with_a_layer_below_the_threshold(tmp_path: Path) -> None:
    levels = thetas(kept()[1])
    settings = {"finalize": "keep", "gain": 0.05, "threshold": sum(levels) / 2}
    strategy, save = make_recm(**settings), ModelCheckpoint(tmp_path, filename="saved")
    run = trainer(strategy, save, max_epochs=2, enable_checkpointing=True)
    run.fit(Scored(), loader(), loader(batch_size=22))
    assert sorted(v["strict"] for v in strategy.report) == [False, True]
    loss, path, module = float(run.callback_metrics["val_loss"]), tmp_path / "saved.ckpt", Scored()
    assert score(module, make_recm(**settings), ckpt_path=str(path)) == pytest.approx(loss, rel=1e-6)
    module = Scored()
    make_recm(**settings).restore(module, torch.load(path, weights_only=False))
    assert error_of(module.net) == pytest.approx(loss, rel=1e-6)


def test_a_checkpoint_is_restored_without_a_trainer(trained: Any) -> None:
    _, _, path, loss = trained
    module = Scored()
    make_recm(finalize="keep", gain=0.05).restore(module, torch.load(path, weights_only=False))
    assert [type(module.net[i]) for i in (0, 2)] == [RelaxedLayer, RelaxedLayer]
    assert error_of(module.net) == pytest.approx(loss, rel=1e-6)
    assert score(module) == pytest.approx(loss, rel=1e-6)


def test_a_checkpoint_without_our_state_is_not_restored(tmp_path: Path) -> None:
    module = Plain()
    before = snapshot(module)
    with pytest.raises(ValueError, match="expected a checkpoint with the state of RECM"):
        make_recm().restore(module, {"state_dict": Plain().state_dict(), "callbacks": {"other": {}}})
    assert snapshot(module) == before


# ---- gain, logs, report ---------------------------------------------------------------------------------------------


def ones(critic: LipschitzCritic, *_: Any) -> Tensor:
    """An s that is 1 everywhere, whatever u says: h_0 = 0 gives b = (h' - h) / (1 - h)."""
    return torch.ones(len(critic.w))


def test_the_gain_is_constant_and_then_falls_to_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrence, "violation", ones)
    strategy, seen = make_recm(start="equivariant", gain=0.25), [0.0]
    trainer(strategy, EachStep(lambda _: seen.append(float(states(strategy)["net.0"][0]))), max_epochs=2).fit(
        Plain(), loader()
    )
    gains = [(after - h) / (1 - h) for h, after in itertools.pairwise(seen)]
    expected = [0.25 * (1.0 if k <= 6 else (12 - k) / 6) for k in range(12)]
    assert gains == pytest.approx(expected, abs=1e-4)


def test_the_state_moves_once_an_optimizer_step() -> None:
    """Two batches are accumulated; the gain is that of optimizer steps."""
    strategy, seen = make_recm(), []
    look = EachStep(lambda run: seen.append((run.global_step, states(strategy)["net.0"])))
    trainer(strategy, look, accumulate_grad_batches=2).fit(Plain(), loader())
    steps = [step for step, _ in seen]
    assert steps == [0, 1, 1, 2, 2, 3]
    for (step, h), (next_step, next_h) in itertools.pairwise(seen):
        assert torch.equal(h, next_h) == (step == next_step)


def test_logs_and_the_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrence, "violation", ones)
    strategy, logger = make_recm(threshold=10.0, name="mine"), CSVLogger(tmp_path)
    run = trainer(strategy, logger=logger)
    run.fit(Plain(), loader())
    for layer in LAYERS:
        assert float(run.callback_metrics[f"mine/violation/{layer}"]) == pytest.approx(math.sqrt(3))
        logged, ended = float(run.callback_metrics[f"mine/theta/{layer}"]), strategy.branches[0].theta
        assert 0 < abs(logged) <= math.sqrt(3) + 1e-6
        assert abs(float(ended)) <= math.sqrt(3) + 1e-6
    assert [v["layer"] for v in strategy.report] == list(LAYERS)
    assert all(v["strict"] for v in strategy.report)
    for v, r in zip(strategy.report, strategy.recurrences.values(), strict=True):
        w = r.critic.w.detach()
        assert v["theta"] == pytest.approx(float(w @ r.h / w.norm()), rel=1e-5)
    assert json.loads((Path(logger.log_dir) / "mine_report.json").read_text()) == strategy.report


# ---- other kinds of layers -------------------------------------------------------------------------------------------


class VNLinear(nn.Module):
    """Vector neurons (batch, channels, 3, points)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.weight = nn.Parameter(normal(out_channels, in_channels).float())

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("oc,bc...->bo...", self.weight, x)


def regular(g: GroupElement, x: Tensor) -> Tensor:
    """(B, 4 C, H, W) of C4: the grid turns, the orientations move on."""
    orientations = x.unflatten(1, (-1, 4))
    index = (torch.arange(4)[None] - g.coordinates[0][:, None]) % 4
    turned = Image()(g, orientations)
    return turned.gather(2, index[:, None, :, None, None].expand(turned.shape)).flatten(1, 2)


POINTS = Symmetry("SO(3)", inputs=IrrepsTensor("1o", dim=2), outputs="1o", batch=("1o", "1o"))
IMAGES = Symmetry("C4", inputs=Image(), outputs=Invariant(), batch=(Image(), Invariant()))
KINDS: dict[str, Any] = {
    "linear": (
        lambda: nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 3)), SYMMETRY, {"net.0": ("1o", "8x0e")}, (5, 3), (5, 3)
    ),
    "vector neurons": (lambda: nn.Sequential(VNLinear(2, 4), VNLinear(4, 1)), POINTS, VNLinear, (5, 2, 3, 6), (5, 3)),
    "vector neurons, points": (
        lambda: nn.Sequential(VNLinear(2, 4), VNLinear(4, 1)), POINTS, VNLinear, (5, 2, 3, 6), (5, 6, 3)
    ),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        IMAGES, {"net.0": (regular, regular)}, (5, 4, 6, 6), (5,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("branch", ["linear", "mlp"])
@pytest.mark.parametrize("target", [1, None])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer_learns_its_level(kind: str, target: Any, branch: Any) -> None:
    make, symmetry, layers, x_shape, y_shape = KINDS[kind]
    torch.manual_seed(0)
    module = Plain(make())
    x, y = normal(*x_shape).float(), normal(*y_shape, seed=1).float()

    def step(batch: Any, batch_idx: int) -> Tensor:
        out = module.net(batch[0])
        out = out.mean(-1)[:, 0] if "vector" in kind else out
        return mse(out, batch[1] if batch[1].shape == out.shape else out.detach() + 1)

    module.training_step = step  # type: ignore[method-assign]
    module.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    strategy = RECM(symmetry, layers, target=target, branch=branch)
    strategy.attach(module)
    module.training_step((x, y), 0).backward()
    for b, r in zip(strategy.branches, strategy.recurrences.values(), strict=True):
        assert torch.isfinite(b.theta)
        assert float(b.theta) != 1
        assert 0 < r.pending[0][0].norm() <= 2
        for p in (*b.network.parameters(), *r.critic.parameters()):
            assert p.grad is not None
            assert p.grad.abs().max() > 0
    strategy.detach()


class Casts(Plain):
    """Compares with targets of any type: labels by cross entropy, numbers by their squares."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        out = self.net(x)
        return mse(out, y.to(out)) if y.is_floating_point() else nn.functional.cross_entropy(out, y.long())


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_labels_of_any_type_beside_features_of_any(dtype: torch.dtype, precision: Any) -> None:
    symmetry = Symmetry("SO(3)", inputs="1o", outputs=Invariant(), batch=("1o", Invariant()))
    layers = {"net.0": LAYERS["net.0"]}
    strategy = RECM(symmetry, layers, "net", target=1, gain=0.1)
    data = [(x, torch.arange(len(x)).remainder(2).to(dtype)) for x, _ in loader()]
    trainer(strategy, precision=precision).fit(Casts(), batches(data))
    assert 0.1 < thetas(strategy)[0] < 0.99


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float64, torch.float32)])
@pytest.mark.parametrize("target", ["1o", Invariant(), "Point()"])
def test_targets_of_another_precision(target: Any, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """The level is that of targets of the same precision."""
    symmetry = Symmetry("SO(3)", inputs="1o", outputs="1o", batch=("1o", target))
    levels = []
    for y_dtype in dtypes:
        strategy = RECM(symmetry, LAYERS, target=1, gain=0.1)
        data = [(x.to(dtypes[0]), y.to(y_dtype)) for x, y in loader()]
        trainer(strategy).fit(Casts().to(dtypes[0]), batches(data))
        levels.append([v["theta"] for v in strategy.report])
    assert levels[1] == pytest.approx(levels[0], rel=1e-3)


# ---- beside other strategies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("remul_first", [True, False])
def test_together_with_remul_in_either_order(remul_first: bool) -> None:
    """The state is what the user's own call makes of it: what REMUL calls the network with has other targets."""
    module, strategy = Plain(), make_recm(start="equivariant")
    seen, alone = [], []
    pair = [REMUL(SYMMETRY, "net", target=1), strategy]
    trainer(*(pair if remul_first else reversed(pair)), EachStep(lambda _: seen.append(states(strategy)["net.0"]))).fit(
        module, loader()
    )
    assert "training_step" not in module.__dict__
    assert torch.isfinite(weights(module)).all()
    lonely = make_recm(start="equivariant")
    trainer(lonely, EachStep(lambda _: alone.append(states(lonely)["net.0"]))).fit(Plain(), loader())
    torch.testing.assert_close(seen[0], alone[0])


def test_two_of_them_on_different_layers() -> None:
    def make(i: int) -> RECM:
        layer = f"net.{i}"
        return RECM(SYMMETRY, {layer: LAYERS[layer]}, "net", target=1, gain=0.4, name=f"recm_{i}")

    module, first, second = Plain(), make(0), make(2)
    run = trainer(first, second)
    run.fit(module, loader())
    assert {"recm_0/theta/net.0", "recm_2/theta/net.2"} <= set(run.callback_metrics)
    assert [v["layer"] for s in (first, second) for v in s.report] == ["net.0", "net.2"]
    assert [type(module.net[i]) for i in (0, 2)] == [RelaxedLayer, RelaxedLayer]
    assert torch.isfinite(module.net(loader().dataset.x)).all()


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gain": 0}, "gain to be a finite number above 0 and below 1, got 0"),
        ({"gain": 1}, "gain to be .* above 0 and below 1, got 1"),
        ({"gain": -1}, "gain to be .* above 0 and below 1, got -1"),
        ({"gain": float("nan")}, "gain to be .* above 0 and below 1, got nan"),
        ({"start": "strict"}, "start='strict'"),
        ({"finalize": "freeze"}, "finalize='freeze'"),
        ({"num_samples": 0}, "num_samples to be a whole number of at least 1, got 0"),
        ({"max_rows": 0}, "max_rows to be a whole number of at least 1, got 0"),
        ({"state_dim": 0}, "state_dim to be a whole number of at least 1, got 0"),
        ({"threshold": -0.1}, "threshold to be a finite number of at least 0"),
        ({"branch": "conv"}, "branch to be"),
        ({"evaluate": "strict"}, "evaluate to be"),
        ({"target": "y"}, "target='y' is not declared"),
        ({"target": 2}, "target=2 is not declared"),
    ],
)
def test_settings_that_mean_nothing(changes: dict[str, Any], message: str) -> None:
    symmetry = Symmetry("SO(3)", inputs=("1o",), outputs={"out": "1o"}, batch=("1o", "1o"))
    with pytest.raises(ValueError, match=message):
        RECM(symmetry, LAYERS, "net", **{"target": 1, **changes})


@pytest.mark.parametrize("group", ["SE(3)", "E(3)"])
def test_a_group_that_is_not_compact(group: str) -> None:
    with pytest.raises(ValueError, match="centre the data and take the rotations"):
        RECM(group, LAYERS)


@pytest.mark.parametrize(
    ("group", "target"),
    [("C4", Image()), ("C4", lambda g, y: y), ("S3", "Permuted(1)")],
)
def test_a_target_whose_size_cannot_be_known(group: str, target: Representation) -> None:
    symmetry = Symmetry(group, inputs=Invariant(), outputs=Invariant(), batch=(Invariant(), target))
    with pytest.raises(ValueError, match="expected a target moved as irreps"):
        RECM(symmetry, LAYERS, target=1)


def test_a_target_of_a_group_alone() -> None:
    with pytest.raises(ValueError, match="target=1 is not declared"):
        RECM("SO(3)", LAYERS, target=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": "net.[02]"}, r"'net.0' \(Linear\) does not say how SO\(3\) moves"),
        ({"layers": "nets.*"}, "matches no layer"),
        ({"target": lambda batch: "words"}, "expected a tensor"),
    ],
)
def test_what_the_module_or_its_batches_lack(changes: Mapping[str, Any], message: str) -> None:
    module = Plain()
    before = snapshot(module)
    with pytest.raises(ValueError, match=message):
        trainer(RECM(SYMMETRY, **{"layers": LAYERS, "target": 1, **changes})).fit(module, loader())
    assert snapshot(module) == before
    assert torch.equal(weights(module), weights(Plain()))


def test_an_endless_run() -> None:
    module = Plain()
    before = snapshot(module)
    with pytest.raises(ValueError, match="set max_epochs or max_steps, or say horizon="):
        trainer(make_recm(), max_epochs=-1, max_steps=-1).fit(module, loader())
    assert snapshot(module) == before
    assert torch.equal(weights(module), weights(Plain()))


def test_a_layer_that_is_relaxed_already() -> None:
    module, _, _ = kept()
    before = snapshot(module)
    with pytest.raises(ValueError, match="is relaxed already"):
        trainer(make_recm()).fit(module, loader())
    assert snapshot(module) == before


def test_one_bad_batch_does_not_stay_in_the_state() -> None:
    """A batch of NaN, whose loss the user replaces: the state goes on from before."""

    class Guarded(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx not in (0, 2):
                return super().training_step(batch, batch_idx)
            self.net(batch[0] * float("nan"))
            return torch.stack([p.square().sum() for p in self.net.parameters()]).sum()

    recm, states = make_recm(), []

    class Remember(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            states.append([r.h.clone() for r in recm.recurrences.values()])

    trainer(recm, Remember()).fit(Guarded(), loader())
    assert all(torch.isfinite(h).all() for hs in states for h in hs)
    assert torch.equal(states[2][0], states[1][0])
    assert not torch.equal(states[3][0], states[2][0])


# ---- after a fit, and without a Trainer ------------------------------------------------------------------------------
def test_a_checkpoint_that_is_saved_after_a_fit(tmp_path: Path) -> None:
    module, strategy = Plain(), make_recm(finalize="keep", gain=0.05)
    run, path = trainer(strategy, max_epochs=2), tmp_path / "after.ckpt"
    run.fit(module, loader())
    assert type(module.net[0]) is RelaxedLayer
    run.save_checkpoint(path)
    expected = error_of(module.net)
    for again in (Plain(), module):  # a fresh module, and the one that was trained
        (strategy if again is module else make_recm(finalize="keep", gain=0.05)).restore(again, torch.load(path))
        assert type(again.net[0]) is RelaxedLayer
        assert error_of(again.net) == pytest.approx(expected, rel=1e-5)
    other = Plain()
    trainer(make_recm(finalize="keep", gain=0.05)).validate(other, loader(batch_size=22), ckpt_path=path, verbose=False)
    assert error_of(other.net) == pytest.approx(expected, rel=1e-5)
    on = Plain()
    trainer(make_recm(finalize="keep", gain=0.05), max_epochs=3).fit(on, loader(), ckpt_path=path)
    assert not torch.equal(weights(on), weights(other))
    assert type(on.net[0]) is RelaxedLayer


def test_a_loop_without_a_trainer_keeps_what_was_learned() -> None:
    module, strategy = Plain(), make_recm(finalize="keep")
    strategy.attach(module)
    optimizer, x = module.configure_optimizers(), loader().dataset.x
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    for step, batch in enumerate(loader()):
        strategy.update(step, 6)
        optimizer.zero_grad()
        module.training_step(batch, step).backward()
        optimizer.step()
    strategy.finish(module)
    assert [v["strict"] for v in strategy.report] == [False, False]
    assert type(module.net[0]) is type(module.net[2]) is RelaxedLayer
    strict = make_net()
    strict.load_state_dict(without_branches(module.net.state_dict()))
    assert (module.net(x) - strict(x)).abs().max() > 1e-3
    strategy.detach()  # nothing more
    run = Plain()
    trainer(make_recm(finalize="keep")).fit(run, loader())
    torch.testing.assert_close(module.net(x), run.net(x), rtol=1e-4, atol=1e-5)
