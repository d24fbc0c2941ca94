"""Graphs of near points, the same from three libraries.

torch-cluster is used for points on a GPU where it is installed, plain torch for fewer than `DENSE_BELOW` points, and
scipy's cKDTree for all others: on the CPU it is as fast as torch-cluster or faster.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_equiv._checks import check_number

Backend = Literal["torch", "scipy", "torch_cluster"]

DENSE_BELOW = 200  # points; from here on a tree is faster than all distances
MAX_CLUSTER_K = 100  # most neighbours for torch-cluster's kernel on the GPU, the point itself among them


def radius_graph(
    positions: Tensor,
    radius: float,
    batch: Tensor | None = None,
    max_neighbours: int | None = None,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """The graph of all pairs of points no farther apart than `radius`.

    Args:
        positions: (n, d) coordinates.
        radius: largest distance, in the units of the positions.
        batch: (n,) index of the graph that each point belongs to, ascending; None is a single graph.
        max_neighbours: keep this many nearest sources of each target, and the graph is no longer symmetric; None
            keeps all.
        backend: the library to use; None chooses.

    Returns:
        (2, E) int64 (source, target) without loops, sorted by target, then by source.

    Raises:
        ValueError: a shape, radius or max_neighbours is out of range, a coordinate is not finite, or batch is not
            sorted.

    Examples:
        >>> radius_graph(torch.tensor([[0.0], [1.0], [2.5]]), radius=1.5).tolist()
        [[1, 0, 2, 1], [0, 1, 1, 2]]
    """
    points, graph = _check(positions, batch)
    check_number("radius", radius, above=0)
    check_number("max_neighbours", max_neighbours, least=1, whole=True, optional=True)
    backend = backend or _choose(points)
    if len(points) == 0:
        edges = torch.empty(2, 0, dtype=torch.long, device=points.device)
    elif backend == "torch":
        target, source = torch.nonzero(_distances(points, graph) <= radius, as_tuple=True)
        edges = torch.stack([source, target])
    elif backend == "scipy":
        pairs = torch.from_numpy(_tree(points, graph, gap=2 * radius).query_pairs(radius, output_type="ndarray"))
        edges = torch.cat([pairs, pairs.flip(1)]).T.to(points.device)
    else:
        edges = _cluster_radius_graph(points, radius, graph)
    return _sorted(_nearest(edges, points, max_neighbours))


def knn_graph(positions: Tensor, k: int, batch: Tensor | None = None, *, backend: Backend | None = None) -> Tensor:
    """The graph whose sources of each point are its `k` nearest others, or all others where there are fewer than `k`.

    Of sources equally far away any may be chosen. With at least k + 1 points in every graph there are exactly k edges
    per target, so that `edges[0].view(n, k)` lists the neighbours.

    Args:
        positions: (n, d) coordinates.
        k: number of sources of each target.
        batch: (n,) index of the graph that each point belongs to, ascending; None is a single graph.
        backend: the library to use; None chooses.

    Returns:
        (2, E) int64 (source, target) without loops, sorted by target, then by source.

    Raises:
        ValueError: a shape or k is out of range, a coordinate is not finite, or batch is not sorted.

    Examples:
        >>> knn_graph(torch.tensor([[0.0], [1.0], [2.5]]), k=1).tolist()
        [[1, 0, 1], [0, 1, 2]]
    """
    points, graph = _check(positions, batch)
    check_number("k", k, least=1, whole=True)
    n = len(points)
    backend = backend or _choose(points, k)
    take = min(k + 1, n)  # the point itself is the nearest, or one of those in the same place
    if n == 0:
        edges = torch.empty(2, 0, dtype=torch.long, device=points.device)
    elif backend == "torch":
        distance, source = _distances(points, graph).topk(take, largest=False)
        target = torch.arange(n, device=points.device)[:, None].expand_as(source)
        edges = torch.stack([source, target])[:, distance.isfinite()]
    elif backend == "scipy":
        extent = (points.amax(0) - points.amin(0)).double().norm().item()
        tree = _tree(points, graph, gap=2 * extent + 1)
        found = torch.from_numpy(tree.query(tree.data, range(1, take + 1))[1]).to(points.device)
        target = torch.arange(n, device=points.device)[:, None].expand_as(found)
        edges = torch.stack([found, target])[:, graph[found] == graph[target]]
    else:
        import torch_cluster

        target, source = torch_cluster.knn(points, points, take, graph, graph)
        edges = torch.stack([source, target])
    return _sorted(_nearest(edges, points, k))


def _check(positions: Tensor, batch: Tensor | None) -> tuple[Tensor, Tensor]:
    if positions.ndim != 2 or not positions.is_floating_point():
        raise ValueError(f"expected positions (n, d) in floating point, got {positions.dtype} {tuple(positions.shape)}")
    if batch is None:
        batch = torch.zeros(len(positions), dtype=torch.long, device=positions.device)
    if batch.shape != positions.shape[:1] or batch.is_floating_point():
        raise ValueError(f"expected batch of integers ({len(positions)},), got {batch.dtype} {tuple(batch.shape)}")
    if not positions.isfinite().all():
        raise ValueError("expected finite positions, got nan or inf")
    if len(batch) > 0 and (batch.diff().lt(0).any() or batch[0] < 0):
        raise ValueError("expected batch to ascend from 0 or more: sort it, and positions along with it")
    return positions.detach(), batch.long()


def _choose(points: Tensor, k: int = 0) -> Backend:
    if points.is_cuda and k < MAX_CLUSTER_K and importlib.util.find_spec("torch_cluster"):
        return "torch_cluster"
    return "torch" if len(points) < DENSE_BELOW else "scipy"


def _distances(points: Tensor, graph: Tensor) -> Tensor:
    """(n, n) distances; infinite between graphs."""
    exact = points.double()  # as in scipy
    distance = torch.cdist(exact, exact, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.masked_fill(graph[:, None] != graph, float("inf"))


def _tree(points: Tensor, graph: Tensor, gap: float) -> Any:
    """One tree for all graphs: they lie `gap` apart along one more axis."""
    from scipy.spatial import cKDTree

    return cKDTree(torch.cat([points.double(), gap * graph[:, None].double()], dim=1).cpu().numpy())


def _cluster_radius_graph(points: Tensor, radius: float, graph: Tensor) -> Tensor:
    """All edges from torch-cluster, which drops those beyond `max_num_neighbors` and fills n times as many on a GPU."""
    import torch_cluster

    limit = 64
    while True:
        edges: Tensor = torch_cluster.radius_graph(points, radius, graph, max_num_neighbors=limit)
        if limit >= len(points) or edges.numel() == 0 or int(edges[1].bincount().max()) < limit:
            return edges
        limit *= 2


def _nearest(edges: Tensor, points: Tensor, k: int | None) -> Tensor:
    """The edges without loops, and of each target the `k` shortest, in any order."""
    edges = edges[:, edges[0] != edges[1]]
    if k is None:
        return edges
    source, target = edges
    order = (points[source] - points[target]).double().norm(dim=-1).argsort(stable=True)
    edges = edges[:, order[target[order].argsort(stable=True)]]  # by target, then by length
    count = edges[1].bincount(minlength=len(points))
    start = count.cumsum(0) - count
    rank = torch.arange(edges.shape[1], device=edges.device) - start[edges[1]]
    return edges[:, rank < k]


def _sorted(edges: Tensor) -> Tensor:
    source, target = edges
    order = source.argsort(stable=True)
    return edges[:, order[target[order].argsort(stable=True)]]
