"""GradNorm: loss weights that make all tasks learn at one rate."""

from __future__ import annotations

import torch
from torch import Tensor


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
