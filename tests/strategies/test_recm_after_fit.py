"""What RECM leaves behind: relaxed layers that are ordinary modules, and checkpoints that are tested later."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_equiv import (
    RECM,
    Image,
    Invariant,
    IrrepsTensor,
    Symmetry,
)
from lightning_equiv.layers.relaxed_layer import RelaxedLayer
from lightning_equiv.representations.representation import Representation
from lightning_equiv.strategies.kept_layers import without_branches
from tests.helpers import global_seed, normal
from tests.strategies.recm_by_hand import make_recm, thetas
from tests.strategies.relaxed_by_hand import LAYERS
from tests.strategies.toys import (
    SYMMETRY,
    EachStep,
    Plain,
    batches,
    error_of,
    loader,
    make_net,
    snapshot,
    trainer,
    weights,
)

mse = nn.functional.mse_loss


class Scored(Plain):
    """With a test that measures what validation measures."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", mse(self.net(batch[0]), batch[1]))


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
    strict.load_state_dict(without_branches(module.net.state_dict(), ["0", "2"]))
    assert (module.net(x) - strict(x)).abs().max() > 1e-3
    strategy.detach()  # nothing more
    run = Plain()
    trainer(make_recm(finalize="keep")).fit(run, loader())
    torch.testing.assert_close(module.net(x), run.net(x), rtol=1e-4, atol=1e-5)


class Confusable(nn.Module):
    """A user's module whose keys look like those of a relaxed layer."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(0.5))
        self.layer, self.branch = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.theta * self.branch(x)


@pytest.mark.parametrize("after_fit", [False, True])
def test_keys_that_look_like_those_of_a_relaxed_layer_are_the_users(after_fit: bool, tmp_path: Path) -> None:
    def make() -> Plain:
        with global_seed(0):
            return Plain(nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 3), Confusable()))

    class Look(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append(weights(pl_module.net[3]))

    def fit(epochs: int, path: str | None = None) -> tuple[L.Trainer, Plain]:
        module, save = make(), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        run = trainer(make_recm(finalize="keep"), save, Look(), max_epochs=epochs, enable_checkpointing=True)
        run.fit(module, loader(), ckpt_path=path)
        return run, module

    seen: list[Tensor] = []
    run, module = fit(2)
    assert type(module.net[0]) is RelaxedLayer
    if after_fit:
        run.save_checkpoint(tmp_path / "after.ckpt")
        fit(3, str(tmp_path / "after.ckpt"))
        assert torch.equal(seen[1], weights(module.net[3]))
    else:
        _, resumed = fit(2, str(tmp_path / "epoch=0.ckpt"))
        assert torch.equal(weights(resumed), weights(module))
    assert not torch.equal(seen[1], seen[0])
