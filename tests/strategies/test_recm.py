"""RECM by itself: its levels against the law of the data, evaluation, logs, kinds of layers, and what it refuses."""

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

from lightning_equiv import (
    RECM,
    REMUL,
    GroupAugmentation,
    GroupElement,
    Image,
    Invariant,
    IrrepsTensor,
    Symmetry,
)
from lightning_equiv.layers.relaxed_layer import RelaxedLayer
from lightning_equiv.strategies.recm import recurrence
from lightning_equiv.strategies.recm.critic import (
    LipschitzCritic,
)
from tests.helpers import normal
from tests.strategies.gated import Regression, law
from tests.strategies.recm_by_hand import make_recm, states, thetas
from tests.strategies.relaxed_by_hand import LAYERS
from tests.strategies.toys import (
    SYMMETRY,
    EachStep,
    Plain,
    batches,
    loader,
    trainer,
    weights,
)

mse = nn.functional.mse_loss


# ---- theta and the law of the data -----------------------------------------------------------------------------------
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
        ended = strategy.state_dict()["layers"][name]
        assert torch.equal(h, ended["h"])
        assert torch.equal(squares, ended["squares"])
        assert not torch.equal(h, again.state_dict()["layers"][name]["h"]), "and goes on from there"


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


def test_logs_and_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrence, "violation", ones)
    strategy, logger = make_recm(threshold=10.0, name="mine"), CSVLogger(tmp_path)
    run = trainer(strategy, logger=logger)
    run.fit(Plain(), loader())
    for layer in LAYERS:
        assert float(run.callback_metrics[f"mine/violation/{layer}"]) == pytest.approx(math.sqrt(3))
        assert 0 < abs(float(run.callback_metrics[f"mine/theta/{layer}"])) <= math.sqrt(3) + 1e-6
    assert [v["layer"] for v in strategy.report] == list(LAYERS)
    assert all(v["strict"] for v in strategy.report)
    state = strategy.state_dict()
    for v in strategy.report:
        w, h = state["branches"][f"{v['layer'].replace('.', '-')}-critic.w"], state["layers"][v["layer"]]["h"]
        assert v["theta"] == pytest.approx(float(w.to(h) @ h / w.norm()), rel=1e-5)
        assert abs(v["theta"]) <= math.sqrt(3) + 1e-6
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
