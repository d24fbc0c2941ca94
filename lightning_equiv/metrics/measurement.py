"""A network and one of its calls while it is measured: what every figure has in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_equiv.groups.group import Group, GroupElement
from lightning_equiv.groups.product import as_group
from lightning_equiv.metrics.chunks import ChunkSize, check_chunk_size, chunk_sizes, in_chunks
from lightning_equiv.metrics.comparison import compare
from lightning_equiv.symmetry.call import BoundCall, BoundTree
from lightning_equiv.symmetry.symmetry import Symmetry, as_symmetry
from lightning_equiv.symmetry.tree import Tree, map_tensors
from lightning_equiv.wiring.call_recorder import recording_paused
from lightning_equiv.wiring.evaluation import evaluating
from lightning_equiv.wiring.frozen_randomness import buffers_kept
from lightning_equiv.wiring.random_state import random_state_kept

_MOST_ELEMENTS = 2**16  # that are all taken
_WITHOUT_GRADIENTS = ("not require grad", "requires_grad", "Inference tensor", "inference tensor")  # in torch's errors

Figure = TypeVar("Figure")


@dataclass(frozen=True)
class Measurement:
    """A network's call, made by `measuring` and valid inside it.

    Attributes:
        network: the callable that is measured.
        run: calls it, where no recorder sees it.
        call: x, bound by the symmetry.
        f_x: f(x), the output for the unmoved inputs.
        parts: of f(x), as `BoundTree.parts` gives them.
        group: of the symmetry.
        chunk_size: most inputs in one call of the network; None takes all at once, "auto" what is fast.
        generator: whose random numbers are drawn.
        needs_grad: the network differentiates inside.
    """

    network: Callable[..., Any]
    run: Callable[..., Tree]
    call: BoundCall
    f_x: BoundTree
    parts: dict[str, Tensor]
    group: Group
    chunk_size: ChunkSize
    generator: torch.Generator | None
    needs_grad: bool = False

    @property
    def num_inputs(self) -> int:
        """n, how many inputs (graphs) the call has."""
        return self.call.num_inputs

    @property
    def device(self) -> torch.device:
        """Where the output lies."""
        return next(iter(self.parts.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the output, at least float32."""
        return next(iter(self.parts.values())).dtype

    def elements(self, num_samples: int | None, elements: GroupElement | None = None) -> GroupElement:
        """K n elements: element k n + i moves input i for the k-th time.

        Args:
            num_samples: K, drawn for each input; None takes every element of a finite group.
            elements: K elements in their place, each for every input.

        Raises:
            ValueError: K < 1; None for a group that is infinite or too large; elements of another group.
        """
        n, device = self.num_inputs, self.device
        if elements is None and num_samples is None:
            if self.group.order is not None and self.group.order > _MOST_ELEMENTS:
                raise ValueError(
                    f"num_samples=None takes every element of {self.group}, which has {self.group.order} (more than "
                    f"{_MOST_ELEMENTS}): draw some of them, e.g. num_samples=8"
                )
            elements = self.group.elements(device=device)
        if elements is not None:
            if not isinstance(elements, GroupElement) or elements.group != self.group:
                raise ValueError(
                    f"expected `elements` of {self.group}, e.g. {self.group!r}.sample(8), got {elements!r}"
                )
            if not len(elements):
                raise ValueError(f"expected at least one element of {self.group} in `elements`, got none")
            elements = elements.to(device)
            return elements[torch.arange(len(elements), device=device).repeat_interleave(n)]
        assert num_samples is not None
        if num_samples < 1:
            raise ValueError(
                f"expected num_samples to be at least 1 (or None for a whole finite group), got {num_samples}"
            )
        return self.group.sample(num_samples * n, generator=self.generator, device=device)

    def for_each_chunk(
        self, elements: GroupElement, figure: Callable[[GroupElement, BoundTree, BoundTree], Figure]
    ) -> list[Figure]:
        """figure(g, f_gx, g_fx) of the elements g, chunk by chunk.

        Chunks follow each other in the order of the elements. One that runs out of memory is halved and done again.

        Args:
            elements: K n of them.
            figure: what is kept of a chunk.

        Raises:
            ValueError: the network changes its inputs in place.
            torch.OutOfMemoryError: one element for each input is too much.
        """
        n = self.num_inputs

        def work(start: int, stop: int) -> Figure:
            g = elements[start * n : stop * n]
            return figure(g, *compare(self.run, self.call, g, self.f_x))

        total = len(elements) // n
        sizes = chunk_sizes(self.chunk_size, self.network, self.call.inputs, self.f_x, total)
        found = in_chunks(total, sizes, work)
        self.call.inputs.check_unchanged()
        return found


@contextmanager
def measuring(
    network: Callable[..., Any],
    args: Any,
    symmetry: Symmetry,
    *,
    kwargs: Mapping[str, Any] | None = None,
    chunk_size: ChunkSize = "auto",
    generator: torch.Generator | None = None,
    needs_grad: bool = False,
) -> Iterator[Measurement]:
    """A network while it is measured: in evaluation mode, its call bound once, f(x) computed once.

    Modes, buffers, grad mode and the global random state are put back at the end, also after an exception.

    Args:
        network: f. A module is measured in evaluation mode and put back.
        args: a tuple of the call's positional arguments, or the only argument.
        symmetry: says how a group element moves inputs and outputs.
        kwargs: keyword arguments of the call.
        chunk_size: most inputs in one call of the network, never fewer than the batch itself; None takes all at once,
            "auto" as many as are fast and fit into memory.
        generator: whose random numbers.
        needs_grad: the network differentiates inside (conservative forces): run it with gradients enabled.

    Raises:
        ValueError: the symmetry does not mirror the call or the output; an empty batch; an unknown chunk_size.
    """
    check_chunk_size(chunk_size)
    symmetry = as_symmetry(symmetry)

    def run(*args: Any, **kwargs: Any) -> Tree:
        with recording_paused():
            try:
                y = network(*args, **kwargs)
            except RuntimeError as error:
                if needs_grad or not any(words in str(error) for words in _WITHOUT_GRADIENTS):
                    raise
                raise RuntimeError(
                    "the network differentiates inside (conservative forces?), and gradients are off while it is "
                    f"measured: write needs_grad=True. Torch's words were: {error}"
                ) from error
            return map_tensors(Tensor.detach, y)

    with _left_alone(network, needs_grad, generator):
        x = args if isinstance(args, tuple) else (args,), dict(kwargs or {})
        if needs_grad:  # a tensor made in inference mode takes no gradient, and the caller's own must get none
            x = map_tensors(lambda x: x.detach().clone(), x)
        call = symmetry.bind(network, *x)
        args, kwargs = call.arguments()  # containers of its own, which it may write into
        f_x = call.output(map_tensors(torch.clone, run(*args, **kwargs)))  # the next call may use the same memory
        call.inputs.check_unchanged()
        yield Measurement(
            network, run, call, f_x, f_x.parts(), as_group(symmetry.group), chunk_size, generator, needs_grad
        )


@contextmanager
def _left_alone(network: Callable[..., Any], needs_grad: bool, generator: torch.Generator | None) -> Iterator[None]:
    """Evaluation mode and gradients as asked; modes, buffers and the global generators are put back."""
    with ExitStack() as stack:
        if isinstance(network, nn.Module):
            stack.enter_context(evaluating(network))
        if needs_grad:
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad() if needs_grad else torch.no_grad())
        if isinstance(network, nn.Module):
            stack.enter_context(buffers_kept(network))
        if generator is not torch.default_generator:  # whose elements are to be others in the next call
            stack.enter_context(random_state_kept())
        yield
