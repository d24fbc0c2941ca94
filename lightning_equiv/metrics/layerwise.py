"""Which layers make a network's distance from a symmetry: the Lie derivative of the whole, divided among layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_equiv._checks import check_number
from lightning_equiv.groups.group import AlgebraElement, GroupElement
from lightning_equiv.layers.choose import Layers
from lightning_equiv.layers.layer import LayerFamily
from lightning_equiv.metrics.layerwise_sums import layerwise_sums
from lightning_equiv.metrics.plots import draw_layers, layers_height, new_axes
from lightning_equiv.metrics.symmetry_metric import SymmetryMetric
from lightning_equiv.symmetry.symmetry import Symmetry
from lightning_equiv.wiring.ranks import gathered


@dataclass(frozen=True, eq=False)
class LayerwiseErrors:
    r"""Whose work a network's distance from a symmetry is; L scalars a layer, in the order of `layers`.

    Attributes:
        layers: dotted names of the L layers.
        own: sqrt( mean |f_i(g h) - g f_i(h)|^2 / mean |f_i(h)|^2 ), each layer by itself; 0: equivariant.
        makes: c_i = mean_x sum_A |J_{>i} L f_i|^2 >= 0, what a layer's defect is at the output.
        ends_up: s_i = mean_x sum_A <J_{>i} L f_i, L f> / total, its share of what is there in the end; negative: it
            repairs what others do. The s_i and the share of what is no layer's sum to 1. All 0 where there is nothing
            to share.
        remainder: sqrt( mean_x sum_A |L f - sum_i J_{>i} L f_i|^2 / total ), what no chosen layer accounts for; 0: the
            layers are the whole story, or there is nothing to share.
        total: mean_x sum_A |L f|^2 of the network.
        nothing_to_share: whether `total` is no more than rounding: the network is equivariant, even where its layers
            are not and cancel.
    """

    layers: tuple[str, ...]
    own: Tensor
    makes: Tensor
    ends_up: Tensor
    remainder: Tensor
    total: Tensor
    nothing_to_share: bool

    def as_dict(self) -> dict[str, Tensor]:
        """One scalar for each name: "own/encoder", "makes/encoder", "ends_up/encoder", "remainder", "total"."""
        each = {
            f"{figure}/{layer}": getattr(self, figure)[i]
            for figure in ("own", "makes", "ends_up")
            for i, layer in enumerate(self.layers)
        }
        return {**each, "remainder": self.remainder, "total": self.total}

    def __str__(self) -> str:
        """A table with a line for each layer."""
        width = max(map(len, (*self.layers, "remainder")))
        lines = [f"{'layer':{width}}  own       makes     ends up"]
        for i, layer in enumerate(self.layers):
            figures = self.own[i], self.makes[i], self.ends_up[i]
            lines.append(f"{layer:{width}}  {figures[0]:.2e}  {figures[1]:.2e}  {figures[2]:+.3f}")
        last = "nothing to share" if self.nothing_to_share else f"remainder {self.remainder:.3f}"
        return "\n".join([*lines, f"total {self.total:.2e}, {last}"])


def layerwise_error(
    network: nn.Module,
    args: Any,
    symmetry: Symmetry,
    layers: Layers,
    *,
    families: Sequence[LayerFamily] = (),
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int | None = 8,
    elements: GroupElement | None = None,
    algebra: AlgebraElement | None = None,
    finite: bool = False,
    num_probes: int | None = 100,
    generator: torch.Generator | None = None,
    needs_grad: bool = False,
) -> LayerwiseErrors:
    r"""How far each layer of a network is from equivariant, and how much of that arrives at the network's output.

    With the Lie derivative L f = d/dt rho_out(e^{-tA}) f(rho_in(e^{tA}) x) at t = 0 = J_f A x - A f(x), the features h
    that layer f_i meets, and J_{>i} the Jacobian of the network's output with respect to f_i's:

        L f_i = J_{f_i} A h - A f_i(h)                     the layer's own defect
        L f   = sum_i J_{>i} L f_i + remainder             the product rule, along every path through the network
        c_i   = mean_x sum_A |J_{>i} L f_i|^2              what the layer makes
        s_i   = mean_x sum_A <J_{>i} L f_i, L f> / mean_x sum_A |L f|^2      what of it ends up in the error

    A runs over a basis of the Lie algebra. The sum holds for any network in which chosen layers are connected by
    equivariant operations: chains, residual networks, layers inside of others. A layer that is called several times is
    one term, the sum of its calls. Where a layer takes several tensors, h is the first floating point one, and the
    others bring the derivative with which they arrive, as if all chosen layers before were equivariant. What is neither
    a chosen layer nor equivariant is the remainder.

    All L f_i come from one pass along A in which the derivative of every layer's input is set to A h and that of its
    output to A f_i(h). Then J_{>i} L f_i is one directional derivative for each layer and A; where these would be more
    than `num_probes`, c_i = mean E (z . J_{>i} L f_i)^2 is estimated from probes z ~ N(0, I), with a relative standard
    deviation of sqrt(2 / num_probes) at most, and s_i is one backward pass from L f for each A.

    A finite group has no algebra. For it, and with `finite`, d_i = f_i(g h) - g f_i(h) takes the place of L f_i, and of
    J_{>i} L f_i the difference that it makes at the output of f(g x) where all layers before f_i are put right:
    f(g x) - g f(x) is the sum of these, mean_g takes the place of sum_A, and the cost is two passes for each layer and
    g. The derivative sees only what is connected to the identity: of O(3) no reflections.

    Args:
        network: f, a module, measured in evaluation mode and put back.
        args: a tuple of the call's positional arguments, or the only argument.
        symmetry: says how a group element moves inputs and outputs.
        layers: which layers, see `layers.choose.find_layers`: a glob, a type, a predicate, a list of these, or a dict
            {glob: (input representation, output representation)}, for layers that do not say how their features move.
        families: of layers, asked before the built-in ones.
        kwargs: keyword arguments of the call.
        num_samples: K, elements drawn for `own` (and for all figures of a finite group); None takes every element of a
            finite group. Each moves all inputs.
        elements: these in the place of drawn ones; with them all figures are finite.
        algebra: directions A in the place of the group's basis: rotations alone of SE(3), say.
        finite: group elements instead of derivatives.
        num_probes: P; None computes every J_{>i} L f_i, as is done where the network differentiates inside.
        generator: whose random numbers.
        needs_grad: the network differentiates inside; one that enables gradients itself is noticed. Layers account for
            what it makes of them forwards (an energy); of what it differentiates (forces), their backward passes are
            in the remainder.

    Returns:
        The figures of each layer, in float64 where the device has it. 0 is an equivariant layer in `own` and `makes`,
        and in `remainder` a complete account.

    Raises:
        TypeError: the network is no module.
        ValueError: no layer is meant, or one that does not say how its features move, does not run, lies inside
            another, or maps no tensor to a tensor; the symmetry does not mirror the call or the output.

    Examples:
        >>> net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        >>> _ = nn.init.eye_(net[0].weight)
        >>> symmetry = Symmetry("SO(3)", "1o", "1o")
        >>> errors = layerwise_error(net, torch.randn(5, 3), symmetry, {"*": ("1o", "1o")})
        >>> errors.ends_up.round(decimals=4).abs().tolist(), bool(errors.remainder < 1e-5)
        ([0.0, 1.0], True)

    Reference:
        Gruver, Finzi, Goldblum, Wilson. The Lie derivative for measuring learned equivariance. ICLR 2023. arXiv
        2210.02984: L f_i and c_i. The signed share s_i is this library's.
    """
    names, sums, _ = layerwise_sums(
        network,
        args,
        symmetry,
        layers,
        families=families,
        kwargs=kwargs,
        num_samples=num_samples,
        elements=elements,
        algebra=algebra,
        finite=finite,
        num_probes=num_probes,
        generator=generator,
        needs_grad=needs_grad,
    )
    return reduce_layerwise(names, sums)


def reduce_layerwise(names: tuple[str, ...], sums: Tensor) -> LayerwiseErrors:
    """The figures from what `layerwise_sums` gives, of one batch or summed over many."""
    (differences, norms, makes, products), (total, rest, floor, count) = sums[:, :-1], sums[:, -1]
    nothing = total <= floor
    share = torch.where(nothing, 0.0, 1 / torch.where(nothing, 1.0, total))
    own = torch.where(differences == 0, 0.0, differences / norms).sqrt()
    return LayerwiseErrors(
        names, own, makes / count, products * share, (rest * share).sqrt(), total / count, bool(nothing)
    )


class LayerwiseError(SymmetryMetric):
    r"""Which layers make a network's distance from a symmetry, over a data set.

    With the network's Lie derivative L f, the defect L f_i of each chosen layer, and J_{>i} the Jacobian of what comes
    after it, see `layerwise_error`:

        own/<layer>         sqrt( sum |f_i(g h) - g f_i(h)|^2 / sum |f_i(h)|^2 )    the layer by itself
        makes/<layer>       c_i = mean_x sum_A |J_{>i} L f_i|^2
        ends_up/<layer>     s_i = sum_x,A <J_{>i} L f_i, L f> / sum_x,A |L f|^2     a share; negative: it repairs
        remainder           sqrt( sum_x,A |L f - sum_i J_{>i} L f_i|^2 / sum_x,A |L f|^2 )
        total               mean_x sum_A |L f|^2

    0 means equivariant; where the total is no more than rounding, shares and remainder are 0. The network is an
    argument of `update`, never kept; every update must be of one network, or of networks with layers of equal names.
    Sums over ranks under DDP.

    Args:
        symmetry: says how a group element moves inputs and outputs.
        layers: which layers, see `layerwise_error`.
        families: of layers, asked before the built-in ones.
        num_samples: K, elements drawn for `own` in each update, each for all inputs.
        finite: group elements instead of derivatives; always so for finite groups.
        num_probes: most directional derivatives, one for each layer and direction, before c_i is estimated by as many
            random probes; None computes all, as is done where the network differentiates inside.
        needs_grad: the network differentiates inside (conservative forces); one that enables gradients itself is
            noticed.
        seed: of the draws; the k-th update of a metric draws the same in every run, other numbers on every rank.
        kwargs: of torchmetrics.Metric.

    Raises:
        ValueError: `update` raises for layers that `layerwise_error` refuses, `compute` where the network returned NaN
            or infinity.

    Examples:
        >>> net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        >>> _ = nn.init.eye_(net[0].weight)
        >>> metric = LayerwiseError(Symmetry("SO(3)", "1o", "1o"), {"*": ("1o", "1o")})
        >>> metric.update(net, torch.randn(16, 3))
        >>> shares = metric.compute()
        >>> round(float(shares["ends_up/1"]), 3), round(float(shares["remainder"]), 3)
        (1.0, 0.0)

    Reference:
        @inproceedings{gruver2023lie,
          title={The Lie Derivative for Measuring Learned Equivariance},
          author={Gruver, Nate and Finzi, Marc and Goldblum, Micah and Wilson, Andrew Gordon},
          booktitle={International Conference on Learning Representations}, year={2023}, note={arXiv:2210.02984}}
    """

    log_name = "layers"
    draws_itself = True

    def __init__(
        self,
        symmetry: Symmetry,
        layers: Layers,
        *,
        families: Sequence[LayerFamily] = (),
        num_samples: int | None = 8,
        finite: bool = False,
        num_probes: int | None = 100,
        needs_grad: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        for name, value in (("num_samples", num_samples), ("num_probes", num_probes)):
            check_number(name, value, least=1, whole=True, optional=True)
        settings = (layers, tuple(families), num_samples, finite, num_probes)
        super().__init__(symmetry, needs_grad=needs_grad, seed=seed, settings=settings, **kwargs)
        self.layers, self.families = layers, tuple(families)
        self.num_samples, self.num_probes, self.finite = num_samples, num_probes, finite
        self._declare("layerwise")  # (4, L + 1) later
        self._names: tuple[str, ...] = ()

    def update(self, network: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Measure the layers of `network` in one call, `network(*args, **kwargs)`."""
        names, sums, _ = layerwise_sums(
            network,
            args,
            self.symmetry,
            self.layers,
            families=self.families,
            kwargs=kwargs,
            num_samples=self.num_samples,
            finite=self.finite,
            num_probes=self.num_probes,
            generator=self._generator(),
            needs_grad=self.needs_grad,
        )
        old = self._state("layerwise")
        if old.ndim and names != self._names:
            raise ValueError(
                f"expected a network with the layers of the updates before, {list(self._names)}, got {list(names)}: "
                "reset the metric, or take one for each network"
            )
        self._names = names
        self._add("layerwise", sums)

    def compute(self) -> dict[str, Tensor]:
        """The figures over everything seen, by name, see above; only "total", NaN, before any update."""
        errors = self._errors()
        if errors is None:
            return {"total": torch.full((), torch.nan, device=self.device)}
        return {name: value.float() for name, value in errors.as_dict().items()}

    def _errors(self) -> LayerwiseErrors | None:
        """The figures of the states; None before any update."""
        sums = self._state("layerwise")
        if not sums.ndim:
            return None
        errors = reduce_layerwise(self._names, sums)
        if not bool(torch.isfinite(errors.total)):
            raise ValueError(f"the Lie derivative is {float(errors.total)}: the network returned NaN or infinity")
        return errors

    def _sync_dist(self, dist_sync_fn: Any = gather_all_tensors, process_group: Any = None) -> None:
        """Sum over ranks; one that has seen nothing learns from the others which layers there are."""
        sums = self._state("layerwise")
        group = process_group or self.process_group
        seen = [names for names in gathered(self._names if sums.ndim else None, group) if names is not None]
        if seen:
            if any(names != seen[0] for names in seen):
                raise ValueError(f"expected the same layers on all ranks, got {[list(names) for names in seen]}")
            self._names = seen[0]
            self._set("layerwise", sums if sums.ndim else sums.new_zeros(4, len(seen[0]) + 1))
        super()._sync_dist(dist_sync_fn, process_group)

    def _draw(self, val: Mapping[str, Any] | None, ax: Any) -> Any:
        """The layers' shares of the network's error, "ends_up", as bars."""
        if val is None:
            errors = self._errors()
            val = {} if errors is None else errors.as_dict()
        shares = {key.removeprefix("ends_up/"): float(s) for key, s in val.items() if key.startswith("ends_up/")}
        figure, axes = new_axes(ax, layers_height(len(shares)))
        draw_layers(axes, shares, float(val.get("remainder", torch.nan)))
        return figure, axes
