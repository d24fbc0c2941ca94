"""What a backward pass runs again (gradient checkpointing), told apart from what was run first."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# those of which an extra pass is run just now, or run again; for all threads: a GPU's backward has one of its own
_extra: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


@contextmanager
def extra_pass(module: nn.Module) -> Iterator[None]:
    """Inside, what runs is no part of the user's step, nor is it run again for it."""
    _extra[module] = _extra.get(module, 0) + 1
    try:
        yield
    finally:
        _extra[module] -= 1


def in_extra_pass(module: nn.Module) -> bool:
    """Whether a network of this module runs in `extra_pass` just now."""
    return bool(_extra.get(module))


def in_backward() -> bool:
    """Whether this thread is in a backward pass, where a forward pass is one that is run again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class ContextOfBackward:
    """Has backward pass over what was computed last go through a context, for what it runs again.

        first = f(x);  with context(): second = f(g x)
        follow(first, second, context);  (first + second).backward()

    Autograd takes up first what was recorded last, so it is done with all of `second` before it comes to `first`: the
    context is entered where it comes to `second`, and left where it comes to `first` or ends.
    """

    def __init__(self) -> None:
        self._open = ExitStack()

    def follow(self, first: Tensor, second: Tensor, context: Callable[[], AbstractContextManager[Any]]) -> None:
        """Be in `context()` for what backward runs again of `second`; `first` was recorded before it."""
        if not second.requires_grad:
            return

        def enter(gradient: Tensor) -> None:
            self.close()
            self._open.enter_context(context())
            torch.autograd.Variable._execution_engine.queue_callback(self.close)

        second.register_hook(enter)
        if first.requires_grad:
            first.register_hook(lambda gradient: self.close())

    def close(self) -> None:
        """Leave the context, if backward broke off in it."""
        self._open.close()
