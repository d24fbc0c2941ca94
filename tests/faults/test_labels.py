"""Labels of several outputs: by key, by a dict of places, for a part of them, each with a weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_equiv import REMUL, Invariant, Symmetry, SymmetryMixin
from tests.strategies.toys import Plain, batches, rotations, snapshot, trainer, turn, weights

mse = nn.functional.mse_loss
SYMMETRY = Symmetry(
    "SO(3)", "1o", {"energy": Invariant(), "forces": "1o", "spread": Invariant(), "aux": Invariant(shared=True)}
)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.lin = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        out = self.lin(x)
        return {"energy": out[:, 3], "forces": out[:, :3], "spread": out[:, 4], "aux": out.square().mean()}


class Module(Plain):
    def __init__(self) -> None:
        super().__init__(Heads(), lr=0.0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(batch["x"])["energy"].square().mean()


def data() -> DataLoader:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    y, dy, s = x.norm(dim=-1), 2 * x, x.sum(-1)
    batch = {"x": x, "y": y, "deep": {"dy": dy}}
    batch["labels"] = {"spread": s, "forces": dy, "energy": y}
    batch["some"] = {"forces": dy}
    batch["wrong"] = {"force": dy, "energy": y}
    batch["none"] = {"n": 3}
    return batches([batch])


def logged(target: Any, weight: Any = 1.0) -> dict[str, Tensor]:
    run = trainer(REMUL(SYMMETRY, "net", target=target, weight=weight))
    run.fit(Module(), data())
    return {k.removeprefix("remul/"): v for k, v in run.callback_metrics.items()}


def expected(**weights: float) -> dict[str, Tensor]:
    batch, net = next(iter(data())), Heads()
    R = rotations(6, "REMUL", "remul", 0, 0, (0, 0))
    out, labels = net(turn(R, batch["x"])), dict(batch["labels"])
    labels["forces"] = turn(R, labels["forces"])
    return {name: weight * mse(out[name], labels[name]).detach() for name, weight in weights.items()}


def test_outputs_and_labels_are_paired_by_key_in_a_loss_of_ones_own() -> None:
    class Mixed(SymmetryMixin, Module):
        symmetry, symmetry_network = Symmetry("SO(3)", "1o", {"b": "1o", "a": "1o"}), "net"

    module = Mixed()
    module.net = Pair()
    x = torch.randn(4, 3)
    assert float(module.equivariance_loss(x, target={"a": 2 * x, "b": x})) < 1e-10


class Pair(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"b": x, "a": 2 * x}


ALL = {"energy": 1.0, "forces": 1.0, "spread": 1.0}


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("labels", ALL),  # in another order than the outputs
        ("some", {"forces": 1.0}),
        ({"energy": "y", "forces": ["deep", "dy"]}, {"energy": 1.0, "forces": 1.0}),
        ({"forces": lambda batch: batch["deep"]["dy"]}, {"forces": 1.0}),
        (lambda batch: {"energy": batch["y"]}, {"energy": 1.0}),
    ],
)
def test_labels_belong_to_outputs_by_their_names(target: Any, names: dict[str, float]) -> None:
    torch.testing.assert_close(logged(target)["equivariance_loss"], sum(expected(**names).values()))


@pytest.mark.parametrize("target", ["labels", None])
def test_every_output_has_its_weight(target: Any) -> None:
    weight = {"energy": 0.5, "forces": 10.0, "spread": 0.0}
    values = logged(target, weight)
    assert values["equivariance_weight"] == 1
    terms = {name: values[f"equivariance_loss/{name}"] for name in weight}
    torch.testing.assert_close(values["equivariance_loss"], sum(terms.values()))
    assert terms["spread"] == 0
    plain = logged(target, dict.fromkeys(weight, 1.0))
    for name, beta in weight.items():
        torch.testing.assert_close(terms[name], beta * plain[f"equivariance_loss/{name}"])
    if target:
        torch.testing.assert_close(terms, expected(**weight))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": {"energy": "z"}}, r"target='z' is not in the batch"),
        ({"target": {"force": ["deep", "dy"]}}, r"target=.*'force' is no output.*did you mean 'forces'"),
        ({"target": "wrong"}, r"target='wrong'.*'force' is no output of the network \(did you mean 'forces'\?\)"),
        (
            {"target": "y"},
            r"target='y' holds a tensor.*without a name.*labels of 'energy', 'forces', 'spread'",
        ),
        ({"target": "none"}, r"target='none' holds.*expected labels of 'energy'"),
        ({"target": {"energy": ["deep", "dy"]}}, r"for 'energy', but the network returned a tensor of shape \(6,\)"),
        ({"weight": {"energy": 1.0}}, r"`weight` to name each output.*\['energy', 'forces', 'spread'\].*\['energy'\]"),
        ({"weight": {"energy": 1.0, "force": 1.0}, "target": {"energy": "y"}}, r"`weight` to name each.*'force'"),
    ],
)
def test_wrong_names_are_named(arguments: dict[str, Any], message: str) -> None:
    module = Module()
    before, start = snapshot(module), weights(module)
    with pytest.raises(ValueError, match=message):
        trainer(REMUL(SYMMETRY, "net", **arguments)).fit(module, data())
    assert snapshot(module) == before
    assert torch.equal(weights(module), start)


def test_a_weight_is_a_number() -> None:
    for weight in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=r"weight\['forces'\]"):
            REMUL(SYMMETRY, weight={"forces": weight})


def test_yaml_writes_them() -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--remul", type=REMUL)
    text = """
remul:
  class_path: lightning_equiv.REMUL
  init_args:
    symmetry: {class_path: lightning_equiv.Symmetry, init_args: {group: SO(3), inputs: 1o, outputs: {e: 0e, f: 1o}}}
    network: net
    weight: {e: 1.0, f: 100.0}
    target: {e: y, f: [labels, dy]}
"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)
        remul = parser.instantiate_classes(parser.parse_string(text)).remul
    assert remul.weight == {"e": 1.0, "f": 100.0}
    assert remul.target == {"e": "y", "f": ["labels", "dy"]}
