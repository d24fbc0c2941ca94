"""RPP by itself: closed forms of its priors, shares, what it leaves, and what it refuses."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from lightning_equiv import RPP, RelaxedLayer
from lightning_equiv.strategies.rpp.shares import WINDOW, Shares
from lightning_equiv.wiring.weight_decay import without_weight_decay
from tests.strategies.relaxed_by_hand import LAYERS
from tests.strategies.rpp_by_hand import EQUIVARIANT, FREE, RppByHand, make_rpp
from tests.strategies.toys import EachStep, Plain, error_of, loader, trainer, weights

mse = nn.functional.mse_loss
VECTORS = {"net.0": ("1o", "1o")}


# ---- a quadratic task: y = c x + M x, M traceless --------------------------------------------------------------------
class Scale(nn.Module):
    """All linear maps of one vector that SO(3) allows."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.c * x


C = 1.5
M = torch.tensor([[0.2, 0.7, -0.3], [0.1, 0.4, 0.5], [-0.8, 0.6, -0.6]], dtype=torch.float64)
X = math.sqrt(3) * torch.eye(3, dtype=torch.float64)  # of second moment 1
H = 2 / 3  # curvature of the mean squared error in each entry of a matrix


def quadratic(strategy: RPP, push: float) -> Plain:
    """Trained to convergence, without a Trainer."""
    module = Plain(nn.Sequential(Scale()), lr=1 / (3 * H + strategy.free_weight + strategy.equivariant_weight))
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    strategy.attach(module)
    optimizer, batch = module.configure_optimizers(), (X, X @ (C * torch.eye(3) + push * M).T)
    for _ in range(250):
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()
    strategy.finish(module)
    return module


@pytest.mark.parametrize(("a", "b"), [(0.3, 0.0), (5.0, 0.0), (0.3, 0.2), (2.0, 1.0)])
def test_the_priors_are_ridges(a: float, b: float) -> None:
    module = quadratic(RPP("SO(3)", VECTORS, free_weight=a, equivariant_weight=b), push=1.0)
    layer: Any = module.net[0]
    c = C / (1 + b / (3 * a) + b / (3 * H))  # of the identity, both take a part
    n = b * c / (3 * a)
    assert layer.layer.c.item() == pytest.approx(c, abs=1e-8)
    torch.testing.assert_close(layer.branch.weight.detach(), M / (1 + a / H) + n * torch.eye(3).double())
    torch.testing.assert_close(layer(X).detach(), c * X + X @ layer.branch.weight.detach().T)


def test_a_branch_that_does_not_pay_is_dropped_and_one_that_does_stays() -> None:
    symmetric, pushed = (RPP("SO(3)", VECTORS) for _ in range(2))
    assert isinstance(quadratic(symmetric, push=0.0).net[0], Scale)
    assert isinstance(quadratic(pushed, push=1.0).net[0], RelaxedLayer)
    assert symmetric.report[0]["strict"]
    n, f = M / (1 + 1 / H), C * torch.eye(3)
    [row] = pushed.report
    assert row == {"layer": "net.0", "share": pytest.approx(float(n.norm() / f.norm()), rel=1e-6), "strict": False}
    assert isinstance(quadratic(RPP("SO(3)", VECTORS, threshold=0.0), push=0.0).net[0], RelaxedLayer)
    assert isinstance(quadratic(RPP("SO(3)", VECTORS, finalize="drop"), push=1.0).net[0], Scale)


def test_a_branch_begins_small() -> None:
    strategy = RPP("SO(3)", LAYERS)
    strategy.attach(Plain())
    for b, size in zip(strategy.branches, (3, 16), strict=True):
        x = torch.randn(4000, size, generator=torch.Generator().manual_seed(0))
        assert float(b.network(x).detach().std()) == pytest.approx(1e-3, rel=0.5)
        assert b.active
        assert float(b.theta) == 1.0
    strategy.detach()


# ---- the user's weight decay -----------------------------------------------------------------------------------------
OPTIMIZERS = {
    "sgd": lambda p, **k: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.5, **k),
    "adam": lambda p, **k: torch.optim.Adam(p, lr=0.01, weight_decay=0.5, **k),
    "adamw": lambda p, **k: torch.optim.AdamW(p, lr=0.01, weight_decay=0.5, **k),
}


def configured(module: Plain, make: Any, *apart: nn.Parameter) -> Plain:
    """The module with an optimizer, a schedule, and parameters apart from the weight decay."""

    def configure_optimizers() -> Any:
        theirs = [p for p in module.parameters() if not any(p is q for q in apart)]
        groups = [{"params": theirs}, {"params": [*apart], "weight_decay": 0.0}] if apart else theirs
        optimizer = make(groups)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    module.configure_optimizers = configure_optimizers  # type: ignore[method-assign]
    return module


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_users_weight_decay_leaves_the_branches_alone(make: Any, tmp_path: Path) -> None:
    """As with the branches in a group without weight decay; the user's groups are as they were."""
    strategy, seen = make_rpp(), []
    save = ModelCheckpoint(tmp_path, filename="saved")
    look = EachStep(lambda run: seen.append([len(g["params"]) for g in run.optimizers[0].param_groups]))
    module, twin = configured(Plain(), make), RppByHand()
    trainer(strategy, look, save, max_epochs=3, enable_checkpointing=True).fit(module, loader())
    configured(twin, make, twin.W, twin.V)
    trainer(max_epochs=3).fit(twin, loader())
    torch.testing.assert_close(weights(module.net), weights(twin.net))
    ours = strategy.state_dict()["branches"]
    torch.testing.assert_close([*ours.values()], [twin.W.detach(), twin.V.detach()])
    assert seen == [[6]] * len(seen)
    [saved] = torch.load(tmp_path / "saved.ckpt", weights_only=True)["optimizer_states"]
    assert [(len(group["params"]), group["weight_decay"]) for group in saved["param_groups"]] == [(6, 0.5)]


def test_two_free_pathways_and_the_users_weight_decay() -> None:
    """In either order of attaching and detaching; afterwards everything decays."""
    module, pair = Plain(), [make_rpp(free_weight=0.0, name=f"{i}", seed=i) for i in range(2)]
    for strategy in pair:
        strategy.attach(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0, weight_decay=0.1)
    groups = [[*map(id, g["params"])] for g in optimizer.param_groups]
    branches = [weights(b.network) for strategy in pair for b in strategy.branches]
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    before = weights(module.net)
    optimizer.step()
    assert [[*map(id, g["params"])] for g in optimizer.param_groups] == groups
    torch.testing.assert_close(weights(module.net), 0.9 * before)
    after = [weights(b.network) for strategy in pair for b in strategy.branches]
    assert all(map(torch.equal, branches, after))
    left = pair[1].branches[0].network.weight
    pair[0].detach()
    optimizer.step()
    assert torch.equal(weights(pair[1].branches[0].network), branches[2])
    pair[1].detach()
    optimizer.step()
    torch.testing.assert_close(left.detach().double().flatten(), 0.9 * branches[2])


@pytest.mark.parametrize("alone", [False, True], ids=["among others", "in a group of their own"])
def test_groups_after_a_step_that_failed(alone: bool) -> None:
    p, ours = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [p]}, {"params": [ours]}] if alone else [ours, p], lr=1.0, weight_decay=0.1)
    before = [(g, [*g["params"]], g["weight_decay"]) for g in optimizer.param_groups]

    def fails() -> Tensor:
        raise ValueError("a closure")

    def same() -> bool:
        pairs = zip(optimizer.param_groups, before, strict=True)
        return all(
            g is was and [*map(id, g["params"])] == [*map(id, of)] and g["weight_decay"] == decay
            for g, (was, of, decay) in pairs
        )

    restore = without_weight_decay([ours])
    for q in (p, ours):
        q.grad = torch.zeros(2)
    with pytest.raises(ValueError, match="a closure"):
        optimizer.step(fails)
    optimizer.step()
    assert same()
    assert p.tolist() == pytest.approx([0.9, 0.9])
    assert ours.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="a closure"):
        optimizer.step(fails)
    restore()
    assert same()
    optimizer.step()
    assert ours.tolist() == pytest.approx([0.9, 0.9]), "it decays again"


# ---- shares ----------------------------------------------------------------------------------------------------------
def test_the_share_of_a_batch_is_that_of_a_slow_loop() -> None:
    """A layer called twice in a step, and one that does not run."""
    module, strategy = Plain(), make_rpp(branch="mlp")
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    strategy.attach(module)
    x, y = next(iter(loader()))
    module.task = lambda net, x, y: (net[0](x) + net[0](2 * x)).square().mean()  # type: ignore[method-assign,assignment]
    with torch.no_grad(), strategy.projected():
        n = [strategy.branches[0].network(row[None]) for rows in (x, 2 * x) for row in rows]
        f = [module.net[0](row[None]) for rows in (x, 2 * x) for row in rows]
    module.training_step((x, y), 0)
    expected = math.sqrt(sum(float(v.square().sum()) for v in n) / sum(float(v.square().sum()) for v in f))
    first, second = strategy.state_dict()["layers"].values()
    assert first["shares"].tolist() == pytest.approx([expected], rel=1e-5)
    assert second["shares"].tolist() == [0.0]
    with pytest.warns(UserWarning, match=r"never ran while training: \['net.2'\]"):
        strategy.detach()


def test_only_the_last_batches_count() -> None:
    shares, again = Shares(2), Shares(2)
    assert shares.largest() is None
    for i in range(WINDOW + 1):
        shares.observe(0)(torch.tensor([5.0 if i == 0 else 1.0]), torch.tensor([2.0]))
        shares.observe(1)(torch.tensor([math.nan if i == 7 else 0.1]), torch.tensor([1.0]))
        shares.end(torch.zeros(()))
        if i == WINDOW - 1:
            assert shares.largest()[0] == 2.5
    again.load([shares.state(0), shares.state(1)], "cpu")
    for each in (shares, again):
        largest = each.largest()
        assert largest[0] == 0.5
        assert math.isnan(largest[1]), "what is no number is not under a threshold"
    again.load([torch.zeros(0)] * 2, "cpu")
    assert again.largest() is None


class SavesReport(L.Callback):
    def __init__(self, strategy: RPP, folder: Path) -> None:
        self.strategy, self.folder = strategy, folder

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        own = {name: own["shares"].max() for name, own in self.strategy.own_state()["layers"].items()}
        torch.save((self.strategy.report, own), self.folder / f"{trainer.global_rank}.pt")


@pytest.mark.slow
def test_two_processes_agree_on_what_stays(tmp_path: Path) -> None:
    from lightning.pytorch.strategies import DDPStrategy

    strategy = make_rpp()
    ddp = DDPStrategy(start_method="fork", process_group_backend="gloo")
    run = trainer(strategy, SavesReport(strategy, tmp_path), strategy=ddp, devices=2)
    run.fit(Plain(), loader())
    (one, own), (other, others) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert one == other
    assert own != others
    for row in one:
        assert row["share"] == max(own[row["layer"]], others[row["layer"]])


# ---- logs, evaluation, checkpoints -----------------------------------------------------------------------------------
def test_logs_and_the_report(tmp_path: Path) -> None:
    module, strategy, logger, seen = Plain(), make_rpp(name="mine"), CSVLogger(tmp_path), []

    def look(run: L.Trainer) -> None:
        norms = [torch.cat([weights(b.network) for b in strategy.branches]).norm(), weights(module.net).norm()]
        seen.append((norms, dict(run.callback_metrics)))

    trainer(strategy, EachStep(look), logger=logger).fit(module, loader())
    for ((free, own), _), (_, logged) in itertools.pairwise(seen):  # logged is what the weights were before the step
        assert float(logged["mine/free_norm"]) == pytest.approx(float(free))
        penalty = FREE / 2 * free**2 + EQUIVARIANT / 2 * own**2
        assert float(logged["mine/penalty"]) == pytest.approx(float(penalty))
    assert strategy.report == sorted(strategy.report, key=lambda row: -row["share"])
    assert {row["layer"] for row in strategy.report} == set(LAYERS)
    assert json.loads((Path(logger.log_dir) / "mine_report.json").read_text()) == strategy.report


@pytest.mark.parametrize("finalize", ["keep", "drop"])
def test_validation_sees_what_is_deployed(finalize: Any, tmp_path: Path) -> None:
    """The second layer's branch is under the threshold: the middle of the two shares."""
    settings: dict[str, Any] = {"finalize": finalize, "init_scale": 0.5, "equivariant_weight": 0.0, "seed": 3}
    probe = make_rpp(**settings)
    trainer(probe, max_epochs=2).fit(Plain(), loader())
    high, low = (row["share"] for row in probe.report)
    settings["threshold"] = (high + low) / 2
    strategy, save, module = make_rpp(**settings), ModelCheckpoint(tmp_path, filename="saved"), Plain()
    run = trainer(strategy, save, enable_checkpointing=True, max_epochs=2)
    run.fit(module, loader(), loader(batch_size=22))
    validated = float(run.callback_metrics["val_loss"])
    assert [row["strict"] for row in strategy.report] == [False, True]
    assert sum(isinstance(layer, RelaxedLayer) for layer in module.net) == (finalize == "keep")
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    strict, again = Plain(), Plain()
    strict.load_state_dict(saved["state_dict"])
    assert (error_of(strict.net) == pytest.approx(validated)) == (finalize == "drop")
    [tested] = trainer(make_rpp(**settings), ModelCheckpoint(tmp_path), enable_checkpointing=True).validate(
        Plain(), loader(batch_size=22), ckpt_path=str(tmp_path / "saved.ckpt"), verbose=False
    )
    assert tested["val_loss"] == pytest.approx(validated)
    assert error_of(module.net) == pytest.approx(validated), "and what is left after fit"
    make_rpp(**settings).restore(again, saved)
    assert error_of(again.net) == pytest.approx(validated)
    assert torch.equal(weights(again), weights(module))


def test_shares_go_on_after_resuming(tmp_path: Path) -> None:
    def fit(**settings: Any) -> list[dict[str, Any]]:
        strategy, save = make_rpp(), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        trainer(strategy, save, max_epochs=3, enable_checkpointing=True).fit(Plain(), loader(), **settings)
        shares = [own["shares"] for own in strategy.state_dict()["layers"].values()]
        assert [len(each) for each in shares] == [18, 18]
        return [*strategy.report, *(each.tolist() for each in shares)]

    assert fit() == fit(ckpt_path=str(tmp_path / "epoch=1.ckpt"))


def test_a_loop_without_a_trainer_leaves_relaxed_layers() -> None:
    module, strategy = Plain(), make_rpp(finalize="keep")
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    strategy.attach(module)
    optimizer = module.configure_optimizers()
    for step, batch in enumerate(loader()):
        strategy.update(step, len(loader()))
        optimizer.zero_grad()
        module.training_step(batch, step).backward()
        optimizer.step()
    strategy.finish(module)
    run, other = make_rpp(finalize="keep"), Plain()
    trainer(run).fit(other, loader())
    assert isinstance(module.net[0], RelaxedLayer)
    assert strategy.report == run.report
    torch.testing.assert_close(weights(module.net), weights(other.net))


def test_a_run_without_an_end_needs_no_horizon() -> None:
    strategy, stop = make_rpp(), EachStep(lambda run: setattr(run, "should_stop", True))
    trainer(strategy, stop, max_epochs=-1).fit(Plain(), loader())
    assert len(strategy.report) == 2


# ---- what is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"finalize": "auto"}, "finalize to be 'keep' or 'drop', got 'auto'"),
        ({"free_weight": -1.0}, "free_weight"),
        ({"equivariant_weight": float("nan")}, "equivariant_weight"),
        ({"threshold": -0.1}, "threshold"),
        ({"init_scale": -1.0}, "init_scale"),
        ({"branch": "deep"}, "'linear' or 'mlp', got 'deep'"),
        ({"evaluate": "strict"}, "evaluate to be .* got 'strict'"),
    ],
)
def test_bad_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RPP("SO(3)", LAYERS, **settings)


def test_layers_of_invariants_are_no_place_to_break_a_symmetry() -> None:
    with pytest.raises(ValueError, match=r"RPP: \['net.0'\] map invariants of SO\(3\) to invariants.*REMUL"):
        RPP("SO(3)", {"net.0": ("3x0e", "16x0e")}).attach(Plain())


def test_a_second_fit_goes_on_and_another_strategy_is_refused_what_is_relaxed() -> None:
    module, strategy = Plain(), make_rpp(finalize="keep", threshold=0.0)
    trainer(strategy).fit(module, loader())
    kept = module.net[0].branch.weight.detach().clone()
    with pytest.raises(ValueError, match="relaxed already: put its `layer` back"):
        make_rpp().attach(module)
    strategy.restore_module(module)
    strategy.attach(module)
    assert torch.equal(strategy.branches[0].network.weight, kept)
    strategy.detach()
