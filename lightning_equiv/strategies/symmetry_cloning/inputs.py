"""What a student is shown while it is taught: noise, or batches of the training data, and a family's weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_equiv._random import derived_generator
from lightning_equiv.groups.product import as_group
from lightning_equiv.symmetry.symmetry import Symmetry
from lightning_equiv.symmetry.tree import lookup, map_tensors

EPOCH = 100  # steps for which resample="epoch" keeps its weights
Resample = Literal["step", "epoch", "never"]
Match = Literal["output"] | Mapping[str, str]
Args = tuple[tuple[Any, ...], dict[str, Any]]
Inputs = Sequence[str | int] | Sequence[tuple[int, ...]] | Mapping[str, tuple[int, ...]] | Callable[[Any], Any]


@dataclass(frozen=True)
class Settings:
    """How a clone is made.

    Attributes:
        steps: at most so many.
        batch_size: drawn inputs of a step.
        lr: of Adam at the start; it falls along half a cosine.
        tolerance: wanted equivariance error eps; it stops at a held-out relative MSE of (eps / 2)^2.
        resample: how often the weights tau of a family of teachers are drawn again.
        match: "output", or names of the student's layers and of the teacher's that are to be equal.
        seed: of the draws.
        needs_grad: teacher or student differentiate inside.
    """

    steps: int
    batch_size: int
    lr: float
    tolerance: float
    resample: Resample
    match: Match
    seed: int
    needs_grad: bool = False

    @property
    def goal(self) -> float:
        """The held-out relative MSE at which to stop, (eps / 2)^2."""
        return (self.tolerance / 2) ** 2


class Draws:
    """Inputs of a step, a pure function of (seed, step): x, and tau for a family of teachers.

    Args:
        teacher: with `num_weights` where it is a family.
        x: step -> the arguments of a call, without tau.
        settings: when tau changes.
        like: a tensor on the device and in the precision in which the inputs are wanted.
    """

    def __init__(self, teacher: nn.Module, x: Callable[[int], Args], settings: Settings, like: Tensor) -> None:
        self.num_weights, self.x, self.settings, self.like = num_weights(teacher), x, settings, like

    def __call__(self, step: int) -> tuple[Args, Tensor | None]:
        """(args, kwargs) of the student without tau, and tau; step -1 is the held-out draw."""
        args, kwargs = map_tensors(self._placed, self.x(step))
        if not self.num_weights:
            return (args, kwargs), None
        resample, rows = self.settings.resample, len(args[0])
        place = {"step": step, "epoch": step // EPOCH if step >= 0 else -1, "never": 0}[resample]
        draw = derived_generator("tau", self.settings.seed, place)
        n = rows if resample == "step" or (resample == "epoch" and step < 0) else 1
        tau = torch.randn(n, self.num_weights, generator=draw).to(self.like)
        return (args, kwargs), tau.expand(rows, -1)

    def _placed(self, t: Tensor) -> Tensor:
        return t.to(self.like) if t.is_floating_point() else t.to(self.like.device)


def in_precision(dtype: torch.dtype, tree: Any) -> Any:
    """A tree with its floating-point tensors in another precision."""
    return map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, tree)


def num_weights(teacher: nn.Module) -> int:
    """Length of tau; 0 for a single network."""
    return int(getattr(teacher, "num_weights", 0))


def noise(
    shapes: Mapping[str, tuple[int, ...]] | tuple[tuple[int, ...], ...], settings: Settings
) -> Callable[[int], Args]:
    """Arguments of a call drawn from N(0, I), each (batch_size, *shape)."""

    def draw(step: int) -> Args:
        generator = derived_generator("x", settings.seed, step)
        n = settings.batch_size if step >= 0 else 8 * settings.batch_size

        def x(shape: tuple[int, ...]) -> Tensor:
            return torch.randn(n, *shape, generator=generator)

        if isinstance(shapes, Mapping):
            return (), {name: x(shape) for name, shape in shapes.items()}
        return tuple(x(shape) for shape in shapes), {}

    return draw


def takes_weights(student: nn.Module, args: int) -> bool:
    """Whether the student can be called with tau after `args` positional arguments."""
    try:
        inspect.signature(student.forward).bind(*[None] * (args + 1))
    except TypeError:
        return False
    return True


def shapes_or_reader(teacher: nn.Module, inputs: Inputs | None) -> Any:
    """Shapes of noise as a dict or a tuple, or a callable from a batch to (args, kwargs)."""
    if inputs is None:
        shape = getattr(teacher, "in_shape", None)
        if shape is None:
            raise ValueError(
                f"expected `inputs` to say what {type(teacher).__name__} is shown: shapes for noise, e.g. [(5, 3)], or "
                "keys of the training batch, e.g. ['positions']"
            )
        return (tuple(shape),)
    if callable(inputs):
        return Reader(inputs)
    if isinstance(inputs, Mapping):
        if num_weights(teacher):
            raise ValueError(
                f"{type(teacher).__name__} is called as Phi(x, tau): expected inputs without names, e.g. "
                f"{list(inputs.values())}, got {inputs!r}"
            )
        return {name: tuple(shape) for name, shape in inputs.items()}
    listed = isinstance(inputs, Sequence) and not isinstance(inputs, str) and len(inputs) > 0
    if listed and all(isinstance(key, str | int) for key in inputs):
        return Reader(list(inputs))
    if listed and all(isinstance(shape, Sequence) and not isinstance(shape, str) for shape in inputs):
        return tuple(tuple(shape) for shape in inputs)  # type: ignore[arg-type]
    raise ValueError(
        f"expected inputs as shapes of noise, [(5,), (5, 3)] or {{'x': (5, 3)}}, as keys of the training batch, "
        f"['positions'], or as a callable from a batch, got {inputs!r}"
    )


@dataclass(frozen=True)
class Reader:
    """From a training batch to (args, kwargs), by keys or a function."""

    source: list[Any] | Callable[[Any], Any]

    def __call__(self, batch: Any) -> Args:
        if isinstance(self.source, list):
            return tuple(lookup(batch, key, what="inputs") for key in self.source), {}
        value = self.source(batch)
        if isinstance(value, dict):
            return (), value
        return (value if isinstance(value, tuple) else (value,)), {}


def endless(batches: Callable[[], Any]) -> Iterator[Any]:
    """Pass after pass.

    Raises:
        ValueError: there are no batches.
    """
    while True:
        empty = True
        for batch in batches():
            empty = False
            yield batch
        if empty:
            raise ValueError("there are no training batches to take inputs from")


def without_tau(symmetry: Symmetry, teacher: nn.Module) -> Symmetry:
    """A family's symmetry where tau is no argument: of the data, and of a student that knows one member."""
    return Symmetry(symmetry.group, symmetry.inputs[0], symmetry.outputs) if num_weights(teacher) else symmetry


def drawn(
    inputs: Any,
    settings: Settings,
    symmetry: Symmetry | None,
    teacher: nn.Module,
    batches: Callable[[], Any] | None,
) -> Callable[[int], Args]:
    """From a step to the arguments of the student without tau; step -1 is the held-out draw.

    Args:
        inputs: from `shapes_or_reader`.
        settings: of the clone.
        symmetry: by whose elements inputs of the data are moved, for their law need not be symmetric.
        teacher: whose arguments these are.
        batches: gives an iterable of training batches.
    """
    if isinstance(inputs, dict | tuple):
        return noise(inputs, settings)
    if batches is None:
        raise ValueError("inputs are taken from training batches, but none were given: teach(module, batches)")
    stream = endless(batches)
    first = inputs(next(stream))

    def draw(step: int) -> Args:
        args: Args = first if step < 0 else inputs(next(stream))
        if symmetry is None:
            return args
        call = without_tau(symmetry, teacher).bind(teacher, *args)
        generator = derived_generator("turned", settings.seed, step)
        return call.move(as_group(symmetry.group).sample(call.num_inputs, generator=generator, device=call.device))

    return draw
