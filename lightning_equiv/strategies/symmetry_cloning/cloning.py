"""Teach a student what a teacher does on drawn inputs: the first phase of symmetry cloning, without Lightning."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_equiv._random import derived_generator
from lightning_equiv.layers.hidden_parameters import own_parameters
from lightning_equiv.metrics.functional import error_sums, reduce_sums
from lightning_equiv.metrics.measurement import measuring
from lightning_equiv.strategies.symmetry_cloning.inputs import (
    Args,
    Draws,
    Match,
    Settings,
    in_precision,
    takes_weights,
)
from lightning_equiv.symmetry.call import TOTAL
from lightning_equiv.symmetry.symmetry import Symmetry
from lightning_equiv.symmetry.tree import Tree, map_tensors, tensors
from lightning_equiv.wiring.evaluation import evaluating
from lightning_equiv.wiring.network import find_network

CHECK_EVERY = 50  # steps between two looks at the held-out error
IMPROVEMENT = 0.01  # of the held-out error, relative: less in `patience` steps is a plateau


def relative_error(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """|h - Phi|^2 / |Phi|^2 over all tensors."""
    difference = torch.stack([(h - phi).square().sum() for h, phi in pairs]).sum()
    return difference / torch.stack([phi.square().sum() for _, phi in pairs]).sum()


class Pair:
    """A student and its teacher side by side.

    Args:
        student: h.
        teacher: Phi.
        match: what of them is to be equal.
        needs_grad: one of them differentiates inside.

    Raises:
        ValueError: a name in `match` that does not exist.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, match: Match, needs_grad: bool = False) -> None:
        self.student, self.teacher, self.match, self.needs_grad = student, teacher, match, needs_grad
        if isinstance(match, Mapping):
            self.layers = [
                (
                    find_network(student, a, "match: layer of the student"),
                    find_network(teacher, b, "match: of the teacher"),
                )
                for a, b in match.items()
            ]

    def outputs(self, args: Args, tau: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """(h, Phi) of every tensor that is to be equal.

        Raises:
            ValueError: other numbers or shapes of tensors.
        """
        positional, keywords = args
        weights = () if tau is None else (tau,)
        wants_tau = bool(weights) and takes_weights(self.student, len(positional))
        with torch.set_grad_enabled(self.needs_grad), self._seen(1) as theirs:
            mine = self._apart((positional, weights, keywords))
            output = self.teacher(*mine[0], *mine[1], **mine[2])
            phi = self._apart(theirs if isinstance(self.match, Mapping) else [output])
        like = next(self.student.parameters())
        positional, weights, keywords = self._apart(in_precision(like.dtype, (positional, weights, keywords)))
        with self._seen(0) as ours:
            output = self.student(*positional, *(weights if wants_tau else ()), **keywords)
            h = ours if isinstance(self.match, Mapping) else [output]
        left, right = ([t for tree in trees for _, t in tensors(tree)] for trees in (h, phi))
        shapes = [[tuple(t.shape) for t in side] for side in (left, right)]
        if not left or shapes[0] != shapes[1]:
            raise ValueError(
                f"the student gives tensors of shapes {shapes[0]}, the teacher {shapes[1]}: expected equal ones; "
                "choose layers that fit with match={student's layer: teacher's layer}, or change the student's width"
            )
        return [(h.to(phi), phi) for h, phi in zip(left, right, strict=True)]

    def _apart(self, tree: Any) -> Any:
        """Tensors of their own: who differentiates by an input marks that tensor."""
        return map_tensors(lambda t: t.detach(), tree) if self.needs_grad else tree

    @contextmanager
    def _seen(self, side: int) -> Iterator[list[Tree]]:
        """The outputs of the matched layers of the student (0) or the teacher (1), in the order of `match`."""
        if not isinstance(self.match, Mapping):
            yield []
            return
        found: dict[int, Tree] = {}
        with ExitStack() as stack:
            for i, layers in enumerate(self.layers):

                def remember(_: nn.Module, args: Any, output: Any, i: int = i) -> None:
                    found[i] = output

                stack.callback(layers[side].register_forward_hook(remember).remove)
            outputs: list[Tree] = []
            yield outputs
        outputs.extend(found[i] for i in sorted(found))


@dataclass(frozen=True)
class Report:
    """What a clone has become.

    Attributes:
        error: relative MSE on the held-out draw.
        steps: optimizer steps taken.
        plateau: steps without an improvement, where that ended it.
    """

    error: float
    steps: int
    plateau: int = 0

    def in_words(self, equivariance_error: float | None = None) -> str:
        """A sentence.

        Args:
            equivariance_error: the clone's, relative, where it was measured.

        Examples:
            >>> Report(0.031, 200).in_words()
            'the network was taught for 200 steps and is a relative mean squared error of 0.031 from its teacher'
        """
        words = f"the network was taught for {self.steps} steps and is a relative mean squared error of "
        words += f"{self.error:.2g} from its teacher"
        if equivariance_error is None:
            return words
        return f"{words}, with a relative equivariance error of {equivariance_error:.2g}"


def clone(pair: Pair, draws: Draws, settings: Settings, progress: Callable[[int, float], None]) -> Report:
    """Train the student to equal the teacher, until the held-out error is small enough or no longer falls.

    It is a plateau if the least error has not fallen by 1 % in a quarter of `steps`, in 500 at least, and while the
    learning rate was halved: the noise of the draws falls with the rate, and is no plateau.

    Args:
        pair: the student is trained in place, with an optimizer of its own.
        draws: inputs.
        settings: how.
        progress: called with the step and the held-out error.
    """
    parameters = [p for p in own_parameters(pair.student).values() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=settings.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps, eta_min=settings.lr / 100)
    held_out = draws(-1)
    patience, best, best_step, best_lr, plateau = max(500, settings.steps // 4), math.inf, 0, settings.lr, 0
    for step in range(settings.steps + 1):
        if step % CHECK_EVERY == 0 or step == settings.steps:
            error = held_out_error(pair, *held_out)
            progress(step, error)
            if error <= (1 - IMPROVEMENT) * best:
                best, best_step, best_lr = error, step, float(schedule.get_last_lr()[0])
            stalled = step - best_step >= patience and schedule.get_last_lr()[0] <= best_lr / 2
            plateau = step - best_step if stalled else 0
            if error <= settings.goal or step == settings.steps or plateau:
                break
        # not `backward`: DDP listens to it, and here one process trains alone
        loss = relative_error(pair.outputs(*draws(step)))
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient
        optimizer.step()
        schedule.step()
    optimizer.zero_grad(set_to_none=True)
    return Report(error, step, plateau)


def held_out_error(pair: Pair, args: Args, tau: Tensor | None) -> float:
    """The relative MSE in evaluation mode."""
    with evaluating(pair.student), torch.set_grad_enabled(pair.needs_grad):
        return float(relative_error(pair.outputs(args, tau)).detach())


@contextmanager
def teaching(student: nn.Module) -> Iterator[None]:
    """Inside, every weight trains; after it those train that did before, and where it fails they are as before."""
    parameters = own_parameters(student)
    before = {name: t.detach().clone() for name, t in student.state_dict().items()}
    flags = {name: p.requires_grad for name, p in parameters.items()}
    try:
        for p in parameters.values():
            p.requires_grad_(True)
        yield
    except BaseException:
        student.load_state_dict(before)
        raise
    finally:
        for name, p in parameters.items():
            p.requires_grad_(flags[name])
            p.grad = None


def check_reached(result: Report, settings: Settings, on_failure: Literal["raise", "warn"]) -> None:
    """RuntimeError, or a warning, where the error is not as small as was asked.

    Raises:
        RuntimeError: see above; an error that is no number is never only warned of.
    """
    if result.error <= settings.goal:
        return
    reached = 2 * result.error**0.5
    hint = "raise `steps`, the student's width or `tolerance`"
    if result.plateau:
        hint = (
            f"it has not fallen by 1 % in the last {result.plateau} steps, so more of them will not help: raise the "
            "student's width, `batch_size` or `tolerance`"
        )
    if math.isfinite(reached):
        hint += f" (tolerance={1.05 * reached:.2g} is reached)"
    message = (
        f"SymmetryCloning: after {result.steps} steps the clone's relative MSE is {result.error:.2e} (an equivariance "
        f"error of up to {reached:.3f}), but tolerance={settings.tolerance} asks for {settings.goal:.2e}: {hint}"
    )
    if on_failure == "raise" or not math.isfinite(reached):
        raise RuntimeError(f"{message}; on_failure='warn' goes on with the clone as it is")
    rank_zero_warn(f"{message}. The run goes on with the clone as it is")


def measured_error(
    network: nn.Module,
    args: Args,
    tau: Tensor | None,
    symmetry: Symmetry,
    settings: Settings,
) -> float:
    """Relative equivariance error on the held-out draw; `symmetry` names tau unless that is None."""
    like = next(network.parameters(), None)
    if like is not None:
        args, tau = in_precision(like.dtype, (args, tau))
    positional = (*args[0], *(() if tau is None else (tau,)))
    generator = derived_generator("measured_error", settings.seed)
    with measuring(
        network, positional, symmetry, kwargs=args[1], generator=generator, needs_grad=settings.needs_grad
    ) as measurement:
        sums = error_sums(measurement, measurement.elements(num_samples=4), "relative")
    numerator, denominator = sums[TOTAL]
    return float(reduce_sums(numerator.sum(), denominator.sum(), "relative"))
