"""EquivarianceProjection: ordinary layers are drawn to the nearest equivariant ones by a penalty on their weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_equiv._checks import check_number
from lightning_equiv.groups.group import Group
from lightning_equiv.groups.product import as_group
from lightning_equiv.layers.choose import Layers, find_layers
from lightning_equiv.layers.equivariant_part import EquivariantPart, equivariant_parts
from lightning_equiv.layers.layer import LayerFamily
from lightning_equiv.metrics.equivariance_error import EquivarianceError
from lightning_equiv.strategies.balances import DualBalance
from lightning_equiv.strategies.base import SymmetryCallback
from lightning_equiv.strategies.equivariance_projection.report import Report, format_report, number, ranked, unseen
from lightning_equiv.strategies.keeping_callback import write
from lightning_equiv.symmetry.symmetry import Symmetry
from lightning_equiv.wiring.call_recorder import CallRecorder
from lightning_equiv.wiring.dry_training import dry_training_loss
from lightning_equiv.wiring.network import find_network
from lightning_equiv.wiring.training_step import StepHooks, wrap_training_step

_TAKEN = 1e-3  # what is left of a layer that took its projection


@dataclass(eq=False)
class Parts:
    """What the strategy has while it is attached.

    Attributes:
        parts: of all layers that are penalised.
        network: whose error is measured at the end; None where only the group is known.
        balance: the multiplier of a tolerance.
        batch: of the last step.
    """

    parts: list[EquivariantPart]
    network: nn.Module | None
    balance: DualBalance | None
    batch: Any = None


class EquivarianceProjection(SymmetryCallback):
    r"""Draws the weights of linear layers, ordinary ones included, to the nearest ones that commute with a group.

        e_l^2 = ( |W_l - P W_l|^2 + |b_l - P b_l|^2 ) / ( |W_l|^2 + |b_l|^2 )       of the layer W_l x + b_l
        P W = mean_g rho_out(g)^-1 W rho_in(g)                                      exact, nothing is sampled
        L = L_task + weight mean_l e_l^2

    P W is the orthogonal projection of W onto the maps that commute with the group, in closed form from the
    representations rho of the layer's input and output, which the user chooses. No second pass of the network is
    needed: REMUL's goal at the cost of a penalty on weights. The denominator is held constant, so that a layer cannot
    shrink e_l by growing; e_l lies between 0 and 1 whatever the layer's size, and the mean makes `weight` and
    `tolerance` mean the same for any number of layers.

    With `tolerance`, L_task is minimised subject to e = sqrt(mean_l e_l^2) of at most that, with a multiplier in the
    place of the weight, as REMUL's; see `DualBalance`.

    The penalty sees linear maps. A network of them that all commute is equivariant only if what is between them is:
    a ReLU on a component of a vector is not, and nor is a LayerNorm over vectors. Give a `Symmetry`, and the network's
    equivariance error is measured at the end, on the last batch, and a warning says where the two contradict.

    Logs `equivariance_projection/penalty`, mean_l e_l^2, and with a tolerance `.../weight` and `.../error`; at the end
    `report` lists the layers by e_l, with the loss and the equivariance error before and after a projection, is
    printed, and is written to `equivariance_projection_report.json` in the logger's folder.

    Args:
        symmetry: the group (or its name), or a `Symmetry`: then the network's equivariance error is reported, too.
        layers: which layers, linear ones: a dict from globs to (input, output) representations, {"net.0": ("2x1o",
            "8x0e+8x1o")}. Layers of torch (`nn.Linear`, `nn.MultiheadAttention`, convolutions, whose kernel turns on
            its grid: C2, C4, D4) are read straight from their weights, others are called with unit vectors.
        network: dotted name of the network that a `Symmetry` is of.
        families: which of them are of which `LayerFamily`, as for `ConstraintRelaxation`.
        weight: of the penalty, in units of the task loss; 1 where no tolerance is given.
        tolerance: the e that is allowed, such as 0.05, in the place of a weight.
        max_weight: with a tolerance, the largest weight of e^2 / tolerance^2, in units of the first task loss.
        finalize: "keep" leaves the weights as they were trained, "project" ends the training with W <- P W.
        name: prefix of what is logged.

    Raises:
        ValueError: no layer matches; one has no known representations, is not linear, or has representations between
            which only 0 commutes; all commute by construction; a group whose mean is not known.
        RuntimeError: manual optimisation; FSDP or DeepSpeed.

    Examples:
        >>> layers = {"net.0": ("1o", "8x0e+8x1o"), "net.2": ("8x0e+8x1o", "1o")}
        >>> strategy = EquivarianceProjection("SO(3)", layers, weight=1.0, finalize="project")
        >>> trainer = L.Trainer(callbacks=[strategy], logger=False, enable_checkpointing=False)

    Reference:
        @inproceedings{berndt2026approximate,
          title={Approximate Equivariance via Projection-Based Regularisation},
          author={Berndt, Torben and St{\"u}hmer, Jan},
          booktitle={International Conference on Machine Learning}, year={2026}, note={arXiv:2601.05028}}
        @inproceedings{kim2023regularizing,
          title={Regularizing Towards Soft Equivariance Under Mixed Symmetries},
          author={Kim, Hyunsu and Lee, Hyungi and Yang, Hongseok and Lee, Juho},
          booktitle={International Conference on Machine Learning}, year={2023}, note={arXiv:2306.00356}}
    """

    changes_loss = True
    continues = True

    def __init__(
        self,
        symmetry: Symmetry | Group | str,
        layers: Layers,
        network: str = "",
        *,
        families: Sequence[LayerFamily] = (),
        weight: float | None = None,
        tolerance: float | None = None,
        max_weight: float = 0.1,
        finalize: Literal["keep", "project"] = "keep",
        name: str = "equivariance_projection",
    ) -> None:
        super().__init__(name=name)
        if weight is not None and tolerance is not None:
            raise ValueError(f"expected a weight or a tolerance, got both, {weight=} and {tolerance=}: leave one out")
        if finalize not in ("keep", "project"):
            raise ValueError(f"expected finalize to be 'keep' or 'project', got {finalize!r}")
        check_number("weight", weight, least=0, optional=True)
        check_number("tolerance", tolerance, above=0, most=1, optional=True)
        check_number("max_weight", max_weight, above=0)
        self.symmetry = symmetry if isinstance(symmetry, Symmetry) else None
        self.group = as_group(symmetry.group if isinstance(symmetry, Symmetry) else symmetry)
        self.layers, self.network, self.families = layers, network, tuple(families)
        self.weight = 1.0 if weight is None else float(weight)
        self.tolerance, self.max_weight, self.finalize = tolerance, max_weight, finalize
        self.report: Report = {}

    def _find(self, module: nn.Module) -> list[EquivariantPart]:
        return equivariant_parts(find_layers(module, self.layers, self.families), self.group, type(self).__name__)

    def _attach(self, module: L.LightningModule, undo: ExitStack) -> Parts:
        """Find the layers and wrap `training_step`."""
        network = None if self.symmetry is None else find_network(module, self.network)
        balance = None
        if self.tolerance is not None:
            what = "the root mean square of the layers' distances from commuting with the group"
            balance = DualBalance(self.tolerance, self.max_weight, what)
        parts = Parts(self._find(module), network, balance)
        undo.callback(
            wrap_training_step(module, StepHooks(after=lambda batch, loss: self._total(module, parts, batch, loss)))
        )
        return parts

    def _total(self, module: L.LightningModule, parts: Parts, batch: Any, task_loss: Tensor) -> Tensor:
        """The task loss and the penalty, which is the same in every process."""
        parts.batch = batch
        with torch.autocast(task_loss.device.type, enabled=False):
            penalty = torch.stack([part.square() for part in parts.parts]).mean()
        values = {"penalty": penalty.detach()}
        if parts.balance is None:
            total = task_loss + self.weight * penalty
        else:
            assert self.tolerance is not None
            losses = torch.stack([task_loss.to(penalty.dtype), penalty / self.tolerance**2])
            total = parts.balance.total(losses)
            values["weight"] = parts.balance.weights[1]
            parts.balance.update(losses)
            values["error"] = parts.balance.error
        self.log_values(module, values, batch_size=1)
        return total

    # ---- the projection ------------------------------------------------------------------------------------------
    def project(self, module: nn.Module) -> dict[str, float]:
        """W <- P W and b <- P b, in the layers' own weights; also of a module that is not attached.

        Args:
            module: with the layers.

        Returns:
            What is left over in each layer, e_l: 0 but for rounding, or a warning says that it could not be taken.
        """
        left = {part.layer.name: part.project() for part in self._find(module)}
        if over := {name: round(e, 4) for name, e in left.items() if not e <= _TAKEN}:
            rank_zero_warn(
                f"{type(self).__name__}: weights could not take their projection, what is left over is {over}: "
                "expected weights that train, and that stand in the layer as they are (no spectral or weight norm)"
            )
        return left

    def _measured(self, module: L.LightningModule) -> Report:
        """The penalty, the loss of the last batch and the network's equivariance error on it, as they are now."""
        parts: Parts = self._parts
        with torch.no_grad():
            layers = ranked(parts.parts)
            penalty = torch.stack([part.square() for part in parts.parts]).mean()
        found: Report = {"layers": layers, "penalty": number(float(penalty)), "loss": None, "equivariance_error": None}
        if parts.batch is None:
            return found
        recorder = None if parts.network is None else CallRecorder(parts.network)
        try:
            if recorder is not None:
                recorder.start()
            key = self._attached().draw_key
            with module.trainer.precision_plugin.train_step_context() if module._trainer is not None else ExitStack():
                found["loss"] = number(dry_training_loss(module, parts.batch, 0 if key is None else key[1]))
            calls = [] if recorder is None else recorder.stop()
        finally:
            if recorder is not None:
                recorder.remove()
        if calls and self.symmetry is not None:
            assert parts.network is not None
            metric = EquivarianceError(self.symmetry, num_samples=4, needs_grad=True).to(module.device)
            for call in calls:
                metric.update(parts.network, *call.args, **call.kwargs)
            error = metric.compute()
            assert isinstance(error, Tensor)
            found["equivariance_error"] = number(float(error))
        return found

    def _conclude(self, module: L.LightningModule) -> None:
        self.report = {**self._measured(module), "projected": None}
        if self.finalize == "project":
            self.project(module)
            self.report["projected"] = self._measured(module)
        rank_zero_info(format_report(type(self).__name__, self.report))
        parts: Parts = self._parts
        if parts.balance is not None and self.finalize == "keep" and (words := parts.balance.verdict()):
            rank_zero_warn(f"{type(self).__name__}: {words}")
        names = [part.layer.name for part in parts.parts]
        last = self.report["projected"] or self.report
        if parts.network is not None and (words := unseen(last, parts.network, names, self.network)):
            rank_zero_warn(f"{type(self).__name__}: {words}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Project, if that is asked for, and report."""
        super().on_train_end(trainer, pl_module)
        self._conclude(pl_module)
        if trainer.loggers and trainer.log_dir is not None:
            write(Path(trainer.log_dir) / f"{self.name}_report.json", self.report)

    def finish(self, module: L.LightningModule) -> None:
        """Project, if that is asked for, and report, after a training without a Trainer."""
        self._conclude(module)
        self.detach()

    # ---- checkpoints ---------------------------------------------------------------------------------------------
    def own_state(self) -> dict[str, Any]:
        """The multiplier of a tolerance; a weight has none."""
        balance: DualBalance | None = self._parts.balance
        return {} if balance is None else balance.state()

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved multiplier."""
        if self._parts.balance is not None:
            self._parts.balance.load(state)
