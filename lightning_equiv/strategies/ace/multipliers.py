"""The two steps of constrained optimisation on the levels of all layers: pure functions of vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

PERIODS = 10  # of the undamped oscillation in a run
FASTEST = 0.1  # radians of it in an optimizer step, at most
UNIT = 2.0  # damping c of a loss of the order of 1


@dataclass(frozen=True)
class Rates:
    """Step sizes.

    Attributes:
        gamma: eta_p.
        dual: eta_d.
        damping: c.
    """

    gamma: float
    dual: float
    damping: float


def make_rates(
    total: int,
    gamma_lr: float | None,
    dual_lr: float | None,
    damping: float | Literal["critical"],
    rho: float | None,
) -> Rates:
    """The step sizes of a run, with omega = sqrt(eta_p eta_d) the frequency of the undamped oscillation.

    Where they are not given, omega makes ten periods in the run, eta_p = omega / c and eta_d = omega c; of a resilient
    layer eta_p <= 1 / (2 rho), as a step on a penalty rho gamma^2 / 2 would need, and eta_d <= rho / 2. Critical is

        c = sqrt(eta_d / eta_p)                                   equality
        c = sqrt(eta_d / eta_p) - eta_d / (2 rho eta_p)           resilient, where lambda forgets by itself

    Args:
        total: optimizer steps of the run.
        gamma_lr: eta_p, if it is given.
        dual_lr: eta_d, if it is given.
        damping: c.
        rho: price of what is kept; None for an equality.

    Examples:
        >>> make_rates(10_000, None, None, "critical", None)
        Rates(gamma=0.0031415926535897933, dual=0.012566370614359173, damping=2.0)
    """
    omega = min(FASTEST, 2 * math.pi * PERIODS / total)
    unit = UNIT if damping == "critical" or damping == 0 else damping
    gamma = gamma_lr if gamma_lr is not None else omega / unit if dual_lr is None else omega**2 / dual_lr
    if gamma_lr is None and rho is not None:
        gamma = min(gamma, 1 / (2 * rho))
    dual = dual_lr if dual_lr is not None else omega**2 / gamma
    if dual_lr is None and rho is not None:
        dual = min(dual, rho / 2)
    forgets = 0.0 if rho is None else dual / (2 * rho * gamma)
    critical = max(0.0, math.sqrt(dual / gamma) - forgets)
    return Rates(gamma, dual, critical if damping == "critical" else damping)


def force(gamma: Tensor, lam: Tensor, damping: float, rho: float | None) -> Tensor:
    """What the constraint adds to the gradient of the loss by gamma.

        equality       lambda + 2 c gamma                                      of  lambda gamma + c gamma^2
        resilient      sign(gamma) [lambda + 2 c (|gamma| - u)]_+              u = lambda / rho

    Args:
        gamma: the levels.
        lam: the multipliers.
        damping: c.
        rho: price of what is kept; None for an equality.
    """
    if rho is None:
        return lam + 2 * damping * gamma
    return gamma.sign() * (lam + 2 * damping * (gamma.abs() - lam / rho)).clamp(min=0)


def dual_step(gamma: Tensor, lam: Tensor, gradient: Tensor, rates: Rates, rho: float | None) -> tuple[Tensor, Tensor]:
    """(gamma, lambda) after an optimizer step: gamma descends, then lambda ascends with the new gamma.

    Args:
        gamma: the levels.
        lam: the multipliers.
        gradient: of the loss by gamma.
        rates: step sizes.
        rho: price of what is kept; None for an equality.

    Examples:
        >>> dual_step(Tensor([1.0]), Tensor([0.0]), Tensor([0.0]), Rates(0.5, 0.25, 0.5), rho=None)
        (tensor([0.5000]), tensor([0.1250]))
    """
    gamma = gamma - rates.gamma * (gradient + force(gamma, lam, rates.damping, rho))
    if rho is None:
        return gamma, lam + rates.dual * gamma
    return gamma, (lam + rates.dual * (gamma.abs() - lam / rho)).clamp(min=0)
