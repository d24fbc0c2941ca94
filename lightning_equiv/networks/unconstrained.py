"""A network that has, beside each of some layers, a dense matrix: relaxed in full and for good."""

from __future__ import annotations

import lightning as L

from lightning_equiv.layers.branch import Branch, make_branch
from lightning_equiv.layers.choose import find_layers
from lightning_equiv.layers.relaxed_layer import replace_layers


def unconstrained(task: L.LightningModule, layers: str) -> L.LightningModule:
    """The task with f_eq(x) + W x in the place of the layers' f_eq(x).

    Args:
        task: the training.
        layers: a glob on dotted names.
    """
    branches = [Branch(layer, make_branch(layer, "linear", 1.0)) for layer in find_layers(task, layers)]
    for branch in branches:
        branch.set_theta(1.0)
    replace_layers(task, branches)
    return task
