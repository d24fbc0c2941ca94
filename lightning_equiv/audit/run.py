"""audit: the report card of a model."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

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
from lightning_equiv.layers.choose import Layers
from lightning_equiv.layers.layer import LayerFamily
from lightning_equiv.metrics.chunks import ChunkSize
from lightning_equiv.metrics.measurement import measuring
from lightning_equiv.metrics.orbit import orbit
from lightning_equiv.symmetry.symmetry import Symmetry, as_symmetry
from lightning_equiv.wiring.network import find_network

# what a section cannot do on some network is said in the report; whatever else goes wrong is
_EXPECTED = (ValueError, TypeError, RuntimeError, NotImplementedError, AttributeError)
_ONE_BATCH_SIZE = "the network takes batches of one size only, and was run once for each group element"


class _Run:
    """The sections of an audit, one call of the network after the other, until the budget is spent."""

    def __init__(self, budget: float | None) -> None:
        self.collected, self.budget, self.start = Collected(), budget, time.perf_counter()

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.start

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
        except _EXPECTED as error:
            taken.skipped[name] = str(error).strip().partition("\n")[0] or type(error).__name__
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
    labels: Any = None,
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
        data: a batch, a list or loader of batches, or a LightningDataModule (its test set, or the next that it has).
        symmetry: says how a group element moves the network's inputs and outputs.
        network: dotted name of a LightningModule's sub-module: its calls in `validation_step` are measured.
        inputs: batch -> what the network takes: a tuple of arguments, a dict of keywords, or the only argument. By
            default what `symmetry` names: its first arguments by position, or arguments by name.
        labels: where labels are in a batch: a key, an index, a path, or a function of the batch. Shaped as the output;
            whole numbers are classes.
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
    needs_grad, chunk_size = False, None
    bar = tqdm(total=num_inputs, desc="audit", unit="input", disable=not progress, leave=False)
    with bar:
        for call in calls_of(model, data, symmetry, network=network, inputs=inputs, labels=labels):
            taken = run.collected
            if taken.num_inputs >= num_inputs or (budget is not None and taken.num_inputs and run.elapsed > budget):
                break
            call = call.first(measured_network, symmetry, num_inputs - taken.num_inputs)
            if not taken.num_inputs:
                needs_grad, chunk_size = _settings(measured_network, call, symmetry, taken.notes)
                taken.notes["unmoved"] = unmoved_inputs(measured_network, call, symmetry)
            generator = derived_generator("audit", seed, taken.num_inputs)
            settings: dict[str, Any] = {"chunk_size": chunk_size, "needs_grad": needs_grad, "generator": generator}
            n = _measure(run, measured_network, call, symmetry, draws, stand_in, layer_figures, task, settings)
            taken.num_inputs += n
            bar.update(n)
    if not run.collected.num_inputs:
        raise ValueError("expected data to hold at least one input, got none")
    taken = run.collected
    taken.notes |= {
        "layers": layer_figures.figures(),
        "task": task.figures(),
        "seconds": run.elapsed,
        "draws": draws,
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
    draws: int,
    stand_in: Callable[..., Any] | None,
    layers: LayerFigures,
    task: TaskMetric,
    settings: dict[str, Any],
) -> int:
    """All sections on one call; how many inputs it had."""
    args, kwargs = call.args, call.kwargs
    notes = run.collected.notes
    with measuring(network, args, symmetry, kwargs=kwargs, **settings) as measurement:
        n = measurement.num_inputs
        drawn = measured.draw(measurement, draws, call.labels)
        drawn.notes = notes
        notes |= {"dtype": str(measurement.dtype).removeprefix("torch."), "device": str(measurement.device)}
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
        run.section("worst", n, partial(measured.worst, drawn))
    if stand_in is None:
        run.section("floor", n, partial(measured.floor, network, args, kwargs, symmetry, drawn))
    else:
        run.section("floor", n, partial(_stand_in, stand_in, args, kwargs, symmetry, drawn, settings))
    if measurement.group.dim:
        run.section("lie", n, partial(measured.lie, network, args, kwargs, symmetry, drawn))
    run.section("layers", n, partial(layers.update, args, kwargs, settings["needs_grad"], settings["generator"]))
    return n


def _stand_in(
    network: Callable[..., Any], args: Any, kwargs: Any, symmetry: Symmetry, drawn: Drawn, settings: dict[str, Any]
) -> Numbers:
    """The errors of a network that is equivariant by construction, for the same elements."""
    with measuring(network, args, symmetry, kwargs=kwargs, **settings) as measurement:
        turned = orbit(measurement, drawn.turned.elements)
    return {"rounding": turned.squares()["total"].mean(0), "norm": turned.norms()["total"]}


def _settings(
    network: Callable[..., Any], call: AuditCall, symmetry: Symmetry, notes: dict[str, Any]
) -> tuple[bool, Any]:
    """Whether the network needs gradients, and the chunk size that it can do with."""
    for needs_grad in (False, True):
        try:
            sizes: tuple[ChunkSize, ...] = ("auto", 1)
            for chunk_size in sizes:
                with measuring(
                    network, call.args, symmetry, kwargs=call.kwargs, chunk_size=chunk_size, needs_grad=needs_grad
                ) as measurement:
                    try:
                        orbit(measurement, measurement.elements(2))
                    except _EXPECTED:
                        if chunk_size == 1:
                            raise
                        notes["chunks"] = _ONE_BATCH_SIZE
                        continue
                return needs_grad, chunk_size
        except RuntimeError as error:
            if needs_grad or "needs_grad=True" not in str(error):
                raise
        notes["needs_grad"] = True
    raise AssertionError("unreachable")


def _parameters(network: Any) -> int | None:
    return sum(p.numel() for p in network.parameters()) if isinstance(network, nn.Module) else None


def _name(model: Any, network: str | None) -> str:
    own = getattr(model, "__name__", type(model).__name__)
    return f"{own}.{network}" if network else own
