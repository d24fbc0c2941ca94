"""SymmetryCloning by itself: what a clone is worth, what holds it, where its inputs come from, what it refuses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_equiv import (
    REMUL,
    CircularConvolution,
    ClonedLayer,
    ConditionalBilinear,
    ConditionalMLP,
    Invariant,
    Shifted,
    Symmetry,
    SymmetryCloning,
    equivariance_error,
)
from lightning_equiv._random import derived_generator
from lightning_equiv.strategies.symmetry_cloning.cloning import Pair, clone
from lightning_equiv.strategies.symmetry_cloning.inputs import Draws, Settings, noise
from tests.helpers import global_seed, normal, seeded
from tests.strategies.cloned_by_hand import SYMMETRY as TURNS
from tests.strategies.cloned_by_hand import Stretch, make_cloning
from tests.strategies.toys import SYMMETRY as TURNS_OF_BATCHES
from tests.strategies.toys import Plain, Rows, SavesPerRank, loader, make_net, snapshot, trainer, weights

mse = nn.functional.mse_loss
RING = CircularConvolution((8,), 3)
DATA = DataLoader(Rows(200), 50)


randn = partial(normal, dtype=torch.float32)


def batches(data: Iterable[Any]) -> DataLoader:
    return DataLoader(list(data), batch_size=None)


def rings() -> DataLoader:
    """Four batches of signals (5, 1, 8)."""
    return batches((randn(5, 1, 8, seed=i), randn(5, 1, 8, seed=10 + i)) for i in range(4))


def made(make: Any, *args: Any, **kwargs: Any) -> Any:
    with global_seed():
        return make(*args, **kwargs)


def wide_net(width: int = 64) -> nn.Module:
    return made(lambda: nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 3)))


def cloning(teacher: nn.Module, network: str = "net", **changes: Any) -> SymmetryCloning:
    """A few steps, and any clone is good enough."""
    settings = {"steps": 50, "lr": 1e-2, "batch_size": 16, "tolerance": 1.9}
    return SymmetryCloning(teacher, network, **{**settings, **changes})


def teach(strategy: SymmetryCloning, module: L.LightningModule, *args: Any) -> None:
    strategy.attach(module)
    try:
        strategy.teach(module, *args)
    finally:
        strategy.detach()


def relative_mse(h: Tensor, phi: Tensor) -> float:
    return float((h - phi).detach().square().sum() / phi.detach().square().sum())


def error_of(network: nn.Module, args: Any, symmetry: Symmetry) -> float:
    """Relative equivariance error of many inputs together: the root of the mean |d|^2 over the mean |f|^2."""
    with torch.no_grad():
        f_x = network(*(args if isinstance(args, tuple) else (args,)))
        each = equivariance_error(network, args, symmetry, num_samples=8)
    squares = f_x.flatten(1).square().sum(1)
    return float(((each.square() * squares).sum() / squares.sum()).sqrt())


def unchanged(module: L.LightningModule, before: Mapping[str, Any], start: Mapping[str, Tensor]) -> None:
    assert snapshot(module) == before
    assert all(torch.equal(value, start[name]) for name, value in module.state_dict().items())
    assert all(p.requires_grad for p in module.parameters())


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def refused(
    strategy: SymmetryCloning, module: L.LightningModule, message: str, data: Any = None, error: Any = ValueError
) -> str:
    """A fit fails with that message and leaves the module as it was."""
    before, start = snapshot(module), state_of(module)
    with pytest.raises(error, match=message) as caught:
        trainer(strategy).fit(module, loader() if data is None else data)
    unchanged(module, before, start)
    return str(caught.value)


class Recording(Stretch):
    """Remembers what its copies are called with."""

    seen: ClassVar[list[Any]] = []

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        self.seen.append(kwargs or args)
        return super().forward(*args, **kwargs)


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    Recording.seen.clear()


class Pulls(L.Callback):
    """The loss of each step beside mse + weight / 2 (1 - step / steps) |theta - clone|^2."""

    def __init__(self, weight: float, steps: int) -> None:
        self.weight, self.steps, self.losses, self.expected = weight, steps, [], []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.clone = weights(pl_module.net)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *_: Any) -> None:
        with torch.no_grad():
            task, squares = mse(pl_module.net(batch[0]), batch[1]), (weights(pl_module.net) - self.clone).square().sum()
        pull = self.weight / 2 * (1 - len(self.expected) / self.steps) * squares
        self.expected.append(float(task + pull))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))


# ---- conditional and unconditional students --------------------------------------------------------------------------


@pytest.mark.parametrize("resample", ["step", "epoch"])
def test_an_unconditional_student_of_a_family_is_refused(resample: Any) -> None:
    strategy = SymmetryCloning(RING, "net", resample=resample)
    refused(strategy, Plain(nn.Linear(8, 8)), r"called with x alone.*mean over tau, which is 0.*resample='never'")


def test_what_the_refused_student_would_learn_is_useless() -> None:
    """The best h(x) is E_tau Phi = 0, and its relative MSE is 1: by a slow mean, and by cloning all the same."""
    x, tau = randn(20, 8), randn(5000, 3, seed=1)
    phi = torch.stack([RING(x, t.expand(20, -1)) for t in tau])
    assert relative_mse(phi.mean(0), phi[0]) > 0.9
    assert relative_mse(phi.mean(0).expand_as(phi), phi) == pytest.approx(1, abs=5e-3)
    settings = Settings(200, 64, 1e-2, 0.1, "step", "output", 0)
    draws = Draws(RING, noise(((8,),), settings), settings, torch.empty(()))
    assert clone(Pair(made(nn.Linear, 8, 8), RING, "output"), draws, settings, lambda *_: None).error > 0.95


def test_one_member_of_a_family() -> None:
    module, tolerance = Plain(made(nn.Linear, 8, 8)), 0.05
    strategy = cloning(RING, resample="never", steps=1000, tolerance=tolerance)
    teach(strategy, module)
    x, tau = randn(500, 8), torch.randn(1, 3, generator=derived_generator("tau", 0, 0))
    error = relative_mse(module.net(x), RING(x, tau.expand(500, -1)))
    assert error <= 1.2 * (tolerance / 2) ** 2
    assert strategy.report["clone_error"] == pytest.approx(error, rel=0.2)
    shifts = Symmetry(RING.symmetry.group, Shifted(-1), Shifted(-1))
    assert strategy.report["clone_equivariance_error"] == pytest.approx(error_of(module.net, x, shifts), rel=0.2)
    assert relative_mse(module.net(x), RING(x, randn(1, 3, seed=5).expand(500, -1))) > 0.1


@pytest.mark.parametrize(("resample", "tolerance"), [("step", 0.1), ("epoch", 0.25)])
def test_a_linear_student_learns_the_whole_family(resample: Any, tolerance: float) -> None:
    module = Plain(ClonedLayer(made(ConditionalBilinear.like, RING), 1, 1))
    strategy = cloning(RING, "net.student", resample=resample, steps=1500, tolerance=tolerance, batch_size=64)
    teach(strategy, module)
    x, tau = randn(500, 8), randn(500, 3, seed=1)
    assert relative_mse(module.net.student(x, tau), RING(x, tau)) <= 1.2 * (tolerance / 2) ** 2


# ---- what the tolerance promises -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught() -> tuple[Plain, SymmetryCloning]:
    """A perceptron that knows the convolutions of a ring, in a user's network."""
    module = made(lambda: Plain(ClonedLayer(ConditionalMLP.like(RING, width=128), 2, 3)))
    strategy = SymmetryCloning(RING, "net.student", steps=1500, tolerance=0.3, lr=3e-3)
    teach(strategy, module)
    return module, strategy


def test_the_tolerance_bounds_the_error_of_a_family(taught: Any) -> None:
    module, strategy = taught
    student, x, tau = module.net.student, randn(1000, 8, seed=7), randn(1000, 3, seed=8)
    assert relative_mse(student(x, tau), RING(x, tau)) <= 1.1 * (0.3 / 2) ** 2
    error = error_of(student, (x, tau), RING.symmetry)
    assert error <= 1.1 * 0.3
    assert strategy.report["clone_equivariance_error"] == pytest.approx(error, rel=0.1)
    untrained = made(ConditionalMLP.like, RING, width=128)
    assert error_of(untrained, (x, tau), RING.symmetry) > 3 * error


@pytest.mark.parametrize("tolerance", [0.5, 0.2])
def test_the_tolerance_bounds_the_error_of_a_network(tolerance: float) -> None:
    module, teacher = Plain(wide_net()), Stretch()
    strategy = cloning(teacher, symmetry=TURNS, inputs=[(3,)], tolerance=tolerance, steps=2000, batch_size=64)
    teach(strategy, module)
    x = randn(2000, 3, seed=7)
    assert relative_mse(module.net(x), teacher(x)) <= 1.2 * (tolerance / 2) ** 2
    error = error_of(module.net, x, TURNS)
    assert error <= 1.1 * tolerance
    assert strategy.report["clone_equivariance_error"] == pytest.approx(error, rel=0.2)


def test_a_cloned_layer_agrees_with_the_strict_one(taught: Any) -> None:
    layer = taught[0].net
    strict = ClonedLayer(RING, 2, 3)
    strict.load_state_dict(layer.state_dict(), strict=False)
    assert torch.equal(strict.tau, layer.tau)
    x = 10 * randn(500, 2, 8, seed=3)
    assert relative_mse(layer(x), strict(x)) < 0.3**2
    untrained = made(lambda: ClonedLayer(ConditionalMLP.like(RING, width=128), 2, 3))
    untrained.tau.data.copy_(layer.tau)
    assert relative_mse(untrained(x), strict(x)) > 0.8


def test_a_plain_network_takes_over_the_symmetry_of_another() -> None:
    """One line, with inputs from the data; untrained it is far from equivariant."""
    module, x = Plain(wide_net(), lr=0.0), randn(1000, 3, seed=9)
    before = error_of(module.net, x, TURNS)
    trainer(SymmetryCloning(Stretch(), "net", symmetry=TURNS, inputs=[0], tolerance=0.2, lr=1e-2)).fit(module, DATA)
    assert before > 0.2
    assert error_of(module.net, x, TURNS) < before / 5


# ---- modes -----------------------------------------------------------------------------------------------------------


def headed() -> Plain:
    """A student, and a head that is not part of it."""
    return made(lambda: Plain(nn.Sequential(make_net(), nn.Linear(3, 3))))


def test_retain_freezes_the_student_while_the_rest_trains() -> None:
    module, strategy = headed(), make_cloning(mode="retain", weight=None)
    strategy.network = "net.0"
    start = state_of(module)
    flags: list[bool] = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            flags.append(any(p.requires_grad for p in pl_module.net[0].parameters()))

    trainer(strategy, Look()).fit(module, loader())
    assert flags == [False] * 6
    for name, p in module.net[0].named_parameters():
        assert torch.equal(p, strategy.state_dict()["clone"][name])
        assert not torch.equal(p, start[f"net.0.{name}"])
    assert not torch.equal(module.net[1].weight, start["net.1.weight"])
    assert all(p.requires_grad for p in module.parameters())


def test_retain_gives_back_the_flags_that_it_found() -> None:
    module, strategy = headed(), cloning(Stretch(), "net.0", inputs=[(3,)], mode="retain")
    module.net[0][2].bias.requires_grad_(False)
    flags = [p.requires_grad for p in module.parameters()]
    trainer(strategy).fit(module, loader())
    assert [p.requires_grad for p in module.parameters()] == flags


def test_retain_with_nothing_else_to_train() -> None:
    refused(make_cloning(mode="retain", weight=None), Plain(), "mode='retain' freezes network='net', and nothing else")


def drift_of(**changes: Any) -> float:
    """|theta - clone| after two epochs."""
    module, strategy = Plain(), make_cloning(**changes)
    trainer(strategy, max_epochs=2).fit(module, loader())
    held = torch.cat([t.double().flatten() for t in strategy.state_dict()["clone"].values()])
    return float((weights(module.net) - held).norm())


def test_the_pull_keeps_the_student_near() -> None:
    free, near = drift_of(mode="break", weight=None), drift_of(mode="break", weight=1.0)
    nearer = drift_of(mode="retain", weight=20.0)
    assert free > 0.1
    assert near < 0.8 * free
    assert nearer < 0.2 * free
    assert drift_of(mode="break", weight=0.0) == free


def test_the_pull_in_closed_form() -> None:
    module, strategy = Plain(), make_cloning(weight=3.0)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    strategy.attach(module)
    strategy.teach(module)
    batch = next(iter(loader()))
    torch.testing.assert_close(module.training_step(batch, 0), mse(module.net(batch[0]), batch[1]))
    with torch.no_grad():
        for p in module.net.parameters():
            p.add_(0.1)
    loss, n = module.training_step(batch, 0), sum(p.numel() for p in module.net.parameters())
    torch.testing.assert_close(loss, mse(module.net(batch[0]), batch[1]) + 1.5 * n * 0.01)
    strategy.detach()


@pytest.mark.parametrize(("mode", "steps"), [("anneal", 12), ("break", float("inf")), ("retain", float("inf"))])
def test_the_pull_during_a_run(mode: Any, steps: float) -> None:
    """Constant, or falling linearly to 0 at the end of 12 steps."""
    pulls = Pulls(2.0, steps)
    trainer(make_cloning(mode=mode, weight=2.0), pulls, max_epochs=2).fit(Plain(), loader())
    assert len(pulls.losses) == 12
    assert pulls.losses == pytest.approx(pulls.expected, rel=1e-5)


def test_anneal_needs_to_know_how_long_the_run_is() -> None:
    module = Plain()
    before, start = snapshot(module), state_of(module)
    with pytest.raises(ValueError, match="set max_epochs or max_steps"):
        trainer(make_cloning(mode="anneal"), max_epochs=-1, max_steps=-1).fit(module, loader())
    unchanged(module, before, start)


# ---- layers that are matched -----------------------------------------------------------------------------------------


def test_layers_are_matched() -> None:
    """The hidden layers become equal; of what comes after them nothing is asked."""
    teacher, module = wide_net(16), Plain(made(lambda: nn.Sequential(nn.Linear(3, 16), nn.Linear(16, 5))))
    last = module.net[1].weight.clone()
    x = randn(200, 3)
    assert relative_mse(module.net[0](x), teacher[0](x)) < 1e-12, "the same seed: moved away first"
    module.net[0].weight.data.add_(0.5)
    teach(cloning(teacher, inputs=[(3,)], match={"0": "0"}, tolerance=0.1, steps=1000), module)
    assert relative_mse(module.net[0](x), teacher[0](x)) <= 1.2 * 0.05**2
    assert torch.equal(module.net[1].weight, last)


@pytest.mark.parametrize(
    ("match", "message"),
    [
        ({"first": "a"}, r"'first' names no sub-module of Sequential: the nearest are \['0', '1', '2'\]"),
        ({"0": "bb"}, r"'bb' names no sub-module of Stretch: the nearest are \["),
        ({"0": "b"}, r"shapes \[\(\d+, 16\)\], the teacher \[\(\d+, 3\)\]"),
        ({"0": "a"}, r"shapes \[\(\d+, 16\)\], the teacher \[\(\d+, 12\)\]"),
    ],
)
def test_layers_that_cannot_be_matched(match: Mapping[str, str], message: str) -> None:
    refused(cloning(Stretch(), inputs=[(3,)], match=match), Plain(), message)


def test_outputs_that_do_not_fit() -> None:
    message = r"shapes \[\(\d+, 4\)\], the teacher \[\(\d+, 3\)\]: expected equal ones; choose layers"
    refused(cloning(Stretch(), inputs=[(3,)]), Plain(nn.Linear(3, 4)), message)


# ---- inputs ----------------------------------------------------------------------------------------------------------


class Pairs(nn.Module):
    """Two inputs, of two shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))

    def forward(self, charges: Tensor, positions: Tensor) -> Tensor:
        return (charges[..., None] * positions * self.w).sum(1)


class RecordingPairs(Pairs):
    def forward(self, charges: Tensor, positions: Tensor) -> Tensor:
        Recording.seen.append((charges, positions))
        return 2 * super().forward(charges, positions)


class Systems(Plain):
    """Trains on dicts or on tuples of charges, positions and a label."""

    def __init__(self) -> None:
        super().__init__(Pairs())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        charges, positions, y = batch.values() if isinstance(batch, dict) else batch
        return mse(self.net(charges, positions), y)


def systems(as_dict: bool) -> DataLoader:
    rows = [(randn(4, 5, seed=i), randn(4, 5, 3, seed=50 + i), randn(4, 3, seed=90 + i)) for i in range(3)]
    return batches(dict(zip(("charges", "positions", "y"), row, strict=True)) if as_dict else row for row in rows)


SYSTEM = Symmetry("SO(3)", inputs={"charges": Invariant(), "positions": "1o"}, outputs="1o")
SHAPES: dict[str, Any] = {
    "list": [(5,), (5, 3)],
    "dict": {"charges": (5,), "positions": (5, 3)},
}
FROM_DATA: dict[str, Any] = {
    "keys": (["charges", "positions"], True),
    "indices": ([0, 1], False),
    "callable, tuple": (lambda batch: (batch["charges"], batch["positions"]), True),
    "callable, dict": (lambda batch: {"positions": batch[1], "charges": batch[0]}, False),
}


@pytest.mark.parametrize("name", SHAPES)
def test_inputs_of_noise(name: str) -> None:
    """N(0, I) of these shapes; the student arrives at the teacher's w."""
    module, strategy = Systems(), cloning(RecordingPairs(), inputs=SHAPES[name], tolerance=0.02, steps=2000)
    teach(strategy, module)
    torch.testing.assert_close(module.net.w.data, torch.full((3,), 2.0), rtol=0.02, atol=0)
    charges, positions = Recording.seen[-1]
    assert (charges.shape[1:], positions.shape[1:]) == ((5,), (5, 3))
    values = torch.cat([positions.flatten() for _, positions in Recording.seen])
    assert float(values.mean()) == pytest.approx(0, abs=0.05)
    assert float(values.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("symmetry", [None, SYSTEM], ids=["no symmetry", "symmetry"])
@pytest.mark.parametrize("name", FROM_DATA)
def test_inputs_from_the_training_batches(name: str, symmetry: Any) -> None:
    """As they are, or moved by random rotations, one for each sample and anew at each step."""
    inputs, as_dict = FROM_DATA[name]
    strategy = cloning(RecordingPairs(), inputs=inputs, symmetry=symmetry, tolerance=0.3, steps=500)
    trainer(strategy).fit(Systems(), systems(as_dict))
    data = [(batch["charges"], batch["positions"]) if as_dict else batch[:2] for batch in systems(as_dict)]
    steps = [seen for seen in Recording.seen if len(seen[0]) == 4]
    assert len(steps) >= 50
    moved = []
    for charges, positions in steps:
        [theirs] = [x for q, x in data if torch.equal(q, charges)]
        torch.testing.assert_close(positions @ positions.mT, theirs @ theirs.mT, rtol=1e-4, atol=1e-4)
        moved.append(float((positions - theirs).abs().amax((1, 2)).min()))
    assert len({float(charges.sum()) for charges, _ in steps}) == 3, "all batches were shown"
    if symmetry is None:
        assert max(moved) == 0
    else:
        assert sum(m > 1e-2 for m in moved) > 0.9 * len(moved)
        assert len({round(float(positions[0, 0, 0]), 5) for _, positions in steps}) > 40, "every step draws anew"


def test_a_family_is_taught_on_data() -> None:
    """The symmetry of a family says how tau moves, which is not in the data."""
    module = Plain(ClonedLayer(made(ConditionalBilinear.like, RING), 1, 1))
    strategy = cloning(RING, "net.student", inputs=lambda batch: batch[0][:, 0], steps=1500, tolerance=0.2)
    trainer(strategy).fit(module, rings())
    assert strategy.report["clone_error"] <= 0.1**2


def test_an_input_that_is_not_in_the_batch() -> None:
    refused(cloning(Stretch(), inputs=["x"]), Plain(), r"inputs='x' is not in the batch: 'x' was looked for in a list")


def test_no_batches_to_take_inputs_from() -> None:
    with pytest.raises(ValueError, match=r"teach\(module, batches\)"):
        teach(cloning(Stretch(), inputs=[0]), Plain())
    with pytest.raises(ValueError, match="no training batches"):
        teach(cloning(Stretch(), inputs=[0]), Plain(), list)


class Shown(Plain):
    """Remembers the batches and draws a random number at each step."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(*make_net(), nn.Dropout(0.5)))
        self.shown: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.shown.append(torch.cat([batch[0].flatten(), torch.rand(1)]))
        return super().training_step(batch, batch_idx)


LOADERS: dict[str, dict[str, Any]] = {
    "shuffled": {},
    "shuffled by its own generator": {"generator": 7},
    "persistent workers": {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "fork"},
}


@pytest.mark.parametrize("options", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("inputs", [[(3,)], [0]], ids=["noise", "data"])
def test_random_numbers_and_the_loader_are_left_alone(inputs: Any, options: dict[str, Any]) -> None:
    """All batches, in the order of a run without it."""

    def fit(*callbacks: L.Callback) -> tuple[list[Tensor], Tensor]:
        torch.manual_seed(3)
        module = Shown()
        own = {"generator": seeded(7)} if "generator" in options else {}
        trainer(*callbacks, max_epochs=2).fit(module, DataLoader(Rows(22), 4, shuffle=True, **{**options, **own}))
        return module.shown, torch.get_rng_state()

    (shown, state), (shown_alone, state_alone) = fit(cloning(Stretch(), inputs=inputs, symmetry=TURNS)), fit()
    assert len(shown) == len(shown_alone) == 12
    assert torch.equal(torch.cat(shown), torch.cat(shown_alone))
    assert torch.equal(state, state_alone)


class Both(Plain):
    """Trains on two loaders at once."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return sum(mse(self.net(x), y) for x, y in batch.values())


def test_inputs_from_one_of_several_loaders() -> None:
    strategy = cloning(Recording(), inputs=lambda batch: batch["labelled"][0])
    trainer(strategy).fit(Both(), {"labelled": loader(), "other": loader(8)})
    assert len(Recording.seen) >= 50
    shown = Rows(22).x
    for (x,) in Recording.seen:
        assert (torch.cdist(x, shown, compute_mode="donot_use_mm_for_euclid_dist").amin(1) == 0).all()


class Stream(IterableDataset):
    """Batches, nobody knows how many."""

    def __iter__(self) -> Iterator[Any]:
        yield from loader()


def test_inputs_from_a_stream() -> None:
    strategy = cloning(Recording(), inputs=[0])
    trainer(strategy).fit(Plain(), DataLoader(Stream(), batch_size=None))
    assert {len(x) for (x,) in Recording.seen} == {4, 2}


# ---- the teacher stays outside ---------------------------------------------------------------------------------------


def test_the_teacher_is_nowhere_in_the_run(tmp_path: Path) -> None:
    teacher = Stretch()
    before = state_of(teacher)
    strategy, module = cloning(teacher, inputs=[(3,)], symmetry=TURNS), Plain()
    save = ModelCheckpoint(tmp_path, filename="saved")
    run = trainer(strategy, save, enable_checkpointing=True)
    found: list[nn.Module] = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            found.extend(m for m in pl_module.modules() if isinstance(m, Stretch))

    run.callbacks.append(Look())
    run.fit(module, loader())
    assert found == []
    held = [p for optimizer in run.optimizers for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in module.parameters()}
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    assert list(saved["state_dict"]) == list(Plain().state_dict())
    state = saved["callbacks"][strategy.state_key]
    assert set(state["clone"]) == dict(module.net.named_parameters()).keys()
    assert state["report"] == strategy.report
    assert not torch.equal(state["clone"]["0.weight"], saved["state_dict"]["net.0.weight"]), "trained on"
    assert strategy.teacher is teacher
    assert teacher.training
    assert all(p.requires_grad and p.grad is None and p.dtype == torch.float32 for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_student_in_double_precision_leaves_the_teacher_as_it_is() -> None:
    teacher, module = Stretch(), Plain()
    teach(cloning(teacher, inputs=[(3,)]), module.double())
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    assert {p.dtype for p in module.parameters()} == {torch.float64}


# ---- cache -----------------------------------------------------------------------------------------------------------


def test_a_cached_clone_is_not_made_again(tmp_path: Path) -> None:
    settings = {"inputs": [(3,)], "cache": tmp_path / "deep" / "clone.pt", "symmetry": TURNS}
    first, second = Plain(), Plain(make_net(seed=1))
    strategy, again = cloning(Recording(), **settings), cloning(Recording(), **settings)
    teach(strategy, first)
    assert len(Recording.seen) >= 50
    Recording.seen.clear()
    teach(again, second)
    assert Recording.seen == []
    assert torch.equal(weights(first), weights(second))
    assert again.report == strategy.report
    assert not torch.equal(weights(first), weights(Plain()))


@pytest.mark.parametrize("other", ["teacher", "its weights", "student", "settings"])
def test_the_cache_of_another_clone_is_refused(other: str, tmp_path: Path) -> None:
    settings = {"inputs": [(3,)], "cache": tmp_path / "clone.pt"}
    teach(cloning(Stretch(), **settings), Plain())
    teacher: nn.Module = nn.Linear(3, 3) if other == "teacher" else Stretch()
    if other == "its weights":
        teacher.a.weight.data += 1e-3
    module = Plain(wide_net(17)) if other == "student" else Plain()
    changes = {"lr": 2e-2} if other == "settings" else {}
    refused(cloning(teacher, **settings, **changes), module, r"clone\.pt belongs to another teacher, student or sett")


def test_a_teacher_with_a_number_in_its_state() -> None:
    """As batch normalisations count their batches."""
    teacher = Stretch()
    teacher.register_buffer("count", torch.tensor(3))
    module = Plain()
    teach(cloning(teacher, inputs=[(3,)]), module)
    assert not torch.equal(weights(module), weights(Plain()))


class Normalised(nn.Module):
    """A student with running statistics, which are no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.net = nn.BatchNorm1d(3), wide_net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.norm(3 + 4 * x))


def test_a_cached_clone_has_its_running_statistics(tmp_path: Path) -> None:
    settings = {"inputs": [(3,)], "cache": tmp_path / "clone.pt", "tolerance": 0.6, "steps": 2000, "batch_size": 64}
    x, errors = randn(500, 3), []
    for module in (Plain(Normalised()), Plain(Normalised())):
        teach(cloning(Stretch(), **settings), module)
        errors.append(relative_mse(module.net.eval()(x), Stretch()(x)))
    assert errors[0] <= 1.2 * 0.3**2
    assert errors[1] == pytest.approx(errors[0], rel=1e-5)


# ---- several fits ----------------------------------------------------------------------------------------------------


def test_a_second_fit_goes_on_and_another_module_is_taught() -> None:
    strategy, module = cloning(Recording(), inputs=[(3,)]), Plain()
    trainer(strategy).fit(module, loader())
    held, trained = strategy.state_dict()["clone"], weights(module)
    Recording.seen.clear()
    starts: list[Tensor] = []

    class Look(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            starts.append(weights(pl_module))

    trainer(strategy, Look()).fit(module, loader())
    assert Recording.seen == []
    assert torch.equal(starts[0], trained)
    assert all(torch.equal(value, held[name]) for name, value in strategy.state_dict()["clone"].items())
    other = Plain()
    trainer(strategy, Look()).fit(other, loader())
    assert len(Recording.seen) >= 50
    clone_of_other = torch.cat([t.double().flatten() for t in strategy.state_dict()["clone"].values()])
    assert torch.equal(starts[1], clone_of_other)


def test_a_student_that_could_not_be_taught_is_taught_the_next_time() -> None:
    """It does not pass for taught because another one was."""
    strategy = cloning(Stretch(), inputs=[(3,)], tolerance=0.5, steps=500, batch_size=64)
    trainer(strategy).fit(Plain(wide_net()), loader())
    poor = Plain(nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 3)))
    for _ in range(2):
        refused(strategy, poor, "raise `steps`", error=RuntimeError)


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_a_teacher_that_is_not_equivariant() -> None:
    teacher = made(nn.Linear, 3, 3)
    message = refused(cloning(teacher, symmetry=TURNS, inputs=[(3,)]), Plain(), "Linear is not equivariant under")
    [measured] = re.findall(r"error is (\S+),", message)
    assert float(measured) == pytest.approx(error_of(teacher, randn(2000, 3), TURNS), rel=0.25)
    teach(cloning(teacher, symmetry=TURNS, inputs=[(3,)], max_teacher_error=2.0), Plain())


def test_a_tolerance_that_is_not_reached() -> None:
    strategy, module = cloning(Stretch(), inputs=[(3,)], tolerance=0.01, steps=20), Plain()
    message = refused(
        strategy, module, r"after 20 steps the clone's relative MSE is .*tolerance=0\.01", None, RuntimeError
    )
    assert "raise `steps`, the student's width or `tolerance`" in message
    [reached] = re.findall(r"relative MSE is (\S+) ", message)
    assert 2.5e-5 < float(reached) < 2
    assert strategy.state_dict() == {}
    assert all(p.grad is None for p in module.parameters())


def test_where_the_tolerance_ends() -> None:
    """At 2 sqrt(relative MSE): a little less is refused, a little more is not."""
    strategy = cloning(Stretch(), inputs=[(3,)], steps=50)
    teach(strategy, Plain())
    bound = 2 * strategy.report["clone_error"] ** 0.5
    refused(cloning(Stretch(), inputs=[(3,)], tolerance=0.95 * bound), Plain(), "after 50 steps", error=RuntimeError)
    teach(cloning(Stretch(), inputs=[(3,)], tolerance=1.05 * bound), Plain())


class GivesUp(Stretch):
    """Fails when the student has begun to learn."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 10:
            raise ValueError("the teacher's own")
        return super().forward(x)


def test_a_teacher_that_fails_half_way() -> None:
    module = Plain()
    refused(cloning(GivesUp(), inputs=[(3,)]), module, "the teacher's own")
    assert all(p.grad is None for p in module.parameters())


class Undefined(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.log()


def test_a_clone_that_is_not_a_number() -> None:
    refused(cloning(Undefined(), inputs=[(3,)]), Plain(), "relative MSE is nan", error=RuntimeError)


def test_a_student_that_is_not_there() -> None:
    refused(cloning(Stretch(), "nett", inputs=[(3,)]), Plain(), r"network='nett' names no sub-module .* \['net'")
    refused(cloning(Stretch(), "net.1", inputs=[(3,)]), Plain(), "network='net.1' has no parameters")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resample": "always"}, "resample to be one of 'step', 'epoch', 'never', got 'always'"),
        ({"mode": "keep"}, "mode to be one of 'retain', 'break', 'anneal', got 'keep'"),
        ({"tolerance": 0}, "tolerance to be a finite number above 0, got 0"),
        ({"tolerance": float("nan")}, "tolerance to be a finite number above 0, got nan"),
        ({"steps": 0}, "steps to be a whole number of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size to be a whole number of at least 1, got 0"),
        ({"weight": -1.0}, "weight to be a finite number of at least 0 or None, got -1"),
        ({"weight": float("nan")}, "weight to be a finite number of at least 0 or None, got nan"),
        ({"match": ["0"]}, r"match to be 'output' or .*, got \['0'\]"),
        ({"match": "outputs"}, "match to be 'output' or .*, got 'outputs'"),
        ({"inputs": None}, "say what Stretch is shown"),
        ({"inputs": []}, r"inputs as shapes of noise.*got \[\]"),
        ({"inputs": [(3,), "x"]}, "inputs as shapes of noise"),
        ({"inputs": 3}, "inputs as shapes of noise.*got 3"),
        ({"teacher": RING, "inputs": {"x": (8,)}}, "tau"),
        ({"inputs": "positions"}, "inputs as shapes of noise.*got 'positions'"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SymmetryCloning(**{"teacher": Stretch(), "network": "net", "inputs": [(3,)], **changes})


# ---- logs, loops, company --------------------------------------------------------------------------------------------


def test_logs_and_the_report() -> None:
    module, strategy = Plain(), cloning(Stretch(), inputs=[(3,)], symmetry=TURNS, name="mine")
    run = trainer(strategy)
    drifts: list[float] = []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            held = torch.cat([t.double().flatten() for t in strategy.state_dict()["clone"].values()])
            drifts.append(float((weights(pl_module) - held).norm() / held.norm()))

    run.callbacks.append(Look())
    run.fit(module, loader())
    logged = {name: float(value) for name, value in run.callback_metrics.items() if name.startswith("mine/")}
    assert set(logged) == {"mine/clone_error", "mine/clone_equivariance_error", "mine/drift"}
    assert set(strategy.report) == {"clone_error", "clone_equivariance_error", "steps"}
    for key in ("clone_error", "clone_equivariance_error"):
        assert logged[f"mine/{key}"] == pytest.approx(strategy.report[key])
    assert logged["mine/drift"] == pytest.approx(drifts[-1], rel=1e-4)
    assert drifts[0] == 0
    assert drifts[-1] > 0.01


def test_without_a_symmetry_nothing_is_measured() -> None:
    strategy = cloning(Stretch(), inputs=[(3,)])
    run = trainer(strategy)
    run.fit(Plain(), loader())
    assert set(strategy.report) == {"clone_error", "steps"}
    assert {n for n in run.callback_metrics if "/" in n} == {"symmetry_cloning/clone_error", "symmetry_cloning/drift"}


@pytest.mark.parametrize("inputs", [[(3,)], [0]], ids=["noise", "data"])
def test_a_loop_without_a_trainer(inputs: Any) -> None:
    """The same weights as a Trainer's."""
    settings = {"inputs": inputs, "symmetry": TURNS, "weight": 0.5}
    module, twin, strategy = Plain(), Plain(), cloning(Stretch(), **settings)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    before = snapshot(module)
    strategy.attach(module)
    strategy.teach(module, loader)
    optimizer = module.configure_optimizers()
    for i, batch in enumerate(loader()):
        optimizer.zero_grad()
        module.training_step(batch, i).backward()
        optimizer.step()
    strategy.detach()
    assert snapshot(module) == before
    trainer(cloning(Stretch(), **settings)).fit(twin, loader())
    torch.testing.assert_close(weights(module), weights(twin), rtol=1e-6, atol=1e-7)


def test_two_of_them_on_two_students() -> None:
    module = Plain(nn.Sequential(make_net(0), make_net(1)))
    first, second = (
        cloning(Stretch(), f"net.{i}", inputs=[(3,)], symmetry=TURNS, name=f"part_{i}", mode=mode)
        for i, mode in enumerate(("retain", "break"))
    )
    run = trainer(first, second)
    run.fit(module, loader())
    assert {"part_0/drift", "part_1/drift"} <= set(run.callback_metrics)
    assert float(run.callback_metrics["part_0/drift"]) == 0 < float(run.callback_metrics["part_1/drift"])
    for i, strategy in enumerate((first, second)):
        held = strategy.state_dict()["clone"]["0.weight"]
        assert torch.equal(module.net[i][0].weight, held) == (i == 0)
    assert first.state_key != second.state_key


@pytest.mark.parametrize("remul_first", [True, False])
def test_together_with_remul_in_either_order(remul_first: bool) -> None:
    def fit(*callbacks: L.Callback) -> Tensor:
        module = Plain()
        trainer(*callbacks).fit(module, loader())
        assert "training_step" not in module.__dict__
        return weights(module)

    remul, alone = REMUL(TURNS_OF_BATCHES, "net", target=1), fit(make_cloning())
    both = fit(*([remul, make_cloning()] if remul_first else [make_cloning(), remul]))
    assert torch.isfinite(both).all()
    assert not torch.allclose(both, alone)
    torch.testing.assert_close(both, fit(make_cloning(), REMUL(TURNS_OF_BATCHES, "net", target=1)))


# ---- two processes ---------------------------------------------------------------------------------------------------


class Witness(Stretch):
    """Leaves a file for each process that calls it."""

    folder: ClassVar[Path]

    def forward(self, x: Tensor) -> Tensor:
        (self.folder / f"called_by_{torch.distributed.get_rank()}").touch()
        return super().forward(x)


class SavesClone(L.Callback):
    """Writes the weights of every rank before the first step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        torch.save(state_of(pl_module), self.folder / f"clone_{trainer.global_rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("inputs", [[(3,)], [0]], ids=["noise", "data"])
def test_one_process_clones_and_the_other_receives(inputs: Any, tmp_path: Path) -> None:
    from datetime import timedelta

    from lightning.pytorch.strategies import DDPStrategy

    Witness.folder = tmp_path
    ddp = DDPStrategy(start_method="fork", process_group_backend="gloo", timeout=timedelta(seconds=20))
    strategy = cloning(Witness(), inputs=inputs, symmetry=TURNS)
    trainer(strategy, SavesClone(tmp_path), SavesPerRank(tmp_path), strategy=ddp, devices=2).fit(Plain(), loader())
    assert sorted(path.name for path in tmp_path.glob("called_by_*")) == ["called_by_0"]
    clones, trained = ([torch.load(tmp_path / f"{name}{rank}.pt") for rank in (0, 1)] for name in ("clone_", ""))
    for name, start in Plain().state_dict().items():
        assert torch.equal(clones[0][name], clones[1][name])
        assert torch.equal(trained[0][name], trained[1][name])
        assert not torch.equal(clones[0][name], start)
        assert not torch.equal(clones[0][name], trained[0][name])
