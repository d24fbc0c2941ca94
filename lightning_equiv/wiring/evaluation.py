"""Run a network in evaluation mode, and put every mode back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

Mode = tuple[nn.Module, bool]


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """`network` in evaluation mode, every sub-module's own mode put back at the end.

    By its own `eval()` where some module's does more than set a flag.
    """
    before = modes(network)
    if any(training and changes_by_itself(module) for module, training in before):
        network.eval()
    else:  # the same, sooner
        for module, training in before:
            if training:
                set_flag(module, False)
    try:
        yield
    finally:
        restore_modes(before)


def modes(network: nn.Module) -> list[Mode]:
    """Every module inside with its mode, parents before their children."""
    return [(module, module.training) for module in network.modules()]


def restore_modes(before: Iterable[Mode]) -> None:
    """The modes of `modes()`, by the methods of modules that have one of their own; no other module is touched.

    Such a method may build or drop what the mode needs: a convolution's filter, merged weights.
    """
    before = list(before)
    for module, training in before:
        if module.training != training and changes_by_itself(module):
            module.train(training)
    for module, training in before:  # what that left, and modules whose mode is a flag
        if module.training != training:
            set_flag(module, training)


def set_flag(module: nn.Module, training: bool) -> None:
    """The mode of a module for which it is a flag."""
    if "training" in module.__dict__:
        module.__dict__["training"] = training  # `nn.Module.__setattr__` takes ten times as long
    else:
        module.training = training  # a scripted or compiled one


def changes_by_itself(module: nn.Module) -> bool:
    """Whether a module does more than set a flag when its mode changes."""
    if isinstance(module, torch.fx.GraphModule) and "train" in module.__dict__:
        return False  # a program by `torch.export`: its mode was fixed then, and setting it is an error
    own = type(module).train is not nn.Module.train or type(module).eval is not nn.Module.eval
    return own or "train" in module.__dict__ or "eval" in module.__dict__
