"""Sharded parameters: strategies that only add to the loss train as unsharded, the others are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from lightning_equiv import REMUL, SymmetryCallback
from tests.strategies.cases import CASES, Case, each_case
from tests.strategies.sharded_trainer import LOSSES as IN_A_TRAINER
from tests.strategies.sharded_trainer import RANKS, ROWS, STEPS
from tests.strategies.toys import LR, SYMMETRY, Plain, Rows, assert_same, draws, trainer, weights

ROOT = Path(__file__).parents[2]
TIMEOUT = 60.0
LOSSES = {name: case for name, case in CASES.items() if case.loss is not None}


def batch_of(step: int, rank: int) -> tuple[Tensor, Tensor]:
    data = Rows(STEPS * RANKS * ROWS)
    start = (step * RANKS + rank) * ROWS
    return data.x[start : start + ROWS], data.y[start : start + ROWS]


# ---- how a network is sharded: module -> a function that takes a training step --------------------------------------
Step = Callable[[Any, int], Tensor]


def shard_layers(module: Plain) -> Step:
    """FSDP2: the network and each of its layers."""
    mesh = init_device_mesh("cpu", (RANKS,))
    for layer in (module.net[0], module.net[2], module.net):
        fully_shard(layer, mesh=mesh)
    return lambda batch, i: module.training_step(batch, i)


def shard_module(module: Plain) -> Step:
    """FSDP2: the whole module as one, whose own forward is the step."""
    fully_shard(module, mesh=init_device_mesh("cpu", (RANKS,)))
    module.forward = lambda batch, i: module.training_step(batch, i)  # type: ignore[method-assign]
    return module


def wrap_network(module: Plain) -> Step:
    """FSDP1: the network is wrapped."""
    module.net = FullyShardedDataParallel(module.net, device_id=torch.device("cpu"), use_orig_params=True)
    return lambda batch, i: module.training_step(batch, i)


def wrap_module(module: Plain) -> Step:
    """FSDP1: the whole module is wrapped, as Lightning does it."""
    module.forward = lambda batch, i: module.training_step(batch, i)  # type: ignore[method-assign]
    return FullyShardedDataParallel(module, device_id=torch.device("cpu"), use_orig_params=True)


SHARDS = {"FSDP2": shard_layers, "FSDP2, whole": shard_module, "FSDP1": wrap_network, "FSDP1, whole": wrap_module}


def whole(module: Plain, step: Step) -> Tensor:
    """All weights in one vector, from all ranks."""
    if any(hasattr(p, "full_tensor") for p in module.parameters()):
        return torch.cat([p.full_tensor().detach().double().flatten() for p in module.parameters()])
    with FullyShardedDataParallel.summon_full_params(step if isinstance(step, nn.Module) else module.net):
        return weights(module)


def train(rank: int, case: Case, how: str, folder: Path) -> None:
    """One process: shard, then attach, as in a Trainer; three steps of SGD."""
    torch.set_num_threads(1)
    meet, patience = f"file://{folder}/meet", timedelta(seconds=TIMEOUT / 2)
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=RANKS, timeout=patience)
    module, strategy = Plain(), case.make()
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    step = SHARDS[how](module)
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)
    strategy.attach(module)
    for i in range(STEPS):
        optimizer.zero_grad()
        step(batch_of(i, rank), i).backward()
        optimizer.step()
    strategy.detach()
    kept = sum(getattr(p, "_local_tensor", p).numel() for p in module.parameters())
    torch.save({"weights": whole(module, step), "kept": kept}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def by_hand(case: Case) -> Tensor:
    """The same on one process, on the whole batch: the mean over ranks is the mean over rows."""
    module = Plain()
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)
    assert case.loss is not None
    for i in range(STEPS):
        optimizer.zero_grad()
        for rank in range(RANKS):
            draw = draws(*case.key, 0, rank, i + 1)
            (case.loss(module.net, *batch_of(i, rank), draw) / RANKS).backward()
        optimizer.step()
    return weights(module)


@pytest.mark.situation("sharded by FSDP 1 and 2, in a loop by hand")
@pytest.mark.parametrize("how", SHARDS)
@pytest.mark.parametrize("case", LOSSES.values(), ids=LOSSES)
def test_a_loss_on_a_sharded_network_is_the_loss_on_the_whole_one(case: Case, how: str, tmp_path: Path) -> None:
    if how.startswith("FSDP2") and not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip("torch 2.6 has FSDP2 for GPUs alone")
    context = torch.multiprocessing.start_processes(
        train, (case, how, tmp_path), nprocs=RANKS, join=False, start_method="fork"
    )
    try:
        finished = context.join(timeout=TIMEOUT) or context.join(timeout=TIMEOUT)  # one rank, then the other
    finally:
        for process in context.processes:
            with suppress(ValueError):
                process.kill()
    assert finished, "the processes wait for each other"
    expected, start = by_hand(case), weights(Plain())
    assert (expected - start).abs().max() > 1e-2, "nothing was trained"
    for rank in range(RANKS):
        saved = torch.load(tmp_path / f"{rank}.pt")
        assert saved["kept"] < 0.7 * len(start), "nothing was sharded"
        assert_same(saved["weights"], expected)


# ---- in a Trainer ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def sharded_by_lightning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes of a Trainer with FSDP2 left their weights, of all cases in turn."""
    if not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip("torch 2.6 has FSDP2 for GPUs alone")
    folder = tmp_path_factory.mktemp("sharded")
    words = ["-m", "torch.distributed.run", "--nproc-per-node", str(RANKS), "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    run = subprocess.run(
        [sys.executable, *words, "-m", "tests.strategies.sharded_trainer", str(folder)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3 * TIMEOUT, check=False,
    )  # fmt: skip
    assert not run.returncode, run.stderr[-3000:]
    return folder


def by_hand_in_a_trainer(case: Case) -> Tensor:
    """The same on one process; rows go to the ranks in turn."""
    module, data = Plain(), Rows(STEPS * RANKS * ROWS)
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)
    assert case.loss is not None
    for i in range(STEPS):
        optimizer.zero_grad()
        for rank in range(RANKS):
            rows = slice(rank + RANKS * ROWS * i, RANKS * ROWS * (i + 1), RANKS)
            draw = draws(*case.key, 0, rank, (0, i))
            (case.loss(module.net, data.x[rows], data.y[rows], draw) / RANKS).backward()
        optimizer.step()
    return weights(module)


@pytest.mark.situation("FSDP2 in a Trainer, ModelParallelStrategy")
@pytest.mark.parametrize("case", IN_A_TRAINER.values(), ids=IN_A_TRAINER)
def test_a_trainer_shards_as_the_loss_on_the_whole_network(case: Case, sharded_by_lightning: Path) -> None:
    start = weights(Plain())
    saved = [torch.load(sharded_by_lightning / f"{case.name} {rank}.pt") for rank in range(RANKS)]
    for one in saved:
        assert one["kept"] < 0.7 * len(start), "nothing was sharded"
        assert (one["weights"] - start).abs().max() > 1e-2, "nothing was trained"
        assert_same(one["weights"], saved[0]["weights"])
        if case.loss is not None:
            assert_same(one["weights"], by_hand_in_a_trainer(case))


def set_up(strategy: SymmetryCallback, sharding: type) -> None:
    run, module = trainer(strategy), Plain()
    run._accelerator_connector.strategy = object.__new__(sharding)  # a made one would look for its devices
    strategy.setup(run, module, "fit")
    strategy.teardown(run, module, "fit")


SHARDING = [FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy]


@pytest.mark.situation("Lightning's FSDP, DeepSpeed and model-parallel strategies")
@each_case
def test_sharding_is_allowed_or_refused(case: Case, record_property: Any) -> None:
    set_up(case.make(), DDPStrategy)
    for sharding in SHARDING:
        if case.sharded is None:
            set_up(case.make(), sharding)
        else:
            with pytest.raises(RuntimeError, match=f"{case.kind} .*{sharding.__name__} shards"):
                set_up(case.make(), sharding)
    record_property("words", "allowed; FSDP2 as above" if case.sharded is None else f"refused: {case.sharded}")


@pytest.mark.parametrize("sharding", SHARDING)
def test_gradnorm_is_refused_where_the_last_layer_is_sharded(sharding: type) -> None:
    with pytest.raises(RuntimeError, match="shard"):
        set_up(REMUL(SYMMETRY, "net", balance="gradnorm"), sharding)
