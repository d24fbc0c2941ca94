"""Killed, and gone on: a run loses nothing but what was in hand, and comes out bit for bit as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from lightning_equiv.compare.watching import Watch
from tests.compare.toys import numbers, run, table

ROOT = Path(__file__).parents[2]
LAYERS = {"net.0": ("1o", "8x0e")}
STATES = ["plain", "REMUL(GradNorm)", "REMUL(5 %)", "RECM", "ConstraintRelaxation", "augmentation"]
HARD = {"class_path": "tests.compare.toys.Net", "init_args": {"dropout": 0.2, "draws": True}}
# A process that forks others needs its imports once. The path, and what the children do with it, are its arguments.
FORKS = """
import json, os, random, signal, sys, time, traceback
import torch
from tests.compare.toys import run, table
from tests.compare.test_resume import HARD
torch.set_num_threads(1)

def child(number):
    if pid := os.fork():
        return pid
    try:
        records = run(sys.argv[2], HARD, ways=["plain", "REMUL(GradNorm)"], seeds=3, steps=30, save_every=0)
        with open(f"{sys.argv[2]}.{number}", "w") as file:
            json.dump(sorted(map(str, table(records))), file)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)
"""


class Killed(BaseException):
    pass


def script(code: str, *arguments: object) -> subprocess.Popen[str]:
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], env=settings, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture
def killed_when_saved(monkeypatch):
    """Every process is killed as soon as it has saved a run."""
    original = Watch.on_train_epoch_start

    def save_and_die(self, trainer, pl_module):
        before = self._saved
        original(self, trainer, pl_module)
        if self._saved != before:
            raise Killed

    monkeypatch.setattr(Watch, "on_train_epoch_start", save_and_die)


def to_the_end(attempt):
    for killed in range(30):
        try:
            return attempt(), killed
        except Killed:
            continue
    raise AssertionError


def test_a_run_that_is_killed_after_every_epoch_is_that_which_never_was(tmp_path, killed_when_saved, monkeypatch):
    settings = {"ways": STATES, "layers": LAYERS, "steps": 24}
    records, killed = to_the_end(lambda: run(tmp_path / "killed.jsonl", HARD, save_every=0, **settings))
    assert killed == 3 * len(STATES)  # four epochs: no step is trained twice
    assert {r["status"] for r in records} == {"ok"}, [r["message"] for r in records]
    assert table(records) == table(run(tmp_path / "whole.jsonl", HARD, **settings))


@pytest.mark.parametrize("schedule", ["step", "plateau"])
def test_schedules_of_the_learning_rate_go_on(tmp_path, killed_when_saved, schedule):
    model = {"class_path": "tests.compare.toys.Net", "init_args": {"schedule": schedule, "lr": 0.1}}
    records, killed = to_the_end(lambda: run(tmp_path / "killed.jsonl", model, save_every=0, steps=30))
    assert killed == 4
    assert table(records) == table(run(tmp_path / "whole.jsonl", model, steps=30))


def test_validation_within_and_across_epochs_goes_on(tmp_path, killed_when_saved):
    for number, often in enumerate(
        ({"val_check_interval": 4}, {"val_check_interval": 7, "check_val_every_n_epoch": None})
    ):
        whole = run(tmp_path / f"{number}.jsonl", HARD, steps=30, trainer=often)
        records, killed = to_the_end(
            lambda n=number, often=often: run(tmp_path / f"k{n}.jsonl", HARD, steps=30, trainer=often, save_every=0)
        )
        assert killed == 4
        assert table(records) == table(whole)


@pytest.mark.slow
def test_sigkill_at_any_moment_loses_only_the_run_in_hand(tmp_path):
    code = (
        FORKS
        + """
random.seed(int(sys.argv[1]))
for number in range(8):
    pid = child(number)
    time.sleep(random.uniform(0.02, 0.4))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    print(len(open(sys.argv[2]).read().splitlines()) if os.path.exists(sys.argv[2]) else 0)
"""
    )
    results = tmp_path / "killed.jsonl"
    process = script(code, random.randrange(50), results)
    lines = [int(line) for line in process.communicate(timeout=120)[0].split()]
    assert lines == sorted(lines)
    assert len(lines) == 8
    settings = {"ways": ["plain", "REMUL(GradNorm)"], "seeds": 3, "steps": 30}
    records = run(results, HARD, **settings)
    assert table(records) == table(run(tmp_path / "whole.jsonl", HARD, **settings))


def test_a_line_that_was_begun_is_lost_and_no_other(tmp_path):
    results = tmp_path / "results.jsonl"
    whole = table(run(results, seeds=3))
    text = results.read_text()
    first, second, third = text.splitlines()
    for cut in (1, len(third) // 2, len(third) - 1):
        results.write_text("\n".join([first, second, third[:cut]]))
        assert table(run(results, seeds=3)) == whole
        lines = results.read_text().splitlines()
        assert lines[:3] == [first, second, third[:cut]]
        assert len(lines) == 4
        assert json.loads(lines[3])["seed"] == 2
    results.write_text("\n".join([first, second, third]))  # whole, but for its end
    assert table(run(results, seeds=4)).keys() > whole.keys()
    assert len(results.read_text().splitlines()) == 4


@pytest.mark.slow
def test_two_processes_share_one_file(tmp_path):
    code = FORKS + "\nfor pid in [child(0), child(1)]: os.waitpid(pid, 0)\n"
    results = tmp_path / "shared.jsonl"
    script(code, 0, results).communicate(timeout=120)
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(lines) == 6
    both = [json.loads(results.with_name(f"shared.jsonl.{number}").read_text()) for number in (0, 1)]
    assert both[0] == both[1] == sorted(map(str, table(lines)))
    assert table(lines) == table(
        run(tmp_path / "alone.jsonl", HARD, ways=["plain", "REMUL(GradNorm)"], seeds=3, steps=30)
    )
    assert not [path for path in Path(f"{results}.runs").iterdir() if path.suffix != ".lock"]


@pytest.mark.slow
def test_processes_of_this_machine_give_the_same_numbers(tmp_path):
    settings = {"ways": ["plain", "REMUL(GradNorm)"], "seeds": 2}
    serial = table(run(tmp_path / "serial.jsonl", HARD, **settings))
    assert table(run(tmp_path / "jobs.jsonl", HARD, jobs=2, **settings)) == serial


@pytest.mark.slow
def test_dask_gives_the_same_numbers(tmp_path):
    distributed = pytest.importorskip("distributed")
    settings = {"ways": ["plain", "REMUL(GradNorm)"], "seeds": 2}
    model = {
        "class_path": "tests.compare.toys.Net",
        "init_args": {"dropout": 0.2},
    }  # dask draws from Python's generator
    serial = table(run(tmp_path / "serial.jsonl", model, **settings))
    with distributed.Client(
        processes=True, n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=str(tmp_path)
    ) as client:
        assert table(run(tmp_path / "dask.jsonl", model, executor=client.get_executor(), **settings)) == serial


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(tmp_path):
    psutil = pytest.importorskip("psutil")
    code = """
import sys
from tests.compare.toys import run
if __name__ == "__main__":
    run(sys.argv[1], ways=["plain", "REMUL(1)"], steps=100_000, jobs=2, save_every=0)
"""
    results = tmp_path / "results.jsonl"
    process = script(code, results)
    wait_for(lambda: len(list(tmp_path.glob("results.jsonl.runs/*/last.ckpt"))) == 2, 60)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    assert len(workers) >= 2
    wait_for(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers), 10)


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_ctrl_c_is_a_keyboard_interrupt_and_what_is_finished_stays(tmp_path, monkeypatch):
    handler = signal.getsignal(signal.SIGINT)
    results = tmp_path / "results.jsonl"

    def interrupted(self, trainer, pl_module):
        if trainer.global_step and len(results.read_text().splitlines()) == 1:
            raise KeyboardInterrupt

    run(results)
    monkeypatch.setattr(Watch, "on_train_start", lambda *_: None, raising=False)
    monkeypatch.setattr(Watch, "on_validation_start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(results, seeds=3)
    assert signal.getsignal(signal.SIGINT) is handler
    assert [r["seed"] for r in map(json.loads, results.read_text().splitlines())] == [0]
    monkeypatch.undo()
    assert table(run(results, seeds=3)) == table(run(tmp_path / "whole.jsonl", seeds=3))


def test_only_failed_runs_are_done_again(tmp_path):
    results = tmp_path / "results.jsonl"
    fails = {"fails": {"settings": {"fault": "raises"}}, "plain": None}
    before = run(results, ways=fails, seeds=2)
    assert [r["status"] for r in before] == ["failed", "ok"] * 2
    assert len(run(results, ways=fails, seeds=2)) == len(results.read_text().splitlines()) == 4
    again = run(results, ways=fails, seeds=2, retry=True)
    assert len(again) == 4
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [(r["way"], r["seed"]) for r in lines[4:]] == [("fails", 0), ("fails", 1)]
    assert [numbers(r) for r in lines[4:]] == [numbers(r) for r in before if r["way"] == "fails"]


def test_threads_take_turns(tmp_path):
    """The global generators are one for all threads of a process."""
    settings = {"ways": ["plain", "REMUL(GradNorm)"], "seeds": 2}
    serial = table(run(tmp_path / "serial.jsonl", HARD, **settings))
    with ThreadPoolExecutor(3) as threads:
        assert table(run(tmp_path / "threads.jsonl", HARD, executor=threads, **settings)) == serial


def test_a_run_begins_anew_where_nothing_was_saved(tmp_path, monkeypatch):
    """And one that another process has in hand is waited for."""
    results = tmp_path / "results.jsonl"
    whole = table(run(tmp_path / "whole.jsonl", HARD))
    started = []

    def die(self, trainer, pl_module):
        started.append(trainer.global_step)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Watch, "on_validation_start", die)
        with pytest.raises(Killed):
            run(results, HARD)
    assert started == [6]
    (lock,) = (path for path in Path(f"{results}.runs").glob("plain-0-*.lock"))
    held = threading.Event()

    def hold():
        with FileLock(lock):
            held.set()
            time.sleep(1.0)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    begun = time.monotonic()
    assert table(run(results, HARD)) == whole
    assert time.monotonic() - begun > 0.9
    holder.join()
