"""RECM: a recurrent state per layer that learns how much to relax."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from lightning_equiv._checks import check_number
from lightning_equiv.groups.group import Group
from lightning_equiv.layers.branch import Branch, container_key
from lightning_equiv.layers.choose import Layers
from lightning_equiv.layers.hidden_parameters import HiddenParameters
from lightning_equiv.layers.layer import Layer, LayerFamily, check_sizes
from lightning_equiv.strategies.branch_callback import Branches, Evaluate
from lightning_equiv.strategies.instruments import Instruments
from lightning_equiv.strategies.keeping_callback import Report
from lightning_equiv.strategies.learned_level import Learned, LearnedLevelCallback, normalise
from lightning_equiv.strategies.recm.critic import LipschitzCritic, draw_elements
from lightning_equiv.strategies.recm.recurrence import Recurrence, Step, commit, make_level
from lightning_equiv.strategies.recm.report import format_report, layer_report, too_short
from lightning_equiv.strategies.recm.target import declared_target, read_target, target_size
from lightning_equiv.symmetry.symmetry import Symmetry
from lightning_equiv.symmetry.tree import Place


@dataclass(eq=False)
class Recurrent(Learned):
    """What RECM keeps beside its branches.

    Attributes:
        recurrences: the state of every layer by its name.
        gain: b of this optimizer step.
        now: what the layers share in the training step that is running.
    """

    recurrences: dict[str, Recurrence]
    gain: float
    now: Step | None = None


class RECM(LearnedLevelCallback):
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
        instruments: what is measured besides while training, to see why it helps or not: `Instruments`, or what they
            measure, such as "loss dead curvature"; None measures nothing.
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

    ready_made = {"RECM": {}}  # noqa: RUF012 (never changed)

    def __init__(
        self,
        symmetry: Symmetry | Group | str,
        layers: Layers,
        network: str = "",
        *,
        families: Sequence[LayerFamily] = (),
        target: Place | None = None,
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
        instruments: Instruments | str | None = None,
        name: str = "recm",
    ) -> None:
        super().__init__(
            layers,
            families=families,
            threshold=threshold,
            finalize=finalize,
            dropping="finalize='drop'",
            branch=branch,
            evaluate=evaluate,
            symmetry=symmetry,
            network=network,
            horizon=horizon,
            name=name,
            seed=seed,
            instruments=instruments,
        )
        if not self.group.compact:
            raise ValueError(
                f"expected a compact group, got {self.group}, over which nothing can be averaged: centre the data and "
                "take the rotations, e.g. 'SO(3)' in place of 'SE(3)'"
            )
        check_number("gain", gain, above=0, below=1)
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
        self.max_rows = max_rows
        self.target_representation = declared_target(self.symmetry, self.group, target)
        moved = self.target_representation
        self.target_size = None if moved is None else target_size(moved, self.group)

    # ---- what the branch strategy asks ---------------------------------------------------------------------------
    def check_layer(self, layer: Layer) -> None:
        """How inputs move must be known, and how outputs do where they stand for the target."""
        super().check_layer(layer)
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
            normalise(b, container)
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

    def begin_step(self, step: int, total: int) -> None:
        """The gain of an optimizer step."""
        recurrent = self._recurrent
        if not recurrent.total_steps and self.start == "relaxed":
            words = too_short(type(self).__name__, self.gain, self.threshold, total)
            if words is not None:
                rank_zero_info(words)
        recurrent.gain = self.gain * min(1.0, max(0.0, 2 * (1 - step / total)))

    def update_levels(self) -> None:
        """h <- (1 - b) h + b s."""
        commit(self._recurrent.recurrences.values(), self._recurrent.gain)

    def penalty(self, module: L.LightningModule) -> Tensor:
        """Nothing joins the loss; theta and the violation of every layer are logged."""
        values = {f"theta/{b.layer.name}": b.theta for b in self.branches}
        values |= {f"violation/{name}": r.pending[-1][0].norm() for name, r in self.recurrences.items() if r.pending}
        self.log_values(module, values, batch_size=1)
        zero = self.branches[0].theta.new_zeros(())
        idle = [p for r in self.recurrences.values() if not r.branch.calls for p in r.critic.parameters()]
        return zero + 0 * sum(p.sum() for p in idle)

    def _ready(self, batch: Any) -> None:
        recurrent, device = self._recurrent, self.branches[0].theta.device
        elements = draw_elements(self.group, self.num_samples, self.max_rows, self.generator, device)
        super()._ready(batch)
        recurrent.now = Step(recurrent.gain, None if self.target is None else read_target(self.target, batch), elements)

    def _await(self, awaiting: bool) -> None:
        super()._await(awaiting)
        self._recurrent.now = self._recurrent.now if awaiting else None

    # ---- checkpoints and the report ------------------------------------------------------------------------------
    def own_levels(self) -> dict[str, dict[str, Any]]:
        """h and the mean squares."""
        return {name: recurrence.state() for name, recurrence in self.recurrences.items()}

    def load_levels(self, layers: Mapping[str, dict[str, Any]]) -> None:
        for name, own in layers.items():
            self.recurrences[name].load(own)

    def make_report(self) -> tuple[Report, str]:
        """theta of every layer, and which became strict."""
        report = layer_report(self.branches, self.threshold)
        return report, format_report(type(self).__name__, report)
