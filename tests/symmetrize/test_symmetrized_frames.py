"""Frames: exact on generic clouds, flagged on symmetric ones, and what happens where axes swap."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_equiv import Invariant, NodeIndex, Point, Symmetrized, Symmetry, equivariance_error
from lightning_equiv.symmetrize.frames import gram_schmidt, pair_frames, pca_frames
from lightning_equiv.symmetrize.points import Cloud
from tests.helpers import close, global_seed, normal

GROUPS = ["SO(2)", "SO(3)", "O(3)", "SE(3)", "E(3)"]
METHODS = [
    {"method": "frame"},
    {"method": "weighted_frame"},
    {"method": "weighted_frame", "num_frames": 4},
    {"method": "canonical"},
]


def network(n_out: int = 4, points: int = 5, space: int = 3) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(points * space, 24), nn.Tanh(), nn.Linear(24, n_out)).double()

        def forward(self, x: Tensor, z: Tensor) -> dict[str, Tensor]:
            y = self.net(x.flatten(1))
            positions = x + y[:, None, :space]
            return {"energy": y[:, -1:] * z.sum(-1, keepdim=True), "forces": y[:, :space], "positions": positions}

    with global_seed():
        return Net()


def symmetry_of(group: str) -> Symmetry:
    outputs = {"energy": Invariant(), "forces": "1o", "positions": Point()}
    return Symmetry(group, inputs={"x": Point(), "z": Invariant()}, outputs=outputs)


def error(f, args, symmetry) -> float:
    return float(equivariance_error(f, args, symmetry, kind="max").max())


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("settings", METHODS, ids=str)
def test_generic_clouds_are_exact(group, settings) -> None:
    symmetry = symmetry_of(group)
    args = normal(6, 5, 3), normal(6, 5, seed=1)
    net = network()
    assert error(net, args, symmetry) > 0.1
    symmetrized = Symmetrized(net, symmetry, **settings)
    assert error(symmetrized, args, symmetry) < (1e-10 if settings["method"] == "canonical" else 1e-12)
    assert symmetrized.num_degenerate == 0


@pytest.mark.parametrize(("group", "number"), [("SO(2)", 2), ("SO(3)", 4), ("O(3)", 8)])
def test_a_pca_frame_is_the_mean_over_signs_of_the_axes(group, number) -> None:
    symmetry = Symmetry(group, Point(), Invariant())
    x, calls = normal(1, 6, 3), []

    def f(x: Tensor) -> Tensor:
        calls.append(len(x))
        return (x * normal(6, 3, seed=2)).sum((1, 2)).tanh()[:, None]

    y = Symmetrized(f, symmetry, "frame")(x)
    assert sum(calls) == number
    d = 2 if group == "SO(2)" else 3
    q = x - x.mean(1, keepdim=True)
    _, axes = torch.linalg.eigh(q[0, :, :d].T @ q[0, :, :d])
    found = []
    for signs in torch.cartesian_prod(*[torch.tensor([1.0, -1.0])] * d).double():
        frame = torch.eye(3, dtype=torch.float64)
        frame[:d, :d] = axes * signs
        if group == "O(3)" or torch.linalg.det(frame) > 0:
            found.append(f(x @ frame))  # F^-1 x
    close(y, torch.stack(found).mean(0))


@pytest.mark.parametrize("settings", METHODS[:3], ids=str)
def test_mirrored_inputs_have_proper_frames_and_are_told_apart(settings) -> None:
    x = normal(4, 5, 3)
    cloud = Cloud(torch.cat([x, -x]), None, 8)
    frames = [pca_frames(cloud, False, 1e-4)[0], pair_frames(cloud, False, 1e-4, 2.0, None)[0]]
    for found in frames:
        close(torch.linalg.det(found), torch.ones(found.shape[:2]))
        close(found.mT @ found, torch.eye(3).expand_as(found))
    symmetrized = Symmetrized(network(), symmetry_of("SO(3)"), **settings)
    z = normal(4, 5, seed=1)
    assert float((symmetrized(x, z)["energy"] - symmetrized(-x, z)["energy"]).abs().detach().max()) > 1e-2
    mirrored = Symmetrized(network(), symmetry_of("O(3)"), **settings)
    close(mirrored(x, z)["energy"], mirrored(-x, z)["energy"])


SQUARE = [[1.0, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0], [0, 0, 0]]
TETRAHEDRON = [[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1], [0, 0, 0]]
LINE = [[0.0, 0, 0], [1, 2, 3], [2, 4, 6], [-1, -2, -3], [3, 6, 9]]
POINT = [[1.0, 2, 3]] * 5
CASES = [
    ("frame", SQUARE, True),
    ("frame", TETRAHEDRON, True),
    ("frame", LINE, True),
    ("frame", POINT, True),
    ("weighted_frame", SQUARE, False),
    ("weighted_frame", TETRAHEDRON, False),
    ("weighted_frame", LINE, True),
    ("weighted_frame", POINT, True),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("method", "cloud", "flagged"), CASES)
def test_symmetric_inputs_are_counted_and_averaged_and_others_are_not(method, cloud, flagged, dtype) -> None:
    symmetry, net = symmetry_of("SE(3)"), network().to(dtype)
    x, z = normal(3, 5, 3).to(dtype), normal(3, 5, seed=1).to(dtype)
    rotation = symmetry.group.sample(1, generator=torch.Generator().manual_seed(3)).matrix[0]
    x[1] = (torch.tensor(cloud, dtype=torch.float64) @ rotation.T + 0.3).to(dtype)
    symmetrized = Symmetrized(net, symmetry, method)
    y = symmetrized(x, z)
    assert symmetrized.num_degenerate == int(flagged)
    averaged = Symmetrized(net, symmetry)(x, z)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    generic = Symmetrized(net, symmetry, method)(x[::2], z[::2])
    for key in y:
        if flagged:
            close(y[key][1], averaged[key][1], tolerance)
        close(y[key][::2], generic[key], tolerance)
        assert bool(torch.isfinite(y[key]).all())
    if not flagged:
        assert error(symmetrized, (x, z), symmetry) < 100 * tolerance


def test_gradients_are_finite_also_of_symmetric_inputs() -> None:
    for settings in METHODS[:3]:
        x = normal(3, 5, 3)
        x[0], x[1] = torch.tensor(TETRAHEDRON), torch.tensor(LINE)
        x.requires_grad_()
        Symmetrized(network(), symmetry_of("E(3)"), **settings)(x, normal(3, 5))["energy"].sum().backward()
        assert x.grad is not None
        assert bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize("settings", METHODS, ids=str)
def test_the_gradient_of_an_energy_turns_with_the_input(settings) -> None:
    symmetry = symmetry_of("SO(3)")
    symmetrized = Symmetrized(network(), symmetry, **settings)
    z = normal(4, 5, seed=1)

    def forces(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(symmetrized(x, z)["energy"].sum(), x)[0]

    x, rotation = normal(4, 5, 3), symmetry.group.sample(1).matrix[0]
    close(forces(x @ rotation.T), forces(x) @ rotation.T, 1e-10)
    step = 1e-6 * normal(4, 5, 3, seed=9)
    change = symmetrized(x + step, z)["energy"] - symmetrized(x - step, z)["energy"]
    close(change.sum() / 2e-6, (forces(x) * step / 1e-6).sum(), 1e-6)


def test_where_eigenvalues_cross_principal_axes_jump_and_pairs_and_averages_do_not() -> None:
    q = normal(5, 3)
    q = q - q.mean(0)
    _, _, axes = torch.linalg.svd(q)
    white = (q @ axes.T) / (q @ axes.T).norm(dim=0)  # covariance 1
    first = torch.linspace(0.7, 1.3, 801, dtype=torch.float64)
    scales = torch.stack([first, torch.ones_like(first), torch.full_like(first, 2.0)], dim=-1)
    path = white * scales[:, None]
    path = path[[k for k in range(801) if k != 400]]  # the crossing itself is degenerate

    def f(x: Tensor) -> Tensor:
        return (x * normal(5, 3, seed=2)).sum((1, 2)).sin()[:, None]

    def steps(**settings) -> Tensor:
        y = Symmetrized(f, Symmetry("SO(3)", Point(), Invariant()), **settings)(path)
        return y.diff(dim=0).abs()[:, 0]

    jump = steps(method="frame")
    assert int(jump.argmax()) == 399
    assert float(jump.max()) > 0.05 > 20 * float(jump.median())
    for smooth in (steps(method="weighted_frame"), steps(method="weighted_frame", num_frames=8), steps(degree=4)):
        assert float(smooth.max()) < 5e-3
        assert float(smooth.sum()) > 0.01


def test_the_cut_of_weighted_frames_flags_a_tie() -> None:
    x = torch.tensor([TETRAHEDRON], dtype=torch.float64)
    symmetrized = Symmetrized(network(), symmetry_of("SO(3)"), "weighted_frame", num_frames=6)
    symmetrized(x, normal(1, 5))
    assert symmetrized.num_degenerate == 1


def test_graphs_of_all_sizes_are_each_as_alone() -> None:
    symmetry = Symmetry(
        "SE(3)",
        {"pos": Point(), "edges": NodeIndex(), "batch": Invariant()},
        {"e": Invariant(), "f": "1o"},
        index="batch",
    )
    sizes = [4, 1, 3, 6, 2]

    def f(pos: Tensor, edges: Tensor, batch: Tensor) -> dict[str, Tensor]:
        message = (pos[edges[1]] - pos[edges[0]] + torch.tensor([0.1, 0.2, 0.3])).tanh()
        force = torch.zeros_like(pos).index_add(0, edges[0], message * message[:, :1])
        return {"e": force.new_zeros(int(batch.max()) + 1, 1).index_add(0, batch, force[:, 1:2]), "f": force}

    def graph(chosen: list[int]) -> dict[str, Tensor]:
        pos = torch.cat([normal(sizes[i], 3, seed=i) for i in chosen])
        batch = torch.cat([torch.full((sizes[i],), k) for k, i in enumerate(chosen)])
        edges = torch.stack(
            [
                batch.new_tensor(p)
                for p in zip(
                    *[(a, b) for a in range(len(batch)) for b in range(len(batch)) if batch[a] == batch[b]], strict=True
                )
            ]
        )
        return {"pos": pos, "edges": edges, "batch": batch}

    whole = graph(list(range(5)))
    for settings in ({"method": "frame"}, {"method": "weighted_frame"}, {"method": "average"}, METHODS[2]):
        symmetrized = Symmetrized(f, symmetry, **settings)
        y = symmetrized(**whole)
        assert symmetrized.num_degenerate in ((0,) if settings["method"] == "average" else (2, 3))  # 1 and 2 points
        alone = [Symmetrized(f, symmetry, **settings)(**graph([i])) for i in range(5)]
        for key in y:
            close(y[key], torch.cat([a[key] for a in alone]))
        shuffled = torch.randperm(16, generator=torch.Generator().manual_seed(0))
        place = shuffled.argsort()
        mixed = {"pos": whole["pos"][shuffled], "edges": place[whole["edges"]], "batch": whole["batch"][shuffled]}
        again = Symmetrized(f, symmetry, **settings)(**mixed)
        close(again["e"], y["e"], 1e-10)
        close(again["f"], y["f"][shuffled], 1e-10)


def test_one_frame_a_step_while_training() -> None:
    symmetry, calls = symmetry_of("SO(3)"), []
    net = network()
    net.register_forward_hook(lambda m, a, y: calls.append(len(a[0])))
    x, z = normal(1, 5, 3).expand(2000, 5, 3), normal(1, 5).expand(2000, 5)
    symmetrized = Symmetrized(net, symmetry, "frame", stochastic=True).train()
    y = symmetrized(x, z)["energy"].detach()
    assert sum(calls) == 2000
    assert len(y.unique()) == 4
    mean = symmetrized.eval()(x[:1], z[:1])["energy"].detach()
    assert abs(float(y.mean() - mean)) < 4 * float(y.std()) / 2000**0.5


def test_gram_schmidt_needs_enough_vectors() -> None:
    with pytest.raises(ValueError, match="expected 3 equivariant vectors"):
        gram_schmidt(normal(4, 2, 3), reflections=True)
    matrix = gram_schmidt(normal(4, 3, 3), reflections=True)
    close(matrix @ matrix.mT, torch.eye(3).expand_as(matrix))
    flipped = gram_schmidt(-normal(4, 3, 3), reflections=True)
    close(flipped, -matrix)
