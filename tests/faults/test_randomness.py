"""What is run besides the user's own step leaves no trace: random generators, statistics, observers."""
# ruff: noqa: NPY002 (NumPy's global generator is what the user's code may draw from)

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_equiv import ACE, RECM, REMUL, RPP, ConstraintRelaxation, EquivarianceMonitor, SymmetryMixin
from lightning_equiv.metrics.functional import equivariance_error
from tests.strategies.cases import Case, each_case
from tests.strategies.relaxed_by_hand import LAYERS
from tests.strategies.toys import SYMMETRY, Plain, loader, make_net, rotations, trainer, turn, weights


class Draws(nn.Sequential):
    """Draws in every mode, as a variational network or one with Monte Carlo dropout."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.01 * torch.randn_like(x))


class Block(nn.Module):
    """A block of a transformer that is called as many are; its dropout is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make_net()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.inner(x), 0.5, self.training)


class PreNormBlock(Block):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(3))


class DropsPaths(Block):
    def forward(self, x: Tensor) -> Tensor:
        keep = torch.rand(len(x), 1) > 0.5 if self.training else 1
        return self.inner(x) * keep


class Observed(Block):
    """Quantisation-aware: its observer moves in every mode."""

    low: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.low.copy_(torch.minimum(self.low, x.detach().min()) - 0.1)
        return self.inner(x) + self.low


class Spectral(Block):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            nn.utils.parametrizations.spectral_norm(self.inner[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class OwnNorm(Block):
    """A batch norm of somebody's own, whose class does not say so."""

    running_square: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_square", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.running_square = 0.9 * self.running_square + 0.1 * x.square().mean()
        return self.inner(x) / self.running_square.sqrt()


NETWORKS = [PreNormBlock, DropsPaths, Observed, Spectral, OwnNorm, lambda: Draws(*make_net()), lambda: Quantised()]


class Quantised(Block):
    def __init__(self) -> None:
        super().__init__()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)
            from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver

            self.fake = FakeQuantize(observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=255)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.fake(x))


def trained(network: Callable[[], nn.Module], *callbacks: Any, val: bool = False) -> tuple[list[Tensor], Tensor]:
    """What is left of a training: weights and buffers, and the state of the global generator."""
    module = Plain(network())
    torch.manual_seed(3)
    trainer(*callbacks, max_epochs=2).fit(module, loader(), loader() if val else None)
    return [x.clone() for x in module.state_dict().values()], torch.get_rng_state()


def same(a: tuple[list[Tensor], Tensor], b: tuple[list[Tensor], Tensor]) -> bool:
    return all(map(torch.equal, (*a[0], a[1]), (*b[0], b[1])))


@pytest.mark.parametrize("network", NETWORKS)
def test_a_second_loss_of_weight_zero_changes_nothing(network: Callable[[], nn.Module]) -> None:
    assert same(trained(network, REMUL(SYMMETRY, "net", weight=0.0)), trained(network))


@pytest.mark.parametrize("network", NETWORKS)
def test_watching_changes_nothing(network: Callable[[], nn.Module]) -> None:
    assert same(trained(network, EquivarianceMonitor(SYMMETRY, "net"), val=True), trained(network, val=True))


def test_functional_dropout_and_dropped_paths_are_frozen() -> None:
    """The second loss of such a network is that of the network without."""
    for network in (PreNormBlock, DropsPaths):
        run = trainer(REMUL(SYMMETRY, "net", target=1))
        run.fit(Plain(network(), lr=0.0), loader())
        alone = trainer(REMUL(SYMMETRY, "net", target=1))
        alone.fit(Plain(make_net(), lr=0.0), loader())
        loss = [float(r.callback_metrics["remul/equivariance_loss"]) for r in (run, alone)]
        assert loss[0] == pytest.approx(loss[1], rel=1e-5)


def test_the_second_pass_has_the_weights_of_the_first() -> None:
    """One more power iteration would be another network."""
    modules = Plain(Spectral(), lr=0.0), Plain(Spectral(), lr=0.0)
    run = trainer(REMUL(SYMMETRY, "net", target=1), limit_train_batches=1)
    run.fit(modules[0], loader())
    trainer(limit_train_batches=1).fit(modules[1], loader())
    net = modules[1].net.eval()
    x, y = next(iter(loader()))
    R = rotations(4, "REMUL", "remul", 0, 0, (0, 0))
    expected = nn.functional.mse_loss(net(turn(R, x)), turn(R, y))
    torch.testing.assert_close(run.callback_metrics["remul/equivariance_loss"], expected.detach())


class RandomValidation(Plain):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        noise = torch.randn_like(x) + random.random() + np.random.rand()
        self.log("val_loss", nn.functional.mse_loss(self.net(x + noise), y))


@pytest.mark.parametrize("strategy", [ConstraintRelaxation, RECM, ACE, RPP])
def test_a_validation_that_is_run_again_changes_nothing(strategy: Any) -> None:
    def fit(evaluate: str) -> tuple[Tensor, list[Any], dict[str, Any]]:
        torch.manual_seed(3), random.seed(3), np.random.seed(3)
        module, run = RandomValidation(), trainer(strategy(SYMMETRY, LAYERS, evaluate=evaluate, network="net"))
        run.fit(module, loader(), loader())
        left = [torch.rand(1).item(), random.random(), np.random.rand()]
        return weights(module), left, dict(run.callback_metrics)

    before = random.getstate(), np.random.get_state()
    try:
        both, alone = fit("both"), fit("projected")
    finally:
        random.setstate(before[0]), np.random.set_state(before[1])
    assert torch.equal(both[0], alone[0])
    assert both[1] == alone[1]
    assert torch.equal(both[2]["val_loss"], alone[2]["val_loss"])


@each_case
def test_no_strategy_moves_the_generators_of_python_and_numpy(case: Case) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist()
    trainer(case.make(), EquivarianceMonitor(SYMMETRY, "net")).fit(Plain(), loader(), loader())
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_a_measurement_with_the_global_generator_moves_it() -> None:
    x = torch.randn(4, 3)
    errors = [equivariance_error(make_net(), x, SYMMETRY, generator=torch.default_generator) for _ in range(2)]
    assert not torch.equal(*errors)


def test_a_loss_in_the_validation_step_does_not_change_what_a_resumed_run_draws(tmp_path: Any) -> None:
    class Adds(SymmetryMixin, Plain):
        symmetry, symmetry_network = SYMMETRY, "net"

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) + self.equivariance_loss(batch[0], target=batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            validated.append(self.equivariance_loss(batch[0], target=batch[1]).item())

        def configure_callbacks(self) -> list[Any]:
            return []

    validated: list[float] = []

    def fit(ckpt_path: str | None = None, val: bool = True, name: str = "resumed") -> Tensor:
        module = Adds()
        save = ModelCheckpoint(tmp_path, filename=f"{name}-{{step}}", save_top_k=-1, every_n_train_steps=3)
        settings = {"max_epochs": 3, "enable_checkpointing": True, "val_check_interval": 3, "num_sanity_val_steps": 0}
        data = loader()
        trainer(save, **settings).fit(module, data, loader() if val else None, ckpt_path=ckpt_path)
        return weights(module)

    whole = fit(name="whole")
    first = list(validated)
    assert len(set(first)) == len(first), "every batch has draws of its own"
    validated.clear()
    assert torch.equal(fit(str(tmp_path / "whole-step=6.ckpt")), whole)
    assert validated == first[-len(validated) :]
    assert torch.equal(fit(val=False, name="without"), whole), "validation does not change training"
