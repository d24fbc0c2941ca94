"""The sums that layerwise figures are made of: defects of layers, and what they make of the network's output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_equiv._checks import check_number
from lightning_equiv._random import private_generator
from lightning_equiv.groups.group import AlgebraElement, GroupElement, element_dtype, moved_to
from lightning_equiv.layers.choose import Layers
from lightning_equiv.layers.layer import LayerFamily
from lightning_equiv.metrics.derivative import Function, Method, directional_derivative
from lightning_equiv.metrics.layer_calls import LayerCalls, compared, layers_of
from lightning_equiv.metrics.measurement import measuring
from lightning_equiv.representations.representation import Representation
from lightning_equiv.symmetry.symmetry import Symmetry, as_symmetry
from lightning_equiv.symmetry.tree import map_tensors

_ROUNDINGS = 50  # of a derivative that is 0, in units of the rounding error of what cancels in it
_REPEATS = 1e-2  # relative distance of features from the same ones computed again, in half precision at most

Features = list[Tensor]


def layerwise_sums(
    network: nn.Module,
    args: Any,
    symmetry: Symmetry,
    layers: Layers,
    *,
    families: Sequence[LayerFamily],
    kwargs: Mapping[str, Any] | None,
    num_samples: int | None,
    finite: bool,
    num_probes: int | None,
    generator: torch.Generator | None,
    needs_grad: bool,
    elements: GroupElement | None = None,
    algebra: AlgebraElement | None = None,
) -> tuple[tuple[str, ...], Tensor, bool]:
    """Names of the L layers; sums over inputs (4, L + 1); whether the network differentiates inside.

    The sums can be added up, and are in float64 where the device has it.
    Rows of the first L columns: |f_i(g h) - g f_i(h)|^2, |f_i(h)|^2, |J_{>i} L f_i|^2, <J_{>i} L f_i, L f>; of the
    last column: |L f|^2, |L f - sum_i J_{>i} L f_i|^2, what of |L f|^2 may be rounding, the number of inputs.
    """
    check_number("num_probes", num_probes, least=1, whole=True, optional=True)
    symmetry = as_symmetry(symmetry)
    with torch.inference_mode(False):
        x = map_tensors(
            lambda x: x.detach().clone(), (args if isinstance(args, tuple) else (args,), dict(kwargs or {}))
        )
        with measuring(network, x[0], symmetry, kwargs=x[1], generator=generator, needs_grad=needs_grad) as measurement:
            group = measurement.group
            found = layers_of(network, layers, families, group)
            calls = LayerCalls(measurement, found)
            # one element moves all inputs, so that nobody need know which rows of features are whose
            drawn = measurement.elements(num_samples, elements)[:: measurement.num_inputs]
            measured = _Sums(calls)
            directions = group.algebra(device=measurement.device) if algebra is None else algebra
            by_elements = elements is not None or finite or not len(directions)
            for i in range(len(drawn)):
                measured.add_element(drawn[i], len(drawn), by_elements)
            if not by_elements:
                measured.add_derivatives(directions.to(measurement.device), num_probes)
            return tuple(layer.name for layer in found), measured.values, calls.inside


class _Sums:
    """What `layerwise_sums` sums."""

    def __init__(self, calls: LayerCalls) -> None:
        self.calls, self.measurement = calls, calls.measurement
        self.of_layer = [[k for k, c in enumerate(calls.calls) if c.layer == i] for i in range(len(calls.layers))]
        device = self.measurement.device
        self.values = torch.zeros(4, len(calls.layers) + 1, dtype=element_dtype(device), device=device)
        self.values[3, -1] = self.measurement.num_inputs
        self.eps = max(torch.finfo(y.dtype).eps for y in (*calls.outputs, *(c.y for c in calls.calls)))
        self._methods: dict[str, Method] = {}

    # ---- with group elements -------------------------------------------------------------------------------------
    def add_element(self, g: GroupElement, of: int, terms: bool) -> None:
        """f_i(g h) - g f_i(h) of every layer, and with `terms` what that makes of the output; one of `of` elements."""
        calls, m = self.calls, self.measurement
        x = calls.moved_inputs(m.call.inputs.move(g).tensors)
        h, ys = calls.features(lambda representation, x: representation(g, x))
        hs = {k: x for k, x in enumerate(h) if x is not None}
        right = dict(enumerate(ys))
        _, returned = self._run(x, hs, right)
        for i, own in enumerate(self.of_layer):
            self.values[0, i] += self._square([returned[k] - ys[k] for k in own]) / of
            self.values[1, i] += self._square([calls.calls[k].y for k in own]) / of
        if not terms:
            return
        f_gx, _ = self._run(x)
        g_fx = [t.x for t in compared(m.f_x.move(g).tensors)]
        whole = _minus(f_gx, g_fx)
        parts = []
        for own in self.of_layer:
            part = [torch.zeros_like(y) for y in whole]
            for k in own:
                before = {j: right[j] for j in range(k)}
                wrong, put_right = (self._run(x, ys={**before, k: y})[0] for y in (returned[k], right[k]))
                part = _plus(part, _minus(wrong, put_right))
            parts.append(part)
        made = self._add_parts(whole, parts, of)
        self._add_whole(whole, parts, self._square(f_gx) + self._square(g_fx) + made, of)

    def _run(self, *args: Any, **kwargs: Any) -> tuple[Features, dict[int, Tensor]]:
        """`LayerCalls.run` without the graph that a network has left which differentiates inside."""
        found, returned = self.calls.run(*args, **kwargs)
        return [y.detach() for y in found], {k: y.detach() for k, y in returned.items()}

    # ---- with derivatives ----------------------------------------------------------------------------------------
    def add_derivatives(self, directions: AlgebraElement, num_probes: int | None) -> None:
        """L f_i of every layer along every direction, and what it makes of the output."""
        calls = self.calls
        # where the network differentiates inside, its backward pass has freed the graph that probes go back through
        exact = calls.inside or num_probes is None or len(calls.layers) * len(directions) <= num_probes
        self._find_method("output", *self._of_features(range(len(calls.calls))))
        exact = exact or self._methods["output"] == "central_difference"  # a backward pass would be wrong, too
        wholes, defects = [], []
        for i in range(len(directions)):
            whole, sizes = self._lie_derivative(directions[i])
            defect = self._defects(directions[i])
            if exact:
                parts = [self._propagated({k: defect[k] for k in own}) for own in self.of_layer]
                sizes = sizes + self._add_parts(whole, parts, 1)
            else:
                parts = [self._propagated(dict(enumerate(defect)))]
            self._add_whole(whole, parts, sizes, 1)
            wholes.append(whole)
            defects.append(defect)
        if not exact:
            assert num_probes is not None
            self._add_probes(wholes, defects, num_probes)

    def _lie_derivative(self, a: AlgebraElement) -> tuple[Features, Tensor]:
        """L f, and |f|^2 + |J_f A x|^2 + |A f|^2, of which a rounding error is left."""
        calls, m = self.calls, self.measurement
        tangents = calls.moved_inputs(m.call.inputs.derivative(a).tensors)
        f_x, slopes = self._derivative("network", lambda x: calls.run(x)[0], calls.x, tangents)
        turned = [t.x for t in compared(m.f_x.derivative(a).tensors)]
        return _minus(slopes, turned), self._square(f_x) + self._square(slopes) + self._square(turned)

    def _defects(self, a: AlgebraElement) -> Features:
        """L f_i of every call."""
        calls, m = self.calls, self.measurement
        x, dx = calls.x, calls.moved_inputs(m.call.inputs.derivative(a).tensors)
        dh, dy = calls.features(lambda representation, x: _infinitesimal(representation, a, x))
        ys = [c.y for c in calls.calls]
        taking = [k for k, h in enumerate(dh) if h is not None]
        primals = [*x, *(h for c in calls.calls if (h := c.h) is not None), *ys]
        tangents = [*dx, *(h for h in dh if h is not None), *dy]

        def layers(values: Sequence[Tensor]) -> Features:
            at, features = values[: len(x)], values[len(x) :]
            hs = dict(zip(taking, features, strict=False))
            _, returned = calls.run(at, hs, dict(enumerate(features[len(taking) :])))
            return [returned[k] for k in range(len(dy))]

        again, slopes = self._derivative("layers", layers, primals, tangents)
        if bool(self._square(_minus(again, ys)) > _REPEATS**2 * self._square(ys)):
            raise ValueError(
                "expected layers to return the same when their features are put back in place, got others: the network "
                "draws random numbers in evaluation mode, or a chosen layer writes into a tensor that is read elsewhere"
            )
        return _minus(slopes, dy)

    def _propagated(self, defects: Mapping[int, Tensor]) -> Features:
        """sum_k J_{>k} d_k over these calls."""
        function, primals = self._of_features(list(defects))
        return self._derivative("output", function, primals, list(defects.values()))[1]

    def _of_features(self, numbers: Sequence[int]) -> tuple[Function, Features]:
        """The network's output as a function of what these calls return, and what they do return."""
        calls = self.calls
        primals = [calls.calls[k].y for k in numbers]

        def output(values: Sequence[Tensor]) -> Features:
            added = {k: value - y for k, value, y in zip(numbers, values, primals, strict=True)}
            return calls.run(calls.x, added=added)[0]

        return output, primals

    def _derivative(
        self, name: str, function: Function, primals: Features, tangents: Features
    ) -> tuple[Features, Features]:
        """f(x) and J v, by the method that was found right for functions of this name."""
        if name not in self._methods:
            self._find_method(name, function, primals)
        found, slopes, _ = directional_derivative(function, primals, tangents, self._methods[name])
        return found, slopes

    def _find_method(self, name: str, function: Function, primals: Features) -> None:
        """Along x itself: L f_i may be 0, and then every method is right."""
        self._methods[name] = directional_derivative(function, primals, primals)[2]
        if name == "layers" and self.calls.inside and self._methods[name] == "double_backward":
            self._methods[name] = "central_difference"  # the graph also holds what other features took the place of
        if self._methods[name] == "central_difference":
            self.eps = max(self.eps, torch.finfo(primals[0].dtype).eps ** (2 / 3))

    def _add_probes(self, wholes: list[Features], defects: list[Features], num_probes: int) -> None:
        """c_i from probes and s_i from one backward pass for each direction: inner products with J_{>i}^T z."""
        calls, device = self.calls, self.measurement.device
        generator = self.measurement.generator or private_generator()
        with torch.enable_grad():
            leaves = [torch.zeros_like(c.y).requires_grad_() for c in calls.calls]
            outputs, _ = calls.run(calls.x, added=dict(enumerate(leaves)))
            places = [i for i, y in enumerate(outputs) if y.requires_grad]

        def pulled_back(z: Features) -> list[Tensor | None]:
            """J_{>k}^T z of every call."""
            if not places:
                return [None] * len(leaves)
            ys, zs = [outputs[i] for i in places], [z[i] for i in places]
            return list(torch.autograd.grad(ys, leaves, zs, retain_graph=True, allow_unused=True))

        def products(u: list[Tensor | None], d: Features) -> Tensor:
            """(L,) sums of u . d over the calls of each layer."""
            each = torch.stack(
                [self._inner([y], [torch.zeros_like(y) if v is None else v]) for v, y in zip(u, d, strict=True)]
            )
            return torch.stack([each[own].sum() for own in self.of_layer])

        for whole, d in zip(wholes, defects, strict=True):
            self.values[3, :-1] += products(pulled_back(whole), d)
        made = self.values.new_zeros(len(calls.layers))
        for _ in range(num_probes):
            z = [
                moved_to(torch.randn(y.shape, generator=generator, device=generator.device, dtype=y.dtype), device)
                for y in outputs
            ]
            u = pulled_back(z)
            made += torch.stack([products(u, d).square() for d in defects]).sum(0) / num_probes
        self.values[2, :-1] += made
        self.values[2, -1] += (_ROUNDINGS * self.eps) ** 2 * made.sum()

    # ---- sums ----------------------------------------------------------------------------------------------------
    def _add_parts(self, whole: Features, parts: list[Features], of: int) -> Tensor:
        """The square of every part and its product with the whole; the sum of the squares."""
        squares = torch.stack([self._square(part) for part in parts])
        self.values[2, :-1] += squares / of
        self.values[3, :-1] += torch.stack([self._inner(part, whole) for part in parts]) / of
        return squares.sum()

    def _add_whole(self, whole: Features, parts: list[Features], sizes: Tensor, of: int) -> None:
        """The square of the whole, of what no part is, and of what is rounding of numbers of these squared sizes."""
        rest = whole
        for part in parts:
            rest = _minus(rest, part)
        self.values[0, -1] += self._square(whole) / of
        self.values[1, -1] += self._square(rest) / of
        self.values[2, -1] += (_ROUNDINGS * self.eps) ** 2 * sizes / of

    def _inner(self, a: Features, b: Features) -> Tensor:
        dtype = self.values.dtype
        return torch.stack([(x.to(dtype) * y.to(dtype)).sum() for x, y in zip(a, b, strict=True)]).sum()

    def _square(self, a: Features) -> Tensor:
        return self._inner(a, a)


def _minus(a: Sequence[Tensor], b: Sequence[Tensor]) -> Features:
    return [x - y for x, y in zip(a, b, strict=True)]


def _plus(a: Sequence[Tensor], b: Sequence[Tensor]) -> Features:
    return [x + y for x, y in zip(a, b, strict=True)]


def _infinitesimal(representation: Representation, a: AlgebraElement, x: Tensor) -> Tensor:
    return torch.zeros_like(x) if representation.trivial else representation.infinitesimal(a, x)
