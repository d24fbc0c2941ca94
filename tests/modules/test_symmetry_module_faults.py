"""The ready module interrupted, copied, in two processes, and written in ways that its own examples are not."""

from __future__ import annotations

import copy
import functools
import pickle
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_equiv import REMUL, RegressionModule, Symmetry
from tests.strategies.toys import LR, SYMMETRY, Rows, loader, make_net, trainer, weights

SGD = functools.partial(torch.optim.SGD, lr=LR)
labelled = namedtuple("labelled", "input y")


def module(**settings: Any) -> RegressionModule:
    return RegressionModule(make_net(), **{"optimizer": SGD, **settings})


def remul() -> REMUL:
    return REMUL(SYMMETRY, "net")


def saved(module: L.LightningModule, folder: Path, **options: Any) -> str:
    save = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    trainer(save, enable_checkpointing=True, **options).fit(module, loader(), loader())
    return str(folder / "epoch=0.ckpt")


class Wide(RegressionModule):
    def __init__(self, width: int = 4, **settings: Any) -> None:
        super().__init__(nn.Sequential(nn.Linear(3, width), nn.Linear(width, 3)), **settings)


class Wider(Wide):
    def __init__(self, width: int, name: str = "a", **settings: Any) -> None:
        super().__init__(2 * width, **settings)
        self.name = name


# ---- checkpoints, copies ---------------------------------------------------------------------------------------------
def test_a_subclass_of_a_subclass_comes_back(tmp_path: Path) -> None:
    ours = Wider(3, "b", lr=0.1, loss="l1", symmetry=SYMMETRY)
    path = saved(ours, tmp_path, logger=CSVLogger(tmp_path))
    (file,) = tmp_path.rglob("hparams.yaml")
    for options in ({}, {"strict": False}, {"weights_only": False}, {"hparams_file": file}):
        again = Wider.load_from_checkpoint(path, map_location="cpu", **options)
        assert torch.equal(weights(again), weights(ours))
        assert (again.name, again.lr, again.symmetry) == ("b", 0.1, SYMMETRY)
    assert Wider.load_from_checkpoint(path, lr=0.7).lr == 0.7


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"])
def test_a_copy_trains_as_the_original(copied: Callable[[Any], Any]) -> None:
    ours = module(symmetry=SYMMETRY, strategies=[remul()])
    twin = copied(ours)
    for one in (ours, twin):
        trainer().fit(one, loader(), loader())
    assert torch.equal(weights(twin), weights(ours))
    assert copied(ours).hparams == ours.hparams, "after a fit, too"


@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_a_users_command_line_for_one_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OfRows(L.LightningDataModule):
        def train_dataloader(self) -> DataLoader:
            return loader()

    monkeypatch.setattr("sys.argv", ["mine"])
    words = {"max_steps": 1, "accelerator": "cpu", "enable_progress_bar": "false", "limit_val_batches": 0}
    run = [f"--trainer.{key}={value}" for key, value in {**words, "default_root_dir": tmp_path}.items()]
    settings = ["--model.width=5", "--model.lr=0.3", "--model.loss=l1"]
    LightningCLI(Wide, OfRows, args=["fit", "--seed_everything=0", *run, *settings])
    (path,) = tmp_path.rglob("*.ckpt")
    again = Wide.load_from_checkpoint(path, strategies=[REMUL(SYMMETRY, "net", weight=7.0)])  # an object beside YAML
    assert (again.lr, again.loss, again.strategies[0].weight) == (0.3, nn.functional.l1_loss, 7.0)
    assert again.net[0].out_features == 5


# ---- evaluation ------------------------------------------------------------------------------------------------------
def test_nothing_is_left_of_a_broken_validation_or_of_the_sanity_check() -> None:
    class Breaks(RegressionModule):
        steps = 0

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, batch_idx, dataloader_idx)
            self.steps += 1
            if self.steps == 3:
                raise RuntimeError("broken off")

    ours, data = Breaks(make_net(), optimizer=SGD), Rows()
    with pytest.raises(RuntimeError, match="broken off"):
        trainer().validate(ours, loader(), verbose=False)
    run = trainer(num_sanity_val_steps=2, limit_val_batches=2)
    run.fit(ours.train(), loader(), loader())
    expected = (ours.net(data.x[:8]) - data.y[:8]).abs().mean()
    torch.testing.assert_close(run.callback_metrics["val_mae"], expected.detach())


@pytest.mark.filterwarnings("ignore:Using `DistributedSampler` with the dataloaders")
def test_two_processes_measure_the_whole_set(tmp_path: Path) -> None:
    class Writes(L.Callback):
        def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            torch.save(dict(trainer.callback_metrics), tmp_path / f"{trainer.global_rank}.pt")

    ddp, one = DDPStrategy(start_method="fork", process_group_backend="gloo"), trainer()
    trainer(Writes(), strategy=ddp, devices=2).test(module(), loader(20), verbose=False)
    one.test(module(), loader(20), verbose=False)
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), dict(one.callback_metrics))


def test_predict_with_and_without_targets() -> None:
    x, ours = Rows().x, module()
    for predicted in trainer().predict(ours, [loader(), DataLoader(x, 4), DataLoader(TensorDataset(x), 4)]):
        torch.testing.assert_close(torch.cat(predicted), ours.net(x).detach())


def test_the_results_of_each_loader_are_its_own() -> None:
    for i, result in enumerate(trainer().test(module(), [loader(), loader(10)], verbose=False)):
        assert set(result) == {f"test_loss/dataloader_idx_{i}", f"test_mae/dataloader_idx_{i}"}


def test_one_trainer_for_two_modules() -> None:
    run, trivial = trainer(), Symmetry("C4", inputs="Invariant()", outputs="Invariant()")
    run.fit(module(symmetry=SYMMETRY, strategies=[remul()]), loader(), loader())
    (result,) = run.test(module(symmetry=trivial, strategies=[remul()]), loader(), verbose=False)
    assert result["test_equivariance_error"] < 1e-5, "not the first one's monitor, which turns the inputs"


# ---- arguments -------------------------------------------------------------------------------------------------------
def test_a_label_is_never_an_argument() -> None:
    x = torch.randn(5, 3)
    for target, batch in (("y.f", {"input": x, "y": {"f": x}}), ((1, "f"), (x, {"f": x})), (-1, labelled(x, x))):
        module(target=target).training_step(batch, 0)
    with pytest.raises(ValueError, match="target='y' is not in the batch: 'y' was looked for in a labelled of 2: 0, 1"):
        module(target="y").training_step(labelled(x, x), 0)


@dataclass(eq=False)
class Fields(Wide):
    width: int = 4

    def __post_init__(self) -> None:
        RegressionModule.__init__(self, make_net())


class Holds(Wide):
    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held = held


class Sets(Wide):
    def __init__(self, width: int = 4, **settings: Any) -> None:
        super().__init__(width, target=1, lr=0.1, **settings)


def test_hyper_parameters_are_what_the_class_itself_was_called_with(tmp_path: Path) -> None:
    assert Fields(width=5).hparams["width"] == 5
    ours = Sets(5, loss="l1", optimizer=SGD)
    assert dict(ours.hparams) == {"width": 5, "loss": "l1"}, "not the target and lr, which it sets again"
    again = Sets.load_from_checkpoint(saved(ours, tmp_path), optimizer=SGD)
    assert (again.target, again.lr, again.net[0].out_features) == (1, 0.1, 5)


HELD = {"tensor": torch.zeros(3), "module": nn.SiLU(), "array": np.zeros(3), "class": nn.SiLU}


@pytest.mark.parametrize("held", HELD.values(), ids=HELD)
def test_an_object_of_a_subclass_has_to_be_given_again(held: Any, tmp_path: Path) -> None:
    path = saved(Holds(held), tmp_path)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'held'"):
        Holds.load_from_checkpoint(path)
    assert Holds.load_from_checkpoint(path, held=held).held is held


@pytest.mark.parametrize("number", [np.float64(0.5), np.float32(0.5), np.int64(2)], ids=["f8", "f4", "i8"])
def test_a_number_of_numpys_comes_back(number: Any, tmp_path: Path) -> None:
    assert Holds.load_from_checkpoint(saved(Holds(number), tmp_path), weights_only=True).held == number


def test_a_learning_rate_of_numpys_leaves_a_safe_checkpoint(tmp_path: Path) -> None:
    torch.load(saved(module(lr=np.float64(0.1)), tmp_path), weights_only=True)


def test_two_strategies_of_one_name() -> None:
    with pytest.raises((ValueError, RuntimeError), match="REMUL"):
        trainer().fit(module(strategies=[remul(), remul()]), loader(), loader())
