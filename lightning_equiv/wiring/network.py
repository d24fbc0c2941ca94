"""Find the network that a user means, by its dotted name."""

from __future__ import annotations

import difflib

import lightning as L
from torch import nn


def find_network(module: nn.Module, name: str, what: str = "network") -> nn.Module:
    """The sub-module of that dotted name; "" is the module itself.

    Raises:
        ValueError: there is none; the nearest names are shown.
    """
    named = dict(module.named_modules(remove_duplicate=False))  # one network may have two names
    if name in named:
        return named[name]
    names = [n for n in named if n]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names[:5]
    hint = f"the nearest are {near}" if near else "it has no sub-modules"
    raise ValueError(f"{what}={name!r} names no sub-module of {type(module).__name__}: {hint}")


def check_lightning_module(module: nn.Module) -> None:
    """TypeError for a module that `lightning`, and what asks it for the module's class, does not know."""
    if not isinstance(module, L.LightningModule):
        parents = {parent.__module__.partition(".")[0] for parent in type(module).__mro__}
        named = "pytorch_lightning" if "pytorch_lightning" in parents else "another class"
        raise TypeError(
            f"expected a LightningModule of `lightning`, got {type(module).__name__} of {named}, which "
            "`lightning` does not know: write `import lightning as L`, L.LightningModule and L.Trainer, in the place "
            "of `import pytorch_lightning as pl`"
        )
