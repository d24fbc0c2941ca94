"""GradNorm: loss weights that make all tasks learn at one rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_equiv.strategies.balances import Balance
from lightning_equiv.wiring.ranks import mean_over_ranks


def gradnorm_weights(
    weights: Tensor,
    losses: Tensor,
    first_losses: Tensor,
    gradient_norms: Tensor,
    *,
    gamma: float = 1.5,
    lr: float = 0.025,
    smallest: float = 1e-3,
) -> Tensor:
    r"""Weights after one step of GradNorm.

        G_i = w_i |grad_W L_i|      r_i = (L_i / L_i(0)) / mean_j (L_j / L_j(0))
        one gradient step on w of   sum_i | G_i - mean(G) r_i^gamma |     the second term held constant
        then  w_i <- max(w_i, smallest),  rescaled to sum to the number of tasks

    dG_i/dw_i = |grad_W L_i| in closed form, so nothing is differentiated twice and nothing leaks into the network's
    gradients.

    Args:
        weights: (tasks,) w.
        losses: (tasks,) L.
        first_losses: (tasks,) L(0), of the first step.
        gradient_norms: (tasks,) |grad_W L_i|, of the unweighted losses with respect to the shared weights W.
        gamma: strength of the pull to one learning rate.
        lr: step on w.
        smallest: least weight before the rescaling.

    Returns:
        (tasks,) new weights, which sum to the number of tasks.

    Reference:
        Chen, Badrinarayanan, Lee, Rabinovich. GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
        Multitask Networks. ICML 2018, arXiv 1711.02257.
    """
    tiny = torch.finfo(losses.dtype).tiny
    progress = losses / first_losses.clamp_min(tiny)
    rate = progress / progress.mean().clamp_min(tiny)
    norms = weights * gradient_norms
    goal = norms.mean() * rate**gamma
    weights = weights - lr * torch.sign(norms - goal) * gradient_norms
    weights = weights.clamp_min(smallest)
    return weights * (len(weights) / weights.sum())


class GradNormBalance(Balance):
    """Both tasks learn at one rate, see `gradnorm_weights`; alpha + beta = 2.

    Args:
        weight: beta / alpha to start from.
        shared: the weights of the network at which GradNorm looks.
        gamma: strength of the pull.
        lr: step on the weights.
    """

    def __init__(self, weight: float, shared: Tensor, gamma: float, lr: float) -> None:
        self.weights = torch.tensor([1.0, weight]) * 2 / (1 + weight)
        self.shared, self.gamma, self.lr = shared, gamma, lr
        self.first_losses: Tensor | None = None

    def update(self, losses: Tensor, size: Tensor | None = None) -> None:
        """One step of GradNorm."""
        gradients = [torch.autograd.grad(loss, self.shared, retain_graph=True, allow_unused=True)[0] for loss in losses]
        if gradients[1] is None:
            raise RuntimeError(
                "balance='gradnorm' finds no gradient of the equivariance loss at the weights it looks at, of shape "
                f"{tuple(self.shared.shape)}: expected weights that the network uses, write last_layer='...'; inside "
                "torch.utils.checkpoint.checkpoint write use_reentrant=False"
            )
        flat = torch.stack([torch.zeros_like(self.shared) if g is None else g for g in gradients]).flatten(1).float()
        values = mean_over_ranks(torch.cat([flat, losses.detach().float()[:, None]], dim=1))
        gradient_norms, values = values[:, :-1].norm(dim=1), values[:, -1]
        finite = torch.isfinite(values).all() & torch.isfinite(gradient_norms).all()
        if self.first_losses is None:
            if not bool(finite):
                return
            self.first_losses = values
        first = self.first_losses.to(values.device)
        weights = gradnorm_weights(self.weights, values, first, gradient_norms, gamma=self.gamma, lr=self.lr)
        self.weights = torch.where(finite & torch.isfinite(weights).all(), weights, self.weights)

    def state(self) -> dict[str, Any]:
        return {"weights": self.weights, "first_losses": self.first_losses}

    def load(self, state: dict[str, Any]) -> None:
        self.weights, self.first_losses = state["weights"], state["first_losses"]
