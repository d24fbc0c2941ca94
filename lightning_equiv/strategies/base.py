"""SymmetryCallback: a callback that attaches to a module when fit begins and restores it when it ends."""

from __future__ import annotations

import re
import weakref
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn

from lightning_equiv._checks import check_number
from lightning_equiv._random import derived_generator
from lightning_equiv.strategies.attachment import (
    Attachment,
    check_optimizers,
    remember,
    restoring_step,
    run_of,
    strategies_of,
)
from lightning_equiv.strategies.run_length import check_ends, run_length
from lightning_equiv.wiring.network import check_lightning_module
from lightning_equiv.wiring.override import override
from lightning_equiv.wiring.ranks import process_rank
from lightning_equiv.wiring.training_step import StepHooks, wrap_training_step
from lightning_equiv.wiring.watched import warn_of_watched_errors


class SymmetryCallback(L.Callback):
    """A Lightning callback with two verbs, `attach` and `detach`; detach undoes attach exactly.

        before = everything about the module
        strategy.attach(module); ...; strategy.detach()
        after == before, also when attach or anything between failed

    In a Trainer both happen by themselves: attach when fit begins, detach when it ends or fails; a loop written by hand
    calls them, and `update` before every batch. Where another callback's `on_exception` fails first, and ours is not
    reached, the module is restored by the next attach of any strategy to it, before its next training step, or when
    the Trainer is forgotten. One Trainer, or one loop, has a strategy at a time.

    What exists while attached is one object, an `Attachment`. What outlives it is one state, a dict of tensors and
    primitives: `attach` loads it if it came from a checkpoint, or from an earlier fit of this module.

    A subclass writes `_attach`: first find and check everything, then change, and register the undoing of every change;
    with a state also `own_state` and `load_own_state`.

    Args:
        name: prefix of what is logged, and what tells two strategies of one kind apart in a checkpoint.
        seed: of all draws. A draw is a pure function of (seed, rank, epoch, batch): a resumed run draws what the
            uninterrupted one would have, and an optimizer that calls a step many times sees one draw.

    Attributes:
        changes_loss: whether it needs automatic optimisation.
        adds_parameters: whether weights of its own train with the model.
        needs_end: whether it must know how long the run is, for its `set_progress`.
        by_hand: what to write in its place with manual optimisation, for the error.
        works_sharded: whether it works when FSDP or DeepSpeed shards the weights.
        continues: whether a second fit of a module goes on from the state of the first.
        ready_made: name -> arguments of the ways of training with it that `compare` tries by itself.
        state_format: number of what `own_state` returns; raised when a newer version cannot read an older one's.
    """

    changes_loss: bool = False
    adds_parameters: bool = False
    needs_end: bool = False
    by_hand: str = ""
    works_sharded: bool = False
    continues: bool = False
    state_format: int = 1
    ready_made: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(self, *, name: str, seed: int = 0) -> None:
        self.name, self.seed = name, seed
        self._attachment: Attachment | None = None
        self._stage_undo = ExitStack()  # what was changed before attaching, in `setup`
        self._state: dict[str, Any] = {}
        self._state_of: weakref.ref[nn.Module] | None = None  # whose training left the state; None: a checkpoint's

    def __getstate__(self) -> dict[str, Any]:
        """A copy is attached to nothing, and belongs to no module."""
        left: dict[str, Any] = {} if self._state_of is None else {"_state": {}, "_state_of": None}
        own = {key: value for key, value in self.__dict__.items() if key not in ("log", "log_dict")}  # the module's
        return {**own, "_attachment": None, "_stage_undo": ExitStack(), **left}

    # ---- what a subclass writes ----------------------------------------------------------------------------------
    @abstractmethod
    def _attach(self, module: L.LightningModule, undo: ExitStack) -> Any:
        """Find, check, then change; `undo.callback(...)` for every change. Returns the `parts` of the attachment."""

    def set_progress(self, step: int, total: int) -> None:
        """Set what depends on how much of the run is over: what a strategy with a schedule writes."""

    def own_state(self) -> dict[str, Any]:
        """What a resumed run needs: tensors, numbers, strings and containers of these. Called while attached."""
        return {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Go on from `own_state`. Called while attached."""

    # ---- attach and detach ---------------------------------------------------------------------------------------
    @property
    def is_attached(self) -> bool:
        """Whether a module is held."""
        return self._attachment is not None

    @property
    def _parts(self) -> Any:
        """What the strategy itself put into the attachment."""
        return self._attached().parts

    def _attached(self) -> Attachment:
        """The attachment.

        Raises:
            RuntimeError: there is none.
        """
        if self._attachment is None:
            raise RuntimeError(
                f"{self.state_key} is not attached to the module, so it would do nothing: it was added to the Trainer "
                "after fit began, or detached meanwhile. Expected it in `Trainer(callbacks=[...])` when fit begins; in "
                "a loop without a Trainer call `attach(module)` first"
            )
        return self._attachment

    def attach(self, module: L.LightningModule) -> None:
        """Attach to a module; the Trainer's callbacks call it, a hand-written loop calls it itself.

        Raises:
            RuntimeError: attached already, or manual optimisation with a strategy that changes the loss.
        """
        for strategy in strategies_of(module):
            strategy.restore_left_over()
        self.restore_left_over()
        if self._attachment is not None:
            raise RuntimeError(
                f"{type(self).__name__} is attached to a module already: `detach()` it first, or make a second one"
            )
        check_lightning_module(module)
        if self.changes_loss and not module.automatic_optimization:
            raise RuntimeError(
                f"{type(self).__name__} adds to the loss that `training_step` returns, which manual "
                f"optimisation ignores: expected `automatic_optimization = True`{self.by_hand}"
            )
        if self._state_of is not None and not (self.continues and self._state_of() is self._state_owner(module)):
            self._state = {}
        with ExitStack() as undo:
            self._attachment = attachment = Attachment(module, run_of(module, self), undo=undo)
            undo.callback(setattr, self, "_attachment", None)
            remember(self, attachment)
            if attachment.run is not None:
                undo.callback(wrap_training_step(module, StepHooks(before=restoring_step(module))))
            attachment.parts = self._attach(module, undo)
            if self._state:
                self.load_own_state(self._state)
            self._state, self._state_of = {}, None
            attachment.undo = undo.pop_all()

    def detach(self) -> None:
        """Restore the module; nothing happens where nothing is attached."""
        with ExitStack() as all_of_it:  # also where one of them fails
            if self._attachment is not None:
                all_of_it.push(self._attachment.undo)
                all_of_it.push(self._attachment.evaluation_undo)
            all_of_it.push(self._stage_undo)

    def restore_left_over(self) -> None:
        """Detach from the module of a run that broke off, where nothing could tell this strategy."""
        if self._attachment is not None and self._attachment.is_left_over:
            self._detach_and_keep_state(self._attachment.module)

    def update(self, step: int, total: int) -> None:
        """Say which optimizer step of how many comes next; a loop without a Trainer calls it before every batch.

        Schedules depend on it, and draws: they are a function of (seed, step, calls with the same step), in the first
        call those of a Trainer's first epoch.

        Raises:
            RuntimeError: not attached.
        """
        check_number("total", total, least=1, whole=True)
        attachment = self._attached()
        again = attachment.draw_key is not None and attachment.draw_key[:2] == (0, step)
        attachment.num_draws = attachment.num_draws + 1 if again else 0
        attachment.draw_key = (0, step, attachment.num_draws) if again else (0, step)
        self.set_progress(step, total)

    def finish(self, module: L.LightningModule) -> None:
        """Detach after a training without a Trainer that came to its end; RECM leaves what it keeps."""
        self.detach()

    def generator(self) -> torch.Generator:
        """A generator for the draws of this batch."""
        attachment = self._attached()
        if attachment.draw_key is None:  # a loop without a Trainer
            attachment.num_draws += 1
        place = attachment.draw_key or attachment.num_draws
        return derived_generator(type(self).__name__, self.name, self.seed, process_rank(), place)

    def batch_number(self) -> int | None:
        """Which batch of the run this is, counted from 0; None in a loop that calls no `update`."""
        attachment = self._attached()
        trainer = None if attachment.run is None else attachment.run()
        if trainer is not None:
            return trainer.fit_loop.epoch_loop.total_batch_idx
        return None if attachment.draw_key is None else attachment.draw_key[1]

    def attach_early(self, module: L.LightningModule) -> None:
        """Attach now, or as soon as a lazily built model is there: before the optimizers and before DDP."""
        if not (is_overridden("configure_model", module) or is_overridden("setup", module)):
            self.attach(module)
            return
        before = module.configure_model

        def configure_model() -> None:  # without functools.wraps, or Lightning believes that it is not overridden
            before()
            restore()
            if not self.is_attached and run_of(module, self) is not None:
                self.attach(module)

        restore = override(module, "configure_model", configure_model)
        self._stage_undo.callback(restore)

    def log_values(self, module: L.LightningModule, values: dict[str, Any], batch_size: int) -> None:
        """Log values under this strategy's name, inside `training_step`, where a Trainer trains the module now."""
        if module._trainer is not None and module._trainer.training:
            module.log_dict({f"{self.name}/{key}": value for key, value in values.items()}, batch_size=batch_size)

    # ---- the state -----------------------------------------------------------------------------------------------
    @property
    def state_key(self) -> str:
        """What tells this strategy from another in a checkpoint."""
        return self._generate_state_key(name=self.name)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this strategy, with the number of its format."""
        state = self.own_state() if self.is_attached else self._state
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
                "again from its weights, `module.load_state_dict(torch.load(path)['state_dict'])`, without ckpt_path"
            )
        if self.is_attached:
            self.load_own_state(state_dict)
        else:
            self._state, self._state_of = dict(state_dict), None

    def _state_owner(self, module: L.LightningModule) -> nn.Module:
        """Whose state it is: that of a later fit of another one would be meaningless."""
        return module

    def _detach_and_keep_state(self, module: L.LightningModule) -> None:
        """Detach; a checkpoint that is written later, and a later fit of this module, have the state of this moment."""
        try:
            state, owner = (self.own_state(), self._state_owner(module)) if self.is_attached else (self._state, module)
        finally:
            self.detach()
        self._state, self._state_of = state, weakref.ref(owner)

    # ---- Lightning's hooks ---------------------------------------------------------------------------------------
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse another package's module, a strategy that another run has, and a way of training that shards weights.

        Raises:
            TypeError, RuntimeError: see above.
        """
        check_lightning_module(pl_module)
        if stage == "fit" and self._attachment is None:
            self._stage_undo.close()  # of a run that broke off before it was attached
        elif stage == "fit":
            assert self._attachment is not None
            if not (self._attachment.is_of(trainer) or self._attachment.is_left_over):
                raise RuntimeError(
                    f"{self.state_key} is attached already, to a {type(self._attachment.module).__name__} "
                    f"{'by hand' if self._attachment.run is None else 'that another Trainer is fitting'}: `detach()` "
                    "it first, or give this Trainer a strategy of its own"
                )
            self._detach_and_keep_state(self._attachment.module)
        sharded = isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy)
        if stage == "fit" and sharded and not self.works_sharded:
            raise RuntimeError(
                f"{type(self).__name__} reads or adds weights of the network, which {type(trainer.strategy).__name__} "
                "shards: expected a strategy of the Trainer that keeps them whole, write strategy='ddp'"
            )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Attach: lazily built networks exist by now. Say so where an equivariance error alone ends the training."""
        if not self.is_attached:
            self.attach(pl_module)
        if self.needs_end:
            check_ends(trainer, self)
        errors = re.compile(rf"{re.escape(self.name)}/(.*/)?equivariance_(error|loss)(/|$)")
        warn_of_watched_errors(trainer, lambda name: errors.match(name) is not None)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """RuntimeError where a strategy is missing, or is there, that was not when the checkpoint was written."""
        if trainer.state.fn == TrainerFn.FITTING and not self._is_elsewhere(trainer):
            check_optimizers(pl_module, checkpoint)

    def on_train_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note where in the run the draws are made, and set what depends on how much of it is over."""
        self._attached().draw_key = (trainer.current_epoch, batch_idx)
        if self.needs_end:
            self.set_progress(trainer.global_step, run_length(trainer, self))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """RuntimeError for a strategy that had no part in the batch: it was added to the Trainer meanwhile."""
        self._attached()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that training came to its end, whatever was expected; a schedule is at its end, too."""
        self._attached().ended = True
        if self.needs_end:
            steps = max(1, trainer.global_step)
            self.set_progress(steps, steps)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Detach; a checkpoint that another callback writes now has the state of this moment."""
        if not self._is_elsewhere(trainer):
            self._detach_and_keep_state(pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Detach; the state of a training that came to its end stays."""
        if self._is_elsewhere(trainer):
            return
        if self._attachment is not None and self._attachment.ended:
            self._detach_and_keep_state(pl_module)
        else:
            self.detach()

    def _is_elsewhere(self, trainer: L.Trainer) -> bool:
        """Whether it is attached, but not for this Trainer: one that runs within another run must not end that."""
        return self._attachment is not None and not self._attachment.is_of(trainer)
