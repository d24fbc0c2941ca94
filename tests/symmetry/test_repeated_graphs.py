"""What goes along where graphs are repeated: their number, names, declared edges and pointers."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_equiv import SO3, GraphNumbers, NodeIndex, Pointer, Symmetry
from tests.helpers import close, normal

NODE = torch.tensor([0, 0, 1])
IDENTITY = SO3().identity(1)


@pytest.mark.parametrize("nested", [False, True])
def test_a_whole_number_of_graphs_is_that_of_the_repeated_call(nested: bool) -> None:
    inputs: Any = {"pos": "1o", "count": None}
    data: dict[str, Any] = {"pos": normal(3, 3), "count": 2, "other": 2, "batch": NODE}
    symmetry = Symmetry("SO(3)", ({"d": inputs},) if nested else inputs, "1o", index="batch", num_graphs="count")
    bound = symmetry.bind(None, ({"d": data},)) if nested else symmetry.bind(None, (), data)
    args, kwargs = bound.move(IDENTITY, times=3)
    out = args[0]["d"] if nested else kwargs
    assert (out["count"], out["other"]) == (6, 2)
    assert data["count"] == 2
    args, kwargs = bound.arguments()
    assert (args[0]["d"] if nested else kwargs)["count"] == 2


def test_graphs_repeated_twice_over() -> None:
    symmetry = Symmetry("SO(3)", ("1o", GraphNumbers()), "1o", index=2)
    bound = symmetry.bind(None, (normal(3, 3), NODE, NODE))
    twice, once = bound.inputs.repeat(2).repeat(3).tree, bound.inputs.repeat(6).tree
    for x, y in zip(twice, once, strict=True):
        close(x, y)


def pyg_batch() -> Any:
    data = pytest.importorskip("torch_geometric.data")
    graphs = [
        data.Data(pos=normal(n, 3), edge_index=torch.arange(n).repeat(2, 1), tags={"name": f"{n} atoms"}, num_nodes=n)
        for n in (2, 3)
    ]
    return data.Batch.from_data_list(graphs)


@pytest.mark.parametrize("declared", [{}, {"edge_index": NodeIndex(), "ptr": Pointer(), "batch": GraphNumbers()}])
def test_pyg_bookkeeping_is_repeated_once_whether_declared_or_not(declared: dict[str, Any]) -> None:
    batch = pyg_batch()
    twin = type(batch).from_data_list([*batch.to_data_list()] * 3)
    bound = Symmetry("SO(3)", ({"pos": "1o", **declared},), "1o").bind(None, (batch,))
    (out,), _ = bound.move(IDENTITY, times=3)
    for key in ("edge_index", "ptr", "batch"):
        assert torch.equal(out[key], twin[key]), key
    for graph, expected in zip(out.to_data_list(), twin.to_data_list(), strict=True):
        assert graph.tags == expected.tags
        assert graph.num_nodes == expected.num_nodes
        assert all(torch.equal(graph[key], x) for key, x in expected.to_dict().items() if isinstance(x, Tensor))
    assert batch.tags == {"name": ["2 atoms", "3 atoms"]}
