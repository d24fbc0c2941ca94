"""A witness: a score that tells inputs as they are from moved ones, learned on one half of the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_equiv._random import DrawsFrom, derived_generator

Score = Callable[[Tensor], Tensor]  # (..., features) -> (...)
_RIDGES = (1e-3, 1e-2, 1e-1, 1.0)  # in units of the features' variances
_FOLDS = 5
_EPOCHS, _WIDTH, _BATCH = 20, 128, 128


@dataclass(frozen=True)
class Whitening:
    """How features vary along the orbits, of which only that counts: what nothing moves cannot tell.

    Attributes:
        scale: (features,) 1 / standard deviation along the orbits; 0 for what does not vary.
        values: (k,) eigenvalues of their correlations.
        vectors: (features, k) eigenvectors.
    """

    scale: Tensor
    values: Tensor
    vectors: Tensor

    def direction(self, shift: Tensor, ridge: float) -> Tensor:
        """w = (C + ridge)^-1 of a mean shift (..., features) from the orbits' means, with C along the orbits."""
        inside = (shift * self.scale) @ self.vectors / (self.values + ridge)
        return inside @ self.vectors.T * self.scale


def whitening(table: Tensor) -> Whitening:
    """Of orbits (units, copies, features)."""
    centred = table - table.mean(1, keepdim=True)
    variance = centred.square().mean((0, 1))
    level = variance.sqrt()
    size = table.square().mean((0, 1)).sqrt()
    scale = torch.where(level > 1e-9 * size, 1 / level.clamp_min(1e-300), 0.0)
    rows = (centred * scale).flatten(0, 1)
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    return Whitening(scale, values.clamp_min(0), vectors)


def shifts(table: Tensor) -> Tensor:
    """(units, features): from the mean of an orbit to the data."""
    return table[:, 0] - table.mean(1)


def chosen_ridge(table: Tensor, own: Whitening) -> float:
    """The ridge whose direction, fitted on four fifths, shifts the last fifth most, in its spread along the orbits."""
    d = shifts(table)
    fold = torch.arange(len(d)) % _FOLDS
    best, most = _RIDGES[-1], -torch.inf
    for ridge in _RIDGES:
        total = torch.tensor(0.0, dtype=d.dtype)
        for k in range(_FOLDS):
            w = own.direction(d[fold != k].mean(0), ridge)
            spread = ((w / own.scale.clamp_min(1e-300)).where(own.scale > 0, 0.0) @ own.vectors).square() @ own.values
            total += d[fold == k].mean(0) @ w / spread.sqrt().clamp_min(1e-300)
        if float(total) > most:
            best, most = ridge, float(total)
    return best


def ridge_witness(table: Tensor) -> tuple[Score, Tensor]:
    """The linear score that shifts most in its spread along the orbits, and its direction (features,).

    Args:
        table: (units, 1 + copies, features) of the half that trains it.
    """
    own = whitening(table)
    w = own.direction(shifts(table).mean(0), chosen_ridge(table, own))
    return lambda x: x @ w, w


def mlp_witness(table: Tensor, seed: int) -> Score:
    """A network of one hidden layer of 128 that tells the data from moved copies, fresh in each of 20 epochs.

    Args:
        table: (units, 1 + copies, features) of the half that trains it.
        seed: of weights and order.
    """
    generator = derived_generator("witness", seed)
    mean, spread = table.mean((0, 1)), table.std((0, 1))
    scale = torch.where(spread > 1e-9 * table.abs().mean((0, 1)), 1 / spread.clamp_min(1e-300), 0.0)
    with DrawsFrom(generator), torch.enable_grad():
        network = nn.Sequential(
            nn.Linear(table.shape[-1], _WIDTH, dtype=table.dtype), nn.SiLU(), nn.Linear(_WIDTH, 1, dtype=table.dtype)
        )
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
        for _ in range(_EPOCHS):
            order = torch.randperm(len(table), generator=generator)
            for rows in order.split(_BATCH):
                copy = torch.randint(1, table.shape[1], (len(rows),), generator=generator)
                x = (torch.stack([table[rows, 0], table[rows, copy]]) - mean) * scale
                margin = network(x)[..., 0]
                loss = nn.functional.softplus(-margin[0]).mean() + nn.functional.softplus(margin[1]).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    network.requires_grad_(False)
    return lambda x: network((x - mean) * scale)[..., 0]
