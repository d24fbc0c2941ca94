"""The one comparison against closed forms, a slow loop, and e3nn's equivariant layers."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, NamedTuple, get_args

import pytest
import torch
from e3nn import o3
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_equiv import SO3, Invariant, IrrepsTensor, Permuted, Point, Symmetry, equivariance_error
from lightning_equiv.metrics.comparison import compare
from lightning_equiv.metrics.functional import Kind, reduce_sums
from lightning_equiv.wiring.call_recorder import CallRecorder, recording_paused
from tests.helpers import TOLERANCE, default_dtype, global_seed, normal, seeded, sums_of

KINDS = get_args(Kind)
VECTORS = Symmetry("SO(3)", "1o", "1o")
QUARTERS = [((1.0, 0.0), (0.0, 1.0)), ((0.0, -1.0), (1.0, 0.0)), ((-1.0, 0.0), (0.0, -1.0)), ((0.0, 1.0), (-1.0, 0.0))]
C4 = Symmetry("C4", Point(), Point())


def mlp(n_in: int = 3, n_out: int = 3, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network without any symmetry, the same every time."""
    with torch.random.fork_rng():
        net = nn.Sequential(nn.Linear(n_in, 8, dtype=dtype), nn.Tanh(), nn.Linear(8, n_out, dtype=dtype))
    for i, parameter in enumerate(net.parameters()):
        parameter.data = normal(*parameter.shape, seed=i, dtype=dtype)
    return net


def folded(differences: list[list[Tensor]], outputs: list[Tensor], kind: str) -> Tensor:
    """The table of the docstring, written with loops: differences[i][k] is d for input i and element k."""
    errors = []
    for d_i, f_x in zip(differences, outputs, strict=True):
        norms = [float(d.norm()) for d in d_i]
        errors.append(
            {
                "relative": math.sqrt(sum(n * n for n in norms) / len(norms)) / float(f_x.norm()),
                "absolute": sum(norms) / len(norms),
                "orbit_mean": float((sum(d_i) / len(d_i)).norm()),
                "max": max(norms),
            }[kind]
        )
    return torch.tensor(errors, dtype=outputs[0].dtype)


class Affine(nn.Module):
    """x -> x + c."""

    def __init__(self, c: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("c", torch.tensor(c, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.c


class Mix(nn.Module):
    """Channels of vectors (n, C, 3) mixed: equivariant for every weight."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(5, 4, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("oc,ncv->nov", self.weight, x)


class Square(nn.Module):
    """e3nn's tensor product of an input with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.product = o3.FullyConnectedTensorProduct("2x0e+2x1o", "2x0e+2x1o", "2x0e+1x1o+1x1e+1x2e")

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, x)


# ---- closed forms ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["channels of vectors", "o3.Linear", "tensor product"])
def test_an_equivariant_network_reads_the_float_floor(case, dtype, kind):
    with global_seed(), default_dtype(dtype):  # e3nn rounds its constants when a layer is made
        network, symmetry, x = {
            "channels of vectors": lambda: (Mix(dtype), Symmetry("O(3)", "1o", "1o"), normal(6, 4, 3, dtype=dtype)),
            "o3.Linear": lambda: (
                o3.Linear("3x0e+2x1o+1x2e", "2x0e+4x1o+2x2e"),
                Symmetry("O(3)", "3x0e+2x1o+1x2e", "2x0e+4x1o+2x2e"),
                normal(6, 14, dtype=dtype),
            ),
            "tensor product": lambda: (
                Square(),
                Symmetry("O(3)", "2x0e+2x1o", "2x0e+1x1o+1x1e+1x2e"),
                normal(6, 8, dtype=dtype),
            ),
        }[case]()
    error = equivariance_error(network, x, symmetry, kind=kind, generator=seeded())
    assert error.shape == (6,)
    assert error.dtype == dtype
    assert float(error.max()) < 2 * TOLERANCE[dtype]
    bent = equivariance_error(lambda x: network(x + 1), x, symmetry, kind=kind, generator=seeded())
    assert float(bent.min()) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_a_shift_under_the_whole_of_c4_reads_c_minus_rc(kind):
    """f(x) = x + c: f(g x) - g f(x) = c - R c, which is not a matter of x."""
    network, x = Affine((0.3, -1.1)), normal(5, 2)
    differences = [network.c - torch.tensor(r, dtype=torch.float64) @ network.c for r in QUARTERS]
    expected = folded([differences] * 5, list(x + network.c), kind)
    error = equivariance_error(network, x, C4, kind=kind, num_samples=None)
    torch.testing.assert_close(error, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("absolute", 4 / 3), ("orbit_mean", 1.0), ("max", 2.0), ("relative", math.sqrt(2))],
)
def test_a_constant_under_so3_reads_its_closed_form(kind, expected):
    """f(x) = c: R c is uniform on the sphere, |c - R c| = |c| sqrt(2 - 2 u) with u uniform on [-1, 1]."""
    c = torch.tensor([1.0, -2.0, 2.0], dtype=torch.float64)  # |c| = 3
    error = equivariance_error(
        lambda x: c.expand_as(x), normal(2, 3), VECTORS, kind=kind, num_samples=20_000, generator=seeded()
    )
    scale = 1.0 if kind == "relative" else 3.0
    torch.testing.assert_close(error, torch.full((2,), expected * scale, dtype=torch.float64), rtol=0.02, atol=0)


def test_relative_is_the_error_over_the_size_of_each_output():
    """f(x) = x + c under SO(3): mean |c - R c|^2 = 2 |c|^2, hence sqrt(2) |c| / |x + c| for each x."""
    network, x = Affine((0.5, 0.0, -1.0)), normal(4, 3)
    error = equivariance_error(network, x, VECTORS, num_samples=20_000, generator=seeded(1))
    expected = math.sqrt(2) * network.c.norm() / (x + network.c).norm(dim=-1)
    torch.testing.assert_close(error, expected, rtol=0.02, atol=0)


def test_orbit_mean_of_zero_does_not_imply_equivariance():
    """f(x) = (x_1^3, 0) is odd: over C2 both sides agree; over C4 the mean is not zero although C2's is."""
    symmetry = Symmetry("C4", Point(), Invariant())
    network = lambda x: x[:, :1]  # a component, declared invariant  # noqa: E731
    x = normal(5, 2)
    kwargs = {"num_samples": None, "kind": "orbit_mean"}
    torch.testing.assert_close(equivariance_error(network, x, symmetry, **kwargs), x[:, 0].abs())  # mean of R x is 0
    even = lambda x: x[:, :1].square() - x[:, 1:].square()  # noqa: E731
    assert float(equivariance_error(even, x, Symmetry("C2", Point(), Invariant()), **kwargs).max()) == 0
    assert float(equivariance_error(even, x, symmetry, num_samples=None, kind="max").min()) > 1e-3


def test_zero_over_zero_is_zero():
    zero = torch.zeros(2)
    assert reduce_sums(zero, zero, "relative").tolist() == [0.0, 0.0]
    assert equivariance_error(torch.zeros_like, normal(3, 3), VECTORS).tolist() == [0.0, 0.0, 0.0]


# ---- the slow loop ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk_size", [None, 1, 7, 13, 1000])
def test_equals_a_loop_over_inputs_and_elements_for_every_chunk_size(kind, chunk_size):
    n, samples, network, x = 3, 5, mlp(), normal(3, 3)
    r = SO3().sample(samples * n, generator=seeded(7)).matrix  # element k n + i moves input i
    outputs = [network(x_i).detach() for x_i in x]
    differences = [
        [(network(r[k * n + i] @ x[i]) - r[k * n + i] @ outputs[i]).detach() for k in range(samples)] for i in range(n)
    ]
    error = equivariance_error(
        network, x, VECTORS, kind=kind, num_samples=samples, chunk_size=chunk_size, generator=seeded(7)
    )
    torch.testing.assert_close(error, folded(differences, outputs, kind), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("chunk_size", "chunks"), [(None, 1), (1, 5), (7, 5), (8, 3), (12, 2), (20, 1), (99, 1)])
def test_the_network_is_called_once_for_fx_and_once_a_chunk(chunk_size, chunks):
    sizes, network = [], mlp()
    network.register_forward_hook(lambda _m, args, _o: sizes.append(len(args[0])))
    equivariance_error(network, normal(4, 3), VECTORS, num_samples=5, chunk_size=chunk_size)
    assert len(sizes) == 1 + chunks
    assert sizes[0] == 4
    assert sum(sizes[1:]) == 20
    assert max(sizes[1:]) <= max(4, chunk_size or 20)


def test_compare_forms_both_sides():
    network, x, g = mlp(), normal(3, 3), SO3().sample(6, generator=seeded())
    call = VECTORS.bind(network, (x,))
    f_gx, g_fx = (side.tree for side in compare(network, call, g, call.output(network(x))))
    for k in range(6):
        torch.testing.assert_close(f_gx[k], network(g.matrix[k] @ x[k % 3]))
        torch.testing.assert_close(g_fx[k], g.matrix[k] @ network(x[k % 3]))


# ---- parts of the output ---------------------------------------------------------------------------------------------
IRREPS = Symmetry("SO(3)", "1o", "2x0e+1o+1x0e")


@pytest.mark.parametrize("kind", KINDS)
def test_each_irrep_by_itself_and_the_total(kind):
    n, samples, network, x = 3, 4, mlp(3, 6), normal(3, 3)
    errors = equivariance_error(network, x, IRREPS, kind=kind, num_samples=samples, per_irrep=True, generator=seeded(3))
    assert list(errors) == ["total", "0e", "1o"]
    r = SO3().sample(samples * n, generator=seeded(3)).matrix
    rows = {"0e": [0, 1, 5], "1o": [2, 3, 4], "total": [0, 1, 2, 3, 4, 5]}
    for part, columns in rows.items():
        differences, outputs = [], [network(x_i).detach() for x_i in x]
        for i in range(n):
            moved = []
            for k in range(samples):
                g_fx = outputs[i].clone()
                g_fx[2:5] = r[k * n + i] @ g_fx[2:5]
                moved.append((network(r[k * n + i] @ x[i]).detach() - g_fx)[columns])
            differences.append(moved)
        expected = folded(differences, [o[columns] for o in outputs], kind)
        torch.testing.assert_close(errors[part], expected, rtol=0, atol=1e-12)


def test_total_is_the_sum_of_squares_of_the_parts():
    arguments = (mlp(3, 6), normal(3, 3), IRREPS)
    for kind in ("relative", "orbit_mean"):
        sums = sums_of(*arguments, num_samples=4, kind=kind, generator=seeded())
        power = 1 if kind == "relative" else 2
        for side in (0, 1)[: 2 if kind == "relative" else 1]:
            total = sum(pair[side] ** power for part, pair in sums.items() if part != "total")
            torch.testing.assert_close(sums["total"][side] ** power, total)


def test_a_part_that_keeps_the_symmetry_reads_the_floor_beside_one_that_breaks_it():
    network = lambda x: torch.cat([x.norm(dim=-1, keepdim=True), x + 1], dim=-1)  # noqa: E731
    errors = equivariance_error(network, normal(5, 3), Symmetry("SO(3)", "1o", "0e+1o"), per_irrep=True)
    assert float(errors["0e"].max()) < 1e-12
    assert float(errors["1o"].min()) > 1e-2


class Answer(NamedTuple):
    energy: Tensor
    tensor: Tensor


@pytest.mark.parametrize(
    ("outputs", "network", "names"),
    [
        ("1o", lambda x: x, ["1o"]),
        (Point(), lambda x: x, ["output"]),
        ("0e+1o", lambda x: torch.cat([x[:, :1], x], 1), ["0e", "1o"]),
        ({"e": Invariant(), "f": "1o"}, lambda x: {"e": x[:, 0], "f": x}, ["e", "f.1o"]),
        (("0e", "1o"), lambda x: (x[:, :1], x), ["0.0e", "1.1o"]),
        ({"a": {"b": "1o"}}, lambda x: {"a": {"b": x}}, ["a.b.1o"]),
        ({"energy": "0e", "tensor": "1o"}, lambda x: Answer(x[:, :1], x), None),
        (("0e", "1o"), lambda x: Answer(x[:, :1], x), ["0.0e", "1.1o"]),
        ({"total": Invariant(), "f": "1o"}, lambda x: {"total": x[:, 0], "f": x}, ["total.output", "f.1o"]),
        ({"total": "0e", "f": "1o"}, lambda x: {"total": x[:, :1], "f": x}, ["total.0e", "f.1o"]),
    ],
)
def test_parts_are_named_by_where_they_lie(outputs, network, names):
    symmetry, x = Symmetry("SO(3)", "1o", outputs), normal(4, 3)
    if names is None:
        with pytest.raises(ValueError, match="does not mirror"):
            equivariance_error(network, x, symmetry)
        return
    assert list(symmetry.output_parts) == names
    assert list(symmetry.bind(network, (x,)).output(network(x)).parts()) == names
    errors = equivariance_error(network, x, symmetry, per_irrep=True, num_samples=3, generator=seeded())
    assert list(errors) == ["total", *names]
    squares = sums_of(network, x, symmetry, num_samples=3, kind="relative", generator=seeded())
    torch.testing.assert_close(squares["total"][0], sum(squares[name][0] for name in names))


def test_an_output_of_the_whole_call_is_left_out_when_declared_shared():
    symmetry = Symmetry("SO(3)", "1o", ("1o", Invariant(shared=True)))
    x = normal(4, 3)
    errors = equivariance_error(lambda x: (x, x[:, 0].mean()), x, symmetry, per_irrep=True, num_samples=3)
    assert list(errors) == ["total", "0.1o"]
    _, mean = symmetry.bind(None, (x,)).move_output(SO3().sample(12), (x, x[:, 0].mean()), times=3)
    assert torch.equal(mean, x[:, 0].mean())
    assert float(errors["total"].max()) < 1e-12
    with pytest.raises(ValueError, match=r"'1'.*shared=True"):
        equivariance_error(lambda x: (x, x[:, 0].mean()), x, Symmetry("SO(3)", "1o", ("1o", Invariant())))
    with pytest.raises(ValueError, match="expected the network to return tensors"):
        equivariance_error(lambda x: x[:, 0].mean(), x, Symmetry("SO(3)", "1o", Invariant(shared=True)))


@pytest.mark.parametrize("dim", [1, 2, -1])
def test_irreps_may_lie_along_any_dimension(dim):
    symmetry = Symmetry("SO(3)", "1o", IrrepsTensor("0e+1o", dim=dim))
    network = lambda x: torch.cat([x[:, :1], 2 * x + 1], 1)[:, None, :].repeat(1, 2, 1).movedim(-1, dim)  # noqa: E731
    errors = equivariance_error(network, normal(4, 3), symmetry, per_irrep=True, generator=seeded())
    expected = equivariance_error(
        lambda x: network(x).movedim(dim, -1),
        normal(4, 3),
        Symmetry("SO(3)", "1o", "0e+1o"),
        per_irrep=True,
        generator=seeded(),
    )
    for part in expected:
        torch.testing.assert_close(errors[part], expected[part])


# ---- graphs ----------------------------------------------------------------------------------------------------------
class Messages(nn.Module):
    """Positions of nodes, and a bent message on every edge; the answer for nodes, edges and graphs."""

    def forward(self, pos: Tensor, edge_index: Tensor, batch: Tensor) -> dict[str, Tensor]:
        i, j = edge_index
        edge = (pos[j] - pos[i]).tanh()
        node = pos + torch.zeros_like(pos).index_add(0, i, edge)
        graph = pos.new_zeros(int(batch.max()) + 1, 2).index_add(0, batch, node)
        return {"node": node, "edge_force": edge, "graph": graph}


GRAPH_OUTPUTS = {"node": Point(), "edge_force": Point(), "graph": Point()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_graphs_reads_the_same_as_its_graphs_one_at_a_time(kind):
    symmetry = Symmetry("C4", {"pos": Point()}, GRAPH_OUTPUTS, index="batch")
    sizes, network, errors = [3, 2, 4], Messages(), []
    ring = lambda n: torch.stack([torch.arange(n), (torch.arange(n) + 1) % n])  # noqa: E731
    positions = [normal(n, 2, seed=n) for n in sizes]
    starts = [0, 3, 5]
    call = {
        "pos": torch.cat(positions),
        "edge_index": torch.cat([ring(n) + s for n, s in zip(sizes, starts, strict=True)], 1),
        "batch": torch.arange(3).repeat_interleave(torch.tensor(sizes)),
    }
    for n, pos in zip(sizes, positions, strict=True):
        one = {"pos": pos, "edge_index": ring(n), "batch": torch.zeros(n, dtype=torch.long)}
        errors.append(equivariance_error(network, (), symmetry, kwargs=one, num_samples=None, kind=kind))
    together = equivariance_error(network, (), symmetry, kwargs=call, num_samples=None, kind=kind, chunk_size=7)
    torch.testing.assert_close(together, torch.cat(errors), rtol=0, atol=1e-12)
    assert float(together.min()) < 1e-12  # tanh is odd and acts on each axis alone: C4 is kept


@pytest.mark.parametrize("kind", KINDS)
def test_irreps_on_the_edges_of_a_graph_belong_to_the_graph_of_the_edge(kind):
    """The edges of each graph are pushed by its own c, so that each graph's error is its own."""

    def network(pos: Tensor, push: Tensor, edge_index: Tensor, batch: Tensor) -> dict[str, Tensor]:
        return {"edge_force": pos[edge_index[1]] - pos[edge_index[0]] + push[edge_index[0]]}

    symmetry = Symmetry("SO(3)", {"pos": "1o", "push": "0e"}, {"edge_force": "1o"}, index="batch")
    call = {
        "pos": normal(5, 3),
        "push": torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0], dtype=torch.float64)[:, None],
        "edge_index": torch.tensor([[0, 1, 0, 3, 3, 4], [1, 2, 2, 4, 4, 3]]),
        "batch": torch.tensor([0, 0, 0, 1, 1]),
    }
    errors = equivariance_error(network, (), symmetry, kwargs=call, kind=kind, per_irrep=True)
    assert list(errors) == ["total", "edge_force.1o"]
    assert float(errors["total"][0]) < 1e-12
    assert float(errors["total"][1]) > 0.1
    torch.testing.assert_close(errors["total"], errors["edge_force.1o"])


# ---- how the network is called ---------------------------------------------------------------------------------------
def test_keywords_read_the_same_as_positions():
    class Net(nn.Module):
        def forward(self, x: Tensor, mass: Tensor, temperature: Tensor | None = None) -> Tensor:
            return x * mass + 1 if temperature is None else x * mass + temperature

    symmetry = Symmetry("SO(3)", ("1o", "0e"), "1o")
    x, mass = normal(4, 3), normal(4, 1, seed=1)
    errors = [
        equivariance_error(Net(), args, symmetry, kwargs=kwargs, generator=seeded())
        for args, kwargs in [((x, mass), None), ((x,), {"mass": mass}), ((), {"mass": mass, "x": x})]
    ]
    named = Symmetry("SO(3)", {"x": "1o", "mass": "0e"}, "1o")
    errors.append(equivariance_error(Net(), (x,), named, kwargs={"mass": mass}, generator=seeded()))
    for error in errors[1:]:
        assert torch.equal(error, errors[0])
    assert float(errors[0].min()) > 0.01


class Conservative(nn.Module):
    """Forces as the gradient of an energy, with or without rotation symmetry."""

    def __init__(self, pull: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.pull = pull

    def forward(self, x: Tensor) -> Tensor:
        x.requires_grad_(True)
        energy = (self.scale * x.square().sum(-1).sin() + self.pull * x[:, 2].square()).sum()
        return -torch.autograd.grad(energy, x)[0]


@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", KINDS)
def test_conservative_forces_are_differentiated_inside(mode, kind):
    with torch.no_grad():
        x = normal(4, 3)
    arguments = {"kind": kind, "needs_grad": True, "chunk_size": 8}
    kept, bent = Conservative(), Conservative(1.0)
    expected = equivariance_error(bent, x, VECTORS, generator=seeded(), **arguments)
    with mode():
        x = x.clone()
        floor = equivariance_error(kept, x, VECTORS, generator=seeded(), **arguments)
        error = equivariance_error(bent, x, VECTORS, generator=seeded(), **arguments)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    assert float(floor.max()) < 1e-12
    assert torch.equal(error, expected)
    assert float(error.min()) > 1e-2
    assert not x.requires_grad
    assert bent.scale.grad is None
    assert not error.requires_grad


def test_gradients_are_off_unless_asked_for():
    seen = []
    equivariance_error(lambda x: (seen.append(torch.is_grad_enabled()), x)[1], normal(2, 3), VECTORS)
    equivariance_error(lambda x: (seen.append(torch.is_grad_enabled()), x)[1], normal(2, 3), VECTORS, needs_grad=True)
    assert seen == [False, False, True, True]
    assert torch.is_grad_enabled()


class Noisy(nn.Module):
    """Batch norm and dropout, and a sub-module that its owner keeps in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout, self.frozen = nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Dropout(0.5)
        self.modes: list[list[bool]] = []
        self.fail = False
        self.train()
        self.frozen.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append([m.training for m in self.modules()])
        if self.fail:
            raise RuntimeError("out of luck")
        return self.frozen(self.dropout(self.norm(x)))


@pytest.mark.parametrize("fail", [False, True])
def test_measured_in_evaluation_mode_and_every_mode_put_back(fail):
    network = Noisy()
    network.fail = fail
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(RuntimeError, match="out of luck") if fail else nullcontext():
        error = equivariance_error(network, normal(16, 3, dtype=torch.float32), VECTORS)
    assert not any(mode for modes in network.modes for mode in modes)
    assert [m.training for m in (network, network.norm, network.dropout, network.frozen)] == [True, True, True, False]
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    if not fail:  # a batch norm of unit statistics scales all alike, and no dropout is drawn: equivariant
        assert float(error.max()) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("seed", [None, 5])
def test_the_global_generator_is_left_alone(seed):
    before = torch.get_rng_state()
    equivariance_error(mlp(), normal(4, 3), VECTORS, generator=None if seed is None else seeded(seed))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_generator_decides_the_draws():
    errors = [equivariance_error(mlp(), normal(4, 3), VECTORS, generator=seeded(seed)) for seed in (5, 5, 6)]
    assert torch.equal(errors[0], errors[1])
    assert not torch.equal(errors[0], errors[2])


def test_arguments_are_not_modified():
    x = {"x": normal(4, 3), "note": "kept"}
    copy = x["x"].clone()
    equivariance_error(lambda d: d["x"] + 1, x, Symmetry("SO(3)", {"x": "1o"}, "1o"))
    assert torch.equal(x["x"], copy)
    assert list(x) == ["x", "note"]


def test_a_network_that_uses_its_output_memory_again_is_measured_right():
    """As a CUDA graph does."""
    memory = torch.empty(64, 3, dtype=torch.float64)

    def network(x: Tensor) -> Tensor:
        memory[: len(x)] = x + 1
        return memory[: len(x)]

    expected = equivariance_error(lambda x: x + 1, normal(4, 3), VECTORS, generator=seeded(), chunk_size=4)
    error = equivariance_error(network, normal(4, 3), VECTORS, generator=seeded(), chunk_size=4)
    assert torch.equal(error, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_of_reduced_precision_are_taken_in_float32(dtype):
    x = normal(8, 3, dtype=torch.float32).to(dtype)
    error = equivariance_error(lambda x: x, x, VECTORS, generator=seeded())
    assert error.dtype == torch.float32
    assert float(error.max()) < 4 * torch.finfo(dtype).eps
    large = equivariance_error(lambda x: 300 * x + 1, x, VECTORS, kind="absolute", generator=seeded())
    assert bool(torch.isfinite(large).all())  # 300^2 is infinite in float16


def test_integer_inputs_pass_through():
    class Embed(nn.Module):
        def forward(self, x: Tensor, kind: Tensor) -> Tensor:
            return x * (1 + kind[:, None])

    symmetry = Symmetry("SO(3)", ("1o", Invariant()), "1o")
    assert float(equivariance_error(Embed(), (normal(4, 3), torch.arange(4)), symmetry).max()) < 1e-12


def test_a_network_of_interchangeable_things():
    symmetry = Symmetry("S3", Permuted(1), Permuted(1))
    x = normal(4, 3, 2)
    assert float(equivariance_error(lambda x: x - x.mean(1, keepdim=True), x, symmetry, num_samples=None).max()) < 1e-12
    order = torch.arange(3, dtype=torch.float64)[:, None]
    assert float(equivariance_error(lambda x: x * order, x, symmetry, num_samples=None).min()) > 0.1


# ---- recorders -------------------------------------------------------------------------------------------------------
def test_the_calls_of_a_comparison_are_not_remembered():
    network = mlp()
    recorder, other = CallRecorder(network), CallRecorder(network)
    recorder.start()
    network(normal(2, 3))
    equivariance_error(network, normal(2, 3), VECTORS)
    network(normal(3, 3))
    with recording_paused():
        network(normal(4, 3))
    with pytest.raises(TypeError), recording_paused():
        network(None)
    network(normal(5, 3))
    assert [len(call.args[0]) for call in recorder.stop()] == [2, 3, 5]
    assert other.stop() == []
    recorder.remove()
    other.remove()
    assert not network._forward_hooks


# ---- no waiting for the device ---------------------------------------------------------------------------------------
class Waits(TorchDispatchMode):
    """Remembers the operations that make the host wait for an accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if any(word in name for word in ("_local_scalar_dense", "nonzero", "aten.equal", "masked_select", "unique")):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetry", [VECTORS, Symmetry("C4", "1o", "1o"), Symmetry("SE(3)", Point(), {"y": Point()})])
def test_the_host_never_waits_for_the_device(symmetry, kind):
    network, x = mlp(), normal(4, 3)
    samples = None if symmetry.group.order else 4
    nested = (lambda x: {"y": network(x)}) if isinstance(symmetry.outputs, dict) else network
    with Waits() as waits:
        equivariance_error(nested, x, symmetry, kind=kind, num_samples=samples, chunk_size=8, per_irrep=True)
    assert waits.found == []
    with Waits() as waits:  # the test sees what it looks for
        equivariance_error(lambda x: x * float(x.sum()), x, VECTORS)
    assert waits.found


def moments(data: Any) -> Tensor:
    """One vector for each graph: a sum over its nodes, without asking how many there are."""
    x, node, like = data
    return torch.zeros_like(like).index_add(0, node, x)


@pytest.mark.parametrize(("known", "looks"), [("by a tensor", 0), ("by a number", 0), ("by PyG", 0), ("not", 1)])
def test_the_host_waits_once_a_call_of_graphs_at_most(known, looks):
    x, node, cell = normal(6, 3), torch.tensor([0, 0, 1, 2, 2, 2]), normal(3, 3)
    edges = torch.tensor([[0, 1, 3, 4, 5], [1, 0, 4, 5, 3]])
    if known == "by PyG":
        data = pytest.importorskip("torch_geometric.data")
        graphs = [data.Data(x=x[node == i], cell=cell[i : i + 1], edge_index=edges[:, :0]) for i in range(3)]
        args, inputs, options = (data.Batch.from_data_list(graphs),), {"x": "1o", "cell": "1o"}, {}
        network = lambda graph: moments((graph.x, graph.batch, graph.cell))  # noqa: E731
    else:
        number = {"by a tensor": "cell", "by a number": "num", "not": None}[known]
        options = {"index": "batch", "num_graphs": number}
        args, inputs = (x, node, cell, edges, 3), {"x": "1o", "cell": "1o"}

        def network(x: Tensor, batch: Tensor, cell: Tensor, edge_index: Tensor, num: int) -> Tensor:
            return moments((x, batch, cell))

    symmetry = Symmetry("SO(3)", inputs, "1o", **options)
    with Waits() as waits:
        error = equivariance_error(network, args, symmetry, num_samples=8, chunk_size=6)
    assert len(waits.found) == looks
    assert error.shape == (3,)
    assert float(error.max()) < 1e-12


# ---- errors ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "relativ"}, "expected kind to be one of .*'relative'.*got 'relativ'"),
        ({"num_samples": 0}, "expected num_samples to be at least 1 .*got 0"),
        ({"num_samples": None}, "infinitely many"),
        ({"args": torch.zeros(0, 3)}, "empty batch"),
        ({"args": torch.zeros(4, 2)}, r"3 components.*\(4, 2\)"),
        ({"args": (torch.zeros(4, 3), torch.zeros(4, 1))}, "not named by the symmetry's `inputs`"),
        ({"network": lambda x: (x, x)}, "`outputs` does not mirror"),
        ({"network": lambda x: x[:2]}, r"'1o' has shape \(2, 3\), but 4 rows|\(2, 3\)"),
        ({"network": lambda x: None}, "expected the network to return tensors"),
    ],
)
def test_errors_say_what_was_expected(arguments, message):
    arguments = {"network": mlp(dtype=torch.float32), "args": torch.ones(4, 3), **arguments}
    with pytest.raises(ValueError, match=message):
        equivariance_error(arguments.pop("network"), arguments.pop("args"), VECTORS, **arguments)
