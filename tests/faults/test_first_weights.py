"""First weights come from a private generator: no other one is read, seeded or restored."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_equiv._random import DrawsFrom
from tests.helpers import global_seed, seeded
from tests.strategies.cases import CASES, Case
from tests.strategies.toys import Plain

WITH_BRANCHES = pytest.mark.parametrize(
    "case", [case for case in CASES.values() if case.adds_parameters], ids=lambda case: case.name
)


def first_weights(case: Case, **changes: Any) -> list[Tensor]:
    strategy = case.make(**changes)
    strategy.attach(Plain())
    return list(strategy._branches.container.own_state().values())  # type: ignore[attr-defined]


@WITH_BRANCHES
@pytest.mark.parametrize("branch", ["linear", "mlp"])
def test_they_are_those_of_a_seeded_process(case: Case, branch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `torch.manual_seed` would have made of the same seed."""
    if case.folds and branch == "mlp":
        pytest.skip("not applicable: its branches are linear")
    private = first_weights(case, branch=branch)

    class Seeds:
        def __init__(self, generator: torch.Generator) -> None:
            torch.manual_seed(generator.initial_seed())

        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr("lightning_equiv.strategies.branch_callback.DrawsFrom", Seeds)
    with global_seed():
        seeded_globally = first_weights(case, branch=branch)
    assert len(private) == len(seeded_globally) > 0
    assert all(torch.equal(a, b) for a, b in zip(private, seeded_globally, strict=True))


@WITH_BRANCHES
def test_no_global_generator_is_touched(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a global generator was seeded")

    strategy, module = case.make(), Plain()
    for name in ("manual_seed", "seed", "set_rng_state"):
        monkeypatch.setattr(torch, name, refuse)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    before = torch.get_rng_state()
    strategy.attach(module)
    strategy.detach()
    assert torch.equal(before, torch.get_rng_state())


@WITH_BRANCHES
def test_another_thread_that_draws_changes_nothing(case: Case) -> None:
    alone, ended = first_weights(case), threading.Event()

    def draw() -> None:
        while not ended.is_set():
            torch.rand(3)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        beside = [first_weights(case) for _ in range(5)]
    finally:
        ended.set()
        thread.join()
    for weights in beside:
        assert all(torch.equal(a, b) for a, b in zip(alone, weights, strict=True))


def test_a_generator_that_is_named_is_the_one() -> None:
    with DrawsFrom(seeded(0)):
        named, other = torch.rand(3, generator=seeded(1)), nn.Linear(2, 2).weight.detach()
    assert torch.equal(named, torch.rand(3, generator=seeded(1)))
    with DrawsFrom(seeded(0)):
        assert torch.equal(other, nn.Linear(2, 2).weight.detach())
