"""The layers' section of an audit: whose work the error is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_equiv.audit.calls import AuditCall
from lightning_equiv.layers.choose import Layers, family_of
from lightning_equiv.layers.layer import LayerFamily
from lightning_equiv.metrics.layerwise import reduce_layerwise
from lightning_equiv.metrics.layerwise_sums import layerwise_sums
from lightning_equiv.symmetry.symmetry import Symmetry

_SAMPLES = 2  # elements for the error of each layer by itself
_MOST = 64  # inputs: layers cost more than all else
_PROBES = 100  # directional derivatives at most, see `layerwise_error`
_TELL = (
    "no layer says by itself how its features move: name some with representations, "
    "layers={'encoder.*': ('8x0e+8x1o', '8x0e+8x1o')}"
)


class LayerFigures:
    """Adds up what `layerwise_error` measures of the layers that are meant, call by call.

    Args:
        network: the model.
        symmetry: says how a group element moves its inputs and outputs.
        layers: which layers; None takes all that say how their features move.
        families: asked before the built-in ones.

    Attributes:
        wanted: inputs that are still to be measured.
        why: there is nothing to measure, in words; "" where there is.
    """

    def __init__(
        self, network: Any, symmetry: Symmetry, layers: Layers | None, families: Sequence[LayerFamily]
    ) -> None:
        self.network, self.symmetry, self.families, self.why = network, symmetry, families, ""
        self.layers: Layers = _known(families) if layers is None else layers
        self.wanted = _MOST
        self._names: tuple[str, ...] = ()
        self._sums: Tensor | None = None
        self._inside = False
        if not isinstance(network, nn.Module):
            self.why = f"a {type(network).__name__} has no layers that could be told apart"
        elif layers is None and not any(_known(families)(name, m) for name, m in network.named_modules() if name):
            self.why = _TELL

    def update(
        self, call: AuditCall | None, needs_grad: bool, generator: torch.Generator, *, divisible: bool = True
    ) -> None:
        """Measure one call; None is one that holds inputs on which the network fails, and cannot be without them."""
        if self.why:
            return
        if call is None:
            raise ValueError("the network returned NaN or infinity for some input of a batch that cannot be divided")
        if divisible:
            call = call.first(self.network, self.symmetry, self.wanted)
        try:
            self._names, sums, self._inside = layerwise_sums(
                self.network,
                call.args,
                self.symmetry,
                self.layers,
                families=self.families,
                kwargs=call.kwargs,
                num_samples=_SAMPLES,
                finite=False,
                num_probes=_PROBES,
                generator=generator,
                needs_grad=needs_grad,
            )
        except (torch.OutOfMemoryError, NotImplementedError):
            raise
        except RuntimeError as error:  # of the network, which has run before
            raise ValueError(
                "the network runs, and does not where the features of its layers are moved: choose other layers, or "
                f"leave some out. Torch's words were: {str(error).strip().partition(chr(10))[0]}"
            ) from error
        self.wanted -= int(sums[3, -1])
        self._sums = sums if self._sums is None else self._sums + sums

    def figures(self) -> dict[str, Any]:
        """The layers' figures, {} where nothing was measured."""
        if self._sums is None:
            return {}
        found = reduce_layerwise(self._names, self._sums.cpu())
        if not bool(torch.isfinite(found.total)):
            self.why = "the network returned NaN or infinity for some input"
            return {}
        return {
            "inputs": int(self._sums[3, -1]),
            "names": list(found.layers),
            "own": found.own.tolist(),
            "makes": found.makes.tolist(),
            "ends_up": found.ends_up.tolist(),
            "remainder": float(found.remainder),
            "nothing_to_share": found.nothing_to_share,
            "inside": self._inside,
        }


def _known(families: Sequence[LayerFamily]) -> Callable[[str, nn.Module], bool]:
    """Layers that say how their features move."""
    return lambda _, module: family_of(module, families).representations(module) is not None
