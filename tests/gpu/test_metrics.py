"""Metrics on a GPU: the numbers of the CPU to rounding, and no wait for the device in an update."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_equiv import EquivarianceError, Symmetry
from tests.gpu.devices import each_device, nothing_waits, on_gpu, side_stream
from tests.helpers import normal
from tests.metrics.test_contract import METRICS, ROWS, MetricCase, each_metric, values

# By design, in each update: numbers that the host reads, and tensors of Python numbers that it makes. A derivative is
# compared with central differences, layers are run again to see that they return the same, and angles, which lie on the
# host, are looked at there.
READS = {"AngleProfile": 1, "LieDerivativeError": 1, "LayerwiseError": 4, "LayerwiseError, finite": 0}
UPLOADS = {"AngleProfile": 1, "EquivarianceSpectrum": 3, "LayerwiseError": 1, "LayerwiseError, finite": 1}
# A kernel sums in another order than the CPU; a derivative's differences make more of it.
ROUNDING = 1e-5
named_metric = pytest.mark.parametrize("name", METRICS)


def by_design(counts: dict[str, int], name: str) -> int:
    return counts.get(name, counts.get(name.partition(",")[0], 0))


def updated(case: MetricCase, device: str, network: Any = None, times: int = 1) -> dict[str, float]:
    network = case.broken().to(device) if network is None else network
    metric = case.make().to(device)
    for _ in range(times):
        metric.update(network, *(x.to(device) for x in case.inputs(ROWS)))
    assert metric.device.type == device
    return values(metric.compute())


@each_device
@each_metric
def test_reads_as_on_the_cpu(case: MetricCase, device: str) -> None:
    assert updated(case, device) == pytest.approx(updated(case, "cpu"), rel=ROUNDING, abs=1e-9)


@each_device
@each_metric
def test_reads_the_same_on_a_side_stream(case: MetricCase, device: str) -> None:
    expected = updated(case, device, times=2)
    with side_stream(device):
        found = updated(case, device, times=2)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


@each_device
@named_metric
def test_an_update_waits_for_nothing(name: str, device: str) -> None:
    case = METRICS[name]
    metric, network = case.make().to(device), case.broken().to(device)
    inputs = [x.to(device) for x in case.inputs(ROWS)]
    for _ in range(2):  # constants are sent once
        metric.update(network, *inputs)
    with nothing_waits(device, by_design(READS, name), by_design(UPLOADS, name)):
        metric.update(network, *inputs)


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")
@pytest.mark.parametrize(
    ("device", "options"),
    [
        ("cpu", {"backend": "aot_eager"}),
        pytest.param("cuda", {}, marks=on_gpu.marks),
        pytest.param("cuda", {"mode": "reduce-overhead"}, marks=on_gpu.marks),
    ],
)
@pytest.mark.parametrize("name", ["EquivarianceError, drawn", "EquivarianceError, parts", "EquivarianceSpectrum"])
def test_a_compiled_network_reads_the_same(name: str, device: str, options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    case = METRICS[name]
    network = torch.compile(case.broken().to(device), **options)
    found = updated(case, device, network, times=3)  # a CUDA graph is recorded in the second call
    assert found == pytest.approx(updated(case, device, times=3), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_device
def test_a_network_under_autocast_is_measured(device: str, dtype: torch.dtype) -> None:
    case = METRICS["EquivarianceError, drawn"]
    network, inputs = case.broken().float().to(device), [x.float().to(device) for x in case.inputs(ROWS)]
    found = []
    for enabled in (False, True):
        metric = case.make().to(device)
        with torch.autocast(device, dtype=dtype, enabled=enabled):
            metric.update(network, *inputs)
        found.append(float(metric.compute()))
    assert found[0] == pytest.approx(found[1], rel=5e-2)
    assert found[0] != found[1], "autocast was on"


@each_device
def test_chunks_bound_the_memory(device: str) -> None:
    """On a CPU the rows of the largest call stand for the memory."""
    n, samples, width = 64, 64, 512
    network = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 3)).to(device)
    x, rows, most = normal(n, 3, dtype=torch.float32).to(device), [], {}
    network.register_forward_hook(lambda _m, args, _y: rows.append(len(args[0])))
    for chunk_size in (4 * n, None):
        metric = EquivarianceError(Symmetry("SO(3)", "1o", "1o"), num_samples=samples, chunk_size=chunk_size).to(device)
        metric.update(network, x)
        rows.clear()
        if device == "cpu":
            metric.update(network, x)
            most[chunk_size] = max(rows)
        else:
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            metric.update(network, x)
            most[chunk_size] = torch.cuda.max_memory_allocated() - before
    assert most[4 * n] < most[None] / 4
