"""A trained network made more equivariant without training: its layers' matrices, filtered by the heat kernel."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_equiv._checks import check_number
from lightning_equiv.groups.group import Group
from lightning_equiv.groups.product import as_group
from lightning_equiv.layers.choose import Layers, find_layers
from lightning_equiv.layers.layer import Layer, LayerFamily, check_moves, flat_sizes
from lightning_equiv.layers.open_layer import OpenLayer, OpenMaps
from lightning_equiv.symmetry.symmetry import Symmetry

Network = TypeVar("Network", bound=nn.Module)

_LEFT_OVER = 1e-6  # of a layer's matrix, in float64: what is less is rounding


def soften(
    network: Network,
    symmetry: Symmetry | Group | str,
    layers: Layers,
    softness: float,
    *,
    families: Sequence[LayerFamily] = (),
) -> Network:
    r"""A copy of a trained network, whose layers are as far from equivariant as `softness` lets them.

    The matrix of a layer f(x) = W x + b between features that the group moves by rho_in and rho_out:

        W = sum_k W_k,   L W_k = k W_k        L = sum_i C_i^T C_i, C_i what the i-th generator does to W (`LinearMaps`)
        W_s = sum_k s^(k/2) W_k               s = 1: W;  s = 0: W_0 = P W, the mean over the group, which commutes

    For SO(3), k = J(J+1): what turns with the total angular momentum J is multiplied by s^(J(J+1)/2), a vector's worth
    by s. For a finite group, L is the Laplacian of its Cayley graph: for C4 the parts are multiplied by 1, s and s^2.
    W_s is the mean of rho_out(g)^-1 W rho_in(g) over random walks g from the identity, of length t = -ln(s) / 2: small
    turns alone for s near 1, all elements alike for s = 0. b is filtered as a map from something invariant. Softening
    by s and then by s' is softening by s s'.

    Args:
        network: trained; it stays as it is.
        symmetry: the group (or its name), or a `Symmetry`, whose group it is.
        layers: which; mostly a dict from globs to (input representation, output representation), since an ordinary
            layer does not know how its features move. They must be linear: nn.Linear, convolutions with stride 1.
        softness: s, from 0 (every layer commutes with the group) to 1 (as trained).
        families: of layers that the library does not know.

    Returns:
        A copy with the same types, keys, devices and dtypes. What a layer's weights cannot express of the change (none
        of nn.Linear and plain convolutions) stays as it was trained, and a warning says how much that is.

    Raises:
        ValueError: softness is not in 0 .. 1; no layer matches; a layer is not linear, does not say how its features
            move, shares weights with another one, or moves in a way whose mean over the group is not known.

    Examples:
        >>> network = nn.Sequential(nn.Linear(3, 3, bias=False))
        >>> vectors = {"0": ("1o", "1o")}
        >>> strict = soften(network, "SO(3)", vectors, 0.0)[0].weight
        >>> torch.allclose(strict, network[0].weight.trace() / 3 * torch.eye(3), atol=1e-6)
        True

    Reference:
        @inproceedings{rahman2026tunable,
          title={Tunable soft equivariance},
          author={Rahman and others},
          booktitle={CVPR}, year={2026}, note={arXiv:2603.26657}}
    """
    softened, states = soften_layers(network, symmetry, layers, softness, families, {})
    if left := {name: state.left_over for name, state in states.items() if state.left_over > _LEFT_OVER}:
        rank_zero_warn(f"softness {softness:g}: {left_over_words(left)}")
    return softened


@dataclass(frozen=True)
class LayerState:
    """What a layer is after softening.

    Attributes:
        error: its relative equivariance error for inputs of independent entries with mean 0 and variance 1.
        left_over: norm of the change that its weights could not express, over that of its matrix.
    """

    error: float
    left_over: float


@dataclass(frozen=True, eq=False)
class LayerFilter:
    """The heat kernel on the matrix [W b] of a layer.

    Args:
        maps: those of which [W b] is one.
        places: how often [W b] holds b: once, or at every place of a kernel.
    """

    maps: OpenMaps
    places: int

    def soften(self, matrix: Tensor, softness: float) -> Tensor:
        """[W b] at a softness."""
        return self.maps.soften(matrix, -math.log(softness) / 2 if softness > 0 else math.inf)

    def error(self, matrix: Tensor) -> float:
        """sqrt(2 |W - P W|^2 / |W|^2), b included: root of mean_g,x |rho(g) f(x) - f(rho(g) x)|^2 / mean_x |f(x)|^2.

        Exact for inputs with independent entries of mean 0 and variance 1; mean_g |g W - W|^2 = 2 |W - P W|^2, and
        |W - P W|^2 = sum_(k > 0) |W_k|^2.
        """
        once = torch.cat([matrix[:, :-1], matrix[:, -1:] / math.sqrt(self.places)], dim=1)
        size = float(once.norm())
        return math.sqrt(2) * float((once - self.soften(once, 0.0)).norm()) / size if size else 0.0


def soften_layers(
    network: Network,
    symmetry: Symmetry | Group | str,
    layers: Layers,
    softness: float,
    families: Sequence[LayerFamily],
    filters: dict[str, LayerFilter],
) -> tuple[Network, dict[str, LayerState]]:
    """`soften`, and what became of each layer.

    Args:
        network: trained.
        symmetry: the group.
        layers: which.
        softness: s.
        families: of layers that the library does not know.
        filters: of layers by name, once they were made; those that are missing are added.
    """
    check_number("softness", softness, least=0, most=1)
    group = as_group(symmetry.group if isinstance(symmetry, Symmetry) else symmetry)
    softened = copy.deepcopy(network)
    chosen = find_layers(softened, layers, families)
    trains = {p: p.requires_grad for p in softened.parameters()}
    _check_shared(chosen)
    states = {}
    try:
        softened.requires_grad_(True)  # of frozen weights, too: `OpenLayer` writes into what trains
        for layer in chosen:
            _check_known(layer, group)
            opened = OpenLayer(layer)
            matrix = opened.matrix()
            if layer.name not in filters:
                try:
                    filters[layer.name] = LayerFilter(opened.maps(group), len(matrix) // flat_sizes(layer)[1])
                except ValueError as error:
                    raise ValueError(f"{_the(layer)}: {error}") from None
            own, left_over = filters[layer.name], 0.0
            if softness < 1:
                rest = opened.take(own.soften(matrix, softness) - matrix)
                left_over = float(rest.norm() / matrix.norm().clamp_min(torch.finfo(matrix.dtype).tiny))
            states[layer.name] = LayerState(own.error(opened.matrix()), left_over)
    finally:
        for p, value in trains.items():
            p.requires_grad_(value)
    return softened, states


def left_over_words(shares: dict[str, float]) -> str:
    """A sentence on what the weights of layers cannot express."""
    listed = ", ".join(f"{name!r} ({100 * share:.2g} % of its matrix)" for name, share in shares.items())
    return (
        f"the weights of layers {listed} cannot express their softened matrices, and what they cannot stays as it was "
        "trained: the equivariance error at softness 0 will say what that makes; leave these layers out, or put plain "
        "layers (nn.Linear, nn.Conv2d) in their places before training"
    )


def _check_known(layer: Layer, group: Group) -> None:
    """ValueError unless it is said how the layer's features move, and of which shape they are."""
    if layer.inputs is None or layer.outputs is None or layer.in_features is None or layer.out_features is None:
        known = layer.inputs is not None and layer.outputs is not None
        what = "of which shape its features are" if known else "how its features move"
        sizes = ""
        if layer.in_features and layer.out_features:
            sizes = f" of {math.prod(layer.in_features)} and {math.prod(layer.out_features)} features"
        raise ValueError(
            f"{_the(layer)} does not say {what}: expected layers={{{layer.name!r}: (inputs, outputs)}} with "
            f"representations{sizes}, such as ('8x0e+4x1o', '1o') of a linear layer, or "
            "('Image()', 'Image() @ Shifted(-3)') of a convolution to channels that C4 turns into one another"
        )
    check_moves(layer, group)


def _check_shared(layers: Sequence[Layer]) -> None:
    owners: dict[nn.Parameter, Layer] = {}
    for layer in layers:
        for p in layer.module.parameters():
            if (other := owners.setdefault(p, layer)) is not layer:
                raise ValueError(
                    f"layers {other.name!r} and {layer.name!r} share weights, which would be softened twice: expected "
                    "layers with weights of their own; choose one of the two"
                )


def _the(layer: Layer) -> str:
    return f"layer {layer.name!r} ({type(layer.module).__name__})"
