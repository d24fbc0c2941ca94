"""audit: the report card of a model."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lightning_equiv._checks import check_number
from lightning_equiv._random import derived_generator
from lightning_equiv.audit import measured
from lightning_equiv.audit.calls import AuditCall, calls_of
from lightning_equiv.audit.collected import Collected
from lightning_equiv.audit.completeness import unmoved_inputs
from lightning_equiv.audit.layers import LayerFigures
from lightning_equiv.audit.measured import Drawn, Numbers
from lightning_equiv.audit.report import EquivarianceReport
from lightning_equiv.audit.summary import summarise
from lightning_equiv.audit.task import TaskMetric
from lightning_equiv.groups.group import GroupElement
from lightning_equiv.groups.product import as_group
from lightning_equiv.layers.choose import Layers
from lightning_equiv.layers.layer import LayerFamily
from lightning_equiv.metrics.chunks import ChunkSize
from lightning_equiv.metrics.measurement import Measurement, measuring
from lightning_equiv.metrics.orbit import orbit
from lightning_equiv.metrics.worst_case import WorstCase, ascend
from lightning_equiv.symmetry.symmetry import Symmetry, as_symmetry
from lightning_equiv.symmetry.tree import Places
from lightning_equiv.wiring.network import find_network

_SHARE_OF_DRAWS = 0.25  # of a budget, for the draws that most figures are made of
_FEWEST_INPUTS, _FEWEST_DRAWS = 8, 4  # whatever the budget
_ONE_BATCH_SIZE = "the network takes batches of one size only, and was run once for each group element"


@dataclass
class _Plan:
    """How the network is run.

    Attributes:
        draws: elements for each input.
        most: inputs of one call.
        needs_grad: the network differentiates inside.
        chunk_size: that it can do with.
    """

    draws: int
    most: int
    needs_grad: bool = False
    chunk_size: ChunkSize = "auto"


class _Run:
    """The sections of an audit, one call of the network after the other, until the budget is spent."""

    def __init__(self, budget: float | None) -> None:
        self.collected, self.budget, self.start = Collected(), budget, time.perf_counter()

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.start

    @property
    def spent(self) -> bool:
        return self.budget is not None and self.elapsed > self.budget

    def section(self, name: str, n: int, measure: Callable[[], Numbers | None]) -> None:
        """Measure one section on n inputs, if the time is there; what it cannot do is said."""
        taken = self.collected
        if name in taken.skipped:
            return
        expected = taken.seconds.get(name, 0.0) / max(1, taken.num_inputs) * n
        if self.budget is not None and self.elapsed + expected > self.budget:
            on = sum(len(next(iter(piece.values()))) for piece in taken.numbers.get(name, []))
            taken.skipped[name] = f"the budget of {self.budget:g} s was spent" + (f" after {on} inputs" if on else "")
            return
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch, on operators that it differentiates by loops
                numbers = measure()
        except Exception as error:  # of the network, which has run before: it is said in the report
            taken.skipped[name] = _words(error)
            return
        taken.seconds[name] = taken.seconds.get(name, 0.0) + time.perf_counter() - start
        if numbers is not None:
            taken.numbers.setdefault(name, []).append({key: x.detach().cpu() for key, x in numbers.items()})


def audit(
    model: Callable[..., Any],
    data: Any,
    symmetry: Symmetry,
    *,
    network: str | None = None,
    inputs: Callable[[Any], Any] | None = None,
    labels: Places | None = None,
    layers: Layers | None = None,
    families: Sequence[LayerFamily] = (),
    metric: Callable[[Tensor, Tensor], Any] | None = None,
    draws: int = 64,
    num_inputs: int = 256,
    budget: float | None = None,
    stand_in: Callable[..., Any] | None = None,
    units: dict[str, str] | None = None,
    name: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> EquivarianceReport:
    """The report card of a model: how equivariant it is, where it breaks, what that costs.

    The error and its noise floor, the error by degree and by output, its profile over the angle, the generators that
    are kept, the layers that make it, the worst inputs, and with labels what orbit averaging would gain; each with its
    confidence interval over the inputs. What cannot be measured on a model is left out, and the report says why.

    Works on any callable: a bare `nn.Module`, a LightningModule, compiled, scripted and exported networks, functions;
    on tensors, dicts, PyG graphs and images. Networks that differentiate inside (conservative forces) are noticed.
    The model is measured in evaluation mode and left as it was.

    Args:
        model: the network; or a LightningModule of which a sub-module is meant, see `network`.
        data: a batch, a list or loader of batches, a data set, or a LightningDataModule: its test set, or the next that
            it has.
        symmetry: says how a group element moves the network's inputs and outputs.
        network: dotted name of a LightningModule's sub-module: its calls in `validation_step` are measured.
        inputs: batch -> what the network takes: a tuple of arguments, a dict of keywords, or the only argument. By
            default what `symmetry` names: its first arguments by position, or arguments by name.
        labels: where labels are in a batch: a key, an index, a path, a function of the batch, or a dict of these by the
            names of the outputs. Shaped as the output; whole numbers are classes.
        layers: which layers, as for the strategies, or a dict to representations; None takes all that say how their
            features move.
        families: of layers, asked before the built-in ones.
        metric: (predictions, labels) -> number, the task's own, also a torchmetrics functional; of networks with one
            tensor as output.
        draws: group elements for each input; a finite group that is no larger is taken whole.
        num_inputs: at most so many inputs (graphs) are measured.
        budget: seconds, at most about so many are spent; what was not measured is said.
        stand_in: a network of the same call that is equivariant by construction; its error is the floor.
        units: of outputs, by their names, such as {"energy": "eV"}; "" is the only output.
        name: of the model, for the page.
        seed: of the draws.
        progress: show a progress bar.

    Returns:
        The report: `print` it, `report.save("report.html")`, `report.figures` for the numbers,
        `EquivarianceReport.compare([before, after])` for several side by side.

    Raises:
        ValueError: the symmetry does not mirror the call; no inputs; a batch from which the network's arguments cannot
            be told.

    Examples:
        >>> import torch
        >>> symmetry = Symmetry("SO(3)", "1o", "1o")
        >>> report = audit(torch.nn.Identity(), torch.randn(32, 3), symmetry, draws=8, progress=False)
        >>> report.verdict
        'exact to rounding'
    """
    for what, value in (("draws", draws), ("num_inputs", num_inputs)):
        check_number(what, value, least=2, whole=True)
    check_number("budget", budget, above=0, optional=True)
    symmetry = as_symmetry(symmetry)
    measured_network = model if network is None else find_network(model, network)  # type: ignore[arg-type]
    run = _Run(budget)
    layer_figures = LayerFigures(measured_network, symmetry, layers, families)
    task = TaskMetric(metric)
    calls = calls_of(model, data, symmetry, network=network, inputs=inputs, labels=labels)
    plan = _Plan(draws, num_inputs)
    taken = run.collected
    with tqdm(total=num_inputs, desc="audit", unit="input", disable=not progress, leave=False) as bar:
        while taken.num_inputs < num_inputs:
            try:
                call = next(calls, None)
                if call is None:
                    break
                if taken.num_inputs and run.spent:
                    taken.skipped["inputs"] = f"the budget of {budget:g} s was spent after {taken.num_inputs} inputs"
                    break
                if taken.num_inputs:
                    call = call.first(measured_network, symmetry, min(num_inputs - taken.num_inputs, plan.most))
                else:
                    call = _first(measured_network, call, symmetry, plan, run)
                    taken.notes["unmoved"] = unmoved_inputs(measured_network, call, symmetry)
                n = _measure(run, measured_network, call, symmetry, plan, stand_in, layer_figures, task, seed)
            except Exception as error:
                if not taken.num_inputs:
                    raise
                taken.skipped["inputs"] = (
                    f"it ended after {taken.num_inputs} inputs, at the next batch: {_words(error)}"
                )
                break
            taken.num_inputs += n
            bar.update(n)
    if not taken.num_inputs:
        raise ValueError("expected data to hold at least one input, got none")
    taken.notes |= {
        "layers": layer_figures.figures(),
        "task": task.figures(),
        "seconds": run.elapsed,
        "draws": plan.draws,
        "seed": seed,
        "budget": budget,
        "parameters": _parameters(measured_network),
        "network": type(measured_network).__name__,
        "units": dict(units or {}),
    }
    if layer_figures.why:
        taken.skipped.setdefault("layers", layer_figures.why)
    return EquivarianceReport(summarise(taken, symmetry, name or _name(model, network)))


def _measure(
    run: _Run,
    network: Callable[..., Any],
    call: AuditCall,
    symmetry: Symmetry,
    plan: _Plan,
    stand_in: Callable[..., Any] | None,
    layers: LayerFigures,
    task: TaskMetric,
    seed: int,
) -> int:
    """All sections on one call; how many inputs it had."""
    args, kwargs = call.args, call.kwargs
    notes = run.collected.notes
    generator = derived_generator("audit", seed, run.collected.num_inputs)
    settings: dict[str, Any] = {
        "chunk_size": plan.chunk_size,
        "needs_grad": plan.needs_grad,
        "generator": generator,
    }
    with measuring(network, args, symmetry, kwargs=kwargs, **settings) as measurement:
        n = measurement.num_inputs
        start = time.perf_counter()
        drawn = measured.draw(measurement, plan.draws, call.labels)
        seconds = run.collected.seconds
        seconds["draws"] = seconds.get("draws", 0.0) + time.perf_counter() - start
        drawn.notes = notes
        finite = drawn.finite
        some = call if bool(finite.all()) else call.where(measurement.call, finite)
        notes |= {"dtype": _dtype(measurement), "device": str(measurement.device)}
        notes["whole"] = drawn.whole
        run.section("errors", n, partial(measured.errors, drawn))
        if call.labels is not None:
            of_classes = isinstance(call.labels, Tensor) and not call.labels.is_floating_point()
            run.section("classes" if of_classes else "labels", n, partial(
                measured.classes if of_classes else measured.labelled, drawn
            ))  # fmt: skip
            run.section("task", n, partial(task.update, drawn))
        run.section("spectrum", n, partial(measured.spectrum, drawn))
        if measurement.group.rotates:
            run.section("profile", n, partial(measured.profile, drawn))
        run.section("resampling", n, partial(measured.resampling, drawn))
        if measurement.group.translation_dim is not None:
            run.section("lengths", n, partial(measured.lengths, drawn))
        run.section("group_parts", n, partial(measured.group_parts, drawn))

    def refine(chosen: Tensor, elements: GroupElement) -> WorstCase:
        own = call if len(chosen) == n else call.only(measurement.call, chosen)
        with measuring(network, own.args, symmetry, kwargs=own.kwargs, **settings) as few:
            return ascend(few, elements, measured.STEPS)

    run.section("worst", n, partial(measured.worst, drawn, refine))
    if stand_in is None:
        run.section("floor", n, partial(measured.floor, network, args, kwargs, symmetry, drawn))
    else:
        run.section("floor", n, partial(_stand_in, stand_in, args, kwargs, symmetry, drawn, settings))
    if measurement.group.dim:
        run.section("lie", n, partial(measured.lie, network, args, kwargs, symmetry, drawn))
    if layers.wanted > 0:
        run.section(
            "layers", n, partial(layers.update, some, plan.needs_grad, generator, divisible="chunks" not in notes)
        )
    return n


def _stand_in(
    network: Callable[..., Any], args: Any, kwargs: Any, symmetry: Symmetry, drawn: Drawn, settings: dict[str, Any]
) -> Numbers:
    """The errors of a network that is equivariant by construction, for the same elements."""
    with measuring(network, args, symmetry, kwargs=kwargs, **settings) as measurement:
        turned = orbit(measurement, drawn.turned.elements)
    squares, norms = turned.squares(), turned.norms()
    found = {f"rounding/{part}": square.mean(0) for part, square in squares.items()}
    return found | {f"norm/{part}": norm for part, norm in norms.items()}


def _first(network: Callable[..., Any], call: AuditCall, symmetry: Symmetry, plan: _Plan, run: _Run) -> AuditCall:
    """The first call, cut to what is measured of it, once it is known how the network can be run; see `_Plan`."""
    cut = call.first(network, symmetry, plan.most)
    notes = run.collected.notes
    try:
        seconds = _settle(network, cut, symmetry, plan, notes)
    except Exception:
        if cut is call:
            raise
        cut, seconds = call, _settle(network, call, symmetry, plan, notes)  # it may take this one size alone
        plan.most = symmetry.bind(network, call.args, call.kwargs).num_inputs
    if run.budget is None:
        return cut
    n = symmetry.bind(network, cut.args, cut.kwargs).num_inputs
    order = as_group(symmetry.group).order
    needed = seconds * min(plan.draws, order or plan.draws)
    share = run.budget * _SHARE_OF_DRAWS / needed
    if share < 1:
        if not notes.get("chunks"):
            plan.most = max(_FEWEST_INPUTS, int(n * share))
            cut = cut.first(network, symmetry, plan.most)
        left = symmetry.bind(network, cut.args, cut.kwargs).num_inputs
        plan.draws = max(_FEWEST_DRAWS, min(plan.draws, int(plan.draws * share * n / left)))
        words = f"the budget of {run.budget:g} s allows {left} of a batch" if left < n else ""
        drawn = f"{plan.draws} elements for each input" if plan.draws < needed / seconds else ""
        run.collected.skipped["inputs"] = " and ".join(part for part in (words, drawn) if part)
    return cut


def _settle(
    network: Callable[..., Any], call: AuditCall, symmetry: Symmetry, plan: _Plan, notes: dict[str, Any]
) -> float:
    """Find out how the network can be run; the seconds that one element for each input takes."""
    for needs_grad in (False, True):
        try:
            sizes: tuple[ChunkSize, ...] = ("auto", 1)
            for chunk_size in sizes:
                with measuring(
                    network, call.args, symmetry, kwargs=call.kwargs, chunk_size=chunk_size, needs_grad=needs_grad
                ) as measurement:
                    start = time.perf_counter()
                    try:
                        orbit(measurement, measurement.elements(2))
                    except Exception:
                        if chunk_size == 1:
                            raise
                        notes["chunks"] = _ONE_BATCH_SIZE
                        continue
                plan.needs_grad, plan.chunk_size = needs_grad, chunk_size
                return (time.perf_counter() - start) / 2
        except RuntimeError as error:
            if needs_grad or "needs_grad=True" not in str(error):
                raise
        notes["needs_grad"] = True
    raise AssertionError("unreachable")


def _dtype(measurement: Measurement) -> str:
    """The lowest precision of the outputs, as it is called."""
    dtypes = [t.x.dtype for t in measurement.f_x.tensors if t.x.is_floating_point()]
    return str(max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=measurement.dtype)).removeprefix("torch.")


def _words(error: Exception) -> str:
    """An error's first line; with its name, where it is not one that is written for readers."""
    line, name = str(error).strip().partition("\n")[0], type(error).__name__
    return line if line and isinstance(error, ValueError | NotImplementedError) else f"{name}: {line}".strip(": ")


def _parameters(network: Any) -> int | None:
    return sum(p.numel() for p in network.parameters()) if isinstance(network, nn.Module) else None


def _name(model: Any, network: str | None) -> str:
    own = getattr(model, "__name__", type(model).__name__)
    return f"{own}.{network}" if network else own
