"""What the network was called with, or returned, and was changed in place since is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_equiv import REMUL, EquivarianceMonitor, Symmetry
from tests.strategies.toys import SYMMETRY, Plain, loader, make_net, snapshot, trainer, weights

mse = nn.functional.mse_loss


class Writes(nn.Module):
    """Changes its argument."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make_net()

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(0.5)
        return self.inner(x)


def shifted(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    out = net(x)
    x.add_(1.0)
    return mse(out, y)


def clamped(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return mse(net(x).clamp_(-0.1, 0.1), y)


def written(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return mse(net(x), y)


@pytest.mark.parametrize(
    ("net", "task", "what"),
    [(make_net, clamped, "returned"), (make_net, shifted, "was called with"), (Writes, written, "was called with")],
)
def test_it_is_refused(net: Callable[[], nn.Module], task: Any, what: str) -> None:
    module = Plain(net().requires_grad_(task is not shifted))
    module.task = task
    module.extra = nn.Parameter(torch.zeros(1))
    before, start = snapshot(module), weights(module)
    with pytest.raises(RuntimeError, match=rf"shape \(4, 3\) that the network {what} was changed in place.*x \+= 1"):
        trainer(REMUL(SYMMETRY, "net")).fit(module, loader())
    assert snapshot(module) == before
    assert torch.equal(weights(module), start)


@dataclass
class Fields:
    x: Tensor


class OfFields(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = make_net()

    def forward(self, fields: Fields) -> Fields:
        return Fields(self.inner(fields.x))


def test_it_is_seen_in_a_dataclass_and_in_a_graph() -> None:
    symmetry = Symmetry("SO(3)", inputs={"x": "1o"}, outputs={"x": "1o"})

    def task(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        out = net(Fields(x))
        out.x *= 2
        return mse(out.x, y)

    module = Plain(OfFields())
    module.task = task  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="in place"):
        trainer(REMUL(symmetry, "net")).fit(module, loader())
    data = pytest.importorskip("torch_geometric.data")

    def of_graphs(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        graph = data.Data(x=x.clone(), edge_index=torch.zeros(2, 0, dtype=torch.long))
        out = net(graph).x
        graph.x += 1
        return mse(out, y)

    class OfGraphs(OfFields):
        def forward(self, graph: Any) -> Fields:
            return Fields(self.inner(graph.x.sin()))

    module = Plain(OfGraphs())
    module.task = of_graphs  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="in place"):
        trainer(REMUL(symmetry, "net")).fit(module, loader())


def test_changes_that_are_not_in_place_and_changes_of_a_copy_are_none() -> None:
    def task(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        out = net(x.clone())
        x.add_(1.0)
        out = out + 1
        return mse(out.clone().clamp_(-0.1), y)

    module = Plain()
    module.task = task  # type: ignore[method-assign]
    trainer(REMUL(SYMMETRY, "net")).fit(module, loader())
    assert not torch.equal(weights(module), weights(Plain()))


class WritesIntoItsDict(nn.Module):
    """Adds what it computes to the dict that it is given, as many models of molecules do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_net()

    def forward(self, data: dict[str, Tensor]) -> Tensor:
        data["embedding"] = self.net(data["x"])
        data["x"] = data["embedding"] * 2
        return data["embedding"]


def test_a_network_may_write_into_the_dict_that_it_is_given() -> None:
    class Ours(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.mse_loss(self.net({"x": batch[0]}), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.training_step(batch, batch_idx)

    symmetry, ours, twin = Symmetry("SO(3)", {"x": "1o"}, "1o"), Ours(WritesIntoItsDict()), Plain()
    monitors = [EquivarianceMonitor(s, "net") for s in (symmetry, SYMMETRY)]
    runs = []
    for module, its, monitor in zip((ours, twin), (symmetry, SYMMETRY), monitors, strict=True):
        runs.append(trainer(REMUL(its, "net", target=1), monitor))
        runs[-1].fit(module, loader(), loader())
    assert torch.equal(weights(ours), weights(twin))
    error, expected = (run.callback_metrics["equivariance_error"] for run in runs)
    assert float(error) == pytest.approx(float(expected), rel=1e-6)
