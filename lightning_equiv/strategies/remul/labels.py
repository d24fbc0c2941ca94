"""Find the labels of a network's outputs in a batch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_equiv.symmetry.call import BoundTree
from lightning_equiv.symmetry.tree import Places, describe, held_at, tensors

Labels = dict[str, Tensor]  # by the output's dotted name


def find_labels(batch: Any, target: Places, output: BoundTree, of_classes: bool = False) -> Labels:
    """The labels of a batch, for all outputs or some.

    Args:
        batch: of the dataloader.
        target: where they are.
        output: what the network returned.
        of_classes: labels are class numbers, and need not have the prediction's shape.

    Raises:
        ValueError: a label that belongs to no output, or is not of its shape; no label at all.
    """
    found = held_at(batch, target)
    labels = dict(tensors(found))
    predictions = {t.path: t.x for t in output.tensors}
    wanted = [t.path for t in output.tensors if not t.representation.shared]
    names = ", ".join(map(repr, wanted)) if wanted != [""] else "one tensor"
    for path in labels:
        if path not in predictions:
            near = difflib.get_close_matches(path, wanted, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(
                f"target={target!r} holds {describe(found)}, and {path or 'a tensor without a name'!r} is no output of "
                f"the network{hint}: expected labels of {names}; a dict says where each one is, "
                "target={'energy': 'y', 'forces': 'dy'}"
            )
    labels = {path: labels[path] for path in wanted if path in labels}
    if not labels:
        raise ValueError(f"target={target!r} holds {describe(found)}: expected labels of {names}")
    for path, label in labels.items():
        if not of_classes and predictions[path].shape != label.shape:
            raise ValueError(
                f"target={target!r} holds {describe(label)}{f' for {path!r}' if path else ''}, but the network "
                f"returned {describe(predictions[path])}: expected equal shapes; for class labels write "
                "loss='cross_entropy', for others a callable can reshape, e.g. target=lambda batch: batch['y'][:, None]"
            )
    return labels


def weights_of(weight: Mapping[str, float], outputs: list[str]) -> dict[str, float]:
    """The weight of each output that is compared; a name stands for all that it holds.

    Raises:
        ValueError: an output without a weight, or a weight without an output.
    """
    weights: dict[str, float] = {}
    for name, value in weight.items():
        below = [path for path in outputs if path == str(name) or path.startswith(f"{name}.")]
        weights.update(dict.fromkeys(below, value))
        if not below:
            weights[str(name)] = value
    if weights.keys() != set(outputs):
        raise ValueError(
            f"expected `weight` to name each output that is compared, {sorted(outputs)}, got {sorted(map(str, weight))}"
        )
    return weights
