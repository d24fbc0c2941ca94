"""Remember what a network was called with, and what it returned, during the user's own step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

from torch import nn


@dataclass(frozen=True)
class Call:
    """One call of a network."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


class CallRecorder:
    """Remembers the calls of one network between `start` and `stop`.

    A forward hook does it, so the network keeps its type, its name and its keys; `remove` takes the hook away.
    """

    def __init__(self, network: nn.Module) -> None:
        self._calls: list[tuple[Any, ...]] = []
        self._active = False
        _recorders.add(self)

        def remember(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if self._active and called is network:  # not a copy of it, which has the hook, too
                self._calls.append((args, kwargs, output))  # a plain tuple: torch.compile traces this hook

        self.remove: Callable[[], None] = network.register_forward_hook(remember, with_kwargs=True).remove

    def start(self) -> None:
        """From now on calls are remembered, and those of before forgotten."""
        self._calls, self._active = [], True

    def stop(self) -> list[Call]:
        """The calls since `start`; later ones are not remembered, and nothing is kept."""
        calls, self._calls, self._active = self._calls, [], False
        return [Call(*call) for call in calls]


_recorders: WeakSet[CallRecorder] = WeakSet()


@contextmanager
def recording_paused() -> Iterator[None]:
    """Inside, no recorder remembers a call: those that a comparison makes are not the user's."""
    active = [recorder for recorder in _recorders if recorder._active]
    for recorder in active:
        recorder._active = False
    try:
        yield
    finally:
        for recorder in active:
            recorder._active = True
