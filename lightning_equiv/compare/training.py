"""One run of a comparison: train, test what validated best, measure; from where it was killed, if it was."""

from __future__ import annotations

import datetime
import logging
import math
import re
import shutil
import signal
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_equiv.compare.made import hash_of
from lightning_equiv.compare.measured import Measured
from lightning_equiv.compare.memory import forget_peak, peak_memory
from lightning_equiv.compare.plan import Plan
from lightning_equiv.compare.records import Record, RunKey, append, key_of, read
from lightning_equiv.compare.seeded import BatchHash, Overlap, seed_all, seed_data
from lightning_equiv.compare.versions import versions
from lightning_equiv.compare.watching import Watch
from lightning_equiv.compare.way import Way
from lightning_equiv.wiring.random_state import random_state_kept

_LOADED: dict[str, Any] = {
    "weights_only": False
}  # its own file; it may hold what a module kept by save_hyperparameters
_ONE_AT_A_TIME = threading.Lock()  # the global generators are one for all threads


class _Best(ModelCheckpoint):
    """A type of its own: a ModelCheckpoint of the module's `configure_callbacks` does not take its place."""


def train(plan: Plan, key: RunKey, way: Way, steps: int, wait: bool = False) -> Record | None:
    """One run, from the beginning or from where it was killed; it is appended to the results.

    Whatever a run raises is its result: a way that fails does not stop the others.

    Args:
        plan: of the comparison.
        key: which run.
        way: without a sweep.
        steps: optimizer steps.
        wait: until no other process has the run in hand.

    Returns:
        What is known of the run, see `records`; None where another process has it in hand, or has done it.
    """
    folder = plan.folder / _file_name(key)
    plan.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        return None
    record = None
    try:
        done = [r for r in read(plan.results) if key_of(r) == key]
        if not done or (plan.retry and done[0]["status"] == "failed"):
            with _ONE_AT_A_TIME:
                record = _trained(plan, key, way, steps, folder)
            append(plan.results, record)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.release()
    return record


def _trained(plan: Plan, key: RunKey, way: Way, steps: int, folder: Path) -> Record:
    record = {
        "kind": "run" if key.trial is None else "trial",
        **key._asdict(),
        "settings": {name: value for name, value in way.settings.items() if _is_primitive(value)},
        "monitor": plan.monitor,
        "mode": plan.mode,
        "fingerprint": plan.fingerprint(key.case),
        "way_fingerprint": plan.fingerprint_of_way(way),
        "asked_steps": steps,
        "versions": versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    run = _Run(plan, key, way, steps, folder)
    try:
        with quiet(plan.threads), random_state_kept():
            record["threads"] = torch.get_num_threads()
            run.all()
        ended = {"status": "diverged" if run.watch.diverged() else "ok", "message": ""}
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}, line {last.lineno}"
        words = f"{type(error).__name__}: {' '.join(str(error).split())} ({where})"
        ended = {"status": "failed", "message": words}
    return {**record, **ended, **run.known()}


class _Run:
    """The parts of one run; `known` says what is known so far."""

    def __init__(self, plan: Plan, key: RunKey, way: Way, steps: int, folder: Path) -> None:
        self.plan, self.key, self.way, self.steps = plan, key, way, steps
        self.file = folder / "last.ckpt"
        self.batches, self.overlap = BatchHash(), Overlap()
        self.watch = Watch(plan.monitor, plan.watch, self.batches, self.file, plan.save_every)
        self.best = _Best(folder / "best", monitor=plan.monitor, mode=plan.mode, save_on_train_epoch_end=False)
        self.parameters: int | None = None
        self.device, self.memory = "", 0.0
        self.metrics: dict[str, float] = {}
        self.measured = Measured(plan)

    def all(self) -> None:
        """Train, test, measure."""
        plan, seed, watch = self.plan, self.key.seed, self.watch
        seed_all("module", seed)
        module = self.way.make_model(plan.model)
        callbacks = self.way.make_callbacks(plan.given, seed)
        seed_all("data", seed)
        data = plan.make_data(self.key.case, seed)
        seed_data(data, seed, self._saw, self.overlap.test)
        seed_all("training", seed)
        trainer = make_trainer(plan, self.steps, [watch, *callbacks, self.measured, self.best])
        self.device = str(trainer.strategy.root_device)
        forget_peak()
        watch.clock.start()
        with FileLock(plan.folder / "prepare_data.lock"):  # two processes must not download into one place
            data.prepare_data()
        resumed = {"ckpt_path": self.file, **_LOADED} if self.file.exists() else {}
        with _interruptible():
            trainer.fit(module, datamodule=data, **resumed)
        watch.clock.stop()
        self.memory = peak_memory(trainer.strategy.root_device)
        self.parameters = sum(p.numel() for p in module.parameters())
        if watch.diverged():
            return
        last = watch.last()
        if last is None or last[0] < watch.steps:  # the run ended between two validations
            trainer.validate(module, datamodule=data, verbose=False)
            watch.curve[plan.monitor][-1][0] = watch.steps
        value, best = watch.curve[plan.monitor][-1][2], self.best.best_model_score
        if watch.diverged():
            return
        last_is_best = best is None or (value < float(best) if plan.mode == "min" else value > float(best))
        self.metrics[plan.monitor] = value if last_is_best or best is None else float(best)
        if self.key.trial is not None:
            return
        self.measured.wanted = True
        weights = {} if last_is_best else {"ckpt_path": self.best.best_model_path, **_LOADED}
        for logged in trainer.test(module, datamodule=data, verbose=False, **weights):
            self.metrics |= {name: float(x) for name, x in logged.items()}
        self.metrics |= self.measured.extra

    def _tested(self) -> list[str]:
        """What test logged of the monitored quantity; all that it logged, where it has another name."""
        tested = [name for name in self.metrics if name != self.plan.monitor]
        same = self.plan.monitor.replace("val", "test", 1)
        return [name for name in tested if name.startswith(same)] or tested

    def _saw(self, batch: Any) -> None:
        if self.watch.trains:
            self.batches.update(batch)
            self.overlap.train(batch)

    def known(self) -> Record:
        """What is known of the run."""
        watch, measured = self.watch, self.measured
        seconds, cpu_seconds = watch.clock.read()
        return {
            "steps": watch.steps,
            "seconds": round(seconds, 3),
            "cpu_seconds": round(cpu_seconds, 3),
            "peak_memory": round(self.memory, 1),
            "parameters": self.parameters,
            "metrics": {name: _finite(x) for name, x in self.metrics.items()},
            "judged": list(self.plan.judged) or self._tested(),
            "equivariance_error": measured.errors,
            "profile": measured.profile,
            "inference_ms": measured.inference_ms,
            "curve": {
                name: [[step, round(at, 3), _finite(x)] for step, at, x in points]
                for name, points in watch.curve.items()
            },
            "batches": self.batches.all(),
            "trained_on": self.overlap.share,
            "device": self.device,
        }


def make_trainer(plan: Plan, steps: int, callbacks: list[L.Callback], **settings: Any) -> L.Trainer:
    """A Trainer of so many steps that prints nothing."""
    silent: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "inference_mode": False,  # a network may differentiate inside
        "devices": 1,
    }
    return L.Trainer(**{**silent, **plan.trainer, **settings, "max_steps": steps, "callbacks": callbacks})


@contextmanager
def quiet(threads: int | None) -> Iterator[None]:
    """Inside, Lightning gives no advice, and torch has so many threads."""
    logs = logging.getLogger("lightning.pytorch")
    level, before = logs.level, torch.get_num_threads()
    logs.setLevel(logging.ERROR)
    torch.set_num_threads(threads or before)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logs.setLevel(level)
        torch.set_num_threads(before)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Inside, Ctrl-C is a KeyboardInterrupt; Lightning makes it an exit, and may ignore the next one for good."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from None
        raise


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _is_primitive(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int | float)


def _file_name(key: RunKey) -> str:
    """A folder's name, distinct for distinct keys."""
    words = re.sub(r"[^\w.()=-]+", "_", "-".join(filter(None, (key.case, key.way))))[:60]
    return f"{words}-{key.seed}{'' if key.trial is None else f'-trial{key.trial}'}-{hash_of(list(key))[:6]}"
