"""The layers' section of networks that differentiate inside, and of those whose layers cannot be measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_equiv import EquivarianceReport, Symmetry, audit, layerwise_error
from tests.helpers import default_dtype, normal
from tests.metrics.test_layerwise_inside import GRAPHS, LAYERS, SYMMETRY, Forces, GraphForces, graphs

SMALL: dict[str, Any] = {"draws": 4, "progress": False}


def text(report: EquivarianceReport) -> str:
    return " ".join(str(report).split())


@pytest.mark.parametrize("way", ["own", "func", "needs_grad"])
def test_layers_of_energies_and_forces(way: str) -> None:
    """Whether the network enables gradients or the audit does."""
    with default_dtype(torch.float64):
        net, x = Forces(way), normal(16, 3)
        report = audit(net, x, SYMMETRY, layers=LAYERS, **SMALL)
        own = layerwise_error(net, x, SYMMETRY, LAYERS, needs_grad=True)
    assert bool(report.figures["how"].get("needs_grad")) == (way == "needs_grad")
    found = report.figures["layers"]
    for figure in ("makes", "ends_up"):
        assert found[figure] == pytest.approx(getattr(own, figure).tolist(), rel=1e-8)
    assert found["remainder"] == pytest.approx(float(own.remainder), rel=1e-8)
    assert "what its backward pass through a layer makes, of forces, is in that rest" in text(report)


@pytest.mark.parametrize("layers", [{"blocks.*": ("4x0e", "4x0e")}, {"out": ("4x0e", "0e")}], ids=str)
def test_layers_of_a_graph_network(layers: Any) -> None:
    with default_dtype(torch.float64):
        report = audit(GraphForces(), graphs(), GRAPHS, layers=layers, **SMALL)
        own = layerwise_error(GraphForces(), graphs(), GRAPHS, layers, needs_grad=True)
    assert report.figures["layers"]["makes"] == pytest.approx(own.makes.tolist(), rel=1e-6)
    assert report.figures["layers"]["ends_up"] == pytest.approx(own.ends_up.tolist(), rel=1e-6)
    assert "layers" not in report.figures["skipped"]


def test_a_network_without_gradients_inside_is_told_nothing_of_them() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    report = audit(net, torch.randn(16, 3), Symmetry("SO(3)", "1o", "1o"), layers={"[02]": ("1o", "1o")}, **SMALL)
    assert report.figures["layers"]["inside"] is False
    assert "differentiates inside" not in text(report)


class Refuses(nn.Module):
    """Does not run on features that it has not made."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if not torch.equal(h, nn.functional.linear(x, self.first.weight, self.first.bias)):
            raise RuntimeError("these are others\nand more")
        return h


def test_what_cannot_be_measured_is_said_in_a_sentence() -> None:
    report = audit(
        Refuses(), torch.randn(16, 3), Symmetry("SO(3)", "1o", "1o"), layers={"first": ("1o", "1o")}, **SMALL
    )
    why = report.figures["skipped"]["layers"]
    assert why.startswith("the network runs, and does not where the features of its layers are moved: choose other")
    assert why.endswith("Torch's words were: these are others")
    with default_dtype(torch.float64):
        report = audit(Forces("vmap"), normal(16, 3), SYMMETRY, layers=LAYERS, **SMALL)
    assert report.figures["skipped"]["layers"].startswith("layer 'f_1' runs inside torch.func.vmap")
    assert report.error[0] > 0


# ---- what is read first ----------------------------------------------------------------------------------------------
class Two(nn.Module):
    def __init__(self, energy: float, forces: float) -> None:
        super().__init__()
        self.energy, self.forces = energy, forces

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"energy": 3 * x.square().sum(-1, keepdim=True) + self.energy * x[:, :1], "forces": x + self.forces}


def test_the_worst_output_stands_beside_the_total() -> None:
    tiles = {tile[0]: tile for tile in audit(Two(0, 0.2), normal(32, 3), SYMMETRY, **SMALL).document.headline}
    report = audit(Two(0, 0.2), normal(32, 3), SYMMETRY, **SMALL)
    forces = report.figures["error"]["forces.1o"][0]
    assert forces > report.error[0]
    _, total, note = tiles["relative error"]
    assert total == f"{100 * report.error[0]:.2g} %"
    assert note.startswith("in total, 95 % interval ")
    assert note.endswith(f"; forces.1o {100 * forces:.2g} %")
    loaded = EquivarianceReport(report.as_dict())
    assert loaded.document.headline == report.document.headline


@pytest.mark.parametrize("network", [Two(0, 0), lambda x: {"energy": 0 * x[:, :1], "forces": 0 * x}])
def test_the_total_of_an_exact_network_stands_alone(network: Any) -> None:
    headline = audit(network, normal(32, 3), SYMMETRY, **SMALL).document.headline
    assert "in total" not in headline[0][2]
    single = audit(lambda x: x + 0.2, normal(32, 3), Symmetry("SO(3)", "1o", "1o"), **SMALL).document.headline
    assert "in total" not in single[0][2]
