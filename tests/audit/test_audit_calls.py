"""audit on whatever is handed in: callables, data, bad inputs, NaN, budgets."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_equiv import Invariant, Point, Symmetry, audit, lie_derivative_error
from lightning_equiv.datasets import GravityDataModule
from lightning_equiv.networks.transformer import ParticleTransformer
from tests.helpers import global_seed, normal

VECTORS = Symmetry("SO(3)", "1o", "1o")
SMALL: dict[str, Any] = {"draws": 4, "progress": False}


def mlp() -> nn.Sequential:
    with global_seed(3):
        return nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 3))


X = normal(12, 3).float()


# ---- callables -------------------------------------------------------------------------------------------------------
def function_of(net: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: net(x)


def exported(dynamic: bool) -> Any:
    shapes = ({0: torch.export.Dim("batch", min=2, max=10000)},) if dynamic else None
    return torch.export.export(mlp(), (X,), dynamic_shapes=shapes).module()


CALLABLES: dict[str, Callable[[], Any]] = {
    "function": lambda: function_of(mlp()),
    "partial": lambda: functools.partial(lambda net, x: net(x), mlp()),
    "script": lambda: torch.jit.script(mlp()),
    "trace": lambda: torch.jit.trace(mlp(), X),
    "export": lambda: exported(True),
    "export of one size": lambda: exported(False),
    "compile eager": lambda: torch.compile(mlp(), backend="eager"),
    "compile aot_eager": lambda: torch.compile(mlp(), backend="aot_eager"),
    "method": lambda: mlp().forward,
}


@pytest.fixture(scope="module")
def of_module():
    return audit(mlp(), X, VECTORS, **SMALL)


@pytest.mark.parametrize("name", CALLABLES)
def test_callables(name: str, of_module: Any) -> None:
    """The same figures as of the module that they were made of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, torch.export and compile have advice
        report = audit(CALLABLES[name](), X, VECTORS, **SMALL)
    assert abs(report.error[0] - of_module.error[0]) < 1e-5
    assert abs(report.figures["lie"]["total"].value - of_module.figures["lie"]["total"].value) < 2e-3
    assert report.verdict == "not equivariant"
    assert ("chunks" in report.figures["how"]) == (name == "export of one size")
    # all but the layers, the float64 copy, and what the group has not
    assert set(report.figures["skipped"]) <= {"layers", "floor", "group_parts"}


def test_a_program_of_one_size_takes_more_data_than_are_asked_for() -> None:
    report = audit(exported(False), X, VECTORS, num_inputs=5, **SMALL)
    assert report.figures["how"]["inputs"] == 12


def test_half_precision_has_the_floor_of_half_precision() -> None:
    report = audit(mlp().bfloat16(), X.bfloat16(), VECTORS, **SMALL)
    assert report.figures["how"]["dtype"] == "bfloat16"
    assert 1e-4 < report.figures["floor"]["value"].value < 2e-2
    assert report.verdict == "not equivariant"


# ---- data ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["tensor", "tuple", "list", "loader", "dataset", "generator", "dicts", "named"])
def test_kinds_of_data(kind: str) -> None:
    """The Lie derivative has no draws: it is that of all inputs, in whatever they come."""
    x, y = normal(20, 3).float(), normal(20, 3, seed=1).float()
    pairs = list(zip(x.split(8), y.split(8), strict=True))
    data: dict[str, Any] = {
        "tensor": x,
        "tuple": (x, y),
        "list": pairs,
        "loader": DataLoader(TensorDataset(x, y), 8),
        "dataset": TensorDataset(x, y),
        "generator": (pair for pair in pairs),
        "dicts": [{"x": a, "y": b} for a, b in pairs],
        "named": {"input": x, "y": y},
    }
    settings: dict[str, Any] = {"labels": None if kind == "tensor" else "y" if kind in ("dicts", "named") else 1}
    symmetry = VECTORS
    if kind == "dicts":
        settings["inputs"] = lambda batch: (batch["x"],)
    if kind == "named":
        symmetry = Symmetry("SO(3)", {"input": "1o"}, "1o")
    net = mlp()
    report = audit(net, data[kind], symmetry, **settings, **SMALL)
    own = lie_derivative_error(net, x, VECTORS)
    assert abs(report.figures["lie"]["total"].value - float(own.total)) < 1e-5
    assert report.figures["how"]["inputs"] == 20
    if kind != "tensor":
        square = report.figures["labels"]["total"]["as_is"].value ** 2
        assert abs(square - float((net(x).detach() - y).square().mean())) < 1e-5


class Logging(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        with global_seed(0):
            self.net = ParticleTransformer(1, 8, 2)
        self.mean = torchmetrics.MeanMetric()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        y = self.net(batch["masses"], batch["positions"], batch["velocities"])
        self.mean.update(y.mean())
        self.log("mean", self.mean)
        self.log("loss", (y - batch["targets"]).square().mean())


GRAVITY = {"masses": Invariant(), "positions": "1o", "velocities": "1o"}


def gravity() -> GravityDataModule:
    return GravityDataModule(train_size=4, val_size=4, test_size=10, steps_per_epoch=1)


@pytest.mark.parametrize("inputs", [GRAVITY, tuple(GRAVITY.values())])
def test_the_network_inside_a_module(inputs: Any) -> None:
    """Recorded from its validation step, as the network by itself; nothing is logged, no metric moves."""
    module = Logging()
    report = audit(module, gravity(), Symmetry("SO(3)", inputs, "1o"), network="net", labels="targets", **SMALL)
    alone = audit(module.net, gravity(), Symmetry("SO(3)", GRAVITY, "1o"), labels="targets", **SMALL)
    assert report.error == pytest.approx(alone.error, rel=1e-5)
    assert report.figures["labels"]["total"]["as_is"] == pytest.approx(alone.figures["labels"]["total"]["as_is"])
    assert module.mean._update_count == 0
    assert module.training
    assert not module.net._forward_hooks
    assert report.figures["name"] == "Logging.net"


# ---- bad input -------------------------------------------------------------------------------------------------------
def fails(words: str, *args: Any, error: type[Exception] = ValueError, **kwargs: Any) -> None:
    with pytest.raises(error, match=words):
        audit(*args, **{**SMALL, **kwargs})


def test_bad_input() -> None:
    net = mlp()
    fails("at least one input, got none", net, [], VECTORS)
    fails("takes 2 arguments", net, X, Symmetry("SO(3)", ("1o", "1o"), "1o"))
    fails("'masses'", ParticleTransformer(1, 8, 2), {"positions": X, "velocities": X}, Symmetry("SO(3)", GRAVITY, "1o"))
    fails("labels='y'", net, {"input": X}, Symmetry("SO(3)", {"input": "1o"}, "1o"), labels="y")
    fails("names no sub-module", net, X, VECTORS, network="nope")
    fails("go by position", net, {"x": X}, VECTORS)
    fails("my own words", net, X, VECTORS, inputs=_complains, error=LookupError)
    fails("draws", net, X, VECTORS, draws=1)
    fails("budget", net, X, VECTORS, budget=0.0)


def _complains(batch: Any) -> Any:
    raise LookupError("my own words")


def test_the_networks_words_come_through() -> None:
    def network(x: Tensor) -> Tensor:
        raise KeyError("no such table in my model")

    fails("no such table in my model", network, X, VECTORS, error=KeyError)


def test_a_later_batch_that_fails_is_told() -> None:
    def network(x: Tensor) -> Tensor:
        if len(x) % 7 == 0:
            raise KeyError("no such table in my model")
        return 2 * x

    report = audit(network, [(X[:8],), (X[:4],), (X[:7],), (X,)], VECTORS, **SMALL)
    assert report.figures["how"]["inputs"] == 12
    assert "after 12 inputs" in report.figures["skipped"]["inputs"]
    text = " ".join(str(report).split())
    assert "ended after 12 inputs, at the next batch: KeyError: 'no such table in my model'" in text


def test_a_section_that_fails_is_told() -> None:
    """A network that insists on float32 has no float64 copy."""

    class Single(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.float32, "single precision only"
            return 2 * x

    report = audit(Single(), X, VECTORS, **SMALL)
    assert "single precision only" in report.figures["skipped"]["floor"]
    assert "single precision only" in str(report)
    assert report.verdict == "exact to rounding"


def test_labels_of_several_outputs_are_where_a_dict_says() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"energy": x[:, :1], "forces": x + 0.1}

    symmetry = Symmetry("SO(3)", {"x": "1o"}, {"energy": "0e", "forces": "1o"})
    batch = {"x": X, "e": X[:, 1:2], "labels": {"dy": X}}
    places = {"energy": "e", "forces": ["labels", "dy"]}
    by_name = audit(Two(), batch, symmetry, labels=places, **SMALL)
    by_call = audit(Two(), batch, symmetry, labels=lambda b: {"energy": b["e"], "forces": b["labels"]["dy"]}, **SMALL)
    assert {"energy.0e", "forces.1o"} <= set(by_name.figures["labels"])
    assert by_name.as_dict()["labels"] == by_call.as_dict()["labels"]
    fails("labels='z' is not in the batch", Two(), batch, symmetry, labels={"energy": "z"})


def test_labels_of_another_shape_are_told() -> None:
    report = audit(mlp(), (X, X[:, :2]), VECTORS, labels=1, **SMALL)
    assert "shaped as the network's output" in report.figures["skipped"]["labels"]
    assert report.figures["error"]["total"].value > 0


def test_one_input_has_no_interval() -> None:
    report = audit(mlp(), X[:1], VECTORS, **SMALL)
    assert "too few inputs for an interval" in " ".join(str(report).split())
    assert report.as_dict()["error"]["total"][1] is None
    assert "nan" not in str(report).lower()


class Sometimes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with global_seed(0):
            self.own = nn.Linear(3, 3, bias=False)
            self.unused = nn.Linear(3, 3)
        self.limit = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.norm(dim=1, keepdim=True) > self.limit, torch.nan, self.own(x))


def test_a_layer_that_never_ran_is_told() -> None:
    report = audit(Sometimes(), 0.1 * X, VECTORS, layers={"*": ("1o", "1o")}, **SMALL)
    assert "['unused'] did not run" in report.figures["skipped"]["layers"]
    assert "['unused'] did not run" in " ".join(str(report).split())
    assert report.figures["error"]["total"].value > 0.1


# ---- NaN -------------------------------------------------------------------------------------------------------------
def test_nan_for_some_inputs() -> None:
    """They are named, and all other figures are those of the rest."""
    x = normal(40, 3)
    net = Sometimes().double()
    bad = (x.norm(dim=1) > 2).nonzero()[:, 0].tolist()
    assert 0 < len(bad) < 30
    report = audit(net, x, VECTORS, layers={"own": ("1o", "1o")}, labels=lambda batch: x, draws=8, progress=False)
    figures = report.figures
    assert figures["not_finite"] == bad
    good = x[x.norm(dim=1) <= 2]
    torch.testing.assert_close(
        torch.tensor(figures["lie"]["gram"], dtype=torch.float64), lie_derivative_error(net.own, good, VECTORS).gram
    )
    assert figures["layers"]["ends_up"] == pytest.approx([1.0])
    assert figures["layers"]["inputs"] == len(good)
    assert figures["worst"]["input"] not in bad
    assert not {row["input"] for row in figures["worst"]["ten"]} & set(bad)
    assert all(row["error"] >= 0 for row in figures["worst"]["ten"])
    assert set(figures) >= {"spectrum", "profile", "floor", "resampling", "labels"}
    y = net.own(good).detach()
    assert abs(figures["labels"]["total"]["as_is"].value ** 2 - float((y - good).square().mean())) < 1e-12
    assert abs(figures["unrelated"] - 2**0.5) < 0.1
    assert f"For {len(bad)} inputs" in " ".join(str(report).split())
    assert "nan" not in str(report.as_dict()).lower()


def test_nan_throughout() -> None:
    report = audit(lambda x: x * torch.nan, X, VECTORS, **SMALL)
    assert "NaN or infinity throughout" in " ".join(str(report).split())
    assert report.figures["not_finite"] == list(range(12))
    assert report.markdown()
    assert report.as_dict()["verdict"] == "not equivariant"


def test_infinity_is_left_out() -> None:
    report = audit(lambda x: x / (x[:, :1] > 0), normal(30, 3), VECTORS, **SMALL)
    assert len(report.figures["not_finite"]) > 20
    assert "error" not in report.figures or report.error[0] < 10


# ---- budget ----------------------------------------------------------------------------------------------------------
class Slow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own = mlp()

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(len(x) * 1e-4)
        return self.own(x)


@pytest.mark.parametrize("batches", [1, 5])
def test_a_budget_is_kept(batches: int) -> None:
    """64 draws of 100 inputs alone are 0.64 s."""
    data = [(x,) for x in normal(100, 3).float().split(100 // batches)]
    start = time.perf_counter()
    report = audit(Slow(), data, VECTORS, budget=0.3, progress=False)
    assert time.perf_counter() - start < 2
    inputs = report.figures["how"]["inputs"]
    assert 8 <= inputs < 60
    assert "the budget of 0.3 s" in " ".join(str(report).split())
    assert report.figures["error"]["total"].value > 0.5


def test_progress_is_shown_only_where_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    audit(mlp(), X, VECTORS, **SMALL)
    assert capfd.readouterr() == ("", "")
    audit(mlp(), X, VECTORS, draws=4)
    assert "audit" in capfd.readouterr().err


# ---- completeness ----------------------------------------------------------------------------------------------------
def doubts(net: Any, data: Any, symmetry: Symmetry) -> dict[str, str]:
    report = audit(net, data, symmetry, **SMALL)
    found = {row["input"]: row["doubt"] for row in report.figures["unmoved"]}
    text = " ".join(str(report).split())
    assert ("Look at the inputs first" in text) == any(found.values())
    return found


def test_doubts() -> None:
    def network(masses: Tensor, positions: Tensor, velocities: Tensor) -> Tensor:
        return positions + masses[..., None] * velocities

    data = {"masses": normal(6, 3), "positions": normal(6, 3, 3), "velocities": normal(6, 3, 3)}
    assert doubts(network, data, Symmetry("SO(3)", GRAVITY, "1o")) == {"masses": ""}  # three particles are no vector
    found = doubts(network, data, Symmetry("SO(3)", {**GRAVITY, "velocities": Invariant()}, "1o"))
    assert found["masses"] == ""
    assert found["velocities"] == "3 components, declared invariant: is it a vector ('1o') or positions (Point())?"


def test_doubts_of_a_cell_and_of_none_of_atomic_numbers() -> None:
    def network(numbers: Tensor, positions: Tensor, cell: Tensor) -> Tensor:
        return (numbers[..., None] * positions).sum(1) @ cell[0]

    data = {"numbers": torch.arange(12).view(4, 3), "positions": normal(4, 3, 3), "cell": normal(4, 3, 3)}
    symmetry = Symmetry("SO(3)", {"numbers": Invariant(), "positions": "1o", "cell": Invariant()}, "1o")
    found = doubts(network, data, symmetry)
    assert found["numbers"] == ""
    assert found["cell"].startswith("a unit cell turns with the positions")


def test_doubts_of_a_graph() -> None:
    """A cell that is not read is asked about; labels on the graph are not."""
    data = pytest.importorskip("torch_geometric.data")

    def graph(n: int) -> Any:
        own = {"pos": normal(n, 3), "z": torch.ones(n).long(), "cell": torch.eye(3)[None], "forces": normal(n, 3)}
        return data.Data(**own)

    batch = data.Batch.from_data_list([graph(3), graph(5)])
    symmetry = Symmetry("SE(3)", {"pos": Point(), "z": Invariant()}, Point())
    found = doubts(lambda graph: graph.pos * 1.0, batch, symmetry)
    assert found["cell"].startswith("it is there, and the network does not read it")
    assert found["z"] == found["forces"] == ""


def test_a_network_that_writes_into_its_input_is_refused() -> None:
    x = X.clone()
    fails("in place", lambda x: x.mul_(2), x, VECTORS)
