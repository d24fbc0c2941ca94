"""Directional derivatives: three methods against each other and against closed forms, and which one is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from lightning_equiv.metrics import derivative
from lightning_equiv.metrics.derivative import Method, central_difference, directional_derivative
from tests.helpers import close, global_seed, normal

X, V = normal(4, 6, seed=1), normal(4, 6, seed=2)
METHODS = get_args(Method)


def built(make: Callable[[], nn.Module]) -> nn.Module:
    with global_seed(0):
        return make().double().eval().requires_grad_(False)


class Attention(nn.Module):
    """Each row is six tokens; fused attention has no derivative of its derivative."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x[:, :, None] * torch.arange(1.0, 5.0, dtype=x.dtype)).flatten(1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x.unflatten(1, (3, 2)))[0].flatten(1)


class Sampled(nn.Module):
    """A picture read where x points, which `grid_sample` does not differentiate twice in every way."""

    def __init__(self) -> None:
        super().__init__()
        self.picture = nn.Parameter(normal(1, 1, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        grid = x.unflatten(1, (3, 1, 2)).tanh()
        picture = self.picture.expand(len(x), -1, -1, -1)
        return nn.functional.grid_sample(picture, grid, mode="bicubic", align_corners=False).flatten(1)


class Square(torch.autograd.Function):
    """x^2 without a forward formula."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * c


class SquareOnce(Square):
    """x^2 whose gradient has no gradient either."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, c: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * c


class Forces(nn.Module):
    """The gradient of an energy, taken inside.

    Args:
        how: "graph" for one that can be differentiated again, "plain", or "backward" for `Tensor.backward`.
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.energy = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            if self.how == "backward":
                x = x.detach().requires_grad_()
                self.energy(x).sum().backward(inputs=[x])
                return x.grad
            x = x if x.requires_grad else x.detach().requires_grad_()
            return torch.autograd.grad(self.energy(x).sum(), x, create_graph=self.how == "graph")[0]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MLP": lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.LayerNorm(5)),
    "ReLU in place": lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 5)),
    "ReLU in place on the input": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 5)),
    "convolutions": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 3, padding=1), nn.SiLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 2)
    ),
    "attention": lambda: Attention(2),
}


# ---- the methods against each other ----------------------------------------------------------------------------------
@pytest.mark.parametrize(("method", "tolerance"), [("jvp", 1e-12), ("double_backward", 1e-12)])
def test_of_a_polynomial(method: Method, tolerance: float) -> None:
    a, b, da, db = (normal(3, 2, seed=i) for i in range(4))

    def function(xs: list[Tensor]) -> list[Tensor]:
        return [xs[0] ** 2 * xs[1], xs[1].sum(), torch.ones(2), xs[0].argmax(1)]

    outputs, derivatives, used = directional_derivative(function, [a, b], [da, db], method)
    assert used == method
    for y, expected in zip(outputs, function([a, b]), strict=True):
        assert torch.equal(y, expected)
    close(derivatives[0], 2 * a * da * b + a**2 * db, tolerance)
    close(derivatives[1], db.sum(), tolerance)
    assert not any(bool(d.any()) for d in derivatives[2:])
    assert not any(t.requires_grad for t in (*outputs, *derivatives))
    _, differences, _ = directional_derivative(function, [a, b], [da, db], "central_difference")
    for d, exact in zip(differences, derivatives, strict=True):
        close(d, exact, 1e-8)
        assert d.dtype == exact.dtype


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_three_methods_agree(name: str, gradients: bool) -> None:
    network = built(NETWORKS[name])

    def function(xs: list[Tensor]) -> list[Tensor]:
        return [network(xs[0])]

    with torch.set_grad_enabled(gradients):
        found = {method: directional_derivative(function, [X], [V], method)[1][0] for method in METHODS}
        y, auto, used = directional_derivative(function, [X], [V])
    assert used == "jvp"
    assert float(found["jvp"].abs().max()) > 0.01
    assert torch.equal(auto[0], found["jvp"])
    close(y[0], network(X.clone()))
    close(found["double_backward"], found["jvp"], 1e-8)
    close(found["central_difference"], found["jvp"], 1e-7)


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9], ids=str)
def test_central_differences_in_any_unit(size: float) -> None:
    """h follows the sizes of x and of v, whatever these are."""

    def function(xs: list[Tensor]) -> list[Tensor]:
        return [(xs[0] / size).sin()]

    for speed in (1e-6, 1.0, 1e6):
        _, (found,), _ = directional_derivative(function, [size * X], [speed * V], "central_difference")
        close(found * size / speed, X.cos() * V, 1e-8)


def test_central_differences_at_zero_and_at_rest() -> None:
    _, (found,), _ = directional_derivative(lambda xs: [xs[0].sin()], [0 * X], [V], "central_difference")
    close(found, V, 1e-8)
    _, (found,), _ = directional_derivative(lambda xs: [xs[0].sin()], [X], [0 * V], "central_difference")
    assert not bool(found.any())


def test_central_differences_in_float32() -> None:
    _, (found,), _ = directional_derivative(lambda xs: [xs[0].sin()], [X.float()], [V.float()], "central_difference")
    close(found, X.cos() * V, 1e-3)


# ---- which one is taken ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("square", "expected"), [(Square.apply, "double_backward"), (SquareOnce.apply, "central_difference")]
)
def test_auto_falls_back_where_a_formula_is_missing(square: Callable[[Tensor], Tensor], expected: str) -> None:
    def function(xs: list[Tensor]) -> list[Tensor]:
        return [square(xs[0])]

    _, (found,), used = directional_derivative(function, [X], [V])
    assert used == expected
    close(found, 2 * X * V, 1e-8)
    for method in METHODS[: METHODS.index(expected)]:
        with pytest.raises(RuntimeError):
            directional_derivative(function, [X], [V], method)


@pytest.mark.parametrize("make", [Recurrent, Sampled])
def test_auto_finds_the_derivative_of_awkward_operators(make: Callable[[], nn.Module]) -> None:
    network = built(make)

    def function(xs: list[Tensor]) -> list[Tensor]:
        return [network(xs[0])]

    _, (found,), used = directional_derivative(function, [X], [V])
    _, (expected,), _ = directional_derivative(function, [X], [V], "central_difference")
    assert used != "central_difference"
    assert float(found.abs().max()) > 0.01
    close(found, expected, 1e-6)


@pytest.mark.parametrize(
    ("how", "gradients", "expected"),
    [
        ("graph", True, "jvp"),
        ("plain", True, "jvp"),
        ("graph", False, "double_backward"),
        ("plain", False, "central_difference"),
        ("backward", True, "central_difference"),
        ("backward", False, "central_difference"),
    ],
)
def test_forces_of_an_energy(how: str, gradients: bool, expected: str) -> None:
    network = built(lambda: Forces(how))
    hessian = torch.stack([torch.func.hessian(lambda x: network.energy(x)[0])(x) for x in X])
    with torch.set_grad_enabled(gradients):
        _, (found,), used = directional_derivative(lambda xs: [network(xs[0])], [X], [V])
    assert used == expected
    close(found, (hessian @ V[..., None])[..., 0], 1e-7)


def inside_inference_mode(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.sin()


LEAVES_THE_GRAPH: dict[str, Callable[[Tensor], Tensor]] = {
    "detach": lambda x: x.detach().sin(),
    "detach, a part": lambda x: x.sin() * x.detach().norm(),
    "data": lambda x: x.data.sin(),
    "item": lambda x: x * x.detach().abs().max().item(),
    "numpy": lambda x: torch.from_numpy(x.detach().numpy() ** 2),
    "inference mode": inside_inference_mode,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", LEAVES_THE_GRAPH)
def test_auto_notices_a_network_that_leaves_the_graph(name: str, dtype: torch.dtype) -> None:
    def function(xs: list[Tensor]) -> list[Tensor]:
        return [LEAVES_THE_GRAPH[name](xs[0])]

    x, v = X.to(dtype), V.to(dtype)
    _, (found,), used = directional_derivative(function, [x], [v])
    assert used == "central_difference"
    _, (expected,), _ = directional_derivative(function, [X], [V], "central_difference")
    assert float(expected.abs().max()) > 0.1
    close(found, expected, 1e-6 if dtype == torch.float64 else 2e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "function",
    [lambda x: (x.abs() * 100).floor() + x**2, lambda x: (40 * x).relu().frac(), lambda x: (x[:, :3] > 0) * x[:, 3:]],
    ids=["steps", "saw", "mask"],
)
def test_kinks_and_jumps_are_no_reason_for_doubt(function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    x = torch.linspace(-1, 1, 6000, dtype=dtype).reshape(-1, 6)
    assert directional_derivative(lambda xs: [function(xs[0])], [x], [x.flip(0) + 1])[2] == "jvp"


def test_rounding_is_no_reason_for_doubt() -> None:
    """An invariant network, whose derivative is 0, after layers that round."""
    rows, turns = X.reshape(-1, 2).float(), torch.tensor([[0.0, -1.0], [1.0, 0.0]])

    calls = []

    def function(xs: list[Tensor]) -> list[Tensor]:
        calls.append(xs[0])
        return [sum((xs[0] / k).norm(dim=-1).exp() for k in range(1, 50))]

    _, (found,), used = directional_derivative(function, [rows], [rows @ turns.T])
    assert used == "jvp"
    assert float(found.abs().max()) < 1e-4
    assert len(calls) == 4


def test_auto_asks_the_network_four_times() -> None:
    calls = []

    def function(xs: list[Tensor]) -> list[Tensor]:
        calls.append(xs[0])
        return [(30 * xs[0]).sin()]

    directional_derivative(function, [X], [V])
    assert len(calls) == 4  # one with the derivative, f(x) and two for the check
    directional_derivative(function, [X], [V], "jvp")
    assert len(calls) == 5


# ---- errors, and what is left alone ----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [RuntimeError, NotImplementedError, ValueError, TypeError, KeyError])
@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_an_error_of_the_network_comes_through(method: Method, kind: type[Exception]) -> None:
    def function(xs: list[Tensor]) -> list[Tensor]:
        raise kind("the network's own")

    with pytest.raises(kind, match="the network's own"):
        directional_derivative(function, [X], [V], method)


def test_an_unknown_method() -> None:
    with pytest.raises(ValueError, match=r"expected method to be one of \('auto', 'jvp', .*, got 'forward'"):
        directional_derivative(lambda xs: xs, [X], [V], "forward")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    x, v = X.to(dtype), V.to(dtype)
    _, (found,), used = directional_derivative(lambda xs: [xs[0].sin()], [x], [v])
    assert (used, found.dtype) == ("jvp", dtype)
    close(found, X.cos() * V, 3e-2)
    with pytest.raises(ValueError, match=f"float32 or float64 for a central difference, got {dtype}"):
        directional_derivative(lambda xs: [xs[0].sin()], [x], [v], "central_difference")
    with pytest.raises(ValueError, match=f"expected a network that can be differentiated, or float32, got {dtype}"):
        directional_derivative(lambda xs: [SquareOnce.apply(xs[0])], [x], [v])
    with pytest.raises(ValueError, match=r"since it leaves the graph \(detach"):
        directional_derivative(lambda xs: [xs[0].detach() ** 2], [x], [v])

    def fails(xs: list[Tensor]) -> list[Tensor]:
        raise RuntimeError("the network's own")

    with pytest.raises(RuntimeError, match="the network's own"):
        directional_derivative(fails, [x], [v])


def test_nothing_to_differentiate_by() -> None:
    y, dy, used = directional_derivative(lambda xs: [X], [], [])
    assert torch.equal(y[0], X)
    assert not bool(dy[0].any())
    assert used == "jvp"


@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_everything_is_left_as_it_was(method: Method) -> None:
    network = built(NETWORKS["ReLU in place on the input"]).requires_grad_()
    x, v = X.clone().requires_grad_(), V.clone()
    fails = False

    def settings() -> tuple[Any, ...]:
        backends = torch.backends
        return (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            backends.mha.get_fastpath_enabled(),
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
        )

    def function(xs: list[Tensor]) -> list[Tensor]:
        if fails:
            raise KeyError("the network's own")
        assert torch.is_grad_enabled() == (enabled or used_methods == {"double_backward"})
        return [network(xs[0].mul_(1.0))]  # in place, too

    used_methods = {"jvp" if method == "auto" else method}
    torch.backends.mha.set_fastpath_enabled(True)
    for mode in (torch.no_grad(), torch.enable_grad(), torch.inference_mode()):
        with mode:
            before, enabled = settings(), torch.is_grad_enabled()
            fails = False
            y, _, used = directional_derivative(function, [x], [v], method)
            assert used == method or method == "auto"
            assert not y[0].is_inference()
            fails = True
            with pytest.raises(KeyError):
                directional_derivative(function, [x], [v], method)
            assert settings() == before
    assert torch.equal(x, X)
    assert torch.equal(v, V)
    assert x.grad is None
    assert all(p.grad is None for p in network.parameters())
    with torch.autograd.forward_ad.dual_level():  # of which there may be one: none was left open
        pass


def test_outputs_are_copies() -> None:
    """A network may return the same memory at each call."""
    memory = torch.zeros_like(X)

    def function(xs: list[Tensor]) -> list[Tensor]:
        return [memory.copy_(xs[0].sin())]

    y, (slope,) = central_difference(function, [X], [V])
    close(slope, X.cos() * V, 1e-8)
    close(y[0], X.sin())


def test_the_step_is_small_enough_for_every_tensor() -> None:
    h = derivative.step_size([torch.tensor([1e-3]), torch.tensor([1.0])], [torch.tensor([1.0]), torch.tensor([1.0])])
    close(h, torch.tensor(1e-3 * torch.finfo(torch.float32).eps ** (1 / 3)), 1e-6)
