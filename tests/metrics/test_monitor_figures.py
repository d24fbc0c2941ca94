"""The figures of an EquivarianceMonitor: when, of what, to which loggers; and two processes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CometLogger, CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import nn
from torchmetrics import Metric

from lightning_equiv import (
    AngleProfile,
    EquivarianceError,
    EquivarianceMonitor,
    EquivarianceSpectrum,
    LayerwiseError,
    LieDerivativeError,
)
from lightning_equiv.wiring.figure_loggers import log_figure
from tests.helpers import normal
from tests.metrics.test_monitor_metrics import (
    C2,
    C4,
    LAYERS,
    VECTORS,
    Board,
    Largest,
    Model,
    by_hand,
    data,
    logged,
    some,
    trainer,
)


# ---- when, and of what -----------------------------------------------------------------------------------------------
def drawing(**settings: Any) -> EquivarianceMonitor:
    return EquivarianceMonitor(VECTORS, "net", metrics=some(), **{"figures_every_n_epochs": 1, **settings})


def test_figures_of_every_n_epochs_are_those_of_the_numbers() -> None:
    board = Board()
    t = trainer(drawing(figures_every_n_epochs=2), logger=board, max_epochs=5, num_sanity_val_steps=2)
    t.fit(Model(), data(1), data())
    drawn = board.writer.figures
    tags = ["spectrum/figure", "layers/figure", "angle_profile/figure"]
    assert [(tag, step) for tag, step, _ in drawn] == [(tag, step) for step in (3, 9, 15) for tag in tags]
    last = {tag: figure.axes[0] for tag, _, figure in drawn[-3:]}
    numbers = logged(t)
    curve = list(last["angle_profile/figure"].lines[0].get_ydata())
    assert curve == pytest.approx([numbers["angle_profile/0"], numbers["angle_profile/90"]])
    bars = [bar.get_width() for bar in last["layers/figure"].patches]
    assert bars == pytest.approx([numbers["layers/ends_up/a"], numbers["layers/ends_up/b"]])
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_validations_that_are_rare_have_figures() -> None:
    """In epochs 1, 3, 5: none of them a multiple of 2."""
    board = Board()
    t = trainer(drawing(figures_every_n_epochs=2), logger=board, max_epochs=6, check_val_every_n_epoch=2)
    t.fit(Model(), data(1), data())
    assert [step for tag, step, _ in board.writer.figures if tag == "layers/figure"] == [6, 12, 18]


def test_a_test_has_figures_of_its_own_and_a_sanity_check_none() -> None:
    boards = [Board(), Board()]
    t = trainer(drawing(figures_every_n_epochs=100), logger=boards)
    t.test(Model(), data(), verbose=False)
    for board in boards:
        assert [tag for tag, *_ in board.writer.figures] == [
            "test_spectrum/figure",
            "test_layers/figure",
            "test_angle_profile/figure",
        ]

    class Interrupt(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.should_stop = True
            assert board.writer.figures == board.scalars == []

    board = Board()
    trainer(drawing(), Interrupt(), logger=board, num_sanity_val_steps=2).fit(Model(), data(1), data())


class Recorder:
    """Remembers how its methods were called."""

    def __init__(self, *methods: str, **attributes: Any) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        for name in methods:
            setattr(self, name, self._remember(name))
        for name, value in attributes.items():
            setattr(self, name, value)

    def _remember(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


def test_every_logger_that_takes_figures_gets_them_its_own_way() -> None:
    metric = AngleProfile(VECTORS)
    metric.update(nn.Identity(), normal(3, 3))
    figure, _ = metric.plot()
    board = Recorder("add_figure")
    assert log_figure(Recorder(experiment=board), "a/figure", figure, 7)
    assert board.calls == [("add_figure", ("a/figure", figure), {"global_step": 7})]
    mlflow = Recorder("log_figure")
    assert log_figure(Recorder(experiment=mlflow, run_id="run"), "a/figure", figure, 7)
    assert mlflow.calls == [("log_figure", ("run", figure, "a/figure/00000007.png"), {})]
    comet = Recorder("log_figure")
    assert log_figure(Recorder(experiment=comet), "a/figure", figure, 7)
    assert comet.calls == [("log_figure", (), {"figure_name": "a/figure", "figure": figure, "step": 7})]
    wandb = Recorder("log_image", experiment=None)
    assert log_figure(wandb, "a/figure", figure, 7)
    ((_, _, given),) = wandb.calls
    assert (given["key"], given["step"]) == ("a/figure", 7)
    (pixels,) = given["images"]
    assert pixels.shape == (320, 480, 3)
    assert pixels.dtype == "uint8"
    assert pixels.min() < 100 < 255 == pixels.max()
    assert not log_figure(Recorder(experiment=Recorder()), "a/figure", figure, 7)


def test_the_methods_are_those_of_lightnings_loggers() -> None:
    assert callable(WandbLogger.log_image)
    assert hasattr(MLFlowLogger, "run_id")
    for cls in (CometLogger, MLFlowLogger, TensorBoardLogger, CSVLogger):
        assert not hasattr(cls, "log_image")
        assert hasattr(cls, "experiment")
    assert not hasattr(CometLogger, "run_id")


def test_a_logger_that_takes_none_is_told_of_once(tmp_path: Path) -> None:
    t = trainer(drawing(), logger=CSVLogger(tmp_path), max_epochs=2)
    with pytest.warns(UserWarning, match="CSVLogger takes no figures: give the Trainer a TensorBoardLogger") as said:
        t.fit(Model(), data(1), data())
    assert sum("takes no figures" in str(warning.message) for warning in said) == 1
    board = Board()  # beside one that does, nothing is said
    trainer(drawing(), logger=[CSVLogger(tmp_path), board]).fit(Model(), data(1), data())
    assert len(board.writer.figures) == 3
    with pytest.warns(UserWarning, match="figures_every_n_epochs is set, and the Trainer has no logger"):
        trainer(drawing()).fit(Model(), data(1), data())


def test_without_matplotlib_it_is_said_at_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    board = Board()
    t = trainer(drawing(), logger=board, max_epochs=2)
    with pytest.warns(
        UserWarning, match=r"no figures will be logged: .* pip install 'lightning_equiv\[report\]'"
    ) as said:
        t.fit(Model(), data(1), data())
    assert len([w for w in said if "no figures" in str(w.message)]) == 1
    assert board.writer.figures == []
    assert "angle_profile/90" in logged(t)


def test_figures_without_a_metric_that_draws_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a metric that draws a picture in `metrics`.*e\.g\. AngleProfile"):
        EquivarianceMonitor(VECTORS, metrics=[LieDerivativeError(VECTORS)], figures_every_n_epochs=2)
    with pytest.raises(ValueError, match="expected figures_every_n_epochs to be a whole number of at least 1"):
        EquivarianceMonitor(VECTORS, metrics=[AngleProfile(VECTORS)], figures_every_n_epochs=0)


def test_fast_dev_run_has_a_logger_for_nothing() -> None:
    trainer(drawing(), logger=Board(), fast_dev_run=True).fit(Model(), data(1), data())


def test_tensorboards_file_holds_the_figures(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(tmp_path)
    trainer(drawing(), logger=logger, max_epochs=2).fit(Model(), data(1), data())
    logger.experiment.flush()
    read = events.EventAccumulator(logger.log_dir)
    read.Reload()
    for name in ("spectrum", "layers", "angle_profile"):
        images = read.Images(f"{name}/figure")
        assert [image.step for image in images] == [3, 6]
        assert images[0].encoded_image_string.startswith(b"\x89PNG")
        assert images[0].width > 300
    assert len(read.Scalars("lie_derivative/total")) == 2


# ---- two processes ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("skips", [None, 0])
def test_two_processes_read_the_same_as_one(skips: int | None, tmp_path: Path) -> None:
    """Nothing here is drawn at random. With `skips`, the rank that writes the log has seen nothing itself."""

    class File(Board):
        """Writes what it gets into a file: the processes are others."""

        def __init__(self) -> None:
            super().__init__()
            self.writer.add_figure = self.write

        def write(self, tag: str, figure: Any, global_step: int) -> None:
            axes = figure.axes[0]
            numbers = [bar.get_width() for bar in axes.patches] or list(axes.lines[-1].get_ydata())
            torch.save([float(n) for n in numbers], tmp_path / tag.replace("/", "_"))

    def exact() -> dict[str, Metric]:
        return {
            "lie_derivative": LieDerivativeError(VECTORS),
            "spectrum": EquivarianceSpectrum(C4, num_samples=None),
            "layers": LayerwiseError(C4, LAYERS, num_samples=None),
            "angle_profile": AngleProfile(C2),
            "largest": Largest(),
        }

    monitor = EquivarianceMonitor(C4, "net", num_samples=None, metrics=exact(), figures_every_n_epochs=1)
    t = trainer(monitor, strategy="ddp_fork", devices=2, logger=File(), use_distributed_sampler=skips is None)
    model = Model(skips)
    t.fit(model, data(1), data())
    error = EquivarianceError(C4, num_samples=None)
    expected = by_hand({"equivariance_error": error, **exact()}, model.net, list(data()))
    assert logged(t) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    bars = torch.load(tmp_path / "layers_figure")
    assert bars == pytest.approx([expected["layers/ends_up/a"], expected["layers/ends_up/b"]], rel=1e-4)
    curve = torch.load(tmp_path / "angle_profile_figure")
    assert curve == pytest.approx([expected["angle_profile/0"], expected["angle_profile/180"]], rel=1e-4, abs=1e-6)
