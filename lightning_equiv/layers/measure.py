"""The shapes of features that layers do not say, read off one call of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from torch import nn

from lightning_equiv.layers.layer import Layer, wrong_size
from lightning_equiv.wiring.evaluation import evaluating


def unmeasured(layers: Sequence[Layer]) -> list[Layer]:
    """Those whose features' shapes are not known."""
    return [layer for layer in layers if layer.in_features is None or layer.out_features is None]


def measured(layers: Sequence[Layer], run: Callable[[], object]) -> list[Layer]:
    """The layers, all with `in_features` and `out_features`.

    Args:
        layers: of one model.
        run: calls the model.

    Raises:
        ValueError: a layer whose features are not known did not run, or maps no tensor to a tensor; the features of
            another are not as large as declared.
    """
    seen: dict[str, Layer] = {}
    unknown = unmeasured(layers)
    with ExitStack() as undo:
        for layer in layers:

            def look(_: nn.Module, args: Any, kwargs: Any, output: Any, layer: Layer = layer) -> None:
                x, f_x = layer.family.first_tensor(args, kwargs), layer.family.tensor(output)
                if x is not None and f_x is not None:
                    ins, outs = layer.family.features(layer, x), layer.family.features(layer, f_x)
                    for side, declared, size in (("in", layer.in_features, ins), ("out", layer.out_features, outs)):
                        if declared not in (None, size):
                            raise wrong_size(layer, side, declared, size)
                    if layer in unknown:
                        seen[layer.name] = replace(layer, in_features=ins, out_features=outs)

            undo.callback(layer.module.register_forward_hook(look, with_kwargs=True).remove)
        run()
    if missing := [layer.name for layer in unknown if layer.name not in seen]:
        raise ValueError(
            f"layers {missing} did not run on the module's `example_input_array`, or map no tensor to a tensor"
        )
    return [seen.get(layer.name, layer) for layer in layers]


def measured_on_example(module: L.LightningModule, layers: list[Layer], declared: bool) -> list[Layer]:
    """Layers with the shapes of their features, read off one call with the module's example input where need be.

    Args:
        module: holds them.
        layers: some of whose shapes may not be known.
        declared: whether the user said how features move, which an example input can confirm.

    Raises:
        ValueError: there is no example input, or see `measured`.
    """
    unknown, example = unmeasured(layers), module.example_input_array
    if not unknown and (example is None or not declared):
        return layers
    if example is None:
        raise ValueError(
            f"the sizes of {[layer.name for layer in unknown]} cannot be read off the layers: set "
            "`self.example_input_array` on the module for one dry call, or say "
            "their representations, layers={name: (inputs, outputs)}"
        )

    def run() -> None:
        args = example if isinstance(example, tuple) else (example,)
        module(**example) if isinstance(example, dict) else module(*args)

    with torch.no_grad(), evaluating(module):
        return measured(layers, run)
