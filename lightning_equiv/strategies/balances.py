"""How a second loss is weighed against the task's: a constant weight, or dual ascent to a tolerance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from lightning_equiv.groups.group import element_dtype
from lightning_equiv.wiring.ranks import mean_over_ranks


class Balance(ABC):
    """The weights alpha and beta of the task loss and of the equivariance loss.

    Attributes:
        weights: (2,) alpha and beta.
    """

    weights: Tensor

    @abstractmethod
    def update(self, losses: Tensor, size: Tensor | None = None) -> None:
        """Set the weights for the next batch.

        Args:
            losses: (2,) of this one, with their gradients.
            size: of what the second is relative to, squared.
        """

    def total(self, losses: Tensor) -> Tensor:
        """alpha L_task + beta L_equi."""
        self.weights = self.weights.to(losses.device)
        return (self.weights.to(losses.dtype) * losses).sum()

    def logged(self) -> dict[str, Tensor]:
        """What there is to log beside the losses."""
        return dict(zip(("task_weight", "equivariance_weight"), self.weights.unbind(), strict=True))

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {}

    def load(self, state: dict[str, Any]) -> None:  # noqa: B027 (constant weights have nothing to load)
        """Go on from `state()`."""


class ConstantBalance(Balance):
    """Alpha = 1, beta as it was set.

    Args:
        weight: beta.
    """

    def __init__(self, weight: float) -> None:
        self.weights = torch.tensor([1.0, weight])

    def update(self, losses: Tensor, size: Tensor | None = None) -> None:
        """Nothing changes."""


class DualBalance(Balance):
    r"""The task loss is minimised subject to a relative equivariance error of at most a tolerance.

        minimise L_task   subject to   e <= tolerance,     e^2 = |f(g x) - g f(x)|^2 / |f(x)|^2
        L = L_task + beta s / s_max e^2 / tolerance^2,    s = |f(x)|^2, smoothed, s_max the largest s so far
        e_s^2 <- (1 - smoothing) e_s^2 + smoothing e^2
        log beta <- log beta + rate clip( log( e_s / tolerance ), -1, 1 )

    No gradient goes through |f(x)|^2: a network would make e small by a large constant that no element moves and that
    the task does not see, such as one added to all logits. Without s / s_max a small f would then be drawn to 0 by a
    force that grows as it shrinks.

    beta >= 0 is the multiplier of the constraint, in units of the task loss. It ascends in its logarithm, so that one
    rate serves task losses of any size: beta may need to be a millionth or a hundred of them. It starts where the
    penalty is at most a hundredth of the task loss, so that a tight tolerance does not hold a network at its first
    weights, and stays between `least` and `most` of the first task losses.

    Args:
        tolerance: of e.
        most: largest beta, in units of the first task loss.
        what: e is, in words.
    """

    rate, smoothing = 0.03, 0.05
    start, least = 1e-3, 1e-6  # beta in units of the first task loss
    first_share = 0.01  # of it, which the penalty is at most in the first step
    first_steps = 10  # over which the first task loss is averaged

    def __init__(self, tolerance: float, most: float, what: str = "the relative equivariance error") -> None:
        self.tolerance, self.most, self.what = tolerance, most, what
        self.weights = torch.tensor([1.0, 0.0])
        # e_s^2 / tolerance^2, first task loss, log( beta / first task loss ), steps, task loss smoothed, s, s_max
        self.values = torch.zeros(7)

    def update(self, losses: Tensor, size: Tensor | None = None) -> None:
        """One step of dual ascent."""
        dtype = element_dtype(losses.device)
        size = torch.ones_like(losses[0]) if size is None else size
        seen = torch.stack([x.detach().to(losses.device, dtype) for x in (*losses, size)])
        task, error, size = mean_over_ranks(seen).unbind()  # error: e^2 / tolerance^2
        values = self.values.to(losses.device, dtype)
        square, scale, log_beta, steps, smooth, s, s_max = values.unbind()
        finite = torch.isfinite(task) & torch.isfinite(error) & torch.isfinite(size)
        first = steps < self.first_steps
        new_square = torch.where(steps == 0, error, square + self.smoothing * (error - square))
        new_scale = torch.where(first, scale + (task.abs() - scale) / (steps + 1), scale)
        log_start = (self.first_share / error).clamp_max(self.start).log()
        ascent = self.rate * (new_square.log() / 2).clamp(-1, 1)
        moved = (torch.where(steps == 0, log_start, log_beta) + ascent).clamp(
            torch.full_like(log_beta, self.least).log(), torch.full_like(log_beta, self.most).log()
        )
        smooth = torch.where(first, new_scale, smooth + self.smoothing * (task.abs() - smooth))
        s = torch.where(steps == 0, size, s + self.smoothing * (size - s))
        new = torch.stack([new_square, new_scale, moved, steps + 1, smooth, s, torch.maximum(s, s_max)])
        self.values = torch.where(finite, new, values)
        held = self.values[5] / self.values[6].clamp_min(torch.finfo(dtype).tiny)
        beta = self.values[2].exp() * self.values[1] * held
        self.weights = torch.stack([torch.ones_like(beta), torch.where(self.values[3] > 0, beta, 0.0)])

    @property
    def error(self) -> Tensor:
        """e_s, the smoothed relative error."""
        return self.values[0].sqrt() * self.tolerance

    def logged(self) -> dict[str, Tensor]:
        return {**super().logged(), "equivariance_error": self.error}

    def state(self) -> dict[str, Any]:
        return {"weights": self.weights, "values": self.values}

    def load(self, state: dict[str, Any]) -> None:
        self.weights, self.values = state["weights"], state["values"]

    def verdict(self) -> str:
        """What there is to say at the end of a training that did not reach its tolerance, or paid for it; else ""."""
        if not bool(self.values[3]):
            return ""
        error, share = float(self.error), float(self.values[2].exp())
        if error <= _REACHED * self.tolerance:
            task = float(self.values[4] / self.values[1].clamp_min(torch.finfo(self.values.dtype).tiny))
            if task < _NOT_FALLEN or self.values[3] < _SHORT:
                return ""
            return (
                f"{self.what} of {error:.3g} is within the tolerance of {self.tolerance:g}, and "
                f"the task loss is {task:.2g} of what it was in the first steps: the data may speak against the "
                "symmetry (a field, labels in another frame, a forgotten input). Look at lightning_equiv.audit(...), "
                "or raise the tolerance"
            )
        words = f"{self.what} is {error:.3g} at the end, above the tolerance of {self.tolerance:g}"
        if share >= 0.99 * self.most:
            return (
                f"{words}, with the largest weight that max_weight={self.most:g} allows: the data speak "
                "against the symmetry (a field, labels in another frame, a forgotten input), or the network cannot "
                "have it in so few steps. Look at lightning_equiv.audit(...), raise the tolerance, or train longer"
            )
        return (
            f"{words}, and the weight was still rising ({share:.2g} of the first task loss): train longer, or from a "
            "larger learning rate"
        )


_REACHED = 1.2  # times the tolerance
_NOT_FALLEN = 0.9  # of the first task loss: nothing was learned
_SHORT = 200  # steps, in which it need not have been
