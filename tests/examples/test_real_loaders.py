"""The page "real data" as it stands, on molecules and shapes that are written here as the data sets' own raw files."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers import global_seed, seeded

geometric = pytest.importorskip("torch_geometric")
from torch_geometric.data import Batch, Data  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "real_data.md"
HARTREE, KCAL = 27.211386246, 0.04336414  # in eV
QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
QUIET |= {"enable_model_summary": False, "check_val_every_n_epoch": 5}

# atoms with their positions in Å, and bonds
MOLECULES: dict[str, tuple[str, list[tuple[float, float, float]], list[tuple[int, int]]]] = {
    "methane": (
        "CHHHH",
        [(0, 0, 0), (0.63, 0.63, 0.63), (-0.63, -0.63, 0.63), (-0.63, 0.63, -0.63), (0.63, -0.63, -0.63)],
        [(0, 1), (0, 2), (0, 3), (0, 4)],
    ),
    "ammonia": (
        "NHHH",
        [(0, 0, 0.1), (0.94, 0, -0.24), (-0.47, 0.81, -0.24), (-0.47, -0.81, -0.24)],
        [(0, 1), (0, 2), (0, 3)],
    ),
    "water": ("OHH", [(0, 0, 0.12), (0, 0.76, -0.47), (0, -0.76, -0.47)], [(0, 1), (0, 2)]),
    "fluoromethane": (
        "CFHHH",
        [(0, 0, -0.63), (0, 0, 0.75), (1.03, 0, -0.98), (-0.52, 0.9, -0.98), (-0.52, -0.9, -0.98)],
        [(0, 1), (0, 2), (0, 3), (0, 4)],
    ),
}
NUMBERS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def run(code: str, changes: dict[str, str]) -> dict[str, Any]:
    """The code with fewer epochs or points, and a silent Trainer."""
    for before, after in {"L.Trainer(": f"L.Trainer(**{QUIET}, ", **changes}.items():
        assert before in code
        code = code.replace(before, after)
    space: dict[str, Any] = {}
    with global_seed():
        exec(code, space)
    return space


@pytest.fixture(autouse=True)
def without_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks write into `data/`."""

    def refuse(url: str, *_: Any, **__: Any) -> None:
        raise AssertionError(f"a raw file is missing: {url} would be loaded")

    for module in ("qm9", "md17", "modelnet"):
        monkeypatch.setattr(f"torch_geometric.datasets.{module}.download_url", refuse)
    monkeypatch.chdir(tmp_path)


def rotated(graph: Data, seed: int) -> tuple[Data, Tensor]:
    """The graph turned about the origin by one rotation, which a quaternion of normal numbers gives, and shifted."""
    w, x, y, z = torch.nn.functional.normalize(torch.randn(4, generator=seeded(seed), dtype=torch.float64), dim=0)
    turn = torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    ).float()
    moved = graph.clone()
    moved.pos = graph.pos @ turn.T
    return moved, turn


def error_by_hand(
    network: Callable[[Data], Tensor], graphs: list[Data], of_vectors: bool = False, draws: int = 24
) -> float:
    """The root of the mean square of f(R x) - R f(x), over that of f(x)."""
    batch = Batch.from_data_list(graphs)
    f_x, squares = network(batch).detach(), []
    for seed in range(draws):
        moved, turn = rotated(batch, seed)
        squares.append((network(moved).detach() - (f_x @ turn.T if of_vectors else f_x)).square().mean())
    return float((torch.stack(squares).mean() / f_x.square().mean()).sqrt())


# ---- QM9 -------------------------------------------------------------------------------------------------------------
def molecules(count: int) -> list[tuple[str, str, Tensor, list[tuple[int, int]]]]:
    """Bent a little, turned by nothing, and not centred."""
    generator, found = seeded(3), []
    for k in range(count):
        name, (atoms, places, bonds) = list(MOLECULES.items())[k % len(MOLECULES)]
        pos = torch.tensor(places) + 0.15 * torch.randn(len(atoms), 3, generator=generator)
        found.append((f"{name}_{k}", atoms, pos + torch.randn(3, generator=generator), bonds))
    return found


def labels_of(pos: Tensor) -> list[float]:
    """19 numbers in the order of the raw table, of which the atomisation energies depend on two bonds' lengths."""
    energy = -300 + 100 * float((pos[1:3] - pos[0]).norm(dim=-1).sum())
    return [157.7, 157.7, 157.7, *(0.1 * k for k in range(1, 13)), energy, energy - 1, energy - 2, energy - 3]


def write_sdf(raw: Path, count: int) -> None:
    """What rdkit reads: structures, a table, and a list of those to leave out."""
    header = "mol_id,A,B,C,mu,alpha,homo,lumo,gap,r2,zpve,u0,u298,h298,g298,cv,u0_atom,u298_atom,h298_atom,g298_atom"
    structures, table = [], [header]
    for k, (name, atoms, pos, bonds) in enumerate(molecules(count)):
        lines = [name, "", "", f"{len(atoms):3d}{len(bonds):3d}  0  0  0  0  0  0  0  0999 V2000"]
        for symbol, (x, y, z) in zip(atoms, pos.tolist(), strict=True):
            lines.append(f"{x:10.4f}{y:10.4f}{z:10.4f} {symbol:<3} 0  0  0  0  0  0  0  0  0  0  0  0")
        lines += [f"{a + 1:3d}{b + 1:3d}  1  0  0  0  0" for a, b in bonds]
        structures.append("\n".join([*lines, "M  END", "$$$$", ""]))
        table.append(",".join([f"gdb_{k + 1}", *map(str, labels_of(pos))]))
    (raw / "gdb9.sdf").write_text("".join(structures))
    (raw / "gdb9.sdf.csv").write_text("\n".join([*table, ""]))
    left_out = [f"{k:6d}  C2H6  gone" for k in (2, 7)]
    (raw / "uncharacterized.txt").write_text("\n".join([*["header"] * 9, *left_out, "end", ""]))


def write_prepared(raw: Path, count: int) -> None:
    """What is read without rdkit: the same molecules, in the end's units and order."""
    unit = [1.0, 1.0, *[HARTREE] * 3, 1.0, *[HARTREE] * 5, 1.0, *[KCAL] * 4, 1.0, 1.0, 1.0]
    found = []
    for k, (name, atoms, pos, bonds) in enumerate(molecules(count)):
        if k in (1, 6):
            continue
        raw_labels = labels_of(pos)
        y = torch.tensor([raw_labels[3:] + raw_labels[:3]]) * torch.tensor(unit)
        both = torch.tensor(sorted([*bonds, *((b, a) for a, b in bonds)])).T
        z = torch.tensor([NUMBERS[symbol] for symbol in atoms])
        kinds = torch.zeros(both.shape[1], 4)
        kinds[:, 0] = 1
        found.append(
            {"x": torch.zeros(len(z), 11), "z": z, "pos": pos.round(decimals=4), "edge_index": both}
            | {"edge_attr": kinds, "y": y, "smiles": name, "name": name, "idx": k}
        )
    torch.save(found, raw / "qm9_v3.pt")


@pytest.mark.filterwarnings("ignore:Weights only load failed")
def test_qm9(capsys: pytest.CaptureFixture[str]) -> None:
    raw = Path("data/QM9/raw")
    raw.mkdir(parents=True)
    (write_sdf if importlib.util.find_spec("rdkit") else write_prepared)(raw, 130)
    generated, real, *_ = blocks()
    few = {"epochs=5": "epochs=1", "epochs=10": "epochs=20", "lr=1e-3": "lr=1e-2", "range(500)": "range(40)"}
    space = run(f"{generated}\n{real}", {**few, "channels: int = 64": "channels: int = 16"})
    assert sorted(space["data"].idx.tolist()) == [k for k in range(130) if k not in (1, 6)]
    (first,) = [graph for graph in space["data"] if graph.idx == 0]
    _, _, pos, _ = molecules(1)[0]
    assert first.z.tolist() == [6, 1, 1, 1, 1]
    torch.testing.assert_close(first.pos, pos, rtol=0, atol=1e-4)
    assert first.y[0, 12] == pytest.approx(labels_of(pos)[15] * KCAL, rel=1e-5)  # in eV
    errors = space["errors"]
    assert errors["REMUL"] < 0.5 * errors["plain"]
    model, test = space["model"], list(space["split"](space["data"])[2])
    by_hand = error_by_hand(model.net, test)
    assert errors["REMUL"] == pytest.approx(by_hand, rel=0.4)
    assert "REMUL" in capsys.readouterr().out


def test_the_molecules_that_the_page_makes_are_of_the_shape_of_qm9() -> None:
    raw = Path("data/QM9/raw")
    raw.mkdir(parents=True)
    (write_sdf if importlib.util.find_spec("rdkit") else write_prepared)(raw, 10)
    (first,) = (graph for graph in geometric.datasets.QM9("data/QM9") if graph.idx == 2)  # water, too
    (source,) = re.findall(r"^def water.*?(?=\n\n\n)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    space: dict[str, Any] = {"torch": torch, "Data": Data, "TARGET": 12}
    exec(source, space)
    made = space["water"]()
    for name, value in made.to_dict().items():
        assert value.dtype == first[name].dtype, name
        assert value.shape == first[name].shape, name
    assert torch.equal(made.z, first.z)
    assert torch.equal(made.edge_index, first.edge_index)


# ---- MD17 ------------------------------------------------------------------------------------------------------------
ETHANOL = "OCCHHHHHH"


def write_md17(path: Path, frames: int) -> None:
    """Of ethanol, in kcal/mol and Å: springs of 2 Å between all atoms, about one shape that does not turn."""
    z = np.array([NUMBERS[symbol] for symbol in ETHANOL])
    generator = seeded(4)
    pos = torch.randn(9, 3, generator=generator) + 0.3 * torch.randn(frames, 9, 3, generator=generator)
    i, j = torch.combinations(torch.arange(9)).T
    pos = pos.double().requires_grad_(True)
    energy = 5 * ((pos[:, i] - pos[:, j]).norm(dim=-1) - 2).square().sum(1)
    (gradient,) = torch.autograd.grad(energy.sum(), pos)
    total = (energy - 97_000).detach().numpy()[:, None]
    np.savez(path, z=z, R=pos.detach().numpy(), E=total, F=-gradient.numpy())


def test_md17() -> None:
    raw = Path("data/MD17/ethanol/raw")
    raw.mkdir(parents=True)
    write_md17(raw / "md17_ethanol.npz", 90)
    space = run(blocks()[2], {"max_epochs=20": "max_epochs=15", "lr=1e-3": "lr=5e-3", "SchNet(64, 64": "SchNet(8, 8"})
    assert len(space["train"]) == 60
    assert len(space["val"]) == 30
    assert float(space["mean"]) == pytest.approx(-97_000, abs=500)
    errors = space["errors"]
    assert list(errors["SchNet"]) == ["total", "energy.0e", "forces.1o"]
    for name in ("SchNet, untrained", "SchNet"):
        assert max(errors[name].values()) < 1e-4
    assert errors["direct"]["forces.1o"] > 0.05
    assert errors["direct, REMUL"]["forces.1o"] < 0.8 * errors["direct"]["forces.1o"]
    val = list(space["val"])
    by_hand = error_by_hand(lambda graph: space["model"].net(graph)["forces"], val, of_vectors=True)
    assert errors["direct, REMUL"]["forces.1o"] == pytest.approx(by_hand, rel=0.4)


@pytest.mark.skipif(importlib.util.find_spec("torch_cluster") is None, reason="torch_cluster is not installed")
def test_what_a_graph_of_32_neighbours_costs() -> None:
    """As the page says: dropped neighbours depend on how a molecule lies; the graph that drops none does not."""
    from torch_cluster import radius_graph as truncated

    from lightning_equiv.datasets import radius_graph

    pos = 1.5 * torch.randn(60, 3, generator=seeded(5))
    graph = Data(pos=pos, z=torch.ones(60, dtype=torch.long))

    def energy(edges: Callable[[Tensor], Tensor]) -> Callable[[Data], Tensor]:
        def network(graph: Data) -> Tensor:
            i, j = edges(graph.pos)
            return torch.exp(-(graph.pos[i] - graph.pos[j]).norm(dim=-1)).sum()[None]

        return network

    assert error_by_hand(energy(lambda pos: truncated(pos, 8.0)), [graph]) > 1e-3
    assert error_by_hand(energy(lambda pos: radius_graph(pos, 8.0)), [graph]) < 1e-5


# ---- ModelNet40 ------------------------------------------------------------------------------------------------------
CLASSES = ["bathtub", "bed", "chair", "desk", "dresser", "monitor", "night_stand", "sofa", "table", "toilet"]
CLASSES += ["airplane"]  # not of ModelNet10


def write_off(path: Path, size: Tensor, run_on: bool) -> None:
    """A box, of triangles and quadrilaterals; some files of the data set have no line end after OFF."""
    corners = [[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    pos = 30 + torch.tensor(corners) * size
    quads = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4]]
    faces = [f"4 {' '.join(map(str, quad))}" for quad in quads] + ["3 1 5 7", "3 1 7 3"]
    lines = [f"OFF{'' if run_on else chr(10)}8 {len(faces)} 0", *(" ".join(map(str, p)) for p in pos.tolist()), *faces]
    path.write_text("\n".join([*lines, ""]))


SHAPES = {"airplane": (1.0, 1.0, 1.0), "bathtub": (1.0, 1.0, 4.0), "bed": (4.0, 4.0, 1.0)}  # the others are empty


def write_modelnet(raw: Path, train: int, test: int) -> None:
    """Cubes, pillars and plates, upright, that differ a little."""
    generator = seeded(6)
    for name in CLASSES:
        for part, count in (("train", train), ("test", test)):
            folder = raw / name / part
            folder.mkdir(parents=True)
            for number in range(1, 1 + count if name in SHAPES else 1):
                size = torch.tensor(SHAPES[name]) * (1 + 0.1 * torch.randn(3, generator=generator))
                write_off(folder / f"{name}_{number:04d}.off", 10 * size, run_on=number == 1)


def test_modelnet40() -> None:
    write_modelnet(Path("data/ModelNet40/raw"), 10, 8)
    space = run(
        blocks()[3],
        {
            "SamplePoints(1024)": "SamplePoints(32)",
            "max_epochs=30": "max_epochs=20",
            "train, 16": "train, 8",
            "lr=1e-3": "lr=5e-3",
            "16, graph": "8, graph",
        },
    )
    assert space["train"].num_classes == len(SHAPES)
    assert (len(space["train"]), len(space["test"])) == (30, 24)
    graph = space["train"][0]
    assert graph.pos.shape == (32, 3)
    assert float(graph.pos.norm(dim=-1).max()) == pytest.approx(1)
    torch.testing.assert_close(graph.pos.mean(0), torch.zeros(3), rtol=0, atol=1e-5)
    changes = space["changes"]
    lost = {name: found["right"] - found["right_oriented"] for name, found in changes.items()}
    assert changes["plain"]["right"] > 0.7
    assert lost["plain"] > 0.1
    assert lost["augmentation"] < 0.5 * lost["plain"]
    # by hand: the share of rotations that change the class
    net, batch = space["model"].net, Batch.from_data_list(space["fixed"])
    answer = net(batch).argmax(-1)
    changed = torch.stack([net(rotated(batch, seed)[0]).argmax(-1) != answer for seed in range(24)])
    assert changes["augmentation"]["changed"] == pytest.approx(float(changed.float().mean()), abs=0.12)


def test_a_scale_by_the_largest_coordinate_depends_on_how_a_shape_lies() -> None:
    """As the page says of NormalizeScale; UnitBall, of the page, does not."""
    from torch_geometric.transforms import NormalizeScale

    (source,) = re.findall(r"^class UnitBall.*?(?=\n\n\n)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    space: dict[str, Any] = {"BaseTransform": geometric.transforms.BaseTransform, "Data": Data}
    exec(source, space)
    line = Data(pos=torch.tensor([[0.0, 0, 0], [2, 0, 0]]))
    diagonal = Data(pos=torch.tensor([[0.0, 0, 0], [2, 2, 2]]) / math.sqrt(3))
    length = lambda data: float((data.pos[1] - data.pos[0]).norm())  # noqa: E731
    scaled = [length(NormalizeScale()(data.clone())) for data in (line, diagonal)]
    assert scaled[1] / scaled[0] == pytest.approx(math.sqrt(3), rel=1e-4)
    in_ball = [length(space["UnitBall"]()(data.clone())) for data in (line, diagonal)]
    assert in_ball == pytest.approx([2, 2])
