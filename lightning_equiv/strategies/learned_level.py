"""LearnedLevelCallback: branches whose levels are learned, and that may stay when training is over."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn
from torch import nn

from lightning_equiv._checks import check_number
from lightning_equiv.layers.branch import Branch, container_key
from lightning_equiv.layers.branch_networks import normalised
from lightning_equiv.layers.choose import Layers
from lightning_equiv.layers.hidden_parameters import HiddenParameters
from lightning_equiv.layers.layer import Layer
from lightning_equiv.layers.relaxed_layer import RelaxedLayer
from lightning_equiv.strategies.branch_callback import BranchCallback
from lightning_equiv.strategies.kept_layers import KeptLayers, check_finite, check_names, without_branches
from lightning_equiv.wiring.override import override

Report = list[dict[str, Any]]


@dataclass(eq=False, kw_only=True)
class Learned:
    """What a strategy that learns its levels keeps beside its branches.

    Attributes:
        step: optimizer step that the levels take up next.
        total_steps: of the run; 0 before the first.
    """

    step: int = 0
    total_steps: int = 0


class LearnedLevelCallback(BranchCallback):
    """Branches, normalised, whose levels move once an optimizer step; what is above a threshold may stay after `fit`.

    A subclass writes what the levels are (`begin_step`, `update_levels`), what a checkpoint keeps of them and what is
    said of them at the end.

    Args:
        layers: which layers, see `layers.choose.find_layers`.
        threshold: |theta| under which a layer is strict, in evaluation and at the end.
        finalize: "keep" leaves a `RelaxedLayer` where theta is above the threshold, "drop" the user's layers.
        dropping: what to write for "drop", for errors.
        settings: of `BranchCallback`.
    """

    continues = True

    def __init__(
        self,
        layers: Layers,
        *,
        threshold: float,
        finalize: Literal["keep", "drop"],
        dropping: str,
        **settings: Any,
    ) -> None:
        super().__init__(layers, init_scale=1.0, **settings)
        check_number("threshold", threshold, least=0)
        self.threshold, self.finalize, self.dropping = threshold, finalize, dropping
        self.report: Report = []
        self._kept = KeptLayers()

    # ---- what a subclass writes ------------------------------------------------------------------------------------
    @abstractmethod
    def begin_step(self, step: int, total: int) -> None:
        """Set what an optimizer step of the run depends on, when the levels have taken up the last one."""

    @abstractmethod
    def update_levels(self) -> None:
        """Take up what was seen since the last optimizer step, on all processes together."""

    @abstractmethod
    def own_levels(self) -> dict[str, dict[str, Any]]:
        """What a checkpoint keeps of every layer, by its name."""

    @abstractmethod
    def load_levels(self, layers: Mapping[str, dict[str, Any]]) -> None:
        """Go on from `own_levels`."""

    @abstractmethod
    def make_report(self) -> tuple[Report, str]:
        """What is said of every layer when training is over, and the same in words."""

    # ---- what the branch strategy asks ---------------------------------------------------------------------------
    def check_layer(self, layer: Layer) -> None:
        """ValueError for a layer that an earlier training left relaxed."""
        if isinstance(layer.module, RelaxedLayer):
            raise ValueError(
                f"layer {layer.name!r} is relaxed already: put its `layer` back, or fit with the same "
                f"{type(self).__name__}"
            )

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
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """For `fit` begin (again) from the user's layers; for anything else wait for a checkpoint with our state."""
        if stage == "fit":
            launcher = getattr(trainer.strategy, "_launcher", None)  # not there before the Trainer is connected
            if self.finalize == "keep" and isinstance(launcher, _MultiProcessingLauncher):
                raise RuntimeError(
                    f"{type(self).__name__}: processes that are forked or spawned bring back weights under the "
                    f"module's own keys only: expected {self.dropping} there, or strategy='ddp'"
                )
            super().setup(trainer, pl_module, stage)
        before = pl_module.on_load_checkpoint

        def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
            before(checkpoint)
            state = checkpoint.get("callbacks", {}).get(self.state_key) or {}
            checkpoint["state_dict"] = without_branches(checkpoint["state_dict"], state.get("kept", []))
            if stage != "fit":
                self.restore_module(pl_module)
                self.detach()
                if state:
                    self.load_state_dict(state)
                    self.attach(pl_module)
                    self._project()

        self._stage_undo.callback(override(pl_module, "on_load_checkpoint", on_load_checkpoint))

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

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Project, or leave the branches that are above the threshold."""
        super().on_validation_start(trainer, pl_module)
        if self.evaluate == "relaxed" and self._attachment is not None:
            self._attachment.evaluation_undo.enter_context(self.projected())
            self._project()

    def _project(self) -> None:
        """Leave the branches of the network that is deployed or, with evaluate="relaxed", validated."""
        none = self.finalize == "drop" and self.evaluate != "relaxed"
        for b in self.branches:
            b.active = not (none or b.is_strict(self.threshold))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report on every layer."""
        super().on_train_end(trainer, pl_module)
        self._conclude()
        if trainer.loggers and trainer.log_dir is not None:
            write(Path(trainer.log_dir) / f"{self.name}_report.json", self.report)

    def _conclude(self) -> None:
        self.report, words = self.make_report()
        rank_zero_info(words)

    def finish(self, module: L.LightningModule) -> None:
        """The report after a training without a Trainer; what is above the threshold stays as modules."""
        self.commit()
        self._conclude()
        self._detach_and_finalize(module)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Detach; what is left of a training that came to its end stays as modules."""
        if (
            self._attachment is not None
            and self._attachment.is_of(trainer)
            and (stage != "fit" or self._attachment.ended)
        ):
            self._detach_and_finalize(pl_module)
        else:
            super().teardown(trainer, pl_module, stage)

    def _detach_and_finalize(self, module: L.LightningModule) -> None:
        """The user's module again, then what is above the threshold as modules in it."""
        kept = [b for b in self.branches if not b.is_strict(self.threshold)] if self.finalize == "keep" else []
        self._detach_and_keep_state(module)
        self._kept.put(module, kept)
        self._state["kept"] = self._kept.names

    def restore_module(self, module: L.LightningModule) -> None:
        """The module's own layers again, where an earlier training left relaxed ones."""
        self._kept.restore(module)

    def restore(self, module: L.LightningModule, checkpoint: Mapping[str, Any]) -> None:
        """Weights and relaxed layers of a checkpoint, without a Trainer; all of them, or nothing where one is wrong.

        Args:
            module: as it was before training.
            checkpoint: `torch.load(path)` of a file that a Trainer with this strategy wrote, during `fit` or after.

        Raises:
            ValueError: the checkpoint holds no state of a strategy of this name, other layers, or NaN.
            RuntimeError: it holds weights of another module.
        """
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if not state:
            raise ValueError(
                f"expected a checkpoint with the state of {self.state_key}, got one with "
                f"{sorted(checkpoint.get('callbacks', {}))}"
            )
        weights = without_branches(checkpoint["state_dict"], state.get("kept", []))
        check_finite({"state_dict": weights, self.state_key: state})
        with self._kept.lifted(module), ExitStack() as undo:
            self.attach(module)
            undo.callback(self.detach)
            names = [b.layer.name for b in self.branches]
            check_names(f"layers of {self.state_key}", names, state.get("layers", names))
            self.load_state_dict(state)
            module.load_state_dict(weights)
            undo.pop_all()
        self._detach_and_finalize(module)

    def own_state(self) -> dict[str, Any]:
        """What trains with the branches, the levels, and which layers are relaxed ones in the module."""
        return {**super().own_state(), "layers": self.own_levels(), "step": self._learned.step, "kept": []}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Branches and levels."""
        super().load_own_state(state)
        self.load_levels(state["layers"])
        self._learned.step = state["step"]


def normalise(branch: Branch, container: HiddenParameters) -> nn.Module:
    """The branch's network, so that it cannot undo a small theta."""
    branch.network = container[container_key(branch.layer)] = normalised(branch.network)
    return branch.network


@rank_zero_only
def write(path: Path, report: Report) -> None:
    """The report as JSON; a warning where the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1, allow_nan=False))
    except OSError as error:
        rank_zero_warn(f"the report {path} cannot be written: {error}; it is in `report` of the strategy")
