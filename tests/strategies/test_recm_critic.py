"""RECM's critic: it is 1-Lipschitz, its certificate, and the rows and group elements that it is averaged over."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import lightning as L
import numpy as np
import pytest
import torch
from e3nn import o3
from scipy.optimize import linprog
from torch import Tensor, nn

from lightning_equiv import (
    RECM,
    CartesianTensor,
    Invariant,
    IrrepsTensor,
    Point,
    Symmetry,
    as_group,
)
from lightning_equiv.strategies.recm.critic import GELU_SLOPE, Draw, LipschitzCritic, Rows, mean_squares, violation
from lightning_equiv.strategies.recm.target import INVARIANT_SIZE, target_rows
from tests.helpers import default_dtype, normal, seeded
from tests.strategies.recm_by_hand import states
from tests.strategies.relaxed_by_hand import LAYERS
from tests.strategies.toys import (
    EachStep,
    Plain,
    batches,
    loader,
    trainer,
)

IRREPS = "2x0e+1x0o+3x1o+1x1e+2x2e"


def critics_of(make: Callable[[], RECM], module: L.LightningModule) -> dict[str, LipschitzCritic]:
    """What a strategy made like this one starts from."""
    strategy = make()
    strategy.attach(module)
    copies = {name: copy.deepcopy(r.critic) for name, r in strategy.recurrences.items()}
    strategy.detach()
    return copies


# ---- u and the certificate -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_u_is_1_lipschitz(scale: float) -> None:
    torch.manual_seed(0)
    u = LipschitzCritic(12, 32, 8).double()
    with torch.no_grad():
        for p in u.parameters():
            p.mul_(scale)
        a = torch.cat([normal(500, 12, seed=i) * size for i, size in enumerate((0.01, 1.0, 30.0))])
        b = torch.cat([a[:750] + 1e-3 * normal(750, 12, seed=5), normal(750, 12, seed=6)])
        assert ((u(a) - u(b)).norm(dim=-1) <= (1 + 1e-6) * (a - b).norm(dim=-1)).all()
    slopes = torch.linalg.matrix_norm(torch.vmap(torch.func.jacrev(u))(a), 2)
    assert slopes.max() <= 1 + 1e-6
    assert slopes.max() > 0.1


def test_the_bound_on_the_slope_is_reached() -> None:
    """One hidden number at sqrt(2), where GELU is steepest: its slope there is Phi(sqrt 2) + sqrt 2 phi(sqrt 2)."""
    u = LipschitzCritic(5, 1, 1).double()
    u.inner.bias.data.fill_(math.sqrt(2))
    slope = torch.func.jacrev(u)(torch.zeros(5, dtype=torch.float64)).norm()
    assert slope.item() == pytest.approx(1, abs=1e-6)
    assert pytest.approx((1 + math.erf(1)) / 2 + math.exp(-1) / math.sqrt(math.pi), abs=1e-6) == GELU_SLOPE


C4 = as_group("C4")
PLANE = Symmetry("C4", inputs=Point(), outputs=Point(), batch=(Point(), Point()))


def everything(n: int) -> Draw:
    """All four turns of n rows."""
    return Draw(C4.elements()[torch.arange(4).repeat_interleave(n)], 4)


def lopsided() -> tuple[Tensor, Tensor]:
    """Ten rows of six pairs of points in the plane, some of them several times."""
    times = torch.tensor([3, 1, 2, 1, 1, 2])
    x = normal(6, 2) + torch.tensor([1.0, 0.5])
    y = x + normal(6, 2, seed=1) / 2
    return x.repeat_interleave(times, 0), y.repeat_interleave(times, 0)


def wasserstein(x: Tensor, y: Tensor) -> float:
    """W1 between the law of z and its average over C4, by linear programming."""
    R = [torch.tensor([[c, -s], [s, c]], dtype=torch.float64) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    z = [torch.cat([x @ r.T / x.square().mean().sqrt(), y @ r.T / y.square().mean().sqrt()], 1) / 2 for r in R]
    cost = torch.cdist(z[0], torch.cat(z)).numpy()  # from row i to turned row j
    n, m = cost.shape
    leaves, arrives = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    masses = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    return float(linprog(cost.ravel(), A_eq=np.concatenate([leaves, arrives]), b_eq=masses).fun)


def test_theta_never_exceeds_the_wasserstein_gap_whatever_u_learns() -> None:
    x, y = lopsided()
    gap = wasserstein(x, y)
    x_rows, y_rows = Rows(x, (2,), Point()), Rows(y, (2,), Point())
    squares, draw = mean_squares(x_rows, y_rows), everything(len(x))
    torch.manual_seed(0)
    u = LipschitzCritic(4, 32, 8).double()
    adversary = torch.optim.Adam(u.parameters(), lr=0.01)
    for _ in range(300):
        s = violation(u, x_rows, y_rows, draw, squares)
        theta = (u.direction() @ s).abs()
        assert theta <= s.norm() + 1e-12
        assert s.norm() <= gap + 1e-6
        adversary.zero_grad()
        (-theta).backward()
        adversary.step()
    assert theta > 0.6 * gap


def test_theta_stays_under_the_wasserstein_gap_while_a_network_trains() -> None:
    """From theta = 0, on the whole law at every step: h is an average of s, each at most as long as the gap."""
    x, y = lopsided()
    torch.manual_seed(0)
    module = Plain(nn.Sequential(nn.Linear(2, 2, bias=False)).double())
    strategy = RECM(PLANE, {"net.0": (Point(), Point())}, target=1, start="equivariant", gain=0.3)
    seen: list[float] = []
    look = EachStep(lambda _: seen.append(abs(float(strategy.branches[0].theta))))
    module.configure_optimizers = lambda: torch.optim.Adam(module.parameters(), lr=0.03)  # type: ignore[method-assign]
    trainer(strategy, look).fit(module, batches([(x, y + 5)] * 150))
    gap = wasserstein(x, y + 5)
    assert max(seen) <= gap + 1e-6
    assert max(seen) > 0.3 * gap


def test_no_u_sees_anything_in_a_symmetric_law() -> None:
    x, y = lopsided()
    turned = everything(len(x))
    x, y = (Point()(turned.elements, v.repeat(4, 1)) for v in (x, y))
    x_rows, y_rows = Rows(x, (2,), Point()), Rows(y, (2,), Point())
    for seed in range(5):
        torch.manual_seed(seed)
        u = LipschitzCritic(4, 32, 8).double()
        s = violation(u, x_rows, y_rows, everything(len(x)), mean_squares(x_rows, y_rows))
        assert s.norm() < 1e-6
        wrong = Rows(y, (2,), Invariant())
        assert violation(u, x_rows, wrong, everything(len(x)), mean_squares(x_rows, y_rows)).norm() > 1e-3


# ---- rows and draws --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("channels", [(), (4,)])
@pytest.mark.parametrize("group", ["SO(3)", "O(3)", "C4"])
def test_irreps_are_projected_as_if_they_were_moved_first(group: str, channels: tuple[int, ...]) -> None:
    shape = (*channels, o3.Irreps(IRREPS).dim)
    numbers, n, times = math.prod(shape), 5, 3
    rows, weight = Rows(normal(n, numbers), shape, IrrepsTensor(IRREPS)), normal(7, numbers, seed=1)
    draw = Draw(as_group(group).sample(2 * n * times, generator=seeded()), times)
    again = rows.values.repeat(times, 1).unflatten(1, shape)
    expected = nn.functional.linear(rows.representation(draw.elements[: len(again)], again).flatten(1), weight)
    torch.testing.assert_close(rows.projected(weight, draw), expected)
    assert (expected - rows.projected(weight).repeat(times, 1)).abs().max() > 0.1


def test_irreps_are_projected_as_with_the_matrices_of_e3nn() -> None:
    n, times, irreps = 4, 2, o3.Irreps(IRREPS)
    elements = as_group("O(3)").sample(n * times, generator=seeded())
    assert len(set(torch.linalg.det(elements.matrix).round().tolist())) == 2, "turns and reflections"
    x, W = normal(n, 2, irreps.dim), normal(7, 2, irreps.dim, seed=1)
    with default_dtype(torch.float64):
        D = irreps.D_from_matrix(elements.matrix)
    rows = Rows(x.flatten(1), (2, irreps.dim), IrrepsTensor(irreps))
    projected = rows.projected(W.flatten(1), Draw(elements, times))
    for m in range(times):
        for i in range(n):
            expected = sum(W[:, c] @ D[m * n + i] @ x[i, c] for c in range(2))
            torch.testing.assert_close(projected[m * n + i], expected)


def test_a_small_group_is_summed_in_full() -> None:
    """The state after one step, from 0: b s, with s by a loop over rows and turns."""

    def make() -> RECM:
        symmetry = Symmetry("C4", inputs="1o", outputs="1o", batch=("1o", "1o"))
        return RECM(symmetry, LAYERS, target=1, gain=0.5, start="equivariant", num_samples=1)

    x, y = (t.double() for t in (loader().dataset.x, loader().dataset.y))
    module = Plain().double()
    u = critics_of(make, module)["net.0"].double()
    strategy = make()
    after: list[Tensor] = []
    look = EachStep(lambda _: after.append(states(strategy)["net.0"]))
    trainer(strategy, look).fit(module, batches([(x, y)]))
    p, q, s = x.square().mean().sqrt(), y.square().mean().sqrt(), torch.zeros(8, dtype=torch.float64)
    for a, b in zip(x, y, strict=True):
        for k in range(4):
            c, d = math.cos(k * math.pi / 2), math.sin(k * math.pi / 2)
            R = torch.tensor([[c, -d, 0], [d, c, 0], [0, 0, 1]], dtype=torch.float64)
            z, gz = (torch.cat([v / p, w / q])[None] / math.sqrt(6) for v, w in ((a, b), (R @ a, R @ b)))
            s += (u(z) - u(gz))[0].detach() / 4 / len(x)
    torch.testing.assert_close(after[0].double(), 0.5 * s, rtol=1e-5, atol=1e-9)
    assert s.norm() > 1e-3


@pytest.mark.parametrize(("group", "draws"), [("C16", False), ("D8", False), ("C20", True), ("SO(3)", True)])
def test_only_large_groups_are_drawn_from(group: str, draws: bool) -> None:
    """What is drawn depends on the strategy's name, first weights do not."""

    def run(name: str) -> dict[str, Tensor]:
        symmetry = Symmetry(group, inputs="1o", outputs="1o", batch=("1o", "1o"))
        strategy = RECM(symmetry, LAYERS, target=1, name=name, finalize="drop")
        trainer(strategy).fit(Plain(), loader())
        return states(strategy)

    one, other = run("one"), run("other")
    assert all(torch.equal(one[layer], other[layer]) != draws for layer in one)


def test_targets_of_nodes_and_of_graphs() -> None:
    """(graphs, nodes, 3) row by row; (graphs, 3) each for all nodes of its graph, in order."""
    y = normal(4, 5, 3)
    nodes, rho = target_rows(y, IrrepsTensor("1o"), 20), IrrepsTensor("1o")
    assert torch.equal(nodes.values, y.reshape(20, 3))
    assert (nodes.shape, nodes.representation) == ((3,), rho)
    graphs = target_rows(y[:, 0], rho, 20).values
    assert torch.equal(graphs, torch.stack([y[i // 5, 0] for i in range(20)]))


def test_invariant_targets() -> None:
    one = target_rows(normal(4), Invariant(), 8).values
    assert one.shape == (8, INVARIANT_SIZE)
    assert torch.equal(one[:, 0], normal(4).repeat_interleave(2))
    assert not one[:, 1:].any()
    y = normal(4, 7)
    some = target_rows(y, Invariant(), 4).values
    assert torch.equal(some[:, :7], y)
    assert not some[:, 7:].any()
    y, other = normal(50, 100), normal(50, 100, seed=1)
    many, others = (target_rows(v, Invariant(), 50).values for v in (y, other))
    assert many.shape == (50, INVARIANT_SIZE)
    assert ((many - others).norm(dim=-1) <= (y - other).norm(dim=-1) + 1e-12).all()
    repeated = target_rows(normal(50, 32).repeat(1, 3), Invariant(), 50).values
    torch.testing.assert_close(repeated.norm(dim=-1), normal(50, 32).repeat(1, 3).norm(dim=-1))


def test_class_labels() -> None:
    labels = torch.tensor([0, 2, 31, 33])
    one_hot = target_rows(labels, Invariant(), 4).values
    assert one_hot.argmax(-1).tolist() == [0, 2, 31, 1]
    assert torch.equal(one_hot.sum(-1), torch.ones(4))
    assert torch.equal(one_hot.max(-1).values, torch.ones(4))


def test_cartesian_targets() -> None:
    y = normal(4, 3, 3)
    rows = target_rows(y, CartesianTensor(2), 8)
    assert torch.equal(rows.values, y.flatten(1).repeat_interleave(2, 0))
    g = as_group("O(3)").sample(8, generator=seeded())
    moved = rows.projected(torch.eye(9, dtype=y.dtype), Draw(g, 1)).unflatten(1, (3, 3))
    torch.testing.assert_close(moved, g.matrix @ y.repeat_interleave(2, 0) @ g.matrix.mT)


@pytest.mark.parametrize("count", [7, 3])
def test_targets_that_do_not_go_into_the_rows(count: int) -> None:
    with pytest.raises(ValueError, match=rf"{count} rows, which are no multiple of the 4 targets of shape \(4, 3\)"):
        target_rows(normal(4, 3), IrrepsTensor("1o"), count)
