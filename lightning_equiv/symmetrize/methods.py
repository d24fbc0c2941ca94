"""Which elements a symmetrized network is run on: the whole group, frames of the input, a canonical pose."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_equiv.groups.group import Group, GroupElement, element_dtype
from lightning_equiv.groups.product import as_group
from lightning_equiv.symmetrize.canonical import (
    Canonicaliser,
    Moments,
    OptimisedCanonicaliser,
    check_canonicaliser,
    elements_of,
)
from lightning_equiv.symmetrize.fold import Chosen
from lightning_equiv.symmetrize.frames import pair_frames, pca_frames
from lightning_equiv.symmetrize.points import Points, centring, find_points
from lightning_equiv.symmetrize.rules import Rule, rule_of
from lightning_equiv.symmetry.call import BoundCall
from lightning_equiv.symmetry.symmetry import Symmetry


class Method(nn.Module):
    """Chooses elements for each input of a call.

    Attributes:
        draws: whether its elements are drawn, so that a compiled or exported program cannot hold them.
    """

    draws: bool = False

    @abstractmethod
    def choose(self, call: BoundCall, generator: Callable[[], torch.Generator]) -> Chosen:
        """Elements and weights; the generator is made where it is needed."""


class Average(Method):
    """All elements of a rule, the same for every input; or draws for each.

    Args:
        symmetry: of the network.
        rule: see `rule_of`; None where nothing is left of the group but its translations.
        centre: the points whose centre translations are measured from; None for a compact group.
        randomise: turn the rule by one Haar element for each input.
    """

    weights: Tensor

    def __init__(self, symmetry: Symmetry, rule: Rule | int | None, centre: Points | None, randomise: bool) -> None:
        super().__init__()
        self.symmetry, self.centre, self.randomise = symmetry, centre, randomise
        self.set_rule(rule)

    def set_rule(self, rule: Rule | int | None) -> None:
        """Take another rule."""
        self.rule = rule
        self.draws = self.randomise or isinstance(rule, int)
        self._names = []
        if isinstance(rule, Rule):
            tensors = {f"coordinates_{i}": c for i, c in enumerate(rule.elements.coordinates)}
            device = self.weights.device if "weights" in self._buffers else None
            for name, x in {**tensors, "weights": rule.weights}.items():
                self.register_buffer(name, x.to(device), persistent=False)
            self._names = list(tensors)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> nn.Module:
        """Move to a device; elements keep their precision, whatever the network's becomes."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if isinstance(self.rule, Rule):
            exact = dict(zip(self._names, self.rule.elements.coordinates, strict=True)) | {"weights": self.rule.weights}
            for name, x in exact.items():
                device = self._buffers[name].device  # type: ignore[union-attr]
                if device.type != "meta":
                    dtype = element_dtype(device) if x.is_floating_point() else x.dtype
                    self._buffers[name] = x.to(device, dtype)
        return self

    @property
    def num_calls(self) -> int:
        """K."""
        return 1 if self.rule is None else self.rule if isinstance(self.rule, int) else len(self.rule.weights)

    def choose(self, call: BoundCall, generator: Callable[[], torch.Generator]) -> Chosen:
        n, group = call.num_inputs, as_group(self.symmetry.group)
        centre = None if self.centre is None else self.centre.cloud(call).centroid()
        device, linear = call.device, group.linear_part
        if self.rule is None or linear is None:
            assert centre is not None
            return Chosen(group.shift(-centre), torch.ones_like(centre[:, :1]).T)
        if isinstance(self.rule, int):
            g = linear.sample(self.rule * n, generator=generator(), device=device)
            weights = torch.full((self.rule, n), 1 / self.rule, dtype=element_dtype(device), device=device)
            return Chosen(centring(g, self.symmetry, centre, self.rule), weights)
        coordinates = tuple(getattr(self, name).to(device).repeat_interleave(n, 0) for name in self._names)
        g = GroupElement(linear, coordinates)
        if self.randomise:
            g = g @ linear.sample(n, generator=generator(), device=device).repeat(self.num_calls)
        weights = self.weights.to(device)[:, None].expand(-1, n)
        return Chosen(centring(g, self.symmetry, centre, self.num_calls), weights)


class Frame(Method):
    """The elements that bring the input's own axes to the coordinate axes.

    Args:
        symmetry: of the network.
        points: which input has the axes.
        weighted: pairs of points with weights, in the place of principal axes.
        tolerance: below which an input has no frame.
        power: of the weights.
        most: pairs.
    """

    def __init__(
        self, symmetry: Symmetry, points: Points, weighted: bool, tolerance: float, power: float, most: int | None
    ) -> None:
        super().__init__()
        self.symmetry, self.points, self.weighted = symmetry, points, weighted
        self.tolerance, self.power, self.most = tolerance, power, most
        self.reflections = reflects(as_group(symmetry.group))

    def choose(self, call: BoundCall, generator: Callable[[], torch.Generator]) -> Chosen:
        cloud, group = self.points.cloud(call), as_group(self.symmetry.group)
        translated = group.translation_dim is not None
        centre = cloud.centroid() if translated else None
        cloud = cloud.centred() if self.points.shifted else cloud
        if self.weighted:
            frames, weights, flagged = pair_frames(cloud, self.reflections, self.tolerance, self.power, self.most)
        else:
            frames, flagged = pca_frames(cloud, self.reflections, self.tolerance)
            weights = torch.full_like(frames[..., 0, 0], 1 / len(frames))
        linear = GroupElement(cast("Group", group.linear_part), (frames.mT.flatten(0, 1),))
        return Chosen(centring(linear, self.symmetry, centre, len(frames)), weights, flagged)


class Canonical(Method):
    """The one element that brings the input to its canonical pose, c(x)^-1.

    Args:
        symmetry: of the network.
        canonicaliser: c.
        centre: the points whose centre translations are measured from; None where c has translations, or none are.
    """

    def __init__(self, symmetry: Symmetry, canonicaliser: Canonicaliser, centre: Points | None) -> None:
        super().__init__()
        self.symmetry, self.centre = symmetry, centre
        self._canonicaliser = [canonicaliser]  # a module among them is registered by the symmetrized network itself
        self._checked = False

    @property
    def canonicaliser(self) -> Canonicaliser:
        """C."""
        return self._canonicaliser[0]

    def choose(self, call: BoundCall, generator: Callable[[], torch.Generator]) -> Chosen:
        if not (self._checked or torch.compiler.is_compiling()):
            check_canonicaliser(self.canonicaliser, self.symmetry, call)
            self._checked = True
        n, c = call.num_inputs, self.canonicaliser
        args, kwargs = call.arguments()
        if self.training and isinstance(c, OptimisedCanonicaliser):  # straight through to the scores
            elements, probabilities = c.candidates(*args, **kwargs)
            hard = nn.functional.one_hot(probabilities.argmax(0), len(probabilities)).T.to(probabilities)
            return self._centred(elements.inverse(), hard + probabilities - probabilities.detach(), call)
        pose = elements_of(c(*args, **kwargs), self.symmetry, n)
        ones = torch.ones(1, n, dtype=element_dtype(pose.device), device=pose.device)
        return self._centred(pose.inverse(), ones, call)

    def _centred(self, g: GroupElement, weights: Tensor, call: BoundCall) -> Chosen:
        group = as_group(self.symmetry.group)
        if g.group == group:
            return Chosen(g, weights)
        if self.centre is None:
            raise ValueError(f"the canonicaliser gives elements of {g.group}, expected {group}: or write points=...")
        return Chosen(centring(g, self.symmetry, self.centre.cloud(call).centroid(), len(weights)), weights)


def reflects(group: Group) -> bool:
    """Whether the group has reflections."""
    linear = group.linear_part
    return linear is not None and len(linear.generators()) > 0


def make_method(
    method: str | Callable[..., Any],
    network: Callable[..., Any],
    symmetry: Symmetry,
    rule: dict[str, Any],
    points: str | int | None,
    randomise: bool,
    frames: dict[str, Any],
) -> tuple[Method, Average | None]:
    """The method of that name, and the average to which inputs without a frame fall back.

    Raises:
        ValueError: an unknown name, or a group or an input that it does not fit.
    """
    group = as_group(symmetry.group)
    names = ("average", "frame", "weighted_frame", "canonical")
    if not callable(method) and method not in names:
        raise ValueError(
            f"expected method to be one of {names} or a callable x -> element of the group, got {method!r}"
        )
    centre = None
    if not group.compact and not isinstance(method, nn.Module):
        why = f"{group} is not compact, its translations have no mean and are taken out by centring, which"
        centre = find_points(symmetry, points, why)
    elif not group.compact and points is not None:
        centre = find_points(symmetry, points, f"centring under {group}")
    linear = group.linear_part

    def average() -> Average:
        return Average(symmetry, None if linear is None else rule_of(linear, **rule), centre, randomise)

    if method == "average":
        return average(), None
    if callable(method) or method == "canonical":
        if method == "canonical":
            held = find_points(symmetry, points, "the built-in canonical pose")
            _check_oriented(group, "the built-in canonical pose")
            method = Moments(held, reflects(group), symmetry, network)
        return Canonical(symmetry, cast("Canonicaliser", method), centre), None
    held = find_points(symmetry, points, f"method={method!r}")
    _check_oriented(group, f"method={method!r}")
    return Frame(symmetry, held, method == "weighted_frame", **frames), average()


def _check_oriented(group: Group, why: str) -> None:
    """ValueError unless the group's linear part is SO(2), SO(3) or O(3)."""
    linear = group.linear_part
    if linear is None or linear.order is not None or linear.dim not in (1, 3) or len(linear.identity().coordinates) > 1:
        raise ValueError(f"{why} is for SO(2), SO(3), O(3), SE(3) and E(3), not for {group}: take method='average'")
