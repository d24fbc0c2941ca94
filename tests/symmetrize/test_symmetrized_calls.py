"""Every kind of call: dicts, graphs, several outputs, whole numbers, forces, chunks; compiled and exported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_equiv import (
    Ignored,
    Image,
    Invariant,
    Per,
    Permuted,
    Point,
    Symmetrized,
    Symmetry,
    equivariance_error,
)
from tests.helpers import close, global_seed, normal


def error(f: Any, args: Any, symmetry: Symmetry, **kwargs: Any) -> float:
    kwargs.setdefault("num_samples", None if symmetry.group.order else 4)
    return float(equivariance_error(f, args, symmetry, kind="max", **kwargs).max())


class Potential(nn.Module):
    """An energy of atoms that no turn leaves alone, and its forces by autograd inside."""

    def __init__(self, inside: bool = True) -> None:
        super().__init__()
        with global_seed():
            self.embed = nn.Embedding(9, 4).double()
            self.net = nn.Sequential(nn.Linear(7, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        self.inside = inside

    def energy(self, z: Tensor, mask: Tensor, pos: Tensor) -> Tensor:
        return (self.net(torch.cat([self.embed(z), pos], dim=-1)) * mask[..., None]).sum(1)

    def forward(self, z: Tensor, mask: Tensor, pos: Tensor) -> dict[str, Tensor]:
        if not self.inside:
            return {"energy": self.energy(z, mask, pos)}
        with torch.enable_grad():
            pos = pos.detach().requires_grad_()
            energy = self.energy(z, mask, pos)
            (gradient,) = torch.autograd.grad(energy.sum(), pos)
        return {"energy": energy, "forces": -gradient}


ATOMS = {"z": Invariant(), "mask": Invariant(), "pos": Point()}


def atoms() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randint(9, (3, 6), generator=generator)
    return {"z": z, "mask": z > 1, "pos": normal(3, 6, 3)}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("group", ["SO(3)", "E(3)"])
def test_forces_inside_the_network_are_turned_back_and_are_the_gradient_of_the_average(group, grad) -> None:
    inside = Symmetrized(Potential(), Symmetry(group, ATOMS, {"energy": Invariant(), "forces": "1o"}))
    outside = Symmetrized(Potential(inside=False), Symmetry(group, ATOMS, {"energy": Invariant()}))
    call = atoms()
    with torch.set_grad_enabled(grad):
        y = inside(**call)
    pos = call["pos"].clone().requires_grad_()
    energy = outside(call["z"], call["mask"], pos)["energy"]  # by position as well
    (gradient,) = torch.autograd.grad(energy.sum(), pos)
    close(y["energy"], energy)
    if group == "SO(3)":
        close(y["forces"], -gradient)
    else:  # the centre moves with the atoms: the mean force is taken out
        inner = y["forces"] - y["forces"].mean(1, keepdim=True)
        close(inner, -gradient)
    assert set(y) == {"energy", "forces"}


def test_whole_numbers_and_masks_reach_the_network_as_they_are() -> None:
    seen = []

    def f(z: Tensor, mask: Tensor, pos: Tensor) -> Tensor:
        seen.append((z.dtype, mask.dtype, z.reshape(-1, 3, 6)))
        return pos.sum(1)

    call = atoms()
    Symmetrized(f, Symmetry("C4", ATOMS, "1o"))(**call)
    ((z_dtype, mask_dtype, z),) = seen
    assert (z_dtype, mask_dtype) == (torch.long, torch.bool)
    assert all(torch.equal(again, call["z"]) for again in z)


def test_several_outputs_nested_shared_and_ignored() -> None:
    outputs = ({"a": "1o", "b": [Invariant()]}, Invariant(shared=True), Ignored())
    symmetry = Symmetry("C4", inputs=("1o",), outputs=outputs)

    def f(x: Tensor) -> tuple[Any, ...]:
        return {"a": x * x[:, :1], "b": [x[:, 1:2].exp()]}, torch.tensor(7), "words"

    x = normal(5, 3)
    tree, seven, words = Symmetrized(f, symmetry)(x)
    assert (int(seven), words) == (7, "words")
    matrices = symmetry.group.elements().matrix_in(3)
    close(tree["a"], torch.stack([f(x @ m.T)[0]["a"] @ m for m in matrices]).mean(0))
    close(tree["b"][0], torch.stack([f(x @ m.T)[0]["b"][0] for m in matrices]).mean(0))


@pytest.mark.parametrize("size", [1, 3, 7, 24, 1000, None, "auto"])
@pytest.mark.parametrize("method", ["average", "frame"])
def test_chunks_change_nothing(size, method) -> None:
    symmetry = Symmetry("E(3)", ATOMS, {"energy": Invariant(), "forces": "1o"})
    net, calls = Potential(), []
    net.register_forward_hook(lambda m, a, k, y: calls.append(len(k["pos"])), with_kwargs=True)
    y = Symmetrized(net, symmetry, method, chunk_size=size)(**atoms())
    assert sum(calls) == 3 * (48 if method == "average" else 8)
    if isinstance(size, int):
        assert max(calls) <= max(size, 3)
    expected = Symmetrized(Potential(), symmetry, method, chunk_size=None)(**atoms())
    for key in y:
        close(y[key], expected[key])


def test_gradients_of_weights_do_not_depend_on_chunks() -> None:
    found = []
    for size in (None, 6):
        net = Potential(inside=False)
        Symmetrized(net, Symmetry("SO(3)", ATOMS, {"energy": Invariant()}), chunk_size=size)(**atoms())[
            "energy"
        ].sum().backward()
        found.append([p.grad for p in net.parameters()])
    for a, b in zip(*found, strict=True):
        assert a is not None
        assert b is not None
        close(a, b)


# ---- networks of others ------------------------------------------------------------------------------------------
def test_a_graph_network_of_torch_geometric() -> None:
    data = pytest.importorskip("torch_geometric.data")
    geometric = pytest.importorskip("torch_geometric.nn")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with global_seed():
                self.conv = geometric.PointNetConv(nn.Sequential(nn.Linear(3 + 3, 16), nn.Tanh(), nn.Linear(16, 8)))
                self.head = nn.Linear(8, 4)
            self.double()

        def forward(self, graph: Any) -> dict[str, Tensor]:
            h = self.head(self.conv(graph.pos, graph.pos, graph.edge_index).tanh())
            return {"energy": geometric.global_add_pool(h[:, :1], graph.batch), "forces": h[:, 1:]}

    def graph(size: int) -> Any:
        edges = torch.combinations(torch.arange(size), 2).T
        return data.Data(
            pos=normal(size, 3, seed=size), edge_index=torch.cat([edges, edges.flip(0)], 1), y=torch.ones(1)
        )

    symmetry = Symmetry("SO(3)", {"pos": "1o"}, {"energy": Invariant(), "forces": Per("node", "1o")})
    batch = data.Batch.from_data_list([graph(n) for n in (4, 2, 6)])
    before = batch.clone()
    for settings in ({"subgroup": "octahedral"}, {"method": "frame", "points": "pos"}):
        symmetrized = Symmetrized(Net(), symmetry, **settings)
        y = symmetrized(batch)
        alone = [symmetrized(data.Batch.from_data_list([graph(n)])) for n in (4, 2, 6)]
        for key in y:
            close(y[key], torch.cat([a[key] for a in alone]))
        assert y["energy"].shape == (3, 1)
    generic = data.Batch.from_data_list([graph(n) for n in (4, 6)])
    assert error(symmetrized, (generic,), symmetry) < 1e-12 < error(Net(), (generic,), symmetry)
    assert torch.equal(batch.edge_index, before.edge_index)
    assert torch.equal(batch.batch, before.batch)


def test_a_network_that_returns_a_graph() -> None:
    data = pytest.importorskip("torch_geometric.data")

    def f(graph: Any) -> Any:
        out = graph.clone()
        out.pos = graph.pos * graph.pos[:, :1].tanh()
        return out

    edges = torch.tensor([[0, 1], [1, 0]])
    batch = data.Batch.from_data_list([data.Data(pos=normal(2, 3, seed=s), edge_index=edges) for s in range(3)])
    out = Symmetrized(f, Symmetry("C4", {"pos": "1o"}, {"pos": "1o"}))(batch)
    assert torch.equal(out.edge_index, batch.edge_index)
    assert torch.equal(out.batch, batch.batch)
    assert [len(g.pos) for g in out.to_data_list()] == [2, 2, 2]
    matrices = Symmetry("C4", "1o", "1o").group.elements().matrix_in(3)
    turned = [(batch.pos @ m.T, m) for m in matrices]
    close(out.pos, torch.stack([(x * x[:, :1].tanh()) @ m for x, m in turned]).mean(0))


class ResidualCNN(nn.Module):
    """A small residual network with batch normalisation, as torchvision's are."""

    def __init__(self) -> None:
        super().__init__()
        with global_seed():
            self.stem = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
            self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
            self.head = nn.Linear(8, 3)
            self.map = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.stem(images)
        x = (x + self.block(x)).relu()
        return {"logits": self.head(x[..., 2:, :].mean((-2, -1))), "map": self.map(x)}


@pytest.mark.parametrize("group", ["C4", "D4"])
def test_a_convolutional_network_on_images(group) -> None:
    symmetry = Symmetry(group, Image(), {"logits": Invariant(), "map": Image()})
    network = ResidualCNN().double().eval()
    images = normal(3, 2, 8, 8)
    assert error(network, images, symmetry) > 1e-2
    assert error(Symmetrized(network, symmetry), images, symmetry) < 1e-13
    training = Symmetrized(ResidualCNN().double(), symmetry).train()
    training(images)
    moved = torch.cat([images.rot90(k, (-2, -1)) for k in range(4)])
    if group == "C4":  # the statistics are those of the moved inputs
        other = ResidualCNN().double().train()
        other(moved)
        close(training.network.stem[1].running_mean, other.stem[1].running_mean)


def test_a_transformer_on_a_product_of_groups() -> None:
    with global_seed():
        layer = nn.TransformerEncoderLayer(12, 2, 16, dropout=0.0, batch_first=True)
        network = nn.Sequential(nn.Linear(3, 12), layer, nn.Linear(12, 3)).double().eval()
    vectors = Permuted(1) @ "1o"
    with_places = lambda x: network(x + torch.linspace(0, 1, 3, dtype=x.dtype)[:, None])  # noqa: E731
    symmetry = Symmetry("C4 x S3", vectors, vectors)
    x = normal(2, 3, 3)
    assert error(with_places, x, symmetry) > 1e-2
    assert error(Symmetrized(with_places, symmetry), x, symmetry) < 1e-12
    framed = Symmetrized(network, Symmetry("O(3)", "1o", "1o"), "frame", points=0)
    assert error(framed, normal(4, 5, 3), Symmetry("O(3)", "1o", "1o")) < 1e-12


def test_what_measures_networks_knows_the_names_of_its_arguments() -> None:
    symmetry = Symmetry("SO(3)", ATOMS, {"energy": Invariant(), "forces": "1o"})
    symmetrized = Symmetrized(Potential(), symmetry)
    call = atoms()
    assert error(symmetrized, (call["z"], call["mask"], call["pos"]), symmetry, needs_grad=True) < 0.1


# ---- compiled and exported ---------------------------------------------------------------------------------------
class Exported(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with global_seed():
            self.net = nn.Sequential(nn.Linear(15, 8), nn.Tanh(), nn.Linear(8, 3)).double()

    def forward(self, pos: Tensor, z: Tensor) -> dict[str, Tensor]:
        y = self.net(pos.flatten(1))
        return {"energy": y[:, :1] * z.sum(-1, keepdim=True), "forces": y}


FIXED = Symmetry("E(3)", {"pos": Point(), "z": Invariant()}, {"energy": Invariant(), "forces": "1o"})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"subgroup": "tetrahedral", "chunk_size": 48},
        {"method": "frame"},
        {"method": "weighted_frame"},
        {"method": "canonical"},
    ],
    ids=str,
)
def test_it_is_exported_for_fixed_shapes(settings) -> None:
    symmetrized = Symmetrized(Exported(), FIXED, **settings).eval()
    example = normal(4, 5, 3), torch.ones(4, 5, dtype=torch.long)
    program = torch.export.export(symmetrized, example).module()
    other = normal(4, 5, 3, seed=3), torch.full((4, 5), 2)
    other[0][1, :, 1:] = 0  # on a line, which has no frame
    if settings.get("method") == "canonical":
        other[0][1] = normal(5, 3, seed=4)
    y, expected = program(*other), symmetrized(*other)
    for key in y:
        close(y[key], expected[key])


def test_draws_cannot_be_exported() -> None:
    with pytest.raises(RuntimeError, match="expected a fixed rule"):
        torch.export.export(Symmetrized(Exported(), FIXED, num_samples=3), (normal(4, 5, 3), torch.ones(4, 5)))


def test_the_network_inside_is_compiled_as_one_graph() -> None:
    from torch._dynamo.testing import CompileCounter

    x = normal(4, 5, 3), torch.ones(4, 5)
    expected = Symmetrized(Exported(), FIXED)(*x)
    outer = torch.compile(Symmetrized(Exported(), FIXED, chunk_size=None), backend="eager")
    counts = [CompileCounter(), CompileCounter()]
    by_hand = Symmetrized(torch.compile(Exported(), backend=counts[0], fullgraph=True), FIXED, chunk_size=None)
    by_method = Symmetrized(Exported(), FIXED, chunk_size=None)
    by_method.compile(backend=counts[1], fullgraph=True)
    for symmetrized in (outer, by_hand, by_method):
        for _ in range(2):
            y = symmetrized(*x)
        close(y["forces"], expected["forces"])
    assert [count.frame_count for count in counts] == [1, 1]
    with pytest.raises(TypeError, match="to compile"):
        Symmetrized(lambda x: x, Symmetry("C4", "1o", "1o")).compile()
