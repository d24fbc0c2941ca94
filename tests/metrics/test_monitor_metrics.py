"""EquivarianceMonitor with other metrics: what they are called in the log, and their numbers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import Metric, MetricCollection

from lightning_equiv import (
    AngleProfile,
    EquivarianceError,
    EquivarianceMonitor,
    EquivarianceSpectrum,
    LayerwiseError,
    LieDerivativeError,
    Symmetry,
)
from tests.helpers import global_seed, normal

VECTORS, C4, C2 = (Symmetry(group, "1o", "1o") for group in ("SO(3)", "C4", "C2"))
LAYERS = {"**.[ab]": ("1o", "1o")}


class Net(nn.Module):
    """Two layers without a symmetry."""

    def __init__(self) -> None:
        super().__init__()
        with global_seed():
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class Model(L.LightningModule):
    """`skips` says on which ranks the network is not called."""

    def __init__(self, skips: int | None = None) -> None:
        super().__init__()
        self.net, self.skips = Net(), skips

    def training_step(self, batch: Tensor, i: int) -> Tensor:
        return self.net(batch).square().mean()

    def validation_step(self, batch: Tensor, i: int) -> None:
        if self.skips is None or self.global_rank != self.skips:
            self.net(batch)

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Largest(Metric):
    """Anybody's metric: one number."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("value", torch.tensor(0.0), dist_reduce_fx="max")

    def update(self, network: Any, *args: Any, **kwargs: Any) -> None:
        self.value = torch.maximum(self.value, network(*args, **kwargs).abs().max())

    def compute(self) -> Tensor:
        return self.value


class Writer:
    """What TensorBoard's writer has of interest."""

    def __init__(self) -> None:
        self.figures: list[tuple[str, int, Any]] = []

    def add_figure(self, tag: str, figure: Any, global_step: int | None = None) -> None:
        self.figures.append((tag, global_step, figure))


class Board(DummyLogger):
    """A logger with such a writer."""

    log_image = None

    def __init__(self) -> None:
        super().__init__()
        self.writer, self.scalars = Writer(), []

    @property
    def experiment(self) -> Writer:
        return self.writer

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.scalars.append(metrics)


def data(seed: int = 0) -> DataLoader:
    return DataLoader(normal(12, 3, seed=seed, dtype=torch.float32), 4)


def trainer(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "max_epochs": 1,
    }
    return L.Trainer(callbacks=list(callbacks), **{**quiet, **options})


def some() -> dict[str, Metric]:
    """The metrics under the names that they have by themselves."""
    return {
        "lie_derivative": LieDerivativeError(VECTORS),
        "spectrum": EquivarianceSpectrum(VECTORS, num_samples=4, highest=2),
        "layers": LayerwiseError(VECTORS, LAYERS),
        "angle_profile": AngleProfile(VECTORS, angles=[0, 90]),
        "largest": Largest(),
    }


def by_hand(metrics: dict[str, Metric], network: nn.Module, batches: list[Tensor]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, metric in metrics.items():
        metric.reset()
        for batch in batches:
            metric.update(network, batch)
        value = metric.compute()
        found |= (
            {f"{name}/{k}": float(v) for k, v in value.items()} if isinstance(value, dict) else {name: float(value)}
        )
    return found


def logged(t: L.Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in t.callback_metrics.items()}


# ---- what is logged --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("network", ["net", ""])
@pytest.mark.parametrize("function", ["fit", "validate", "test"])
def test_logs_what_the_metrics_read_on_the_same_batches(function: str, network: str) -> None:
    model = Model()
    if network == "":
        model.forward = model.net.forward
        model.validation_step = model.test_step = lambda batch: model(batch)
    monitor = EquivarianceMonitor(VECTORS, network, num_batches=2, metrics=list(some().values()))
    t = trainer(monitor, limit_val_batches=3)
    if function == "fit":
        t.fit(model, data(1), data())
    else:
        getattr(t, function)(model, data(), verbose=False)
    prefix = "test_" if function == "test" else ""
    measured = model.net if network else model
    expected = by_hand({"equivariance_error": EquivarianceError(VECTORS), **some()}, measured, list(data())[:2])
    assert logged(t) == pytest.approx({prefix + name: value for name, value in expected.items()}, rel=1e-5, abs=1e-6)
    layer = "net.b" if network == "" else "b"
    assert {"lie_derivative/total", "lie_derivative/x", "spectrum/1", f"layers/ends_up/{layer}"} <= set(expected)
    assert {"equivariance_error", "angle_profile/90", "largest"} <= set(expected)
    assert expected["lie_derivative/total"] > 0.1


def test_a_dict_gives_names_and_every_validation_begins_anew() -> None:
    metrics = {"space": EquivarianceError(VECTORS, num_samples=2), "plane": LieDerivativeError(Symmetry("SO(2)", *IN))}
    model = Model()
    t = trainer(EquivarianceMonitor(VECTORS, "net", metrics=metrics), max_epochs=2, num_sanity_val_steps=1)
    t.fit(model, data(1), data())
    fresh = {"space": EquivarianceError(VECTORS, num_samples=2), "plane": LieDerivativeError(Symmetry("SO(2)", *IN))}
    expected = by_hand({"equivariance_error": EquivarianceError(VECTORS), **fresh}, model.net, list(data()))
    assert set(expected) == {"equivariance_error", "space", "plane/total", "plane/rotation"}
    assert logged(t) == pytest.approx(expected, rel=1e-5)


IN = ("1o", "1o")


def test_a_metric_of_anybody_is_no_call_of_another_monitor() -> None:
    """Its network is called while the next monitor still records."""
    model = Model()
    monitors = [
        EquivarianceMonitor(C4, "net", num_samples=None, metrics=[Largest()], name="a"),
        EquivarianceMonitor(C4, "net", num_samples=None, name="b"),
    ]
    t = trainer(*monitors)
    t.validate(model, data(), verbose=False)
    assert logged(t)["a"] == logged(t)["b"]
    assert monitors[1].metric.update_count == 3


def test_early_stopping_and_checkpoints_can_watch_them(tmp_path: Path) -> None:
    stop = EarlyStopping("lie_derivative/total", patience=1, mode="max", min_delta=10.0)
    best = ModelCheckpoint(tmp_path, monitor="layers/ends_up/b", mode="max")
    monitor = EquivarianceMonitor(
        VECTORS, "net", metrics=[LieDerivativeError(VECTORS), LayerwiseError(VECTORS, LAYERS)]
    )
    t = trainer(monitor, stop, best, max_epochs=4, enable_checkpointing=True)
    t.fit(Model(), data(1), data())
    assert t.current_epoch == 2  # nothing rises by 10
    checkpoint = torch.load(best.best_model_path)
    assert set(checkpoint["state_dict"]) == set(Model().state_dict())
    assert not any("Monitor" in key for key in checkpoint["callbacks"])
    assert stop.best_score > 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda monitor: pickle.loads(pickle.dumps(monitor))])
def test_a_copy_works_by_itself(copied: Callable[[EquivarianceMonitor], EquivarianceMonitor]) -> None:
    monitor = EquivarianceMonitor(VECTORS, "net", metrics=some(), figures_every_n_epochs=1)
    numbers = []
    for each in (monitor, copied(monitor)):
        t = trainer(each, logger=Board())
        t.validate(Model(), data(), verbose=False)
        numbers.append(logged(t))
    twin = copied(monitor)  # after use, too
    trainer(twin, logger=Board()).validate(Model(), data(), verbose=False)
    assert numbers[0] == numbers[1]
    assert len(numbers[0]) > 15


def test_metrics_without_a_value_are_nan_and_say_so() -> None:
    model, metrics = Model(), some()
    del metrics["largest"]
    monitor = EquivarianceMonitor(VECTORS, "net", metrics=metrics, figures_every_n_epochs=1)
    board = Board()
    t = trainer(monitor, logger=board)
    t.validate(model, data(), verbose=False)
    before = set(logged(t))
    assert len(board.writer.figures) == 3
    model.net.b.bias.data.fill_(float("nan"))
    with pytest.warns(UserWarning, match="EquivarianceMonitor: .* is nan") as said:
        t.validate(model, data(), verbose=False)
    for name in ("", *(f"{name}: " for name in metrics)):
        assert any(str(w.message).startswith(f"EquivarianceMonitor: {name}the ") for w in said)
    assert set(logged(t)) == before
    assert all(value != value for value in logged(t).values())
    assert len(board.writer.figures) == 3  # and no picture of nothing
    t = trainer(EquivarianceMonitor(VECTORS, "net", metrics=some()))  # whose first value it is
    with pytest.warns(UserWarning, match="EquivarianceMonitor: .* is nan"):
        t.validate(model, data(), verbose=False)
    assert {"lie_derivative/total", "lie_derivative/x", "spectrum/0", "angle_profile/90", "layers/total"} <= set(
        logged(t)
    )


# ---- names -----------------------------------------------------------------------------------------------------------
LIE = partial(LieDerivativeError, VECTORS)
KIND = "expected `metrics` to be a list of torchmetrics Metrics, or a dict"


@pytest.mark.parametrize(
    ("metrics", "error", "message"),
    [
        ([LIE(), LIE()], ValueError, r"'lie_derivative': .*, 'lie_derivative_2'"),
        ([EquivarianceError(VECTORS)], ValueError, "and one of `metrics` would be logged as 'equivariance_error'"),
        ({"a": Largest(), "a/b": Largest()}, ValueError, "two metrics would be logged as 'a'"),
        ([Largest] * 2, TypeError, "expected a torchmetrics Metric in `metrics`, got <class"),
        ({1: Largest()}, TypeError, "expected names of `metrics` to be strings, got 1"),
        (LIE(), TypeError, KIND),
        (MetricCollection([Largest()]), TypeError, KIND),
    ],
)
def test_names_that_clash_are_refused(metrics: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        EquivarianceMonitor(VECTORS, metrics=metrics)


def test_one_metric_twice_is_refused() -> None:
    metric = Largest()
    with pytest.raises(ValueError, match="a metric is in `metrics` twice"):
        EquivarianceMonitor(VECTORS, metrics={"a": metric, "b": metric})
    monitors = [EquivarianceMonitor(VECTORS, "net", name=name, metrics={f"of {name}": metric}) for name in "ab"]
    with pytest.raises(ValueError, match="two EquivarianceMonitors have the same metric"):
        trainer(*monitors).validate(Model(), data(), verbose=False)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"network": "net"}, {"network": "net.a"}, r"log 'equivariance_error'.*name='equivariance_error_2'"),
        ({"name": "a", "metrics": [Largest()]}, {"name": "b", "metrics": [Largest()]}, r"log 'largest'.*metrics=\{'"),
        ({"name": "a", "metrics": {"b": Largest()}}, {"name": "b"}, r"two EquivarianceMonitors log 'b'.*name='b_2'"),
        ({"name": "a"}, {"name": "a/b"}, r"two EquivarianceMonitors log 'a'"),
    ],
)  # fmt: skip
def test_two_monitors_may_not_log_one_name(first: dict[str, Any], second: dict[str, Any], message: str) -> None:
    monitors = [EquivarianceMonitor(VECTORS, **{"network": "net", **each}) for each in (first, second)]
    with pytest.raises(ValueError, match=message):
        trainer(*monitors).fit(Model(), data(1), data())
