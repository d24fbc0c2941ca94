"""The calls of chosen layers inside a pass of a network: remembered once, then repeated with other features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from lightning_equiv.groups.group import Group
from lightning_equiv.layers.choose import Layers, find_layers
from lightning_equiv.layers.layer import Layer, LayerFamily
from lightning_equiv.metrics.measurement import Measurement
from lightning_equiv.representations.representation import Representation
from lightning_equiv.symmetry.bound_tensor import BoundTensor
from lightning_equiv.wiring.call_recorder import recording_paused

Action = Callable[[Representation, Tensor], Tensor]
Change = Callable[[int, Tensor], Tensor | None]


@dataclass(frozen=True)
class LayerCall:
    """One call of a chosen layer.

    Attributes:
        layer: its number among the layers.
        h: the input's features, the first floating point tensor that the layer was called with; None where it has none.
        y: f_i(h).
    """

    layer: int
    h: Tensor | None
    y: Tensor


class LayerCalls:
    """A network's call, and those of its chosen layers in it.

    Args:
        measurement: of the network.
        layers: chosen, with known representations.

    Attributes:
        layers: the layers.
        inside: the network differentiates inside: `needs_grad` says so, or gradients are enabled where a layer runs
            although they are not around the network. Features that take the place of others stay in their graph.
        calls: theirs, in the order in which the network makes them.

    Raises:
        ValueError: a layer did not run, runs inside torch.func.vmap, or maps no tensor to a tensor; its features do not
            fit its representation.
    """

    def __init__(self, measurement: Measurement, layers: Sequence[Layer]) -> None:
        self.measurement, self.layers, self.inside = measurement, list(layers), measurement.needs_grad
        self._inputs = [t for t in measurement.call.inputs.tensors if t.x.is_floating_point()]
        hs: dict[int, Tensor] = {}
        ys: dict[int, Tensor] = {}
        self.calls: list[LayerCall] = []
        self._order: list[int] = []

        def remember(kept: dict[int, Tensor]) -> Change:
            def change(k: int, x: Tensor) -> None:
                kept[k] = x.detach().clone()  # before what follows writes into it
                self.inside |= torch.is_grad_enabled()  # by the network itself: `measuring` leaves them off

            return change

        self._order = self._run(self.x, remember(hs), remember(ys))[1]
        self.calls = [LayerCall(layer, hs.get(k), ys[k]) for k, layer in enumerate(self._order)]
        if missing := [layer.name for i, layer in enumerate(self.layers) if i not in self._order]:
            raise ValueError(
                f"layers {missing} did not run in this call of the network: choose layers that do, or look whether "
                "their `forward` is called by itself, past the module's hooks"
            )
        for call in self.calls:
            self._check(call)

    @property
    def x(self) -> list[Tensor]:
        """The floating point tensors of the network's arguments."""
        return [t.x for t in self._inputs]

    @property
    def outputs(self) -> list[Tensor]:
        """f(x): the tensors of the output that are compared."""
        return [t.x for t in compared(self.measurement.f_x.tensors)]

    def moved_inputs(self, tensors: Sequence[BoundTensor]) -> list[Tensor]:
        """Those of a moved call, or of its derivative, that take the places of `x`."""
        places = {t.path for t in self._inputs}
        return [t.x for t in tensors if t.path in places]

    def features(self, action: Action) -> tuple[list[Tensor | None], list[Tensor]]:
        """What an action makes of h and y of every call."""
        hs = [None if c.h is None else self._acted(c, "inputs", c.h, action) for c in self.calls]
        return hs, [self._acted(c, "outputs", c.y, action) for c in self.calls]

    def run(
        self,
        x: Sequence[Tensor],
        hs: Mapping[int, Tensor] | None = None,
        ys: Mapping[int, Tensor] | None = None,
        added: Mapping[int, Tensor] | None = None,
    ) -> tuple[list[Tensor], dict[int, Tensor]]:
        """The network's output, and what the layers returned before another output took the place of theirs.

        Args:
            x: arguments in the places of the own ones.
            hs: number of a call -> features that the layer takes.
            ys: number of a call -> features that take the place of its output.
            added: number of a call -> features that are added to its output.

        Raises:
            ValueError: the network calls its layers in another way than the first time.
        """
        hs, ys, added = hs or {}, ys or {}, added or {}
        returned: dict[int, Tensor] = {}

        def take(k: int, h: Tensor) -> Tensor | None:
            return self._replaced(h, hs[k]) if k in hs else None

        def give(k: int, y: Tensor) -> Tensor | None:
            returned[k] = y
            if k in added:
                return y + added[k]
            return self._replaced(y, ys[k]) if k in ys else None

        found, order = self._run(x, take, give)
        if order != self._order:
            raise ValueError(
                f"expected the network to call its layers as before, {len(self._order)} times in the same order, got "
                f"{len(order)} calls: a network whose path depends on its features cannot be divided among layers"
            )
        return found, returned

    def _replaced(self, old: Tensor, new: Tensor) -> Tensor:
        """`new` in the place of `old`, of whose graph it stays a part where the network differentiates inside."""
        if not self.inside:
            return new.clone()  # what follows may work in place
        value, tangent = forward_ad.unpack_dual(old)
        constant = value.detach() if tangent is None else forward_ad.make_dual(value.detach(), tangent)
        return new + (old - constant)

    def _run(self, x: Sequence[Tensor], take: Change, give: Change) -> tuple[list[Tensor], list[int]]:
        """The network's output, and the layers in the order of their calls, whose features are changed."""
        order: list[int] = []
        open_calls: list[int] = []

        def hooks(number: int, layer: Layer) -> tuple[Any, Any]:
            family = layer.family

            def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                if module is not layer.module:  # a copy of it, which has the hook, too
                    return None
                open_calls.append(len(order))
                order.append(number)
                values: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
                places = (place for place, value in values.items() if _floating(family.tensor(value)))
                place = next(places, None)
                if place is None:
                    return None
                h = family.tensor(values[place])
                assert h is not None
                new = take(open_calls[-1], h)
                if new is None:
                    return None
                values[place] = family.wrapped(new, values[place])
                return tuple(values[i] for i in range(len(args))), {name: values[name] for name in kwargs}

            def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
                if module is not layer.module:
                    return None
                y = family.tensor(output)
                if y is None or family.first_tensor(args, kwargs) is None:
                    raise ValueError(
                        f"{layer.name!r} ({type(module).__name__}) maps {type(args[0] if args else None).__name__} to "
                        f"{type(output).__name__}: expected a layer from a tensor to a tensor; choose one inside"
                    )
                if _in_vmap(y):
                    raise ValueError(
                        f"layer {layer.name!r} runs inside torch.func.vmap, one input at a time, and its features "
                        "cannot be put in place for all of them: call it on whole batches, or choose layers outside"
                    )
                new = give(open_calls.pop(), y)
                return None if new is None else family.wrapped(new, output)

            return before, after

        bound = self.measurement.call
        own = {t.path: new for t, new in zip(self._inputs, x, strict=True)}
        args, kwargs = bound.unpack(bound.inputs.put(own.get(t.path, t.x).clone() for t in bound.inputs.tensors))
        with ExitStack() as undo, recording_paused():
            for number, layer in enumerate(self.layers):
                before, after = hooks(number, layer)
                undo.callback(layer.module.register_forward_pre_hook(before, with_kwargs=True).remove)
                undo.callback(layer.module.register_forward_hook(after, with_kwargs=True).remove)
            output = self.measurement.network(*args, **kwargs)
        return [t.x for t in compared(bound.output(output).tensors)], order

    def _check(self, call: LayerCall) -> None:
        """ValueError unless the group moves the features of a call in the way that its layer says."""
        layer = self.layers[call.layer]
        sides = [("output", layer.outputs, call.y)] + ([] if call.h is None else [("input", layer.inputs, call.h)])
        for word, representation, x in sides:
            assert representation is not None
            if not x.numel():
                continue
            try:
                representation.check(self.measurement.group, _rows(layer, x).shape)
            except ValueError as error:
                raise ValueError(
                    f"layer {layer.name!r} ({type(layer.module).__name__}), its {word} of shape {tuple(x.shape)}: "
                    f"{error}; write layers={{{layer.name!r}: (inputs, outputs)}} with representations of that size"
                ) from None

    def _acted(self, call: LayerCall, side: str, x: Tensor, action: Action) -> Tensor:
        layer = self.layers[call.layer]
        representation = getattr(layer, side)
        rows = _rows(layer, x)
        features = layer.family.features(layer, x)
        if not rows.numel():
            return x
        moved = action(representation, rows).flatten(1, len(features))
        return layer.family.unrows(replace(layer, out_features=features), moved, x)


def layers_of(network: Any, layers: Layers, families: Sequence[LayerFamily], group: Group) -> list[Layer]:
    """The layers that are meant, each with a known input and output representation.

    Raises:
        TypeError: the network is no module.
        ValueError: a layer does not say how its features move, lies inside another one, or takes no hooks.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"expected a network that is an nn.Module, whose layers have names, got {network!r}")
    found = find_layers(network, layers, families)
    if unknown := [layer for layer in found if layer.inputs is None or layer.outputs is None]:
        listed = ", ".join(f"{layer.name!r} ({type(layer.module).__name__})" for layer in unknown)
        raise ValueError(
            f"{listed} {'does' if len(unknown) == 1 else 'do'} not say how elements of {group} move the features: "
            f"write layers={{{unknown[0].name!r}: (inputs, outputs)}}, e.g. ('1o', '16x0e'), or pass families="
        )
    for layer in found:
        if isinstance(layer.module, torch.jit.ScriptModule):
            raise ValueError(f"layer {layer.name!r} is scripted and takes no hooks: measure it before torch.jit.script")
        inside = next((other.name for other in found if layer.name.startswith(f"{other.name}.")), None)
        if inside is not None:
            raise ValueError(
                f"layer {layer.name!r} lies inside {inside!r}, which is chosen as well: choose one of them"
            )
        for representation in (layer.inputs, layer.outputs):
            assert representation is not None
            try:
                representation.check_group(group)
            except ValueError as error:
                raise ValueError(f"layer {layer.name!r} ({type(layer.module).__name__}): {error}") from None
    return found


def compared(tensors: Sequence[BoundTensor]) -> list[BoundTensor]:
    """The tensors of an output that move and have derivatives."""
    return [t for t in tensors if not t.representation.shared and t.x.is_floating_point()]


def _floating(x: Tensor | None) -> bool:
    return x is not None and x.is_floating_point()


def _in_vmap(x: Tensor) -> bool:
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        if torch._C._functorch.is_batchedtensor(x):
            return True
        x = torch._C._functorch.get_unwrapped(x)
    return False


def _rows(layer: Layer, x: Tensor) -> Tensor:
    """(rows, *features), for a convolution (batch, *features, *grid)."""
    rows = layer.family.rows(layer, x)
    return rows.unflatten(1, layer.family.features(layer, x)) if rows.numel() else rows
