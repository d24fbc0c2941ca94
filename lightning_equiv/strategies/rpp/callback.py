"""RPP: a branch that is always on beside each equivariant layer, and a prior that it should be small."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn

from lightning_equiv._checks import check_number
from lightning_equiv.groups.group import Group
from lightning_equiv.layers.branch import Branch
from lightning_equiv.layers.choose import Layers
from lightning_equiv.layers.hidden_parameters import HiddenParameters, own_parameters
from lightning_equiv.layers.layer import LayerFamily
from lightning_equiv.strategies.branch_callback import Branches, Evaluate
from lightning_equiv.strategies.instruments import Instruments
from lightning_equiv.strategies.invariants import check_that_something_moves
from lightning_equiv.strategies.keeping_callback import KeepingCallback, Report
from lightning_equiv.strategies.rpp.shares import Shares, format_report, ranked
from lightning_equiv.symmetry.symmetry import Symmetry
from lightning_equiv.wiring.weight_decay import without_weight_decay


class RPP(KeepingCallback):
    r"""Residual pathway priors: every layer has a free pathway beside it, and two Gaussian priors choose between them.

        f_l(x) + n_l(x)                                                    n_l a branch that knows no symmetry
        L = L_task + (a/2) sum_l |W_n|^2 + (b/2) sum_l |W_f|^2             a = `free_weight`, b = `equivariant_weight`

    W_n are all weights of the branches, W_f those of the layers themselves. With a >> b the free pathway is used only
    where it pays: a branch that would lower a quadratic loss of curvature H by its value s_n is s_n / (1 + a / H).
    Both pathways are on from the first step to the last: there is no schedule, and the length of the run need not be
    known. What stays is partly equivariant, a `RelaxedLayer` in the layer's place. It is the simplest of the soft
    strategies, and what RECM and a resilient ACE should be compared with.

    The priors are terms of the loss, and their gradients go through the user's optimizer with the task's. A decoupled
    weight decay, as AdamW's, is another thing: the optimizer then divides the task's gradient by its size but not the
    decay, so that a weight ends where L_task's slope divided by its root mean square is -a w, which is the minimum of
    no loss, and depends on the rate at which gradients vary. The user's own weight decay stays what it is on the
    model's weights, and leaves those of the branches alone: a is all that pulls on them.

    The defaults are those of a prior in units of the task loss: b = 0, as what the user's training does to the layers
    is the user's choice; a = 1 is that a free weight of 1 costs as much as half a unit of the loss, and
    `examples/benchmarks/rpp_weights.py` tries others. Standardise the targets, or multiply a by their variance.

    Logs `rpp/penalty` and `rpp/free_norm`, the root of sum |W_n|^2; at the end `report` lists the layers by |n(x)| /
    |f(x)|, the branch's share, is printed, and is written to `rpp_report.json` in the logger's folder. A layer whose
    share was under `threshold` in each of the last 100 training batches becomes strict, the user's own.

    Args:
        symmetry: the group (or its name), or a `Symmetry`: then evaluate="both" measures the relaxed network, too.
        layers: which layers, as for `ConstraintRelaxation`; how their features move need not be known.
        families: which of them are of which `LayerFamily`, as for `ConstraintRelaxation`.
        network: dotted name of the network that a `Symmetry` is of.
        free_weight: a, in units of the task loss for a squared unit of the branches' weights.
        equivariant_weight: b, on the layers' own weights and biases.
        branch: "linear" (a convolution beside a convolution) or "mlp", all of whose weights have the prior.
        init_scale: size of n(x) over that of x at the start.
        threshold: share under which a layer is strict, in evaluation and at the end; 0 keeps all branches.
        finalize: "keep" leaves what is above the threshold, "drop" the strict network.
        evaluate: "projected", "relaxed" (with the branches above the threshold) or "both"; None validates what is
            deployed, relaxed for "keep" and projected for "drop".
        seed: of the branches' first weights.
        instruments: what is measured besides while training, to see why it helps or not: `Instruments`, or what they
            measure, such as "loss dead curvature"; None measures nothing.
        name: prefix of what is logged.

    Raises:
        ValueError: no layer matches; only layers from invariants to invariants, where a branch breaks no symmetry.
        RuntimeError: an optimizer that does not hold the branches; manual optimisation; FSDP or DeepSpeed.

    Examples:
        >>> rpp = RPP("SO(3)", layers="net.layers.*.update")
        >>> trainer = L.Trainer(callbacks=[rpp], logger=False, enable_checkpointing=False)

    Reference:
        @inproceedings{finzi2021residual,
          title={Residual Pathway Priors for Soft Equivariance Constraints},
          author={Finzi, Marc and Benton, Gregory and Wilson, Andrew Gordon},
          booktitle={Advances in Neural Information Processing Systems}, year={2021}, note={arXiv:2112.01388}}
    """

    needs_end = False
    ready_made = {"RPP": {}}  # noqa: RUF012 (never changed)

    def __init__(
        self,
        symmetry: Symmetry | Group | str,
        layers: Layers,
        network: str = "",
        *,
        families: Sequence[LayerFamily] = (),
        free_weight: float = 1.0,
        equivariant_weight: float = 0.0,
        branch: Literal["linear", "mlp"] = "linear",
        init_scale: float = 1e-3,
        threshold: float = 1e-2,
        finalize: Literal["keep", "drop"] = "keep",
        evaluate: Evaluate | None = None,
        seed: int = 0,
        instruments: Instruments | str | None = None,
        name: str = "rpp",
    ) -> None:
        if finalize not in ("keep", "drop"):
            raise ValueError(f"expected finalize to be 'keep' or 'drop', got {finalize!r}")
        super().__init__(
            layers,
            families=families,
            threshold=threshold,
            finalize=finalize,
            dropping="finalize='drop'",
            branch=branch,
            init_scale=init_scale,
            evaluate=evaluate or ("relaxed" if finalize == "keep" else "projected"),
            symmetry=symmetry,
            network=network,
            horizon=None,
            name=name,
            seed=seed,
            instruments=instruments,
        )
        check_number("free_weight", free_weight, least=0)
        check_number("equivariant_weight", equivariant_weight, least=0)
        self.free_weight, self.equivariant_weight = free_weight, equivariant_weight

    # ---- what the branch strategy asks ---------------------------------------------------------------------------
    def add_modules(self, branches: list[Branch], container: HiddenParameters) -> Shares:
        """All branches are on, and their shares are noted."""
        check_that_something_moves([b.layer for b in branches], self.group, type(self).__name__)
        shares = Shares(len(branches))
        for i, b in enumerate(branches):
            b.set_theta(1.0)
            b.observe = shares.observe(i)
        return shares

    def _attach(self, module: L.LightningModule, undo: ExitStack) -> Branches:
        parts = super()._attach(module, undo)
        undo.callback(without_weight_decay(parts.container.parameters()))
        return parts

    @property
    def _shares(self) -> Shares:
        shares: Shares = self._branches.extra
        return shares

    def set_progress(self, step: int, total: int) -> None:
        """Nothing depends on how much of the run is over."""

    def _ready(self, batch: Any) -> None:
        super()._ready(batch)
        self._shares.begin()

    def penalty(self, module: L.LightningModule) -> Tensor:
        """(a/2) |W_n|^2 + (b/2) |W_f|^2; the batch's shares are taken up."""
        self._shares.end(self.branches[0].theta)
        free = sum_of_squares(p for b in self.branches for p in b.network.parameters())
        penalty = self.free_weight / 2 * free
        if self.equivariant_weight:
            own = {id(p): p for b in self.branches for p in own_parameters(b.layer.module).values() if p.requires_grad}
            penalty = penalty + self.equivariant_weight / 2 * sum_of_squares(own.values()).to(free.device)
        self.log_values(module, {"penalty": penalty.detach(), "free_norm": free.detach().sqrt()}, batch_size=1)
        return penalty

    # ---- what stays ----------------------------------------------------------------------------------------------
    def is_strict(self, branch: Branch) -> bool:
        """Whether the branch's share was under the threshold in each of the last batches."""
        largest = self._shares.largest()
        return largest is not None and float(largest[self.branches.index(branch)]) < self.threshold

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """All processes evaluate the same network."""
        if self.is_attached:
            self._shares.agree(pl_module.device)
        super().on_validation_start(trainer, pl_module)

    def _conclude(self) -> None:
        self._shares.agree(self._attached().module.device)
        super()._conclude()

    def make_report(self) -> tuple[Report, str]:
        """The layers in order of their branches' shares."""
        names, strict = [b.layer.name for b in self.branches], [self.is_strict(b) for b in self.branches]
        report = ranked(names, self._shares.largest(), strict)
        return report, format_report(type(self).__name__, report)

    def own_levels(self) -> dict[str, dict[str, Any]]:
        """The shares."""
        return {b.layer.name: {"shares": self._shares.state(i)} for i, b in enumerate(self.branches)}

    def load_levels(self, layers: Mapping[str, dict[str, Any]]) -> None:
        self._shares.load([layers[b.layer.name]["shares"] for b in self.branches], self.branches[0].theta.device)


def sum_of_squares(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The sum of all squares, in float32 at least.

    Examples:
        >>> sum_of_squares([nn.Parameter(torch.tensor([3.0])), nn.Parameter(torch.tensor([[4.0]]))])
        tensor(25., grad_fn=<SumBackward0>)
    """
    wide = (p if p.dtype == torch.float64 else p.float() for p in parameters)
    squares = [p.square().sum() for p in wide]
    return torch.stack([s.to(squares[0].device) for s in squares]).sum() if squares else torch.zeros(())
