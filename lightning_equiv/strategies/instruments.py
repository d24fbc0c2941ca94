"""Instruments: measurements while training that tell why relaxing layers helps, or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_equiv._checks import check_number
from lightning_equiv._random import derived_generator
from lightning_equiv.layers.branch import Branch, branches_off
from lightning_equiv.layers.hidden_parameters import own_parameters
from lightning_equiv.layers.nonlinearities import WHAT, find_nonlinearities, watched
from lightning_equiv.metrics.curvature import largest_eigenvalue
from lightning_equiv.metrics.dead_directions import DeadShares
from lightning_equiv.representations.action import wide
from lightning_equiv.strategies.base import SymmetryCallback
from lightning_equiv.strategies.run_length import run_length
from lightning_equiv.wiring.dry_training import dry_training
from lightning_equiv.wiring.ranks import process_rank

KINDS = ("loss", "dead", "curvature")
Step = Callable[[], Tensor | None]  # runs the user's own step once more


@dataclass(frozen=True)
class Instruments:
    r"""What a strategy with branches measures while it trains: did the network escape, and was that kept?

        loss        the task's loss on one batch, with the branches and without, from the same random numbers
        dead        the share of (unit, sample) pairs with one sign at every point of the sample
        curvature   the largest eigenvalue of the Hessian of the loss without branches, in the user's parameters, by
                    products with it from a vector that is kept from measurement to measurement

    Logged under `<name>/instruments/`: `loss/relaxed` and `loss/projected` while there is something relaxed;
    `projection/loss_before` and `projection/loss_after` from the step on where the levels become 0, the same batch with
    the levels of the step before and with none; `dead/negative`, `dead/positive` and both for every nonlinearity,
    without branches; `curvature`. What is measured is logged in its step and, unchanged, whenever the Trainer writes
    (`log_every_n_steps`), and is in `readings` of the strategy.

    Measured in the first training batch, then in every `every`-th, where the levels become 0, and in the run's last
    step. The user's training step is run again for it, without a trace: training is bit for bit what it was. What the
    step does to attributes of its own, such as lists, it does again. Every process measures its own batch. A compiled
    network is measured as it is written. After a checkpoint the vector of the curvature begins anew.

    Nonlinearities that "dead" reads, without an edit: `nn.ReLU` and its kind (the input; units are the last dimension,
    or the second behind a convolution or batch norm), vector neurons' VN...ReLU (<q, d> of a feature and its
    direction), e3nn's Activation, also inside Gate (even scalars). Where a sample has one row, such as a node of a
    graph, the rows of the batch are the points of one sample.

    Args:
        measure: names of these, in any order: "loss", "dead", "curvature".
        every: measured in one of so many training batches.
        curvature_steps: products with the Hessian in each measurement, at least 2.

    Raises:
        ValueError: another name; "dead" where no nonlinearity is known.
        RuntimeError: "curvature" of a step that cannot be differentiated twice.

    Examples:
        >>> Instruments("loss curvature", every=50)
        Instruments(measure='loss curvature', every=50, curvature_steps=2)
    """

    measure: str = "loss dead curvature"
    every: int = 100
    curvature_steps: int = 2

    def __post_init__(self) -> None:
        words = self.measure.split() if isinstance(self.measure, str) else []
        if not words or not {*words} <= {*KINDS}:
            raise ValueError(
                f"expected instruments among {KINDS}, with spaces in between, such as 'loss dead', got {self.measure!r}"
            )
        check_number("every", self.every, least=1, whole=True)
        check_number("curvature_steps", self.curvature_steps, least=2, whole=True)

    def has(self, kind: str) -> bool:
        """Whether this is measured."""
        return kind in self.measure.split()


def as_instruments(value: Instruments | str | None) -> Instruments | None:
    """Instruments of what they measure."""
    if value is None or isinstance(value, Instruments):
        return value
    if isinstance(value, str):
        return Instruments(value)
    raise TypeError(
        f"expected instruments to be an Instruments(...), a string such as 'loss dead', or None, got {value!r}"
    )


class Gauge:
    """The instruments of a strategy while it is attached.

    Args:
        instruments: what is measured.
        strategy: for which.
        module: whose steps are measured.

    Attributes:
        values: measured last, by what is logged behind the strategy's name.
    """

    def __init__(self, instruments: Instruments, strategy: SymmetryCallback, module: L.LightningModule) -> None:
        self.instruments, self.values = instruments, dict[str, Tensor]()
        self._strategy, self._module = strategy, module
        self._nonlinearities = find_nonlinearities(module) if instruments.has("dead") else []
        if instruments.has("dead") and not self._nonlinearities:
            rest = " ".join(kind for kind in instruments.measure.split() if kind != "dead")
            raise ValueError(
                f"instruments: 'dead' finds no nonlinearity that it knows in {type(module).__name__}: expected {WHAT}, "
                "as modules: write self.act = nn.ReLU() in the place of torch.relu, or leave it out"
                + (f", instruments={rest!r}" if rest else "")
            )
        self._number, self._last = -1, -1  # of the batch, where the loop counts none; of the batch that was measured
        self._levels: Tensor | None = None  # of the last step, while something was relaxed
        self._active: list[bool] = []
        self._vector: Tensor | None = None

    def look(self, step: Step, branches: Sequence[Branch], folded: bool = False) -> None:
        """Measure what is due in this batch, and log it.

        Args:
            step: runs the user's own step once more.
            branches: of the strategy.
            folded: they were taken into the layers just now, which says itself what that did to the loss.
        """
        if folded:
            self._levels = None
        number = self._strategy.batch_number()
        self._number = number = self._number + 1 if number is None else number
        relaxed = any(b.active for b in branches)
        projected = self._levels is not None and not relaxed
        again = number == self._last  # an optimizer that runs a step many times
        due = not again and (number % self.instruments.every == 0 or self._is_last_step())
        if due or projected:
            self._last = number
            self._measure(step, branches, relaxed, projected, due)
        if self.instruments.has("loss"):
            self._levels = torch.stack([b.theta.detach() for b in branches]) if relaxed else None
            self._active = [b.active for b in branches]
        if self.values and (due or projected or self._is_written()):
            self._strategy.log_values(self._module, self.values, batch_size=1)

    def _measure(self, step: Step, branches: Sequence[Branch], relaxed: bool, projected: bool, due: bool) -> None:
        has = self.instruments.has
        kept = {
            key: value for key, value in self.values.items() if "/projection/" in key or not (due or "/loss/" in key)
        }
        found: dict[str, Tensor | None] = {}
        shares = DeadShares() if due and has("dead") else None
        losses = has("loss") and (relaxed or projected)
        without = self._without_branches(step, shares) if losses or shares is not None else None
        if losses and relaxed:
            found |= {"loss/relaxed": self._loss(step), "loss/projected": without}
        elif losses:
            with _at(branches, self._levels, self._active):
                found |= {"projection/loss_before": self._loss(step), "projection/loss_after": without}
        if shares is not None:
            found |= {f"dead/{key.replace('_orig_mod.', '')}": share for key, share in shares.compute().items()}
        if due and has("curvature"):
            found["curvature"] = self._curvature(step)
        self.values.clear()
        self.values.update(kept)
        self.values.update({f"instruments/{key}": value for key, value in found.items() if value is not None})

    def _loss(self, step: Step) -> Tensor | None:
        with dry_training(self._module):
            loss = step()
        return None if loss is None else loss.detach()

    def _without_branches(self, step: Step, shares: DeadShares | None) -> Tensor | None:
        seen = nullcontext() if shares is None else watched(self._module, self._nonlinearities, shares.update)
        with branches_off(), seen:
            return self._loss(step)

    def _curvature(self, step: Step) -> Tensor | None:
        """In full precision: what is small in a gradient would be lost."""
        with dry_training(self._module, full_precision=True), branches_off(), sdpa_kernel(SDPBackend.MATH):
            loss = step()
            parameters = [p for p in own_parameters(self._module).values() if p.requires_grad]
            if loss is None or not parameters:
                return None
            size = sum(p.numel() for p in parameters)
            if self._vector is None or len(self._vector) != size:
                key = (type(self._strategy).__name__, self._strategy.name, self._strategy.seed, "curvature")
                self._vector = torch.randn(size, generator=derived_generator(*key, process_rank()))
            start = self._vector.to(wide(parameters[0]))
            try:
                value, self._vector = largest_eigenvalue(loss, parameters, start, self.instruments.curvature_steps)
            except (RuntimeError, NotImplementedError) as error:
                raise RuntimeError(
                    "instruments: 'curvature' differentiates the training step twice, and something in it cannot be: "
                    f"{error}. Expected operations with second derivatives (none of cuDNN's recurrent layers, no "
                    "reentrant checkpointing); leave it out, instruments='loss dead'"
                ) from error
        return value

    def _is_last_step(self) -> bool:
        trainer = self._trainer()
        return trainer is not None and trainer.global_step + 1 == run_length(trainer, self._strategy)

    def _is_written(self) -> bool:
        """Whether the Trainer writes what is logged in this step."""
        trainer = self._trainer()
        every = 0 if trainer is None else trainer.log_every_n_steps
        return bool(every) and (trainer.global_step + 1) % every == 0

    def _trainer(self) -> Any:
        trainer = self._module._trainer
        return trainer if trainer is not None and trainer.training else None


@contextmanager
def _at(branches: Sequence[Branch], levels: Tensor | None, active: Sequence[bool]) -> Iterator[None]:
    """Inside, the branches have the levels of another step."""
    assert levels is not None
    held = [(b.theta, b.active) for b in branches]
    try:
        for b, theta, on in zip(branches, levels, active, strict=True):
            b.theta, b.active = theta, on
        yield
    finally:
        for b, (theta, on) in zip(branches, held, strict=True):
            b.theta, b.active = theta, on
