"""GroupAugmentation: every training batch is moved by random group elements."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import lightning as L

from lightning_equiv.groups.product import as_group
from lightning_equiv.strategies.base import SymmetryCallback
from lightning_equiv.symmetry.symmetry import Symmetry, as_symmetry
from lightning_equiv.wiring.training_step import StepHooks, wrap_training_step


class GroupAugmentation(SymmetryCallback):
    r"""Data augmentation: the user's step sees (g x, g y), with a fresh g for every sample.

        min  E_x,y E_g  l( f(rho_X(g) x), rho_Y(g) y )

    Moves the batch, inputs and labels, as `symmetry.batch` says, before `training_step` sees it, on the device of the
    batch, without a copy to the host. Validation is left alone. Nothing about the loss changes, so manual optimisation
    works too.

    Args:
        symmetry: its `batch` mirrors the batch of the dataloader.
        seed: of the draws.
        name: tells two augmentations apart in a checkpoint.

    Raises:
        ValueError: the symmetry has no `batch`, or it does not mirror the batch.

    Examples:
        >>> from lightning_equiv import Invariant
        >>> symmetry = Symmetry("SO(3)", inputs="1o", outputs="1o", batch=("1o", "1o"))
        >>> trainer = L.Trainer(callbacks=[GroupAugmentation(symmetry)], logger=False, enable_checkpointing=False)
    """

    works_sharded = True
    ready_made = {"augmentation": {}}  # noqa: RUF012 (never changed)

    def __init__(self, symmetry: Symmetry, *, seed: int = 0, name: str = "group_augmentation") -> None:
        super().__init__(name=name, seed=seed)
        self.symmetry = as_symmetry(symmetry)
        if self.symmetry.batch is None:
            raise ValueError(
                "GroupAugmentation moves the dataloader's batch: expected a symmetry that says how, e.g. "
                'Symmetry(..., batch={"positions": "1o", "masses": Invariant(), "targets": "1o"})'
            )

    def _attach(self, module: L.LightningModule, undo: ExitStack) -> None:
        """Wrap `training_step`."""
        undo.callback(wrap_training_step(module, StepHooks(before=self._move)))

    def _move(self, batch: Any) -> Any:
        bound = self.symmetry.bind_batch(batch)
        g = as_group(self.symmetry.group).sample(
            bound.inputs.num, generator=self.generator(), device=bound.inputs.device
        )
        return bound.move(g).tree
