"""The layers' section of an audit: whose work the error is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_equiv.layers.choose import Layers, family_of
from lightning_equiv.layers.layer import LayerFamily
from lightning_equiv.metrics.layerwise import LayerwiseError
from lightning_equiv.symmetry.symmetry import Symmetry

_TELL = (
    "no layer says by itself how its features move: name some with representations, "
    "layers={'encoder.*': ('8x0e+8x1o', '8x0e+8x1o')}"
)


class LayerFigures:
    """Accumulates what `LayerwiseError` says of the layers that are meant.

    Args:
        network: the model.
        symmetry: says how a group element moves its inputs and outputs.
        layers: which layers; None takes all that say how their features move.
        families: asked before the built-in ones.
    """

    def __init__(
        self, network: Any, symmetry: Symmetry, layers: Layers | None, families: Sequence[LayerFamily]
    ) -> None:
        self.network, self.why, self.metric = network, "", None
        if not isinstance(network, nn.Module):
            self.why = f"a {type(network).__name__} has no layers that could be told apart"
            return
        if layers is None:

            def known(_: str, module: nn.Module) -> bool:
                return family_of(module, families).representations(module) is not None

            if not any(known(name, module) for name, module in network.named_modules() if name):
                self.why = _TELL
                return
            layers = known
        self.metric = LayerwiseError(symmetry, layers, families=families, num_samples=2)

    def update(self, args: Any, kwargs: Any, needs_grad: bool) -> None:
        """Measure one call."""
        if self.metric is not None:
            self.metric.needs_grad = needs_grad
            self.metric.update(self.network, *args, **kwargs)

    def figures(self) -> dict[str, Any]:
        """The layers' figures, {} where nothing was measured."""
        if self.metric is None or not self.metric.update_count:
            return {}
        found = self.metric.summary()
        return {
            "names": list(found.layers),
            "own": found.own.tolist(),
            "makes": found.makes.tolist(),
            "ends_up": found.ends_up.tolist(),
            "remainder": float(found.remainder),
            "nothing_to_share": bool(found.nothing_to_share),
        }
