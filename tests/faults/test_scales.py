"""A metric reads the same whatever the unit of the network's output is, before the first update and after many."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest
import torch
from torch import Tensor

from lightning_equiv import EquivarianceError, Symmetry, equivariance_error
from lightning_equiv.metrics import symmetry_metric as metric_module
from lightning_equiv.metrics.functional import Kind
from tests.helpers import TOLERANCE, normal, seeded

KINDS = get_args(Kind)
VECTORS = Symmetry("SO(3)", "1o", "1o")
C4 = Symmetry("C4", "1o", "1o")
SCALES = [1e-30, 1e-20, 1e-18, 1.0, 1e18, 1e30]


def bent(x: Tensor) -> Tensor:
    return x + 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_reads_the_same(scale: float, dtype: torch.dtype, kind: Kind) -> None:
    x = normal(6, 3).to(dtype)
    arguments = {"kind": kind, "num_samples": None}
    unit = 1.0 if kind == "relative" else scale
    expected = equivariance_error(bent, x.double(), C4, **arguments)
    error = equivariance_error(lambda x: bent(x) * scale, x, C4, **arguments)
    assert error.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(error.double() / unit, expected, rtol=3 * TOLERANCE[dtype], atol=0)
    metric = EquivarianceError(C4, **arguments)
    metric.update(lambda x: bent(x) * scale, x)
    metric.update(lambda x: bent(x) * scale, x)
    whole = EquivarianceError(C4, **arguments)
    whole.update(bent, x.double())
    assert float(metric.compute()) / unit == pytest.approx(float(whole.compute()), rel=3 * TOLERANCE[dtype] + 1e-6)
    floor = equivariance_error(lambda x: x * scale, x, VECTORS, kind=kind, generator=seeded())
    assert float(floor.max()) < 10 * TOLERANCE[dtype] * unit


def test_inputs_of_every_scale_in_one_batch() -> None:
    """No scale of the batch: each input has its own."""
    x = normal(3, 3, dtype=torch.float32)
    scale = torch.tensor([1e-30, 1.0, 1e30])[:, None]
    expected = equivariance_error(bent, x, C4, num_samples=None)
    scales = scale.repeat(4, 1)
    error = equivariance_error(lambda x: bent(x) * scales[: len(x)], x, C4, num_samples=None)
    torch.testing.assert_close(error, expected)


def test_many_updates_do_not_drift() -> None:
    metric, x, n = EquivarianceError(C4, num_samples=None), normal(3, 3, dtype=torch.float32), 400
    metric.update(bent, x)
    once = {name: state.clone() for name, state in metric.metric_state.items()}
    for _ in range(n - 1):
        metric.update(bent, x)
    for name, state in metric.metric_state.items():
        torch.testing.assert_close(state, n * once[name], rtol=1e-13, atol=0)


@pytest.mark.parametrize("per_irrep", [False, True])
def test_a_metric_that_was_never_updated_reads_nan_and_warns(per_irrep: bool) -> None:
    metric = EquivarianceError(VECTORS, per_irrep=per_irrep)
    with pytest.warns(UserWarning, match="was called before"):
        value = metric.compute()
    assert all(bool(torch.isnan(v)) for v in (value.values() if per_irrep else [value]))


def test_states_are_float32_where_a_device_has_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metric_module.element_dtype
    monkeypatch.setattr(
        metric_module, "element_dtype", lambda d: torch.float32 if torch.device(d).type == "meta" else real(d)
    )
    metric = EquivarianceError(VECTORS)
    assert {state.dtype for state in metric.metric_state.values()} == {torch.float64}
    metric.to("meta")
    assert {state.dtype for state in metric.metric_state.values()} == {torch.float32}
    metric.reset()
    assert {state.dtype for state in metric.metric_state.values()} == {torch.float32}


NAMES = """
import torch
from functools import partial
from lightning_equiv import Custom, EquivarianceError, Symmetry

class Callable:
    def __call__(self, g, x):
        return x

def scaled(by):
    return lambda g, x: by * x

def turned(g, x):
    return x

symmetries = [Symmetry("SO(3)", f, Custom(f)) for f in (
    turned, scaled(2.0), scaled(3.0), lambda g, x: 2 * x, partial(turned), Callable(), torch.mul,
)]
names = [name for s in symmetries for name in EquivarianceError(s).metric_state]
assert len(set(names)) == len(names), names
print(names)
"""


def test_state_names_are_those_of_the_next_process(capsys: pytest.CaptureFixture[str]) -> None:
    """Where a symmetry holds callables, whose addresses are other ones."""
    exec(compile(NAMES, "<string>", "exec"), {"__name__": "__main__"})
    here = capsys.readouterr().out
    there = subprocess.run([sys.executable, "-c", NAMES], check=True, capture_output=True, text=True)
    assert there.stdout == here
