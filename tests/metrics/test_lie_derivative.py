"""The Lie derivative of networks: closed forms of linear maps, kept subgroups, graphs, and what it bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from e3nn import nn as enn
from e3nn import o3
from torch import Tensor, nn

from lightning_equiv import (
    CartesianTensor,
    Custom,
    Factor,
    Image,
    Invariant,
    LieDerivativeError,
    Permuted,
    Point,
    Symmetry,
    as_group,
    equivariance_error,
    lie_derivative_error,
)
from lightning_equiv.groups.group import AlgebraElement
from lightning_equiv.metrics.lie_derivative import LieDerivative
from lightning_equiv.metrics.subgroups import generator_names
from lightning_equiv.wiring.call_recorder import CallRecorder
from tests.helpers import close, default_dtype, global_seed, normal, seeded

D = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64) / 3
VECTORS = Symmetry("SO(3)", "1o", "1o")


class MLP(nn.Module):
    """A network without any symmetry."""

    def __init__(self, n_in: int = 3, n_out: int = 3, seed: int = 1) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(normal(*s, seed=seed)) for s in ((n_in, 8), (8, n_out)))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.a + 0.3).tanh() @ self.b


def about_d(x: Tensor) -> Tensor:
    """Equivariant under the rotations about D alone."""
    along = (x @ D)[:, None]
    across = x - along * D
    turned = torch.linalg.cross(x, D.expand_as(x))
    return along**2 * D + across * along + turned * across.norm(dim=1, keepdim=True) + along.sin() * across


# ---- linear maps: closed forms ---------------------------------------------------------------------------------------
def irreps_generators(irreps: str) -> Tensor:
    """(3, dim, dim) by e3nn."""
    with default_dtype(torch.float64):
        blocks = [o3._wigner.so3_generators(ir.l).double() for mul, ir in o3.Irreps(irreps) for _ in range(mul)]
    return torch.stack([torch.block_diag(*[block[i] for block in blocks]) for i in range(3)])


PLANE = torch.tensor([[[0.0, -1.0], [1.0, 0.0]]], dtype=torch.float64)
SPACE = torch.zeros(3, 3, 3, dtype=torch.float64)  # w x as a matrix: (w x v)_i = -e_ijk w_k v_j
for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
    SPACE[k, i, j], SPACE[k, j, i] = -1, 1
MATRICES = torch.stack([torch.kron(a, torch.eye(3)) + torch.kron(torch.eye(3), a) for a in SPACE])  # on T, row by row


@dataclass(frozen=True)
class Linear:
    """x -> W x, where x is moved by A_in x + v and W x by A_out W x + u."""

    symmetry: Symmetry
    A_in: Tensor
    A_out: Tensor
    v: Tensor | None = None
    u: Tensor | None = None
    rows: tuple[int, ...] = ()  # shape of an output

    @property
    def W(self) -> Tensor:
        return normal(self.A_out.shape[-1], self.A_in.shape[-1], seed=3)

    def network(self, x: Tensor) -> Tensor:
        y = x.flatten(1) @ self.W.T
        return y.unflatten(1, self.rows) if self.rows else y


def padded(matrices: Tensor, before: int = 0, after: int = 0) -> Tensor:
    zeros = [matrices.new_zeros(k, *matrices.shape[1:]) for k in (before, after)]
    return torch.cat([zeros[0], matrices, zeros[1]])


IRREPS_IN, IRREPS_OUT = "2x0e+1o+0o+2e", "1o+1e+2x0e+3o"
SHIFTS = torch.cat([torch.zeros(3, 3), torch.eye(3)]).double()
LINEAR = {
    "SO(2)": Linear(Symmetry("SO(2)", Point(), Point()), PLANE, PLANE),
    "SO(2) in space": Linear(Symmetry("SO(2)", "1o", "2e"), *(irreps_generators(s)[2:] for s in ("1o", "2e"))),
    "SO(3)": Linear(Symmetry("SO(3)", IRREPS_IN, IRREPS_OUT), *map(irreps_generators, (IRREPS_IN, IRREPS_OUT))),
    "O(3)": Linear(Symmetry("O(3)", IRREPS_IN, IRREPS_OUT), *map(irreps_generators, (IRREPS_IN, IRREPS_OUT))),
    "tensors": Linear(Symmetry("SO(3)", "1o", CartesianTensor(2)), SPACE, MATRICES, rows=(3, 3)),
    "SE(3)": Linear(Symmetry("SE(3)", Point(), "1o"), padded(SPACE, 0, 3), padded(SPACE, 0, 3), v=SHIFTS),
    "E(3), points": Linear(Symmetry("E(3)", Point(), Point()), *[padded(SPACE, 0, 3)] * 2, v=SHIFTS, u=SHIFTS),
    "T(2)": Linear(
        Symmetry("T(2)", Point(), Point()), *[torch.zeros(2, 2, 2).double()] * 2, *[torch.eye(2).double()] * 2
    ),
    "SO(3) x SO(3)": Linear(
        Symmetry("SO(3) x SO(3)", Factor(0, "1o"), Factor(1, "1o")), padded(SPACE, 0, 3), padded(SPACE, 3, 0)
    ),
    "SO(3) x S5": Linear(Symmetry("SO(3) x S5", "1o", "1o"), SPACE, SPACE),
}
linear = pytest.mark.parametrize("case", LINEAR.values(), ids=LINEAR)


@pytest.mark.parametrize("method", ["jvp", "double_backward", "central_difference"])
@linear
def test_of_a_linear_map(case: Linear, method: Any) -> None:
    """L_i x = (W A_i - A_i W) x + W v_i - u_i, its products and its figures."""
    x = normal(7, case.A_in.shape[-1])
    found = lie_derivative_error(case.network, x, case.symmetry, method=method)
    L = x @ (case.W @ case.A_in - case.A_out @ case.W).mT  # (i, n, out)
    if case.v is not None:
        L = L + (case.v @ case.W.T)[:, None]
    if case.u is not None:
        L = L - case.u[:, None]
    tolerance = 1e-7 if method == "central_difference" else 1e-10
    close(found.grams, torch.einsum("inc,jnc->nij", L, L), tolerance)
    y = x @ case.W.T
    close(found.norms, y.square().sum(1))
    close(found.error, (L.square().sum((0, 2)) / y.square().sum(1)).sqrt(), tolerance)
    close(found.total, L.norm() / y.norm(), tolerance)
    close(found.gram, torch.einsum("inc,jnc->ij", L, L) / y.square().sum(), tolerance)
    figures = found.figures()
    assert list(figures) == ["total", *found.names]
    for name, own in zip(found.names, L, strict=True):
        close(figures[name], own.norm() / y.norm(), tolerance)
    assert found.method == method


@linear
def test_folding_the_generators_changes_nothing(case: Linear) -> None:
    x = normal(4, case.A_in.shape[-1])
    whole, *cut = (lie_derivative_error(case.network, x, case.symmetry, chunk_size=c) for c in (None, 1, 8, 9))
    for found in cut:
        close(found.grams, whole.grams)


def test_the_weights_are_j_j_plus_1() -> None:
    """sum_i |C_i|^2 = sum_J J(J+1) |W_J|^2, with W_J by the eigenspaces of sum_i ad(A_i)^2."""
    case = LINEAR["SO(3)"]
    A, B, W = case.A_in, case.A_out, case.W
    eye_in, eye_out = torch.eye(A.shape[-1]).double(), torch.eye(B.shape[-1]).double()
    commutators = [
        torch.kron(eye_out, a.T.contiguous()) - torch.kron(b, eye_in) for a, b in zip(A, B, strict=True)
    ]  # W -> W a - b W
    casimir = torch.stack([-c @ c for c in commutators]).sum(0)
    values, vectors = torch.linalg.eigh(casimir)
    energies = {}
    for J in range(6):
        block = vectors[:, (values - J * (J + 1)).abs() < 1e-6]
        energies[J] = (block.T @ W.flatten()).square().sum()
    close(sum(energies.values()), W.square().sum())
    assert sum(e > 0.1 for e in energies.values()) >= 5
    x = torch.eye(A.shape[-1]).double()  # whose squares sum to those of W
    found = lie_derivative_error(case.network, x, case.symmetry)
    close(found.total**2, sum(J * (J + 1) * e for J, e in energies.items()) / W.square().sum(), 1e-10)


# ---- the spectrum and the kept subgroup ------------------------------------------------------------------------------
def test_a_network_equivariant_about_one_axis() -> None:
    found = lie_derivative_error(about_d, normal(64, 3), VECTORS)
    values, vectors = found.spectrum()
    assert abs(float(values[0])) < 1e-13
    assert float(values[1]) > 0.5
    close(vectors[:, 0] * vectors[:, 0].sum().sign(), D)
    close(values.sum(), found.total**2)
    assert found.kept(1e-5) == "rotations about (1, 2, 2)/3"
    assert found.kept(10.0) == "all"
    with pytest.raises(ValueError, match="floor"):
        found.kept(-1.0)


def of_projector(group: str, *kept: list[float]) -> LieDerivative:
    """A derivative that vanishes along these elements of the algebra alone."""
    span = torch.linalg.qr(torch.tensor(kept, dtype=torch.float64).T)[0]
    gram = torch.eye(len(span)).double() - span @ span.T
    return LieDerivative(as_group(group), gram[None], torch.ones(1).double(), "jvp")


X, Y, Z = torch.eye(3).tolist()
O = [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("group", "kept", "words"),
    [
        ("SO(2)", [[1.0]], "all"),
        ("SO(3)", [Z], "rotations about z"),
        ("SO(3)", [[-1.0, -2.0, -2.0]], "rotations about (1, 2, 2)/3"),
        ("O(3)", [[1.0, -1.0, 0.0]], "rotations about (1, -1, 0)/sqrt(2)"),
        ("SO(3)", [[0.31, 0.72, 0.94]], "rotations about (0.253, 0.588, 0.768)"),
        ("SO(3)", [X, Z], "rotations about x and z"),
        ("SO(3)", [[1.0, 1.0, 0.0], Z], "rotations about every direction normal to (1, -1, 0)/sqrt(2)"),
        ("SO(3)", [X, Y, Z], "all"),
        ("SE(3)", [O + X, O + Y, O + Z], "translations"),
        ("SE(3)", [O + X, O + Y], "translations along x and y"),
        ("E(3)", [X + O, Y + O, Z + O], "rotations"),
        ("E(3)", [Z + O, O + Z], "rotations about z and translations along z"),
        ("SE(3)", [[0.0, 0.0, 1.0, 2.0, -1.0, 0.0]], "rotations about z through (1, 2, 0)"),
        ("SE(3)", [[0.0, 0.0, 1.0, 0.0, 0.0, 0.5]], "screw motions about z through (0, 0, 0)"),
        (
            "SE(3)",
            [[0.0, 0.0, 1.0, 2.0, -1.0, 0.0], O + Z],
            "translations along z and rotations about z through (1, 2, 0)",
        ),
        ("T(2)", [[0.0, 1.0]], "translations along y"),
        ("SO(2) x T(3)", [[1.0, *O], [0.0, *X]], "rotations of SO(2) and translations along x of T(3)"),
        ("SO(3) x S4", [Y], "rotations about y of SO(3)"),
        ("SO(3) x SO(3)", [O + Z], "rotations about z of SO(3)[1]"),
        ("SO(3) x SO(3)", [Z + Z], "motions along 0.71 SO(3)[0].z + 0.71 SO(3)[1].z"),
    ],
)
def test_the_kept_subgroup_in_words(group: str, kept: list[list[float]], words: str) -> None:
    assert of_projector(group, *kept).kept(1e-6).replace("-0.71", "0.71") == words


def test_the_floor_is_a_figure() -> None:
    found = lie_derivative_error(lambda x: x * torch.tensor([1.0, 1.0, 1.01]), normal(64, 3), VECTORS)
    figures = found.figures()
    assert figures["x"] > 5e-3
    assert figures["y"] > 5e-3
    assert found.kept(2e-3) == "rotations about z"
    assert found.kept(2e-2) == "all"


def test_no_subgroup_is_kept() -> None:
    assert lie_derivative_error(MLP(), normal(64, 3), VECTORS).kept(1e-3) == "none"


def test_names_of_generators() -> None:
    assert generator_names(as_group("SO(2)")) == ("rotation",)
    assert generator_names(as_group("O(3)")) == ("x", "y", "z")
    assert generator_names(as_group("E(3)")) == ("x", "y", "z", "tx", "ty", "tz")
    assert generator_names(as_group("C4 x SO(3)")) == ("SO(3).x", "SO(3).y", "SO(3).z")
    assert generator_names(as_group("SO(2) x SO(2)")) == ("SO(2)[0].rotation", "SO(2)[1].rotation")


# ---- what it is good for ---------------------------------------------------------------------------------------------
def test_it_bounds_the_error_at_an_angle() -> None:
    """|f(e^{aA} x) - e^{aA} f(x)| <= int_0^a |L_A f (e^{sA} x)| ds, which is all of it for small a."""
    network, x = MLP(), normal(20, 3)
    algebra = VECTORS.group.algebra()
    axis = torch.tensor([0.6, -0.48, 0.64], dtype=torch.float64)
    steps = 101
    for angle, tight in ((1.5, 0.2), (0.01, 0.999)):
        s = torch.linspace(0, angle, steps, dtype=torch.float64)
        turned = torch.cat([VECTORS.inputs[0]((along(algebra, axis) * float(a)).exp(), x) for a in s])
        grams = lie_derivative_error(network, turned, VECTORS).grams
        speeds = torch.einsum("i,nij,j->n", axis, grams, axis).sqrt().reshape(steps, 20)
        bound = torch.trapezoid(speeds, s, dim=0)
        g = (along(algebra, axis) * angle).exp()
        error = equivariance_error(network, x, VECTORS, elements=g, kind="absolute")
        assert bool((error <= bound * (1 + 1e-4)).all())
        assert float((error / bound).min()) > tight


def along(algebra: AlgebraElement, a: Tensor) -> AlgebraElement:
    return AlgebraElement(algebra.group, ((a @ algebra.coefficients)[None],))


def test_small_turns_of_every_generator() -> None:
    """f(g x) - g f(x) over the angle, by the whole comparison: an own path through groups and representations."""
    symmetry = Symmetry("SE(3)", (Point(), "0e+1o"), ("1o", {"a": CartesianTensor(2)}))

    def network(x: Tensor, y: Tensor) -> Any:
        z = torch.cat([x, y], 1)
        return MLP(7, 3)(z), {"a": MLP(7, 9, seed=4)(z).unflatten(1, (3, 3))}

    x, t = (normal(5, 3), normal(5, 4, seed=7)), 1e-6
    found = lie_derivative_error(network, x, symmetry)
    for name, a in zip(found.names, symmetry.group.algebra(), strict=True):
        there, back = (equivariance_error_vector(network, x, symmetry, a * s) for s in (t, -t))
        close(found.figures()[name] ** 2 * found.norms.sum(), ((there - back) / (2 * t)).square().sum(), 1e-6)


def equivariance_error_vector(network: Any, x: Any, symmetry: Symmetry, a: AlgebraElement) -> Tensor:
    """g^-1 f(g x), flat."""
    g = a.exp()
    args, _ = symmetry.move_inputs(g, x)
    y, z = symmetry.move_outputs(g.inverse(), network(*args))
    return torch.cat([y.flatten(), z["a"].flatten()])


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 1e-13), (torch.float32, 1e-5)], ids=str)
def test_an_exact_network_reads_rounding(dtype: torch.dtype, rounding: float) -> None:
    irreps = o3.Irreps("8x0e+8x1o+4x2e")
    with global_seed(), default_dtype(dtype):
        gate = enn.Gate("8x0e", [torch.tanh], "12x0e", [torch.sigmoid], "8x1o+4x2e")
        network = nn.Sequential(
            o3.Linear("2x0e+1o", irreps),
            Squared(irreps),
            o3.Linear(irreps, gate.irreps_in),
            gate,
            o3.Linear(gate.irreps_out, "0e+1o"),
        )
        found = lie_derivative_error(network, normal(10, 5, dtype=dtype), Symmetry("O(3)", "2x0e+1o", "0e+1o"))
    assert float(found.error.max()) < rounding
    assert float(found.norms.min()) > 1e-3
    assert found.kept(10 * rounding) == "all"
    assert found.error.shape == (10,)


class Squared(nn.Module):
    """x (x) x."""

    def __init__(self, irreps: o3.Irreps) -> None:
        super().__init__()
        self.product = o3.FullyConnectedTensorProduct(irreps, irreps, irreps)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, x)


def test_images_have_a_floor() -> None:
    """A pointwise function commutes with every rotation: what it reads, as the docstring says, is the slope's error."""
    symmetry, size = Symmetry("SO(2)", Image(), Image()), 32
    p = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    angle, phase = (torch.rand(16, 1, 1, generator=seeded(s), dtype=torch.float64) * 6.3 for s in (0, 1))
    window = torch.exp(-(p**2 + p[:, None] ** 2) / 32)
    for k, least, most in ((0.3, 0.02, 0.04), (0.8, 0.2, 0.35)):
        waves = (window * torch.cos(k * (p * angle.cos() + p[:, None] * angle.sin()) + phase))[:, None]
        floor = lie_derivative_error(lambda x: (2 * x).tanh(), waves, symmetry).total
        assert least < float(floor) < most
        assert float(lie_derivative_error(lambda x: x, waves, symmetry).total) == 0.0
        shifted = lie_derivative_error(lambda x: x.roll(1, -1), waves, symmetry).total
        assert float(shifted) > 1.5 * float(floor)


# ---- calls of all kinds ----------------------------------------------------------------------------------------------
def graph_network(pos: Tensor, node: Tensor, edge_index: Tensor) -> dict[str, Tensor]:
    """Messages over relative positions, with a preferred direction; an output of nodes and one of graphs."""
    i, j = edge_index
    r = pos[i] - pos[j]
    message = r * (-(r.norm(dim=-1, keepdim=True))).exp() + 0.1 * r**2
    forces = torch.zeros_like(pos).index_add(0, j, message)
    energy = pos.new_zeros(int(node.max()) + 1, 1).index_add(
        0, node, forces.square().sum(-1, keepdim=True) + pos[:, 2:] ** 2
    )
    return {"forces": forces, "energy": energy}


def graphs() -> list[tuple[Tensor, Tensor]]:
    found = []
    for k, n in enumerate((3, 5, 4)):
        pairs = [(i, j) for i in range(n) for j in range(n) if i != j and (i + j + k) % 3]
        found.append((normal(n, 3, seed=k), torch.tensor(pairs).T))
    return found


OUTPUTS = {"forces": "1o", "energy": "0e"}


@pytest.mark.filterwarnings("ignore:.*torch-cluster.*:DeprecationWarning")  # PyG, where it is imported
def test_graphs_read_as_each_by_itself() -> None:
    data = pytest.importorskip("torch_geometric.data")
    plain, as_pyg = (
        Symmetry("SE(3)", {"pos": Point()}, OUTPUTS, index="node"),
        Symmetry("SE(3)", {"pos": Point()}, OUTPUTS),
    )
    one_by_one = []
    for pos, edge_index in graphs():
        kwargs = {"pos": pos, "node": torch.zeros(len(pos)).long(), "edge_index": edge_index}
        one_by_one.append(lie_derivative_error(graph_network, (), plain, kwargs=kwargs))
    batch = data.Batch.from_data_list([data.Data(pos=pos, edge_index=edge_index) for pos, edge_index in graphs()])
    kwargs = {"pos": batch.pos, "node": batch.batch, "edge_index": batch.edge_index}

    def on_data(data: Any) -> dict[str, Tensor]:
        return graph_network(data.pos, data.batch, data.edge_index)

    for method in ("auto", "double_backward"):
        for found in (
            lie_derivative_error(graph_network, (), plain, kwargs=kwargs, method=method, per_irrep=True),
            lie_derivative_error(on_data, batch, as_pyg, method=method, chunk_size=1, per_irrep=True),
        ):
            close(found.grams, torch.cat([one.grams for one in one_by_one]), 1e-10)
            close(found.norms, torch.cat([one.norms for one in one_by_one]), 1e-10)
            assert float(found.error.min()) > 0.1
            assert found.kept(1e-6) == "translations along x and y"
            close(sum(grams for grams, _ in found.parts.values()), found.grams)
            assert list(found.parts) == ["forces.1o", "energy.0e"]


def test_parts_of_the_output() -> None:
    network, x = MLP(3, 4), normal(9, 3)
    symmetry = Symmetry("SO(3)", "1o", "0e+1o")
    found = lie_derivative_error(network, x, symmetry, per_irrep=True)
    for part, columns in (("0e", slice(0, 1)), ("1o", slice(1, 4))):
        alone = lie_derivative_error(lambda x, c=columns: network(x)[:, c], x, Symmetry("SO(3)", "1o", part))
        for name, value in alone.figures().items():
            close(found.figures()[f"{part}/{name}"], value)
    assert lie_derivative_error(network, x, symmetry).parts == {}


def test_forces_of_an_energy() -> None:
    """A network that differentiates inside."""

    def energy(x: Tensor) -> Tensor:
        return x.norm(dim=-1).sin() + 0.1 * x[:, 2] ** 3

    def forces(x: Tensor) -> Tensor:
        x.requires_grad_(True)
        return torch.autograd.grad(energy(x).sum(), x)[0]

    x = normal(6, 3)
    found = lie_derivative_error(forces, x, VECTORS, needs_grad=True)
    closed = torch.func.vmap(torch.func.grad(lambda x: energy(x[None])[0]))
    expected = lie_derivative_error(closed, x, VECTORS)
    close(found.grams, expected.grams, 1e-10)
    assert found.method == "jvp"
    assert not x.requires_grad
    with pytest.raises(RuntimeError, match="write needs_grad=True"):
        lie_derivative_error(forces, x, VECTORS)


def test_the_method_that_was_used() -> None:
    for network, expected in ((MLP(), "jvp"), (lambda x: MLP()(x.detach()), "central_difference")):
        found = lie_derivative_error(network, normal(8, 3), VECTORS)
        assert found.method == expected
        close(found.grams, lie_derivative_error(MLP(), normal(8, 3), VECTORS).grams, 1e-7)


@pytest.mark.parametrize("size", [1e-10, 1.0, 1e10])
def test_points_in_any_unit_of_length(size: float) -> None:
    """Rotations move points by their size, translations by 1: the check and the steps look at each by itself."""
    symmetry = Symmetry("SE(3)", Point(), "1o")

    def network(x: Tensor, lost: bool = False) -> Tensor:
        x = x / size
        r = x[:, 0] - x[:, 1]  # which translations leave alone
        return (r.detach() if lost else r).sin() + x[:, 0].cos()

    x = size * normal(8, 2, 3)
    right = lie_derivative_error(network, x, symmetry)
    assert right.method == "jvp"
    for found in (
        lie_derivative_error(lambda x: network(x, lost=True), x, symmetry),
        lie_derivative_error(network, x, symmetry, method="central_difference"),
    ):
        assert found.method == "central_difference"
        for name, value in found.figures().items():
            close(value / right.figures()[name], torch.tensor(1.0), 1e-6)


def test_the_check_is_about_no_special_axis() -> None:
    """The sum of the coordinates does not change about (1, 1, 1)."""
    x = torch.cat([normal(8, 3).roll(k, -1) for k in range(3)])  # the same along every axis
    found = lie_derivative_error(lambda x: x + x.detach().sum(-1, keepdim=True), x, VECTORS)
    assert found.method == "central_difference"


def test_a_network_that_returns_nothing() -> None:
    found = lie_derivative_error(lambda x: 0 * x, normal(8, 3), VECTORS)
    assert found.kept(0.0) == "all"
    assert not any(bool(value) for value in found.figures().values())


def test_no_recorder_sees_it() -> None:
    network = MLP()
    recorder = CallRecorder(network)
    recorder.start()
    lie_derivative_error(network, normal(4, 3), VECTORS)
    assert recorder.stop() == []
    recorder.remove()


@pytest.mark.parametrize(
    "wrap", [torch.jit.script, partial(torch.compile, backend="aot_eager")], ids=["script", "compile"]
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_network_in_another_form(wrap: Callable[..., Any]) -> None:
    found = lie_derivative_error(wrap(MLP()), normal(4, 3), VECTORS)
    close(found.grams, lie_derivative_error(MLP(), normal(4, 3), VECTORS).grams, 1e-6)


def test_a_network_that_nothing_moves() -> None:
    found = lie_derivative_error(lambda x: x, normal(4, 3), Symmetry("SO(3)", Invariant(), "1o"))
    close(found.total**2, torch.tensor(2.0).double())  # J(J+1)


def test_permutations_beside_rotations_are_left_out() -> None:
    symmetry = Symmetry("SO(3) x S4", Permuted(1) @ "1o", Permuted(1) @ "1o")
    found = lie_derivative_error(lambda x: x.cumsum(1), normal(5, 4, 3), symmetry)
    assert float(found.total) < 1e-14


@pytest.mark.parametrize("group", ["C4", "D4", "S5", "C4 x S5"])
def test_a_finite_group_has_none(group: str) -> None:
    symmetry = Symmetry(group, Invariant(), Invariant())
    for make in (lambda: lie_derivative_error(MLP(), normal(4, 3), symmetry), lambda: LieDerivativeError(symmetry)):
        with pytest.raises(
            ValueError, match=rf"{group}, which is finite.*EquivarianceError\(symmetry, num_samples=None"
        ):
            make()


def test_a_representation_without_a_derivative_is_named() -> None:
    turned: Callable[..., Tensor] = lambda g, x: torch.einsum("nij,nj->ni", g.matrix.to(x), x)  # noqa: E731
    symmetry = Symmetry("SO(3)", {"a": "1o", "b": Custom(turned)}, "1o")
    data = {"a": normal(4, 3), "b": normal(4, 3, seed=1)}
    with pytest.raises(NotImplementedError, match=r"'b' in `inputs`: Custom.*does not know its infinitesimal action"):
        lie_derivative_error(lambda data: data["a"], data, symmetry)
    known = Custom(turned, lambda a, x: torch.einsum("nij,nj->ni", a.matrix.to(x), x))
    symmetry = Symmetry("SO(3)", {"a": "1o", "b": known}, "1o")
    assert float(lie_derivative_error(lambda data: torch.linalg.cross(*data.values()), data, symmetry).total) < 1e-14


def test_one_algebra_element_for_every_input() -> None:
    call = Symmetry("SE(3)", {"pos": Point()}, "1o", index="node").bind(
        None, (), {"pos": normal(5, 3), "node": torch.tensor([0, 0, 1, 1, 1])}
    )
    a = AlgebraElement(as_group("SE(3)"), (normal(2, 6, seed=5),))
    found = next(t.x for t in call.inputs.derivative(a).tensors if t.path == "pos")
    w, v = a.coefficients[call.inputs.inputs.node].split(3, dim=-1)
    close(found, torch.linalg.cross(w, normal(5, 3)) + v)
    nodes = next(t.x for t in call.inputs.derivative(a).tensors if t.path == "node")
    assert not bool(nodes.any())
    with pytest.raises(ValueError, match="expected 2 elements"):
        call.inputs.derivative(AlgebraElement(a.group, (normal(3, 6),)))


# ---- the metric ------------------------------------------------------------------------------------------------------
def test_the_metric_is_the_function_on_everything() -> None:
    network, batches = MLP(3, 4), [normal(n, 3, seed=n) for n in (5, 8)]
    symmetry = Symmetry("SO(3)", "1o", "0e+1o")
    metric = LieDerivativeError(symmetry, per_irrep=True)
    for x in batches:
        metric.update(network, x)
    whole = lie_derivative_error(network, torch.cat(batches), symmetry, per_irrep=True)
    computed = metric.compute()
    assert list(computed) == list(whole.figures())
    for name, value in whole.figures().items():
        close(computed[name], value, 1e-6)
    close(metric.summary().gram, whole.gram)
    assert metric.summary().kept(1e-6) == whole.kept(1e-6)
    assert metric.methods == {"jvp": 13}
    metric.update(lambda x: network(x.detach()), batches[0])
    assert metric.methods == {"jvp": 13, "central_difference": 5}
    assert metric.summary().method == "jvp and central_difference"
    metric.reset()
    assert metric.methods == {}


def test_the_summary_is_of_all_ranks() -> None:
    symmetry, x = VECTORS, normal(5, 3)
    other = LieDerivativeError(symmetry)
    other.update(about_d, 3 * x)
    states = {tuple(s.shape): s for s in other.metric_state.values() if s.numel() != 3}  # by shape: (3, 3) and ()
    counts = next(s for s in other.metric_state.values() if s.shape == (3,))

    def gathered(own: Tensor, group: Any = None) -> list[Tensor]:
        return [own, counts if own.shape == (3,) else states[tuple(own.shape)]]

    metric = LieDerivativeError(symmetry, dist_sync_fn=gathered, distributed_available_fn=lambda: True)
    metric.update(MLP(), x)
    own, others = (lie_derivative_error(f, y, symmetry) for f, y in ((MLP(), x), (about_d, 3 * x)))
    close(metric.summary().gram, (own.grams.sum(0) + others.grams.sum(0)) / (own.norms.sum() + others.norms.sum()))
    close(metric.summary().norms, (own.norms.sum() + others.norms.sum())[None])
    close(metric.compute()["total"], metric.summary().total, 1e-6)
    assert metric.methods == {"jvp": 5}


def test_an_output_that_is_left_out() -> None:
    symmetry = Symmetry("SO(3)", "1o", {"a": "1o", "b": "0e"})
    metric = LieDerivativeError(symmetry, per_irrep=True)
    metric.update(lambda x: {"a": MLP()(x), "b": None}, normal(4, 3))
    metric.update(lambda x: {"a": MLP()(x), "b": x[:, :1]}, normal(4, 3))
    alone = lie_derivative_error(lambda x: x[:, :1], normal(4, 3), Symmetry("SO(3)", "1o", "0e"))
    close(metric.compute()["b.0e/total"], alone.total, 1e-6)


def test_the_metric_before_and_after_nonsense() -> None:
    metric = LieDerivativeError(VECTORS)
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        computed = metric.compute()
    assert all(bool(value.isnan()) for value in computed.values())
    metric.update(lambda x: x * torch.nan, normal(4, 3))
    with pytest.raises(ValueError, match="the network returned NaN or infinity"):
        metric.compute()
    with pytest.raises(ValueError, match="expected method to be one of"):
        LieDerivativeError(VECTORS, method="forward")  # type: ignore[arg-type]


def test_a_measurement_takes_five_calls() -> None:
    """f(x); one derivative, f(x) and two more for the check; then one for all generators, or one for each."""
    calls = []

    def network(x: Tensor) -> Tensor:
        calls.append(len(x))
        return MLP()(x)

    lie_derivative_error(network, normal(4, 3), VECTORS)
    assert calls == [4, 4, 4, 4, 4, 12]
    calls.clear()
    lie_derivative_error(network, normal(4, 3), VECTORS, method="jvp", chunk_size=8)
    assert calls == [4, 8, 4]
