"""The three problems of examples/benchmarks/relaxation: their networks, projections and statistics, against twins."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from examples.benchmarks.relaxation import eigenvalue, hidden, sets
from examples.benchmarks.relaxation.common import ACTIVATIONS, Cosine, MeanSquaredError, mcnemar, spectral_norm, train
from examples.benchmarks.relaxation.common import wilson as wilson_interval
from examples.benchmarks.relaxation.orbits import cyclic, search, symmetric_3
from examples.benchmarks.relaxation.relabelling import (
    assign_orbits,
    distance,
    project,
    project_circulant,
    relabel,
    relabel_circulant,
)
from lightning_equiv import BlockNormalizedAdam


def circulant(u):
    return np.stack([np.roll(u, i) for i in range(len(u))])


def invariant(alpha, beta, n):
    return alpha * np.eye(n) + beta


def test_relabelling_is_that_of_brute_force():
    random = np.random.default_rng(0)
    everything = np.array(list(itertools.permutations(range(5))))
    for _ in range(300):
        W = random.standard_normal((5, 5)) + random.standard_normal()
        shuffled = W[everything]
        diagonal = np.trace(shuffled, axis1=1, axis2=2) / 5
        other = (W.sum() - 5 * diagonal) / 20
        best = (diagonal - other)[:, None, None] * np.eye(5) + other[:, None, None]
        distances = ((shuffled - best) ** 2).sum((1, 2))
        pi = relabel(W)
        assert sorted(pi) == list(range(5))
        assert np.sum((W[pi] - invariant(*project(W[pi]), 5)) ** 2) == pytest.approx(min(distances), abs=1e-9)


def test_projections_are_averages_over_the_group():
    W = np.random.default_rng(0).standard_normal((4, 4))
    all_of_it = [np.eye(4)[list(pi)] for pi in itertools.permutations(range(4))]
    assert np.allclose(np.mean([g @ W @ g.T for g in all_of_it], axis=0), invariant(*project(W), 4))
    shifts = [np.roll(np.eye(4), k, axis=0) for k in range(4)]
    assert np.allclose(np.mean([g @ W @ g.T for g in shifts], axis=0), circulant(project_circulant(W)))


def test_relabelling_circulants_undoes_a_shuffle_and_seldom_misses_the_best():
    random = np.random.default_rng(0)
    everything = np.array(list(itertools.permutations(range(5))))
    missed = 0
    for _ in range(100):
        W = random.standard_normal((5, 5))
        back = [np.roll(W, -i, axis=1) for i in range(5)]
        sizes = np.linalg.norm(np.mean([back[i][everything[:, i]] for i in range(5)], axis=0), axis=1)
        missed += np.linalg.norm(project_circulant(W[relabel_circulant(W)])) < max(sizes) - 1e-9
        C = circulant(random.standard_normal(5))[random.permutation(5)]
        assert np.allclose(C[relabel_circulant(C)], circulant(project_circulant(C[relabel_circulant(C)])))
    assert missed <= 5


def test_orbits_are_told_apart():
    random = np.random.default_rng(0)
    for _ in range(20):
        whole = np.concatenate([
            np.concatenate([invariant(a, b, 5), np.full((5, 1), c), np.full((5, 1), d)], 1)
            for a, b, c, d in random.standard_normal((3, 4))
        ])  # fmt: skip
        shuffled = whole[random.permutation(15)]
        order, left = assign_orbits(shuffled, 3)
        assert sorted(order) == list(range(15))
        assert left == pytest.approx(distance(shuffled[order], 5), abs=1e-9)
        assert left < 1e-9


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_by_hand(activation):
    generator = torch.Generator().manual_seed(0)
    W, a, c, x, y = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((2, 3, 4), (2, 3), (2,), (2, 4, 6), (2, 6))
    )
    act = {"relu": torch.relu, "tanh": torch.tanh, "identity": lambda z: z}[activation]
    expected = ((a[:, None] @ act(W @ x))[:, 0] + c[:, None] - y).square().mean(1)
    assert torch.allclose(MeanSquaredError.apply(W, a, c, x, y, activation), expected)
    free = [v.requires_grad_() for v in (W, a, c)]
    assert torch.autograd.gradcheck(lambda *p: MeanSquaredError.apply(*p, x, y, activation), free)


def test_block_normalised_steps_are_those_of_the_library():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(7, 3).double(), torch.randn(7, 2).double()
    p = {name.replace(".", ""): value.detach()[None] for name, value in net.named_parameters()}

    def loss(p, step):
        h = torch.tanh(x @ p["0weight"].mT + p["0bias"][:, None])
        return (h @ p["2weight"].mT + p["2bias"][:, None] - y).square().mean((1, 2))

    ours = train(p, loss, range(5), Cosine(torch.tensor([0.01]), 5), blocks=("0weight", "2weight"))
    optimizer = BlockNormalizedAdam(net, lr=0.01)
    for step in range(5):
        optimizer.param_groups[0]["lr"] = Cosine(0.01, 5).at(step)
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        optimizer.step()
    for name, value in net.named_parameters():
        assert torch.allclose(ours[name.replace(".", "")][0], value, atol=3e-4), name
    plain = train(p, loss, range(5), Cosine(0.01, 5))
    assert not torch.allclose(plain["0weight"][0], net[0].weight, atol=3e-3)


def test_spectral_norms():
    matrices = torch.randn(50, 8, 12, generator=torch.Generator().manual_seed(0))
    ratio = spectral_norm(matrices) / torch.linalg.matrix_norm(matrices, 2, keepdim=True)
    assert ratio.max() < 1.001
    assert ratio.min() > 0.9
    assert ratio.median() > 0.98


def test_the_sets_networks_are_invariant_and_projections_take_what_they_say():
    cell = {"control": "", "n": 5, "k": 2, "start": "wrong", "rate": 0.01, "size": 1.0, "noise": "relative"}
    p = sets.start_of(cell, 3, torch.Generator().manual_seed(0))
    W, a, _ = sets.build(p, n=5)
    x = torch.cat([torch.randn(3, 5, 7), torch.ones(3, 1, 7)], 1)
    moved = torch.cat([x[:, torch.randperm(5)], x[:, 5:]], 1)
    assert torch.allclose(a[:, None] @ torch.relu(W @ x), a[:, None] @ torch.relu(W @ moved), atol=1e-5)
    noise = {"W1": torch.zeros(3, 10, 5), "W2": torch.zeros(3, 10)}
    shuffled = torch.randperm(5)
    noise["W1"] = (W[..., :5].view(3, 2, 5, 5)[:, :, shuffled] - W[..., :5].view(3, 2, 5, 5)).view(3, 10, 5)
    for kind in ("relabel", "across"):
        back = sets.projected({**p, **noise}, kind, 5)
        x_in = [torch.relu(m[0] @ x) for m in (sets.build(back, n=5), (W,))]
        a_in = sets.build(back, n=5)[1], a
        for one in range(3):
            assert torch.allclose(a_in[0][one] @ x_in[0][one], a_in[1][one] @ x_in[1][one], atol=1e-4), kind
    assert not torch.allclose(sets.projected({**p, **noise}, "nearest", 5)["alpha"], p["alpha"], atol=1e-3)


def test_the_eigenvalue_network_is_invariant_until_it_is_relaxed():
    p = {name: value.double() for name, value in eigenvalue.start_of(4, True, 2).items()}
    for name in p:
        p[name] = p[name] + 0.1 * torch.randn(p[name].shape, dtype=torch.float64)
    x = torch.randn(2, 16, 3, 5, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    moved = torch.einsum("ij,spjb->spib", turn, x)
    assert torch.allclose(eigenvalue.predicted(p, x), eigenvalue.predicted(p, moved))
    assert not torch.allclose(eigenvalue.predicted(p, x, 1.0), eigenvalue.predicted(p, moved, 1.0), atol=1e-3)


@pytest.mark.parametrize("group", [cyclic(4), symmetric_3()], ids=lambda g: g.name)
def test_the_search_finds_the_orbits_of_a_disguised_network(group):
    random = np.random.default_rng(0)
    n = group.matrices.shape[1]
    quotient = next(kind for kind in group.subgroups if "/" in kind)
    for kinds in (["regular"], ["regular", "regular"], ["regular", quotient], [quotient, quotient]):
        rows, a = [], []
        for kind, w in zip(kinds, [[1.0, -0.3, 0.4, -1.2], [-0.2, 0.9, 1.6, 0.3]], strict=False):
            w, b, out = group.projection(kind) @ w[:n], 0.5 * random.standard_normal(), 1.0
            for g in group.representatives(kind):
                for part in (0.3, 0.7):  # each neuron twice, with other sizes
                    size = random.uniform(0.5, 2)
                    rows.append(size * np.append(group.matrices[g] @ w, b))
                    a.append(part * out / size)
        W, a = np.array(rows), np.array(a)
        order = random.permutation(len(a))
        found = search(group, W[order], a[order], width=4 * group.order)
        assert sorted(o.kind for o in found.orbits) == sorted(kinds)
        assert found.cost < 1e-9
        layers, p, _ = hidden.found_parameters(
            group, *(torch.tensor(v[order], dtype=torch.float32)[None] for v in (W, a)), torch.zeros(1), 4 * group.order
        )
        x = torch.cat([torch.randn(1, n, 20), torch.ones(1, 1, 20)], 1)
        strict = layers.build(p)
        same = torch.tensor(a, dtype=torch.float32) @ torch.relu(torch.tensor(W, dtype=torch.float32) @ x[0])
        assert torch.allclose((strict[1][:, None] @ torch.relu(strict[0] @ x))[0, 0] + strict[2], same, atol=1e-4)


def test_a_turned_sign_and_what_is_linear_are_no_orbits():
    group, w, b = cyclic(4), np.array([1.0, -0.3, 0.4, -1.2]), 0.2
    W, a = np.array([np.append(g @ w, b) for g in group.matrices]), np.ones(4)
    z, far = W[0].copy(), 6 * np.linalg.norm(w)
    up = np.array([0, 0, 0, 0, far])
    W[0] = -z  # relu(z) = relu(-z) + z, where z is a neuron that is always on, less what it is moved by
    W, a, c = np.vstack([W, z + up, z - up]), np.append(a, [1.0, 1.0]), -far
    layers, p, (found,) = hidden.found_parameters(
        group, *(torch.tensor(v, dtype=torch.float32)[None] for v in (W, a)), torch.tensor([c]).float(), 8
    )
    assert [o.kind for o in found.orbits] == ["regular"]
    x = torch.cat([torch.randn(1, 4, 50), torch.ones(1, 1, 50)], 1)
    V, out, constant = layers.build(p)
    teacher = sum(torch.relu(torch.tensor(np.append(g @ w, b)).float() @ x[0]) for g in group.matrices)
    assert torch.allclose((out[:, None] @ torch.relu(V @ x))[0, 0] + constant, teacher, atol=1e-4)


def test_statistics():
    interval = binomtest(7, 20).proportion_ci(method="wilson")
    assert wilson_interval(7, 20) == pytest.approx((interval.low, interval.high), abs=1e-6)
    arm, reference = np.array([True] * 6 + [False] * 4), np.array([False] * 6 + [True] + [False] * 3)
    assert mcnemar(arm, reference) == pytest.approx(2 * (1 + 7) / 2**7)
