"""The ready module: it trains as one written by hand, takes batches of any form, and comes back from a checkpoint."""

from __future__ import annotations

import functools
import sys
from collections import namedtuple
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.regression import MeanSquaredError

from lightning_equiv import REMUL, ClassificationModule, GroupAugmentation, RegressionModule, Symmetry, SymmetryModule
from tests.strategies.toys import LR, SYMMETRY, Plain, Rows, loader, make_net, trainer, weights

SGD = functools.partial(torch.optim.SGD, lr=LR)
batch_of = namedtuple("batch_of", "a b y")


def remul() -> REMUL:
    return REMUL(SYMMETRY, "net", weight=2.0, target=1)


def module(**settings: Any) -> RegressionModule:
    return RegressionModule(make_net(), **{"optimizer": SGD, **settings})


def saved(module: Any, folder: Path, **options: Any) -> str:
    save = ModelCheckpoint(folder, filename="it")
    trainer(save, enable_checkpointing=True, **options).fit(module, loader())
    return str(folder / "it.ckpt")


class Forces(RegressionModule):
    """What a user writes."""

    def __init__(self, width: int = 16, weight: float = 1.0, act: nn.Module | None = None) -> None:
        net = nn.Sequential(nn.Linear(3, width), act or nn.Tanh(), nn.Linear(width, 3))
        super().__init__(net, symmetry=SYMMETRY, strategies=[REMUL(SYMMETRY, "net", weight=weight)], optimizer=SGD)


# ---- training --------------------------------------------------------------------------------------------------------
def test_trains_as_the_module_written_by_hand() -> None:
    ours, twin = module(symmetry=SYMMETRY, strategies=[remul()]), Plain()
    run, by_hand = trainer(max_epochs=2), trainer(remul(), max_epochs=2)
    run.fit(ours, loader(), loader())
    by_hand.fit(twin, loader(), loader())
    assert torch.equal(weights(ours), weights(twin))
    assert not torch.equal(weights(ours), weights(Plain()))
    logged = run.callback_metrics
    assert {"train_loss", "val_loss", "val_mae", "equivariance_error", "remul/task_loss"} <= set(logged)
    assert logged["val_loss"] == by_hand.callback_metrics["val_loss"]


def test_metrics_are_those_of_the_whole_set_for_every_loader() -> None:
    ours, run = module(metrics={"mse": MeanSquaredError()}), trainer()
    other = loader(10)
    run.test(ours, [loader(), other], verbose=False)
    for i, data in enumerate([loader().dataset, other.dataset]):
        assert isinstance(data, Rows)
        expected = nn.functional.mse_loss(ours.net(data.x), data.y)
        torch.testing.assert_close(run.callback_metrics[f"test_mse/dataloader_idx_{i}"], expected.detach())
    run.test(ours, other, verbose=False)  # nothing is left of the last one
    torch.testing.assert_close(run.callback_metrics["test_mse"], expected.detach())
    run.validate(ours, other, verbose=False)
    torch.testing.assert_close(run.callback_metrics["val_mse"], expected.detach())


def test_metrics_of_one_class_do_not_share_their_state() -> None:
    metrics = {"near": WithinTolerance(0.1), "far": WithinTolerance(10.0)}  # equal after a first batch of zeros
    x = torch.cat([torch.zeros(8, 3), torch.ones(8, 3)])
    ours, run = SymmetryModule(nn.Identity(), metrics=metrics), trainer()
    run.validate(ours, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, 0 * x), 8), verbose=False)
    assert (run.callback_metrics["val_near"], run.callback_metrics["val_far"]) == (24, 48)


class WithinTolerance(Metric):
    """How many numbers are nearly right."""

    full_state_update = False

    def __init__(self, tolerance: float) -> None:
        super().__init__()
        self.tolerance = tolerance
        self.add_state("count", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.count = self.count + ((prediction - target).abs() <= self.tolerance).sum()

    def compute(self) -> Tensor:
        return self.count


def test_classification() -> None:
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long()), 8)
    ours = ClassificationModule(make_net(), num_classes=3, lr=0.05)
    run = trainer(max_epochs=5)
    run.fit(ours, data, data)
    assert float(run.callback_metrics["val_accuracy"]) == (ours.net(x).argmax(-1) == (x[:, 0] > 0)).float().mean()
    assert float(run.callback_metrics["val_accuracy"]) > 0.9
    with pytest.raises(ValueError, match=r"expected logits of shape \(batch, 4"):
        ClassificationModule(make_net(), num_classes=4).training_step(next(iter(data)), 0)


def test_optimizer_scheduler_and_learning_rate() -> None:
    steps = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.5)
    ours = module(lr=0.4, scheduler=steps, interval="step")
    run = trainer()
    run.fit(ours, loader())
    assert run.optimizers[0].param_groups[0]["lr"] == 0.4 * 0.5**3  # six batches
    ours = module(scheduler=steps)
    run = trainer(max_epochs=4)
    run.fit(ours, loader())
    assert run.optimizers[0].param_groups[0]["lr"] == LR * 0.5**2
    plateau = module(scheduler=functools.partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, threshold=1e9))
    run = trainer(max_epochs=3)
    run.fit(plateau, loader(), loader())
    assert run.optimizers[0].param_groups[0]["lr"] < LR


def test_lr_find_sets_the_learning_rate(tmp_path: Path) -> None:
    ours = module(lr=1e-8, strategies=[remul()])
    run = trainer(default_root_dir=tmp_path, max_epochs=-1, max_steps=50)
    found = Tuner(run).lr_find(ours, loader(), num_training=40, early_stop_threshold=None)
    assert found is not None
    assert ours.lr == found.suggestion() != 1e-8


# ---- batches ---------------------------------------------------------------------------------------------------------
class Two(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a - 2 * b


a, b, y = torch.randn(3, 5, 3).unbind()


@pytest.mark.parametrize(
    ("batch", "settings"),
    [
        ((a, b, y), {}),
        ([y, a, b], {"target": 0}),
        ({"a": a, "b": b, "y": y}, {"target": "y"}),
        ({"a": a - 2 * b, "b": 0 * b, "y": y}, {"target": "y", "inputs": {"a": "a", "b": "b"}}),
        ({"p": a, "q": b, "extra": 1, "y": y}, {"target": "y", "inputs": ["p", "q"]}),
        ({"p": a, "q": b, "y": y}, {"target": "y", "inputs": {"b": "q", "a": "p"}}),
        ({"x": {"a": a}, "rest": (b, y)}, {"target": ("rest", 1), "inputs": {"a": "x.a", "b": ("rest", 0)}}),
        ({"a": a, "b": b, "rest": (y,)}, {"target": ["rest", 0]}),
        (batch_of(a, b, y), {}),
    ],
)
def test_batches_of_many_forms(batch: Any, settings: Any) -> None:
    ours = SymmetryModule(Two(), **settings)
    loss, prediction, target = ours.loss_of(batch)
    assert torch.equal(prediction, a - 2 * b)
    assert torch.equal(target, y)
    torch.testing.assert_close(loss, (a - 2 * b - y).square().mean())
    assert torch.equal(ours.predict_step(batch, 0), a - 2 * b)


@pytest.mark.filterwarnings("ignore:.*no longer necessary:DeprecationWarning")
def test_a_graph_and_batches_without_a_target() -> None:
    from torch_geometric.data import Batch, Data

    class OfGraph(nn.Module):
        def forward(self, graph: Data) -> Tensor:
            return 2 * graph.pos

    graph = Batch.from_data_list([Data(pos=a, y=b), Data(pos=b, y=a)])
    ours = RegressionModule(OfGraph(), target="y")
    loss, *_ = ours.loss_of(graph)
    torch.testing.assert_close(loss, ((2 * graph.pos - graph.y) ** 2).mean())
    net = make_net()
    for bare in (a, (a,), [a]):
        assert torch.equal(SymmetryModule(net).predict_step(bare), net(a))
    with pytest.raises(ValueError, match=r"expected `target` to say .*, got a batch that is a dict of 2"):
        SymmetryModule(net).labels({"input": a, "y": y})
    with pytest.raises(ValueError, match="expected `target` to say"):
        SymmetryModule(net).loss_of((a,))  # which would learn the identity
    with pytest.raises(ValueError, match="expected a batch that is a tuple"):
        SymmetryModule(net).arguments("a")
    with pytest.raises(ValueError, match="target='z' is not in the batch"):
        SymmetryModule(net, target="z").labels({"x": a})


def test_outputs_that_no_named_loss_knows() -> None:
    class Parts(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"force": x, "energy": x.sum(-1)}

    with pytest.raises(ValueError, match=r"expected a tensor from the network .* got a dict of 2: force, energy"):
        RegressionModule(Parts()).training_step((a, y), 0)
    ours = RegressionModule(Parts(), loss=lambda p, t: (p["force"] - t).abs().mean(), metrics={})
    torch.testing.assert_close(ours.training_step((a, y), 0), (a - y).abs().mean())
    with pytest.raises(ValueError, match=r"expected classes of shape \(5,\) beside logits .*, got \(5, 1\)"):
        ClassificationModule(nn.Identity(), num_classes=3).training_step((a, torch.zeros(5, 1, dtype=torch.long)), 0)


def test_a_prediction_that_would_be_broadcast_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a prediction of the target's shape \(5,\), got \(5, 3\)"):
        module().training_step((a, a[:, 0]), 0)


# ---- checkpoints -----------------------------------------------------------------------------------------------------
def test_a_users_class_comes_back_from_its_checkpoint(tmp_path: Path) -> None:
    ours = Forces(width=8, weight=3.0)
    path = saved(ours, tmp_path)
    assert torch.load(path, weights_only=True)["hyper_parameters"] == {"width": 8, "weight": 3.0, "act": None}
    again = Forces.load_from_checkpoint(path)
    assert torch.equal(weights(again), weights(ours))
    strategy = again.strategies[0]
    assert isinstance(strategy, REMUL)
    assert strategy.weight == 3.0


def test_a_module_made_in_python_comes_back_with_its_objects(tmp_path: Path) -> None:
    scheduler = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=3)
    ours = module(symmetry=SYMMETRY, loss="l1", lr=0.03, scheduler=scheduler, strategies=[remul()])
    path = saved(ours, tmp_path)
    with pytest.raises(TypeError, match="argument: 'net'"):
        RegressionModule.load_from_checkpoint(path)
    with pytest.raises(ValueError, match=r"Module\.load_from_checkpoint\(path, strategies=\.\.\., scheduler=\.\.\.\)"):
        RegressionModule.load_from_checkpoint(path, net=make_net(1), optimizer=SGD)
    objects = {"net": make_net(1), "optimizer": SGD, "scheduler": scheduler}
    with pytest.warns(UserWarning, match="loaded without its strategies"):
        again = RegressionModule.load_from_checkpoint(path, **objects)
    assert torch.equal(weights(again), weights(ours))
    assert again.symmetry == SYMMETRY
    assert (again.lr, again.loss, again.strategies) == (0.03, nn.functional.l1_loss, [])
    again = RegressionModule.load_from_checkpoint(path, **objects, strategies=[remul()])  # and no warning
    assert len(again.strategies) == 1


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
def test_a_trainer_loads_into_the_module_that_it_is_given(tmp_path: Path) -> None:
    path = saved(module(), tmp_path)
    twin = RegressionModule(make_net(1))  # a test needs no optimizer
    trainer().test(twin, loader(), ckpt_path=path, verbose=False)
    saved_weights = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved_weights[name]) for name, value in twin.state_dict().items())


def test_a_checkpoint_imports_nothing_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hostile.py").write_text(f"open({str(tmp_path / 'written')!r}, 'w')\nclass SGD: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = saved(module(lr=0.1), tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    for name in ("optimizer", "scheduler", "loss", "net", "symmetry", "metrics", "strategies"):
        described = {"class_path": "hostile.SGD", "init_args": {}}
        hyper_parameters = {**checkpoint["hyper_parameters"], name: [described] if name == "strategies" else described}
        torch.save({**checkpoint, "hyper_parameters": hyper_parameters}, path)
        objects: dict[str, Any] = {"net": make_net(), "optimizer": SGD}
        objects.pop(name, None)
        with pytest.raises((TypeError, ValueError)):
            RegressionModule.load_from_checkpoint(path, **objects)
    assert "hostile" not in sys.modules
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss", lambda p, t: (p - t).abs().mean()),
        ("metrics", {"mse": MeanSquaredError()}),
        ("symmetry", Symmetry("SO(3)", inputs=lambda g, x: x, outputs="1o")),
        ("optimizer", lambda parameters: torch.optim.SGD(parameters, lr=0.1)),
    ],
)
def test_objects_that_no_checkpoint_holds_have_to_be_given_again(name: str, value: Any, tmp_path: Path) -> None:
    path = saved(module(**{name: value}), tmp_path)
    objects = {"net": make_net(), "optimizer": SGD, name: value}
    without = {key: held for key, held in objects.items() if key != name}
    with pytest.raises(ValueError, match=rf"expected {name} to be given again, .*\(path, {name}=\.\.\.\)"):
        RegressionModule.load_from_checkpoint(path, **without)
    RegressionModule.load_from_checkpoint(path, **objects)


def test_the_arguments_of_a_module_around_it_are_not_taken() -> None:
    class Outer(Plain):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.inner = RegressionModule(make_net(), lr=0.5)

    assert Outer(3).inner.hparams["lr"] == 0.5
    assert "size" not in Outer(3).inner.hparams


class Color(str, Enum):
    RED = "red"


def test_numbers_of_numpy_and_enums_are_read_again(tmp_path: Path) -> None:
    class Numbers(RegressionModule):
        def __init__(self, width: Any, rate: Any, color: Any) -> None:
            assert (width, rate, color) == (4, 0.5, "red")
            super().__init__(make_net(), optimizer=SGD)

    path = saved(Numbers(np.int64(4), np.float32(0.5), Color.RED), tmp_path)
    assert torch.load(path, weights_only=True)["hyper_parameters"] == {"width": 4, "rate": 0.5, "color": "red"}
    Numbers.load_from_checkpoint(path)


def test_a_constructor_that_passes_everything_on() -> None:
    class Mixin:
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)

    class Mixed(Mixin, RegressionModule):
        pass

    assert dict(Mixed(make_net(), lr=0.1).hparams) == {"lr": 0.1}


def test_a_large_network_is_not_copied() -> None:
    class Uncopied(nn.Linear):
        def __deepcopy__(self, memo: Any) -> None:
            raise AssertionError

    RegressionModule(Uncopied(3, 3), strategies=[GroupAugmentation(SYMMETRY)])


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="expected loss to be one of 'mse', 'l1'"):
        module(loss="msle")
    with pytest.raises(ValueError, match="expected interval"):
        module(interval="batch")
    for lr in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="expected lr to be a finite number of at least 0 or None"):
            module(lr=lr)
    for wrong in ("adam", {"class_path": "torch.optim.SGD"}):
        with pytest.raises(TypeError, match="expected optimizer to be a callable"):
            module(optimizer=wrong)
    with pytest.raises(TypeError, match="expected scheduler to be a callable"):
        module(scheduler={"class_path": "os.system"})
    for settings, message in (
        ({"net": None}, "expected net to be a network, an nn.Module, got None"),
        ({"net": nn.Linear}, "expected net to be a network"),
        ({"strategies": remul()}, "expected strategies to be a list of strategies"),
        ({"strategies": ["remul"]}, "expected strategies to be a list of strategies"),
        ({"symmetry": "SO(3)"}, "expected a Symmetry, e.g. .* got 'SO\\(3\\)'"),
        ({"metrics": [MeanSquaredError()]}, "expected metrics by name"),
        ({"metrics": {"loss": MeanSquaredError()}}, "other names than 'loss'"),
        ({"loss": None}, "expected loss to be one of"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            RegressionModule(**{"net": make_net(), **settings})
    with pytest.raises(ValueError, match="target=5 is not in the batch"):
        module(target=5).training_step((a, y), 0)
    with pytest.raises(ValueError, match="no group is named 'SO3D'"):
        module(symmetry={"group": "SO3D", "inputs": "1o", "outputs": "1o"})
