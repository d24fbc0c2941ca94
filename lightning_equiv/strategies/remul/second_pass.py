"""Run the network again in a step, so that nothing but the loss remembers it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lightning_equiv.groups.product import as_group
from lightning_equiv.metrics.functional import Distance, compare
from lightning_equiv.strategies.remul.labels import Labels
from lightning_equiv.symmetry.call import BoundCall, BoundTree
from lightning_equiv.symmetry.symmetry import Symmetry
from lightning_equiv.wiring.frozen_randomness import Versions, buffer_versions, frozen_randomness
from lightning_equiv.wiring.random_state import RandomState

Losses = dict[str, torch.Tensor]  # by the output's dotted name


class NoGradientError(RuntimeError):
    """The second pass has no gradient where the first one has."""


class SecondPass:
    """Runs the network in training mode, so that one that differentiates inside builds its graph, and leaves no trace.

    Dropout modules draw nothing, running statistics stay, the global generators are put back. A network that moved one
    nevertheless (functional dropout) runs in evaluation mode from then on, unless that takes its gradient away.

    Args:
        module: whose modes and buffers are put back.
        freeze: False runs the network as it is.
    """

    def __init__(self, module: nn.Module, freeze: bool) -> None:
        self._module, self._freeze = module, freeze
        self._evaluate: bool | None = None  # None as long as nothing was drawn
        self._versions: Versions = {}

    def start(self) -> None:
        """A step begins."""
        if self._freeze:
            self._versions = buffer_versions(self._module)

    def __call__(self, losses: Callable[[], Losses]) -> Losses:
        """What `losses()` returns, which calls the network; it may be asked twice."""
        if not self._freeze:
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
        self._versions = {}
        return found

    def _run(self, losses: Callable[[], Losses], evaluate: bool) -> tuple[Losses, bool]:
        state = RandomState()
        try:
            with frozen_randomness(self._module, self._versions, evaluate):
                found = losses()
            return found, state.moved()
        finally:
            state.restore()


def equivariance_losses(
    network: nn.Module,
    call: BoundCall,
    symmetry: Symmetry,
    *,
    f_x: BoundTree,
    labels: Labels | None,
    distance: Distance,
    num_samples: int,
    detach_target: bool,
    generator: torch.Generator,
) -> Losses:
    """mean_i l( f(g_i x_i), g_i y_i ) of each output that is compared.

    Args:
        network: f.
        call: x, bound by the symmetry.
        symmetry: whose elements are drawn.
        f_x: the output for the unmoved inputs, with its gradient.
        labels: y of some or all outputs, by their dotted names; None takes f(x) in their place.
        distance: l.
        num_samples: group elements for each input.
        detach_target: no gradient through g y.
        generator: whose random numbers.

    Raises:
        NoGradientError: f(x) has a gradient and f(g x) has none.
    """
    anchor = f_x if labels is None else call.output(f_x.put(labels.get(t.path, t.x) for t in f_x.tensors))
    g = as_group(symmetry.group).sample(num_samples * call.num_inputs, generator=generator, device=call.device)
    f_gx, g_anchor = compare(network, call, g, anchor)
    predicted, wanted = _by_path(f_gx), _by_path(g_anchor)
    first = _by_path(f_x)
    compared = [path for path in predicted if labels is None or path in labels]
    if lost := [path for path in compared if first[path].requires_grad > predicted[path].requires_grad]:
        raise NoGradientError(
            f"expected the outputs of the network's second pass to have a gradient as those of the first, got none for "
            f"{', '.join(path or 'its output' for path in lost)}: a network that differentiates inside must build its "
            "graph whenever it is in training mode and gradients are enabled (create_graph=self.training)"
        )
    return {path: distance(predicted[path], _detached(wanted[path], detach_target)) for path in compared}


def _by_path(tree: BoundTree) -> dict[str, torch.Tensor]:
    return {t.path: t.x for t in tree.tensors if not t.representation.shared}


def _detached(x: torch.Tensor, detach: bool) -> torch.Tensor:
    return x.detach() if detach else x
