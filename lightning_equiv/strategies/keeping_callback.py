"""KeepingCallback: branches that may stay when training is over, as modules in the place of the layers."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

from lightning_equiv._checks import check_number
from lightning_equiv.layers.branch import Branch
from lightning_equiv.layers.choose import Layers
from lightning_equiv.layers.layer import Layer, check_moves
from lightning_equiv.layers.relaxed_layer import RelaxedLayer
from lightning_equiv.strategies.branch_callback import BranchCallback
from lightning_equiv.strategies.kept_layers import KeptLayers, check_finite, check_names, without_branches
from lightning_equiv.wiring.override import override

Report = list[dict[str, Any]]


class KeepingCallback(BranchCallback):
    """Branches of which those that are above a threshold may stay after `fit`, and a report on every layer.

    A subclass writes which layers are strict (`is_strict`), what a checkpoint keeps of a layer and what is said of it
    at the end.

    Args:
        layers: which layers, see `layers.choose.find_layers`.
        threshold: under which a layer is strict, in evaluation and at the end.
        finalize: "keep" leaves a `RelaxedLayer` where a layer is not strict, "drop" the user's layers.
        dropping: what to write for "drop", for errors.
        settings: of `BranchCallback`.
    """

    continues = True

    def __init__(
        self, layers: Layers, *, threshold: float, finalize: Literal["keep", "drop"], dropping: str, **settings: Any
    ) -> None:
        super().__init__(layers, **settings)
        check_number("threshold", threshold, least=0)
        self.threshold, self.finalize, self.dropping = threshold, finalize, dropping
        self.report: Report = []
        self._kept = KeptLayers()

    # ---- what a subclass writes ------------------------------------------------------------------------------------
    @abstractmethod
    def is_strict(self, branch: Branch) -> bool:
        """Whether so little is relaxed that the layer is left without its branch."""

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
        """ValueError for a layer that an earlier training left relaxed, or whose features do not move as declared."""
        if isinstance(layer.module, RelaxedLayer):
            raise ValueError(
                f"layer {layer.name!r} is relaxed already: put its `layer` back, or fit with the same "
                f"{type(self).__name__}"
            )
        check_moves(layer, self.group)

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
            b.active = not (none or self.is_strict(b))

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
        kept = [b for b in self.branches if not self.is_strict(b)] if self.finalize == "keep" else []
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
        """What trains with the branches, what is kept of every layer, and which are relaxed ones in the module."""
        return {**super().own_state(), "layers": self.own_levels(), "kept": []}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Branches and what is kept of every layer."""
        super().load_own_state(state)
        self.load_levels(state["layers"])


@rank_zero_only
def write(path: Path, report: Report | dict[str, Any]) -> None:
    """The report as JSON; a warning where the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1, allow_nan=False))
    except OSError as error:
        rank_zero_warn(f"the report {path} cannot be written: {error}; it is in `report` of the strategy")
