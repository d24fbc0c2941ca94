"""Run the network again in a step, so that nothing but the loss remembers it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lightning_equiv.metrics.comparison import NoGradientError
from lightning_equiv.wiring.frozen_randomness import Versions, buffer_versions, frozen_randomness
from lightning_equiv.wiring.random_state import RandomState
from lightning_equiv.wiring.recomputation import ContextOfBackward, extra_pass

Losses = dict[str, torch.Tensor]  # by the output's dotted name


class SecondPass:
    """Runs the network in training mode, so that one that differentiates inside builds its graph, and leaves no trace.

    Dropout modules draw nothing, running statistics stay, the global generators are put back. A network that moved one
    nevertheless (functional dropout) runs in evaluation mode from then on, unless that takes its gradient away.
    What gradient checkpointing runs again in backward runs as it did, see `follow`.

    Args:
        module: whose modes and buffers are put back.
        freeze: False runs the network as it is.
    """

    def __init__(self, module: nn.Module, freeze: bool) -> None:
        self._module, self._freeze = module, freeze
        self._evaluate: bool | None = None  # None as long as nothing was drawn
        self._versions: Versions = {}
        self._backward = ContextOfBackward()

    def start(self) -> None:
        """A step begins."""
        self.close()
        if self._freeze:
            self._versions = buffer_versions(self._module)

    def __call__(self, losses: Callable[[], Losses]) -> Losses:
        """What `losses()` returns, which calls the network; it may be asked twice."""
        if not self._freeze:
            with extra_pass(self._module):
                return losses()
        found, drew = self._run(losses, bool(self._evaluate))
        if drew and self._evaluate is None:
            try:
                found, _ = self._run(losses, True)
                self._evaluate = True
            except NoGradientError:
                self._evaluate = False
                rank_zero_warn(
                    "REMUL: the network differentiates inside, for which it must be in training mode, and draws random "
                    "numbers there that are no dropout module's: the second pass draws them, too; write nn.Dropout in "
                    "the place of functional dropout"
                )
        return found

    def follow(self, task_loss: torch.Tensor, loss: torch.Tensor) -> None:
        """Freeze the same in the backward pass of `loss`, which comes before that of the task's."""
        versions, self._versions = self._versions, {}

        @contextmanager
        def as_it_ran() -> Iterator[None]:
            with extra_pass(self._module):
                if not self._freeze:
                    yield
                    return
                with frozen_randomness(self._module, versions, bool(self._evaluate)):
                    yield

        self._backward.follow(task_loss, loss, as_it_ran)

    def close(self) -> None:
        """Put back what a backward pass that broke off had frozen."""
        self._backward.close()

    def _run(self, losses: Callable[[], Losses], evaluate: bool) -> tuple[Losses, bool]:
        state = RandomState()
        try:
            with extra_pass(self._module), frozen_randomness(self._module, self._versions, evaluate):
                found = losses()
            return found, state.moved()
        finally:
            state.restore()
