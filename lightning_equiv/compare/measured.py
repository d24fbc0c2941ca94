"""What is measured on the network that was tested, beside what its module logs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import CombinedLoader

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
        if isinstance(loaders, CombinedLoader):
            loaders = loaders.iterables
        if not isinstance(loaders, Mapping):
            loaders = list(loaders) if isinstance(loaders, list | tuple) else [loaders]
            names = getattr(data, "test_names", None) or [str(i) for i in range(len(loaders))]
            loaders = dict(zip(names, loaders, strict=True))
        for name, loader in loaders.items():
            calls = list(_first(calls_of(module, loader, symmetry, network=network), measured, symmetry, plan))
            self._on(name, calls, measured, symmetry)

    def _on(self, name: str, calls: list[AuditCall], network: Any, symmetry: Symmetry) -> None:
        """On one test set; the profile and the time on the first."""

        def value(metric: Callable[..., SymmetryMetric], num_samples: int) -> Any:
            def measure(grad: bool) -> Any:
                made = metric(symmetry, num_samples=num_samples, needs_grad=grad)
                for call in calls:
                    made.update(network, *call.args, **call.kwargs)
                return made.compute()

            return _differentiating(measure)

        self.errors[name] = float(value(EquivarianceError, self.plan.draws))
        if self.inference_ms is not None:
            return
        if as_group(symmetry.group).rotates:
            angles = {float(angle): float(error) for angle, error in value(AngleProfile, 2).items()}
            self.profile = {"angle": list(angles), "error": list(angles.values())}
        n = symmetry.bind(network, calls[0].args, calls[0].kwargs).num_inputs
        self.inference_ms = 1e3 * _differentiating(lambda grad: _seconds(network, calls[0], grad)) / n


def _first(calls: Iterator[AuditCall], network: Any, symmetry: Symmetry, plan: Plan) -> Iterator[AuditCall]:
    """The first inputs."""
    left = plan.num_inputs
    for call in calls:
        some = call.first(network, symmetry, left)
        yield some
        left -= symmetry.bind(network, some.args, some.kwargs).num_inputs
        if left <= 0:
            return


def _differentiating(measure: Callable[[bool], Any]) -> Any:
    """What is measured without gradients, or with them where the network needs them inside."""
    try:
        return measure(False)
    except RuntimeError as error:
        if "grad" not in str(error):
            raise
    return measure(True)


def _seconds(network: Any, call: AuditCall, grad: bool) -> float:
    """Of one call of the network in evaluation mode: the median of some, of the processor's time on a CPU."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    taken = []
    with evaluating(network), torch.set_grad_enabled(grad):
        for _ in range(_ROUNDS):
            start = clock()
            network(*call.args, **call.kwargs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(clock() - start)
    return statistics.median(taken[2:])
