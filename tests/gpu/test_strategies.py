"""Strategies on a GPU: they train as on the CPU, and no step waits for the device."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from lightning_equiv import REMUL
from tests.gpu.devices import each_device, nothing_waits, on_gpu
from tests.strategies.cases import CASES, GRADNORM, Case, each_case
from tests.strategies.toys import SYMMETRY, Plain, loader, make_net, trainer, weights

DUAL = Case("remul, dual", partial(REMUL, SYMMETRY, "net", balance="dual", tolerance=0.1))
ALL = [*CASES.values(), GRADNORM, DUAL]


def trained(case: Case, device: str, net: Any = None, **settings: Any) -> Tensor:
    """The weights after one epoch of batches that are all of one size."""
    module = Plain(net)
    accelerator = "gpu" if device == "cuda" else "cpu"
    trainer(case.make(), accelerator=accelerator, **settings).fit(module, loader(20))
    return weights(module.net).cpu()


def distance(found: Tensor, expected: Tensor) -> float:
    """Of two trainings, in units of what the second one moved."""
    start = weights(make_net())
    assert torch.isfinite(found).all()
    return float((found - expected).abs().max() / (expected - start).abs().max())


@each_device
@each_case
def test_trains_as_on_the_cpu(case: Case, device: str) -> None:
    assert distance(trained(case, device), trained(case, "cpu")) < 1e-3


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@each_device
@each_case
def test_mixed_precision_is_near_float32(case: Case, device: str, precision: Any) -> None:
    # from the default scale of 65536 the first gradients are infinite, and their steps left out
    scaler = torch.amp.GradScaler(device, init_scale=256.0) if precision == "16-mixed" else None
    mixed = MixedPrecision(precision, device, scaler)
    assert distance(trained(case, device, plugins=[mixed]), trained(case, device)) < 0.1


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at it
@pytest.mark.parametrize(
    ("device", "options"),
    [
        ("cpu", {"backend": "eager"}),  # tests/strategies/test_contract.py compiles for the CPU
        pytest.param("cuda", {}, marks=on_gpu.marks),
        pytest.param("cuda", {"mode": "reduce-overhead"}, marks=on_gpu.marks),
    ],
)
@each_case
def test_trains_a_compiled_network(case: Case, device: str, options: dict[str, Any]) -> None:
    if device == "cpu" and case.name not in ("remul, label-anchored", "constraint relaxation"):
        pytest.skip("on a CPU two strategies are enough to run these lines")
    torch._dynamo.reset()
    net = make_net()
    net.compile(**options)
    assert distance(trained(case, device, net), trained(case, device)) < 1e-3


@each_device
@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_a_step_waits_for_nothing(case: Case, device: str) -> None:
    if case.folds:
        pytest.skip("the one step that folds branches into layers waits")
    module, strategy = Plain().to(device), case.make()
    strategy.attach(module)
    if case.prepare is not None:
        case.prepare(strategy, module)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    optimizer, batches = module.configure_optimizers(), [[t.to(device) for t in batch] for batch in loader(20)]

    def step(i: int) -> None:
        strategy.update(i, len(batches))
        optimizer.zero_grad()
        module.training_step(batches[i], i).backward()
        optimizer.step()

    for i in range(3):  # constants are sent, and first losses read, once
        step(i)
    with nothing_waits(device):
        step(3)
        step(4)
    strategy.detach()
