"""EquivarianceMonitor through the Trainer: what it logs, when, and that it leaves the model as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_equiv import EquivarianceError, EquivarianceMonitor, Invariant, Symmetry
from tests.helpers import global_seed, seeded

VECTORS = Symmetry("SO(3)", "1o", "1o")


class Rows(torch.utils.data.Dataset):
    """22 vectors, alone or in a dict with a mass."""

    def __init__(self, named: bool = False, seed: int = 0) -> None:
        g = seeded(seed)
        self.x, self.m, self.named = torch.randn(22, 3, generator=g), torch.rand(22, 1, generator=g), named

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return {"x": self.x[i], "m": self.m[i]} if self.named else self.x[i]


def loader(named: bool = False, seed: int = 0) -> DataLoader:
    """Six batches, the last one ragged."""
    return DataLoader(Rows(named, seed), 4)


class Net(nn.Module):
    """No symmetry; dropout, so that a wrong mode shows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.dropout = nn.Linear(3, 8), nn.Linear(8, 3), nn.Dropout(0.5)
        self.sizes: list[int] = []

    def forward(self, x: Tensor, m: Tensor | None = None) -> Tensor:
        if not torch.compiler.is_compiling():
            self.sizes.append(len(x))
        return self.b(self.dropout(self.a(x if m is None else x * m).tanh()))


class Model(L.LightningModule):
    """An ordinary LightningModule; `step` says how it calls its network."""

    def __init__(self, step: str = "self.net(batch)") -> None:
        super().__init__()
        with global_seed():
            self.net = Net()
        self.alias = self.net
        self.unused = nn.Linear(3, 3)
        self.step_code = step

    def forward(self, x: Tensor, m: Tensor | None = None) -> Tensor:
        return self.net(x, m)

    def call(self, batch: Any) -> Tensor:
        return eval(self.step_code, {}, {"self": self, "batch": batch})

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.call(batch).square().mean()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return self.call(batch)

    def test_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.call(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class History(L.Callback):
    """What was in the log after every validation, sanity check left out."""

    def __init__(self, *names: str) -> None:
        self.names, self.values = names or ("equivariance_error",), []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            metrics = trainer.callback_metrics
            values = [float(metrics[n]) if n in metrics else None for n in self.names]
            self.values.append(values if len(values) > 1 else values[0])


def trainer(*callbacks: L.Callback, **kwargs: Any) -> L.Trainer:
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "max_epochs": 1,
    }
    return L.Trainer(callbacks=list(callbacks), **{**quiet, **kwargs})


def by_hand(network: nn.Module, batches: list[Any], symmetry: Symmetry = VECTORS, **kwargs: Any) -> float:
    """The metric on the same batches with the same seed."""
    metric = EquivarianceError(symmetry, **kwargs)
    for batch in batches:
        metric.update(network, **batch) if isinstance(batch, dict) else metric.update(network, batch)
    return float(metric.compute())


def hooks(module: nn.Module) -> dict[str, list[list[Any]]]:
    """Every hook of every module."""
    kinds = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks", "_backward_hooks")
    return {name: [list(getattr(m, kind)) for kind in kinds] for name, m in module.named_modules()}


# ---- what is logged --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("network", ["net", "", "alias"])
@pytest.mark.parametrize("function", ["validate", "test", "fit"])
def test_logs_the_metric_of_the_users_own_batches(function, network):
    model = Model("self(batch)" if network == "" else "self.net(batch)")
    before, keys = hooks(model), list(model.state_dict())
    t = trainer(EquivarianceMonitor(VECTORS, network, num_batches=3, seed=4), limit_train_batches=0)
    if function == "fit":
        t.limit_train_batches = 1
        t.fit(model, loader(seed=1), loader())
    else:
        getattr(t, function)(model, loader(), verbose=False)
    name = {"test": "test_equivariance_error"}.get(function, "equivariance_error")
    assert set(t.callback_metrics) == {name}
    model.eval()
    expected = by_hand(model.net, list(loader())[:3], seed=4)
    assert float(t.callback_metrics[name]) == pytest.approx(expected, rel=1e-6)
    assert expected > 0.1
    assert hooks(model) == before
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("kind", ["relative", "absolute", "orbit_mean", "max"])
def test_the_arguments_reach_the_metric(kind):
    model, arguments = Model(), {"kind": kind, "num_samples": 3, "chunk_size": 4, "seed": 9}
    t = trainer(EquivarianceMonitor(VECTORS, "net", num_batches=None, **arguments))
    t.validate(model, loader(), verbose=False)
    expected = by_hand(model.net.eval(), list(loader()), **arguments)
    assert float(t.callback_metrics["equivariance_error"]) == pytest.approx(expected, rel=1e-6)


def test_each_part_is_logged_too():
    symmetry = Symmetry("SO(3)", "1o", {"e": "0e", "f": "1o"})

    class Parts(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"e": x.norm(dim=-1, keepdim=True), "f": x + 1}

    model = Model("self.net(batch)['f']")
    model.net = Parts()
    t = trainer(EquivarianceMonitor(symmetry, "net", per_irrep=True, name="eq"))
    t.validate(model, loader(), verbose=False)
    values = {name: float(v) for name, v in t.callback_metrics.items()}
    assert list(values) == ["eq", "eq/e.0e", "eq/f.1o"]
    assert values["eq/e.0e"] < 1e-5 < 0.1 < values["eq"] < values["eq/f.1o"]


@pytest.mark.parametrize(
    "step", ["self.net(**batch)", "self.net(batch['x'], m=batch['m'])", "self.net(*batch.values())"]
)
def test_a_dict_batch_and_keywords(step):
    symmetry, model = Symmetry("SO(3)", {"x": "1o", "m": Invariant()}, "1o"), Model(step)
    t = trainer(EquivarianceMonitor(symmetry, "net"))
    t.validate(model, loader(named=True), verbose=False)
    expected = by_hand(model.net.eval(), list(loader(named=True)), symmetry)
    assert float(t.callback_metrics["equivariance_error"]) == pytest.approx(expected, rel=1e-6)


def test_every_call_of_one_step_is_measured():
    model = Model("self.net(batch) + self.net(2 * batch)")
    t = trainer(EquivarianceMonitor(VECTORS, "net", num_batches=2))
    t.validate(model, loader(), verbose=False)
    expected = by_hand(model.net.eval(), [x for batch in list(loader())[:2] for x in (batch, 2 * batch)])
    assert float(t.callback_metrics["equivariance_error"]) == pytest.approx(expected, rel=1e-6)


def test_two_monitors_do_not_see_each_others_calls():
    model = Model()
    first = EquivarianceMonitor(VECTORS, "net", name="a", num_samples=2, num_batches=2)
    second = EquivarianceMonitor(VECTORS, "net", name="b", kind="absolute", num_samples=3, num_batches=None)
    third = EquivarianceMonitor(VECTORS, "", name="c", num_samples=4)
    model.step_code = "self(batch)"
    t = trainer(first, second, third)
    t.validate(model, loader(), verbose=False)
    assert len(model.net.sizes) == 6 + 2 * 2 + 6 * 2 + 6 * 2  # the user's calls, and two for every measured batch
    batches, net = list(loader()), model.net.eval()
    values = {name: float(v) for name, v in t.callback_metrics.items()}
    assert values["a"] == pytest.approx(by_hand(net, batches[:2], num_samples=2), rel=1e-6)
    assert values["b"] == pytest.approx(by_hand(net, batches, num_samples=3, kind="absolute"), rel=1e-6)
    assert values["c"] == pytest.approx(by_hand(net, batches, num_samples=4), rel=1e-6)


def test_two_validation_dataloaders():
    model = Model()
    t = trainer(EquivarianceMonitor(VECTORS, "net", num_batches=None))
    t.validate(model, [loader(), loader(seed=1)], verbose=False)
    expected = by_hand(model.net.eval(), [*loader(), *loader(seed=1)])
    assert float(t.callback_metrics["equivariance_error"]) == pytest.approx(expected, rel=1e-6)


def test_mixed_precision_is_that_of_the_step():
    model = Model()
    t = trainer(EquivarianceMonitor(VECTORS, "net"), precision="bf16-mixed")
    t.validate(model, loader(), verbose=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = by_hand(model.net.eval(), list(loader()))
    assert float(t.callback_metrics["equivariance_error"]) == pytest.approx(expected, rel=1e-6)
    assert expected != by_hand(model.net, list(loader()))


def test_double_precision():
    model = Model()
    t = trainer(EquivarianceMonitor(VECTORS, "net"), precision="64-true")
    t.validate(model, loader(), verbose=False)
    expected = by_hand(model.net.eval(), [batch.double() for batch in loader()])
    assert float(t.callback_metrics["equivariance_error"]) == pytest.approx(expected, rel=1e-6)


class Conservative(nn.Module):
    """Forces of an energy, that need gradients also where validation has none."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone().requires_grad_(True)
            return -torch.autograd.grad((self.scale * x).square().sum(-1).sin().sum(), x)[0]


class Differentiates(Conservative):
    """The same, for a trainer that leaves gradients on."""

    def forward(self, x: Tensor) -> Tensor:
        x.requires_grad_(True)
        return -torch.autograd.grad((self.scale * x).square().sum(-1).sin().sum(), x)[0]


def test_conservative_forces_in_inference_mode():
    model = Model()
    model.net = Conservative()
    t = trainer(EquivarianceMonitor(VECTORS, "net", needs_grad=True))
    t.validate(model, loader(), verbose=False)
    assert float(t.callback_metrics["equivariance_error"]) < 1e-6
    model.net.scale.data[2] = 2.0
    t.validate(model, loader(), verbose=False)
    bent = Differentiates()
    bent.load_state_dict(model.net.state_dict())
    expected = by_hand(bent, list(loader()), needs_grad=True)
    assert float(t.callback_metrics["equivariance_error"]) == pytest.approx(expected, rel=1e-6)
    assert expected > 0.1


def test_validate_runs_in_inference_mode():
    modes = []
    model = Model()
    model.net.register_forward_hook(lambda *_: modes.append(torch.is_inference_mode_enabled()))
    trainer(EquivarianceMonitor(VECTORS, "net", num_batches=1)).validate(model, loader(), verbose=False)
    assert modes == [True] * 8


# ---- when ------------------------------------------------------------------------------------------------------------
def test_num_batches_bounds_the_work():
    model = Model()
    t = trainer(EquivarianceMonitor(VECTORS, "net", num_batches=2, num_samples=5))
    t.validate(model, loader(), verbose=False)
    assert model.net.sizes == [4, 4, 20] * 2 + [4, 4, 4, 2]


def test_the_sanity_check_leaves_no_trace():
    histories = []
    for sanity in (0, 2):
        histories.append(History())
        monitor = EquivarianceMonitor(VECTORS, "net", num_batches=None)
        L.seed_everything(0, verbose=False)
        t = trainer(monitor, histories[-1], max_epochs=2, num_sanity_val_steps=sanity)
        t.fit(Model(), loader(seed=1), loader())
    assert histories[0].values == histories[1].values
    assert len(set(histories[0].values)) == 2


def test_every_n_epochs():
    model, history = Model(), History()
    t = trainer(
        EquivarianceMonitor(VECTORS, "net", every_n_epochs=2, num_batches=1, num_samples=5), history, max_epochs=4
    )
    t.fit(model, loader(seed=1), loader())
    values = history.values
    assert values[0] == values[1] != values[2] == values[3]  # the last value stays in the log
    assert model.net.sizes.count(20) == 2


def test_the_same_elements_in_every_validation():
    """A learning rate of zero gives a flat curve."""
    history, model = History(), Model()
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), lr=0.0)
    trainer(EquivarianceMonitor(VECTORS, "net"), history, max_epochs=3).fit(model, loader(seed=1), loader())
    assert len(history.values) == 3
    assert len(set(history.values)) == 1


def test_training_is_the_same_with_and_without():
    """No random number of the user's is drawn, no statistics moved."""
    weights = []
    for callbacks in ([], [EquivarianceMonitor(VECTORS, "net")]):
        L.seed_everything(0, verbose=False)
        model = Model()
        trainer(*callbacks, max_epochs=2).fit(model, loader(seed=1), loader())
        weights.append(model.net.a.weight.detach().clone())
    assert torch.equal(*weights)


def test_early_stopping_and_checkpoints_can_watch_it(tmp_path: Path):
    stop = EarlyStopping("equivariance_error", patience=1, mode="max", min_delta=10.0)
    best = ModelCheckpoint(tmp_path, "{epoch}-{equivariance_error:.4f}", "equivariance_error", save_top_k=1)
    history = History()
    t = trainer(EquivarianceMonitor(VECTORS, "net"), history, stop, best, max_epochs=5, enable_checkpointing=True)
    with pytest.warns(UserWarning, match="looks for the smallest 'equivariance_error'"):
        t.fit(Model(), loader(seed=1), loader())
    assert t.current_epoch == 2  # nothing rises by 10
    assert float(best.best_model_score) == pytest.approx(min(history.values))
    checkpoint = torch.load(best.best_model_path)
    Model().load_state_dict(checkpoint["state_dict"])


# ---- compiled networks -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["in place", "wrapped"])
def test_a_compiled_network_reads_the_same(how):
    histories = []
    for compiled in (False, True):
        torch._dynamo.reset()
        L.seed_everything(0, verbose=False)
        model, history = Model(), History("equivariance_error", "b")
        del model.alias
        model.net.dropout.p = 0.0
        if compiled and how == "in place":
            model.net.compile(backend="eager")
        elif compiled:
            model.net = torch.compile(model.net, backend="eager")
        monitors = [
            EquivarianceMonitor(VECTORS, "net", num_batches=2),
            EquivarianceMonitor(VECTORS, "net", num_batches=1, name="b"),
        ]
        trainer(*monitors, history, max_epochs=3, num_sanity_val_steps=1).fit(model, loader(seed=1), loader())
        histories.append(history.values)
    torch._dynamo.reset()
    assert torch.tensor(histories[1]).allclose(torch.tensor(histories[0]), rtol=1e-5)


# ---- errors, and letting go ------------------------------------------------------------------------------------------
def test_a_wrong_name_is_said_before_training():
    model = Model()
    trained = []
    model.net.register_forward_hook(lambda *_: trained.append(1))
    before = hooks(model)
    with pytest.raises(ValueError, match=r"network='ned' names no sub-module of Model: the nearest are \[.*'net'"):
        trainer(EquivarianceMonitor(VECTORS, "ned")).fit(model, loader(seed=1), loader())
    assert not trained
    assert hooks(model) == before


@pytest.mark.parametrize("function", ["validate", "test"])
def test_a_network_that_is_never_called(function):
    model = Model()
    before = hooks(model)
    t = trainer(EquivarianceMonitor(VECTORS, "unused"))
    message = rf"network='unused' was not called in `{function.replace('ate', 'ation')}_step`.*'net', .*'unused'"
    with pytest.raises(ValueError, match=message):
        getattr(t, function)(model, loader(), verbose=False)
    assert hooks(model) == before


def test_the_module_itself_is_never_called():
    with pytest.raises(ValueError, match=r"network='' was not called.*one of \['net', 'unused'\]"):
        trainer(EquivarianceMonitor(VECTORS)).validate(Model("self.net(batch)"), loader(), verbose=False)


@pytest.mark.parametrize("function", ["validate", "test", "fit"])
def test_an_exception_in_the_step_leaves_the_model_as_it_was(function):
    model = Model("self.net(batch) if len(batch) == 4 or self.training else 1 / 0")
    monitor, before = EquivarianceMonitor(VECTORS, "net"), hooks(model)
    t = trainer(monitor)
    arguments = (loader(seed=1), loader()) if function == "fit" else (loader(),)
    with pytest.raises(ZeroDivisionError):
        getattr(t, function)(model, *arguments)
    assert hooks(model) == before
    model.step_code = "self.net(batch)"  # and the monitor can be used again
    t = trainer(monitor)
    t.validate(model, loader(), verbose=False)
    expected = by_hand(model.net.eval(), list(loader()))
    assert float(t.callback_metrics["equivariance_error"]) == pytest.approx(expected, rel=1e-6)


def test_a_wrong_symmetry_leaves_the_model_as_it_was():
    model = Model()
    before = hooks(model)
    with pytest.raises(ValueError, match="expects 5 components"):
        trainer(EquivarianceMonitor(Symmetry("SO(3)", "2e", "1o"), "net")).validate(model, loader(), verbose=False)
    assert hooks(model) == before


def test_nan_is_logged_with_a_warning_and_does_not_end_training():
    model = Model("self.net(batch) * float('nan')")
    model.net.b.bias.data.fill_(float("nan"))
    t = trainer(EquivarianceMonitor(VECTORS, "net"))
    with pytest.warns(
        UserWarning, match="EquivarianceMonitor: the equivariance error is nan: the network returned NaN"
    ):
        t.validate(model, loader(), verbose=False)
    assert bool(torch.isnan(t.callback_metrics["equivariance_error"]))


def test_every_n_epochs_of_zero_is_refused():
    with pytest.raises(ValueError, match="expected every_n_epochs to be a whole number of at least 1, got 0"):
        EquivarianceMonitor(VECTORS, every_n_epochs=0)


# ---- two processes ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("network", ["", "net"])
def test_two_processes_read_the_whole_validation_set(network):
    """DDP sends the step itself through the module's forward: no call of the user's."""
    symmetry = Symmetry("C4", "1o", "1o")
    model = Model("self(batch)" if network == "" else "self.net(batch)")
    del model.alias, model.unused  # a parameter without a gradient stops DDP
    monitor = EquivarianceMonitor(symmetry, network, num_samples=None, num_batches=None)
    t = trainer(monitor, strategy="ddp_fork", devices=2)
    t.fit(model, loader(seed=1), loader())
    expected = by_hand(model.net.eval(), list(loader()), symmetry, num_samples=None)
    assert float(t.callback_metrics["equivariance_error"]) == pytest.approx(expected, rel=1e-5)
