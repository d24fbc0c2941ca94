"""The derivative of a network along a direction, by the first of three methods that the network allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_equiv.representations.action import wide

Method = Literal["jvp", "double_backward", "central_difference"]
Function = Callable[[list[Tensor]], Sequence[Tensor]]
Derivative = tuple[list[Tensor], list[Tensor]]

_AGREES = 0.01  # relative distance from the central difference of a derivative that nobody doubts
_ROUNDINGS = 4  # error of an output of size 1, in units of the rounding error
_STEPS_APART = 3  # two central differences, as far apart as rounding and kinks may bring them
_HALF = (torch.float16, torch.bfloat16)


def directional_derivative(
    function: Function,
    primals: Sequence[Tensor],
    tangents: Sequence[Tensor],
    method: Method | Literal["auto"] = "auto",
) -> tuple[list[Tensor], list[Tensor], Method]:
    r"""f(x) and J_f(x) v = d/dt f(x + t v) at t = 0, for a network f, and how they were found.

        jvp                  forward-mode differentiation: one pass, exact; also through a network that differentiates
                             inside, where gradients are enabled
        double_backward      d/dc <c, J_f v> of the backward pass: exact, for operators that have no forward formula
        central_difference   ( f(x + h v) - f(x - h v) ) / 2h: two passes, error about eps^(2/3); always possible

    `auto` takes the first that runs and agrees with a central difference to 1 %: a network that leaves the graph
    (`detach`, `no_grad` or `item` inside) has a wrong derivative by the first two, without any error. Where central
    differences of two steps disagree with each other (a kink, a jump, rounding), they are no reason to doubt.

    Args:
        function: f, from a list of tensors to a list of tensors; it gets copies of its own.
        primals: x, floating point.
        tangents: v, in the shapes of x.
        method: which one. A named method is not checked.

    Returns:
        f(x) and the derivatives (0 where an output does not depend on x), both without gradients, and the method.

    Raises:
        ValueError: an unknown method, or a central difference in half precision, which would be rounding.

    Examples:
        >>> y, dy, method = directional_derivative(lambda x: [x[0] ** 2], [torch.tensor([3.0])], [torch.tensor([1.0])])
        >>> y, dy, method
        ([tensor([9.])], [tensor([6.])], 'jvp')
        >>> leaves_the_graph = lambda x: [x[0].detach() ** 2]
        >>> directional_derivative(leaves_the_graph, [torch.tensor([3.0])], [torch.tensor([1.0])])[2]
        'central_difference'
    """
    check_method(method)
    with _settings_kept(), torch.no_grad():
        x, v = ([t.detach().clone() for t in side] for side in (primals, tangents))
    if not x:
        y = _detached(function([]))
        return y, [torch.zeros_like(t) for t in y], "jvp" if method == "auto" else method
    if method != "auto":
        return *_METHODS[method](function, x, v), method
    reason: RuntimeError | str = "a derivative of 0 or the like, since it leaves the graph (detach, item)"
    difference: Derivative | None = None
    for exact in ("jvp", "double_backward"):
        try:
            found = _METHODS[exact](function, x, v)
        except RuntimeError as error:  # NotImplementedError is one; what is the network's own comes again below
            reason = error
            continue
        difference = difference or _difference(function, x, v)
        if not _doubtful(function, x, v, found, difference):
            return *found, exact
    difference = difference or _difference(function, x, v)  # raises what is the network's own
    if any(t.dtype in _HALF for t in x):
        raise ValueError(
            f"expected a network that can be differentiated, or float32, got {x[0].dtype}, of which a central "
            f"difference is rounding: measure a copy of the network in float32. Differentiating it gave: {reason}"
        )
    return *difference, "central_difference"


def check_method(method: str) -> None:
    """ValueError unless there is such a method."""
    if method not in (names := ("auto", *get_args(Method))):
        raise ValueError(f"expected method to be one of {names}, got {method!r}")


def jvp(function: Function, primals: Sequence[Tensor], tangents: Sequence[Tensor]) -> Derivative:
    """f(x) and J v, forward-mode; NotImplementedError for an operator without a forward formula.

    Where gradients are enabled x requires one, so that a network which differentiates inside keeps the tangent.
    """
    with _settings_kept(), _plain_attention():
        leaves = [x.detach().requires_grad_(torch.is_grad_enabled()) for x in primals]
        with forward_ad.dual_level():
            outputs = function([forward_ad.make_dual(x.clone(), v) for x, v in zip(leaves, tangents, strict=True)])
            found = [forward_ad.unpack_dual(y) for y in outputs]
            return _detached(y for y, _ in found), _detached(_or_zero(y, dy) for y, dy in found)


def double_backward(function: Function, primals: Sequence[Tensor], tangents: Sequence[Tensor]) -> Derivative:
    """f(x) and J v, as the derivative of <c, J v> = <J^T c, v> with respect to c."""
    with _settings_kept(), _plain_attention(), torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in primals]
        outputs = list(function([x.clone() for x in leaves]))
        places = [i for i, y in enumerate(outputs) if y.requires_grad]
        derivatives = [torch.zeros_like(y) for y in outputs]
        if places:
            ys = [outputs[i] for i in places]
            cs = [torch.zeros_like(y, requires_grad=True) for y in ys]
            backward = torch.autograd.grad(ys, leaves, cs, create_graph=True, allow_unused=True)  # J^T c, linear in c
            known = [(b, v) for b, v in zip(backward, tangents, strict=True) if b is not None]
            if known:
                slopes = torch.autograd.grad([b for b, _ in known], cs, [v for _, v in known], allow_unused=True)
                if all(slope is None for slope in slopes):
                    raise RuntimeError("the network's backward pass cannot be differentiated again")
                for i, slope in zip(places, slopes, strict=True):
                    derivatives[i] = _or_zero(outputs[i], slope)
        return _detached(outputs), _detached(derivatives)


def central_difference(function: Function, primals: Sequence[Tensor], tangents: Sequence[Tensor]) -> Derivative:
    """f(x) and ( f(x + h v) - f(x - h v) ) / 2h, with h |v| = eps^(1/3) |x|.

    Raises:
        ValueError: half precision.
    """
    if any(x.dtype in _HALF for x in primals):
        raise ValueError(
            f"expected float32 or float64 for a central difference, got {primals[0].dtype}, of which it is rounding: "
            "measure a copy of the network in float32"
        )
    return _difference(function, primals, tangents)


def _difference(function: Function, primals: Sequence[Tensor], tangents: Sequence[Tensor]) -> Derivative:
    with _settings_kept():
        outputs = _detached(function(_copies(primals)))
        return outputs, _slope(function, primals, tangents, step_size(primals, tangents))


def step_size(primals: Sequence[Tensor], tangents: Sequence[Tensor]) -> Tensor:
    """h, such that no tensor is moved by more than eps^(1/3) of its size (or of 1, where it is 0)."""
    eps = max(torch.finfo(x.dtype).eps for x in primals)
    sizes = [(wide(x).abs().max(), wide(v).abs().max()) for x, v in zip(primals, tangents, strict=True) if x.numel()]
    speeds = [torch.where(x > 0, v / x, v) for x, v in sizes]
    fastest = torch.stack(speeds).max()
    return eps ** (1 / 3) / torch.where(fastest > 0, fastest, 1.0)


_METHODS: dict[str, Callable[[Function, Sequence[Tensor], Sequence[Tensor]], Derivative]] = {
    "jvp": jvp,
    "double_backward": double_backward,
    "central_difference": central_difference,
}


def _slope(function: Function, primals: Sequence[Tensor], tangents: Sequence[Tensor], h: Tensor) -> list[Tensor]:
    """( f(x + h v) - f(x - h v) ) / 2h; 0 for whole numbers."""
    pairs = list(zip(primals, tangents, strict=True))
    after, before = (_detached(function([x + (sign * h).to(x) * v.to(x) for x, v in pairs])) for sign in (1, -1))
    return [
        (a - b) / (2 * h).to(a) if a.is_floating_point() else torch.zeros_like(a)
        for a, b in zip(after, before, strict=True)
    ]


def _doubtful(
    function: Function,
    primals: Sequence[Tensor],
    tangents: Sequence[Tensor],
    found: Derivative,
    difference: Derivative,
) -> bool:
    """Whether a derivative differs from central differences by more than these from each other."""
    h = step_size(primals, tangents)
    eps = max(torch.finfo(x.dtype).eps for x in primals)
    size = _norm(difference[1])
    apart = _distance(found[1], difference[1])
    if bool(apart <= _AGREES * size + _ROUNDINGS * eps / h.to(size) * _norm(difference[0])):
        return False
    other = _slope(function, primals, tangents, 4 * h)
    return bool(apart > _STEPS_APART * _distance(difference[1], other))


def _distance(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    return _norm([a - b for a, b in zip(left, right, strict=True)])


def _norm(xs: Sequence[Tensor]) -> Tensor:
    """|x| of all tensors together."""
    norms = [torch.linalg.vector_norm(wide(x)) for x in xs if x.is_floating_point()]
    return torch.stack(norms).norm() if norms else torch.zeros(())


def _or_zero(y: Tensor, derivative: Tensor | None) -> Tensor:
    return torch.zeros_like(y) if derivative is None else derivative


def _copies(xs: Sequence[Tensor]) -> list[Tensor]:
    return [x.clone() for x in xs]


def _detached(xs: Iterable[Tensor]) -> list[Tensor]:
    """Copies without gradients: the network's next call may use the same memory."""
    return [x.detach().clone() for x in xs]


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Inside, attention is computed by products and a softmax: its fused kernels have no derivatives of derivatives."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _settings_kept() -> Iterator[None]:
    """Outside inference mode, which knows no derivatives, with gradients enabled or not as before."""
    enabled = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(enabled):
        yield
