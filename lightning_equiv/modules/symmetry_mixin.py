"""SymmetryMixin: a LightningModule that has a symmetry and brings its strategies along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor

from lightning_equiv._random import derived_generator
from lightning_equiv.metrics.comparison import Distance, as_distance, equivariance_losses
from lightning_equiv.metrics.monitor import EquivarianceMonitor
from lightning_equiv.strategies.base import SymmetryCallback
from lightning_equiv.symmetry.symmetry import Symmetry
from lightning_equiv.symmetry.tree import Tree
from lightning_equiv.wiring.network import find_network
from lightning_equiv.wiring.place_in_run import place_in_run
from lightning_equiv.wiring.ranks import process_rank

_BROUGHT = "_lightning_equiv_brought"  # on a Trainer: the callbacks that its module brought


class SymmetryMixin(L.LightningModule):
    """A base class in place of `LightningModule`: the symmetry and the strategies belong to the model.

    Any Trainer that fits the module gets its strategies, and a monitor of its equivariance error where `symmetry` is
    set. With manual optimisation, where a strategy cannot add to the loss, `equivariance_loss` is REMUL's term.

    Attributes:
        symmetry: how a group element moves the inputs and outputs of the network; None brings no monitor.
        symmetry_network: dotted name of that network, "" for the module itself.
        strategies: the callbacks that `configure_callbacks` adds to the Trainer's.

    Raises:
        ValueError: when fit begins: two strategies have one name, or the Trainer has a callback of the class of a
            strategy, which Lightning would drop.

    Examples:
        >>> from torch import nn
        >>> from lightning_equiv import REMUL
        >>> class Model(SymmetryMixin):
        ...     symmetry, symmetry_network = Symmetry("SO(3)", inputs="1o", outputs="1o"), "net"
        ...
        ...     def __init__(self) -> None:
        ...         super().__init__()
        ...         self.net = nn.Linear(3, 3)
        ...         self.strategies = [REMUL(self.symmetry, "net")]
        >>> [type(callback).__name__ for callback in Model().configure_callbacks()]
        ['REMUL', 'EquivarianceMonitor']
    """

    symmetry: Symmetry | None = None
    symmetry_network: str = ""
    strategies: Sequence[SymmetryCallback] = ()
    _symmetry_monitor: EquivarianceMonitor | None = None
    _symmetry_draws: tuple[Any, int] = (None, 0)  # the place in the run, draws there

    def configure_callbacks(self) -> list[L.Callback]:
        """The strategies, and a monitor unless the Trainer has one; without those that the Trainer already has."""
        keys = [strategy.state_key for strategy in self.strategies]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise ValueError(
                f"expected `strategies` of different kinds or names, got {', '.join(twice)} twice: name one"
            )
        trainer: Any = self._trainer
        own = [*self.strategies, self._symmetry_monitor]
        # of another module that the Trainer had before
        others = [c for c in getattr(trainer, _BROUGHT, ()) if c not in own]
        present: list[L.Callback] = [c for c in getattr(trainer, "callbacks", ()) if c not in others]
        kinds = {type(strategy) for strategy in self.strategies}
        for callback in present:
            if type(callback) in kinds and callback not in own:
                raise ValueError(
                    f"a {type(callback).__name__} is in the Trainer's callbacks and in `strategies` of "
                    f"{type(self).__name__}: expected each kind in one of the two places, for Lightning drops one of "
                    "them; give both to the Trainer, with different names, or both to the module"
                )
        callbacks = super().configure_callbacks()
        callbacks = [*(callbacks if isinstance(callbacks, Sequence) else [callbacks]), *self.strategies]
        watched = any(isinstance(c, EquivarianceMonitor) and c is not self._symmetry_monitor for c in present)
        if self.symmetry is not None and not watched:
            self._symmetry_monitor = self._symmetry_monitor or EquivarianceMonitor(
                self.symmetry, network=self.symmetry_network
            )
            callbacks.append(self._symmetry_monitor)
        if trainer is not None:
            trainer.callbacks = present
            setattr(trainer, _BROUGHT, [c for c in callbacks if isinstance(c, SymmetryCallback | EquivarianceMonitor)])
        return [callback for callback in callbacks if callback not in present]

    def equivariance_loss(
        self,
        *args: Any,
        target: Tree | None = None,
        loss: Literal["mse", "l1"] | Distance = "mse",
        num_samples: int = 1,
        detach_target: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        """mean_i l( f(g_i x_i), g_i y_i ), to add to any loss; f(x_i) takes the place of y_i where there is no target.

        The elements g_i depend on the stage (training, validation), the batch and on how many calls were made in it: a
        resumed run draws the same.

        Args:
            args: positional arguments of the network, x.
            target: labels y, of the structure of the network's output; None takes its prediction.
            loss: l.
            num_samples: group elements drawn per input.
            detach_target: no gradient through g f(x).
            kwargs: keyword arguments of the network.

        Raises:
            ValueError: no `symmetry`; an unknown loss.
        """
        if self.symmetry is None:
            raise ValueError(f"expected `symmetry` of {type(self).__name__} to be a Symmetry, got None: set it")
        distance = as_distance(loss)
        network = find_network(self, self.symmetry_network, "symmetry_network")
        place = 0 if self._trainer is None else place_in_run(self._trainer)
        self._symmetry_draws = place, self._symmetry_draws[1] + 1 if self._symmetry_draws[0] == place else 0
        call = self.symmetry.bind(network, args, kwargs)
        losses = equivariance_losses(
            network,
            call,
            self.symmetry,
            anchor=call.output(network(*args, **kwargs) if target is None else target),
            distance=distance,
            num_samples=num_samples,
            detach_target=detach_target or target is not None,
            generator=derived_generator("equivariance_loss", process_rank(), self._symmetry_draws),
        )
        return torch.stack(list(losses.values())).sum()
