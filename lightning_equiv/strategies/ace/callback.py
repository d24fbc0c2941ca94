"""ACE: how far each layer is relaxed is learned under a constraint, and the multipliers say what symmetry costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor

from lightning_equiv._checks import check_number
from lightning_equiv.groups.group import Group
from lightning_equiv.layers.branch import Branch
from lightning_equiv.layers.choose import Layers
from lightning_equiv.layers.hidden_parameters import HiddenParameters
from lightning_equiv.layers.layer import LayerFamily
from lightning_equiv.strategies.ace.levels import Levels
from lightning_equiv.strategies.ace.multipliers import make_rates
from lightning_equiv.strategies.ace.report import format_report, ranked
from lightning_equiv.strategies.branch_callback import Evaluate
from lightning_equiv.strategies.instruments import Instruments
from lightning_equiv.strategies.invariants import check_that_something_moves
from lightning_equiv.strategies.keeping_callback import Report
from lightning_equiv.strategies.learned_level import LearnedLevelCallback, normalise
from lightning_equiv.symmetry.symmetry import Symmetry


class ACE(LearnedLevelCallback):
    r"""Approximately equivariant networks by constrained optimisation: a learned level per layer, and a multiplier.

        f_l(x) + gamma_l n_l(x)                            n_l normalised, gamma_l learned, from `init` on

        mode="equality"     min J   s.t.  gamma_l = 0                           strict at the end
            gamma  <- gamma - eta_p (dJ/dgamma + lambda + 2 c gamma)
            lambda <- lambda + eta_d gamma
        mode="resilient"    min J + (rho/2) |u|^2   s.t.  |gamma_l| <= u_l      keeps what is worth its price
            gamma  <- gamma - eta_p (dJ/dgamma + sign(gamma) [lambda + 2 c (|gamma| - u)]_+),    u = lambda / rho
            lambda <- [lambda + eta_d (|gamma| - u)]_+

    J is the task's loss, gamma on the right of lambda's step the new one. Both steps are made once an optimizer step;
    the user's optimizer trains the network and the branches n_l, by the task's loss alone. c damps the oscillation that
    the two steps are without it; it moves no fixed point.

    An equality ends at gamma = 0 with lambda_l = -dJ/dgamma_l: what the loss would fall by for each unit of the branch,
    the price of that layer's symmetry. Resilient ends where dJ/dgamma_l = -rho gamma_l, as a penalty (rho/2) |gamma|^2
    would; what is kept is a `RelaxedLayer` after `fit`, an ordinary module. The branches are normalised, so that
    neither number depends on how large a branch has grown.

    Logs `ace/gamma/LAYER`, `ace/lambda/LAYER` and `ace/constraint`, the largest |gamma|; at the end `report` lists the
    layers by |lambda|, is printed, and is written to `ace_report.json` in the logger's folder.

    Args:
        symmetry: the group (or its name), or a `Symmetry`: then evaluate="both" measures the relaxed network, too.
        layers: which layers, as for `ConstraintRelaxation`; how their features move need not be known.
        families: which of them are of which `LayerFamily`, as for `ConstraintRelaxation`.
        network: dotted name of the network that a `Symmetry` is of.
        mode: "equality" or "resilient".
        rho: price of what a resilient layer keeps, in units of the loss.
        dual_lr: eta_d; None makes ten periods of the undamped oscillation in the run, omega = sqrt(eta_p eta_d).
        gamma_lr: eta_p; None takes omega / c.
        init: gamma at the start.
        damping: c, in units of the loss; "critical" is the least that does not oscillate, 2 with the rates of None.
        end: part of the run after which an equality's gamma is 0.
        branch: "linear" (over its spectral norm; a convolution beside a convolution) or "mlp" (output of RMS 1).
        threshold: |gamma| under which a resilient layer is strict, in evaluation and at the end.
        evaluate: "projected", "relaxed" or "both"; None validates what is deployed, projected for an equality and
            relaxed for a resilient one.
        horizon: optimizer steps of the whole run, where the Trainer cannot know them.
        seed: of the branches' first weights.
        instruments: what is measured besides while training, to see why it helps or not: `Instruments`, or what they
            measure, such as "loss dead curvature"; None measures nothing.
        name: prefix of what is logged.

    Raises:
        ValueError: no layer matches; only layers from invariants to invariants, where a branch breaks no symmetry; an
            endless run.
        RuntimeError: an optimizer that does not hold the branches; manual optimisation; FSDP or DeepSpeed.

    Examples:
        >>> ace = ACE("SO(3)", layers="net.layers.*.update")
        >>> trainer = L.Trainer(callbacks=[ace], logger=False, enable_checkpointing=False)

    Reference:
        @inproceedings{manolache2025learning,
          title={Learning (Approximately) Equivariant Networks via Constrained Optimization},
          author={Manolache, Andrei and Chamon, Luiz F. O. and Niepert, Mathias},
          booktitle={Advances in Neural Information Processing Systems}, year={2025}, note={arXiv:2505.13631}}
    """

    ready_made = {"ACE": {}}  # noqa: RUF012 (never changed)

    def __init__(
        self,
        symmetry: Symmetry | Group | str,
        layers: Layers,
        network: str = "",
        *,
        families: Sequence[LayerFamily] = (),
        mode: Literal["equality", "resilient"] = "equality",
        rho: float = 1.0,
        dual_lr: float | None = None,
        gamma_lr: float | None = None,
        init: float = 1.0,
        damping: float | Literal["critical"] = "critical",
        end: float = 0.8,
        branch: Literal["linear", "mlp"] = "mlp",
        threshold: float = 1e-3,
        evaluate: Evaluate | None = None,
        horizon: int | None = None,
        seed: int = 0,
        instruments: Instruments | str | None = None,
        name: str = "ace",
    ) -> None:
        if mode not in ("equality", "resilient"):
            raise ValueError(f"expected mode to be 'equality' or 'resilient', got {mode!r}")
        equality = mode == "equality"
        super().__init__(
            layers,
            families=families,
            threshold=threshold,
            finalize="drop" if equality else "keep",
            dropping="mode='equality'",
            branch=branch,
            evaluate=evaluate or ("projected" if equality else "relaxed"),
            symmetry=symmetry,
            network=network,
            horizon=horizon,
            name=name,
            seed=seed,
            instruments=instruments,
        )
        check_number("rho", rho, above=0)
        check_number("dual_lr", dual_lr, above=0, optional=True)
        check_number("gamma_lr", gamma_lr, above=0, optional=True)
        check_number("init", init)
        check_number("end (part of the run)", end, above=0, most=1)
        if damping != "critical":
            if isinstance(damping, str):
                raise ValueError(f"expected damping to be 'critical' or a number, got {damping!r}")
            check_number("damping", damping, least=0)
        if not equality and dual_lr is not None and dual_lr > rho:
            raise ValueError(
                f"expected dual_lr of at most {rho=}, got {dual_lr!r}: lambda forgets the part dual_lr / rho of itself "
                "in a step; write a smaller dual_lr, or None"
            )
        if not equality and gamma_lr is not None and gamma_lr * rho >= 2:
            raise ValueError(
                f"expected gamma_lr below 2 / rho = {2 / rho:g}, got {gamma_lr!r}: gamma would leap over 0 for ever; "
                "write a smaller gamma_lr, or None"
            )
        self.mode, self.init, self.damping, self.end = mode, init, damping, end
        self.rho = None if equality else rho
        self.dual_lr, self.gamma_lr = dual_lr, gamma_lr

    # ---- what the branch strategy asks ---------------------------------------------------------------------------
    def add_modules(self, branches: list[Branch], container: HiddenParameters) -> Levels:
        """Normalise the branches; gamma and lambda for each."""
        check_that_something_moves([b.layer for b in branches], self.group, type(self).__name__)
        like, module = branches[0].theta, self._attached().module
        start = torch.full_like(like, self.init).expand(len(branches))
        levels = Levels(branches, start, torch.zeros_like(start))
        levels.set(levels.gamma, levels.lam)
        for i, b in enumerate(branches):
            normalise(b, container)
            b.level = levels.level(i, module)
            b.active = True
        return levels

    @property
    def _levels(self) -> Levels:
        levels: Levels = self._branches.extra
        return levels

    def begin_step(self, step: int, total: int) -> None:
        """The rates of this run; an equality's gamma is 0 from `end` of it on."""
        levels = self._levels
        levels.rates = make_rates(total, self.gamma_lr, self.dual_lr, self.damping, self.rho)
        if self.mode == "equality" and step >= self.end * total:
            levels.close()

    def update_levels(self) -> None:
        """gamma descends, lambda ascends."""
        self._levels.update(self.rho)

    def penalty(self, module: L.LightningModule) -> Tensor:
        """Nothing joins the loss, as what the constraint adds to the gradient is known; gamma and lambda are logged."""
        gamma, lam = self._levels.gamma.detach().clone(), self._levels.lam.clone()
        names = [b.layer.name for b in self.branches]
        values = {f"gamma/{name}": x for name, x in zip(names, gamma, strict=True)}
        values |= {f"lambda/{name}": x for name, x in zip(names, lam, strict=True)}
        self.log_values(module, {**values, "constraint": gamma.abs().max()}, batch_size=1)
        return gamma.new_zeros(())

    # ---- Lightning's hooks ---------------------------------------------------------------------------------------
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """gamma and lambda follow the module to its device."""
        super().on_fit_start(trainer, pl_module)
        self._levels.set(self._levels.gamma, self._levels.lam, pl_module.device)

    def on_before_zero_grad(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """gamma's gradient begins anew with all others."""
        self._levels.gamma.grad = None

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Note what a loss in float16 was multiplied with."""
        self._levels.scaler = scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._levels.scale = 1.0 if scaler is None else scaler.get_scale()

    # ---- checkpoints and the report ------------------------------------------------------------------------------
    def own_levels(self) -> dict[str, dict[str, Any]]:
        """gamma and lambda."""
        numbers = zip(self.branches, self._levels.gamma.tolist(), self._levels.lam.tolist(), strict=True)
        return {b.layer.name: {"gamma": gamma, "lambda": lam} for b, gamma, lam in numbers}

    def load_levels(self, layers: Mapping[str, dict[str, Any]]) -> None:
        names = [b.layer.name for b in self.branches]
        gamma, lam = (
            torch.tensor([layers[name][key] for name in names], dtype=torch.float64) for key in ("gamma", "lambda")
        )
        self._levels.set(gamma, lam)

    def make_report(self) -> tuple[Report, str]:
        """The layers in order of |lambda|."""
        report = ranked(self.branches, self._levels.lam, math.inf if self.rho is None else self.threshold)
        return report, format_report(type(self).__name__, report)
