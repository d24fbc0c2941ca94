"""REMUL by itself: GradNorm, dropout and batch norm, containers, and what it says to bad input."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_equiv import REMUL, EquivarianceError, GroupAugmentation, Invariant, Symmetry
from lightning_equiv.strategies.remul.gradnorm import gradnorm_weights
from tests.strategies.toys import (
    SYMMETRY,
    Plain,
    assert_same,
    loader,
    make_net,
    rotations,
    snapshot,
    trainer,
    turn,
    weights,
)

mse = nn.functional.mse_loss


def test_it_makes_a_network_more_equivariant() -> None:
    errors = []
    for callbacks in ([], [REMUL(SYMMETRY, "net", weight=100.0)]):
        module = Plain(lr=0.003)
        trainer(*callbacks, max_epochs=30).fit(module, loader())
        metric = EquivarianceError(SYMMETRY)
        metric.update(module.net, loader().dataset.x)
        errors.append(float(metric.compute()))
    assert errors[1] < 0.5 * errors[0]


def test_logs_both_losses_and_the_weights() -> None:
    run = trainer(REMUL(SYMMETRY, "net", weight=3.0))
    module = Plain(lr=0.0)
    run.fit(module, loader())
    x, y = loader().dataset.x[20:], loader().dataset.y[20:]  # the last, ragged batch
    R = rotations(2, "REMUL", "remul", 0, 0, (0, 5))
    logged = run.callback_metrics
    torch.testing.assert_close(logged["remul/task_loss"], mse(module.net(x), y))
    assert_same(logged["remul/equivariance_loss"], mse(module.net(turn(R, x)), turn(R, module.net(x))))
    assert (logged["remul/task_weight"], logged["remul/equivariance_weight"]) == (1, 3)


def test_one_element_for_every_sample_and_fresh_ones_every_step() -> None:
    keys = [(0, 0), (0, 1), (1, 0)]
    drawn = torch.cat([rotations(4, "REMUL", "remul", 0, 0, key) for key in keys])
    distances = torch.cdist(drawn.flatten(1), drawn.flatten(1)) + torch.eye(12)
    assert distances.min() > 1e-3


# ---- GradNorm --------------------------------------------------------------------------------------------------------


def test_gradnorm_step_against_autograd() -> None:
    """The closed form is the derivative of sum |G_i - goal| that autograd finds through the norms."""
    net = make_net().double()
    x, y = torch.randn(2, 8, 3, dtype=torch.float64)
    losses = torch.stack([mse(net(x), y), (net(x) - net(-x)).abs().mean()])
    W = net[2].weight
    w = torch.tensor([1.3, 0.7], dtype=torch.float64, requires_grad=True)
    norms = [torch.autograd.grad(w[i] * losses[i], W, create_graph=True)[0].norm() for i in range(2)]
    G = torch.stack(norms)
    first = torch.tensor([2.0, 0.3], dtype=torch.float64)
    rate = (losses / first) / (losses / first).mean()
    goal = (G.mean() * rate**1.5).detach()
    (step,) = torch.autograd.grad((G - goal).abs().sum(), w)
    expected = (w - 0.01 * step).detach().clamp_min(1e-3)
    expected = 2 * expected / expected.sum()
    raw = torch.stack([torch.autograd.grad(loss, W, retain_graph=True)[0].norm() for loss in losses])
    got = gradnorm_weights(w.detach(), losses.detach(), first, raw, gamma=1.5, lr=0.01)
    torch.testing.assert_close(got, expected)
    assert float(got.sum()) == pytest.approx(2)


def test_gradnorm_in_the_trainer_is_the_same_loop_by_hand() -> None:
    class ByHand(Plain):
        w = torch.ones(2)
        first: Tensor | None = None

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            R = rotations(len(x), "REMUL", "remul", 0, 0, (self.current_epoch, batch_idx))
            losses = [mse(self.net(x), y), mse(self.net(turn(R, x)), turn(R, y))]
            norms = torch.stack(
                [torch.autograd.grad(loss, self.net[2].weight, retain_graph=True)[0].norm() for loss in losses]
            )
            values = torch.stack(losses).detach()
            self.first = values if self.first is None else self.first
            total = self.w[0] * losses[0] + self.w[1] * losses[1]
            self.w = gradnorm_weights(self.w, values, self.first, norms, lr=0.2)
            return total

    ours, twin = Plain(), ByHand()
    run = trainer(REMUL(SYMMETRY, "net", balance="gradnorm", target=1, gradnorm_lr=0.2), max_epochs=3)
    run.fit(ours, loader())
    trainer(max_epochs=3).fit(twin, loader())
    assert_same(weights(ours), weights(twin))
    logged = run.callback_metrics
    assert float(logged["remul/task_weight"] + logged["remul/equivariance_weight"]) == pytest.approx(2)
    assert float(logged["remul/task_weight"]) != pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_gradnorm_on_two_processes_keeps_the_ranks_equal(tmp_path: Any) -> None:
    from tests.strategies.toys import SavesPerRank

    remul = REMUL(SYMMETRY, "net", balance="gradnorm", gradnorm_lr=0.2)
    trainer(remul, SavesPerRank(tmp_path), strategy="ddp_fork", devices=2, max_epochs=2).fit(Plain(), loader())
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_gradnorm_looks_at_the_layer_that_is_named() -> None:
    remul = REMUL(SYMMETRY, "net", balance="gradnorm", last_layer="0")
    module = Plain()
    assert remul._shared_weights(module.net) is module.net[0].weight
    assert REMUL(SYMMETRY, "net", balance="gradnorm")._shared_weights(module.net) is module.net[2].weight
    with pytest.raises(ValueError, match=r"last_layer='7'.*2\.weight"):
        trainer(REMUL(SYMMETRY, "net", balance="gradnorm", last_layer="7")).fit(module, loader())


# ---- the second pass leaves no trace ---------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze", [True, False])
def test_batch_norm_statistics_and_dropout_draws(freeze: bool) -> None:
    def fit(*callbacks: L.Callback) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
        torch.manual_seed(1)
        trainer(*callbacks).fit(Plain(net, lr=0.0), loader(batch_size=11))
        return net, torch.get_rng_state()

    (ours, state), (alone, state_alone) = fit(REMUL(SYMMETRY, "net", freeze_stochastic=freeze)), fit()
    same = torch.allclose(ours[1].running_mean, alone[1].running_mean) and torch.equal(state, state_alone)
    assert same == freeze
    assert int(ours[1].num_batches_tracked) == (2 if freeze else 4)
    assert ours[1].track_running_stats
    assert all(m.training for m in ours.modules())


def test_the_second_pass_normalises_by_the_batch() -> None:
    """Equivariant up to batch norm of an invariant: with running statistics the two sides would differ."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(1)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.norm(x.norm(dim=-1, keepdim=True))

    run = trainer(REMUL(SYMMETRY, "net"))
    run.fit(Plain(Net(), lr=0.0), loader(batch_size=11))
    assert float(run.callback_metrics["remul/equivariance_loss"]) < 1e-10


# ---- what users' models look like ------------------------------------------------------------------------------------


def test_dicts_keywords_and_nested_targets() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.Linear(4, 3)

        def forward(self, v: Tensor, *, mass: Tensor) -> dict[str, Tensor]:
            push = self.mlp(torch.cat([v, mass], dim=-1))
            return {"force": push, "energy": push.square().sum(-1)}

    class Module(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            out = self.net(batch["v"], mass=batch["m"])
            return {"loss": mse(out["force"], batch["labels"]["force"]), "kept": 1}

    symmetry = Symmetry("SO(3)", inputs={"v": "1o", "mass": "0e"}, outputs={"force": "1o", "energy": Invariant()})
    x = torch.randn(5, 3)
    data = [{"v": x, "m": torch.rand(5, 1), "labels": {"force": 2 * x, "energy": torch.rand(5)}}]
    run = trainer(REMUL(symmetry, "net", target="labels"))
    module = Module(Net(), lr=0.0)
    run.fit(module, DataLoader(data, batch_size=None))
    R = rotations(5, "REMUL", "remul", 0, 0, (0, 0))
    out = module.net(turn(R, x), mass=data[0]["m"])
    expected = mse(out["force"], turn(R, 2 * x)) + mse(out["energy"], data[0]["labels"]["energy"])
    assert_same(run.callback_metrics["remul/equivariance_loss"], expected.detach())


def test_an_output_of_the_whole_call_is_no_part_of_the_loss() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            out = self.lin(x)
            return out, out.square().mean() * 100  # an auxiliary loss, say

    class Module(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return mse(self.net(batch[0])[0], batch[1])

    symmetry = Symmetry("SO(3)", inputs="1o", outputs=("1o", Invariant(shared=True)))
    run = trainer(REMUL(symmetry, "net"))
    module = Module(Net(), lr=0.0)
    run.fit(module, loader(n=4))
    x, _ = next(iter(loader(n=4)))
    R = rotations(4, "REMUL", "remul", 0, 0, (0, 0))
    expected = mse(module.net(turn(R, x))[0], turn(R, module.net(x)[0]))
    torch.testing.assert_close(run.callback_metrics["remul/equivariance_loss"], expected.detach())


def test_pyg_batches_one_element_a_graph() -> None:
    geometric = pytest.importorskip("torch_geometric.data")

    def graph(n: int) -> Any:
        edges = torch.cartesian_prod(torch.arange(n), torch.arange(n)).T
        return geometric.Data(pos=torch.randn(n, 3), z=torch.rand(n), y=torch.randn(1, 3), edge_index=edges)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(3, 3)

        def forward(self, data: Any) -> Tensor:
            source, to = data.edge_index
            message = self.lin(data.pos[source] - data.pos[to]) * data.z[source, None]
            nodes = torch.zeros_like(data.pos).index_add(0, to, message)
            return torch.zeros(data.num_graphs, 3).index_add(0, data.batch, nodes)

    class Module(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return mse(self.net(batch), batch.y)

    symmetry = Symmetry(
        "SE(3)",
        inputs={"pos": "Point()", "z": Invariant(), "y": "1o"},
        outputs="1o",
        batch={"pos": "Point()", "z": Invariant(), "y": "1o"},
    )
    batch = geometric.Batch.from_data_list([graph(3), graph(5), graph(4)])
    for num_samples in (1, 3):
        run = trainer(REMUL(symmetry, "net", target="y", num_samples=num_samples), GroupAugmentation(symmetry))
        module = Module(Net(), lr=0.0)
        run.fit(module, DataLoader([batch], batch_size=None))
        moved = []
        from lightning_equiv import SE3
        from lightning_equiv._random import derived_generator

        key = (0, 0, (0, 0))
        first = SE3().sample(3, generator=derived_generator("GroupAugmentation", "group_augmentation", *key)).matrix
        R = SE3().sample(3 * num_samples, generator=derived_generator("REMUL", "remul", *key)).matrix
        for k in range(num_samples):  # graph by graph; differences of positions do not see the translation
            for i, g in enumerate(batch.to_data_list()):
                turned = R[3 * k + i].float() @ first[i].float()
                alone = geometric.Batch.from_data_list([g])
                alone.pos, alone.y = alone.pos @ turned.T, alone.y @ turned.T
                moved.append(mse(module.net(alone), alone.y))
        expected = torch.stack(moved).mean()
        torch.testing.assert_close(
            run.callback_metrics["remul/equivariance_loss"], expected.detach(), rtol=1e-4, atol=1e-5
        )


def test_a_network_called_twice_is_anchored_on_each_prediction() -> None:
    class Twice(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            return mse(self.net(x) + self.net(y), y)

    run = trainer(REMUL(SYMMETRY, "net"))
    module = Twice(lr=0.0)
    run.fit(module, loader(n=4))
    x, y = next(iter(loader(n=4)))
    from lightning_equiv import SO3
    from lightning_equiv._random import derived_generator

    generator = derived_generator("REMUL", "remul", 0, 0, (0, 0))
    parts = []
    for inputs in (x, y):
        R = SO3().sample(4, generator=generator).matrix
        parts.append(mse(module.net(turn(R, inputs)), turn(R, module.net(inputs))))
    torch.testing.assert_close(run.callback_metrics["remul/equivariance_loss"], torch.stack(parts).mean().detach())
    with pytest.raises(RuntimeError, match="calls the network 2 times"):
        trainer(REMUL(SYMMETRY, "net", target=1)).fit(Twice(), loader())


def test_the_module_itself_is_the_network_also_under_a_custom_loss() -> None:
    class Self(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any) -> Tensor:  # no batch_idx
            return mse(self(batch[0]), batch[1])

    ours, twin = Self(), Self()
    trainer(REMUL(SYMMETRY, loss=lambda a, b: (a - b).abs().max(), target=lambda batch: batch[1])).fit(ours, loader())
    trainer(REMUL(SYMMETRY, "net", loss=lambda a, b: (a - b).abs().max(), target=1)).fit(twin, loader())
    assert torch.equal(weights(ours), weights(twin))
    assert not torch.equal(weights(ours), weights(Self()))


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")  # Lightning says so once only
def test_a_skipped_step_stays_skipped() -> None:
    class Skips(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) if batch_idx else None

    module = Skips()
    trainer(REMUL(SYMMETRY, "net"), limit_train_batches=1).fit(module, loader())
    assert torch.equal(weights(module), weights(Plain()))


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "nett"}, r"network='nett' names no sub-module of Plain: the nearest are \['net'"),
        ({"network": "net.7"}, r"the nearest are"),
        ({"target": 2}, r"target=2 is not in the batch: 2 was looked for in a list of 2: 0, 1"),
        ({"target": "y"}, r"target='y' is not in the batch"),
        ({"target": lambda batch: batch[1][:, 0]}, r"the network returned a tensor of shape \(4, 3\)"),
    ],
)
def test_wrong_names_and_targets(arguments: dict[str, Any], message: str) -> None:
    module = Plain()
    before = snapshot(module)
    with pytest.raises(ValueError, match=message):
        trainer(REMUL(SYMMETRY, **{"network": "net", **arguments})).fit(module, loader())
    assert snapshot(module) == before
    assert torch.equal(weights(module), weights(Plain()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"balance": "auto"}, "'constant', 'gradnorm' or 'dual', got 'auto'"),
        ({"loss": "huber"}, "'l1', 'mse'"),
        ({"weight": -1.0}, "at least 0"),
        ({"weight": float("nan")}, "at least 0"),
        ({"num_samples": 0}, "at least 1"),
    ],
)
def test_wrong_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REMUL(SYMMETRY, "net", **arguments)


def test_a_network_that_is_never_called() -> None:
    class Around(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return mse(self.net.forward(batch[0]), batch[1])

    module = Around()
    before = snapshot(module)
    with pytest.raises(RuntimeError, match=r"was not called in `training_step`.*\['net'\]"):
        trainer(REMUL(SYMMETRY, "net")).fit(module, loader())
    assert snapshot(module) == before


def test_manual_optimisation_is_refused_before_the_first_step() -> None:
    class Manual(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.optimizers().zero_grad()
            self.manual_backward(mse(self.net(batch[0]), batch[1]))
            self.optimizers().step()

    module = Manual()
    with pytest.raises(RuntimeError, match="manual_backward"):
        trainer(REMUL(SYMMETRY, "net")).fit(module, loader())
    assert torch.equal(weights(module), weights(Plain()))
    trainer(GroupAugmentation(SYMMETRY)).fit(module, loader())  # changes no loss
    assert not torch.equal(weights(module), weights(Plain()))


def test_a_symmetry_that_does_not_fit_the_call() -> None:
    for symmetry, message in [
        (Symmetry("SO(3)", ("1o", "1o"), "1o"), "does not mirror"),
        (Symmetry("SO(3)", "2x1o", "1o"), r"expects 6 components"),
        (Symmetry("SO(3)", "1o", "2e"), r"expects 5 components"),
        (Symmetry("SO(3)", {"w": "1o"}, "1o"), "'w'"),
    ]:
        module = Plain()
        with pytest.raises(ValueError, match=message):
            trainer(REMUL(symmetry, "net")).fit(module, loader())
        assert torch.equal(weights(module), weights(Plain()))


def test_augmentation_needs_to_know_the_batch() -> None:
    with pytest.raises(ValueError, match="batch="):
        GroupAugmentation(Symmetry("SO(3)", "1o", "1o"))
    with pytest.raises(ValueError, match=r"'1'.*not named by the symmetry's `batch`"):
        trainer(GroupAugmentation(Symmetry("SO(3)", "1o", "1o", batch=("1o",)))).fit(Plain(), loader())


def test_class_labels() -> None:
    classes = Symmetry("SO(3)", inputs="1o", outputs="Invariant()")

    class Classifies(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    class ByHand(Classifies):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, labels = batch
            R = rotations(len(x), "REMUL", "remul", 0, 0, (self.current_epoch, batch_idx)).to(x)
            moved = nn.functional.cross_entropy(self.net((R @ x[..., None])[..., 0]), labels)
            return super().training_step(batch, batch_idx) + 2.0 * moved

    rows = torch.utils.data.TensorDataset(loader().dataset.x, loader().dataset.x.argmax(-1))
    ours, twin = Classifies(), ByHand()
    strategy = REMUL(classes, "net", weight=2.0, target=1, loss="cross_entropy")
    trainer(strategy).fit(ours, torch.utils.data.DataLoader(rows, 4))
    trainer().fit(twin, torch.utils.data.DataLoader(rows, 4))
    torch.testing.assert_close(weights(ours), weights(twin))
    with pytest.raises(ValueError, match="expects class labels: say `target`"):
        REMUL(classes, "net", loss="cross_entropy")
    with pytest.raises(ValueError, match="for class labels write loss='cross_entropy'"):
        trainer(REMUL(classes, "net", target=1)).fit(Classifies(), torch.utils.data.DataLoader(rows, 4))
