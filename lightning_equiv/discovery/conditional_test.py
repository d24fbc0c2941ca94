"""T3 and T2: do labels turn along with inputs, and is an input's orientation of use to predict them?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_equiv._random import derived_generator
from lightning_equiv.discovery.candidates import Candidate
from lightning_equiv.discovery.canonical import numbers_of, orientations, turned_back
from lightning_equiv.discovery.kernel_ridge import kernel, leave_one_out, predicted, standardised
from lightning_equiv.discovery.moments import features, label_summary
from lightning_equiv.discovery.sample import Sample

MOST_INPUTS = 600
_MOST_NUMBERS = 60  # of an input, which are regressed on as they are
_FOLDS = 5
_FLIPS = 9999
_PREDICTED = 0.1  # share of the labels' variance that shapes must explain
_KNOWN = 0.25  # the orientation's variance given the shape, in that of any orientation, below which nothing is told


@dataclass(frozen=True)
class Turned:
    """Inputs and labels, turned back by the inputs' orientation, and the orientation.

    Attributes:
        shape: (n, a) what does not change when an input is moved.
        labels: (n, b) turned back.
        names: of the labels' numbers.
        orientation: (n, c) in numbers.
        moved: (n, c) another orientation, of the input moved by a Haar element.
        units: (n,) whose inputs belong together.
        exact: whether `shape` says all of the turned-back input.
    """

    shape: Tensor
    labels: Tensor
    names: list[str]
    orientation: Tensor
    moved: Tensor
    units: Tensor
    exact: bool


@dataclass(frozen=True)
class ConditionalTest:
    """What T3 says.

    Attributes:
        p: that turned-back labels do not depend on the orientation, given the shape; approximate, too small by a
            factor of about 2 at .05.
        share: of the variance of turned-back labels that the orientation explains beyond the shape.
        open: the orientation's variance given the shape, in that of Haar orientations; near 0 nothing can be tested.
        label: which number of the label reacts most.
        field: (3,) the direction in space to which labels are drawn; None where it is no rotation of space.
        used: inputs.
        predicted: share of the turned-back labels' variance that the shapes explain; near 0 nothing can be tested.
    """

    p: float
    share: float
    open: float
    label: str
    field: Tensor | None
    used: int
    predicted: float


@dataclass(frozen=True)
class TaskTest:
    """What T2 says.

    Attributes:
        p: one-sided, that the learner with the orientation is no better; of this pair of fitted learners.
        ratio: mean squared error with the orientation, in that with another input's; below 1 it is of use.
        low: lower bound of its 95 % interval.
        high: upper bound.
    """

    p: float
    ratio: float
    low: float
    high: float


def turn_back(sample: Sample, candidate: Candidate, classes: int | None, seed: int) -> Turned | None:
    """What T2 and T3 look at; None where the group gives no orientation, or there are no labels."""
    if sample.labels is None:
        return None
    c = orientations(sample, candidate, seed)
    if c is None:
        return None
    back = turned_back(sample, c)
    assert back.labels is not None
    group = candidate.group
    flat = [t.x.detach().double().reshape(len(t.x), -1) for t in back.call.inputs.tensors if not t.shared]
    exact = all(t.owner is None for t in back.call.inputs.tensors) and sum(x.shape[1] for x in flat) <= 256
    alone, _ = features(back.call.inputs, None, group)
    small = exact and sum(x.shape[1] for x in flat) <= _MOST_NUMBERS
    shape = torch.cat([*flat, alone] if small else flat if exact else [alone], 1)
    labels, names = label_summary(back.labels, back.call.inputs, group, classes)
    generator = derived_generator("noise", seed, candidate.name)
    moved = candidate.draw(sample.num_units, generator)[sample.units] @ c
    kept = torch.arange(min(MOST_INPUTS, sample.num_inputs))
    numbers = [numbers_of(candidate, g)[kept] for g in (c, moved)]
    return Turned(standardised(shape[kept]), labels[kept], names, numbers[0], numbers[1], sample.units[kept], exact)


def conditional_test(turned: Turned, candidate: Candidate, draws: int, seed: int) -> ConditionalTest:
    r"""T3, the generalised covariance measure of Shah and Peters: labels against orientations, given shapes.

        T = max_k sqrt(n) |mean P_ik| / sd P_ik,    P_i = (Y_i - E[Y | M_i]) (x) (Z_i - E[Z | M_i])

    with expectations by kernel ridge regression that leaves i out; p by Gaussian multipliers, one for each unit. The
    regressions are imperfect, and the level with them: at .05 it is about .1, so that .01 is the level to use.
    """
    gram = kernel(turned.shape, turned.shape)
    y, _ = leave_one_out(gram, turned.labels)
    z, _ = leave_one_out(gram, turned.orientation)
    anywhere = (turned.moved - turned.moved.mean(0)).square().sum().clamp_min(1e-300)
    open_ = float(z.square().sum() / anywhere)
    products = (y[:, :, None] * z[:, None]).flatten(1)
    n = len(products)
    statistic, centred = _studentised(products)
    generator = derived_generator("multipliers", seed, candidate.name)
    e = torch.randn(draws, int(turned.units.max()) + 1, generator=generator, dtype=y.dtype)[:, turned.units]
    drawn = (e @ centred).abs().amax(1) / math.sqrt(n)
    p = (1 + int((drawn >= statistic.max()).sum())) / (draws + 1)
    k = int(statistic.argmax())
    shares = [_explained(y[:, j : j + 1], z) for j in range(y.shape[1])]
    variance = turned.labels.var(0)
    total = variance.sum().clamp_min(1e-300)
    share = float(sum(s * float(v.square().mean()) for s, v in zip(shares, y.T, strict=True)) / total)
    field = _field(y, z, turned.names) if candidate.kind == "space" else None
    predicted = 1 - float(y.square().sum() / ((n - 1) * total))
    return ConditionalTest(p, max(0.0, share), open_, turned.names[k // z.shape[1]], field, n, predicted)


def told(test: ConditionalTest) -> bool:
    """Whether there is something to test: orbits in more than one pose, and labels that shapes predict in part.

    Where they predict nothing, as of clouds whose moments are mostly noise, orientations are noise too, and what a
    label has to do with them is no matter of symmetry.
    """
    return test.open > _KNOWN and test.predicted > _PREDICTED


def why_not_told(test: ConditionalTest) -> str:
    """In words, where nothing is told."""
    if test.open <= _KNOWN:
        return "each shape is seen in one pose only, so that nothing can tell whether labels turn along"
    return "what is known of the shapes says nothing of the labels, so that nothing can tell whether these turn along"


def _studentised(products: Tensor) -> tuple[Tensor, Tensor]:
    spread = products.std(0)
    kept = spread > 1e-9 * products.abs().amax().clamp_min(1e-300)
    centred = torch.where(kept, (products - products.mean(0)) / spread.clamp_min(1e-300), 0.0)
    statistic = math.sqrt(len(products)) * products.mean(0).abs() / spread.clamp_min(1e-300)
    return torch.where(kept, statistic, 0.0), centred


def _explained(y: Tensor, z: Tensor) -> float:
    """Share of the variance of y that is linear in z, less what chance explains."""
    n, k = z.shape
    fitted = z @ torch.linalg.lstsq(z, y, driver="gelsd").solution
    r = float(fitted.square().sum() / y.square().sum().clamp_min(1e-300))
    return max(0.0, 1 - (1 - r) * (n - 1) / max(1, n - k - 1))


def _field(y: Tensor, z: Tensor, names: list[str]) -> Tensor | None:
    """e_a = sum_b cov(Y_b, c_ab): a vector label that a field e pulls has c^T e among its turned-back numbers."""
    starts = [k for k in range(len(names) - 2) if names[k].endswith("x")]
    if not starts:
        return None
    matrix = z.unflatten(1, (3, 3))
    fields = torch.stack([torch.einsum("nb,nab->a", y[:, k : k + 3], matrix) for k in starts])
    sizes = torch.stack([y[:, k : k + 3].square().sum().sqrt() for k in starts])
    strongest = (fields.norm(dim=1) / sizes.clamp_min(1e-300)).argmax()
    return fields[strongest] / fields[strongest].norm().clamp_min(1e-300)


def task_test(turned: Turned, candidate: Candidate, seed: int) -> TaskTest:
    """T2 of Lawrence et al.: the same learner with the true orientation, and with another, drawn one."""
    unit = torch.randperm(int(turned.units.max()) + 1, generator=derived_generator("folds", seed, candidate.name))
    fold = unit[turned.units] % _FOLDS
    spread = turned.labels.std(0)
    y = turned.labels[:, spread > 0] / spread[spread > 0]
    losses = []
    for orientation in (turned.orientation, turned.moved):
        loss = torch.zeros(len(y), dtype=y.dtype)
        shape, pose = turned.shape, standardised(orientation)
        gram = kernel(shape, shape)
        if pose.shape[1]:
            gram = gram * (1 + pose @ pose.T / pose.shape[1]) / 2 + kernel(pose, pose) / 2
        for k in range(_FOLDS):
            held, rest = (fold == k).nonzero()[:, 0], (fold != k).nonzero()[:, 0]
            if len(held) and len(rest):
                guess = predicted(gram[rest][:, rest], gram[held][:, rest], y[rest])
                loss[held] = (guess - y[held]).square().sum(-1)
        losses.append(loss)
    with_it, without = losses
    gain = without - with_it
    generator = derived_generator("flips", seed, candidate.name)
    signs = 1 - 2.0 * torch.randint(2, (_FLIPS, int(turned.units.max()) + 1), generator=generator)
    drawn = signs[:, turned.units].double() @ gain
    p = (1 + int((drawn >= gain.sum()).sum())) / (_FLIPS + 1)
    ratio = float(with_it.sum() / without.sum().clamp_min(1e-300))
    influence = (with_it - ratio * without) / without.mean().clamp_min(1e-300)
    half = 1.96 * float(influence.std()) / math.sqrt(len(y))
    return TaskTest(p, ratio, ratio - half, ratio + half)
