"""Remember what a network was called with, and what it returned, during the user's own step."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Call:
    """One call of a network.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        output: what it returned.
        given: the tensors of the arguments before the call, each with the number of its changes in place.
        returned: the same of the output.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    given: list[tuple[Tensor, int]] = dataclasses.field(default_factory=list)
    returned: list[tuple[Tensor, int]] = dataclasses.field(default_factory=list)

    def changed_in_place(self) -> str:
        """What is no longer what it was, in words; "" where nothing is."""
        for what, kept in (("was called with", self.given), ("returned", self.returned)):
            for x, version in kept:
                if x._version != version:
                    return f"the tensor of shape {tuple(x.shape)} that the network {what}"
        return ""


class CallRecorder:
    """Remembers the calls of one network between `start` and `stop`.

    Forward hooks do it, so the network keeps its type, its name and its keys; `remove` takes them away.
    """

    def __init__(self, network: nn.Module) -> None:
        self._calls: list[tuple[Any, ...]] = []
        self._given: list[tuple[Any, list[tuple[Tensor, int]]]] = []  # of calls that have not returned
        self._active, self._paused = False, 0

        def listens(called: nn.Module) -> bool:
            return self._active and not self._paused and called is network  # not a copy of it, which has the hook, too

        def before(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if listens(called) and not torch.compiler.is_compiling():
                self._given.append((_copied((args, kwargs)), _versions((args, kwargs))))

        def remember(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if not listens(called):
                return
            if torch.compiler.is_compiling():
                self._calls.append((args, kwargs, output))  # a plain tuple: torch.compile traces this hook
            else:
                # containers as they were: the network may write into those that it is given
                (args, kwargs), given = self._given.pop() if self._given else ((args, kwargs), [])
                self._calls.append((args, kwargs, output, given, _versions(output)))

        self._hooks = (
            network.register_forward_pre_hook(before, with_kwargs=True),
            network.register_forward_hook(remember, with_kwargs=True),
        )

    def start(self) -> None:
        """From now on calls are remembered, and those of before forgotten."""
        self._calls, self._given, self._active = [], [], True
        _recording.set(_recording.get() | {self})

    def stop(self) -> list[Call]:
        """The calls since `start`; later ones are not remembered, and nothing is kept."""
        calls, self._calls, self._given, self._active = self._calls, [], [], False
        _recording.set(_recording.get() - {self})
        return [Call(*call) for call in calls]

    def remove(self) -> None:
        """Take the hooks away."""
        self.stop()
        for hook in self._hooks:
            hook.remove()


# of this thread: another one's comparison is no pause for ours
_recording: ContextVar[frozenset[CallRecorder]] = ContextVar("_recording", default=frozenset())


@contextmanager
def recording_paused() -> Iterator[None]:
    """Inside, no recorder that was started remembers a call: those that a comparison makes are not the user's."""
    recorders = _recording.get()
    for recorder in recorders:
        recorder._paused += 1
    try:
        yield
    finally:
        for recorder in recorders:
            recorder._paused -= 1


def _copied(tree: Any) -> Any:
    """The containers copied, with the same tensors in them."""
    if isinstance(tree, Tensor):
        return tree
    if isinstance(tree, tuple | list):
        values = [_copied(value) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    if type(tree) is dict:
        return {key: _copied(value) for key, value in tree.items()}
    if isinstance(tree, dict):
        copied = copy.copy(tree)
        copied.update((key, _copied(value)) for key, value in tree.items())
        return copied
    held = dataclasses.is_dataclass(tree) or callable(getattr(tree, "to_dict", None))
    return copy.copy(tree) if held and not isinstance(tree, type) else tree


def _versions(tree: Any) -> list[tuple[Tensor, int]]:
    return [(x, x._version) for x in _tensors(tree) if not x.is_inference()]


def _tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors in containers, dataclasses and PyG graphs."""
    if isinstance(tree, Tensor):
        yield tree
        return
    if isinstance(tree, Mapping):
        held = list(tree.values())
    elif isinstance(tree, tuple | list):
        held = list(tree)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        held = [getattr(tree, field.name) for field in dataclasses.fields(tree)]
    elif callable(getattr(tree, "to_dict", None)):
        held = [tree.to_dict()]
    else:
        return
    for value in held:
        yield from _tensors(value)
