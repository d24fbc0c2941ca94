"""Constraint relaxation holds every network of the examples, and leaves it equivariant to float precision."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from lightning_equiv import ConstraintRelaxation, EquivarianceError, GroupElement, Image, Invariant, Symmetry, as_group
from lightning_equiv.layers.branch import Branch
from lightning_equiv.networks.c4_cnn import C4CNN, C4Conv
from lightning_equiv.networks.e3nn_message_passing import E3nnMessagePassing
from lightning_equiv.networks.egnn import EGNN
from lightning_equiv.networks.segnn import SEGNN
from lightning_equiv.networks.vector_neurons import VectorNeuronClassifier, VNLinear
from lightning_equiv.strategies.constraint_relaxation.penalties import penalties
from tests.helpers import normal
from tests.strategies.toys import trainer

PARTICLES = Symmetry("O(3)", inputs=(Invariant(), "1o", "1o"), outputs="1o")


def regular(g: GroupElement, x: Tensor) -> Tensor:
    """(B, C, 4, H, W): the grid turns, the orientations move on."""
    index = (torch.arange(4)[None] - g.coordinates[0][:, None]) % 4
    turned = Image()(g, x)
    return turned.gather(2, index[:, None, :, None, None].expand(len(x), x.shape[1], 4, *x.shape[-2:]))


clouds = partial(normal, dtype=torch.float32)
CASES: dict[str, Any] = {
    "e3nn": (
        lambda: E3nnMessagePassing("4x0e+4x1o", 2),
        PARTICLES,
        "net.layers.*.update",
        (clouds(6, 5), clouds(6, 5, 3), clouds(6, 5, 3)),
    ),
    "segnn": (
        lambda: SEGNN("3x0e+3x1o", 1),
        PARTICLES,
        "net.layers.*.update_*",
        (clouds(6, 5), clouds(6, 5, 3), clouds(6, 5, 3)),
    ),
    "egnn": (
        lambda: EGNN(8, 2),
        PARTICLES,
        {"net.layers.*.message.0": ("18x0e", "8x0e")},
        (clouds(6, 5), clouds(6, 5, 3), clouds(6, 5, 3)),
    ),
    "vector neurons": (
        lambda: VectorNeuronClassifier(3, 4, num_neighbours=0),
        Symmetry("SO(3)", inputs="1o", outputs=Invariant()),
        VNLinear,
        (clouds(6, 12, 3),),
    ),
    "vector neurons, edges": (
        lambda: VectorNeuronClassifier(3, 4, num_neighbours=3),
        Symmetry("SO(3)", inputs="1o", outputs=Invariant()),
        VNLinear,
        (clouds(6, 12, 3),),
    ),
    "c4 convolutions": (
        lambda: C4CNN(3, 4),
        Symmetry("C4", inputs="Image()", outputs=Invariant()),
        {"net.convs.*": (regular, regular)},
        (clouds(6, 1, 8, 8),),
    ),
}


class Module(L.LightningModule):
    def __init__(self, net: nn.Module, args: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.net, self.example_input_array = net, args

    def forward(self, *args: Tensor) -> Tensor:
        return self.net(*args)

    def training_step(self, batch: Any) -> Tensor:
        return (self.net(*batch) - 1).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_relaxed_and_strict_again(name: str) -> None:
    make, symmetry, layers, args = CASES[name]
    torch.manual_seed(0)
    module = Module(make(), args)
    errors: list[float] = []

    class Measure(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            metric = EquivarianceError(symmetry, num_samples=4)
            metric.update(pl_module.net, *args)
            errors.append(float(metric.compute()))

    strategy = ConstraintRelaxation(symmetry, layers, peak=1.0, init_scale=1.0, end=0.8)
    data = torch.utils.data.DataLoader([args] * 10, batch_size=None)
    run = trainer(strategy, Measure())
    run.fit(module, data)
    assert float(run.callback_metrics["constraint_relaxation/lie_penalty"]) > 0
    if name == "egnn":  # its linear maps act on invariants: no branch on them can break the symmetry
        assert max(errors) < 1e-4
    else:
        assert max(errors) > 1e-3, "the branches break the symmetry"
        assert errors[-1] < 1e-2 * max(errors)
    assert errors[-1] < 1e-5
    assert list(module.state_dict()) == list(Module(make(), args).state_dict())


def test_a_group_convolution_is_an_equivariant_branch() -> None:
    """The Lie penalty of the ordinary convolution that a group convolution is: 0."""
    layer = C4Conv(2, 3)
    from dataclasses import replace

    from lightning_equiv.layers.branch import make_branch
    from lightning_equiv.layers.choose import find_layers

    (found,) = find_layers(nn.ModuleDict({"conv": layer}), {"conv": (regular, regular)})
    found = replace(found, in_features=(2, 4), out_features=(3, 4))
    network = make_branch(found, "linear", 1.0)
    x = clouds(2, 2, 4, 8, 8)
    b = Branch(found, network, inputs=[x])
    assert penalties([b], as_group("C4"))[0] > 0.1
    with torch.no_grad():
        turned = [layer.weight.rot90(r, (-2, -1)).roll(r, dims=2) for r in range(4)]
        network.weight.copy_(torch.stack(turned, dim=1).flatten(2, 3).flatten(0, 1))
    torch.testing.assert_close(b.apply(x, layer(x)), layer(x), rtol=1e-5, atol=1e-5)
    assert penalties([b], as_group("C4"))[0] < 1e-5
