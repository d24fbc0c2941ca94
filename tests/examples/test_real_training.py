"""Whole trainings as users write them: the networks and data of the examples, ready modules, other callbacks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from e3nn import get_optimization_defaults, o3, set_optimization_defaults
from e3nn import nn as enn
from lightning.pytorch.callbacks import (
    Checkpoint,
    EMAWeightAveraging,
    LambdaCallback,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch import Tensor, nn

from lightning_equiv import (
    RECM,
    REMUL,
    ConstraintRelaxation,
    EquivarianceError,
    EquivarianceMonitor,
    GroupAugmentation,
    Invariant,
    RegressionModule,
    Symmetry,
    SymmetryCloning,
)
from lightning_equiv.datasets import ChargedDataModule
from lightning_equiv.datasets.in_memory import ResumableLoader
from lightning_equiv.networks.e3nn_message_passing import E3nnMessagePassing
from tests.strategies.toys import LR, SYMMETRY, Plain, Rows, error_of, loader, make_net, trainer, weights

INPUTS = {"charges": Invariant(), "positions": "1o", "velocities": "1o"}
Make = Callable[[], Any]
CHARGED = Symmetry("O(3)", inputs=INPUTS, outputs="1o", batch={**INPUTS, "targets": "1o"})
UPDATES, TOY = "net.layers.*.update", {"net.0": ("1o", "16x0e"), "net.2": ("16x0e", "1o")}


def e3nn(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return E3nnMessagePassing("4x0e+4x1o", 1)


def relax(**settings: Any) -> ConstraintRelaxation:
    return ConstraintRelaxation("SO(3)", TOY, schedule="linear", end=1.0, **settings)


def recm(**settings: Any) -> RECM:
    return RECM(SYMMETRY, TOY, target=1, gain=0.1, **settings)


def fit(module: L.LightningModule, *callbacks: L.Callback, ckpt_path: Any = None, **options: Any) -> L.Trainer:
    saves = any(isinstance(callback, Checkpoint) for callback in callbacks)
    run = trainer(*callbacks, **{"max_epochs": 3, "enable_checkpointing": saves, **options})
    run.fit(module, ResumableLoader(Rows(), 4), ckpt_path=ckpt_path)
    return run


def assert_resumes(folder: Path, step: int, make: Make, **options: Any) -> None:
    modules = Plain(), Plain()
    for module, ckpt_path in zip(modules, (None, folder / f"step={step}.ckpt"), strict=True):
        save = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
        fit(module, *make(), save, ckpt_path=ckpt_path, **options)
    assert torch.equal(weights(modules[0]), weights(modules[1]))


STRATEGIES: dict[str, Make] = {
    "recm": lambda: [RECM(CHARGED, UPDATES, "net", target="targets", gain=0.1), GroupAugmentation(CHARGED)],
    "both": lambda: [ConstraintRelaxation(CHARGED, UPDATES, "net", evaluate="both"), REMUL(CHARGED, "net")],
    "gradnorm": lambda: [REMUL(CHARGED, "net", balance="gradnorm", target="targets", last_layer="layers.0.out")],
    "cloning": lambda: [
        SymmetryCloning(e3nn(1), "net", inputs=[*INPUTS], mode="anneal", tolerance=2.0, steps=50, weight=1.0)
    ],
}
OPTIONS: list[dict[str, Any]] = [
    {"steps_per_epoch": 4, "check_val_every_n_epoch": 2, "gradient_clip_val": 0.1},
    {"val_check_interval": 0.5, "precision": "bf16-mixed", "accumulate_grad_batches": 2},
]


def fit_charged(folder: Path, name: str | None, ckpt_path: Path | None = None, **options: Any) -> RegressionModule:
    """Training with a strategy, or with none."""
    length = options.pop("steps_per_epoch", None)
    data = ChargedDataModule(train_size=22, val_size=9, batch_size=4, steps_per_epoch=length)
    module = RegressionModule(e3nn(), target="targets", lr=1e-2, symmetry=CHARGED)
    save = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    strategies = [] if name is None else STRATEGIES[name]()
    run = trainer(*strategies, save, enable_checkpointing=True, max_epochs=3, **options)
    run.fit(module, data, ckpt_path=ckpt_path)
    return module


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[Tensor]:
    """The weights without any strategy."""
    return [weights(fit_charged(tmp_path_factory.mktemp("alone"), None, **options)) for options in OPTIONS]


@pytest.fixture
def unscripted() -> Iterator[None]:
    """Below torch 2.10 e3nn scripts its layers, whose first calls are rounded otherwise than the later ones."""
    mode = get_optimization_defaults()["jit_mode"]
    set_optimization_defaults(jit_mode="eager")
    yield
    set_optimization_defaults(jit_mode=mode)


@pytest.mark.usefixtures("unscripted")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options)))
@pytest.mark.parametrize("name", STRATEGIES)
def test_resumes_bit_for_bit(name: str, options: dict[str, Any], alone: list[Tensor], tmp_path: Path) -> None:
    whole = fit_charged(tmp_path, name, **options)
    without = alone[OPTIONS.index(options)]
    trained = weights(whole)
    assert len(trained) != len(without) or (trained - without).abs().max() > 1e-4, "the strategy had no effect"
    for step in (3, 4, 6):  # in the middle of an epoch, or at its end
        again = fit_charged(tmp_path, name, tmp_path / f"step={step}.ckpt", **options)
        assert torch.equal(weights(again), weights(whole))


class Forces(nn.Sequential):
    """Minus the gradient of an energy."""

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.requires_grad else x.detach().requires_grad_()
        return -torch.autograd.grad(super().forward(x).sum(), x, create_graph=self.training)[0]


class ForceModule(Plain):
    validation_step = torch.enable_grad()(Plain.validation_step)


ENERGY = {"net.0": ("1o", "16x0e"), "net.2": ("16x0e", "0e")}


@pytest.mark.parametrize(
    ("make", "logged"),
    [
        (lambda: REMUL(SYMMETRY, "net", balance="gradnorm"), "remul/equivariance_loss"),
        (lambda: RECM(SYMMETRY, ENERGY, "net", target=1), "recm/violation/net.0"),
        (lambda: ConstraintRelaxation("SO(3)", ENERGY, evaluate="both"), "constraint_relaxation/lie_penalty"),
        (
            lambda: ConstraintRelaxation(SYMMETRY, ENERGY, "net", evaluate="both"),
            "constraint_relaxation/relaxed/equivariance_error",
        ),
    ],
)
def test_a_network_that_differentiates_inside(make: Make, logged: str) -> None:
    def train(*strategies: L.Callback) -> tuple[ForceModule, dict[str, Tensor]]:
        module = ForceModule(Forces(*make_net()[:2], nn.Linear(16, 1, bias=False)))
        module.net[2].weight.data.copy_(torch.linspace(-1, 1, 16))
        monitor = EquivarianceMonitor(SYMMETRY, "net", needs_grad=True)
        run = trainer(*strategies, monitor, inference_mode=False)
        run.fit(module, loader(), loader())
        return module, run.callback_metrics

    (module, values), (alone, _) = train(make()), train()
    trained, without = weights(module), weights(alone)
    assert len(trained) != len(without) or (trained - without).abs().max() > 1e-3, "the strategy had no effect"
    assert values[logged] > 1e-4
    metric = EquivarianceError(SYMMETRY, needs_grad=True)
    for x, _ in loader():
        metric.update(module.net, x)
    assert values["equivariance_error"] == pytest.approx(float(metric.compute()), rel=1e-5)


# ---- what users do besides -------------------------------------------------------------------------------------------
def test_recm_that_keeps_is_refused_in_forked_processes() -> None:
    with pytest.raises(RuntimeError, match=r"expected finalize='drop' there, or strategy='ddp'"):
        recm().setup(trainer(recm(), devices=2, strategy="ddp_fork"), Plain(), "fit")


@pytest.mark.parametrize("make", [relax, recm])
def test_a_copy_of_the_network_is_the_users(make: Make) -> None:
    class Target(Plain):
        def on_train_start(self) -> None:
            self.target = [copy.deepcopy(self.net)]

    module = Target()
    trainer(make()).fit(module, loader())
    assert torch.equal(module.target[0](Rows().x), make_net()(Rows().x))


@pytest.mark.parametrize("make", [relax, recm])
def test_resumes_from_a_checkpoint_of_an_exception(make: Make, tmp_path: Path) -> None:
    def breaks(run: L.Trainer, *_: Any) -> None:
        if run.global_step == 9:
            raise KeyError

    path, whole, broken, resumed = tmp_path / "last.ckpt", Plain(), Plain(), Plain()
    fit(whole, make())
    # as ModelCheckpoint(save_on_exception=True) does it
    saves = LambdaCallback(on_train_batch_end=breaks, on_exception=lambda run, *_: run.save_checkpoint(path))
    with pytest.raises(KeyError):
        fit(broken, make(), saves)
    fit(resumed, make(), ckpt_path=path)
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize(
    ("average", "step"),
    [
        *((lambda: EMAWeightAveraging(decay=0.9), step) for step in (6, 10, 12)),
        # by itself it resumes bit for bit in mid-epoch only, and with one learning rate
        (lambda: StochasticWeightAveraging(swa_lrs=LR, swa_epoch_start=1, annealing_epochs=1), 10),
    ],
    ids=["ema-6", "ema-10", "ema-12", "swa"],
)
def test_recm_under_weight_averaging_resumes(average: Make, step: int, tmp_path: Path) -> None:
    assert_resumes(tmp_path, step, lambda: [recm(), average()])


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint")
def test_the_averaged_branches_are_restored(tmp_path: Path) -> None:
    """A checkpoint's weights are the average; so are the branches that are put to them."""
    module, resumed, restored = Plain(), Plain(), Plain()
    save = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    fit(module, recm(), EMAWeightAveraging(decay=0.9), save)
    path = tmp_path / "step=18.ckpt"  # of the last step: its average is what training leaves
    recm().restore(restored, torch.load(path, weights_only=True))
    assert torch.equal(weights(restored), weights(module))
    fit(resumed, recm(), ckpt_path=path)  # without averaging, and with nothing left to do
    assert torch.equal(weights(resumed), weights(module))


def test_recm_and_checkpoints_of_weights_only(tmp_path: Path) -> None:
    """They hold the user's keys, and so the network without branches, which is what is validated."""
    module, save, strict = Plain(), ModelCheckpoint(tmp_path, save_weights_only=True), Plain()
    run, data = fit(module, recm(), save), loader(batch_size=22)
    relaxed = error_of(module.net)
    [values] = run.validate(module, data, ckpt_path=save.best_model_path, verbose=False)
    saved = torch.load(save.best_model_path, weights_only=True)
    assert "callbacks" not in saved
    strict.load_state_dict(saved["state_dict"])
    assert values["val_loss"] == pytest.approx(error_of(strict.net), rel=1e-6)
    assert abs(relaxed - error_of(strict.net)) > 1e-3


def test_recm_beyond_its_horizon() -> None:
    """The gain has fallen to 0: the states rest where they are, and the network trains on."""
    module, strategy = Plain(), recm(horizon=6)
    states: list[Tensor] = []
    trained: list[Tensor] = []

    def look(*_: Any) -> None:
        states.append(torch.stack([r.h.float() for r in strategy.recurrences.values()]))
        trained.append(weights(module))

    fit(module, strategy, LambdaCallback(on_train_batch_end=look), max_epochs=2)
    assert len(states) == 12
    assert all((states[i + 1] - states[i]).abs().max() > 1e-6 for i in range(5))
    assert all(torch.equal(h, states[5]) for h in states[6:])
    assert all((trained[i + 1] - trained[i]).abs().max() > 1e-6 for i in range(11))


def test_remul_of_an_equivariant_network_with_e3nn_batch_norm() -> None:
    net = nn.Sequential(o3.Linear("1x1o", "1x1o"), enn.BatchNorm("1x1o"))
    run = fit(Plain(net), REMUL(SYMMETRY, "net"), max_epochs=1)
    assert run.callback_metrics["remul/equivariance_loss"] < 1e-6
    run = fit(Plain(), REMUL(SYMMETRY, "net"), max_epochs=1)
    assert run.callback_metrics["remul/equivariance_loss"] > 1e-3
