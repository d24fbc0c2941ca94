"""What every strategy must satisfy, over one table of cases.

The twin of a case is the same training written by hand: rotation matrices and two lines in `training_step`, no
strategy.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

import lightning_equiv
from lightning_equiv import GroupAugmentation, SymmetryCallback
from lightning_equiv.strategies.branch_callback import BranchCallback
from tests.strategies import table
from tests.strategies.cases import CASES, GRADNORM, ByHand, Case, Draw, Fails, each_case
from tests.strategies.toys import (
    SYMMETRY,
    Plain,
    Rows,
    SavesPerRank,
    assert_same,
    draws,
    loader,
    make_net,
    snapshot,
    trainer,
    weights,
)

mse = nn.functional.mse_loss
DISTRIBUTED = {name: case for name, case in CASES.items() if case.distributed}
DRAWN = {name: case for name, case in CASES.items() if case.loss is not None}


def test_every_strategy_has_a_case() -> None:
    public = {
        cls
        for cls in vars(lightning_equiv).values()
        if isinstance(cls, type) and issubclass(cls, SymmetryCallback) and cls is not SymmetryCallback
    }
    assert public == {type(case.make()) for case in CASES.values()}


@each_case
def test_a_strategy_declares_what_is_expected_of_it(case: Case) -> None:
    strategy = case.make()
    for capability in ("adds_parameters", "changes_loss", "needs_end"):
        assert getattr(strategy, capability) == getattr(case, capability), capability
    assert strategy.works_sharded == (case.sharded is None)


def test_the_published_tables_are_those_of_the_tests(request: pytest.FixtureRequest) -> None:
    published = (table.RESULTS / "contract.md").read_text()
    rows = {line.split(" | ")[0].removeprefix("| ") for line in published.splitlines()[4:]}
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    tested = {dict(cell)["situation"] for cell in map(table.cell, items) if cell}
    assert tested <= rows
    options = request.config.option
    if (
        not options.keyword
        and options.markexpr == "not sweep"
        and all(any(item.nodeid.startswith(file) for item in items) for file in table.FILES)
    ):
        assert tested == rows
    assert "FAILED" not in published
    assert (table.RESULTS / "composition.md").read_text() == table.composition()


SETTINGS: dict[str, tuple[dict[str, Any], float]] = {  # of a Trainer, and how near the twin is
    "float32": ({}, 1e-5),
    "64-true": ({"precision": "64-true"}, 1e-12),
    "bf16-true": ({"precision": "bf16-true"}, 5e-2),
    "bf16-mixed": ({"precision": "bf16-mixed"}, 2e-2),
    "clipped by norm": ({"gradient_clip_val": 0.05}, 1e-5),
    "clipped by value": ({"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}, 1e-5),
    "accumulated, ragged": ({"accumulate_grad_batches": 4}, 1e-5),
}


@pytest.mark.situation("{row}")
@pytest.mark.parametrize("row", SETTINGS)
@each_case
def test_trains_as_the_loss_written_by_hand(case: Case, row: str) -> None:
    dtype = torch.float64 if row == "64-true" else torch.float32
    settings, tolerance = SETTINGS[row]
    modules = Plain(), case.make_twin()
    for module, callbacks in zip(modules, ([case.make()], []), strict=True):
        trainer(*callbacks, max_epochs=2, **settings).fit(module, loader(dtype=dtype))
    ours, twin, start = (weights(module.net) for module in (*modules, Plain()))
    assert (ours - start).abs().max() > 1e-3, "nothing was trained"
    distance = (ours - twin).abs().max() / (twin - start).abs().max()
    assert distance < tolerance


DDP: dict[str, dict[str, Any]] = {
    "ddp": {},
    "ddp, accumulated": {"accumulate_grad_batches": 2},
    "ddp, static_graph": {"static_graph": True},
    "ddp, find_unused_parameters": {"find_unused_parameters": True},
}


@pytest.mark.slow
@pytest.mark.situation("{row}")
@pytest.mark.parametrize("row", DDP)
@pytest.mark.parametrize("case", DISTRIBUTED.values(), ids=DISTRIBUTED)
def test_trains_as_the_loss_written_by_hand_on_two_processes(case: Case, row: str, tmp_path: Any) -> None:
    from lightning.pytorch.strategies import DDPStrategy

    options = dict(DDP[row])
    accumulate = options.pop("accumulate_grad_batches", 1)
    saved = []
    for i, (module, callbacks) in enumerate([(Plain(), [case.make()]), (case.make_twin(), [])]):
        folder = tmp_path / str(i)
        folder.mkdir()
        ddp = DDPStrategy(start_method="fork", process_group_backend="gloo", **options)
        trainer(*callbacks, SavesPerRank(folder), strategy=ddp, devices=2, accumulate_grad_batches=accumulate).fit(
            module, loader()
        )
        saved.append([torch.load(folder / f"{rank}.pt") for rank in (0, 1)])
    for key, value in saved[0][0].items():
        assert torch.equal(value, saved[0][1][key]), "the ranks drifted apart"
        assert_same(value, saved[1][0][key])
    assert not torch.equal(saved[0][0]["net.0.weight"], make_net()[0].weight)


class Halved(Plain):
    """Two processes share the rows by turns; one alone has batches of both their rows, one's after the other's."""

    def train_dataloader(self) -> DataLoader:
        rows, world_size = Rows(), self.trainer.world_size
        if world_size == 2:
            return DataLoader(rows, 4, sampler=DistributedSampler(rows, 2, self.global_rank, shuffle=False))
        places = [range(start, min(start + 4, len(rows) // 2)) for start in range(0, len(rows) // 2, 4)]
        return DataLoader(rows, batch_sampler=[[2 * i + rank for rank in (0, 1) for i in own] for own in places])


class HalvedByHand(Halved, ByHand):
    """The twin on one process: the rows of either are moved by its own draws."""

    def draw(self, batch_idx: int) -> Draw:
        each = [draws(*self.key, 0, rank, (self.current_epoch, batch_idx)) for rank in (0, 1)]
        return lambda n: torch.cat([draw(n // 2) for draw in each])


@pytest.mark.slow
@pytest.mark.situation("two processes are one with the doubled batch")
@pytest.mark.parametrize("case", DISTRIBUTED.values(), ids=DISTRIBUTED)
def test_two_processes_are_one_with_the_doubled_batch(case: Case, tmp_path: Any) -> None:
    from lightning.pytorch.strategies import DDPStrategy

    options = {"max_epochs": 3, "use_distributed_sampler": False}
    ddp = DDPStrategy(start_method="fork", process_group_backend="gloo")
    trainer(case.make(), SavesPerRank(tmp_path), strategy=ddp, devices=2, **options).fit(Halved())
    one = Halved() if case.loss is None else HalvedByHand(case.loss, case.key)
    trainer(*([case.make()] if case.loss is None else []), **options).fit(one)
    two = Plain()
    two.load_state_dict(torch.load(tmp_path / "0.pt"))
    moved = (weights(one.net) - weights(make_net())).abs().max()
    assert moved > 0.1
    assert (weights(two.net) - weights(one.net)).abs().max() < case.doubled * moved


# dynamo looks at .grad of what the network returned, and mutes the warning in a way that an error filter overrules
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.situation("compiled, {how}")
@pytest.mark.parametrize("how", ["net.compile()", "torch.compile(net)"])
@each_case
def test_trains_a_compiled_network(case: Case, how: str) -> None:
    torch._dynamo.reset()
    net = make_net()
    if how == "net.compile()":
        net.compile(backend="aot_eager")
    else:
        net = torch.compile(net, backend="aot_eager", fullgraph=case.one_graph)
    ours, twin = Plain(net), case.make_twin()
    trainer(case.make()).fit(ours, loader())
    trainer().fit(twin, loader())
    assert_same(weights(ours.net), weights(twin.net))


@pytest.mark.situation("attach, then detach")
@each_case
def test_attach_then_detach_is_the_identity(case: Case) -> None:
    module, strategy = Plain(), case.make()
    trainer().fit(module, loader())  # what Lightning itself leaves on a module is there now
    before, step = snapshot(module), module.training_step
    strategy.attach(module)
    assert snapshot(module) != before
    with pytest.raises(RuntimeError, match="already"):
        strategy.attach(module)
    strategy.detach()
    assert snapshot(module) == before
    assert module.training_step == step
    strategy.detach()  # nothing is held: nothing happens


@pytest.mark.situation("a loop without a Trainer")
@each_case
def test_a_loop_without_a_trainer(case: Case) -> None:
    module, strategy = Plain(), case.make()
    before = snapshot(module)
    strategy.attach(module)
    if case.prepare is not None:
        case.prepare(strategy, module)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    optimizer = module.configure_optimizers()
    for step, batch in enumerate(loader()):
        strategy.update(step, len(loader()))
        optimizer.zero_grad()
        module.training_step(batch, step).backward()
        optimizer.step()
    strategy.detach()
    del module.log
    assert snapshot(module) == before
    twin = case.make_twin()
    trainer().fit(twin, loader())
    assert_same(weights(module.net), weights(twin.net))


@each_case
def test_a_loop_that_evaluates_and_accumulates(case: Case) -> None:
    def loop(evaluates: bool) -> Tensor:
        module, strategy = Plain(), case.make()
        strategy.attach(module)
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
        x = Rows().x
        optimizer, losses = module.configure_optimizers(), []
        for i, batch in enumerate(loader()):
            strategy.update(i // 2, len(loader()) // 2)  # two batches a step
            losses.append(module.training_step(batch, i))
            losses[-1].backward()
            if isinstance(strategy, BranchCallback) and evaluates:
                with strategy.projected(), torch.no_grad():
                    projected = module.net(x)
                strict = make_net()
                strict.load_state_dict(module.net.state_dict(), strict=False)
                assert torch.equal(projected, strict(x))
            if i % 2:
                optimizer.step()
                optimizer.zero_grad()
        strategy.detach()
        return torch.stack(losses).detach()

    losses = loop(evaluates=True)
    assert torch.equal(losses, loop(evaluates=False))


@pytest.mark.parametrize("case", DRAWN.values(), ids=DRAWN)
def test_every_update_is_a_new_draw(case: Case) -> None:
    module, strategy = Plain(), case.make()
    strategy.attach(module)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    batch, losses = next(iter(loader())), []
    for step in (0, 0, 0, 1):
        strategy.update(step, 2)
        losses.append(module.training_step(batch, 0).item())
    assert len(set(losses)) == 4
    assert module.training_step(batch, 0).item() == losses[-1], "a closure sees one draw"
    strategy.detach()
    with pytest.raises(ValueError, match="expected total"):
        strategy.update(0, 0)


@pytest.mark.parametrize("case", DRAWN.values(), ids=DRAWN)
def test_a_loop_that_does_not_count_its_steps_draws_anew(case: Case) -> None:
    module, strategy, batch = Plain(), case.make(), next(iter(loader()))
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    strategy.attach(module)
    losses = [module.training_step(batch, 0) for _ in range(3)]
    strategy.detach()
    assert len({loss.item() for loss in losses}) == 3
    torch.testing.assert_close(module.training_step(batch, 0), mse(module.net(batch[0]), batch[1]))


@pytest.mark.situation("several fits in a row")
@each_case
def test_gone_after_fit_and_several_fits_in_a_row(case: Case) -> None:
    module, strategy = Plain(), case.make()
    trainer().fit(module, loader())
    before = snapshot(module)
    for _ in range(2):
        trainer(strategy).fit(module, loader(), loader())
        assert snapshot(module) == before


@pytest.mark.situation("an error in the user's step")
@each_case
def test_gone_after_an_exception(case: Case) -> None:
    module = Fails()
    before = snapshot(module)
    strategy = case.make()
    with pytest.raises(RuntimeError, match="the user's own"):
        trainer(strategy).fit(module, loader())
    assert snapshot(module) == before
    trainer(strategy).fit(Plain(), loader())  # the strategy is free again


@pytest.mark.situation("an error in attach")
@each_case
def test_a_failed_attach_leaves_nothing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    module, strategy = Plain(), case.make()
    before = snapshot(module)
    attach = strategy._attach

    def half_way(module: L.LightningModule, undo: Any) -> None:
        attach(module, undo)
        raise ValueError("half-way")

    monkeypatch.setattr(strategy, "_attach", half_way)
    with pytest.raises(ValueError, match="half-way"):
        strategy.attach(module)
    assert snapshot(module) == before


@each_case
def test_another_wrapper_on_top_stays(case: Case) -> None:
    module, first, second = Plain(), case.make(), GroupAugmentation(SYMMETRY, name="second")
    first.attach(module)
    ours = module.training_step
    theirs = lambda batch, batch_idx: ours(batch, batch_idx)  # noqa: E731
    module.training_step = theirs  # type: ignore[method-assign]
    second.attach(module)
    second.detach()
    assert module.training_step is theirs
    first.detach()
    assert module.training_step is theirs
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    batch = next(iter(loader()))
    torch.testing.assert_close(module.training_step(batch, 0), mse(module.net(batch[0]), batch[1]))


@pytest.mark.situation("resumed bit for bit; the checkpoint loads without us")
@pytest.mark.parametrize("case", [*CASES.values(), GRADNORM], ids=[*CASES, GRADNORM.name])
def test_resumes_bit_for_bit_and_the_checkpoint_loads_without_us(case: Case, tmp_path: Any) -> None:
    def fit(epochs: int, *callbacks: L.Callback, ckpt_path: str | None = None) -> L.LightningModule:
        module = Plain()
        save = ModelCheckpoint(tmp_path, filename=f"{{epoch}}-{epochs}", save_top_k=-1, every_n_epochs=2)
        trainer(*callbacks, save, max_epochs=epochs, enable_checkpointing=True, accumulate_grad_batches=2).fit(
            module, loader(), ckpt_path=ckpt_path
        )
        return module

    whole = fit(4, case.make())
    path = tmp_path / "epoch=1-4.ckpt"
    assert torch.equal(weights(fit(4, case.make(), ckpt_path=str(path))), weights(whole))
    saved = torch.load(path, weights_only=True)
    assert list(saved["state_dict"]) == list(Plain().state_dict())
    Plain().load_state_dict(saved["state_dict"])
    assert (case.make().state_key in saved["callbacks"]) == case.has_state
    # a state of ours, or an optimizer that held weights of ours, is missed by a run that goes on without us
    if case.adds_parameters:
        return
    if case.has_state:
        with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
            alone = fit(3, ckpt_path=str(path))
    else:
        alone = fit(3, ckpt_path=str(path))
    assert torch.isfinite(weights(alone)).all()


@pytest.mark.situation("weight averaging, {order}")
@pytest.mark.parametrize("order", ["average first", "average last"])
@each_case
def test_weight_averaging_in_either_order(case: Case, order: str, record_property: Any) -> None:
    if case.adds_parameters and order == "average first":
        with pytest.raises(RuntimeError, match="must come after"):
            trainer(EMAWeightAveraging(decay=0.9), case.make()).fit(Plain(), loader())
        record_property("refused", "must come after ours")
        return
    modules = []
    for module, strategies in ((Plain(), [case.make()]), (case.make_twin(), [])):
        average = EMAWeightAveraging(decay=0.9)
        trainer(*([average, *strategies] if order == "average first" else [*strategies, average])).fit(module, loader())
        modules.append(module)
    assert_same(weights(modules[0].net), weights(modules[1].net))


@pytest.mark.situation("a network built in {hook}")
@each_case
@pytest.mark.parametrize("hook", ["configure_model", "setup"])
def test_a_network_that_is_built_late(case: Case, hook: str) -> None:
    class Late(Plain):
        def __init__(self) -> None:
            super().__init__()
            del self.net

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return super().configure_optimizers()

    def build(self: Late, *_: Any, **__: Any) -> None:
        if not hasattr(self, "net"):
            self.net = make_net()

    setattr(Late, hook, build)
    late, twin = Late(), case.make_twin()
    trainer(case.make()).fit(late, loader())
    trainer().fit(twin, loader())
    assert_same(weights(late.net), weights(twin.net))


@pytest.mark.situation("LBFGS")
@each_case
def test_an_optimizer_that_calls_the_step_many_times_sees_one_draw(case: Case) -> None:
    def lbfgs(self: Plain) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.parameters(), lr=0.05, max_iter=3)

    pair = []
    for module, callbacks in ((Plain(), [case.make()]), (case.make_twin(), [])):
        module.configure_optimizers = lbfgs.__get__(module)  # type: ignore[method-assign]
        trainer(*callbacks, precision="64-true").fit(module, loader(dtype=torch.float64))  # it amplifies rounding
        pair.append(weights(module.net))
    torch.testing.assert_close(*pair, rtol=1e-6, atol=1e-7)


@pytest.mark.situation("the user's logs and random numbers")
@each_case
def test_the_users_own_logs_and_random_numbers_are_left_alone(case: Case) -> None:
    if not case.keeps_step:
        pytest.skip("not applicable: it changes what the step sees or returns")

    def fit(*callbacks: L.Callback) -> tuple[float, Tensor]:
        torch.manual_seed(3)
        module = Plain(lr=0.0)
        run = trainer(*callbacks)
        run.fit(module, loader())
        return float(run.callback_metrics["user_loss"]), torch.get_rng_state()

    (logged, state), (logged_alone, state_alone) = fit(case.make()), fit()
    assert logged == pytest.approx(logged_alone, rel=1e-6)
    assert torch.equal(state, state_alone)
