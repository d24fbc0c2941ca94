"""EquivarianceProjection: closed forms of what it trains to, projections, what is refused and what is said."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from e3nn import o3
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_equiv import EquivarianceProjection, as_group, as_representation
from lightning_equiv.layers.choose import find_layers
from lightning_equiv.layers.equivariant_part import EquivariantPart
from tests.helpers import global_seed, normal
from tests.strategies.projection_by_hand import PROJECTED, make_projection, make_tolerance
from tests.strategies.toys import SYMMETRY, Plain, Rows, loader, make_net, trainer, weights

HIDDEN = "4x0e+4x1o"
HEADS = "2x0e+2x1o+2x0e+2x1o"


class Odd(nn.Module):
    """A linear layer of nobody's library: y = 2 (x W + b)."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.b = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return 2 * (x @ self.W + self.b)


def attention() -> nn.MultiheadAttention:
    module = nn.MultiheadAttention(16, 2, batch_first=True)
    nn.init.normal_(module.in_proj_bias)
    return module


# module, representations, group, shape of an input without the batch
MODULES: dict[str, tuple[Any, Any, str, tuple[int, ...]]] = {
    "linear, SO(3)": (lambda: nn.Linear(16, 12), (HIDDEN, "3x0e+3x1o"), "SO(3)", (16,)),
    "linear, O(3)": (lambda: nn.Linear(8, 8), ("1x0e+1x1o+1x1e+1x0o",) * 2, "O(3)", (8,)),
    "linear, degree two": (lambda: nn.Linear(9, 9), ("0e+1o+2e",) * 2, "SO(3)", (9,)),
    "linear, sets": (lambda: nn.Linear(4, 4), ("Permuted(-1)",) * 2, "S4", (4,)),
    "linear, vectors with their channels last": (
        lambda: nn.Linear(4, 5),
        ("IrrepsTensor('1o', dim=-2)",) * 2,
        "SO(3)",
        (3, 4),
    ),
    "convolution, C4": (lambda: nn.Conv2d(3, 5, 3, padding=1), ("Image()",) * 2, "C4", (3, 6, 6)),
    "convolution, C2": (lambda: nn.Conv2d(3, 5, 3, padding=1), ("Image()",) * 2, "C2", (3, 6, 6)),
    "convolution of vector fields, D4": (
        lambda: nn.Conv2d(4, 6, 5, padding=2),
        ("VectorField()",) * 2,
        "D4",
        (4, 6, 6),
    ),
    "attention": (attention, (HEADS,) * 2, "O(3)", (5, 16)),
    "another library's": (Odd, ("2x1o",) * 2, "SO(3)", (6,)),
}
each_module = pytest.mark.parametrize("name", MODULES)


def chosen(name: str) -> tuple[nn.Module, EquivariantPart, Tensor]:
    make, pair, group, shape = MODULES[name]
    with global_seed():
        module = make().double()
    (layer,) = find_layers(nn.ModuleDict({"x": module}), {"x": pair})
    x = normal(4, *shape, seed=3)
    return module, EquivariantPart(layer, as_group(group)), x


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, nothing is warned of but what Lightning says of such loaders."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "The .+ does not have many workers")
        warnings.filterwarnings("ignore", "You defined a `validation_step` but have no")
        yield


def called(module: nn.Module, x: Tensor) -> Tensor:
    return module(x, x, x)[0] if isinstance(module, nn.MultiheadAttention) else module(x)


def broken(name: str, module: nn.Module, x: Tensor) -> float:
    """The largest difference of f(g x) and g f(x) over some elements, by calling the module."""
    _, pair, group, _ = MODULES[name]
    g = as_group(group).sample(len(x), generator=torch.Generator().manual_seed(0))
    inputs, outputs = map(as_representation, pair)
    return float((called(module, inputs(g, x)) - outputs(g, called(module, x))).detach().abs().max())


# ---- one layer -------------------------------------------------------------------------------------------------------
@each_module
def test_a_projected_layer_commutes_as_it_is_called(name: str) -> None:
    module, part, x = chosen(name)
    assert broken(name, module, x) > 1e-2
    assert 1e-2 < float(part.square().detach()) <= 1
    assert part.project() < 1e-12
    assert broken(name, module, x) < 1e-12
    before = weights(module)
    part.project()
    torch.testing.assert_close(weights(module), before, atol=1e-12, rtol=0)
    assert before.norm() > 0.1


@each_module
def test_the_gradient_is_that_of_the_quotient_with_a_constant_denominator(name: str) -> None:
    """d/dt of |W_t - P W_t|^2 / |W|^2 along a direction, by a central difference."""
    module, part, _ = chosen(name)
    gradients = torch.autograd.grad(part.square(), list(module.parameters()), materialize_grads=True)
    direction = [normal(*p.shape, seed=i) for i, p in enumerate(module.parameters())]
    expected = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
    norm = sum(float(w.detach().square().sum()) for w in part.split()[0])
    values = []
    for h in (1e-3, -2e-3):
        with torch.no_grad():
            for p, d in zip(module.parameters(), direction, strict=True):
                p.add_(h * d)
        values.append(sum(float((w - p).detach().square().sum()) for w, p in zip(*part.split(), strict=True)))
    assert (values[0] - values[1]) / 2e-3 / norm == pytest.approx(expected, rel=1e-6)


@each_module
def test_descent_on_the_penalty_alone_ends_at_the_projection(name: str) -> None:
    """W <- W - eta 2 (W - P W) / |W_t|^2: the part that commutes never moves, the rest shrinks."""
    module, part, _ = chosen(name)
    start = [p.detach().clone() for p in part.split()[1]]
    rate, optimizer = 0.2, torch.optim.SGD(module.parameters(), lr=1.0)
    whole = [w.detach().clone() for w in part.split()[0]]
    for _ in range(3):
        norm = sum(float(w.square().sum()) for w in whole)
        (rate * norm * part.square()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if name not in ("another library's", "linear, vectors with their channels last"):  # weights are entries, once
            whole = [w - rate * 2 * (w - p) for w, p in zip(whole, start, strict=True)]
            for w, found in zip(whole, part.split()[0], strict=True):
                torch.testing.assert_close(found, w, atol=1e-12, rtol=0)
        else:
            whole = [w.detach().clone() for w in part.split()[0]]
    for _ in range(60):
        norm = sum(float(w.detach().square().sum()) for w in part.split()[0])
        (rate * norm * part.square()).backward()
        optimizer.step()
        optimizer.zero_grad()
    for p, found in zip(start, part.split()[0], strict=True):
        torch.testing.assert_close(found, p, atol=1e-10, rtol=0)


# ---- a linear model --------------------------------------------------------------------------------------------------
class Linear(L.LightningModule):
    """|X W^T - Y|^2 / 2 of a linear map of two vectors, whole batches of gradient descent."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        with global_seed():
            self.net = nn.Linear(6, 6, bias=False).double()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self.net(batch[0]) - batch[1]).square().sum() / 2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.parameters(), lr=1.0, max_iter=120, tolerance_grad=1e-13, tolerance_change=0)


def fit_linear(weight: float) -> tuple[Tensor, Tensor, Tensor, float]:
    """W, X, Y, and the price lambda of |W - P W|^2 / 2 that the constant denominator leaves at the end."""
    X = normal(40, 6, seed=1)
    Y = X @ normal(6, 6, seed=2).T + 0.1 * normal(40, 6, seed=4)
    module = Linear(1)
    strategy = EquivarianceProjection("SO(3)", {"net": ("2x1o", "2x1o")}, weight=weight)
    strategy.project(module)  # from where a large weight leaves little to do
    trainer(strategy, max_epochs=3).fit(module, DataLoader(TensorDataset(X, Y), batch_size=40))
    W = module.net.weight.detach()
    return W, X, Y, 2 * weight / float(W.square().sum())


def ridge(X: Tensor, Y: Tensor, price: float) -> Tensor:
    """W of (X^T X + price (I - P)) vec(W) = vec(Y^T X), written out over all 36 numbers."""
    identity = torch.eye(3, dtype=torch.float64) / 3**0.5
    basis = torch.stack([torch.kron(e.reshape(2, 2), identity).flatten() for e in torch.eye(4, dtype=torch.float64)])
    system = torch.kron(torch.eye(6, dtype=torch.float64), X.T @ X)
    system += price * (torch.eye(36, dtype=torch.float64) - basis.T @ basis)
    return torch.linalg.solve(system, (Y.T @ X).flatten()).reshape(6, 6)


@pytest.mark.parametrize("weight", [0.0, 30.0, 1000.0])
def test_a_linear_model_is_a_ridge_regression(weight: float) -> None:
    W, X, Y, price = fit_linear(weight)
    torch.testing.assert_close(W, ridge(X, Y, price), atol=1e-5, rtol=0)
    if not weight:
        torch.testing.assert_close(W.T, torch.linalg.lstsq(X, Y).solution, atol=1e-6, rtol=0)


def test_a_large_weight_is_strict_least_squares() -> None:
    """W = M (x) 1: the three components are samples of one regression of two numbers."""
    W, X, Y, _ = fit_linear(1e7)
    x, y = (data.reshape(-1, 2, 3).mT.reshape(-1, 2) for data in (X, Y))
    M = torch.linalg.lstsq(x, y).solution.T
    torch.testing.assert_close(W, torch.kron(M, torch.eye(3, dtype=torch.float64)), atol=1e-4, rtol=0)


# ---- projecting, and the report --------------------------------------------------------------------------------------
def test_the_end_of_training_projects_and_reports(tmp_path: Path) -> None:
    """Both losses are of the last batch, and the network that is left is equivariant but for what is not linear."""
    module, strategy = Plain(), make_projection(finalize="project")
    seen: list[float] = []
    plain = Plain()
    trainer(make_projection()).fit(plain, loader())
    trainer(strategy, logger=CSVLogger(tmp_path)).fit(module, loader())
    last = [Rows().x[20:], Rows().y[20:]]
    for net in (plain.net, module.net):
        seen.append(float(nn.functional.mse_loss(net(last[0]), last[1]).detach()))
    report = strategy.report
    assert [report["loss"], report["projected"]["loss"]] == pytest.approx(seen, rel=1e-6)
    assert report["penalty"] > 0.1
    assert report["projected"]["penalty"] < 1e-12
    assert [row["layer"] for row in report["layers"]] == ["net.2", "net.0"]
    assert report["layers"][0]["error"] >= report["layers"][1]["error"]
    assert sum(row["error"] ** 2 for row in report["layers"]) / 2 == pytest.approx(report["penalty"], rel=1e-5)
    (written,) = tmp_path.rglob("equivariance_projection_report.json")
    assert json.loads(written.read_text()) == report
    projected = weights(module)
    assert max(strategy.project(module).values()) < 1e-6
    torch.testing.assert_close(weights(module), projected, atol=1e-6, rtol=0)


def test_projecting_a_module_by_hand_is_the_projection_at_the_end() -> None:
    ours, other = Plain(), Plain()
    trainer(make_projection(finalize="project")).fit(ours, loader())
    trainer(strategy := make_projection()).fit(other, loader())
    assert set(strategy.project(other)) == {"net.0", "net.2"}
    torch.testing.assert_close(weights(ours), weights(other), atol=1e-7, rtol=0)


def test_the_report_leaves_the_users_metrics_and_logs_alone() -> None:
    logged = []
    for callbacks in ([], [make_projection(weight=0.0)]):
        module = Plain()
        run = trainer(*callbacks)
        run.fit(module, loader())
        logged.append(float(run.callback_metrics["user_loss"]))
    assert logged[0] == logged[1]


def test_a_loop_without_a_trainer_projects_in_finish() -> None:
    module, strategy = Plain(), make_projection(finalize="project")
    strategy.attach(module)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    module.training_step(next(iter(loader())), 0).backward()
    strategy.finish(module)
    assert strategy.report["projected"]["penalty"] < 1e-12
    assert not strategy.is_attached


def test_a_pointwise_nonlinearity_on_vectors_is_told() -> None:
    """The layers commute, and the network does not: a ReLU acts on components of vectors."""
    net = make_net()
    net[1] = nn.ReLU()
    strategy = EquivarianceProjection(SYMMETRY, PROJECTED, "net", finalize="project")
    with pytest.warns(UserWarning, match="what it does not see breaks the symmetry: nonlinearities and norms"):
        trainer(strategy, max_epochs=2).fit(Plain(net), loader())
    assert strategy.report["projected"]["penalty"] < 1e-12
    assert strategy.report["projected"]["equivariance_error"] > 0.1


class Strict(nn.Module):
    """One linear map, and nothing that could break a symmetry."""

    def __init__(self) -> None:
        super().__init__()
        with global_seed():
            self.only = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.only(x)


def test_a_projected_linear_network_is_equivariant_and_nothing_is_told() -> None:
    strategy = EquivarianceProjection(SYMMETRY, {"net.only": ("1o", "1o")}, "net", finalize="project")
    with quiet():
        trainer(strategy).fit(Plain(Strict()), loader())
    assert strategy.report["equivariance_error"] > 0.05
    assert strategy.report["projected"]["equivariance_error"] < 1e-5


def test_layers_that_were_not_chosen_are_named() -> None:
    class Two(Strict):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.other(self.only(x))

    strategy = EquivarianceProjection(SYMMETRY, {"net.only": ("1o", "1o")}, "net", finalize="project")
    with pytest.warns(UserWarning, match=r"layers that were not chosen, \['net.other'\]"):
        trainer(strategy).fit(Plain(Two()), loader())


# ---- a tolerance -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tolerance", [0.1, 0.3])
def test_a_tolerance_is_reached(tolerance: float) -> None:
    module, strategy = Plain(lr=0.01), EquivarianceProjection("SO(3)", PROJECTED, tolerance=tolerance)
    module.configure_optimizers = lambda: torch.optim.Adam(module.parameters(), 0.02)  # type: ignore[method-assign]
    with quiet():
        trainer(strategy, max_epochs=60).fit(module, loader())
    assert 0.5 * tolerance < strategy.report["penalty"] ** 0.5 < 1.2 * tolerance


def test_a_tolerance_that_is_not_reached_is_told() -> None:
    with pytest.warns(UserWarning, match="distances from commuting with the group is .* above the tolerance of 0.01"):
        trainer(make_projection(tolerance=0.01)).fit(Plain(), loader())


def test_a_tolerance_logs_its_weight_and_its_error() -> None:
    run = trainer(make_tolerance())
    run.fit(Plain(), loader())
    logged = {key.partition("/")[2] for key in run.callback_metrics if key.startswith("equivariance_projection/")}
    assert logged == {"penalty", "weight", "error"}


# ---- what is refused -------------------------------------------------------------------------------------------------
class Takes(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer


def attach(layer: nn.Module, layers: Any, group: Any = "SO(3)") -> None:
    EquivarianceProjection(group, layers).attach(Plain(Takes(layer)))


def test_a_layer_that_is_equivariant_by_construction_is_left_out() -> None:
    with pytest.raises(ValueError, match=r"commute with SO\(3\) whatever their weights are.*nn.Linear"):
        attach(o3.Linear(HIDDEN, HIDDEN), "net.layer")
    both = nn.ModuleList([o3.Linear(HIDDEN, HIDDEN), nn.Linear(16, 16)])
    module = Plain(Takes(both))
    strategy = EquivarianceProjection("SO(3)", {"net.layer.*": (HIDDEN, HIDDEN)})
    with pytest.warns(UserWarning, match=r"\['net.layer.0'\] commute.*left out"):
        strategy.attach(module)
    assert [part.layer.name for part in strategy._parts.parts] == ["net.layer.1"]


@pytest.mark.parametrize(
    ("make", "pair", "group", "match"),
    [
        (
            lambda: nn.Linear(3, 3),
            None,
            "SO(3)",
            r"does not say how.*write layers=\{'net.layer': \(inputs, outputs\)\}",
        ),
        (lambda: nn.Linear(4, 4), ("1o", "1o"), "SO(3)", "declared as .*1o.*has features"),
        (lambda: nn.Linear(3, 16), ("1o", "16x0e"), "SO(3)", "no linear map but 0 from"),
        (lambda: nn.Conv2d(2, 2, 3), ("Image()", "Image()"), "SO(2)", "turns the kernel on its grid, 'C2', 'C4'"),
        (lambda: nn.Conv2d(2, 2, (3, 5)), ("Image()", "Image()"), "C4", "square"),
        (lambda: nn.Conv2d(2, 2, 3, groups=2), ("Image()", "Image()"), "C4", "groups=1"),
        (lambda: nn.MultiheadAttention(4, 1, kdim=3), ("0e+1o",) * 2, "SO(3)", "leave kdim, vdim and add_bias_kv out"),
        (lambda: nn.MultiheadAttention(8, 1), ("0e+1o",) * 2, "SO(3)", "has features"),
        (lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh()), ("1o", "1o"), "SO(3)", "not linear in its input"),
    ],
)
def test_layers_that_are_refused(make: Any, pair: Any, group: str, match: str) -> None:
    module = Plain(Takes(make()))
    step = module.training_step
    with pytest.raises(ValueError, match=match):
        EquivarianceProjection(group, {"net.layer": pair} if pair else "net.layer").attach(module)
    assert module.training_step == step


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"weight": 1.0, "tolerance": 0.1}, "a weight or a tolerance, got both"),
        ({"weight": -1.0}, "weight"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"tolerance": 2.0}, "tolerance"),
        ({"max_weight": 0.0}, "max_weight"),
        ({"finalize": "drop"}, "'keep' or 'project'"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        EquivarianceProjection("SO(3)", PROJECTED, **settings)


def test_weights_that_cannot_take_their_projection_are_told() -> None:
    net = make_net()
    net[0].weight.requires_grad_(False)
    with pytest.warns(UserWarning, match=r"could not take their projection.*'net.0'"):
        left = make_projection().project(Plain(net))
    assert left["net.0"] > 0.1
    assert left["net.2"] < 1e-6


def test_a_weight_that_is_computed_trains_what_it_is_computed_from() -> None:
    net = make_net()
    nn.utils.parametrizations.weight_norm(net[0])
    module = Plain(net)
    trainer(make_projection(weight=100.0), max_epochs=2).fit(module, loader())
    other = Plain(make_net())
    nn.utils.parametrizations.weight_norm(other.net[0])
    trainer(max_epochs=2).fit(other, loader())
    assert make_penalty(module) < 0.5 * make_penalty(other)


def make_penalty(module: nn.Module) -> float:
    layers = find_layers(module, {"net.0": ("1o", HIDDEN)})
    return float(EquivariantPart(layers[0], as_group("SO(3)")).square().detach())
