"""The non-equivariant branch on a layer's output, f(x) + theta n(x), by a forward hook: the layer is not edited."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_equiv.layers.layer import Layer, wrong_size
from lightning_equiv.wiring.evaluation import set_flag
from lightning_equiv.wiring.in_place import version
from lightning_equiv.wiring.recomputation import in_backward, in_extra_pass


def make_branch(layer: Layer, kind: str, scale: float) -> nn.Module:
    """The branch of a layer whose features are known.

    Args:
        layer: with `in_features` and `out_features`.
        kind: "linear" or "mlp"; a convolution gets a convolution for "linear".
        scale: standard deviation of n(x) over that of x at the start; 0 starts at n = 0.
    """
    return layer.family.branch(layer, kind, scale)


@dataclass(eq=False)
class Branch:
    """The branch of a layer, while it is attached.

    Attributes:
        layer: the layer.
        network: n.
        theta: relaxation level, a scalar tensor that no module owns (weight averaging averages buffers).
        active: whether the layer's output is relaxed at all; off, the layer is untouched.
        listening: whether inputs are remembered for a penalty.
        inputs: what the layer was called with, detached, since listening began, where nothing learns or observes.
        calls: how often the layer ran while listening.
        ever_ran: whether it ever did.
        awaiting: whether the backward pass of what was listened to may run the layer again (gradient checkpointing).
        level: (x, f(x)) -> theta of this very call while listening or awaiting; None takes `theta`.
        observe: called with (n(x), f(x)), detached, of every call while listening.
        version: of the layer's input, before the call that runs; None in a compiled one.
        off: above 0, the layer is left alone whatever `active` says.
    """

    layer: Layer
    network: nn.Module
    theta: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    active: bool = False
    listening: bool = False
    awaiting: bool = False
    inputs: list[Tensor] = field(default_factory=list)
    calls: int = 0
    ever_ran: bool = False
    level: Callable[[Tensor, Tensor], Tensor] | None = None
    observe: Callable[[Tensor, Tensor], None] | None = None
    version: int | None = None
    off: int = 0
    _held: list[nn.Module] = field(default_factory=list)

    def set_theta(self, value: float) -> None:
        """A new level; exactly 0 leaves the layer alone."""
        self.theta.fill_(value)
        self.active = value != 0

    def start(self) -> None:
        """Begin to listen."""
        self.inputs, self.calls, self.listening = [], 0, True

    def stop(self) -> None:
        """Stop listening; the inputs stay until the next start."""
        self.listening = False

    def learns(self, module: nn.Module) -> bool:
        """Whether the call that runs is one of a training step's own, or one that its backward pass runs again.

        From the second of them on the branch's norm is held: all calls of a step have one.

        Args:
            module: the LightningModule, whose extra passes are neither.
        """
        again = in_backward()
        if not (self.listening or (again and not in_extra_pass(module))):
            return False
        if again or self.calls > 1:
            self._hold()
        return True

    def await_backward(self, awaiting: bool) -> None:
        """Whether the backward pass of this step is still to come; with it the norm is held no longer."""
        self.awaiting = awaiting
        if not awaiting:
            for module in self._held:
                set_flag(module, training=True)
            self._held = []

    def _hold(self) -> None:
        """Divide the branch by its norm as it was estimated last, without a further step of the power iteration."""
        for module in getattr(self.network, "parametrizations", nn.ModuleDict()).modules():
            if module.training:
                self._held.append(module)
                set_flag(module, training=False)

    def is_strict(self, threshold: float) -> bool:
        """Whether so little is relaxed that the layer is left without its branch."""
        return abs(float(self.theta)) < threshold

    def apply(self, x: Tensor, f_x: Tensor) -> Tensor:
        """n(x), in the shape of f(x)."""
        return self.layer.family.apply(self.layer, self.network, x, f_x)

    def rows(self, x: Tensor) -> Tensor:
        """A layer's input (..., features, ...) as (rows, features), for a convolution as (batch, features, *grid)."""
        return self.layer.family.rows(self.layer, x)

    def unrows(self, rows: Tensor, output: Tensor) -> Tensor:
        """Rows of output features in the shape of the layer's output."""
        return self.layer.family.unrows(self.layer, rows, output)


def tensors(layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> tuple[Tensor, Tensor]:
    """(x, f(x)) of a layer's call.

    Raises:
        TypeError: one of them is no tensor.
    """
    x, f_x = layer.family.first_tensor(args, kwargs), layer.family.tensor(output)
    if f_x is None or x is None:
        raise TypeError(
            f"{layer.name!r} maps {type(args[0] if args else None).__name__} to "
            f"{type(output).__name__}: a branch needs a layer from a tensor to a tensor; choose one inside"
        )
    return x, f_x


def check_call(branch: Branch, x: Tensor, f_x: Tensor) -> None:
    """ValueError unless the features of a call are as large as the branch was made for, and x is what it was."""
    layer = branch.layer
    if branch.version is not None and version(x) != branch.version:
        raise ValueError(
            f"layer {layer.name!r} ({type(layer.module).__name__}) changes its input in place, and the branch would "
            "see what is left of it: expected a layer that works on a copy, write x = 2 * x in the place of x *= 2, or "
            "x = x.clone() before"
        )
    for side, tensor, declared in (("in", x, layer.in_features), ("out", f_x, layer.out_features)):
        if (measured := layer.family.features(layer, tensor)) != declared:
            raise wrong_size(layer, side, declared, measured)


def relaxed(branch: Branch, theta: Tensor, x: Tensor, output: Any) -> Any:
    """f(x) + theta n(x), as a tensor or as what the layer returns (escnn's geometric tensor)."""
    f_x = branch.layer.family.tensor(output)
    assert f_x is not None
    n_x = branch.apply(x, f_x)
    if n_x.shape != f_x.shape:
        raise ValueError(
            f"layer {branch.layer.name!r}: its branch gives {tuple(n_x.shape)} beside an output of "
            f"{tuple(f_x.shape)}: expected equal shapes; say the layer's representations, "
            "layers={name: (inputs, outputs)}"
        )
    if branch.observe is not None and branch.listening and not in_backward():
        branch.observe(n_x.detach(), f_x.detach())
    total = f_x + (theta * n_x).to(f_x.dtype)
    return branch.layer.family.wrapped(total, output)


# attached in this thread: another one's cloning is not ours
_attached: ContextVar[frozenset[Branch]] = ContextVar("_attached", default=frozenset())


@contextmanager
def branches_off() -> Iterator[None]:
    """Inside, the layers are the user's, whatever branches were attached in this thread."""
    branches = _attached.get()
    for branch in branches:
        branch.off += 1
    try:
        yield
    finally:
        for branch in branches:
            branch.off -= 1


def attach_branch(branch: Branch) -> Callable[[], None]:
    """Make the layer's output f(x) + theta n(x) from now on; the function returned detaches the branch."""

    def relax(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if branch.off or not (branch.active or branch.listening) or called is not branch.layer.module:
            return None  # a copy of the layer has the hook, too
        x, f_x = tensors(branch.layer, args, kwargs, output)
        if not x.numel():
            return None  # a call without rows has nothing to relax, and counts nothing
        if branch.listening and not in_backward():
            branch.ever_ran = True
            check_call(branch, x, f_x)
            branch.calls += 1
            if branch.active and branch.level is None and branch.observe is None:
                branch.inputs.append(x.detach())
        if not branch.active:
            return None
        level = branch.level if branch.listening or branch.awaiting else None
        theta = branch.theta if level is None else level(x, f_x)
        return relaxed(branch, theta, x, output)

    def note(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        branch.version = None
        if branch.listening and not torch.compiler.is_compiling():
            x = branch.layer.family.first_tensor(args, kwargs)
            branch.version = None if x is None else version(x)

    module = branch.layer.module
    hooks = (
        module.register_forward_pre_hook(note, with_kwargs=True),
        module.register_forward_hook(relax, with_kwargs=True),
    )
    _attached.set(_attached.get() | {branch})

    def detach() -> None:
        for hook in hooks:
            hook.remove()
        _attached.set(_attached.get() - {branch})

    return detach


def container_key(layer: Layer) -> str:
    """The name of a layer's branch in the container, where a name has no dots."""
    return layer.name.replace(".", "-")
