"""Constraint relaxation by itself: its penalties, its schedule, what it leaves behind, and what it refuses."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import lightning as L
import pytest
import torch
from e3nn import o3
from torch import Tensor, nn

from lightning_equiv import (
    REMUL,
    ConstraintRelaxation,
    EquivarianceError,
    Image,
    Invariant,
    IrrepsTensor,
    Symmetry,
    as_group,
)
from lightning_equiv.layers.branch import Branch, make_branch
from lightning_equiv.layers.branch_networks import LinearBranch, MLPBranch
from lightning_equiv.layers.choose import find_layers
from lightning_equiv.layers.families import E3nn
from lightning_equiv.layers.layer import Layer
from lightning_equiv.representations.representation import Representation
from lightning_equiv.strategies.constraint_relaxation.penalties import EPS, commutators, penalties
from lightning_equiv.strategies.constraint_relaxation.schedule import SCHEDULES, level
from tests.helpers import global_seed, normal, seeded
from tests.strategies.relaxed_by_hand import make_relaxation
from tests.strategies.toys import SYMMETRY, Plain, loader, snapshot, trainer, weights

mse = nn.functional.mse_loss
IN, OUT = "2x0e+3x1o+1e+2e", "4x0e+2x1o+1x1e+0o+3o"


def branch_of(layer: Layer, network: nn.Module, *inputs: Tensor) -> Branch:
    b = Branch(layer, network.double())
    b.inputs = list(inputs)
    return b


def irreps_layer(irreps_in: str = IN, irreps_out: str = OUT) -> Layer:
    inputs, outputs = IrrepsTensor(irreps_in), IrrepsTensor(irreps_out)
    return Layer("l", nn.Identity(), inputs, outputs, (-1,), (inputs.irreps.dim,), (outputs.irreps.dim,), E3nn())


def linear(weight: Tensor) -> LinearBranch:
    network = LinearBranch(weight.shape[1], weight.shape[0], 0.0).double()
    network.weight.data.copy_(weight)
    return network


# ---- penalties -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["SO(3)", "O(3)", "SO(2)", "C4", "SE(3)"])
def test_the_lie_penalty_is_zero_on_an_equivariant_matrix_and_positive_on_a_random_one(group: str) -> None:
    """Dense matrix of an e3nn linear map: applied to the identity."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        equivariant = o3.Linear(IN, OUT)
        W = equivariant(torch.eye(o3.Irreps(IN).dim)).detach().T
    finally:
        torch.set_default_dtype(before)
    x, layer = normal(50, W.shape[1]), irreps_layer()
    lie, norm = penalties([branch_of(layer, linear(W), x)], as_group(group))
    assert lie - EPS**0.5 < 1e-10
    assert norm > 0.1
    W = normal(*W.shape, seed=1)
    lie, norm = penalties([branch_of(layer, linear(W), x)], as_group(group))
    assert 0.5 < lie / norm < 6


@pytest.mark.parametrize("group", ["SO(3)", "O(3)", "D4"])
def test_the_lie_penalty_against_a_loop_over_dense_matrices(group: str) -> None:
    """rho from e3nn's dense matrices, its derivative by a central difference, one sample at a time."""
    symmetry = as_group(group)
    layer, W, x = irreps_layer(), normal(o3.Irreps(OUT).dim, o3.Irreps(IN).dim), normal(7, o3.Irreps(IN).dim, seed=2)

    def dense(irreps: str, R: Tensor) -> Tensor:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            return o3.Irreps(irreps).D_from_matrix(R)
        finally:
            torch.set_default_dtype(before)

    pairs, h = [], 1e-3
    algebra = symmetry.algebra()
    for i in range(len(algebra)):
        plus, minus = ((algebra[i] * t).exp().matrix_in(3)[0] for t in (h, -h))
        pairs.append([(dense(irreps, plus) - dense(irreps, minus)) / (2 * h) for irreps in (IN, OUT)])
    for g in symmetry.generators().matrix_in(3) if len(symmetry.generators()) else []:
        pairs.append([dense(irreps, g) for irreps in (IN, OUT)])
    total = sum((W @ a @ v - b @ W @ v).square().sum() for v in x for a, b in pairs) / len(x)
    lie, norm = penalties([branch_of(layer, linear(W), x[:3], x[3:])], symmetry)
    torch.testing.assert_close(lie.detach(), total.sqrt(), rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(norm.detach(), (sum((W @ v).square().sum() for v in x) / len(x)).sqrt())


def test_branches_of_one_shape_are_handled_together_as_alone() -> None:
    a, b, c = irreps_layer(), irreps_layer(), irreps_layer(OUT, IN)
    sizes = o3.Irreps(OUT).dim, o3.Irreps(IN).dim
    branches = [
        branch_of(a, linear(normal(*sizes)), normal(5, sizes[1])),
        branch_of(c, linear(normal(*sizes[::-1])), normal(9, sizes[0])),
        branch_of(b, linear(normal(*sizes, seed=3)), normal(8, sizes[1], seed=4)),
    ]
    together = torch.stack(penalties(branches, as_group("O(3)")))
    alone = sum(torch.stack(penalties([b], as_group("O(3)"))) for b in branches)
    torch.testing.assert_close(together, alone)


def test_vector_neurons() -> None:
    """W (C_out 3, C_in 3) of the form V (x) 1 commutes with rotations; features in dimensions 1 and 2."""

    class VNLinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.in_channels, self.out_channels = 4, 5
            self.weight = nn.Parameter(normal(5, 4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("oc,bcin->boin", self.weight, x)

    module = nn.ModuleDict({"vn": VNLinear()})
    (layer,) = find_layers(module, VNLinear)
    assert (layer.dims, layer.in_features, layer.out_features) == ((1, 2), (4, 3), (5, 3))
    x = normal(2, 4, 3, 6)
    V = normal(5, 4, seed=1)
    b = branch_of(layer, linear(torch.kron(V, torch.eye(3, dtype=torch.float64))), x)
    lie, norm = penalties([b], as_group("O(3)"))
    assert lie < 1e-5
    n_x = b.apply(x, module["vn"](x))
    torch.testing.assert_close(n_x, torch.einsum("oc,bcin->boin", V, x))
    torch.testing.assert_close(norm, (n_x.square().sum() / 12).sqrt())
    dense = normal(15, 12, seed=2)
    b = branch_of(layer, linear(dense), x)
    expected = torch.einsum("pq,bqn->bpn", dense, x.flatten(1, 2)).unflatten(1, (5, 3))
    torch.testing.assert_close(b.apply(x, module["vn"](x)), expected)
    torch.testing.assert_close(b.unrows(b.network(b.rows(x)), expected), expected)
    assert penalties([b], as_group("SO(3)"))[0] > 1


def test_a_nonlinear_branch_against_a_finite_difference() -> None:
    layer, x, h = irreps_layer("2x0e+2x1o", "1o+0e"), normal(6, 8), 1e-5
    assert layer.inputs is not None
    assert layer.outputs is not None
    torch.manual_seed(0)
    network = MLPBranch(8, 4, 1.0).double()
    lie, _ = penalties([branch_of(layer, network, x)], as_group("O(3)"))
    algebra, inversion = as_group("O(3)").algebra(), as_group("O(3)").generators()
    total = (network(layer.inputs(inversion, x)) - layer.outputs(inversion, network(x))).square().sum()
    for i in range(3):
        plus, minus = (
            layer.outputs((algebra[i] * -t).exp(), network(layer.inputs((algebra[i] * t).exp(), x))) for t in (h, -h)
        )
        total = total + ((plus - minus) / (2 * h)).square().sum()
    torch.testing.assert_close(lie, (total / 6).sqrt(), rtol=1e-5, atol=1e-8)


def test_a_convolution_beside_a_convolution() -> None:
    """A kernel that C4 leaves alone commutes with it; the branch has the geometry of the layer."""
    conv = nn.Conv2d(2, 3, 3, stride=1, padding=1)
    (layer,) = find_layers(nn.ModuleDict({"conv": conv}), {"conv": (Image(), Image())})
    network = make_branch(layer, "linear", 1.0).double()
    x = normal(2, 2, 8, 8)
    assert network(x).shape == conv.double()(x).shape
    assert penalties([branch_of(layer, network, x)], as_group("C4"))[0] > 0.1
    network.weight.data = sum(torch.rot90(network.weight.data, k, (2, 3)) for k in range(4))
    assert penalties([branch_of(layer, network, x)], as_group("C4"))[0] < 1e-5


def test_commutators_take_stacked_matrices() -> None:
    rho: Representation = IrrepsTensor("1o")
    W = normal(4, 3, 3)
    stacked = commutators(W, rho, rho, (3,), (3,), as_group("SO(3)"))
    assert stacked.shape == (3, 4, 3, 3)
    torch.testing.assert_close(stacked[:, 2], commutators(W[2], rho, rho, (3,), (3,), as_group("SO(3)")))


def test_the_penalty_gives_the_trunk_no_gradient() -> None:
    module = Plain()
    strategy = make_relaxation()
    strategy.attach(module)
    strategy.relax(0.5)
    module.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    batch = next(iter(loader()))
    plain = mse(module.net(batch[0]), batch[1])
    total = module.training_step(batch, 0)
    for p in module.net.parameters():
        (a,), (b,) = (torch.autograd.grad(loss, p, retain_graph=True) for loss in (plain, total))
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert total > plain
    strategy.detach()


def test_no_nan_from_a_branch_that_starts_at_zero() -> None:
    module = Plain()
    run = trainer(make_relaxation(init_scale=0.0, end=1.0), max_epochs=3)
    run.fit(module, loader())
    assert torch.isfinite(weights(module)).all()
    assert float(run.callback_metrics["constraint_relaxation/norm_penalty"]) > 1e-3, "it did not stay at zero"


# ---- schedule --------------------------------------------------------------------------------------------------------


def test_schedules() -> None:
    assert [SCHEDULES["triangle"](p) for p in (0, 0.25, 0.5, 0.75, 1)] == [0, 0.5, 1, 0.5, 0]
    assert [SCHEDULES["linear"](p) for p in (0, 0.5, 1)] == [1, 0.5, 0]
    assert [SCHEDULES["cosine"](p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert [level(SCHEDULES["triangle"], step, 100, 0.5) for step in (0, 25, 50, 99)] == [0, 1, 0, 0]
    assert level(lambda p: 1.0, 100, 100, 1.0) == 0, "0 at the end, whatever the schedule"


class Levels(L.Callback):
    """Sees, layer by layer, the theta that really acts: the output beside f(x) + theta n(x)."""

    def __init__(self, strategy: ConstraintRelaxation) -> None:
        self.strategy, self.seen = strategy, {}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        x = torch.randn(5, 3, generator=seeded())
        for b in self.strategy.branches:
            x_l = x if b.layer.in_features == (3,) else torch.randn(5, 16, generator=seeded())
            strict = nn.functional.linear(x_l, b.layer.module.weight, b.layer.module.bias)
            n_x = nn.functional.linear(x_l, b.network.weight)
            theta = ((b.layer.module(x_l) - strict) * n_x).sum() / n_x.square().sum()
            self.seen.setdefault(b.layer.name, []).append(float(theta))


def test_every_layer_receives_theta_at_every_step() -> None:
    strategy = make_relaxation(peak=1.0, end=0.5)
    levels = Levels(strategy)
    trainer(strategy, levels, max_epochs=2).fit(Plain(), loader())  # 12 steps, the triangle over 6
    expected = [0, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3, *[0] * 6]
    assert set(levels.seen) == {"net.0", "net.2"}
    for seen in levels.seen.values():
        assert seen == pytest.approx(expected, abs=1e-5)


def test_logs() -> None:
    run = trainer(make_relaxation(end=1.0), max_epochs=1)
    run.fit(Plain(), loader())
    logged = run.callback_metrics
    assert float(logged["constraint_relaxation/theta"]) == pytest.approx(0.5 * (2 - 2 * 5 / 6))
    assert float(logged["constraint_relaxation/lie_penalty"]) > 0
    assert float(logged["constraint_relaxation/norm_penalty"]) > 0


# ---- an equivariant network, relaxed and strict again ----------------------------------------------------------------


class Equivariant(Plain):
    """e3nn layers with a gate in between."""

    def __init__(self) -> None:
        with global_seed():
            net = nn.Sequential(o3.Linear("1o", "8x0e+8x1o"), o3.Linear("8x0e+8x1o", "1o"))
        super().__init__(net, lr=0.02)


def error_of(net: nn.Module) -> float:
    metric = EquivarianceError(SYMMETRY)
    metric.update(net, loader().dataset.x)
    return float(metric.compute())


def test_equivariant_to_float_precision_after_fit() -> None:
    module = Equivariant()
    strategy = ConstraintRelaxation(SYMMETRY, layers="net.*", peak=1.0)
    during: list[float] = []

    class Measure(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            during.append(error_of(pl_module.net))

    before = snapshot(module)
    trainer(strategy, Measure(), max_epochs=3).fit(module, loader())
    assert max(during) > 1e-2
    assert during[-1] < 1e-6, "theta ends before the run does"
    assert error_of(module.net) < 1e-6
    after = snapshot(module)
    assert (before["keys"], before["modules"], before["hooks"]) == (after["keys"], after["modules"], after["hooks"])


def test_theta_zero_is_the_strict_run_bit_for_bit() -> None:
    strict, relaxed = Equivariant(), Equivariant()
    trainer(max_epochs=2, gradient_clip_val=0.1).fit(strict, loader())
    strategy = ConstraintRelaxation("SO(3)", layers="net.*", peak=0.0)
    trainer(strategy, max_epochs=2, gradient_clip_val=0.1).fit(relaxed, loader())
    assert torch.equal(weights(strict), weights(relaxed))


@pytest.mark.parametrize("evaluate", ["projected", "relaxed", "both"])
def test_what_validation_sees(evaluate: Any) -> None:
    strategy = ConstraintRelaxation(SYMMETRY, "net.*", "net", peak=1.0, init_scale=1.0, end=1.0, evaluate=evaluate)
    values = {}

    class Look(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if trainer.current_epoch:
                return
            x, y = loader().dataset.x, loader().dataset.y
            theta = float(strategy.branches[0].theta)
            assert theta > 0.5
            with torch.no_grad():
                values["relaxed"] = float(mse(pl_module.net(x), y))
                strategy.relax(0.0)
                values["projected"] = float(mse(pl_module.net(x), y))
                strategy.relax(theta)
            values["logged"] = dict(trainer.callback_metrics)

    trainer(strategy, Look(), max_epochs=2).fit(Equivariant(), loader(), loader(batch_size=22))
    assert abs(values["relaxed"] - values["projected"]) > 1e-3
    logged = values["logged"]
    seen = values["relaxed" if evaluate == "relaxed" else "projected"]
    assert float(logged["val_loss"]) == pytest.approx(seen, rel=1e-5)
    if evaluate == "both":
        assert float(logged["constraint_relaxation/relaxed/val_loss"]) == pytest.approx(values["relaxed"], rel=1e-5)
        gap = float(logged["constraint_relaxation/projection_gap/val_loss"])
        assert gap == pytest.approx(values["relaxed"] - values["projected"], rel=1e-3)
        assert float(logged["constraint_relaxation/relaxed/equivariance_error"]) > 0.01


def test_both_leaves_the_users_metrics_alone() -> None:
    from torchmetrics import MeanSquaredError

    class Metrics(Equivariant):
        def __init__(self) -> None:
            super().__init__()
            self.metric, self.runs = MeanSquaredError(), 0

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.runs += 1
            self.metric.update(self.net(batch[0]), batch[1])
            self.log("metric", self.metric)

    values = []
    for evaluate in ("projected", "both"):
        module = Metrics()
        strategy = ConstraintRelaxation("SO(3)", "net.*", peak=1.0, init_scale=1.0, evaluate=evaluate)
        run = trainer(strategy, max_epochs=2)
        run.fit(module, loader(), loader())
        values.append((float(run.callback_metrics["metric"]), module.runs))
    assert values[0][0] == values[1][0]
    assert values[1][1] > 2 * values[0][1]


def test_the_projection_error_is_bounded() -> None:
    """|F_theta(x) - F_0(x)| <= theta sum_l (prod_{m>l} K_m) |W_l h_l|, K_m the Lipschitz constants of what follows."""
    module, theta = Equivariant(), 0.3
    strategy = ConstraintRelaxation("SO(3)", "net.*", init_scale=1.0)
    strategy.attach(module)
    x = loader().dataset.x
    with torch.no_grad():
        strict_0 = module.net[0](x)
        strict = module.net(x)
        strategy.relax(theta)
        relaxed_0 = module.net[0](x)
        difference = (module.net(x) - strict).norm(dim=-1)
        first, second = strategy.branches
        K = torch.linalg.matrix_norm(module.net[1](torch.eye(32)), 2)  # with the branch: the relaxed second layer
        n_0, n_1 = first.network(x).norm(dim=-1), second.network(strict_0).norm(dim=-1)
    strategy.detach()
    assert (difference <= theta * (K * n_0 + n_1) + 1e-5).all()
    assert difference.mean() > 0.01
    assert relaxed_0.shape == strict_0.shape


@pytest.mark.parametrize("remul_first", [True, False])
def test_together_with_remul_in_either_order(remul_first: bool) -> None:
    def fit(*callbacks: L.Callback) -> L.LightningModule:
        module = Equivariant()
        trainer(*callbacks, max_epochs=2).fit(module, loader())
        assert "training_step" not in module.__dict__
        return module

    pair = [REMUL(SYMMETRY, "net", target=1), ConstraintRelaxation("SO(3)", "net.*", peak=1.0)]
    both = fit(*(pair if remul_first else reversed(pair)))
    pair = [REMUL(SYMMETRY, "net", target=1), ConstraintRelaxation("SO(3)", "net.*", peak=1.0)]
    torch.testing.assert_close(weights(both), weights(fit(*(reversed(pair) if remul_first else pair))))
    assert not torch.equal(weights(both), weights(fit(ConstraintRelaxation("SO(3)", "net.*", peak=1.0))))


def test_a_loop_without_a_trainer() -> None:
    module = Equivariant()
    strategy = ConstraintRelaxation("SO(3)", "net.*")
    strategy.attach(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    before = strategy.branches[0].network.weight.clone()
    for theta in (0.0, 0.5, 1.0, 0.5):
        strategy.relax(theta)
        optimizer.zero_grad()
        x, y = next(iter(loader()))
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
        module.training_step((x, y), 0).backward()
        optimizer.step()
    assert not torch.equal(strategy.branches[0].network.weight, before)
    strategy.detach()
    assert error_of(module.net) < 1e-6


def test_a_layer_that_never_runs_is_reported() -> None:
    class Idle(Equivariant):
        def __init__(self) -> None:
            super().__init__()
            self.idle = o3.Linear("1o", "1o")

    strategy = ConstraintRelaxation("SO(3)", ["net.*", "idle"])
    with pytest.warns(UserWarning, match=r"never ran while training: \['idle'\]"):
        trainer(strategy, max_epochs=1).fit(Idle(), loader())


def test_shared_parameters_of_a_sub_network_reach_its_optimizer() -> None:
    """An optimizer of `self.net.parameters()` holds the branches, because they hang inside the network."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([o3.Linear("1o", "4x1o"), o3.Linear("4x1o", "1o")])

        def forward(self, x: Tensor) -> Tensor:
            return self.layers[1](self.layers[0](x))

    class Own(Plain):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.net.parameters(), lr=0.01)

    trainer(ConstraintRelaxation("SO(3)", "net.layers.*")).fit(Own(Net()), loader())

    class Half(Plain):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.net.layers[0].parameters(), lr=0.01)

    module = Half(Net())
    before = snapshot(module)
    with pytest.raises(RuntimeError, match=r"no optimizer holds the branches of \['net.layers.0', 'net.layers.1'\]"):
        trainer(ConstraintRelaxation("SO(3)", "net.layers.*")).fit(module, loader())
    assert snapshot(module) == before


def test_sizes_learned_from_one_dry_call() -> None:
    class Odd(nn.Module):
        """Says nothing of its features."""

        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.eye(3))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.w

    class Module(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    module = Module(nn.Sequential(Odd(), Odd()))
    strategy = ConstraintRelaxation("SO(3)", "net.*", lie_weight=0.0)
    with pytest.raises(ValueError, match="example_input_array"):
        trainer(strategy).fit(module, loader())
    module.example_input_array = torch.randn(2, 3)
    trainer(ConstraintRelaxation("SO(3)", "net.*", lie_weight=0.0, peak=1.0)).fit(module, loader())
    assert not torch.equal(weights(module), weights(Module(nn.Sequential(Odd(), Odd()))))


# ---- bad input -------------------------------------------------------------------------------------------------------


class ToDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = o3.Linear("1o", "1o")
        self.irreps_in, self.irreps_out = self.inner.irreps_in, self.inner.irreps_out

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"x": self.inner(x)}


class Unwrap(nn.Module):
    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return x["x"]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("nets.*", r"layers='nets.\*' matches no layer of Plain: the nearest names are \['net"),
        (nn.Conv2d, "its layers are of types"),
        (["net.0", "none"], "'none' matches no layer"),
        ("net.[02]", r"'net.0' \(Linear\) does not say how SO\(3\) moves its features"),
        ({"net.0": ("1o", "17x0e")}, "expected equal shapes"),
        ({"net.0": ("1x", "16x0e")}, "no representation is written '1x'"),
    ],
)
def test_layers_that_cannot_be_relaxed(layers: Any, message: str) -> None:
    module = Plain()
    before = snapshot(module)
    with pytest.raises(ValueError, match=message):
        trainer(ConstraintRelaxation("SO(3)", layers, end=1.0, schedule="linear")).fit(module, loader())
    assert snapshot(module) == before
    assert torch.equal(weights(module), weights(Plain()))


def test_layers_that_return_no_tensor_or_are_scripted() -> None:
    module = Plain(nn.Sequential(ToDict(), Unwrap()))
    before = snapshot(module)
    with pytest.raises(TypeError, match="maps Tensor to dict"):
        trainer(ConstraintRelaxation("SO(3)", "net.0")).fit(module, loader())
    assert snapshot(module) == before
    scripted = torch.jit.script(nn.Linear(3, 3))
    module = Plain(nn.Sequential(scripted))
    with pytest.raises(ValueError, match="scripted"):
        trainer(ConstraintRelaxation("SO(3)", {"net.0": ("1o", "1o")})).fit(module, loader())


@pytest.mark.parametrize("loaders", [1, 2])
def test_a_validation_step_with_arguments_of_any_name(loaders: int) -> None:
    class Named(Equivariant):
        def validation_step(self, batch: Any, i: int, dataloader_idx: int = 0) -> None:
            self.log(f"val_{i >= 0}_{dataloader_idx}", mse(self.net(batch[0]), batch[1]), add_dataloader_idx=False)

    strategy = ConstraintRelaxation("SO(3)", "net.*", evaluate="both")
    run = trainer(strategy)
    run.fit(Named(), loader(), [loader()] * loaders)
    for which in range(loaders):
        assert f"constraint_relaxation/relaxed/val_True_{which}" in run.callback_metrics


def test_a_sequence_whose_layers_have_names() -> None:
    named = [("first", nn.Linear(3, 16)), ("act", nn.Tanh()), ("last", nn.Linear(16, 3))]
    module = Plain(nn.Sequential(OrderedDict(named)))
    layers = {"net.first": ("1o", "16x0e"), "net.last": ("16x0e", "1o")}
    trainer(ConstraintRelaxation("SO(3)", layers)).fit(module, loader())  # which runs all its children in turn
    assert list(module.net._modules) == ["first", "act", "last"]


def test_an_endless_run_needs_a_horizon() -> None:
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step >= 5

    module = Equivariant()
    before = snapshot(module)
    with pytest.raises(ValueError, match="horizon"):
        trainer(ConstraintRelaxation("SO(3)", "net.*"), max_epochs=-1).fit(module, loader())
    assert snapshot(module)["hooks"] == before["hooks"]
    trainer(ConstraintRelaxation("SO(3)", "net.*", horizon=10), Stop(), max_epochs=-1).fit(module, loader())


@pytest.mark.parametrize(
    "arguments",
    [
        {"schedule": "square"},
        {"end": 0.0},
        {"end": 1.5},
        {"peak": -1.0},
        {"branch": "conv"},
        {"evaluate": "all"},
        {"init_scale": -1},
    ],
)
def test_wrong_settings(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        ConstraintRelaxation("SO(3)", "net.*", **arguments)


def test_published_settings_by_name() -> None:
    published = ConstraintRelaxation.published("SO(3)", "net.*", norm_weight=0.5)
    assert (published.peak, published.end, published.lie_weight, published.norm_weight) == (1.0, 1.0, 0.01, 0.5)


def test_symmetry_gives_its_group() -> None:
    symmetry = Symmetry("C4", "Image()", Invariant())
    assert ConstraintRelaxation(symmetry, "net.*").group == as_group("C4")
