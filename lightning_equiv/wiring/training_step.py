"""Change the batch before a LightningModule's `training_step` and the loss after it, and give the method back.

The method is wrapped on the instance. Invariant: after the last removal the attribute is what it was before the
first wrap.

    wrap(a), wrap(b), remove(b), remove(a)    identity, and so in the order remove(a), remove(b): all share one wrapper
    wrap(a), somebody wraps us, remove(a)     their wrapper stays, ours below it passes everything on
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
from torch import Tensor

from lightning_equiv.wiring.override import override

_ENTRIES = "_lightning_equiv_entries"


@dataclass(frozen=True, eq=False)
class StepHooks:
    """What happens around the user's step.

    Attributes:
        before: batch -> the batch that the step will see.
        look: called with what runs the user's own step on a copy of that batch once more and returns its loss, after
            all `before` and before any `ready`.
        ready: called with the batch that the step will see, after all `before`.
        after: (batch that the step saw, its loss) -> the loss to train on.
        done: called as soon as the step has returned, before anything else runs the network.
        skipped: called in place of `after` where the step returned no loss, by which Lightning skips the batch; and,
            after `done`, where anything in the step raised an error.
    """

    before: Callable[[Any], Any] = lambda batch: batch
    look: Callable[[Callable[[], Tensor | None]], None] = lambda step: None
    ready: Callable[[Any], None] = lambda batch: None
    after: Callable[[Any, Tensor], Tensor] = lambda batch, loss: loss
    done: Callable[[], None] = lambda: None
    skipped: Callable[[], Any] = lambda: None


def wrap_training_step(module: L.LightningModule, hooks: StepHooks) -> Callable[[], None]:
    """Put `hooks` around `module.training_step`; the function returned takes them away."""
    entries: list[StepHooks] | None = getattr(module.training_step, _ENTRIES, None)
    if entries is None:
        entries = _wrap(module)
    entries.append(hooks)

    def remove() -> None:
        entries.remove(hooks)
        ours: Any = module.__dict__.get("training_step")
        if not entries and getattr(ours, _ENTRIES, None) is entries and hasattr(ours, "restore"):
            ours.restore()

    return remove


def loss_of(output: Any) -> Tensor | None:
    """The loss in what a step returned; None where there is none, by which Lightning skips the batch."""
    loss = output.get("loss") if isinstance(output, Mapping) else output
    return loss if isinstance(loss, Tensor) else None


def own_training_step(module: L.LightningModule) -> Callable[..., Any]:
    """The user's `training_step`, without what strategies have put around it."""
    step: Any = module.training_step
    return step.__wrapped__ if hasattr(step, _ENTRIES) else step


def _wrap(module: L.LightningModule) -> list[StepHooks]:
    original = module.training_step
    entries: list[StepHooks] = []

    def through(*args: Any, **kwargs: Any) -> Any:
        named = "batch" in kwargs
        batch = kwargs.pop("batch") if named else args[0]
        for hooks in entries:
            batch = hooks.before(batch)

        def step(batch: Any) -> Any:
            return original(batch=batch, **kwargs) if named else original(batch, *args[1:], **kwargs)

        for hooks in entries:
            hooks.look(lambda: loss_of(step(copy.deepcopy(batch))))
        for hooks in entries:
            hooks.ready(batch)
        output = step(batch)
        for hooks in reversed(entries):  # as contexts that were entered one inside the other
            hooks.done()
        loss = loss_of(output)
        if loss is None:
            for hooks in entries:
                hooks.skipped()
            return output
        for hooks in entries:
            loss = hooks.after(batch, loss)
        return {**output, "loss": loss} if isinstance(output, Mapping) else loss

    @functools.wraps(original)  # Lightning reads the signature to decide whether to pass batch_idx
    def training_step(*args: Any, **kwargs: Any) -> Any:
        if not entries:
            return original(*args, **kwargs)
        try:
            return through(*args, **kwargs)
        except BaseException:
            for hooks in reversed(entries):
                hooks.done()
                hooks.skipped()
            raise

    setattr(training_step, _ENTRIES, entries)
    training_step.restore = override(module, "training_step", training_step)  # type: ignore[attr-defined]
    return entries
