"""The cache of a clone: what it confirms, what damages it, who writes it at once; and clones that are not reached."""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from lightning_equiv import Symmetry, SymmetryCloning, equivariance_error
from lightning_equiv.strategies.symmetry_cloning import callback as cloning_file
from tests.helpers import global_seed
from tests.strategies.cloned_by_hand import SYMMETRY, Stretch
from tests.strategies.cloning_runs import cloning, made, randn, refused, relative_mse, state_of, teach, wide_net
from tests.strategies.toys import Plain, SavesPerRank, batches, loader, snapshot, trainer, weights

PROMISED = 0.5  # equivariance error of these clones


class Scaled(Stretch):
    """A teacher with something that no fingerprint shows."""

    def __init__(self, hidden: Any = None) -> None:
        super().__init__()
        self.hidden = [hidden]  # a list of a function

    def forward(self, x: Tensor) -> Tensor:
        [hidden] = self.hidden
        return super().forward(x) if hidden is None else hidden(super().forward(x))


class Buffered(Stretch):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * super().forward(x)


class Student(nn.Module):
    """One whose activation is a plain attribute."""

    def __init__(self, act: Callable[[Tensor], Tensor] = torch.tanh, scale: float = 1.0) -> None:
        super().__init__()
        with global_seed():
            self.first, self.last = nn.Linear(3, 64), nn.Linear(64, 3)
        self.act, self.scale = act, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.last(self.act(self.first(x)))


def good(teacher: nn.Module, cache: Path, **changes: Any) -> SymmetryCloning:
    settings = {"tolerance": PROMISED, "steps": 1500, "batch_size": 64, "inputs": [(3,)], "symmetry": SYMMETRY}
    return cloning(teacher, cache=cache, **{**settings, **changes})


def negative(x: Tensor) -> Tensor:
    return -x


# ---- what the cache confirms -----------------------------------------------------------------------------------------
OTHERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], str]] = {
    "a student's activation": (Scaled, lambda: Student(torch.relu), "had a relative MSE of"),
    "a student's plain attribute": (Scaled, lambda: Student(scale=3.0), "had a relative MSE of"),
    "a teacher's function in a list": (lambda: Scaled(negative), Student, "had a relative MSE of"),
    "a teacher's closure": (lambda: Scaled(functools.partial(torch.mul, other=2.0)), Student, "had a relative MSE of"),
    "a teacher's non-persistent buffer": (lambda: Buffered(2.0), Student, "belongs to another"),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a good clone of `Scaled` in a `Student`."""
    path = tmp_path_factory.mktemp("cache") / "clone.pt"
    strategy, module = good(Scaled(), path), Plain(Student())
    teach(strategy, module)
    x = randn(500, 3, seed=3)
    assert relative_mse(module.net(x), Scaled()(x)) < 1.2 * (PROMISED / 2) ** 2
    return path


@pytest.mark.parametrize("other", OTHERS)
def test_the_clone_of_another_is_refused_by_its_error(other: str, kept: Path) -> None:
    teacher, student, message = OTHERS[other]
    said = refused(good(teacher(), kept), Plain(student()), message)
    assert str(kept) in said


def test_a_confirmed_clone_keeps_its_promise(kept: Path) -> None:
    strategy, module, x = good(Scaled(), kept), Plain(Student()), randn(500, 3, seed=3)
    teach(strategy, module)
    assert relative_mse(module.net(x), Scaled()(x)) < 1.2 * (PROMISED / 2) ** 2
    assert strategy.report["clone_error"] == pytest.approx(torch.load(kept)["report"]["clone_error"], rel=1e-3)
    assert equivariance_error(module.net, x, SYMMETRY).mean() < PROMISED


def test_a_changed_symmetry_is_refused_even_of_the_same_group(kept: Path) -> None:
    other = Symmetry("SO(3)", inputs="1e", outputs="1e")
    refused(good(Scaled(), kept, symmetry=other), Plain(Student()), "belongs to another")


def test_a_function_has_one_fingerprint_in_every_process() -> None:
    settings = cloning(Stretch(), inputs=[(3,)]).settings
    keys = [cloning_file.fingerprint(Stretch(), Student(), settings, held) for held in (made_anew(), made_anew())]
    assert keys[0] == keys[1]


def made_anew() -> Callable[[Tensor], Tensor]:
    """A function that is elsewhere every time."""

    def act(x: Tensor) -> Tensor:
        return x

    KEPT.append(act)
    return act


KEPT: list[Any] = []


class Keyed(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((batch["x"], batch["y"]), batch_idx)


def keyed(scale: float = 30.0) -> Any:
    return batches({"x": randn(64, 3, seed=i), "y": scale * randn(64, 3, seed=i)} for i in range(40))


def test_a_function_that_reads_another_key_is_refused(tmp_path: Path) -> None:
    def run(key: str, data: Any) -> Keyed:
        strategy = good(Stretch(), tmp_path / "clone.pt", inputs=lambda batch: batch[key], cache_key="a")
        module = Keyed(Student(), lr=0.0)
        trainer(strategy).fit(module, data)
        return module

    first = run("x", keyed())
    shuffled = batches([{"x": randn(64, 3, seed=7), "y": randn(64, 3)}] * 2)
    assert torch.equal(weights(run("x", shuffled)), weights(first)), "another batch of the same law will do"
    with pytest.raises(ValueError, match=r"clone\.pt had a relative MSE of"):
        run("y", keyed())


# ---- damaged files ---------------------------------------------------------------------------------------------------
class Harmful:
    """Runs a command where it is unpickled without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def damage(path: Path) -> None:
        saved = torch.load(path)
        change(saved)
        torch.save(saved, path)

    return damage


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "half of it": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "text": lambda path: path.write_text("a clone"),
    "another pickle": lambda path: path.write_bytes(pickle.dumps({"fingerprint": "a"})),
    "a harmful pickle": lambda path: path.write_bytes(pickle.dumps(Harmful(path.parent / "harm"))),
    "a harmful file of torch's": lambda path: torch.save(Harmful(path.parent / "harm"), path),
    "a tensor": lambda path: torch.save(torch.zeros(3), path),
    "a list": lambda path: torch.save([1], path),
    "no student": changed(lambda saved: saved.pop("student")),
    "no report": changed(lambda saved: saved.pop("report")),
    "another student": changed(lambda saved: saved.update(student={"w": torch.zeros(3)})),
    "a student that is none": changed(lambda saved: saved.update(student=3)),
    "weights that are no numbers": changed(lambda saved: saved["student"]["first.weight"].fill_(float("nan"))),
    "an error that is none": changed(lambda saved: saved["report"].update(clone_error=None)),
    "a directory": directory,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named(damage: str, kept: Path, tmp_path: Path) -> None:
    path = tmp_path / "clone.pt"
    path.write_bytes(kept.read_bytes())
    DAMAGES[damage](path)
    assert str(path) in refused(good(Scaled(), path), Plain(Student()), "[Dd]elete the file")
    assert not (tmp_path / "harm").exists(), "what is in a file was run"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(kept: Path, tmp_path: Path) -> None:
    path = tmp_path / "clone.pt"
    path.write_bytes(kept.read_bytes())
    path.chmod(0)
    assert str(path) in refused(good(Scaled(), path), Plain(Student()), "holds no clone that can be read")


# ---- writing ---------------------------------------------------------------------------------------------------------
def full(*_: Any, **__: Any) -> None:
    raise RuntimeError("no space left on device")


@pytest.mark.parametrize("why", ["its folder is a file", "no space"])
def test_a_save_that_fails_is_a_warning(why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "clone.pt" if why == "no space" else tmp_path / "file" / "clone.pt"
    if why == "no space":
        monkeypatch.setattr(torch, "save", full)
    module, alone = Plain(), Plain()
    before = snapshot(module)
    with pytest.warns(UserWarning, match="could not be kept in"):
        trainer(cloning(Stretch(), inputs=[(3,)], cache=path)).fit(module, loader())
    trainer(cloning(Stretch(), inputs=[(3,)])).fit(alone, loader())
    assert torch.equal(weights(module), weights(alone))
    assert snapshot(module) == before
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_others_may_read_the_file(tmp_path: Path) -> None:
    teach(cloning(Stretch(), inputs=[(3,)], cache=tmp_path / "clone.pt"), Plain())
    (tmp_path / "plain").touch()
    assert (tmp_path / "clone.pt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def clones(path: Path, start: Any, results: Any, seed: int) -> None:
    start.wait()
    module = Plain()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            teach(cloning(Stretch(), inputs=[(3,)], cache=path), module := Plain())
            if seed == 0:
                path.unlink(missing_ok=True)
    results.put(float(weights(module).sum()))


def test_six_processes_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(6), context.Queue()
    path = tmp_path / "deep" / "clone.pt"
    processes = [context.Process(target=clones, args=(path, start, results, seed)) for seed in range(6)]
    for process in processes:
        process.start()
    sums = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6
    teach(cloning(Stretch(), inputs=[(3,)]), alone := Plain())
    assert sums == [float(weights(alone).sum())] * 6
    assert [p.name for p in path.parent.iterdir()] in ([], ["clone.pt"])


# ---- a tolerance that is not reached ---------------------------------------------------------------------------------
def narrow() -> Plain:
    return Plain(made(lambda: nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 3))))


def test_phase_one_stops_at_a_plateau() -> None:
    strategy = cloning(Stretch(), inputs=[(3,)], tolerance=0.1, steps=4000, lr=3e-2)
    message = refused(strategy, narrow(), r"has not fallen by 1 % in the last 1\d{3} steps", error=RuntimeError)
    steps = int(message.split("after ")[1].split()[0])
    assert 1000 < steps < 3000
    for words in ("the student's width", r"(tolerance=", "is reached)", "on_failure='warn' goes on"):
        assert words in message
    named = float(message.split("(tolerance=")[1].split(" ")[0])
    settings = {"steps": 4000, "lr": 3e-2, "tolerance": named}
    teach(cloning(Stretch(), inputs=[(3,)], **settings), narrow())  # what it says does


def test_a_clone_that_still_improves_goes_on_to_its_last_step() -> None:
    strategy = cloning(Stretch(), inputs=[(3,)], tolerance=1e-3, steps=1200, lr=1e-3)
    message = refused(strategy, Plain(wide_net()), "after 1200 steps", error=RuntimeError)
    assert "raise `steps`" in message


def test_a_run_that_goes_on_with_what_was_reached() -> None:
    module, strategy = narrow(), cloning(Stretch(), inputs=[(3,)], tolerance=0.1, on_failure="warn")
    before, start = snapshot(module), state_of(module)
    with pytest.warns(UserWarning, match="asks for 2.50e-03.*The run goes on with the clone as it is"):
        trainer(strategy).fit(module, loader())
    assert snapshot(module) == before
    assert not torch.equal(strategy.state_dict()["clone"]["0.weight"], start["net.0.weight"])
    assert strategy.report["clone_error"] > 0.0025


def test_a_clone_that_is_no_number_is_never_only_warned_of() -> None:
    class Undefined(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.log()

    strategy = cloning(Undefined(), inputs=[(3,)], on_failure="warn")
    refused(strategy, Plain(), "relative MSE is nan", error=RuntimeError)


def test_a_cached_clone_that_was_not_reached_is_said_again(tmp_path: Path) -> None:
    path = tmp_path / "clone.pt"
    poor = functools.partial(cloning, Stretch(), inputs=[(3,)], tolerance=0.1, cache=path)
    for _ in range(2):
        with pytest.warns(UserWarning, match="The run goes on"):
            teach(poor(on_failure="warn"), narrow())
    refused(poor(), narrow(), "relative MSE is", error=RuntimeError)
    with pytest.raises(ValueError, match="expected on_failure to be one of 'raise', 'warn', got 'ignore'"):
        poor(on_failure="ignore")


# ---- networks that differentiate inside ------------------------------------------------------------------------------
class Force(nn.Module):
    """-grad of an energy, as interatomic potentials have it."""

    def __init__(self, energy: nn.Module) -> None:
        super().__init__()
        self.energy = energy

    def forward(self, x: Tensor) -> Tensor:
        x.requires_grad_(True)
        return -torch.autograd.grad(self.energy(x).sum(), x, create_graph=self.training)[0]


class Radial(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(-x.square().sum(-1) / 2)


@pytest.mark.parametrize("inputs", [[(3,)], [0]], ids=["noise", "data"])
@pytest.mark.parametrize("student", ["plain", "a force"])
def test_a_conservative_teacher(inputs: Any, student: str, tmp_path: Path) -> None:
    def module() -> Plain:
        energy = made(lambda: nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 1)))
        return Plain(wide_net() if student == "plain" else Force(energy), lr=0.0)

    settings = {"symmetry": SYMMETRY, "inputs": inputs, "needs_grad": True, "cache": tmp_path / "clone.pt"}
    strategy = cloning(Force(Radial()), **settings, steps=1500, tolerance=0.6, batch_size=64)
    ours = module()
    strategy.attach(ours)
    data = [(randn(64, 3, seed=i), randn(64, 3)) for i in range(20)]
    strategy.teach(ours, lambda: iter(data))
    strategy.detach()
    x = randn(200, 3, seed=9)
    assert relative_mse(ours.net.train()(x.clone()), Force(Radial())(x.clone())) < 1.5 * 0.3**2
    assert strategy.report["clone_equivariance_error"] < 0.6
    assert not any(x.requires_grad for x, _ in data), "the user's own tensors are marked"
    again = module()
    cached = cloning(Force(Radial()), **settings, steps=1500, tolerance=0.6, batch_size=64)
    cached.attach(again)
    cached.teach(again, lambda: iter(data))
    assert torch.equal(weights(again), weights(ours))


# ---- a cloning that takes longer than the processes wait -------------------------------------------------------------
class Slow(Stretch):
    """A teacher that takes its time."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.04)
        return super().forward(x)


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_a_cloning_that_outlives_the_time_out_of_the_process_group(fails: bool, tmp_path: Path) -> None:
    ddp = DDPStrategy(start_method="fork", process_group_backend="gloo", timeout=timedelta(seconds=4))
    changes = {"tolerance": 1e-6, "steps": 200} if fails else {"steps": 200, "tolerance": 1e-6, "on_failure": "warn"}
    strategy = cloning(Slow(), inputs=[(3,)], **changes)  # eight seconds and more
    run = trainer(strategy, SavesPerRank(tmp_path), strategy=ddp, devices=2)
    if fails:
        with pytest.raises(Exception, match=r"after 200 steps|failed on the first"):
            run.fit(Plain(), loader())
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.fit(Plain(), loader())
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_what_differentiates_by_a_batch_leaves_the_batch_alone() -> None:
    data = [(randn(64, 3, seed=i), randn(64, 3)) for i in range(3)]
    strategy, module = cloning(Force(Radial()), inputs=[0], needs_grad=True), Plain()
    strategy.attach(module)
    strategy.teach(module, lambda: iter(data))
    strategy.detach()
    assert not any(x.requires_grad for x, _ in data)
