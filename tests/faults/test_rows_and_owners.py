"""Which graph a row belongs to is told by its number where that has one reading, by `Per` where it has two."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_equiv import (
    SO3,
    EdgeNumbers,
    GraphNumbers,
    Invariant,
    NodeIndex,
    Per,
    Permuted,
    Pointer,
    Symmetry,
    as_representation,
    equivariance_error,
)
from lightning_equiv.representations.representation import Factor
from tests.helpers import close, normal, seeded

# Two graphs of three and two nodes, with one and four edges: five nodes, five edges.
NODE = torch.tensor([0, 0, 0, 1, 1])
EDGES = torch.tensor([[0, 3, 3, 4, 4], [1, 4, 4, 3, 3]])
OF_EDGE = NODE[EDGES[0]]


def call(**more: Tensor) -> dict[str, Tensor]:
    return {"pos": normal(5, 3), "edge_index": EDGES, "batch": NODE, **more}


def moved(inputs: dict[str, Any], data: dict[str, Any], times: int = 1, **options: Any) -> tuple[Any, dict[str, Any]]:
    g = SO3().sample(2 * times, generator=seeded())
    symmetry = Symmetry("SO(3)", (inputs,), "1o", **{"index": "batch", **options})
    (out,), _ = symmetry.bind(None, (data,)).move(g, times)
    return g.matrix, out


POS = {"pos": Per("node", "1o")}


def test_rows_with_two_readings_are_refused() -> None:
    for inputs, data in (({"pos": "1o"}, call()), ({**POS, "edge_vec": "1o"}, call(edge_vec=normal(5, 3)))):
        with pytest.raises(ValueError, match=r"as many nodes as edges.*Per\('node', ...\) or Per\('edge', ...\)"):
            moved(inputs, data)


@pytest.mark.parametrize("times", [1, 3])
def test_a_declared_owner_decides(times: int) -> None:
    data = call(shifts=normal(5, 3, seed=1), z=torch.arange(5), length=normal(5, seed=2))
    inputs = {**POS, "shifts": Per("edge", "1o"), "z": "Per('node', Invariant())", "length": Per("edge", Invariant())}
    r, out = moved(inputs, data, times)
    for k in range(times):
        rows = slice(5 * k, 5 * k + 5)
        close(out["pos"][rows], torch.einsum("nij,nj->ni", r[2 * k + NODE], data["pos"]))
        close(out["shifts"][rows], torch.einsum("nij,nj->ni", r[2 * k + OF_EDGE], data["shifts"]))
        assert torch.equal(out["z"][rows], data["z"])
        assert torch.equal(out["length"][rows], data["length"])


def test_two_readings_that_mean_the_same_need_no_word() -> None:
    """On a ring every node has an edge of its own."""
    ring = torch.stack([torch.arange(5), torch.tensor([1, 2, 0, 4, 3])])
    data = {**call(edge_vec=normal(5, 3, seed=1)), "edge_index": ring}
    r, out = moved({"pos": "1o", "edge_vec": "1o"}, data)
    for key in ("pos", "edge_vec"):
        close(out[key], torch.einsum("nij,nj->ni", r[NODE], data[key]))


def test_unsorted_nodes_as_many_as_graphs() -> None:
    data = {"pos": normal(2, 3), "batch": torch.tensor([1, 0])}
    with pytest.raises(ValueError, match=r"2 rows, and there are as many graphs as nodes"):
        moved({"pos": "1o"}, data)
    for owner, order in (("node", [1, 0]), ("graph", [0, 1])):
        r, out = moved({"pos": Per(owner, "1o")}, data)
        close(out["pos"], torch.einsum("nij,nj->ni", r[order], data["pos"]))
    r, out = moved({"pos": "1o"}, {**data, "batch": torch.tensor([0, 1])})
    close(out["pos"], torch.einsum("nij,nj->ni", r, data["pos"]))


@pytest.mark.parametrize("times", [1, 3])
def test_several_rows_a_graph(times: int) -> None:
    """MACE's unit cell: three vectors a graph, as (3 graphs, 3)."""
    data = {"pos": normal(7, 3), "batch": torch.tensor([0, 0, 0, 0, 1, 1, 1]), "cell": normal(6, 3, seed=1)}
    r, out = moved({"pos": "1o", "cell": Per("graph", "1o", rows=3)}, data, times)
    for k in range(times):
        expected = torch.cat([data["cell"][:3] @ r[2 * k].mT, data["cell"][3:] @ r[2 * k + 1].mT])
        close(out["cell"][6 * k : 6 * k + 6], expected)
    with pytest.raises(ValueError, match=r"'0.cell' has shape \(6, 3\).*each graph \(2\) or each node \(7\).*rows=3"):
        moved({"pos": "1o", "cell": "1o"}, data)
    with pytest.raises(ValueError, match=r"each graph \(8\)"):
        moved({"pos": "1o", "cell": Per("graph", "1o", rows=4)}, data)


def test_rows_of_inputs_without_graphs() -> None:
    symmetry = Symmetry("SO(3)", ("1o", Per("graph", "1o", rows=3)), "1o")
    x, cell, r = normal(4, 3), normal(12, 3, seed=1), SO3().sample(4, generator=seeded())
    (_, out), _ = symmetry.bind(None, (x, cell)).move(r)
    close(out, torch.einsum("nij,ncj->nci", r.matrix, cell.view(4, 3, 3)).reshape(12, 3))
    with pytest.raises(ValueError, match="a row for each node, but nodes of the call are not known: write `index`"):
        Symmetry("SO(3)", Per("node", "1o"), "1o").bind(None, (x,))


def test_outputs_say_whose_their_rows_are() -> None:
    def network(data: dict[str, Tensor]) -> dict[str, Tensor]:
        i, j = data["edge_index"]
        return {"force": data["pos"], "bond": data["pos"][j] - data["pos"][i]}

    outputs = {"force": Per("node", "1o"), "bond": Per("edge", "1o")}
    symmetry = Symmetry("SO(3)", (POS,), outputs, index="batch")
    errors = equivariance_error(network, (call(),), symmetry, per_irrep=True)
    assert list(errors) == ["total", "force.1o", "bond.1o"]
    assert float(errors["total"].max()) < 1e-12
    with pytest.raises(ValueError, match=r"'bond' has 5 rows"):
        equivariance_error(network, (call(),), Symmetry("SO(3)", (POS,), {**outputs, "bond": "1o"}, index="batch"))


# ---- whole numbers that point ----------------------------------------------------------------------------------------
def test_pointers_and_numbers_of_edges_are_repeated() -> None:
    data = call(ptr=torch.tensor([0, 3, 5]), triplet=torch.tensor([1, 2, 4]), other=EDGES.flip(0), owner=OF_EDGE)
    inputs = {**POS, "ptr": Pointer(), "triplet": EdgeNumbers(), "other": "NodeIndex()", "owner": GraphNumbers()}
    _, out = moved(inputs, data, times=2)
    assert out["ptr"].tolist() == [0, 3, 5, 8, 10]
    assert out["triplet"].tolist() == [1, 2, 4, 6, 7, 9]
    assert out["owner"].tolist() == [*OF_EDGE.tolist(), *(i + 2 for i in OF_EDGE.tolist())]
    assert out["other"].tolist() == [[*row, *(i + 5 for i in row)] for row in EDGES.flip(0).tolist()]


def test_whole_numbers_of_the_whole_call_say_what_they_are() -> None:
    data = call(triplet=torch.tensor([1, 2, 4]))
    with pytest.raises(
        ValueError, match=r"'0.triplet' holds whole numbers.*EdgeNumbers\(\).*Per\('call', Invariant\(\)\)"
    ):
        moved({**POS, "triplet": Invariant(shared=True)}, data)
    _, out = moved({**POS, "triplet": Per("call", Invariant())}, data, times=2)
    assert out["triplet"].tolist() == [1, 2, 4]


def test_edges_of_another_name_are_those_declared() -> None:
    data = {"pos": normal(5, 3), "bonds": EDGES[:, :3], "vec": normal(3, 3, seed=1), "batch": NODE}
    r, out = moved({"pos": "1o", "bonds": NodeIndex(), "vec": Per("edge", "1o")}, data)
    close(out["vec"], torch.einsum("nij,nj->ni", r[OF_EDGE[:3]], data["vec"]))
    del data["bonds"]
    with pytest.raises(ValueError, match=r"edges of the call are not known.*call the edges `edge_index` or NodeIndex"):
        moved({"pos": "1o", "vec": Per("edge", "1o")}, data)
    with pytest.raises(ValueError, match="points at edges, which are not known"):
        moved({"pos": "1o", "t": EdgeNumbers()}, {"pos": normal(5, 3), "t": torch.tensor([0]), "batch": NODE})


def test_edges_inside_an_argument_are_told_of_node_index() -> None:
    data = {"pos": normal(5, 3), "batch": NODE, "bonds": EDGES[:, :3]}
    with pytest.raises(
        ValueError, match=r"'0.bonds' \(shape \(2, 3\).*NodeIndex\(\) for numbers of nodes such as edges"
    ):
        moved({"pos": "1o"}, data)
    with pytest.raises(ValueError, match=r"'0.d.bonds' \(shape.*NodeIndex"):
        moved({"d": {"pos": "1o"}}, {"d": data})
    data["bonds"] = EDGES[:, :3].mT  # of as many rows as nothing has
    with pytest.raises(ValueError, match=r"'0.bonds' has shape \(3, 2\).*NodeIndex\(\) if its entries"):
        moved({"pos": "1o", "bonds": Invariant()}, data)


# ---- what may be written ---------------------------------------------------------------------------------------------
def test_what_per_refuses() -> None:
    for make, words in (
        (lambda: Per("atom", "1o"), "expected the owner of rows to be one of"),
        (lambda: Per("edge", Per("node", "1o")), "says itself whose its rows are"),
        (lambda: Per("edge", NodeIndex()), "says itself whose its rows are"),
        (lambda: Per("call", "1o"), r"expected what the whole call shares to be Invariant\(\)"),
        (lambda: Per("graph", "1o", rows=0), "expected rows to be"),
        (lambda: Permuted(1) @ Per("edge", "1o"), "write it around the whole, not inside"),
        (lambda: Factor(0, Per("edge", "1o")), "write it around the whole, not inside"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
    assert as_representation("Per('graph', Permuted(1) @ '1o', rows=3)") == Per("graph", Permuted(1) @ "1o", 3)


# ---- PyG -------------------------------------------------------------------------------------------------------------
def pyg_batch(**more: Any) -> Any:
    data = pytest.importorskip("torch_geometric.data")
    graphs = []
    for i, n in enumerate((3, 2)):
        own = i == OF_EDGE
        keys = {key: x[own] if key != "z" else x[i == NODE] for key, x in more.items()}
        edges = EDGES[:, own] - (0, 3)[i]
        graphs.append(data.Data(pos=normal(5, 3)[i == NODE], edge_index=edges, num_nodes=n, **keys))
    return data.Batch.from_data_list(graphs)


def test_pyg_says_itself_what_is_called_edge() -> None:
    batch, vec = pyg_batch(edge_vec=normal(5, 3, seed=1)), normal(5, 3, seed=1)
    r, out = moved({**POS, "edge_vec": "1o"}, batch, index=None)
    close(out.edge_vec, torch.einsum("nij,nj->ni", r[OF_EDGE], vec))
    shifts = pyg_batch(shifts=normal(5, 3, seed=1))
    with pytest.raises(ValueError, match=r"'0.shifts' has 5 rows, and there are as many nodes as edges"):
        moved({**POS, "shifts": "1o"}, shifts, index=None)
    r, out = moved({**POS, "shifts": Per("edge", "1o")}, shifts, index=None)
    close(out.shifts, torch.einsum("nij,nj->ni", r[OF_EDGE], vec))


def test_a_network_may_take_a_repeated_batch_apart() -> None:
    batch = pyg_batch(edge_vec=normal(5, 3, seed=1), z=torch.arange(5), nested=normal(5, 3))
    batch.nested = {"a": batch.nested}
    batch._slice_dict["nested"] = {"a": batch._slice_dict["nested"]}
    batch._inc_dict["nested"] = {"a": batch._inc_dict["nested"]}
    inputs = {**POS, "edge_vec": "1o", "z": Per("node", Invariant()), "nested": {"a": Per("edge", Invariant())}}
    untouched = [graph.to_dict() for graph in batch.to_data_list()]
    identity = SO3().identity(1)
    (out,), _ = Symmetry("SO(3)", (inputs,), "1o").bind(None, (batch,)).move(identity, times=3)
    graphs = out.to_data_list()
    assert len(graphs) == 6
    for i, graph in enumerate(graphs):
        for key, x in untouched[i % 2].items():
            if isinstance(x, Tensor):
                assert torch.equal(graph[key], x), key
        assert torch.equal(graph.nested["a"], untouched[i % 2]["nested"]["a"])
    assert batch.num_graphs == 2
    assert batch._slice_dict["pos"].tolist() == [0, 3, 5]


def test_pyg_keys_that_it_raises_are_declared() -> None:
    """What PyG takes for numbers of nodes when it puts graphs together would stay behind when they are repeated."""
    data = pytest.importorskip("torch_geometric.data")
    keys = {"pos": normal(3, 3), "edge_index": torch.zeros(2, 1).long(), "swap_index": torch.tensor([1, 2, 0])}
    batch = data.Batch.from_data_list([data.Data(**keys), data.Data(**keys)])
    batch.bond_batch = torch.tensor([0, 1])
    assert batch.swap_index.tolist() == [1, 2, 0, 4, 5, 3]
    for key in ("swap_index", "bond_batch"):
        with pytest.raises(ValueError, match=rf"'0.{key}' holds whole numbers that may point: write NodeIndex\(\) if"):
            moved({"pos": "1o", key: Invariant()}, batch, index=None)
    inputs = {"pos": "1o", "swap_index": NodeIndex(), "bond_batch": GraphNumbers()}
    _, out = moved(inputs, batch, times=2, index=None)
    assert out.swap_index.tolist() == [1, 2, 0, 4, 5, 3, 7, 8, 6, 10, 11, 9]
    assert out.bond_batch.tolist() == [0, 1, 2, 3]
    assert [graph.swap_index.tolist() for graph in out.to_data_list()] == [[1, 2, 0]] * 4
    _, out = moved({"pos": "1o", "swap_index": Per("node", Invariant())}, batch, times=2, index=None)
    assert out.swap_index.tolist() == [1, 2, 0, 4, 5, 3] * 2
