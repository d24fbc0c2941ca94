"""RECM: a recurrent state per layer that learns how much to relax."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from lightning_equiv._checks import check_number
from lightning_equiv.groups.group import Group
from lightning_equiv.layers.branch import Branch, container_key
from lightning_equiv.layers.branch_networks import normalised
from lightning_equiv.layers.choose import Layers
from lightning_equiv.layers.hidden_parameters import HiddenParameters
from lightning_equiv.layers.layer import Layer, LayerFamily, check_sizes
from lightning_equiv.layers.relaxed_layer import RelaxedLayer
from lightning_equiv.strategies.base import Target
from lightning_equiv.strategies.branch_callback import BranchCallback, Branches, Evaluate
from lightning_equiv.strategies.recm.critic import LipschitzCritic, draw_elements
from lightning_equiv.strategies.recm.kept_layers import KeptLayers, check_finite, check_names, without_branches
from lightning_equiv.strategies.recm.recurrence import Recurrence, Step, commit, make_level
from lightning_equiv.strategies.recm.report import format_report, layer_report, strict, too_short, write
from lightning_equiv.strategies.recm.target import declared_target, read_target, target_size
from lightning_equiv.symmetry.symmetry import Symmetry
from lightning_equiv.wiring.override import override


@dataclass(eq=False)
class Recurrent:
    """What RECM keeps beside its branches.

    Attributes:
        recurrences: the state of every layer by its name.
        gain: b of this optimizer step.
        step: optimizer step whose violations the states take up next.
        total_steps: of the run.
        now: what the layers share in the training step that is running.
    """

    recurrences: dict[str, Recurrence]
    gain: float
    step: int = 0
    total_steps: int = 0
    now: Step | None = None


class RECM(BranchCallback):
    r"""Recurrent equivariant constraint modulation: every layer learns from the data how much of its symmetry to keep.

        f_l(x) + theta_l n_l(x)                            n_l normalised, so that it cannot undo a small theta
        s = mean_i [ u(z_i) - mean_m u(T_{g_im} z_i) ]     z = (x, y): the layer's input and the task's target
        h <- (1 - b) h + b s                               T_g (x, y) = (rho_l(g) x, rho_Y(g) y)
        theta_l = < w / |w|, h >                           b = `gain`, then linearly to 0 from half of the run on

    with u a small 1-Lipschitz network, w a vector, h a state per layer; all learned from the task's loss alone. In the
    limit |theta_l| <= W1(p_l, p̄_l), how far the law p_l of (x, y) is from its average over the group: where inputs and
    targets are exactly symmetric theta goes to 0, the branch is dropped and the layer is strictly equivariant. The
    proof is in the docs. **The update equations are this library's own**: those of the paper were not at hand, the
    guarantee is the one that it states. No number of the paper is reproduced here.

    Train on data that is as symmetric as its law: a finite sample of a symmetric law is not itself symmetric, and u can
    see that; add `GroupAugmentation` where the symmetry is exact.

    Logs `recm/theta/LAYER` and `recm/violation/LAYER`, the length of s; at the end `report` says which layers became
    strict, is printed, and is written to `recm_report.json` in the logger's folder.

    With finalize="keep" each layer whose |theta| is at least `threshold` is a `RelaxedLayer` after `fit`, an ordinary
    module; the others are the user's. Checkpoints written while training hold the user's weights under the user's keys,
    and branches and states with the callback: `trainer.test(ckpt_path=...)` puts them together, and so does
    `restore` without a Trainer.

    Args:
        symmetry: the group (or its name), or a `Symmetry`, which also says how targets move: as its `batch` says at
            `target`, or like its outputs. Compact; for translations centre the data and take the rotations.
        layers: which layers, as for `ConstraintRelaxation`.
        families: which of them are of which `LayerFamily`, as for `ConstraintRelaxation`.
        network: dotted name of the network that a `Symmetry` is of.
        target: where the label is in the batch, as for `REMUL`; None takes each layer's own output, moved as its
            outputs are.
        branch: "linear" (over its spectral norm; a convolution beside a convolution) or "mlp" (output of RMS 1).
        gain: b of the first half.
        num_samples: M, group elements for each row; a group of at most 16 elements is summed over.
        critic_width: hidden width of u.
        state_dim: length of h.
        start: "relaxed" from theta = 1, or "equivariant" from theta = 0.
        threshold: |theta| under which a layer is strict, in evaluation and at the end.
        finalize: "keep" what is above the threshold, or "drop" all branches.
        max_rows: rows of a layer that s is averaged over, evenly spaced.
        evaluate: "projected", "relaxed" (with the branches above the threshold) or "both".
        horizon: optimizer steps of the whole run, where the Trainer cannot know them.
        seed: of first weights and draws.
        name: prefix of what is logged.

    Raises:
        ValueError: no layer matches; a representation that is not known; a group that is not compact; an endless run.
        RuntimeError: an optimizer that does not hold the branches; manual optimisation; FSDP or DeepSpeed.

    Examples:
        >>> symmetry = Symmetry("SO(3)", inputs="1o", outputs="1o")
        >>> recm = RECM(symmetry, layers="net.layers.*.update", network="net", target=1)  # batches are (x, y)
        >>> trainer = L.Trainer(callbacks=[recm], logger=False, enable_checkpointing=False)

    Reference:
        @inproceedings{pertigkiozoglou2026recurrent,
          title={Recurrent Equivariant Constraint Modulation: Learning Per-Layer Symmetry Relaxation from Data},
          author={Pertigkiozoglou, Stefanos and Petrache, Mircea and Trivedi, Shubhendu and Daniilidis, Kostas},
          booktitle={Proceedings of the 43rd International Conference on Machine Learning}, series={PMLR}, volume={306},
          pages={98322--98341}, year={2026}, note={arXiv:2602.02853}}
    """

    continues = True
    ready_made = {"RECM": {}}  # noqa: RUF012 (never changed)

    def __init__(
        self,
        symmetry: Symmetry | Group | str,
        layers: Layers,
        network: str = "",
        *,
        families: Sequence[LayerFamily] = (),
        target: Target | None = None,
        branch: Literal["linear", "mlp"] = "linear",
        gain: float = 0.02,
        num_samples: int = 4,
        critic_width: int = 32,
        state_dim: int = 8,
        start: Literal["relaxed", "equivariant"] = "relaxed",
        threshold: float = 1e-3,
        finalize: Literal["keep", "drop"] = "keep",
        max_rows: int = 512,
        evaluate: Evaluate = "relaxed",
        horizon: int | None = None,
        seed: int = 0,
        name: str = "recm",
    ) -> None:
        super().__init__(
            layers,
            families=families,
            branch=branch,
            init_scale=1.0,
            evaluate=evaluate,
            symmetry=symmetry,
            network=network,
            horizon=horizon,
            name=name,
            seed=seed,
        )
        if not self.group.compact:
            raise ValueError(
                f"expected a compact group, got {self.group}, over which nothing can be averaged: centre the data and "
                "take the rotations, e.g. 'SO(3)' in place of 'SE(3)'"
            )
        check_number("gain", gain, above=0, below=1)
        check_number("threshold", threshold, least=0)
        if start not in ("relaxed", "equivariant") or finalize not in ("keep", "drop"):
            raise ValueError(
                "expected start to be 'relaxed' or 'equivariant' and finalize to be 'keep' or 'drop', got "
                f"{start=}, {finalize=}"
            )
        sizes = {"num_samples": num_samples, "max_rows": max_rows, "state_dim": state_dim, "critic_width": critic_width}
        for key, value in sizes.items():
            check_number(key, value, least=1, whole=True)
        self.target, self.gain, self.num_samples = target, gain, num_samples
        self.critic_width, self.state_dim, self.start = critic_width, state_dim, start
        self.threshold, self.finalize, self.max_rows = threshold, finalize, max_rows
        self.target_representation = declared_target(self.symmetry, self.group, target)
        moved = self.target_representation
        self.target_size = None if moved is None else target_size(moved, self.group)
        self.report: list[dict[str, Any]] = []
        self._kept = KeptLayers()

    # ---- what the branch strategy asks ---------------------------------------------------------------------------
    def check_layer(self, layer: Layer) -> None:
        """How inputs move must be known, and how outputs do where they stand for the target."""
        if isinstance(layer.module, RelaxedLayer):
            raise ValueError(
                f"layer {layer.name!r} is relaxed already: put its `layer` back, or fit with the same RECM"
            )
        needed = [layer.inputs] if self.target is not None else [layer.inputs, layer.outputs]
        for representation in needed:
            if representation is None:
                raise ValueError(
                    f"layer {layer.name!r} ({type(layer.module).__name__}) does not say how {self.group} moves its "
                    f"features: write layers={{{layer.name!r}: (inputs, outputs)}} with irreps such as '16x0e+8x1o' or "
                    "representations"
                )
            representation.check_group(self.group)
        check_sizes(layer, self.group)

    def add_modules(self, branches: list[Branch], container: HiddenParameters) -> Recurrent:
        """Normalise the branches; u, w and a state for each."""
        recurrences, module = {}, self._attached().module
        for b in branches:
            b.network = container[container_key(b.layer)] = normalised(b.network)
            dim = math.prod(b.layer.in_features or ()) + (self.target_size or math.prod(b.layer.out_features or ()))
            critic = LipschitzCritic(dim, self.critic_width, self.state_dim).to(b.theta.device)
            container[f"{container_key(b.layer)}-critic"] = critic
            recurrences[b.layer.name] = recurrence = Recurrence(
                b, critic, self.target_representation, self.max_rows, self.start == "relaxed"
            )
            b.level = make_level(recurrence, module, lambda: self._recurrent.now)
            b.active = True
        return Recurrent(recurrences, self.gain)

    @property
    def _recurrent(self) -> Recurrent:
        recurrent: Recurrent = self._branches.extra
        return recurrent

    @property
    def recurrences(self) -> dict[str, Recurrence]:
        """The state of every layer by its name; none while nothing is attached."""
        return self._recurrent.recurrences if self.is_attached else {}

    def _attach(self, module: L.LightningModule, undo: ExitStack) -> Branches:
        parts = super()._attach(module, undo)
        for recurrence in parts.extra.recurrences.values():
            recurrence.read()  # theta of the first state
        return parts

    def set_progress(self, step: int, total: int) -> None:
        """The gain of an optimizer step; the states take up what was seen since the last."""
        recurrent = self._recurrent
        if step != recurrent.step:
            self.commit()
        if not recurrent.total_steps and self.start == "relaxed":
            words = too_short(type(self).__name__, self.gain, self.threshold, total)
            if words is not None:
                rank_zero_info(words)
        recurrent.step, recurrent.total_steps = step, total
        for b in self.branches:
            b.active = True
        recurrent.gain = self.gain * min(1.0, max(0.0, 2 * (1 - step / total)))

    def commit(self) -> None:
        """h <- (1 - b) h + b s, once for every optimizer step, on all processes together."""
        self._await(awaiting=False)
        commit(self._recurrent.recurrences.values(), self._recurrent.gain)

    def penalty(self, module: L.LightningModule) -> Tensor:
        """Nothing joins the loss; theta and the violation of every layer are logged."""
        values = {f"theta/{b.layer.name}": b.theta for b in self.branches}
        values |= {f"violation/{name}": r.pending[-1][0].norm() for name, r in self.recurrences.items() if r.pending}
        self.log_values(module, values, batch_size=1)
        zero = self.branches[0].theta.new_zeros(())
        idle = [p for r in self.recurrences.values() if not r.branch.calls for p in r.critic.parameters()]
        return zero + 0 * sum(p.sum() for p in idle)

    # ---- a training step -----------------------------------------------------------------------------------------
    def _ready(self, batch: Any) -> None:
        recurrent, device = self._recurrent, self.branches[0].theta.device
        self._await(awaiting=False)  # of a step without a backward pass
        elements = draw_elements(self.group, self.num_samples, self.max_rows, self.generator, device)
        recurrent.now = Step(recurrent.gain, None if self.target is None else read_target(self.target, batch), elements)
        super()._ready(batch)

    def _done(self) -> None:
        super()._done()
        self._await(awaiting=True)

    def _await(self, awaiting: bool) -> None:
        for recurrence in self.recurrences.values():
            recurrence.await_backward(awaiting)
        self._recurrent.now = self._recurrent.now if awaiting else None

    # ---- Lightning's hooks ---------------------------------------------------------------------------------------
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """For `fit` begin (again) from the user's layers; for anything else wait for a checkpoint with our state."""
        if stage == "fit":
            if self.finalize == "keep" and isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
                raise RuntimeError(
                    f"{type(self).__name__}: processes that are forked or spawned bring back weights under the "
                    "module's own keys only: expected finalize='drop' there, or strategy='ddp'"
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
        """The states move once an optimizer step, before anything is validated or saved."""
        if trainer.global_step != self._recurrent.step:
            self.commit()
            self._recurrent.step = trainer.global_step

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Project, or leave the branches that are above the threshold."""
        super().on_validation_start(trainer, pl_module)
        if self.evaluate == "relaxed" and self._attachment is not None:
            self._attachment.evaluation_undo.enter_context(self.projected())
            self._project()

    def _project(self) -> None:
        for b in self.branches:
            b.active = not strict(b, self.threshold)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report on every layer."""
        super().on_train_end(trainer, pl_module)
        self._conclude()
        if trainer.loggers and trainer.log_dir is not None:
            write(Path(trainer.log_dir) / f"{self.name}_report.json", self.report)

    def _conclude(self) -> None:
        self.report = layer_report(self.branches, self.threshold)
        rank_zero_info(format_report(type(self).__name__, self.report))

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
        kept = [b for b in self.branches if not strict(b, self.threshold)] if self.finalize == "keep" else []
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
            check_names(f"layers of {self.state_key}", self.recurrences, state.get("layers", self.recurrences))
            self.load_state_dict(state)
            module.load_state_dict(weights)
            undo.pop_all()
        self._detach_and_finalize(module)

    def own_state(self) -> dict[str, Any]:
        """The branches' weights, u, w, the state of every layer, and which layers are relaxed ones in the module."""
        layers = {name: recurrence.state() for name, recurrence in self.recurrences.items()}
        return {**super().own_state(), "layers": layers, "step": self._recurrent.step, "kept": []}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Branches, u, w and states."""
        super().load_own_state(state)
        for name, own in state["layers"].items():
            self.recurrences[name].load(own)
        self._recurrent.step = state["step"]
