"""audit on networks of other libraries, of which it is known what they keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_equiv import Image, Invariant, Point, Symmetry, audit
from lightning_equiv.networks.e3nn_message_passing import E3nnMessagePassing
from tests.helpers import default_dtype, global_seed, normal, seeded

o3 = pytest.importorskip("e3nn.o3")
data = pytest.importorskip("torch_geometric.data")
loader = pytest.importorskip("torch_geometric.loader")
visnet = pytest.importorskip("torch_geometric.nn.models.visnet")
schnet = pytest.importorskip("torch_geometric.nn.models.schnet")

SMALL: dict[str, Any] = {"draws": 6, "progress": False}
EXACT = "exact to rounding"


def pairs(batch: Tensor) -> Tensor:
    """All edges inside of molecules: PyG's own radius_graph needs one more library."""
    i, j = (batch[:, None] == batch).nonzero().T
    return torch.stack([i, j])


class AllPairs(nn.Module):
    def forward(self, positions: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        i, j = pairs(batch)
        i, j = i[i != j], j[i != j]
        return torch.stack([i, j]), (positions[i] - positions[j]).norm(dim=1)


def molecules(dtype: torch.dtype = torch.float32) -> list[Any]:
    """Of 4 to 7 atoms, with labels beside."""
    generator = seeded(1)
    found = []
    for i in range(12):
        n = 4 + i % 4
        numbers = torch.randint(1, 9, (n,), generator=generator)
        positions = 1.5 * torch.randn(n, 3, generator=generator, dtype=dtype)
        found.append(data.Data(z=numbers, pos=positions, forces=positions.clone(), energy=positions.sum()[None]))
    return found


def make_schnet(dtype: torch.dtype = torch.float32) -> nn.Module:
    with global_seed(0):
        return schnet.SchNet(
            hidden_channels=16, num_filters=16, num_interactions=2, num_gaussians=10, cutoff=5.0,
            interaction_graph=AllPairs(),
        ).to(dtype)  # fmt: skip


class Conservative(nn.Module):
    """Energies and, by autograd, forces, of positions with their own gradients or of a leaf of its own."""

    def __init__(self, net: nn.Module, detached: bool, broken: float = 0.0) -> None:
        super().__init__()
        self.net, self.detached, self.broken = net, detached, broken

    def forward(self, graph: Any) -> dict[str, Tensor]:
        pos = graph.pos.detach() if self.detached else graph.pos
        pos.requires_grad_(True)
        energy = self.net(graph.z, pos, graph.batch)
        forces = -torch.autograd.grad(energy.sum(), pos)[0]
        return {"energy": energy, "forces": forces * torch.tensor([1, 1, 1 + self.broken])}


ATOMS = {"pos": Point(), "z": Invariant()}
ENERGY = Symmetry("E(3)", ATOMS, "0e")
FORCES = Symmetry("E(3)", ATOMS, {"energy": "0e", "forces": "1o"})


# ---- torch_geometric -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_schnet(dtype: torch.dtype) -> None:
    """Energies of distances: E(3) keeps them, in batches of graphs of different sizes."""
    net, graphs = make_schnet(dtype), molecules(dtype)
    report = audit(
        lambda graph: net(graph.z, graph.pos, graph.batch), loader.DataLoader(graphs, batch_size=5), ENERGY, **SMALL
    )
    wrapped = audit(OnGraph(net), loader.DataLoader(graphs, batch_size=5), ENERGY, **SMALL)
    one_by_one = audit(OnGraph(net), graphs[:3], ENERGY, **SMALL)
    for found in (report, wrapped, one_by_one):
        assert found.verdict == EXACT
        assert found.error[0] < 50 * torch.finfo(dtype).eps
        assert found.figures["lie"]["kept"] == "all"
    assert report.figures["how"]["inputs"] == 12
    assert wrapped.figures["floor"]["kind"] == "float64"
    # the energies per molecule differ, and that is what their unrelated distance is
    batch = data.Batch.from_data_list(graphs)
    energies = net(batch.z, batch.pos, batch.batch).detach()[:, 0].double()
    spread = float((2 * energies.var() / energies.square().mean()).sqrt())
    assert abs(report.figures["unrelated"] - spread) < 1e-5
    assert abs(report.figures["output_rms"]["0e"] - float(energies.square().mean().sqrt())) < 1e-5


class OnGraph(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, graph: Any) -> Tensor:
        return self.net(graph.z, graph.pos, graph.batch)


@pytest.mark.parametrize("detached", [False, True])
def test_conservative_forces(detached: bool) -> None:
    """Needs gradients, which is noticed; a detached leaf leaves central differences, whose rounding is theirs."""
    graphs = loader.DataLoader(molecules(), batch_size=6)
    report = audit(Conservative(make_schnet(), detached), graphs, FORCES, **SMALL)
    assert report.verdict == EXACT
    assert set(report.figures["verdicts"].values()) == {EXACT}
    assert report.figures["how"]["needs_grad"]
    assert report.figures["lie"]["method"] == ("central_difference" if detached else "jvp")
    assert report.figures["lie"]["kept"] == "all"
    assert report.figures["group_parts"]["translations"].value < 1e-5
    # numbers of an output are those of its own: 3 of each atom
    atoms = sum(len(graph.z) for graph in molecules())
    assert report.figures["rms"]["forces.1o"].value < 1e-5
    batch = data.Batch.from_data_list(molecules())
    forces = Conservative(make_schnet(), True)(batch)["forces"]
    rms = float(forces.square().sum() / (3 * atoms)) ** 0.5
    assert abs(report.figures["output_rms"]["forces.1o"] - rms) < 1e-5


def test_broken_forces_beside_exact_energies() -> None:
    graphs = loader.DataLoader(molecules(), batch_size=6)
    labels = {"labels": lambda batch: {"energy": batch.energy[:, None], "forces": batch.forces}}
    report = audit(Conservative(make_schnet(), False, 0.5), graphs, FORCES, **labels, **SMALL)
    assert report.figures["verdicts"]["energy.0e"] == EXACT
    assert report.figures["verdicts"]["forces.1o"] == report.verdict == "approximate"
    assert report.figures["lie"]["kept"].startswith("rotations about z and translations")
    assert report.figures["group_parts"]["translations"].value < 1e-5
    found = report.figures["labels"]["forces.1o"]
    assert found["averaged"].value ** 2 + found["variance"].value ** 2 == pytest.approx(found["oriented"].value ** 2)


@pytest.fixture
def visnet_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visnet, "radius_graph", lambda positions, *, batch, **_: pairs(batch))


@pytest.mark.usefixtures("visnet_pairs")
@pytest.mark.parametrize("derivative", [False, True])
def test_visnet(derivative: bool) -> None:
    """By keywords and an index vector, and with forces of its own."""
    with global_seed(0):
        net = visnet.ViSNet(
            lmax=1, hidden_channels=8, num_heads=2, num_layers=1, num_rbf=4, max_z=10, derivative=derivative
        )
    outputs: Any = ("0e", "1o") if derivative else "0e"
    net = net if derivative else First(net)
    batch = data.Batch.from_data_list(molecules()[:8])
    symmetry = Symmetry("E(3)", ATOMS, outputs, index="batch")
    report = audit(net, {"z": batch.z, "pos": batch.pos, "batch": batch.batch}, symmetry, **SMALL)
    assert report.verdict == EXACT
    assert report.figures["lie"]["kept"] == "all"
    assert ("needs_grad" in report.figures["how"]) == derivative
    assert [row["input"] for row in report.figures["unmoved"]] == ["z"]


class First(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor, pos: Tensor, batch: Tensor) -> Tensor:
        return self.net(z, pos, batch)[0]


# ---- e3nn ------------------------------------------------------------------------------------------------------------
IN, STEER = "4x0e+4x1o+2x2e", "1x0e+1x1o+1x2e"
PRODUCT = Symmetry("O(3)", (IN, STEER), IN)


def tensor_product() -> nn.Module:
    with global_seed(0):
        return o3.FullyConnectedTensorProduct(IN, STEER, IN)


@pytest.mark.parametrize("made_in", [torch.float32, torch.float64])
@pytest.mark.parametrize("run_in", [torch.float32, torch.float64])
def test_an_e3nn_layer(made_in: torch.dtype, run_in: torch.dtype) -> None:
    """Exact; also where its Clebsch-Gordan coefficients were made in float32 and it runs in float64, which is said."""
    with default_dtype(made_in):
        net = tensor_product().to(run_in)
    x = tuple(normal(16, o3.Irreps(irreps).dim).to(run_in) for irreps in (IN, STEER))
    report = audit(net, x, PRODUCT, **SMALL)
    assert report.verdict == EXACT
    assert set(report.figures["verdicts"].values()) == {EXACT}
    assert report.figures["lie"]["kept"] == "all"
    rounded = made_in == torch.float32 and run_in == torch.float64
    assert (report.error[0] > 1e-10) == (rounded or run_in == torch.float32)
    text = " ".join(str(report).split())
    assert ("constants that were rounded to float32" in text) == rounded


def test_as_e3nn_measures() -> None:
    """Its `equivariance_error` is the largest difference of any number, over the elements of one parity."""
    from e3nn.util.test import equivariance_error

    with default_dtype(torch.float64), global_seed(0):
        net = nn.Linear(5, 4, dtype=torch.float64)
        net.irreps_in, net.irreps_out = o3.Irreps("2x0e+1x1o"), o3.Irreps("1x0e+1x1o")
        x = normal(24, 5)
        theirs = equivariance_error(
            net, args_in=[x], irreps_in=[net.irreps_in], irreps_out=[net.irreps_out], ntrials=200, do_translation=False
        )
    most = max(float(v) for v in theirs.values())
    report = audit(net, x, Symmetry("O(3)", "2x0e+1x1o", "1x0e+1x1o"), draws=64, progress=False)
    worst = report.figures["worst"]
    # the largest number of a difference d is between |d| / sqrt(3), of a vector, and |d|
    assert worst["error"] / 3**0.5 * 0.98 <= most <= worst["error"] * 1.001
    assert report.verdict != EXACT


@pytest.fixture(scope="module")
def of_message_passing() -> tuple[Any, Any]:
    with global_seed(0):
        net = E3nnMessagePassing("4x0e+4x1o", 1)
    x = {"charges": normal(10, 4), "positions": normal(10, 4, 3), "velocities": normal(10, 4, 3)}
    x = {name: value.float() for name, value in x.items()}
    inputs = {"charges": Invariant(), "positions": Point(), "velocities": "1o"}
    return net, audit(net, x, Symmetry("E(3)", inputs, Point()), draws=4, progress=False)


def test_an_e3nn_network(of_message_passing: Any) -> None:
    net, report = of_message_passing
    assert report.verdict == EXACT
    assert report.figures["layers"]["nothing_to_share"]
    assert report.figures["layers"]["names"] == [n for n, m in net.named_modules() if isinstance(m, o3.Linear)]
    assert max(report.figures["layers"]["own"]) < 1e-5
    assert report.figures["spectrum"]["roughness"] is None
    text = " ".join(str(report).split())
    assert "no more than rounding to share" in text
    assert "from the spectrum, O(3) alone" in text


# ---- torch -----------------------------------------------------------------------------------------------------------
class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norms[0](self.convs[0](x)))
        return self.relu(x + self.norms[1](self.convs[1](y)))


def resnet(symmetric: bool) -> nn.Sequential:
    """Its filters turned by right angles and averaged, where it is to be symmetric."""
    with global_seed(0):
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), Block(4), Block(4),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
        )  # fmt: skip
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and symmetric:
            w = module.weight.data
            module.weight.data = torch.stack([w.rot90(k, (-2, -1)) for k in range(4)]).mean(0)
    return net


IMAGES = normal(12, 1, 13, 13).float()
CLASSES = torch.arange(12) % 5


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_resnet_under_right_angles(symmetric: bool) -> None:
    symmetry = Symmetry("C4", Image(), Invariant())
    report = audit(resnet(symmetric), (IMAGES, CLASSES), symmetry, labels=1, **SMALL)
    assert (report.verdict == EXACT) == symmetric
    assert report.figures["resampling"]["value"].value < 1e-6
    assert "resampling loses" not in " ".join(str(report).split())
    assert (report.figures["classes"]["changed"].value == 0) or not symmetric
    assert report.figures["how"]["whole"]
    # the outputs are alike, as of every untrained classifier, and the verdict does not rest on that
    assert report.figures["unrelated"] < 0.5


def test_a_resnet_under_all_angles() -> None:
    """Resampling is said to be in the error, and is measured by itself."""
    symmetry = Symmetry("SO(2)", Image(), Invariant())
    report = audit(resnet(True), (IMAGES, CLASSES), symmetry, labels=1, **SMALL)
    assert report.verdict != EXACT
    assert report.figures["resampling"]["value"].value > 0.1
    text = " ".join(str(report).split())
    assert "what resampling loses" in text
    stand_in = audit(resnet(True), (IMAGES, CLASSES), symmetry, labels=1, stand_in=resnet(True), **SMALL)
    assert stand_in.verdict == EXACT  # as good as the stand-in
    assert stand_in.figures["floor"]["kind"] == "stand-in"


def test_a_transformer_on_a_set_of_points() -> None:
    """Permutations are kept to rounding, rotations are not; dropout is off."""
    with global_seed(0):
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.2, batch_first=True)
        encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        net = nn.Sequential(nn.Linear(3, 16), encoder, nn.Linear(16, 3))
    symmetry = Symmetry("SO(3) x S5", "Permuted(1) @ '1o'", "Permuted(1) @ '1o'")
    report = audit(net, normal(16, 5, 3).float(), symmetry, **SMALL)
    assert report.verdict == "not equivariant"
    parts = report.figures["group_parts"]
    assert parts["S5"].value < 1e-6
    assert parts["SO(3)"].value > 0.5
    assert report.figures["lie"]["kept"] == "none"
    assert net.training
    own = audit(net, normal(16, 5, 3).float(), Symmetry("S5", "Permuted(1)", "Permuted(1)"), **SMALL)
    assert own.verdict == EXACT
    shares = own.figures["spectrum"]["shares"]
    assert abs(shares["[5]"].value - 1) < 1e-6


def test_errors_per_atom() -> None:
    """Of energies that change, in the unit of an energy per atom."""
    graphs = molecules(torch.float64)
    symmetry = Symmetry("SO(3)", {"pos": "1o", "z": Invariant()}, {"energy": "0e"})

    def heights(graph: Any) -> dict[str, Tensor]:
        """The sum of |z| over the atoms of a molecule."""
        sums = graph.pos.new_zeros(graph.num_graphs).index_add(0, graph.batch, graph.pos[:, 2].abs())
        return {"energy": sums}

    report = audit(heights, loader.DataLoader(graphs, batch_size=5), symmetry, units={"energy": "eV"}, **SMALL)
    (found,) = report.figures["rms_per_node"].values()
    whole = report.figures["rms"]["energy.0e"].value
    assert whole / 7 < found.value < whole / 4
    text = " ".join(str(report).split())
    assert "energy.0e, per node" in text
    assert f"{found.value:.3g} eV" in text
