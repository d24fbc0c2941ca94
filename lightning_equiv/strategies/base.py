"""SymmetryCallback: a callback that takes hold of a model when fit begins and lets go when it ends."""

from __future__ import annotations

import math
from abc import abstractmethod
from contextlib import ExitStack
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_equiv._checks import check_number
from lightning_equiv._random import derived_generator, process_rank
from lightning_equiv.wiring.override import override


class SymmetryCallback(L.Callback):
    """A Lightning callback with two verbs, `attach` and `detach`; detach undoes attach exactly.

        before = everything about the module
        strategy.attach(module); ...; strategy.detach()
        after == before, also when attach or anything between failed

    In a Trainer both happen by themselves: attach when fit begins, detach when it ends or fails; a loop written by hand
    calls them, and `update` before every batch. A subclass writes `_attach`: first find and check everything, then
    change, and register the undoing of every change.

    Args:
        name: prefix of what is logged, and what tells two strategies of one kind apart in a checkpoint.
        seed: of all draws. A draw is a pure function of (seed, rank, epoch, batch): a resumed run draws what the
            uninterrupted one would have, and an optimizer that calls a step many times sees one draw.

    Attributes:
        changes_loss: whether it needs automatic optimisation.
        adds_parameters: whether weights of its own train with the model.
        needs_end: whether it must know how long the run is, for its `progress`.
        works_sharded: whether it works when FSDP or DeepSpeed shards the weights.
        state_format: number of what `own_state` holds; raised when a newer version cannot read an older one's.
    """

    changes_loss: bool = False
    adds_parameters: bool = False
    needs_end: bool = False
    works_sharded: bool = False
    state_format: int = 1

    def __init__(self, *, name: str, seed: int = 0) -> None:
        self.name, self.seed = name, seed
        self._undo: ExitStack | None = None
        self._evaluation_undo = ExitStack()  # what a later hook of the Trainer, or detach, takes back
        self._draw_key: tuple[int, ...] | None = None
        self._count = 0
        self._broken_off: dict[str, Any] = {}  # the state when a run was broken off

    @abstractmethod
    def _attach(self, module: L.LightningModule, undo: ExitStack) -> None:
        """Find, check, then change; `undo.callback(...)` for every change."""

    def attach(self, module: L.LightningModule) -> None:
        """Take hold of a module; the Trainer's callbacks call it, a hand-written loop calls it itself.

        Raises:
            RuntimeError: attached already, or manual optimisation with a strategy that changes the loss.
        """
        if self._undo is not None:
            raise RuntimeError(
                f"{type(self).__name__} holds a module already: `detach()` it first, or make a second one"
            )
        if self.changes_loss and not module.automatic_optimization:
            raise RuntimeError(
                f"{type(self).__name__} adds to the loss that `training_step` returns, which manual "
                "optimisation ignores: set `automatic_optimization = True`, or inherit from `SymmetryMixin` and add "
                "`self.equivariance_loss(x)` to the loss that you pass to `manual_backward`"
            )
        with ExitStack() as undo:
            self._attach(module, undo)
            self._undo = undo.pop_all()

    def detach(self) -> None:
        """Let go of the module; nothing happens where nothing is held."""
        self._evaluation_undo.close()
        undo, self._undo, self._draw_key = self._undo, None, None
        if undo is not None:
            undo.close()

    def update(self, step: int, total: int) -> None:
        """Say which optimizer step of how many comes next; a loop without a Trainer calls it before every batch.

        Schedules depend on it, and draws: they are a function of (seed, step, calls with the same step), in the first
        call those of a Trainer's first epoch.
        """
        check_number("total", total, least=1, whole=True)
        again = self._draw_key is not None and self._draw_key[:2] == (0, step)
        self._count = self._count + 1 if again else 0
        self._draw_key = (0, step, self._count) if again else (0, step)
        self.set_progress(step, total)

    def finish(self, module: L.LightningModule) -> None:
        """Detach after a training without a Trainer that came to its end; RECM leaves what it keeps."""
        self.detach()

    def set_progress(self, step: int, total: int) -> None:
        """Set what depends on how much of the run is over: what a strategy with a schedule writes."""

    def generator(self) -> torch.Generator:
        """A generator for the draws of this batch."""
        rank = process_rank()
        if self._draw_key is None:  # a loop without a Trainer
            self._count += 1
        return derived_generator(type(self).__name__, self.name, self.seed, rank, self._draw_key or self._count)

    def attach_early(self, module: L.LightningModule) -> None:
        """Attach now, or as soon as a lazily built model is there: before the optimizers and before DDP."""
        if not (is_overridden("configure_model", module) or is_overridden("setup", module)):
            self.attach(module)
            return
        before = module.configure_model

        def configure_model() -> None:  # without functools.wraps, or Lightning believes that it is not overridden
            before()
            restore()
            if self._undo is None:
                self.attach(module)

        restore = override(module, "configure_model", configure_model)
        self._evaluation_undo.callback(restore)

    def log_values(self, module: L.LightningModule, values: dict[str, Any], batch_size: int) -> None:
        """Log values under this strategy's name, inside `training_step`."""
        if module._trainer is not None:
            module.log_dict({f"{self.name}/{key}": value for key, value in values.items()}, batch_size=batch_size)

    @property
    def state_key(self) -> str:
        """What tells this strategy from another in a checkpoint."""
        return self._generate_state_key(name=self.name)

    def own_state(self) -> dict[str, Any]:
        """What a resumed run needs: tensors, numbers, strings and containers of these. Most strategies need nothing."""
        return {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Go on from `own_state`."""

    def state_dict(self) -> dict[str, Any]:
        """What is ours in a checkpoint, with the number of its format."""
        state = self.own_state()
        return {"format": self.state_format, **state} if state else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            RuntimeError: the checkpoint was written by a version whose state is of another format.
        """
        if state_dict.get("format") != self.state_format:
            raise RuntimeError(
                f"the checkpoint holds the state of {self.state_key} in format {state_dict.get('format')}, expected "
                f"{self.state_format}: another version of lightning_equiv wrote it. Resume with that version, or begin "
                "anew from its weights, `module.load_state_dict(torch.load(path)['state_dict'])`, without ckpt_path"
            )
        self.load_own_state(state_dict)

    # ---- Lightning's hooks ---------------------------------------------------------------------------------------
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a way of training that would shard what has to be whole."""
        sharded = isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy)
        if stage == "fit" and sharded and not self.works_sharded:
            raise RuntimeError(
                f"{type(self).__name__} reads or adds weights of the network, which {type(trainer.strategy).__name__} "
                "shards: expected a strategy of the Trainer that keeps them whole, write strategy='ddp'"
            )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Attach: lazily built networks exist by now."""
        if self._undo is None:
            self.attach(pl_module)
        if self.needs_end:
            check_ends(trainer, self)

    def on_train_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Remember where in the run we are, for the draws, and set what depends on how much of it is over."""
        self._draw_key = (trainer.current_epoch, batch_idx)
        if self.needs_end:
            self.set_progress(trainer.global_step, run_length(trainer, self))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Detach; a checkpoint that another callback writes now has the state of this moment."""
        self._broken_off = self.own_state()
        self.detach()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Detach."""
        self.detach()


def run_length(trainer: L.Trainer, strategy: SymmetryCallback) -> int:
    """Optimizer steps of the whole run, or the strategy's `horizon`.

    To be called after training has started: asked earlier, the Trainer sets up its loaders, which are then not restored
    in mid-epoch.

    Raises:
        ValueError: nobody says when it ends.
    """
    horizon = getattr(strategy, "horizon", None)
    return _ending(trainer.estimated_stepping_batches if horizon is None else horizon, strategy)


def check_ends(trainer: L.Trainer, strategy: SymmetryCallback) -> None:
    """ValueError for a run that nobody says the end of, as far as the Trainer alone can tell."""
    if getattr(strategy, "horizon", None) is None and trainer.max_epochs == -1 and trainer.max_steps == -1:
        _ending(math.inf, strategy)


def _ending(total: float, strategy: SymmetryCallback) -> int:
    if not math.isfinite(total) or total < 1:
        hint = ", or say horizon=<optimizer steps>" if hasattr(strategy, "horizon") else ""
        raise ValueError(
            f"{type(strategy).__name__} needs to know how long the run is, but the Trainer's horizon is {total}: "
            f"set max_epochs or max_steps{hint}"
        )
    return int(total)
