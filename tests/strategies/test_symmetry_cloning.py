"""SymmetryCloning by itself: what holds a clone, that its teacher stays outside, several fits, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_equiv import (
    REMUL,
    SymmetryCloning,
)
from tests.strategies.cloned_by_hand import SYMMETRY as TURNS
from tests.strategies.cloned_by_hand import Stretch, make_cloning
from tests.strategies.cloning_runs import (
    RING,
    Recording,
    cloning,
    error_of,
    made,
    mse,
    randn,
    refused,
    state_of,
    teach,
    unchanged,
    wide_net,
)
from tests.strategies.toys import SYMMETRY as TURNS_OF_BATCHES
from tests.strategies.toys import Plain, SavesPerRank, loader, make_net, snapshot, trainer, weights


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    Recording.seen.clear()


class Pulls(L.Callback):
    """The loss of each step beside mse + weight / 2 (1 - step / steps) |theta - clone|^2."""

    def __init__(self, weight: float, steps: int) -> None:
        self.weight, self.steps, self.losses, self.expected = weight, steps, [], []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.clone = weights(pl_module.net)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *_: Any) -> None:
        with torch.no_grad():
            task, squares = mse(pl_module.net(batch[0]), batch[1]), (weights(pl_module.net) - self.clone).square().sum()
        pull = self.weight / 2 * (1 - len(self.expected) / self.steps) * squares
        self.expected.append(float(task + pull))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))


# ---- modes -----------------------------------------------------------------------------------------------------------
def headed() -> Plain:
    """A student, and a head that is not part of it."""
    return made(lambda: Plain(nn.Sequential(make_net(), nn.Linear(3, 3))))


def test_retain_freezes_the_student_while_the_rest_trains() -> None:
    module, strategy = headed(), make_cloning(mode="retain", weight=None)
    strategy.network = "net.0"
    start = state_of(module)
    flags: list[bool] = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            flags.append(any(p.requires_grad for p in pl_module.net[0].parameters()))

    trainer(strategy, Look()).fit(module, loader())
    assert flags == [False] * 6
    for name, p in module.net[0].named_parameters():
        assert torch.equal(p, strategy.state_dict()["clone"][name])
        assert not torch.equal(p, start[f"net.0.{name}"])
    assert not torch.equal(module.net[1].weight, start["net.1.weight"])
    assert all(p.requires_grad for p in module.parameters())


def test_retain_gives_back_the_flags_that_it_found() -> None:
    module, strategy = headed(), cloning(Stretch(), "net.0", inputs=[(3,)], mode="retain")
    module.net[0][2].bias.requires_grad_(False)
    flags = [p.requires_grad for p in module.parameters()]
    trainer(strategy).fit(module, loader())
    assert [p.requires_grad for p in module.parameters()] == flags


def test_retain_with_nothing_else_to_train() -> None:
    refused(make_cloning(mode="retain", weight=None), Plain(), "mode='retain' freezes network='net', and nothing else")


def drift_of(**changes: Any) -> float:
    """|theta - clone| after two epochs."""
    module, strategy = Plain(), make_cloning(**changes)
    trainer(strategy, max_epochs=2).fit(module, loader())
    held = torch.cat([t.double().flatten() for t in strategy.state_dict()["clone"].values()])
    return float((weights(module.net) - held).norm())


def test_the_pull_keeps_the_student_near() -> None:
    free, near = drift_of(mode="break", weight=None), drift_of(mode="break", weight=1.0)
    nearer = drift_of(mode="retain", weight=20.0)
    assert free > 0.1
    assert near < 0.8 * free
    assert nearer < 0.2 * free
    assert drift_of(mode="break", weight=0.0) == free


def test_the_pull_in_closed_form() -> None:
    module, strategy = Plain(), make_cloning(weight=3.0)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    strategy.attach(module)
    strategy.teach(module)
    batch = next(iter(loader()))
    torch.testing.assert_close(module.training_step(batch, 0), mse(module.net(batch[0]), batch[1]))
    with torch.no_grad():
        for p in module.net.parameters():
            p.add_(0.1)
    loss, n = module.training_step(batch, 0), sum(p.numel() for p in module.net.parameters())
    torch.testing.assert_close(loss, mse(module.net(batch[0]), batch[1]) + 1.5 * n * 0.01)
    strategy.detach()


@pytest.mark.parametrize(("mode", "steps"), [("anneal", 12), ("break", float("inf")), ("retain", float("inf"))])
def test_the_pull_during_a_run(mode: Any, steps: float) -> None:
    """Constant, or falling linearly to 0 at the end of 12 steps."""
    pulls = Pulls(2.0, steps)
    trainer(make_cloning(mode=mode, weight=2.0), pulls, max_epochs=2).fit(Plain(), loader())
    assert len(pulls.losses) == 12
    assert pulls.losses == pytest.approx(pulls.expected, rel=1e-5)


def test_anneal_needs_to_know_how_long_the_run_is() -> None:
    module = Plain()
    before, start = snapshot(module), state_of(module)
    with pytest.raises(ValueError, match="set max_epochs or max_steps"):
        trainer(make_cloning(mode="anneal"), max_epochs=-1, max_steps=-1).fit(module, loader())
    unchanged(module, before, start)


# ---- the teacher stays outside ---------------------------------------------------------------------------------------
def test_the_teacher_is_nowhere_in_the_run(tmp_path: Path) -> None:
    teacher = Stretch()
    before = state_of(teacher)
    strategy, module = cloning(teacher, inputs=[(3,)], symmetry=TURNS), Plain()
    save = ModelCheckpoint(tmp_path, filename="saved")
    run = trainer(strategy, save, enable_checkpointing=True)
    found: list[nn.Module] = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            found.extend(m for m in pl_module.modules() if isinstance(m, Stretch))

    run.callbacks.append(Look())
    run.fit(module, loader())
    assert found == []
    held = [p for optimizer in run.optimizers for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in module.parameters()}
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    assert list(saved["state_dict"]) == list(Plain().state_dict())
    state = saved["callbacks"][strategy.state_key]
    assert set(state["clone"]) == dict(module.net.named_parameters()).keys()
    assert state["report"] == strategy.report
    assert not torch.equal(state["clone"]["0.weight"], saved["state_dict"]["net.0.weight"]), "trained on"
    assert strategy.teacher is teacher
    assert teacher.training
    assert all(p.requires_grad and p.grad is None and p.dtype == torch.float32 for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_student_in_double_precision_leaves_the_teacher_as_it_is() -> None:
    teacher, module = Stretch(), Plain()
    teach(cloning(teacher, inputs=[(3,)]), module.double())
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    assert {p.dtype for p in module.parameters()} == {torch.float64}


# ---- several fits ----------------------------------------------------------------------------------------------------
def test_a_second_fit_goes_on_and_another_module_is_taught() -> None:
    strategy, module = cloning(Recording(), inputs=[(3,)]), Plain()
    trainer(strategy).fit(module, loader())
    held, trained = strategy.state_dict()["clone"], weights(module)
    Recording.seen.clear()
    starts: list[Tensor] = []

    class Look(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            starts.append(weights(pl_module))

    trainer(strategy, Look()).fit(module, loader())
    assert Recording.seen == []
    assert torch.equal(starts[0], trained)
    assert all(torch.equal(value, held[name]) for name, value in strategy.state_dict()["clone"].items())
    other = Plain()
    trainer(strategy, Look()).fit(other, loader())
    assert len(Recording.seen) >= 50
    clone_of_other = torch.cat([t.double().flatten() for t in strategy.state_dict()["clone"].values()])
    assert torch.equal(starts[1], clone_of_other)


def test_a_student_that_could_not_be_taught_is_taught_the_next_time() -> None:
    """It does not pass for taught because another one was."""
    strategy = cloning(Stretch(), inputs=[(3,)], tolerance=0.5, steps=500, batch_size=64)
    trainer(strategy).fit(Plain(wide_net()), loader())
    poor = Plain(nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 3)))
    for _ in range(2):
        refused(strategy, poor, "raise `steps`", error=RuntimeError)


# ---- what is refused -------------------------------------------------------------------------------------------------
def test_a_teacher_that_is_not_equivariant() -> None:
    teacher = made(nn.Linear, 3, 3)
    message = refused(cloning(teacher, symmetry=TURNS, inputs=[(3,)]), Plain(), "Linear is not equivariant under")
    [measured] = re.findall(r"error is (\S+),", message)
    assert float(measured) == pytest.approx(error_of(teacher, randn(2000, 3), TURNS), rel=0.25)
    teach(cloning(teacher, symmetry=TURNS, inputs=[(3,)], max_teacher_error=2.0), Plain())


def test_a_tolerance_that_is_not_reached() -> None:
    strategy, module = cloning(Stretch(), inputs=[(3,)], tolerance=0.01, steps=20), Plain()
    message = refused(
        strategy, module, r"after 20 steps the clone's relative MSE is .*tolerance=0\.01", None, RuntimeError
    )
    assert "raise `steps`, the student's width or `tolerance`" in message
    [reached] = re.findall(r"relative MSE is (\S+) ", message)
    assert 2.5e-5 < float(reached) < 2
    assert strategy.state_dict() == {}
    assert all(p.grad is None for p in module.parameters())


def test_where_the_tolerance_ends() -> None:
    """At 2 sqrt(relative MSE): a little less is refused, a little more is not."""
    strategy = cloning(Stretch(), inputs=[(3,)], steps=50)
    teach(strategy, Plain())
    bound = 2 * strategy.report["clone_error"] ** 0.5
    refused(cloning(Stretch(), inputs=[(3,)], tolerance=0.95 * bound), Plain(), "after 50 steps", error=RuntimeError)
    teach(cloning(Stretch(), inputs=[(3,)], tolerance=1.05 * bound), Plain())


class GivesUp(Stretch):
    """Fails when the student has begun to learn."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 10:
            raise ValueError("the teacher's own")
        return super().forward(x)


def test_a_teacher_that_fails_half_way() -> None:
    module = Plain()
    refused(cloning(GivesUp(), inputs=[(3,)]), module, "the teacher's own")
    assert all(p.grad is None for p in module.parameters())


class Undefined(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.log()


def test_a_clone_that_is_not_a_number() -> None:
    refused(cloning(Undefined(), inputs=[(3,)]), Plain(), "relative MSE is nan", error=RuntimeError)


def test_a_student_that_is_not_there() -> None:
    refused(cloning(Stretch(), "nett", inputs=[(3,)]), Plain(), r"network='nett' names no sub-module .* \['net'")
    refused(cloning(Stretch(), "net.1", inputs=[(3,)]), Plain(), "network='net.1' has no parameters")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resample": "always"}, "resample to be one of 'step', 'epoch', 'never', got 'always'"),
        ({"mode": "keep"}, "mode to be one of 'retain', 'break', 'anneal', got 'keep'"),
        ({"tolerance": 0}, "tolerance to be a finite number above 0, got 0"),
        ({"tolerance": float("nan")}, "tolerance to be a finite number above 0, got nan"),
        ({"steps": 0}, "steps to be a whole number of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size to be a whole number of at least 1, got 0"),
        ({"weight": -1.0}, "weight to be a finite number of at least 0 or None, got -1"),
        ({"weight": float("nan")}, "weight to be a finite number of at least 0 or None, got nan"),
        ({"match": ["0"]}, r"match to be 'output' or .*, got \['0'\]"),
        ({"match": "outputs"}, "match to be 'output' or .*, got 'outputs'"),
        ({"inputs": None}, "say what Stretch is shown"),
        ({"inputs": []}, r"inputs as shapes of noise.*got \[\]"),
        ({"inputs": [(3,), "x"]}, "inputs as shapes of noise"),
        ({"inputs": 3}, "inputs as shapes of noise.*got 3"),
        ({"teacher": RING, "inputs": {"x": (8,)}}, "tau"),
        ({"inputs": "positions"}, "inputs as shapes of noise.*got 'positions'"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SymmetryCloning(**{"teacher": Stretch(), "network": "net", "inputs": [(3,)], **changes})


# ---- logs, loops, company --------------------------------------------------------------------------------------------
def test_logs_and_the_report() -> None:
    module, strategy = Plain(), cloning(Stretch(), inputs=[(3,)], symmetry=TURNS, name="mine")
    run = trainer(strategy)
    drifts: list[float] = []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            held = torch.cat([t.double().flatten() for t in strategy.state_dict()["clone"].values()])
            drifts.append(float((weights(pl_module) - held).norm() / held.norm()))

    run.callbacks.append(Look())
    run.fit(module, loader())
    logged = {name: float(value) for name, value in run.callback_metrics.items() if name.startswith("mine/")}
    assert set(logged) == {"mine/clone_error", "mine/clone_equivariance_error", "mine/drift"}
    assert set(strategy.report) == {"clone_error", "clone_equivariance_error", "steps"}
    for key in ("clone_error", "clone_equivariance_error"):
        assert logged[f"mine/{key}"] == pytest.approx(strategy.report[key])
    assert logged["mine/drift"] == pytest.approx(drifts[-1], rel=1e-4)
    assert drifts[0] == 0
    assert drifts[-1] > 0.01


def test_without_a_symmetry_nothing_is_measured() -> None:
    strategy = cloning(Stretch(), inputs=[(3,)])
    run = trainer(strategy)
    run.fit(Plain(), loader())
    assert set(strategy.report) == {"clone_error", "steps"}
    assert {n for n in run.callback_metrics if "/" in n} == {"symmetry_cloning/clone_error", "symmetry_cloning/drift"}


@pytest.mark.parametrize("inputs", [[(3,)], [0]], ids=["noise", "data"])
def test_a_loop_without_a_trainer(inputs: Any) -> None:
    """The same weights as a Trainer's."""
    settings = {"inputs": inputs, "symmetry": TURNS, "weight": 0.5}
    module, twin, strategy = Plain(), Plain(), cloning(Stretch(), **settings)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    before = snapshot(module)
    strategy.attach(module)
    strategy.teach(module, loader)
    optimizer = module.configure_optimizers()
    for i, batch in enumerate(loader()):
        optimizer.zero_grad()
        module.training_step(batch, i).backward()
        optimizer.step()
    strategy.detach()
    assert snapshot(module) == before
    trainer(cloning(Stretch(), **settings)).fit(twin, loader())
    torch.testing.assert_close(weights(module), weights(twin), rtol=1e-6, atol=1e-7)


def test_two_of_them_on_two_students() -> None:
    module = Plain(nn.Sequential(make_net(0), make_net(1)))
    first, second = (
        cloning(Stretch(), f"net.{i}", inputs=[(3,)], symmetry=TURNS, name=f"part_{i}", mode=mode)
        for i, mode in enumerate(("retain", "break"))
    )
    run = trainer(first, second)
    run.fit(module, loader())
    assert {"part_0/drift", "part_1/drift"} <= set(run.callback_metrics)
    assert float(run.callback_metrics["part_0/drift"]) == 0 < float(run.callback_metrics["part_1/drift"])
    for i, strategy in enumerate((first, second)):
        held = strategy.state_dict()["clone"]["0.weight"]
        assert torch.equal(module.net[i][0].weight, held) == (i == 0)
    assert first.state_key != second.state_key


@pytest.mark.parametrize("remul_first", [True, False])
def test_together_with_remul_in_either_order(remul_first: bool) -> None:
    def fit(*callbacks: L.Callback) -> Tensor:
        module = Plain()
        trainer(*callbacks).fit(module, loader())
        assert "training_step" not in module.__dict__
        return weights(module)

    remul, alone = REMUL(TURNS_OF_BATCHES, "net", target=1), fit(make_cloning())
    both = fit(*([remul, make_cloning()] if remul_first else [make_cloning(), remul]))
    assert torch.isfinite(both).all()
    assert not torch.allclose(both, alone)
    torch.testing.assert_close(both, fit(make_cloning(), REMUL(TURNS_OF_BATCHES, "net", target=1)))


# ---- two processes ---------------------------------------------------------------------------------------------------
class Witness(Stretch):
    """Leaves a file for each process that calls it."""

    folder: ClassVar[Path]

    def forward(self, x: Tensor) -> Tensor:
        (self.folder / f"called_by_{torch.distributed.get_rank()}").touch()
        return super().forward(x)


class SavesClone(L.Callback):
    """Writes the weights of every rank before the first step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        torch.save(state_of(pl_module), self.folder / f"clone_{trainer.global_rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("inputs", [[(3,)], [0]], ids=["noise", "data"])
def test_one_process_clones_and_the_other_receives(inputs: Any, tmp_path: Path) -> None:
    from datetime import timedelta

    from lightning.pytorch.strategies import DDPStrategy

    Witness.folder = tmp_path
    ddp = DDPStrategy(start_method="fork", process_group_backend="gloo", timeout=timedelta(seconds=20))
    strategy = cloning(Witness(), inputs=inputs, symmetry=TURNS)
    trainer(strategy, SavesClone(tmp_path), SavesPerRank(tmp_path), strategy=ddp, devices=2).fit(Plain(), loader())
    assert sorted(path.name for path in tmp_path.glob("called_by_*")) == ["called_by_0"]
    clones, trained = ([torch.load(tmp_path / f"{name}{rank}.pt") for rank in (0, 1)] for name in ("clone_", ""))
    for name, start in Plain().state_dict().items():
        assert torch.equal(clones[0][name], clones[1][name])
        assert torch.equal(trained[0][name], trained[1][name])
        assert not torch.equal(clones[0][name], start)
        assert not torch.equal(clones[0][name], trained[0][name])
