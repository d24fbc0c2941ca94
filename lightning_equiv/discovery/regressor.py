"""A smooth function fitted to data, whose derivatives are looked at."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_equiv._random import DrawsFrom, derived_generator

_WIDTH, _STEPS = 32, 250
_INNER = 0.75  # share of the data, around their middle


def inner(x: Tensor) -> Tensor:
    """The inputs around the middle, by Mahalanobis' distance: at the rim of the data a fit's slopes are poor."""
    flat = x.flatten(1) - x.flatten(1).mean(0)
    distance = (flat @ torch.linalg.pinv(flat.T @ flat / len(x)) * flat).sum(1)
    return x[distance <= distance.quantile(_INNER)]


def fitted(x: Tensor, labels: Tensor, fits: int, seed: int) -> list[Callable[[Tensor], Tensor]]:
    """Networks (n, ..., d) -> labels' shape, each fitted to its own part of the data by L-BFGS.

    Args:
        x: (n, ..., d), float64.
        labels: (n, ...), or numbers of classes.
        fits: how many.
        seed: of parts and weights.
    """
    if labels.is_floating_point():
        y = labels.detach().double().reshape(len(x), -1)
    else:
        y = torch.nn.functional.one_hot(labels.reshape(len(x), -1)[:, 0].long()).double()
    mean, spread = y.mean(0), y.std(0).clamp_min(1e-12)
    part = torch.randperm(len(x), generator=derived_generator("parts", seed)) % fits
    scale = x.square().mean().sqrt()
    shape = labels.shape[1:] if labels.is_floating_point() else (y.shape[1],)

    def one(k: int) -> Callable[[Tensor], Tensor]:
        inputs, target = x[part == k].flatten(1) / scale, ((y - mean) / spread)[part == k]
        with DrawsFrom(derived_generator("weights", seed, k)), torch.enable_grad():
            network = nn.Sequential(
                nn.Linear(inputs.shape[1], _WIDTH), nn.Tanh(), nn.Linear(_WIDTH, _WIDTH), nn.Tanh(),
                nn.Linear(_WIDTH, target.shape[1]),
            ).double()  # fmt: skip
            optimizer = torch.optim.LBFGS(
                network.parameters(), max_iter=_STEPS, history_size=50, line_search_fn="strong_wolfe"
            )

            def closure() -> Tensor:
                optimizer.zero_grad()
                weights = torch.stack([p.square().sum() for p in network.parameters() if p.ndim > 1]).sum()
                loss = (network(inputs) - target).square().mean() + 1e-7 * weights
                loss.backward()
                return loss

            optimizer.step(closure)
        network.requires_grad_(False)

        def function(z: Tensor) -> Tensor:
            found: Tensor = network(z.flatten(1) / scale) * spread + mean
            return found.reshape(len(z), *shape)

        return function

    return [one(k) for k in range(fits)]
