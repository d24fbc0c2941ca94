"""Which permutation of hidden neurons brings a free layer nearest to an equivariant one.

For one orbit of neurons, W (n, n) with a row each, and the orthogonal projection P onto the layers that are wanted:

    pi* = argmax_pi |P(W_pi)|^2 = argmin_pi |W_pi - P(W_pi)|^2          W_pi: the rows of W permuted
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment


def project(W: np.ndarray) -> tuple[float, float]:
    """(alpha, beta) of alpha I + beta 11^T, the map nearest to W (n, n) that commutes with all permutations."""
    n, t, s = len(W), np.trace(W), W.sum()
    diagonal, other = t / n, (s - t) / (n * (n - 1))
    return diagonal - other, other


def project_circulant(W: np.ndarray) -> np.ndarray:
    """First row u of the circulant matrix, W[i, j] = u[j - i], that is nearest to W (n, n)."""
    return np.mean([np.roll(row, -i) for i, row in enumerate(W)], axis=0)


def relabel(W: np.ndarray) -> np.ndarray:
    """The permutation pi for which W[pi] is nearest to a map that commutes with all permutations: exact.

    |P(W)|^2 = t^2 / n + (s - t)^2 / (n (n - 1)) is convex in the trace t, and permuting rows leaves the sum s: the
    optimum has the largest or the smallest trace, two linear assignment problems.
    """
    n, s = len(W), W.sum()

    def size(pi: np.ndarray) -> float:
        t = np.trace(W[pi])
        return t**2 / n + (s - t) ** 2 / (n * (n - 1))

    # Column j of the solution of the transpose is the row that goes to place j.
    return max((linear_sum_assignment(W.T, maximize=m)[1] for m in (True, False)), key=size)


def relabel_circulant(W: np.ndarray) -> np.ndarray:
    """The permutation for which W[pi] is nearest to a circulant matrix: assignments in turns, from n + 1 starts.

    For a first row u the best places are a linear assignment, for given places the best u is the mean of the rows
    shifted back: each lowers the distance. Starts: the places as they are, and each row as u. Not exact.
    """
    best: tuple[float, np.ndarray] | None = None
    for u in (project_circulant(W), *W):
        seen = -1.0
        while True:
            shifted = np.stack([np.roll(u, i) for i in range(len(W))])
            pi = linear_sum_assignment(shifted @ W.T, maximize=True)[1]
            u = project_circulant(W[pi])
            if u @ u <= seen + 1e-12:
                break
            seen = u @ u
        if best is None or seen > best[0]:
            best = seen, pi
    assert best is not None
    return best[1]


def assign_orbits(neurons: np.ndarray, orbits: int, starts: int = 6, seed: int = 0) -> tuple[np.ndarray, float]:
    """Which neuron is which row of which orbit, free across orbits, for all permutations of n inputs.

    Args:
        neurons: incoming weights, bias and outgoing weight of each, (orbits * n, n + 2).
        orbits: how many, of n neurons each.
        starts: beside the orbits as they are; in each, random neurons say what the orbits look like.
        seed: of these.

    Returns:
        The order (orbits * n,) in which the neurons stand orbit by orbit, row by row, and the squared distance to the
        nearest network of such orbits: assignments and means in turns, as in k-means, the best of all starts.
    """
    n = neurons.shape[1] - 2
    random = np.random.default_rng(seed)
    as_they_are = np.concatenate([k * n + relabel(neurons[k * n : (k + 1) * n, :n]) for k in range(orbits)])
    best = as_they_are, distance(neurons[as_they_are], n)
    for start in range(starts + 1):
        if start == 0:
            rows = orbit_rows(neurons[as_they_are], n)
        else:
            rows = np.concatenate([like(neurons[i], n) for i in random.choice(len(neurons), orbits, replace=False)])
        previous, kept = np.inf, as_they_are
        for _ in range(50):
            cost = ((rows[:, None] - neurons[None]) ** 2).sum(-1)
            order = linear_sum_assignment(cost)[1]
            now = distance(neurons[order], n)
            if now >= previous - 1e-9:
                break
            previous, kept, rows = now, order, orbit_rows(neurons[order], n)
        if previous < best[1] - 1e-9:
            best = kept, previous
    return best


def like(neuron: np.ndarray, n: int) -> np.ndarray:
    """The orbit (n, n + 2) that has this neuron as a row: its weight that stands out most is the diagonal's."""
    w = neuron[:n]
    at = np.abs(w - np.median(w)).argmax()
    other = (w.sum() - w[at]) / (n - 1)
    rows = np.tile(np.concatenate([np.full(n, other), neuron[n:]]), (n, 1))
    rows[np.arange(n), np.arange(n)] = w[at]
    return rows


def orbit_rows(neurons: np.ndarray, n: int) -> np.ndarray:
    """The nearest neurons that are whole orbits, of neurons in order."""
    out = []
    for orbit in neurons.reshape(-1, n, n + 2):
        alpha, beta = project(orbit[:, :n])
        tail = np.tile(orbit[:, n:].mean(0), (n, 1))
        out.append(np.concatenate([alpha * np.eye(n) + beta, tail], axis=1))
    return np.concatenate(out)


def distance(neurons: np.ndarray, n: int) -> float:
    return float(((neurons - orbit_rows(neurons, n)) ** 2).sum())
