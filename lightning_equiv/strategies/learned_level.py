"""LearnedLevelCallback: branches whose levels are learned, and that may stay when training is over."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import lightning as L
from torch import nn

from lightning_equiv.layers.branch import Branch, container_key
from lightning_equiv.layers.branch_networks import normalised
from lightning_equiv.layers.choose import Layers
from lightning_equiv.layers.hidden_parameters import HiddenParameters
from lightning_equiv.strategies.keeping_callback import KeepingCallback


@dataclass(eq=False, kw_only=True)
class Learned:
    """What a strategy that learns its levels keeps beside its branches.

    Attributes:
        step: optimizer step that the levels take up next.
        total_steps: of the run; 0 before the first.
    """

    step: int = 0
    total_steps: int = 0


class LearnedLevelCallback(KeepingCallback):
    """Branches, normalised, whose levels move once an optimizer step; what is above a threshold may stay after `fit`.

    A subclass writes what the levels are (`begin_step`, `update_levels`), what a checkpoint keeps of them and what is
    said of them at the end.

    Args:
        layers: which layers, see `layers.choose.find_layers`.
        settings: of `KeepingCallback`; its threshold is of |theta|.
    """

    def __init__(self, layers: Layers, **settings: Any) -> None:
        super().__init__(layers, init_scale=1.0, **settings)

    # ---- what a subclass writes ------------------------------------------------------------------------------------
    @abstractmethod
    def begin_step(self, step: int, total: int) -> None:
        """Set what an optimizer step of the run depends on, when the levels have taken up the last one."""

    @abstractmethod
    def update_levels(self) -> None:
        """Take up what was seen since the last optimizer step, on all processes together."""

    # ---- what the branch strategy asks ---------------------------------------------------------------------------
    def is_strict(self, branch: Branch) -> bool:
        """Whether |theta| is under the threshold."""
        return branch.is_strict(self.threshold)

    @property
    def _learned(self) -> Learned:
        learned: Learned = self._branches.extra
        return learned

    def set_progress(self, step: int, total: int) -> None:
        """The levels take up what was seen since the last optimizer step."""
        if step != self._learned.step:
            self.commit()
        for b in self.branches:
            b.active = True
        self.begin_step(step, total)
        self._learned.step, self._learned.total_steps = step, total

    def commit(self) -> None:
        """Move the levels, once for every optimizer step."""
        self._await(awaiting=False)
        self.update_levels()

    # ---- a training step -----------------------------------------------------------------------------------------
    def _ready(self, batch: Any) -> None:
        self._await(awaiting=False)  # of a step without a backward pass
        super()._ready(batch)

    def _done(self) -> None:
        super()._done()
        self._await(awaiting=True)

    def _await(self, awaiting: bool) -> None:
        for b in self.branches:
            b.await_backward(awaiting)

    # ---- Lightning's hooks ---------------------------------------------------------------------------------------
    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing runs again for this step."""
        self._await(awaiting=False)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The levels move once an optimizer step, before anything is validated or saved."""
        if trainer.global_step != self._learned.step:
            self.commit()
            self._learned.step = trainer.global_step

    def finish(self, module: L.LightningModule) -> None:
        """The levels take up the last step, too."""
        self.commit()
        super().finish(module)

    def own_state(self) -> dict[str, Any]:
        """What trains with the branches, the levels, and the optimizer step that they take up next."""
        return {**super().own_state(), "step": self._learned.step}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Branches and levels."""
        super().load_own_state(state)
        self._learned.step = state["step"]


def normalise(branch: Branch, container: HiddenParameters) -> nn.Module:
    """The branch's network, so that it cannot undo a small theta."""
    branch.network = container[container_key(branch.layer)] = normalised(branch.network)
    return branch.network
