"""SymmetrizeAtTest: the figures of the symmetrized network beside the plain ones, and the module as it was."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from lightning_equiv import SymmetrizeAtTest, Symmetrized, Symmetry
from tests.helpers import close, global_seed, normal

C4 = Symmetry("C4", "1o", "1o")


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        with global_seed():
            self.net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3)).double()
        self.metric, self.spare = MeanMetric(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def figure(self, batch: list[Tensor]) -> Tensor:
        x, y = batch
        return (self(x) - y).square().mean()

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return self.figure(batch)

    def validation_step(self, batch: list[Tensor]) -> None:
        self.log("val_mse", self.figure(batch), batch_size=len(batch[0]))
        self.metric(self.figure(batch))
        self.log("metric", self.metric)

    def test_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        loss = self.figure(batch)
        self.log_dict({f"test_{dataloader_idx}": loss}, add_dataloader_idx=False, batch_size=len(batch[0]))
        return {"loss": loss}

    def predict_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def data(seed: int = 0) -> DataLoader[Any]:
    return DataLoader(TensorDataset(normal(10, 3, seed=seed), normal(10, 3, seed=seed + 1)), batch_size=4)


def trainer(*callbacks: L.Callback, **kwargs: Any) -> L.Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return L.Trainer(accelerator="cpu", callbacks=list(callbacks), max_epochs=1, **quiet, **kwargs)


def mse(f: Any, seed: int = 0) -> float:
    x, y = normal(10, 3, seed=seed), normal(10, 3, seed=seed + 1)
    with torch.no_grad():
        return float((f(x) - y).square().mean())


@pytest.mark.parametrize("network", ["net", ""])
@pytest.mark.parametrize("inference_mode", [True, False])
def test_validate_logs_both(network, inference_mode) -> None:
    module = Module()
    keys, attributes = list(module.state_dict()), set(vars(module)) | set(vars(module.net))
    run = trainer(SymmetrizeAtTest(C4, network=network), inference_mode=inference_mode)
    (logged,) = run.validate(module, data(), verbose=False)
    module.eval()
    assert logged["val_mse"] == pytest.approx(mse(module.net), rel=1e-6)
    assert logged["symmetrized/val_mse"] == pytest.approx(mse(Symmetrized(module.net, C4)), rel=1e-6)
    assert logged["symmetrized/val_mse"] < logged["val_mse"] * 0.999
    assert "symmetrized/metric" not in logged
    assert list(module.state_dict()) == keys
    assert {name for name in set(vars(module)) | set(vars(module.net)) if "forward" in name} == {
        name for name in attributes if "forward" in name
    }
    assert "forward" not in vars(module.net)


def test_the_metric_is_that_of_the_plain_network_alone() -> None:
    plain, both = Module(), Module()
    (a,) = trainer().validate(plain, data(), verbose=False)
    (b,) = trainer(SymmetrizeAtTest(C4)).validate(both, data(), verbose=False)
    assert {key: b[key] for key in a} == a


def test_test_with_two_loaders() -> None:
    module = Module()
    logged = trainer(SymmetrizeAtTest(C4, name="averaged")).test(module, [data(0), data(5)], verbose=False)
    found = {key: value for part in logged for key, value in part.items()}
    module.eval()
    for i, seed in enumerate((0, 5)):
        assert found[f"test_{i}"] == pytest.approx(mse(module.net, seed), rel=1e-6)
        assert found[f"averaged/test_{i}"] == pytest.approx(mse(Symmetrized(module.net, C4), seed), rel=1e-6)


def test_predict_keeps_what_the_symmetrized_network_predicts() -> None:
    module, callback = Module(), SymmetrizeAtTest(C4)
    returned = trainer(callback).predict(module, data())
    module.eval()
    x = normal(10, 3)
    close(torch.cat(returned), module.net(x).detach())
    close(torch.cat(callback.predictions), Symmetrized(module.net, C4)(x).detach())
    trainer(callback).predict(module, [data(), data()])
    assert [len(part) for part in callback.predictions] == [3, 3]


@pytest.mark.parametrize("in_fit", [False, True])
def test_fit_is_left_alone_unless_asked(in_fit) -> None:
    class Last(L.Callback):
        values: dict[str, Tensor] | None = None

        def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.values = dict(trainer.callback_metrics)

    torch.manual_seed(0)
    plain = Module()
    trainer(num_sanity_val_steps=1).fit(plain, data(), data())
    torch.manual_seed(0)
    module = Module()
    run = trainer(SymmetrizeAtTest(C4, in_fit=in_fit), num_sanity_val_steps=1)
    run.fit(module, data(), data())
    assert ("symmetrized/val_mse" in run.callback_metrics) == in_fit
    for a, b in zip(plain.parameters(), module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_module_is_restored_after_an_error() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 2:
                raise RuntimeError("in the symmetrized call")
            return x

    module = Module()
    module.net = Failing()
    own_log = module.log
    with pytest.raises(RuntimeError, match="in the symmetrized call"):
        trainer(SymmetrizeAtTest(C4)).validate(module, data(), verbose=False)
    assert "forward" not in vars(module.net)
    assert module.log == own_log
    close(module(normal(4, 3)), normal(4, 3))


def test_hooks_and_a_compiled_network() -> None:
    module, seen = Module(), []
    module.net.register_forward_hook(lambda m, a, y: seen.append(len(a[0])))
    trainer(SymmetrizeAtTest(C4)).test(module, data(), verbose=False)
    assert seen == [4, 4, 4, 4, 2, 2]  # the user's calls and ours; those inside pass by
    compiled = Module()
    compiled.net.compile(backend="eager")
    (logged,) = trainer(SymmetrizeAtTest(C4)).test(compiled, data(), verbose=False)
    assert logged["symmetrized/test_0"] == pytest.approx(mse(Symmetrized(Module().net.eval(), C4)), rel=1e-6)


def test_a_wrong_name_and_wrong_settings() -> None:
    with pytest.raises(ValueError, match="names no sub-module"):
        trainer(SymmetrizeAtTest(C4, network="nett")).validate(Module(), data(), verbose=False)
    with pytest.raises(ValueError, match="was not called in `validation_step`"):
        trainer(SymmetrizeAtTest(C4, network="spare")).validate(Module(), data(), verbose=False)
    with pytest.raises(ValueError, match="expected method to be one of"):
        SymmetrizeAtTest(C4, "averages")
