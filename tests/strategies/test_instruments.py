"""What the instruments of branch strategies measure, and that measuring leaves training alone."""

from __future__ import annotations

import copy
from typing import Any

import lightning as L
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_equiv import ACE, GroupAugmentation, Instruments, SymmetryCallback
from lightning_equiv.strategies.branch_callback import BranchCallback
from tests.helpers import global_seed
from tests.strategies.ace_by_hand import make_ace
from tests.strategies.cases import CASES, Case
from tests.strategies.relaxed_by_hand import make_relaxation
from tests.strategies.toys import SYMMETRY, Plain, Rows, SavesPerRank, loader, snapshot, trainer, weights

mse = nn.functional.mse_loss
ALL = Instruments(every=2)
BRANCHES = {
    name: case
    for name, case in CASES.items()
    if isinstance(case.make(), BranchCallback) and hasattr(case.make(), "instruments")
}
each_branch_case = pytest.mark.parametrize("case", BRANCHES.values(), ids=BRANCHES)


class Moving(Plain):
    """A step in which everything moves that a dry step must leave alone."""

    def __init__(self) -> None:
        with global_seed(0):
            net = nn.Sequential(
                nn.Linear(3, 16), nn.Sequential(nn.BatchNorm1d(16), nn.SiLU(), nn.Dropout(0.3)), nn.Linear(16, 3)
            )
        super().__init__(net)
        self.metric = MeanMetric()
        self.register_buffer("steps", torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        x += 0.01 * torch.randn_like(x)
        loss = mse(self.net(x), y)
        self.steps += 1
        self.metric(loss)
        self.log("user_loss", loss, on_epoch=True, on_step=False, sync_dist=True)
        self.log("user_metric", self.metric, on_epoch=True, on_step=False)
        return {"loss": loss, "x": x}


def run(case: Case, instruments: Instruments | None, **settings: Any) -> tuple[L.Trainer, Moving, BranchCallback]:
    module, strategy = Moving(), case.make()
    strategy.instruments = instruments
    fit = trainer(strategy, max_epochs=2, **settings)
    with global_seed(1):
        fit.fit(module, loader())
        module.drawn = torch.rand(1)
    return fit, module, strategy


SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "clipped and accumulated": {"accumulate_grad_batches": 4, "gradient_clip_val": 0.05},
}


@pytest.mark.parametrize("row", SETTINGS)
@each_branch_case
def test_training_is_bit_for_bit_what_it_is_without(case: Case, row: str) -> None:
    """Weights, buffers, random numbers, and what the user logs; the module is left as it was found."""
    plain, without, _ = run(case, None, **SETTINGS[row])
    fit, module, strategy = run(case, ALL, **SETTINGS[row])
    for key, value in without.state_dict().items():
        assert torch.equal(value, module.state_dict()[key]), key
    assert module.steps == 12
    assert torch.equal(without.drawn, module.drawn)
    ours = f"{strategy.name}/instruments/"
    for key, value in plain.callback_metrics.items():
        assert torch.equal(value, fit.callback_metrics[key]), key
    added = {key for key in fit.callback_metrics if key not in plain.callback_metrics}
    assert {ours + "curvature", ours + "dead/negative", ours + "loss/relaxed"} <= added
    assert all(key.startswith(ours) for key in added)
    assert snapshot(module) == snapshot(without)
    assert strategy.readings == {}


@each_branch_case
def test_a_run_that_is_resumed_with_instruments_is_the_one_without(case: Case, tmp_path: Any) -> None:
    """Their first half was trained without; nothing of theirs is in the checkpoint."""
    keep = ModelCheckpoint(tmp_path, filename="half", every_n_epochs=1, save_top_k=-1)
    horizon = {"horizon": 12} if case.needs_end else {}
    with global_seed(1):
        trainer(case.make(**horizon), keep, enable_checkpointing=True).fit(Moving(), loader())
    resumed = []
    for instruments in (None, ALL):
        module, strategy = Moving(), case.make(**horizon)
        strategy.instruments = instruments
        saved = ModelCheckpoint(tmp_path, filename=f"end {instruments is None}")
        fit = trainer(strategy, saved, max_epochs=2, enable_checkpointing=True)
        with global_seed(2):
            fit.fit(module, loader(), ckpt_path=tmp_path / "half.ckpt")
        end = torch.load(saved.best_model_path)
        state = end["callbacks"][strategy.state_key]
        resumed.append(
            (module.state_dict(), {key: list(value) if isinstance(value, dict) else 0 for key, value in state.items()})
        )
        assert module.steps == 12
    for key, value in resumed[0][0].items():
        assert torch.equal(value, resumed[1][0][key]), key
    assert resumed[0][1] == resumed[1][1]


class Recorded(L.Callback):
    """What was logged at every step, and copies of the module from before it."""

    def __init__(self, strategy: BranchCallback) -> None:
        self.strategy, self.readings, self.before, self.closing = strategy, [], [], []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        levels = [(float(b.theta), b.active) for b in self.strategy.branches]
        networks = [copy.deepcopy(b.network) for b in self.strategy.branches]
        self.closing = levels if levels[0][1] else self.closing  # of the last step that was relaxed
        self.before.append((copy.deepcopy(pl_module.net), networks, levels))

    def on_train_batch_end(self, *_: Any) -> None:
        start = "instruments/"
        self.readings.append({key.removeprefix(start): value.clone() for key, value in self.strategy.readings.items()})


def recorded(strategy: BranchCallback, module: Plain | None = None, **settings: Any) -> Recorded:
    seen = Recorded(strategy)
    trainer(strategy, seen, **{"max_epochs": 2, **settings}).fit(module or Plain(), loader())
    return seen


def relaxed_loss(state: Any, levels: Any, x: Tensor, y: Tensor) -> float:
    """f_l(x) + theta_l n_l(x), written out."""
    net, (first, second), _ = state
    (a, on_a), (b, on_b) = levels
    with torch.no_grad():
        h = torch.tanh(net[0](x) + (a * first(x) if on_a else 0))
        return float(mse(net[2](h) + (b * second(h) if on_b else 0), y))


def test_losses_against_a_direct_evaluation() -> None:
    """Relaxed and projected while theta is above 0; where it becomes 0, with the levels of the step before."""
    strategy = make_relaxation(instruments=Instruments("loss", every=3), peak=1.0, end=0.5)
    seen, batches = recorded(strategy), [*loader(), *loader()]
    assert [state[2][0][0] for state in seen.before] == pytest.approx([0, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3, *[0] * 6])
    strict = [(0.0, False)] * 2
    for number, levels, names in (
        (3, seen.before[3][2], ("loss/relaxed", "loss/projected")),
        (6, seen.before[5][2], ("projection/loss_before", "projection/loss_after")),
    ):
        state, batch = seen.before[number], batches[number]
        expected = relaxed_loss(state, levels, *batch), relaxed_loss(state, strict, *batch)
        assert abs(expected[0] - expected[1]) > 1e-3 * expected[1]
        found = {key: float(value) for key, value in seen.readings[number].items()}
        assert found == pytest.approx(dict(zip(names, expected, strict=True)), rel=1e-5)
    names = [set(readings) for readings in seen.readings]
    losses, kept = {"loss/relaxed", "loss/projected"}, {"projection/loss_before", "projection/loss_after"}
    assert names == [set()] * 3 + [losses] * 3 + [kept] * 6
    assert seen.readings[4] == seen.readings[3], "not measured, and not changed"


def test_what_dropping_would_do_is_measured_where_an_equality_is_closed() -> None:
    """ACE's gamma is not 0 before its end; the loss jumps, and both are of the same weights and batch."""
    strategy = make_ace(branch="linear", instruments=Instruments("loss", every=100), init=1.0)
    seen, batches = recorded(strategy), [*loader(), *loader()]
    number = next(i for i, state in enumerate(seen.before) if not state[2][0][1])
    assert number == 9, "from 0.7 of 12 steps on"
    state, levels = seen.before[number], seen.closing
    expected = relaxed_loss(state, levels, *batches[number]), relaxed_loss(state, [(0.0, False)] * 2, *batches[number])
    assert abs(expected[0] - expected[1]) > 1e-2
    found = {key: float(value) for key, value in seen.readings[number].items()}
    names = ("projection/loss_before", "projection/loss_after")
    assert found == pytest.approx(dict(zip(names, expected, strict=True)), rel=1e-5)


def test_curvature_against_the_dense_hessian_of_the_projected_loss() -> None:
    """At a rate of 0 the vector goes on from step to step, on one batch, while the network is relaxed."""
    module = Plain(lr=0.0).double()
    strategy = make_relaxation(
        instruments=Instruments("curvature", every=1, curvature_steps=5), schedule=lambda p: 1.0, lie_weight=0.0
    )
    x, y = Rows().x.double(), Rows().y.double()
    data = torch.utils.data.DataLoader([(x, y)], batch_size=None)
    seen = Recorded(strategy)
    trainer(strategy, seen, max_epochs=40, precision="64-true").fit(module, data)
    parameters = dict(module.net.named_parameters())
    sizes = [p.numel() for p in parameters.values()]

    def loss(flat: Tensor) -> Tensor:
        parts = [part.view_as(p) for part, p in zip(flat.split(sizes), parameters.values(), strict=True)]
        return mse(torch.func.functional_call(module.net, dict(zip(parameters, parts, strict=True)), x), y)

    flat = torch.cat([p.detach().flatten() for p in parameters.values()])
    eigenvalues = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))
    expected = float(eigenvalues[-1])
    assert -eigenvalues[0] > expected, "the largest of them is not that of largest magnitude"
    found = [float(readings["curvature"]) for readings in seen.readings]
    assert found[-1] == pytest.approx(expected, rel=1e-6)
    assert found[0] < 0.9 * expected, "it converges over time"


class Signs(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.net[1] = nn.ReLU()


def test_dead_shares_are_those_of_the_network_without_branches() -> None:
    """On the batch of the step as the step sees it, which an augmentation has moved."""
    strategy = make_relaxation(instruments=Instruments("dead", every=4), schedule=lambda p: 1.0, end=1.0)
    batches: list[Tensor] = []

    class Sees(Signs):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            batches.append(batch[0].clone())
            return super().training_step(batch, batch_idx)

    seen = Recorded(strategy)
    trainer(GroupAugmentation(SYMMETRY), strategy, seen).fit(Sees(), loader())
    # the batch is seen by the measurement, then by the step itself
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], next(iter(loader()))[0])
    h = seen.before[0][0][0](batches[0])
    negative = sum(all(value <= 0 for value in unit) for unit in h.T.tolist()) / 16
    positive = sum(all(value > 0 for value in unit) for unit in h.T.tolist()) / 16
    assert 0 < negative + positive < 1
    found = {key: float(value) for key, value in seen.readings[0].items()}
    expected = {"dead/negative": negative, "dead/positive": positive}
    assert found == pytest.approx({**expected, "dead/negative/net.1": negative, "dead/positive/net.1": positive})


# ---- when, and where it is logged ------------------------------------------------------------------------------------


def test_steps_that_are_measured_and_the_rows_of_a_logger(tmp_path: Any) -> None:
    """The first, every fourth and the last; what was measured last stands in every row that is written."""
    measured = []

    class Counts(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            measured.append(self.trainer.global_step)
            return super().training_step(batch, batch_idx)

    strategy = make_relaxation(instruments=Instruments("curvature", every=4))
    logger = CSVLogger(tmp_path, version=0)
    trainer(strategy, max_epochs=2, logger=logger, log_every_n_steps=3).fit(Counts(), loader())
    assert [step for step in range(12) if measured.count(step) > 1] == [0, 4, 8, 11]
    rows = (logger.log_dir + "/metrics.csv",)
    with open(rows[0]) as file:
        header, *lines = [line.rstrip("\n").split(",") for line in file]
    column, step = header.index("constraint_relaxation/instruments/curvature"), header.index("step")
    written = {int(line[step]): float(line[column]) for line in lines if line[column]}
    assert list(written) == [2, 5, 8, 11]
    assert len({*written.values()}) == 4


def test_a_loop_without_a_trainer() -> None:
    module, strategy = Plain(), make_relaxation(instruments=Instruments("loss curvature", every=2))
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    strategy.attach(module)
    found = []
    for step, batch in enumerate(loader()):
        strategy.update(step, 6)
        module.training_step(batch, step).backward()
        found.append(dict(strategy.readings))
    strategy.detach()
    assert set(found[3]) == {f"instruments/{name}" for name in ("loss/relaxed", "loss/projected", "curvature")}
    assert found[3] == found[2]
    assert strategy.readings == {}


# ---- networks --------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Fused attention has no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)[None, None]
        return self.last(self.act(nn.functional.scaled_dot_product_attention(h, h, h)[0, 0]))


@pytest.mark.parametrize("compiled", [False, True])
def test_compiled_networks_and_fused_attention(compiled: bool) -> None:
    """Measured as it is written, trained as it is compiled."""
    layers = {"net.**first": ("1o", "8x0e"), "net.**last": ("8x0e", "1o")}
    ends, readings = [], []
    for instruments in (None, ALL):
        with global_seed(0):
            net = Attention()
        net = torch.compile(net, backend="eager") if compiled else net
        module = Plain(net)
        strategy = make_relaxation(instruments=instruments)
        strategy.layers = layers
        fit = trainer(strategy, max_epochs=2)
        fit.fit(module, loader())
        ends.append(weights(module))
        readings.append({key.removeprefix("constraint_relaxation/instruments/") for key in fit.callback_metrics})
    assert torch.equal(*ends)
    assert {"curvature", "dead/negative/net.act", "loss/relaxed"} <= readings[1]


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


class OnceDifferentiable(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return mse(Once.apply(self.net(batch[0])), batch[1])


def test_a_step_that_cannot_be_differentiated_twice_is_refused() -> None:
    strategy, module = make_relaxation(instruments="curvature"), OnceDifferentiable()
    before = snapshot(module)
    with pytest.raises(RuntimeError, match="differentiates the training step twice"):
        trainer(strategy).fit(module, loader())
    assert snapshot(module) == before


# ---- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", ["", "lss", "loss,dead", None, ["loss"]])
def test_what_is_not_measured_is_refused(measure: Any) -> None:
    with pytest.raises(ValueError, match="expected instruments among"):
        Instruments(measure)


@pytest.mark.parametrize("bad", [{"every": 0}, {"curvature_steps": 1}])
def test_bad_numbers_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Instruments(**bad)


def test_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match=r"expected instruments to be an Instruments\(...\)"):
        make_relaxation(instruments=["loss"])
    assert isinstance(ACE("SO(3)", "net.*", instruments="loss").instruments, Instruments)


def test_dead_without_a_nonlinearity_that_is_known() -> None:
    module = Plain()  # tanh
    before = snapshot(module)
    strategy = make_relaxation(instruments="loss dead")
    with pytest.raises(
        ValueError, match=r"'dead' finds no nonlinearity .* in Plain: .*leave it out, instruments='loss'"
    ):
        trainer(strategy).fit(module, loader())
    assert snapshot(module) == before


@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("null", None),
        ("loss dead", Instruments("loss dead")),
        ("{every: 50}", Instruments(every=50)),
        (
            "{class_path: lightning_equiv.Instruments, init_args: {measure: curvature, curvature_steps: 3}}",
            Instruments("curvature", curvature_steps=3),
        ),
    ],
)
def test_in_a_configuration_file(written: str, expected: Instruments | None) -> None:
    parser = ArgumentParser()
    parser.add_argument("--strategy", type=SymmetryCallback)
    config = f"""
        strategy:
          class_path: lightning_equiv.ConstraintRelaxation
          init_args: {{symmetry: SO(3), layers: net.*, instruments: {written}}}
    """
    strategy = parser.instantiate_classes(parser.parse_string(config)).strategy
    assert strategy.instruments == expected


@pytest.mark.slow
def test_two_processes_train_as_without_and_measure_their_own_batches(tmp_path: Any) -> None:
    from lightning.pytorch.strategies import DDPStrategy

    saved = []
    for i, instruments in enumerate((None, ALL)):
        folder = tmp_path / str(i)
        folder.mkdir()
        ddp = DDPStrategy(start_method="fork", process_group_backend="gloo")
        with global_seed(1):
            trainer(make_relaxation(instruments=instruments), SavesPerRank(folder), strategy=ddp, devices=2).fit(
                Moving(), loader()
            )
        saved.append([torch.load(folder / f"{rank}.pt") for rank in (0, 1)])
    for key, value in saved[0][0].items():
        assert torch.equal(value, saved[1][0][key]), key
        assert torch.equal(saved[0][1][key], saved[1][1][key]), key
    assert saved[0][0]["steps"] == 3
