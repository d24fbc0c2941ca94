"""audit: only the draws change a figure, and a model is left as it was."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_equiv import Symmetry, audit, lie_derivative_error
from tests.helpers import global_seed, normal, seeded

VECTORS = Symmetry("SO(3)", "1o", "1o")
SMALL: dict[str, Any] = {"draws": 16, "progress": False}


def mlp(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    with global_seed(3):
        return nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 3)).to(dtype)


# ---- nothing but the draws changes a figure --------------------------------------------------------------------------
def flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{path}/{key}").items()}
    return {path: value}


def test_same_seed_same_figures() -> None:
    with global_seed(0):
        first = audit(mlp(), normal(24, 3).float(), VECTORS, seed=1, **SMALL).as_dict()
    with global_seed(1):
        again = audit(mlp(), normal(24, 3).float(), VECTORS, seed=1, **SMALL).as_dict()
        other = audit(mlp(), normal(24, 3).float(), VECTORS, seed=2, **SMALL).as_dict()
    for report in (first, again, other):
        report.pop("how")
    # layers of one size may be timed to other chunks, and sums of float32 then differ in the last digit
    assert flat(first).keys() == flat(again).keys()
    assert first["error"]["total"] == pytest.approx(again["error"]["total"], rel=1e-6)
    assert first["worst"]["input"] == again["worst"]["input"]
    assert first["lie"]["gram"] == again["lie"]["gram"]
    assert first["error"]["total"][0] != other["error"]["total"][0]


def test_order_batches_and_precision_of_the_data() -> None:
    x = normal(96, 3)
    net = mlp(torch.float64)
    whole = audit(net, x, VECTORS, draws=64, progress=False)
    order = torch.randperm(96, generator=seeded(1))
    others = [
        audit(net, x[order], VECTORS, draws=64, progress=False),
        audit(net, [(b,) for b in x.split(17)], VECTORS, draws=64, progress=False),
        audit(mlp(), x.float(), VECTORS, draws=64, progress=False),
    ]
    for other in others:
        assert abs(whole.error[0] - other.error[0]) < 0.02 * whole.error[0]
        assert abs(whole.figures["lie"]["total"].value - other.figures["lie"]["total"].value) < 1e-5
        assert abs(whole.figures["unrelated"] - other.figures["unrelated"]) < 0.03
        assert whole.figures["how"]["inputs"] == other.figures["how"]["inputs"] == 96
    assert abs(whole.error[0] - others[2].error[0]) < 1e-6  # the same draws


def test_as_many_inputs_as_asked_for() -> None:
    x = normal(40, 3)
    batches = [(b,) for b in x.split(16)]
    report = audit(mlp(torch.float64), batches, VECTORS, num_inputs=20, **SMALL)
    assert report.figures["how"]["inputs"] == 20
    gram = lie_derivative_error(mlp(torch.float64), x[:20], VECTORS).gram
    torch.testing.assert_close(torch.tensor(report.figures["lie"]["gram"], dtype=torch.float64), gram)


# ---- everything is as it was -----------------------------------------------------------------------------------------
class Noisy(nn.Module):
    """Batch norm, dropout, a counter, a hook; fails where it is told to."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
        self.net[1].eval()
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.calls, self.fails_at = 0, fails_at

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.fails_at:
            raise ArithmeticError("too hot to compute")
        return self.net(x) + self.frozen(x)


def state_of(net: nn.Module) -> dict[str, Any]:
    return {
        "modes": [m.training for m in net.modules()],
        "tensors": {name: x.clone() for name, x in net.state_dict().items()},
        "identities": [id(x) for x in net.state_dict(keep_vars=True).values()],
        "requires": [p.requires_grad for p in net.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in net.parameters()],
        "hooks": [(list(m._forward_hooks), list(m._forward_pre_hooks), list(m._backward_hooks)) for m in net.modules()],
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].copy(),  # noqa: NPY002
        "grad": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "default": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "fast": torch.backends.mha.get_fastpath_enabled(),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool((a == b).all()) if isinstance(a, Tensor | np.ndarray) else a == b


def with_gradients(fails_at: int | None) -> Noisy:
    with global_seed(0):
        net = Noisy()
        net.net(torch.randn(8, 3)).sum().backward()
    net.calls, net.fails_at = 0, fails_at
    return net


@pytest.mark.parametrize("fails_at", [None, 1, 5, 12, 20])
@pytest.mark.parametrize("grad", [True, False])
def test_everything_is_as_it_was(fails_at: int | None, grad: bool) -> None:
    net, x = with_gradients(fails_at), normal(12, 3).float()
    copy = x.clone()
    with torch.set_grad_enabled(grad), torch.autocast("cpu", enabled=False):
        before = state_of(net)
        try:
            report = audit(net, x, VECTORS, layers={"frozen": ("1o", "1o")}, draws=4, progress=False)
        except ArithmeticError as error:
            assert str(error) == "too hot to compute"  # noqa: PT017
            assert fails_at is not None
            assert fails_at < 5
        else:
            assert report.verdict == "not equivariant"
            failed = [words for words in report.figures["skipped"].values() if "too hot" in words]
            assert bool(failed) == (fails_at is not None)
        after = state_of(net)
    for key, value in before.items():
        assert same(value, after[key]), key
    assert torch.equal(x, copy)
    assert not x.requires_grad


def test_dropout_and_batch_norm_do_not_count() -> None:
    """In evaluation mode the network is one affine map, with a Lie derivative that follows from it."""
    net, x = with_gradients(None), normal(12, 3)
    net.double()
    report = audit(net, x, VECTORS, **SMALL)
    net.eval()
    own = lie_derivative_error(net, x, VECTORS)
    assert abs(report.figures["lie"]["total"].value - float(own.total)) < 1e-12


def test_a_batch_norm_in_training_mode_is_measured_in_evaluation_mode() -> None:
    with global_seed(0):
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    net.train()
    report = audit(net, normal(16, 3), VECTORS, **SMALL)
    assert net.training
    assert net[1].num_batches_tracked == 0
    net.eval()
    assert (
        abs(report.figures["lie"]["total"].value - float(lie_derivative_error(net, normal(16, 3), VECTORS).total))
        < 1e-12
    )


def test_default_dtype_stays() -> None:
    """Also where the float64 copy runs with another one: a constant that follows the default dtype."""

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("ij,nj->ni", torch.eye(3), x)

    report = audit(Constant(), normal(8, 3).float(), VECTORS, **SMALL)
    assert report.verdict == "exact to rounding"
    assert report.figures["floor"]["in_float64"].value < 1e-14
    assert torch.get_default_dtype() == torch.float32
