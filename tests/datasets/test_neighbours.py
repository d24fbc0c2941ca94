"""Neighbour graphs: three libraries against each other and against a loop."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

from lightning_equiv.datasets import neighbours
from lightning_equiv.datasets.neighbours import Backend, knn_graph, radius_graph

BACKENDS = [
    "torch",
    "scipy",
    pytest.param(
        "torch_cluster",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("torch_cluster") is None, reason="torch_cluster is not installed"
        ),
    ),
]
backends = pytest.mark.parametrize("backend", BACKENDS)


def loop(points: Tensor, batch: Tensor, *, radius: float = float("inf"), k: int | None = None) -> Tensor:
    """The definition."""
    edges = []
    for target, x in enumerate(points):
        lengths = sorted(
            (float((x - y).norm()), source)
            for source, y in enumerate(points)
            if source != target and batch[source] == batch[target]
        )
        edges += [(source, target) for source in sorted(s for length, s in lengths[:k] if length <= radius)]
    return torch.tensor(edges, dtype=torch.long).reshape(-1, 2).T


def cloud(n: int, graphs: int, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    batch = torch.randint(graphs, (n,), generator=generator).sort().values * 2  # every other index is unused
    return torch.randn(n, 3, generator=generator, dtype=dtype), batch


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("graphs", [1, 4])
class TestAgainstTheLoop:
    """Every library gives the edges, in the order, of the definition."""

    @pytest.mark.parametrize("max_neighbours", [None, 3])
    def test_radius(
        self, backend: Backend, dtype: torch.dtype, graphs: int, max_neighbours: int | None, generator: torch.Generator
    ) -> None:
        points, batch = cloud(90, graphs, generator, dtype)
        edges = radius_graph(points, 1.1, batch, max_neighbours, backend=backend)
        assert torch.equal(edges, loop(points, batch, radius=1.1, k=max_neighbours))

    @pytest.mark.parametrize("k", [1, 5, 30])  # 30: more than a graph of the four has
    def test_knn(self, backend: Backend, dtype: torch.dtype, graphs: int, k: int, generator: torch.Generator) -> None:
        points, batch = cloud(90, graphs, generator, dtype)
        assert torch.equal(knn_graph(points, k, batch, backend=backend), loop(points, batch, k=k))


@backends
class TestEveryLibrary:
    """What is easily got wrong."""

    def test_dense_graphs_are_not_truncated(self, backend: Backend, generator: torch.Generator) -> None:
        points = torch.rand(70, 3, generator=generator)  # 69 neighbours each, more than torch-cluster's 32
        edges = radius_graph(points, 2.0, backend=backend)
        assert edges.shape == (2, 70 * 69)
        assert torch.equal(edges, loop(points, torch.zeros(70)))

    def test_points_in_the_same_place(self, backend: Backend) -> None:
        points = torch.zeros(6, 3)
        edges = knn_graph(points, 2, backend=backend)
        assert edges[1].bincount().tolist() == [2] * 6
        assert (edges[0] != edges[1]).all()
        assert radius_graph(points, 1.0, backend=backend).shape == (2, 30)

    @pytest.mark.parametrize("n", [0, 1])
    def test_almost_nothing(self, backend: Backend, n: int) -> None:
        points = torch.zeros(n, 3)
        for edges in (radius_graph(points, 1.0, backend=backend), knn_graph(points, 3, backend=backend)):
            assert edges.shape == (2, 0)
            assert edges.dtype == torch.long

    def test_far_from_the_origin(self, backend: Backend, generator: torch.Generator) -> None:
        points, batch = cloud(60, 3, generator)
        assert torch.equal(
            knn_graph(points + 1000, 4, batch, backend=backend), knn_graph(points, 4, batch, backend=backend)
        )


@pytest.mark.skipif(importlib.util.find_spec("torch_cluster") is None, reason="torch_cluster is not installed")
@pytest.mark.parametrize("radius", [0.05, 0.5, 0.8, 9.0])
def test_room_for_neighbours_goes_by_their_number(
    radius: float, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU torch-cluster fills n max_num_neighbors numbers twice: n squared of them for a large graph."""
    import torch_cluster

    points = torch.randn(600, 3, generator=generator)
    rooms, original = [], torch_cluster.radius_graph

    def recorded(*args: object, max_num_neighbors: int) -> Tensor:
        rooms.append(max_num_neighbors)
        return original(*args, max_num_neighbors=max_num_neighbors)

    monkeypatch.setattr(torch_cluster, "radius_graph", recorded)
    edges = radius_graph(points, radius, backend="torch_cluster")
    assert torch.equal(edges, radius_graph(points, radius, backend="torch"))
    most = int(edges[1].bincount().max())
    assert most < rooms[-1] or most == 599
    assert rooms[-1] <= max(64, 2 * most)


class TestChoice:
    """Which library is used, and what is refused."""

    @pytest.mark.parametrize(("n", "tree"), [(neighbours.DENSE_BELOW - 1, False), (neighbours.DENSE_BELOW, True)])
    def test_a_tree_for_many_points(
        self, n: int, tree: bool, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        points, batch = cloud(n, 2, generator)
        expected = knn_graph(points, 4, batch, backend="torch"), radius_graph(points, 0.8, batch, backend="torch")
        calls = []
        make = neighbours._tree
        monkeypatch.setattr(neighbours, "_tree", lambda *args, **kwargs: calls.append(1) or make(*args, **kwargs))
        assert torch.equal(knn_graph(points, 4, batch), expected[0])
        assert torch.equal(radius_graph(points, 0.8, batch), expected[1])
        assert len(calls) == 2 * tree

    def test_unsorted_batch(self) -> None:
        with pytest.raises(ValueError, match="expected batch to ascend"):
            radius_graph(torch.zeros(3, 3), 1.0, torch.tensor([0, 1, 0]))
        with pytest.raises(ValueError, match="expected batch to ascend"):
            knn_graph(torch.zeros(3, 3), 1, torch.tensor([0, 1, 0]))

    @pytest.mark.parametrize("radius", [0.0, -1.0, float("nan"), float("inf")])
    def test_bad_radius(self, radius: float) -> None:
        with pytest.raises(ValueError, match="expected radius to be a finite number above 0"):
            radius_graph(torch.zeros(3, 3), radius)

    def test_bad_arguments(self) -> None:
        with pytest.raises(ValueError, match="expected k to be a whole number of at least 1, got 0"):
            knn_graph(torch.zeros(3, 3), 0)
        with pytest.raises(ValueError, match=r"expected max_neighbours to be .* at least 1 or None, got 0"):
            radius_graph(torch.zeros(3, 3), 1.0, max_neighbours=0)
        with pytest.raises(ValueError, match=r"expected positions \(n, d\) in floating point"):
            knn_graph(torch.zeros(3), 1)
        with pytest.raises(ValueError, match="expected finite positions"):
            knn_graph(torch.full((3, 3), float("nan")), 1)
        with pytest.raises(ValueError, match=r"expected batch of integers \(3,\)"):
            knn_graph(torch.zeros(3, 3), 1, torch.zeros(2, dtype=torch.long))
