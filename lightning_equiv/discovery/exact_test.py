"""T1: is a law unchanged by a group? An exact test by copies that the group has moved, with a learned witness."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.stats import beta
from torch import Tensor

from lightning_equiv._random import derived_generator
from lightning_equiv.discovery.witness import Score, mlp_witness, ridge_witness

_TIES = 1e-12  # of the spread of a statistic


@dataclass(frozen=True)
class ExactTest:
    """What the test of one law says.

    Attributes:
        p: of the hypothesis that the group leaves the law as it is; exact.
        auc: how well the witness tells an input from a moved one, 1/2 not at all, 1 always; by pairs.
        low: lower bound of its 95 % interval.
        high: upper bound.
        variation: lower 97.5 % bound of the total variation between the law and the moved one.
        tested: independent units in the half that was tested.
        direction: (features,) of a linear witness.
    """

    p: float
    auc: float
    low: float
    high: float
    variation: float
    tested: int
    direction: Tensor | None = None


def halves(units: int, seed: int) -> tuple[Tensor, Tensor]:
    """Which units train the witness, and which are tested."""
    order = torch.randperm(units, generator=derived_generator("halves", seed))
    return order[: units // 2].sort().values, order[units // 2 :].sort().values


def exact_test(table: Tensor, *, witness: str, draws: int, seed: int, key: str = "") -> ExactTest:
    r"""The exact test of Chiu and Bloem-Reddy with a witness that half of the data train.

        T_0 = mean s(x_i),    T_b = mean s(y_bi),    p = (1 + #{T_b >= T_0}) / (draws + 1)

    with y_bi drawn from x_i and its copies, all alike. Where the group leaves the law as it is, an input and its copies
    are exchangeable whatever the witness s and however few there are, so that p is uniform. Ties are broken at random.

    Args:
        table: (units, 1 + copies, features), the data first.
        witness: "features" for a linear score, "mlp" for a network.
        draws: how many T_b.
        seed: of halves, witness and draws.
        key: tells apart tests with one seed.
    """
    train, tested = halves(len(table), seed)
    direction = None
    score: Score
    if witness == "mlp":
        score = mlp_witness(table[train], seed)
    else:
        score, direction = ridge_witness(table[train])
    scores = score(table[tested])  # (units, 1 + copies)
    generator = derived_generator("draws", seed, key)
    p = permutation_p(scores, draws, generator)
    margin = scores - scores.mean(1, keepdim=True)
    auc, spread = paired_auc(margin)
    own = score(table[train])
    threshold = float((own - own.mean(1, keepdim=True))[:, 0].mean() / 2)
    variation = variation_bound(margin, threshold, generator)
    low, high = max(0.0, auc - 1.96 * spread), min(1.0, auc + 1.96 * spread)
    return ExactTest(p, auc, low, high, variation, len(tested), direction)


def permutation_p(scores: Tensor, draws: int, generator: torch.Generator) -> float:
    """p of scores (units, 1 + copies) whose first column is the data's."""
    units, columns = scores.shape
    observed = float(scores[:, 0].mean())
    rows, drawn = torch.arange(units), []
    for start in range(0, draws, 256):
        pick = torch.randint(columns, (min(256, draws - start), units), generator=generator)
        drawn.append(scores[rows, pick].mean(1))
    found = torch.cat(drawn)
    same = _TIES * max(float(scores.abs().amax()), 1e-300)
    above, ties = int((found > observed + same).sum()), int(((found - observed).abs() <= same).sum())
    place = int(torch.randint(ties + 1, (1,), generator=generator))
    return (1 + above + place) / (draws + 1)


def paired_auc(margin: Tensor) -> tuple[float, float]:
    """P( s(x) > s(g x') ) over all pairs of units, and its standard error with units as the independent things.

    Args:
        margin: (units, 1 + copies), the data first.
    """
    data, moved = margin[:, 0].contiguous(), margin[:, 1:].flatten()
    ordered = moved.sort().values
    below = torch.searchsorted(ordered, data).double()
    upto = torch.searchsorted(ordered, data, right=True).double()
    of_data = (below + upto) / 2 / len(ordered)
    values = data.sort().values
    above = len(values) - torch.searchsorted(values, margin[:, 1:].contiguous(), right=True).double()
    from_on = len(values) - torch.searchsorted(values, margin[:, 1:].contiguous()).double()
    of_moved = ((above + from_on) / 2 / len(values)).mean(1)
    spread = (of_data + of_moved).std() / math.sqrt(len(data))
    return float(of_data.mean()), float(spread)


def variation_bound(margin: Tensor, threshold: float, generator: torch.Generator) -> float:
    """max(0, 2 a - 1), a the lower Clopper-Pearson bound of how often a coin's choice of x or g x is guessed."""
    n, columns = margin.shape
    coin = torch.randint(2, (n,), generator=generator)
    copy = torch.randint(1, columns, (n,), generator=generator)
    shown = torch.where(coin == 1, margin[:, 0], margin[torch.arange(n), copy])
    right = int(((shown > threshold) == (coin == 1)).sum())
    return max(0.0, 2 * float(beta.ppf(0.025, right, n - right + 1)) - 1) if right else 0.0


def holm(values: list[float]) -> list[float]:
    """p-values corrected for their number, as Holm does.

    Examples:
        >>> holm([0.01, 0.5, 0.02])
        [0.03, 0.5, 0.04]
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    found, most = list(values), 0.0
    for place, i in enumerate(order):
        most = max(most, min(1.0, values[i] * (len(values) - place)))
        found[i] = most
    return found
