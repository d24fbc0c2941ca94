"""ACE by itself: closed forms of its two steps, what it learns of a law, what it leaves, and what it refuses."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from lightning_equiv import ACE, RelaxedLayer, Symmetry, equivariance_error
from lightning_equiv.strategies.ace.multipliers import make_rates
from tests.strategies.ace_by_hand import AceByHand, make_ace, make_resilient
from tests.strategies.gated import Regression, law
from tests.strategies.relaxed_by_hand import LAYERS
from tests.strategies.toys import EachStep, Plain, batches, error_of, loader, trainer, weights

mse = nn.functional.mse_loss


# ---- one number: J = -s gamma + kappa gamma^2 / 2 --------------------------------------------------------------------
class Scalar(Plain):
    """A layer of weight 0 that learns nothing: its output is gamma, up to the sign of the branch."""

    def __init__(self, slope: float, curvature: float) -> None:
        layer = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        nn.init.zeros_(layer.weight)
        super().__init__(nn.Sequential(layer), lr=0.0)
        self.slope, self.curvature = slope, curvature

    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        gamma = self.net(torch.ones(1, 1, dtype=torch.float64))
        sign = gamma.detach().sign() * self.strategy.branches[0].theta.sign()
        return (-self.slope * sign * gamma + self.curvature / 2 * gamma.square()).sum()


def of_one(strategy: ACE, **law: float) -> Scalar:
    module = Scalar(**law)
    module.__dict__["strategy"] = strategy
    return module


def path(strategy: ACE, steps: int, **law: float) -> tuple[list[float], list[float]]:
    """gamma and lambda after every step of a loop."""
    module = of_one(strategy, **law)
    strategy.attach(module)
    seen = []
    for step in range(steps + 1):
        strategy.update(step, 10**9)
        if step:
            seen.append(tuple(strategy.own_state()["layers"]["net.0"].values()))
        module.training_step(None).backward()
    strategy.detach()
    return tuple(map(list, zip(*seen, strict=True)))


def one(**changes: Any) -> ACE:
    return ACE("SO(3)", "net.0", **{"branch": "linear", **changes})


@pytest.mark.parametrize("curvature", [0.0, 0.5])
def test_an_equality_ends_at_zero_and_lambda_is_the_slope(curvature: float) -> None:
    strategy, seen = one(), []
    look = EachStep(lambda _: seen.append(float(strategy.branches[0].theta)))
    run = trainer(strategy, look, max_steps=400, max_epochs=-1)
    run.fit(of_one(strategy, slope=0.3, curvature=curvature), batches(range(100)))
    assert abs(seen[319]) < 1e-6, "before it is set to 0"
    assert seen[0] > 0.5
    assert set(seen[321:]) == {0.0}
    assert strategy.report == [{"layer": "net.0", "lambda": pytest.approx(0.3, abs=1e-6), "gamma": 0.0, "strict": True}]


@pytest.mark.parametrize("rho", [1.0, 3.0])
@pytest.mark.parametrize("slope", [0.8, -0.8])
def test_resilient_is_a_ridge(slope: float, rho: float) -> None:
    strategy = one(mode="resilient", rho=rho, init=0.1)
    run = trainer(strategy, max_steps=400, max_epochs=-1)
    run.fit(of_one(strategy, slope=slope, curvature=0.5), batches(range(100)))
    [row] = strategy.report
    assert row["gamma"] == pytest.approx(slope / (0.5 + rho), abs=1e-6)
    assert row["lambda"] == pytest.approx(rho * abs(row["gamma"]), abs=1e-6)
    assert not row["strict"]


@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_a_thousand_steps_are_the_recurrence_bit_for_bit(damping: float) -> None:
    eta_p, eta_d, s, kappa = 0.03, 0.07, 0.3, 0.2
    settings = {"gamma_lr": eta_p, "dual_lr": eta_d, "damping": damping, "end": 1.0}
    gammas, lambdas = path(one(**settings), 1000, slope=s, curvature=kappa)
    gamma, lam = 1.0, 0.0
    for ours in zip(gammas, lambdas, strict=True):
        gamma = gamma - eta_p * ((-s + kappa * gamma) + (lam + 2 * damping * gamma))
        lam = lam + eta_d * gamma
        assert ours == (gamma, lam)


def test_a_thousand_resilient_steps_are_the_recurrence_bit_for_bit() -> None:
    eta_p, eta_d, s, kappa, c, rho = 0.03, 0.07, -0.3, 0.2, 0.3, 0.5
    settings = {"mode": "resilient", "rho": rho, "gamma_lr": eta_p, "dual_lr": eta_d, "damping": c}
    gammas, lambdas = path(one(**settings), 1000, slope=s, curvature=kappa)
    gamma, lam, signs = 1.0, 0.0, set()
    for ours in zip(gammas, lambdas, strict=True):
        price = max(0.0, lam + 2 * c * (abs(gamma) - lam / rho))
        gamma = gamma - eta_p * ((-s + kappa * gamma) + math.copysign(price, gamma))
        lam = max(0.0, lam + eta_d * (abs(gamma) - lam / rho))
        signs.add(gamma > 0)
        assert ours == (gamma, lam)
    assert signs == {True, False}


@pytest.mark.parametrize(("curvature", "damping"), [(0.0, 0.0), (0.04, 0.0), (0.0, 0.02), (0.1, 0.05)])
def test_frequency_and_damping_are_those_of_the_oscillator(curvature: float, damping: float) -> None:
    eta_p, eta_d = 0.05, 0.01
    settings = {"gamma_lr": eta_p, "dual_lr": eta_d, "damping": damping, "end": 1.0}
    gammas, _ = path(one(**settings), 2000, slope=0.0, curvature=curvature)
    omega = math.sqrt(eta_p * eta_d)
    zeta = (curvature + 2 * damping) / 2 * math.sqrt(eta_p / eta_d)
    zeros = [i + a / (a - b) for i, (a, b) in enumerate(itertools.pairwise(gammas)) if a * b < 0]
    periods = (len(zeros) - 1) / 2
    assert periods >= 5
    measured = 2 * math.pi * periods / (zeros[-1] - zeros[0])
    assert measured == pytest.approx(omega * math.sqrt(1 - zeta**2), rel=0.01)
    tops = [max(abs(g) for g in gammas[int(a) : int(b) + 1]) for a, b in itertools.pairwise(zeros)]
    decay = (math.log(tops[0]) - math.log(tops[-1])) / (zeros[-2] - zeros[0])
    assert decay == pytest.approx(zeta * omega, rel=0.01, abs=1e-5)


@pytest.mark.parametrize("total", [60, 10_000])
@pytest.mark.parametrize("rho", [None, 0.2, 2.0])
@pytest.mark.parametrize("given", [{}, {"gamma_lr": 0.3}, {"dual_lr": 0.02}, {"damping": 3.0}])
def test_rates_of_none_are_critical(given: dict[str, Any], rho: float | None, total: int) -> None:
    """A double root of the two steps, linearised in continuous time where |gamma| > u > 0."""
    settings = {"gamma_lr": None, "dual_lr": None, "damping": "critical", **given}
    rates = make_rates(total, *settings.values(), rho)
    eta_p, eta_d, c = rates.gamma, rates.dual, rates.damping
    a = [
        [-eta_p * 2 * c, -eta_p * (1 if rho is None else 1 - 2 * c / rho)],
        [eta_d, 0 if rho is None else -eta_d / rho],
    ]
    (a11, a12), (a21, a22) = a
    discriminant = (a11 + a22) ** 2 - 4 * (a11 * a22 - a12 * a21)
    assert discriminant == pytest.approx(0, abs=1e-12) if "damping" not in given and c else discriminant > -1e-12
    for key, ours in (("gamma_lr", eta_p), ("dual_lr", eta_d), ("damping", c)):
        assert ours == given.get(key, ours)
    if rho is None:
        assert math.sqrt(eta_p * eta_d) == pytest.approx(min(0.1, 20 * math.pi / total))


# ---- resumed, on two processes, accumulated --------------------------------------------------------------------------
def levels(strategy: ACE) -> dict[str, dict[str, float]]:
    return strategy.state_dict()["layers"]


MODES = {"equality": make_ace, "resilient": make_resilient}
each_mode = pytest.mark.parametrize("make", MODES.values(), ids=MODES)


@each_mode
def test_levels_are_the_same_after_resuming(make: Any, tmp_path: Path) -> None:
    def fit(**settings: Any) -> dict[str, dict[str, float]]:
        strategy = make()
        save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        run = trainer(strategy, save, max_epochs=4, enable_checkpointing=True, accumulate_grad_batches=2)
        run.fit(Plain(), loader(), **settings)
        return levels(strategy)

    whole = fit()
    assert fit(ckpt_path=str(tmp_path / "epoch=1.ckpt")) == whole
    saved = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)["callbacks"][make().state_key]["layers"]
    assert all(saved[name] != whole[name] for name in LAYERS)


@each_mode
def test_accumulated_batches_are_one_large_batch(make: Any) -> None:
    found = []
    for size, accumulate in ((4, 4), (16, 1)):
        strategy = make(horizon=20)
        run = trainer(strategy, precision="64-true", accumulate_grad_batches=accumulate, max_epochs=3)
        run.fit(Plain(), loader(16, size, torch.float64))
        found.append(levels(strategy))
    for name in LAYERS:
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-9)
        assert found[0][name]["lambda"] > 0.1


class SavesLevels(L.Callback):
    """Writes the levels of every rank before they are closed, and when training ends."""

    def __init__(self, strategy: ACE, folder: Path) -> None:
        self.strategy, self.folder = strategy, folder

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        torch.save(self.strategy.own_state()["layers"], self.folder / f"{trainer.global_step}-{trainer.global_rank}.pt")


@pytest.mark.slow
def test_two_processes_hold_the_same_levels(tmp_path: Path) -> None:
    from lightning.pytorch.strategies import DDPStrategy

    strategy = make_ace()
    ddp = DDPStrategy(start_method="fork", process_group_backend="gloo")
    trainer(strategy, SavesLevels(strategy, tmp_path), strategy=ddp, devices=2).fit(Plain(), loader())
    for step in (1, 2, 3):
        one, other = (torch.load(tmp_path / f"{step}-{rank}.pt") for rank in (0, 1))
        assert one == other
        assert all(level["lambda"] > 0 for level in one.values())


# ---- what the user's optimizer sees ----------------------------------------------------------------------------------
def test_gradients_and_clipping_are_those_of_the_loss_by_hand() -> None:
    module, strategy, twin = Plain(), make_ace(init=0.6), AceByHand()
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    for gamma in twin.gammas:
        gamma.data.fill_(0.6)
    twin.over = lambda: False  # type: ignore[method-assign]
    strategy.attach(module)
    strategy.update(0, 10)
    x, y = next(iter(loader()))
    loss, by_hand = module.training_step((x, y), 0), mse(twin.relaxed(x), y)
    torch.testing.assert_close(loss.to(by_hand), by_hand)
    loss.backward()
    by_hand.backward()
    gamma = strategy._levels.gamma
    torch.testing.assert_close(gamma.grad, torch.stack([g.grad for g in twin.gammas]))
    ours = [b.network for b in strategy.branches]
    pairs = zip(
        itertools.chain(module.net[0].parameters(), module.net[2].parameters()), twin.net.parameters(), strict=True
    )
    for p, expected in pairs:
        torch.testing.assert_close(p.grad, expected.grad)
    assert not any(gamma is p for p in module.parameters())
    alone, before = [p.grad.clone() for p in twin.net.parameters()], gamma.grad.clone()
    norm = torch.stack([g.norm() for g in alone]).norm()
    module.trainer = trainer()
    module.configure_gradient_clipping(module.configure_optimizers(), 0.01, "norm")
    for p, g in zip(itertools.chain(module.net[0].parameters(), module.net[2].parameters()), alone, strict=True):
        torch.testing.assert_close(p.grad, 0.01 * g / norm, rtol=1e-4, atol=1e-8)
    clipped = torch.stack([p.grad.norm() for network in ours for p in network.parameters()]).norm()
    assert clipped == pytest.approx(0.01, rel=1e-3)
    assert torch.equal(gamma.grad, before)
    strategy.detach()


@pytest.mark.parametrize("overflows", [False, True])
def test_levels_under_a_scaled_loss(overflows: bool) -> None:
    """float16 on the CPU: gradients are divided by the scale, and a step that the scaler skips is none for us."""
    found = []
    for scale in (1.0, 2.0**40 if overflows else 2.0**8):
        strategy, seen = make_ace(), []
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        look = EachStep(lambda _, seen=seen, strategy=strategy: seen.append(strategy.own_state()["layers"]["net.2"]))
        run = trainer(strategy, look, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
        run.fit(Plain(), loader())
        found.append(seen)
    plain, scaled = found
    if overflows:
        assert scaled[0] == scaled[2] == {"gamma": 1.0, "lambda": 0.0}
    else:
        assert plain[3]["lambda"] > 0.1
        assert scaled[3] == pytest.approx(plain[3], rel=1e-2)


def test_a_step_that_the_scaler_skips_is_none() -> None:
    """A weight's gradient is infinite in the second of four steps, those of the levels are not."""
    module, strategy, seen = Plain(), make_ace(), []
    calls = itertools.count(1)
    module.net[2].bias.register_hook(lambda g: g * (math.inf if next(calls) == 2 else 1))
    look = EachStep(lambda _: seen.append(strategy.own_state()["layers"]["net.2"]))
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    trainer(strategy, look, plugins=[MixedPrecision("16-mixed", "cpu", scaler)]).fit(module, loader())
    assert seen[1] == seen[0] != seen[2]


# ---- what is learned of a law ----------------------------------------------------------------------------------------
SYMMETRY = Symmetry("SO(3)", inputs="0e+1o", outputs="1o", batch=("0e+1o", "1o"))


def learn(push: float, **changes: Any) -> tuple[Regression, ACE, float]:
    """A network after 300 batches, each drawn anew, and its error on other samples."""
    module, strategy = Regression(), ACE(SYMMETRY, "net.*", "net", **changes)
    trainer(strategy).fit(module, batches(law(256, push, seed=1 + i) for i in range(300)))
    x, y = law(2000, push)
    with torch.no_grad():
        return module, strategy, float(mse(module.net(x), y))


def test_an_equality_is_strict_at_the_end_and_the_module_is_the_users() -> None:
    before = list(Regression().state_dict())
    module, strategy, _ = learn(0.5)
    assert list(module.state_dict()) == before
    assert not any(isinstance(m, RelaxedLayer) for m in module.modules())
    x, _ = law(200, 0.0)
    assert float(equivariance_error(module.net, x, symmetry=SYMMETRY).mean()) < 1e-5
    assert all(v["gamma"] == 0 != v["lambda"] for v in strategy.report)


def test_on_a_symmetric_law_no_layer_pays_and_nothing_is_lost() -> None:
    """Against the same law with a push, and against the strict network alone."""
    _, symmetric, error = learn(0.0)
    _, pushed, _ = learn(0.5)
    paid, price = ({v["layer"]: abs(v["lambda"]) for v in s.report} for s in (symmetric, pushed))
    assert paid["net.second"] < price["net.second"] / 10
    strict = Regression()
    trainer().fit(strict, batches(law(256, 0.0, seed=1 + i) for i in range(300)))
    x, y = law(2000, 0.0)
    with torch.no_grad():
        assert error < 1.5 * float(mse(strict.net(x), y)) + 1e-3


def test_resilient_keeps_what_is_worth_its_price() -> None:
    (*_, error_strict), (module, kept, error) = (learn(1.0, mode=mode) for mode in ("equality", "resilient"))
    dear = learn(1.0, mode="resilient", rho=100.0)[1]
    largest, least = (max(abs(v["gamma"]) for v in s.report) for s in (kept, dear))
    assert error < error_strict / 2
    assert largest > 3 * least
    assert isinstance(module.net.second, RelaxedLayer)


def test_resilient_ends_where_a_ridge_does(tmp_path: Path) -> None:
    module, strategy = Regression(), ACE(SYMMETRY, "net.*", "net", mode="resilient", rho=0.5)
    data, save = law(256, 0.5), ModelCheckpoint(tmp_path, filename="saved")

    def settle(run: L.Trainer) -> None:
        run.optimizers[0].param_groups[0]["lr"] = 0.01 if run.global_step < 400 else 1e-5

    run = trainer(strategy, EachStep(settle), save, enable_checkpointing=True, max_steps=600, max_epochs=-1)
    run.fit(module, batches([data] * 100))
    x, y = data
    thetas = [layer.theta for layer in (module.net.first, module.net.second)]
    for theta in thetas:
        theta.requires_grad_()
    slopes = torch.autograd.grad(mse(module.net(x), y), thetas)
    for theta, slope in zip(thetas, slopes, strict=True):
        assert abs(theta.item()) > 0.05
        assert slope.item() == pytest.approx(-0.5 * theta.item(), rel=0.01)
    again = Regression()
    ACE(SYMMETRY, "net.*", "net", mode="resilient").restore(again, torch.load(tmp_path / "saved.ckpt"))
    assert isinstance(again.net.second, RelaxedLayer)
    with torch.no_grad():
        torch.testing.assert_close(again.net(x), module.net(x))


def test_the_gap_of_projecting_is_under_the_bound() -> None:
    """|f - f_0| <= sum_l |gamma_l| |n_l h_l| Lip(what follows l), of a validation that logs |f - y|."""

    class Distance(Plain):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("distance", (self.net(batch[0]) - batch[1]).norm(dim=-1).mean())

    module, strategy, bounds = Distance(), make_ace(branch="linear", evaluate="both", end=1.0), []

    def bound(_: Any) -> None:
        x = loader(batch_size=22).dataset.x
        first, second = strategy.branches
        with torch.no_grad():
            a = torch.tanh(module.net[0](x))  # relaxed
            lipschitz = torch.linalg.matrix_norm(module.net[2].weight, 2)
            terms = lipschitz * abs(first.theta) * first.network.eval()(x).norm(dim=-1)
            terms = terms + abs(second.theta) * second.network.eval()(a).norm(dim=-1)
        for b in strategy.branches:
            b.network.train()
        bounds.append(float(terms.mean()))

    run = trainer(strategy, EachStep(bound))
    run.fit(module, loader(), loader(batch_size=22))
    gap = abs(float(run.callback_metrics["ace/projection_gap/distance"]))
    assert 0.01 < gap <= bounds[-1]


# ---- logs, evaluation, the report ------------------------------------------------------------------------------------
def test_logs_and_the_report(tmp_path: Path) -> None:
    strategy, logger = make_ace(name="mine", end=1.0), CSVLogger(tmp_path)
    seen: list[dict[str, Any]] = []
    look = EachStep(lambda run: seen.append(dict(run.callback_metrics)))
    trainer(strategy, look, logger=logger).fit(Plain(), loader())
    state = strategy.state_dict()["layers"]
    for name in LAYERS:
        assert seen[0][f"mine/gamma/{name}"] == 1
        assert seen[1][f"mine/gamma/{name}"] not in (0, 1)
        assert seen[2][f"mine/lambda/{name}"] > 0
    gammas = [abs(float(seen[2][f"mine/gamma/{name}"])) for name in LAYERS]
    assert float(seen[2]["mine/constraint"]) == pytest.approx(max(gammas))
    prices = [abs(v["lambda"]) for v in strategy.report]
    assert prices == sorted(prices, reverse=True)
    assert {v["layer"]: v["lambda"] for v in strategy.report} == {name: own["lambda"] for name, own in state.items()}
    assert json.loads((Path(logger.log_dir) / "mine_report.json").read_text()) == strategy.report


@each_mode
def test_validation_sees_what_is_deployed(make: Any, tmp_path: Path) -> None:
    settings = {"evaluate": None, "threshold": 1e-3, "end": 1.0}
    strategy, save = make(**settings), ModelCheckpoint(tmp_path, filename="saved")
    module = Plain()
    run = trainer(strategy, save, enable_checkpointing=True, max_epochs=2)
    run.fit(module, loader(), loader(batch_size=22))
    validated = float(run.callback_metrics["val_loss"])
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    strict = Plain()
    strict.load_state_dict(saved["state_dict"])
    assert (error_of(strict.net) == pytest.approx(validated)) == (make is make_ace)
    [again] = trainer(make(**settings), ModelCheckpoint(tmp_path), enable_checkpointing=True).validate(
        Plain(), loader(batch_size=22), ckpt_path=str(tmp_path / "saved.ckpt"), verbose=False
    )
    assert again["val_loss"] == pytest.approx(validated)
    assert error_of(module.net) == pytest.approx(validated), "and what is left after fit"


def test_a_loop_without_a_trainer_leaves_relaxed_layers() -> None:
    module, strategy = Plain(), make_resilient(threshold=0.0)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    strategy.attach(module)
    optimizer = module.configure_optimizers()
    for step, batch in enumerate(loader()):
        strategy.update(step, len(loader()))
        optimizer.zero_grad()
        module.training_step(batch, step).backward()
        optimizer.step()
    strategy.finish(module)
    assert isinstance(module.net[0], RelaxedLayer)
    run = make_resilient(threshold=0.0)
    other = Plain()
    trainer(run).fit(other, loader())
    assert strategy.report == run.report, "also the step after the last batch"
    torch.testing.assert_close(weights(module.net), weights(other.net))


# ---- what is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"mode": "soft"}, ValueError, "'equality' or 'resilient', got 'soft'"),
        ({"rho": 0.0}, ValueError, "rho"),
        ({"dual_lr": -1.0}, ValueError, "dual_lr"),
        ({"gamma_lr": 0.0}, ValueError, "gamma_lr"),
        ({"damping": "over"}, ValueError, "'critical' or a number, got 'over'"),
        ({"damping": -0.5}, ValueError, "damping"),
        ({"end": 1.5}, ValueError, "end"),
        ({"init": float("nan")}, ValueError, "init"),
        ({"threshold": -1.0}, ValueError, "threshold"),
        ({"mode": "resilient", "rho": 4.0, "gamma_lr": 0.5}, ValueError, "gamma_lr below 2 / rho = 0.5, got 0.5"),
        ({"mode": "resilient", "rho": 0.1, "dual_lr": 0.2}, ValueError, "dual_lr of at most rho=0.1, got 0.2"),
    ],
)
def test_bad_settings(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ACE("SO(3)", LAYERS, **settings)


def test_layers_of_invariants_are_no_place_to_break_a_symmetry() -> None:
    module = Plain()
    with pytest.raises(ValueError, match=r"\['net.0'\] map invariants of SO\(3\) to invariants.*REMUL"):
        ACE("SO(3)", {"net.0": ("3x0e", "16x0e")}).attach(module)
    both = {"net.0": ("3x0e", "16x0e"), "net.2": ("16x0e", "1o")}
    strategy = ACE("SO(3)", both)
    with pytest.warns(UserWarning, match=r"\['net.0'\] map invariants.*Leave them out"):
        strategy.attach(module)
    strategy.detach()
    unknown = ACE("SO(3)", "net.*")
    module.net = nn.Sequential(nn.Linear(3, 16), nn.Linear(16, 3))
    unknown.attach(module)  # how their features move is not known, and need not be
    assert len(unknown.branches) == 2
    unknown.detach()
