"""Spare added weights the weight decay of the user's optimizer, which was meant for the model's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle


def without_weight_decay(parameters: Iterable[nn.Parameter]) -> Callable[[], None]:
    """While any optimizer makes a step, `parameters` are in groups of their own, whose weight decay is 0.

    Between the steps the optimizer's groups are the user's: schedulers and checkpoints see those. Its state is that of
    each parameter, in whatever group it is. An optimizer without weight decay is left alone.

    Returns:
        What takes this back.
    """
    spared = list(parameters)
    _STEPS.spare(spared)
    return lambda: _STEPS.forget(spared)


class _Steps:
    """What happens around the steps of all optimizers: one for all that is spared, or groups would be split twice."""

    def __init__(self) -> None:
        self.spared: list[list[nn.Parameter]] = []
        self.handles: list[RemovableHandle] = []
        self.split_now: list[tuple[Optimizer, list[dict[str, Any]], list[tuple[dict[str, Any], dict[str, Any]]]]] = []

    def spare(self, parameters: list[nn.Parameter]) -> None:
        if not self.handles:
            self.handles = [
                register_optimizer_step_pre_hook(self.split),
                register_optimizer_step_post_hook(self.merge),
            ]
        self.spared.append(parameters)

    def forget(self, parameters: list[nn.Parameter]) -> None:
        for entry in list(self.split_now):  # of a step that failed
            self.merge(entry[0])
        self.spared = [other for other in self.spared if other is not parameters]
        while self.handles and not self.spared:
            self.handles.pop().remove()

    def split(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Take what is spared out of the groups that decay, into groups of its own."""
        self.merge(optimizer)  # of a step that failed
        ours = {id(p) for parameters in self.spared for p in parameters}
        before, added = [], []
        for group in optimizer.param_groups:
            spared = [p for p in group["params"] if id(p) in ours]
            if not spared or not group.get("weight_decay"):
                continue
            before.append((group, {key: group[key] for key in ("params", "weight_decay")}))
            if len(spared) == len(group["params"]):
                group["weight_decay"] = 0.0
            else:
                group["params"] = [p for p in group["params"] if id(p) not in ours]
                added.append({**group, "params": spared, "weight_decay": 0.0})
        optimizer.param_groups.extend(added)
        self.split_now.append((optimizer, added, before))

    def merge(self, optimizer: Optimizer, *unused: Any) -> None:
        """The user's groups again."""
        mine = [entry for entry in self.split_now if entry[0] is optimizer]
        self.split_now = [entry for entry in self.split_now if entry[0] is not optimizer]
        for _, added, before in mine:
            optimizer.param_groups[:] = [g for g in optimizer.param_groups if not any(g is a for a in added)]
            for group, values in before:
                group.update(values)


_STEPS = _Steps()
