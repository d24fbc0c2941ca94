"""ConstraintRelaxation: a non-equivariant term on equivariant layers that rises, decays and is gone at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from lightning_equiv._checks import check_number
from lightning_equiv.groups.group import Group
from lightning_equiv.layers.branch import Branch
from lightning_equiv.layers.choose import Layers
from lightning_equiv.layers.hidden_parameters import HiddenParameters
from lightning_equiv.layers.layer import Layer, LayerFamily, check_moves
from lightning_equiv.strategies.branch_callback import BranchCallback, Evaluate
from lightning_equiv.strategies.constraint_relaxation.penalties import penalties
from lightning_equiv.strategies.constraint_relaxation.projection import (
    LayerProjection,
    Projection,
    ProjectionMode,
    format_report,
)
from lightning_equiv.strategies.constraint_relaxation.schedule import SCHEDULES, Schedule, level
from lightning_equiv.strategies.instruments import Instruments, Step
from lightning_equiv.symmetry.symmetry import Symmetry
from lightning_equiv.wiring.dry_training import dry_training


class ConstraintRelaxation(BranchCallback):
    r"""Constraint relaxation: equivariant layers may break their symmetry for a while, and end strictly equivariant.

        f_l(x) + theta W_l x        theta = peak * schedule(progress): one scalar for all layers, exactly 0 at the end
        L = L_task + sum_l [ lie_weight sqrt( mean_x sum_i |C_i x|^2 ) + norm_weight sqrt( mean_x |W_l x|^2 ) ]
        C_i = W drho_in(A_i) - drho_out(A_i) W,    A_i a basis of the Lie algebra (for finite groups: generators g_i)

    The first penalty, the Lie derivative of W, is 0 where W is equivariant; the second bounds what is lost when the
    branch is dropped. x is held constant in both. The schedule ends at `end` of the run, so that the strict network has
    the rest of it, and of the learning rate, to itself. Checkpoints and validation are the strict network's throughout.

    `projection` says what becomes of the branches at `end`, where theta drops to 0:

        "drop"      nothing of them is left; the layers' weights are as they trained
        "nearest"   A <- P(A + theta W): what commutes with the group, the mean over it, goes into the layers' weights
        "relabel"   the same, after the hidden features between two layers were relabelled, h -> T h, where that leaves
                    the relaxed network as it is (a permutation between pointwise nonlinearities, an orthogonal matrix
                    where there is none), by the T under which most of both layers commutes

    The last two change the weights of the user's layers once, keep theta at `peak` until then, and take no penalties by
    default. What was lost is in `projection_report`, printed and logged: the loss of a batch with the branches, with
    them dropped, and just after.

    The defaults differ from the paper's: strong penalties and an early end, chosen on validation so that relaxing does
    no harm; see the docs for what was measured. `ConstraintRelaxation.published` has the settings of the paper.

    Logs `constraint_relaxation/theta`, `/lie_penalty`, `/norm_penalty`; once, where branches are folded into layers,
    `/projection/loss_relaxed`, `/projection/loss_dropped`, `/projection/loss` and `/projection/left_over`; with
    evaluate="both" also `/relaxed/...`, what the relaxed network would have logged in validation,
    `/projection_gap/...`, how far that is from the strict network's, and `/relaxed/equivariance_error` where there is a
    `Symmetry`.

    Args:
        symmetry: the group (or its name, "SO(3)", or a `Symmetry`) that the layers are equivariant to.
        layers: which layers: a glob on dotted names (`net.layers.*.update`, `*` for one level, `**` for any number), a
            type, a predicate, a list of these; or a dict from globs to (input, output) representations, or to a
            `LayerFamily`, for layers that do not know theirs. `find(module)` lists what is taken. Best: the linear
            maps before nonlinearities.
        families: instances of `LayerFamily`, such as [VectorNeurons(of=VectorLinear)], that are asked before the
            built-in ones which of the layers are theirs.
        network: dotted name of the network that a `Symmetry` is of, to measure the relaxed one.
        projection: "drop", "nearest" or "relabel", see above.
        schedule: "triangle" (0 -> 1 -> 0), "linear" or "cosine" (1 -> 0), "constant" (1), or a function of progress
            0 .. 1. None: the triangle where branches are dropped, else constant.
        peak: largest theta.
        end: part of the run after which theta is 0.
        lie_weight: weight of the Lie penalty, in units of the task loss. None: 1 where branches are dropped, else 0.
        norm_weight: weight of the norm penalty, likewise.
        branch: "linear" (a convolution beside a convolution) or "mlp".
        init_scale: size of W x over that of x at the start. None: 0.01 where branches are dropped, else 0.3.
        evaluate: "projected", "relaxed" or "both".
        horizon: optimizer steps of the whole run, where the Trainer cannot know them.
        seed: of the branches' first weights.
        instruments: what is measured besides while training, to see why it helps or not: `Instruments`, or what they
            measure, such as "loss dead curvature"; None measures nothing.
        name: prefix of what is logged.

    Raises:
        ValueError: no layer matches; a layer's representation is unknown and lie_weight > 0; an endless run; branches
            that are to be folded into layers and are not linear, layers that cannot take them, or a group whose mean
            over their features is not known.
        RuntimeError: an optimizer that does not hold the branches; manual optimisation; FSDP or DeepSpeed.

    Examples:
        >>> relaxation = ConstraintRelaxation("SO(3)", layers="net.layers.*.update")
        >>> trainer = L.Trainer(callbacks=[relaxation], logger=False, enable_checkpointing=False)
        >>> relaxation = ConstraintRelaxation("S8", {"net.0": ("Permuted(-1)", "Permuted(-1)")}, projection="relabel")

    Reference:
        @inproceedings{pertigkiozoglou2024improving,
          title={Improving Equivariant Model Training via Constraint Relaxation},
          author={Pertigkiozoglou, Stefanos and Chatzipantazis, Evangelos and Trivedi, Shubhendu and Daniilidis,
          Kostas}, booktitle={Advances in Neural Information Processing Systems}, year={2024}, note={arXiv:2408.13242}}
    """

    ready_made = {"ConstraintRelaxation": {}}  # noqa: RUF012 (never changed)

    def __init__(
        self,
        symmetry: Symmetry | Group | str,
        layers: Layers,
        network: str = "",
        *,
        families: Sequence[LayerFamily] = (),
        projection: ProjectionMode = "drop",
        schedule: Literal["triangle", "linear", "cosine", "constant"] | Schedule | None = None,
        peak: float = 1.0,
        end: float = 0.5,
        lie_weight: float | None = None,
        norm_weight: float | None = None,
        branch: Literal["linear", "mlp"] = "linear",
        init_scale: float | None = None,
        evaluate: Evaluate = "projected",
        horizon: int | None = None,
        seed: int = 0,
        instruments: Instruments | str | None = None,
        name: str = "constraint_relaxation",
    ) -> None:
        drops = projection == "drop"
        super().__init__(
            layers,
            families=families,
            branch=branch,
            init_scale=(0.01 if drops else 0.3) if init_scale is None else init_scale,
            evaluate=evaluate,
            symmetry=symmetry,
            network=network,
            horizon=horizon,
            name=name,
            seed=seed,
            instruments=instruments,
        )
        if projection not in ("drop", "nearest", "relabel"):
            raise ValueError(f"expected projection to be 'drop', 'nearest' or 'relabel', got {projection!r}")
        if not drops and branch != "linear":
            raise ValueError(
                f"projection={projection!r} folds matrices into the layers' weights, and a branch {branch!r} has a "
                "nonlinearity: expected branch='linear', or projection='drop'"
            )
        if not drops and end == 1:
            raise ValueError(
                f"projection={projection!r} folds the branches into the layers at `end` of the run, from where the "
                "strict network trains on: expected end < 1, such as 0.5"
            )
        schedule = ("triangle" if drops else "constant") if schedule is None else schedule
        lie_weight, norm_weight = (float(drops) if w is None else w for w in (lie_weight, norm_weight))
        if not callable(schedule) and not (isinstance(schedule, str) and schedule in SCHEDULES):
            raise ValueError(f"expected schedule to be one of {sorted(SCHEDULES)} or a callable, got {schedule!r}")
        check_number("end (part of the run)", end, above=0, most=1)
        for key, value in (("peak", peak), ("lie_weight", lie_weight), ("norm_weight", norm_weight)):
            check_number(key, value, least=0)
        self.schedule: Schedule = schedule if callable(schedule) else SCHEDULES[schedule]
        self.peak, self.end = peak, end
        self.lie_weight, self.norm_weight = lie_weight, norm_weight
        self.projection: ProjectionMode = projection
        self.projection_report: list[LayerProjection] = []

    @classmethod
    def published(cls, symmetry: Symmetry | Group | str, layers: Layers, **changes: Any) -> ConstraintRelaxation:
        """The settings of the paper: a triangle to theta = 1 over the whole run, both weights 0.01."""
        settings = {"schedule": "triangle", "peak": 1.0, "end": 1.0, "lie_weight": 0.01, "norm_weight": 0.01}
        return cls(symmetry, layers, **{**settings, **changes})

    def check_layer(self, layer: Layer) -> None:
        if self.lie_weight > 0 and (layer.inputs is None or layer.outputs is None):
            raise ValueError(
                f"layer {layer.name!r} ({type(layer.module).__name__}) does not say how {self.group} moves its "
                f"features, which lie_weight > 0 needs: write layers={{{layer.name!r}: (inputs, outputs)}} with irreps "
                "such as '16x0e+8x1o' or representations, or lie_weight=0"
            )
        if self.lie_weight > 0:
            check_moves(layer, self.group)

    def add_modules(self, branches: list[Branch], container: HiddenParameters) -> Projection | None:
        """Nothing; layers that are to take their branches are opened, and checked, before training begins."""
        drops = self.projection == "drop"
        return None if drops else Projection(branches, self.group, self.projection == "relabel")

    @property
    def _projection(self) -> Projection | None:
        projection: Projection | None = self._branches.extra
        return projection

    def set_progress(self, step: int, total: int) -> None:
        projection = self._projection
        if projection is not None and not projection.done:
            projection.is_due = step >= self.end * total
            step = min(step, math.ceil(self.end * total) - 1)  # their level stays until there is a batch to fold with
        theta = self.peak * level(self.schedule, step, total, self.end)
        for b in self.branches:
            b.set_theta(theta)

    def fold(self, module: L.LightningModule, step: Step) -> bool:
        projection = self._projection
        if projection is None or projection.done or not projection.is_due:
            return False

        def run() -> Tensor | None:
            with dry_training(module):
                loss = step()
            return None if loss is None else loss.detach()

        relaxed = run()
        if relaxed is None:
            return False  # a batch that is skipped says nothing
        with self.projected():
            dropped = run()
        projection.fold(run)
        self.relax(0.0)
        losses = {"loss_relaxed": relaxed, "loss_dropped": dropped, "loss": run()}
        self.projection_report = projection.report
        left_over = sum(layer["left_over"] for layer in projection.report)
        values = {f"projection/{key}": value for key, value in {**losses, "left_over": left_over}.items()}
        self.log_values(module, values, batch_size=1)
        rank_zero_info(format_report(type(self).__name__, projection.report, losses))
        return True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop branches that a training which ended early left relaxed."""
        super().on_train_end(trainer, pl_module)
        if self._projection is not None and not self._projection.done:
            self.relax(0.0)
            if self.horizon is None:  # or it is to be resumed
                rank_zero_info(
                    f"{type(self).__name__}: training ended before {self.end:.0%} of the run, where the branches would "
                    "have been folded into the layers: they are dropped"
                )

    def own_state(self) -> dict[str, Any]:
        """The branches, and whether they were folded."""
        projection = self._projection
        folded = {} if projection is None else {"folded": projection.done}
        return {**super().own_state(), **folded}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Branches that were folded stay so."""
        super().load_own_state(state)
        if self._projection is not None:
            self._projection.done = state.get("folded", False)

    def penalty(self, module: L.LightningModule) -> Tensor:
        theta = self.branches[0].theta
        if not (any(b.active for b in self.branches) and (self.lie_weight or self.norm_weight)):
            self.log_values(module, {"theta": theta}, batch_size=1)
            return theta.new_zeros(())
        lie, norm = penalties(self.branches, self.group if self.lie_weight > 0 else None)
        self.log_values(module, {"theta": theta, "lie_penalty": lie, "norm_penalty": norm}, batch_size=1)
        return self.lie_weight * lie + self.norm_weight * norm
