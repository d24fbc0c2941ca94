"""Relaxed layers called with one input without a batch, and under the transforms of torch.func."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_equiv import ACE, RECM, RPP, ConstraintRelaxation, RelaxedLayer
from lightning_equiv.layers.branch import Branch, attach_branch, make_branch
from lightning_equiv.layers.choose import find_layers
from tests.helpers import TOLERANCE, close
from tests.strategies.cases import CASES, Case
from tests.strategies.toys import SYMMETRY, Plain, batches, loader, trainer, weights

WITH_BRANCHES = pytest.mark.parametrize(
    "case", [case for case in CASES.values() if case.adds_parameters], ids=lambda case: case.name
)
LAYERS: dict[str, Any] = {
    "linear": (lambda: nn.Linear(3, 6), ("1o", "6x0e"), (3,)),
    "components in front": (lambda: nn.Linear(4, 5, bias=False), ("IrrepsTensor('1o', dim=-2)",) * 2, (3, 4)),
    "convolution": (lambda: nn.Conv2d(2, 3, 3), ("Image()", "Image()"), (2, 5, 5)),
    "convolution in one dimension": (lambda: nn.Conv1d(2, 3, 3, padding=1), ("Invariant()", "Invariant()"), (2, 5)),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def relaxed_net(name: str, kind: str, kept: bool) -> nn.Module:
    """A network of one layer, relaxed while it trains, or as RECM leaves it."""
    torch.manual_seed(0)
    make, given, _ = LAYERS[name]
    net = nn.Sequential(make())
    (layer,) = find_layers(net, {"0": given})
    branch = Branch(layer, make_branch(layer, kind, 1.0))
    branch.set_theta(0.5)
    if kept:
        return nn.Sequential(RelaxedLayer(branch))
    attach_branch(branch)
    branch.start()
    return net


@each_layer
@pytest.mark.parametrize("branch", ["linear", "mlp"])
@pytest.mark.parametrize("kept", [False, True])
def test_one_input_is_a_row_of_a_batch(name: str, branch: str, kept: bool) -> None:
    net, x = relaxed_net(name, branch, kept), torch.randn(4, *LAYERS[name][2])
    expected = net(x).detach()
    strict = (net[0].layer if kept else LAYERS[name][0]())(x)
    assert expected.shape == strict.shape
    tolerance = TOLERANCE[torch.float32]
    close(torch.stack([net(one) for one in x]).detach(), expected, tolerance)
    close(torch.vmap(net)(x).detach(), expected, tolerance)
    slopes = torch.vmap(torch.func.jacrev(net))(x)
    assert slopes.shape == (*expected.shape, *x.shape[1:])
    one_by_one = torch.autograd.functional.jacobian(net, x[1])
    close(slopes[1], one_by_one, tolerance)
    close(torch.func.jvp(net, (x,), (x,))[1][1].detach(), (one_by_one * x[1]).flatten(expected.ndim - 1).sum(-1), 1e-4)


@WITH_BRANCHES
def test_training_without_a_batch(case: Case) -> None:
    """The same as with batches of one."""
    rows = [(x, y) for x, y in loader(batch_size=1)][:6]
    single, batched = Plain(), Plain()
    trainer(case.make()).fit(single, batches([(x[0], y[0]) for x, y in rows]))
    trainer(case.make()).fit(batched, batches(rows))
    close(weights(single), weights(batched), TOLERANCE[torch.float32])


@pytest.mark.parametrize("make", [ConstraintRelaxation, RECM, ACE, RPP])
def test_convolutions_train_without_a_batch(make: Any) -> None:
    module = Plain(nn.Sequential(nn.Conv2d(2, 3, 3)))
    module.task = lambda net, x, y: net(x).square().mean()  # type: ignore[method-assign,assignment]
    before, image = weights(module), torch.randn(2, 5, 5)
    layers = {"net.0": ("Image()", "Image()")}
    trainer(make("C4", layers)).fit(module, batches([(image, image)] * 4))
    assert not torch.equal(before, weights(module))
    assert torch.isfinite(weights(module)).all()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit:DeprecationWarning")
def test_what_traces_and_exports() -> None:
    """What docs/contract.md says of torch.fx and TorchScript."""
    module, x = Plain(), torch.randn(5, 3)
    trainer(RECM(SYMMETRY, {"net.0": ("1o", "16x0e")}, "net", threshold=0.0)).fit(module, loader())
    net: nn.Module = module.net.eval()
    assert isinstance(net[0], RelaxedLayer)  # type: ignore[index]

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, name: str) -> bool:
            return isinstance(m, RelaxedLayer) or super().is_leaf_module(m, name)

    expected: Tensor = net(x)
    assert torch.equal(torch.fx.GraphModule(net, Tracer().trace(net))(x), expected)
    assert torch.equal(torch.jit.trace(net, x)(x), expected)
    close(torch.export.export(net, (x,)).module()(x), expected, TOLERANCE[torch.float32])
    with pytest.raises((RuntimeError, ValueError), match=r"torch.Tensor|args"):
        torch.jit.script(net)
