"""What is measured on the network that was tested, beside what its module logs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import torch

from lightning_equiv.audit.calls import AuditCall, calls_of
from lightning_equiv.compare.plan import Plan
from lightning_equiv.groups.product import as_group
from lightning_equiv.metrics.angle_profile import AngleProfile
from lightning_equiv.metrics.equivariance_error import EquivarianceError
from lightning_equiv.metrics.symmetry_metric import SymmetryMetric
from lightning_equiv.symmetry.symmetry import Symmetry
from lightning_equiv.wiring.evaluation import evaluating
from lightning_equiv.wiring.network import find_network

_ROUNDS = 7  # of timing


class Measured(L.Callback):
    """Measures at the end of the test, while the network is still as it was tested.

    Args:
        plan: of the comparison.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.wanted = plan, False
        self.errors: dict[str, float] = {}
        self.profile: dict[str, list[float]] | None = None
        self.inference_ms: float | None = None
        self.extra: dict[str, float] = {}

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The error on each test set, its profile over the angle, the time of inference, and what the user asks for."""
        plan, symmetry = self.plan, self.plan.given.get("symmetry")
        if not self.wanted:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if symmetry is not None:
            self._symmetry(pl_module, data, symmetry)
        if plan.extra is not None:
            self.extra = {name: float(x) for name, x in plan.extra(pl_module, data).items()}

    def _symmetry(self, module: L.LightningModule, data: Any, symmetry: Symmetry) -> None:
        plan = self.plan
        network = plan.given.get("network") or None
        measured = module if network is None else find_network(module, network)
        loaders = data.test_dataloader()
        loaders = loaders if isinstance(loaders, list | tuple) else [loaders]
        names = getattr(data, "test_names", None) or [str(i) for i in range(len(loaders))]
        for name, loader in zip(names, loaders, strict=True):
            calls = list(_first(calls_of(module, loader, symmetry, network=network), measured, symmetry, plan))
            metrics: list[Callable[[bool], SymmetryMetric]] = [
                lambda grad: EquivarianceError(symmetry, num_samples=plan.draws, needs_grad=grad)
            ]
            if self.profile is None and as_group(symmetry.group).rotates:
                metrics.append(lambda grad: AngleProfile(symmetry, num_samples=2, needs_grad=grad))
            values = [_value(metric, measured, calls) for metric in metrics]
            self.errors[name] = float(values[0])
            if len(values) > 1:
                angles = {float(angle): float(x) for angle, x in values[1].items()}
                self.profile = {"angle": list(angles), "error": list(angles.values())}
            if self.inference_ms is None:
                n = symmetry.bind(measured, calls[0].args, calls[0].kwargs).num_inputs
                self.inference_ms = 1e3 * _seconds(measured, calls[0]) / n


def _first(calls: Iterator[AuditCall], network: Any, symmetry: Symmetry, plan: Plan) -> Iterator[AuditCall]:
    """The first inputs."""
    left = plan.num_inputs
    for call in calls:
        some = call.first(network, symmetry, left)
        yield some
        left -= symmetry.bind(network, some.args, some.kwargs).num_inputs
        if left <= 0:
            return


def _value(make: Callable[[bool], SymmetryMetric], network: Any, calls: list[AuditCall]) -> Any:
    """A metric's value; networks that need gradients inside are noticed."""
    for needs_grad in (False, True):
        metric = make(needs_grad)
        try:
            for call in calls:
                metric.update(network, *call.args, **call.kwargs)
            return metric.compute()
        except RuntimeError as error:
            if needs_grad or "grad" not in str(error):
                raise
    raise AssertionError


def _seconds(network: Any, call: AuditCall) -> float:
    """Of one call of the network in evaluation mode: the median of some, of the processor's time on a CPU."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    taken = []
    with evaluating(network), torch.no_grad():
        for _ in range(_ROUNDS):
            start = clock()
            network(*call.args, **call.kwargs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(clock() - start)
    return statistics.median(taken[2:])
