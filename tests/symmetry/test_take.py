"""Some inputs of a call: the same as a call that is bound from these alone, put together by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_equiv import (
    SE3,
    SO3,
    EdgeNumbers,
    GraphNumbers,
    Ignored,
    Invariant,
    NodeIndex,
    Per,
    Point,
    Pointer,
    Symmetry,
)
from lightning_equiv.symmetry.call import BoundCall, BoundTree
from lightning_equiv.symmetry.tree import leaves
from tests.contracts import draw
from tests.helpers import close, normal, seeded

ORDERS = ([2, 0], [1], [3, 1, 0, 2], [0, 1, 2, 3], [3, 2, 1])


def equal(actual: Any, expected: Any) -> None:
    """All leaves at equal places, tensors to the last bit."""
    left, right = dict(leaves(actual)), dict(leaves(expected))
    assert left.keys() == right.keys()
    for path, x in left.items():
        y = right[path]
        same = torch.equal(x, y) and x.dtype == y.dtype if isinstance(x, Tensor) else x == y
        assert same, (path, x, y)


def equal_trees(actual: BoundTree, expected: BoundTree) -> None:
    """Two trees that work alike."""
    equal(actual.tree, expected.tree)
    assert actual.inputs.num == expected.inputs.num
    for left, right in ((actual.inputs.node, expected.inputs.node), (actual.inputs.edge, expected.inputs.edge)):
        assert (left is None) == (right is None)
        assert left is None or (right is not None and torch.equal(left, right))
    owners = zip(actual.part_owners().items(), expected.part_owners().items(), strict=True)
    for (name, owner), (other, twin) in owners:
        assert name == other
        assert (owner is None and twin is None) or torch.equal(owner, twin)  # type: ignore[arg-type]
    norms, twins = (tree.squared_norms(floats(tree)) for tree in (actual, expected))
    equal(norms, twins)


def floats(tree: BoundTree) -> dict[str, Tensor]:
    return {name: part for name, part in tree.parts().items() if part.is_floating_point()}


def equal_calls(actual: BoundCall, expected: BoundCall, group: Any) -> None:
    """Two calls that work alike: as they are, moved, repeated, repeated and moved, derived."""
    n = expected.num_inputs
    equal(actual.arguments(), expected.arguments())
    equal_trees(actual.inputs, expected.inputs)
    equal_trees(actual.inputs.repeat(3), expected.inputs.repeat(3))
    for times in (1, 2):
        g = draw(group, n * times)
        equal(actual.move(g, times), expected.move(g, times))
    a = group.algebra(dtype=torch.float64)[torch.arange(n) % 3]
    equal(actual.inputs.derivative(a).tree, expected.inputs.derivative(a).tree)


# ---- without graphs --------------------------------------------------------------------------------------------------
OUT = {"force": "1o", "stress": Per("graph", "1o", rows=3), "scale": Invariant(shared=True), "*": Ignored()}
ROWS = Symmetry(
    "SO(3)",
    {"x": "1o", "deep": {"m": ("2x0e", None), "cell": Per("graph", "1o", rows=3)}, "field": Invariant(shared=True)},
    OUT,
)


def rows(chosen: list[int]) -> dict[str, Any]:
    """The inputs of these numbers, put together one by one."""
    x, m, cell = normal(4, 3), normal(4, 2, seed=1), normal(4, 3, 3, seed=2)
    return {
        "x": torch.stack([x[i] for i in chosen]),
        "deep": {"m": [torch.stack([m[i] for i in chosen]), "note"], "cell": torch.cat([cell[i] for i in chosen])},
        "field": normal(7, seed=3),
        "flag": True,
    }


def of_rows(x: Tensor, deep: dict[str, Any], field: Tensor, flag: bool) -> dict[str, Any]:
    m, cell = deep["m"][0], deep["cell"]
    y = x * m.sum(-1, keepdim=True) * field.sum()
    return {"force": y, "stress": cell + y.repeat_interleave(3, 0), "scale": field, "other": x}


@pytest.mark.parametrize("chosen", ORDERS)
@pytest.mark.parametrize("dtype", [torch.long, torch.int32])
def test_inputs_without_graphs(chosen: list[int], dtype: torch.dtype) -> None:
    index = torch.tensor(chosen, dtype=dtype)
    whole = ROWS.bind(of_rows, (), rows([0, 1, 2, 3]))
    taken, twin = whole.take(index), ROWS.bind(of_rows, (), rows(chosen))
    equal_calls(taken, twin, SO3())
    args, kwargs = whole.arguments()
    y = whole.output(of_rows(*args, **kwargs)).take(index)
    own = of_rows(**rows(chosen))
    own["other"] = y.tree["other"]  # at which nobody looks: passed on
    equal_trees(y, taken.output(own))
    equal(own["other"], kwargs["x"])


def test_an_input_is_taken_of_those_taken_and_of_those_repeated() -> None:
    whole = ROWS.bind(of_rows, (), rows([0, 1, 2, 3]))
    taken = whole.take(torch.tensor([3, 1, 0])).take(torch.tensor([2, 0]))
    equal_calls(taken, ROWS.bind(of_rows, (), rows([0, 3])), SO3())
    repeated = whole.inputs.repeat(2).take(torch.tensor([6, 1]))
    equal_trees(repeated, ROWS.bind(of_rows, (), rows([2, 1])).inputs)


def test_the_whole_call_is_as_it_was() -> None:
    data = rows([0, 1, 2, 3])
    whole = ROWS.bind(of_rows, (), data)
    (_, kwargs) = whole.take(torch.tensor([1, 0])).arguments()
    kwargs["deep"]["m"][0].zero_()
    equal(data, rows([0, 1, 2, 3]))
    equal(whole.arguments()[1], data)


def test_gradients_reach_the_whole_calls_tensors() -> None:
    x, cell = normal(4, 3).requires_grad_(), normal(12, 3, seed=1).requires_grad_()
    call = Symmetry("SO(3)", ("1o", Per("graph", "1o", rows=3)), "1o").bind(None, (x, cell))
    (y, c), _ = call.take(torch.tensor([2, 0])).arguments()
    (y.square().sum() + c.square().sum()).backward()
    kept = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)[:, None]
    close(x.grad, 2 * kept * x.detach())
    close(cell.grad, 2 * kept.repeat_interleave(3, 0) * cell.detach())


def test_a_taken_call_that_is_changed_in_place_is_noticed() -> None:
    x = normal(4, 3)
    x += 1  # which is no fault of the network
    taken = Symmetry("SO(3)", "1o", "1o").bind(None, (x,)).take(torch.tensor([1]))
    taken.inputs.check_unchanged()
    taken.arguments()[0][0].zero_()
    with pytest.raises(ValueError, match="in place"):
        taken.inputs.check_unchanged()


WRONG: dict[str, tuple[Any, str]] = {
    "too high": ([0, 4], "numbers of the 4 inputs, 0 to 3, got 4"),
    "negative": ([-1], "0 to 3, got -1"),
    "twice": ([1, 2, 1], "every input once at most, got 1 twice"),
    "none": (torch.zeros(0).long(), "at least one input"),
    "a mask": ([True, False, True, False], r"whole numbers \(inputs,\), got \(4,\) torch.bool"),
    "fractions": ([0.0], "torch.float32"),
    "a table": ([[0, 1]], r"got \(1, 2\) torch.int64"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("device", ["cpu", "meta"])  # of whose tensors nothing can be asked
def test_wrong_indices(name: str, device: str) -> None:
    value, words = WRONG[name]
    call = Symmetry("SO(3)", "1o", "1o").bind(None, (normal(4, 3).to(device),))
    with pytest.raises(ValueError, match=words):
        call.take(torch.as_tensor(value))
    with pytest.raises(ValueError, match=words):
        call.output(normal(4, 3).to(device)).take(torch.as_tensor(value))


def test_a_list_is_no_index() -> None:
    with pytest.raises(ValueError, match=r"a tensor of whole numbers \(inputs,\), got \[0, 1\]"):
        Symmetry("SO(3)", "1o", "1o").bind(None, (normal(4, 3),)).take([0, 1])  # type: ignore[arg-type]


def test_without_graphs_nothing_is_asked_of_the_device() -> None:
    """A tensor on the meta device has no values that could be waited for."""
    symmetry = Symmetry("SO(3)", ("1o", Per("graph", "1o", rows=3)), "1o")
    x, cell = torch.empty(4, 3, device="meta"), torch.empty(12, 3, device="meta")
    (y, c), _ = symmetry.bind(None, (x, cell)).take(torch.tensor([2, 0])).arguments()
    assert (y.shape, c.shape, y.device.type) == ((2, 3), (6, 3), "meta")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_inputs_on_a_gpu(place: str) -> None:
    symmetry = Symmetry("SO(3)", ("1o", Per("graph", "1o", rows=3)), "1o")
    x, cell, index = normal(4, 3), normal(12, 3, seed=1), torch.tensor([2, 0])
    call, own = symmetry.bind(None, (x.cuda(), cell.cuda())), index.to(place)
    torch.cuda.set_sync_debug_mode("error" if place == "cpu" else "default")
    try:
        (y, c), _ = call.take(own).arguments()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    (y_twin, c_twin), _ = symmetry.bind(None, (x, cell)).take(index).arguments()
    equal((y.cpu(), c.cpu()), (y_twin, c_twin))
    data, graphs = whole_graphs(0), Symmetry("SE(3)", SPEC, GRAPH_OUT, index="batch", num_graphs="count")
    moved = {key: v.cuda() if isinstance(v, Tensor) else v for key, v in data.items()}
    _, out = graphs.bind(None, (), moved).take(own).arguments()
    _, twin = graphs.bind(None, (), data).take(index).arguments()
    equal({key: v.cpu() if isinstance(v, Tensor) else v for key, v in out.items()}, twin)


# ---- graphs ----------------------------------------------------------------------------------------------------------
SPEC = {
    "pos": Per("node", Point()),
    "z": Per("node", Invariant()),
    "edge_vec": Per("edge", "1o"),
    "energy": Per("graph", Invariant()),
    "cell": Per("graph", "1o", rows=3),
    "face": NodeIndex(),
    "root": NodeIndex(),
    "pair": EdgeNumbers(),
    "owner": GraphNumbers(),
    "kinds": Per("call", Invariant()),
    "field": Invariant(shared=True),
}
GRAPH_OUT = {"force": Per("node", "1o"), "bond": Per("edge", "1o"), "energy": Per("graph", "0e"), "*": Ignored()}


def graph(number: int, nodes: int, edges: int, seed: int) -> dict[str, Tensor]:
    """A graph alone, whose numbers of nodes and edges begin at 0."""
    random, seed = seeded(seed), seed + 50 * number
    at = lambda high, *shape: torch.randint(high, shape, generator=random)  # noqa: E731
    return {
        "pos": normal(nodes, 3, seed=seed),
        "z": at(9, nodes),
        "edge_index": at(nodes, 2, edges) if nodes else torch.zeros(2, 0).long(),
        "edge_vec": normal(edges, 3, seed=seed + 1),
        "energy": normal(1, 1, seed=seed + 2),
        "cell": normal(3, 3, seed=seed + 3),
        "face": at(nodes, 3, number),
        "root": at(nodes, 1).int(),
        "pair": at(edges, 2, 2 * number) if edges else torch.zeros(2, 0).long(),
        "owner": torch.zeros(edges).long(),
    }


def graphs_of_seed(seed: int) -> list[dict[str, Tensor]]:
    """Four small graphs, some with no edges."""
    random = seeded(seed)
    sizes = torch.randint(1, 4, (4,), generator=random).tolist()
    edges = torch.randint(0, 4, (4,), generator=random).tolist()
    return [graph(i, n, e, seed) for i, (n, e) in enumerate(zip(sizes, edges, strict=True))]


def collate(graphs: list[dict[str, Tensor]], pointer: bool = False) -> dict[str, Any]:
    """Graphs side by side: the twin, one tensor and one graph after the other."""
    raised: dict[str, list[Tensor]] = {key: [] for key in (*graphs[0], "batch")}
    nodes, edges, ptr = 0, 0, [0]
    for number, one in enumerate(graphs):
        up = {"edge_index": nodes, "face": nodes, "root": nodes, "pair": edges, "owner": number}
        for key, x in one.items():
            raised[key].append(x + up.get(key, 0) if key in up else x)
        raised["batch"].append(torch.full((len(one["pos"]),), number))
        nodes, edges = nodes + len(one["pos"]), edges + len(one["edge_vec"])
        ptr.append(nodes)
    data: dict[str, Any] = {key: torch.cat(xs, -1 if xs[0].dtype == torch.long else 0) for key, xs in raised.items()}
    data |= {"field": normal(7), "kinds": torch.arange(5), "count": len(graphs), "note": "text"}
    return data | ({"ptr": torch.tensor(ptr)} if pointer else {})


def whole_graphs(seed: int) -> dict[str, Any]:
    return collate(graphs_of_seed(seed))


def message_passing(**data: Any) -> dict[str, Tensor]:
    """A network whose every graph is on its own; "count", "root" and the pairs of edges are in use."""
    i, j = data["edge_index"]
    bond = data["pos"][j] - data["pos"][i] + data["edge_vec"]
    force = torch.zeros_like(data["pos"]).index_add(0, i, bond * data["z"][j][:, None])
    k, l = data["pair"]
    energy = data["energy"] + torch.zeros(data["count"], 1, dtype=torch.float64).index_add(
        0, data["owner"][k], (bond[k] * bond[l]).sum(-1, keepdim=True)
    )
    return {
        "force": force + data["pos"] - data["pos"][data["root"].long()][data["batch"]],
        "bond": bond,
        "energy": energy,
    }


@pytest.mark.parametrize("chosen", ORDERS)
@pytest.mark.parametrize("seed", range(6))
def test_graphs(seed: int, chosen: list[int]) -> None:
    graphs, index = graphs_of_seed(seed), torch.tensor(chosen)
    number, pointer = ("ptr", True) if seed % 2 else ("count", False)
    spec = SPEC | ({"ptr": Pointer()} if pointer else {})
    symmetry = Symmetry("SE(3)", spec, GRAPH_OUT, index="batch", num_graphs=number)
    data = collate(graphs, pointer)
    whole = symmetry.bind(None, (), data)
    taken, twin = whole.take(index), symmetry.bind(None, (), collate([graphs[i] for i in chosen], pointer))
    if pointer:  # and the whole number is no longer what says how many there are
        taken = BoundCall(taken.inputs, lambda tree: ((), {**tree, "count": len(chosen)}), taken.bind_output)
        equal(taken.arguments(), twin.arguments())
    else:
        equal_calls(taken, twin, SE3())

    own = message_passing(**taken.arguments()[1])
    y = whole.output(message_passing(**data))
    close(own["energy"], y.tree["energy"][index])
    for key, x in y.take(index).tree.items():
        close(own[key], x)
    equal_trees(taken.output(own), twin.output(own))
    node = torch.cat([(data["batch"] == i).nonzero().flatten() for i in chosen])
    close(own["force"], y.tree["force"][node])

    g = draw(SE3(), 4)
    equal(whole.inputs.move(g).take(index).tree, whole.take(index).inputs.move(g[index]).tree)
    repeated = whole.inputs.repeat(2).take(torch.cat([index + 4, index.flip(0)]))
    order = [*chosen, *reversed(chosen)]
    expected = symmetry.bind(None, (), collate([graphs[i] for i in order], pointer)).inputs
    equal(repeated.tree | {"count": 0}, expected.tree | {"count": 0})
    equal(data, collate(graphs, pointer))  # the caller's tensors are as they were


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("as_one_dict", [True, False])
def test_nodes_and_edges_in_any_order(seed: int, as_one_dict: bool) -> None:
    """The twin renumbers one node and one edge after the other."""
    chosen, random = [2, 0, 3], seeded(seed)
    data = whole_graphs(seed)
    for key in ("face", "pair", "root"):
        del data[key]
    nodes = torch.randperm(len(data["pos"]), generator=random)
    edges = torch.randperm(len(data["edge_vec"]), generator=random)
    back = nodes.argsort()
    data |= {key: data[key][nodes] for key in ("pos", "z", "batch")}
    data |= {key: data[key][edges] for key in ("edge_vec", "owner")}
    data["edge_index"] = back[data["edge_index"][:, edges]]

    kept = [n for i in chosen for n in range(len(nodes)) if int(data["batch"][n]) == i]
    kept_edges = [e for i in chosen for e in range(len(edges)) if int(data["batch"][data["edge_index"][0, e]]) == i]
    expected = data | {key: data[key][kept] for key in ("pos", "z")} | {"edge_vec": data["edge_vec"][kept_edges]}
    expected["batch"] = torch.tensor([chosen.index(int(data["batch"][n])) for n in kept])
    expected["owner"] = torch.tensor([chosen.index(int(data["owner"][e])) for e in kept_edges]).long()
    pairs = [[kept.index(int(n)) for n in data["edge_index"][:, e]] for e in kept_edges]
    expected["edge_index"] = torch.tensor(pairs).long().reshape(-1, 2).T
    expected |= {"energy": data["energy"][chosen], "count": 3}
    expected["cell"] = torch.cat([data["cell"][3 * i : 3 * i + 3] for i in chosen])

    inputs = {key: SPEC[key] for key in ("pos", "z", "edge_vec", "energy", "cell", "owner", "kinds", "field")}
    symmetry = Symmetry("SE(3)", (inputs,) if as_one_dict else inputs, "1o", index="batch", num_graphs="count")

    def bind(data: dict[str, Any]) -> BoundCall:
        return symmetry.bind(None, (data,), {}) if as_one_dict else symmetry.bind(None, (), data)

    equal_calls(bind(data).take(torch.tensor(chosen)), bind(expected), SE3())


def test_an_index_that_is_said_to_be_invariant_and_a_number_by_position() -> None:
    symmetry = Symmetry("SO(3)", ("1o", Invariant(), NodeIndex(), None), "1o", index=1, num_graphs=3)
    x, edges = normal(5, 3), torch.tensor([[0, 2, 4], [1, 3, 4]])
    call = symmetry.bind(None, (x, torch.tensor([0, 0, 2, 2, 1]), edges, 4)).take(torch.tensor([3, 2, 0]))
    (y, node, pairs, count), _ = call.arguments()
    assert (node.tolist(), pairs.tolist(), count) == ([1, 1, 2, 2], [[0, 2], [1, 3]], 3)
    assert torch.equal(y, x[[2, 3, 0, 1]])
    (y, node, _, count), _ = call.move(SO3().identity(1), times=2)
    assert (node.tolist(), count) == ([1, 1, 2, 2, 4, 4, 5, 5], 6)
    (empty, *_), _ = call.take(torch.tensor([0])).arguments()  # a graph without nodes
    assert empty.shape == (0, 3)


def test_an_edge_list_alone() -> None:
    """Graphs without any tensor that has a row for each node."""
    symmetry = Symmetry("SO(3)", {"vec": Per("edge", "1o")}, "1o", index="batch")
    edges, node = torch.tensor([[3, 0, 2, 1], [2, 1, 3, 0]]), torch.tensor([0, 0, 1, 1, 2])
    call = symmetry.bind(None, (), {"vec": normal(4, 3), "edge_index": edges, "batch": node})
    _, out = call.take(torch.tensor([2, 1])).arguments()
    assert (out["edge_index"].tolist(), out["batch"].tolist()) == ([[2, 1], [1, 2]], [0, 1, 1])
    assert torch.equal(out["vec"], normal(4, 3)[[0, 2]])
    _, out = call.take(torch.tensor([2])).arguments()
    assert (out["edge_index"].shape, out["vec"].shape) == ((2, 0), (0, 3))


@pytest.mark.parametrize("key", ["edge_index", "pair"])
def test_graphs_that_are_joined_are_not_taken_apart(key: str) -> None:
    data = whole_graphs(1)
    data[key] = torch.tensor([[0], [len(data["pos"]) - 1 if key == "edge_index" else len(data["edge_vec"]) - 1]])
    if key == "edge_index":
        data = {name: data[name] for name in ("pos", "edge_index", "batch")}
    symmetry = Symmetry("SE(3)", {k: r for k, r in SPEC.items() if k in data}, "1o", index="batch")
    call = symmetry.bind(None, (), data)
    with pytest.raises(ValueError, match=rf"'{key}' joins (nodes|edges) of different graphs"):
        call.take(torch.tensor([0]))


def test_gradients_reach_the_whole_graphs() -> None:
    data = whole_graphs(2)
    keys = ("pos", "edge_vec", "cell", "energy")
    for key in keys:
        data[key].requires_grad_()
    symmetry = Symmetry("SE(3)", SPEC, GRAPH_OUT, index="batch", num_graphs="count")
    call = symmetry.bind(None, (), data)
    out = call.take(torch.tensor([2, 0])).arguments()[1]
    sum(out[key].square().sum() for key in keys).backward()
    of_edge = data["batch"][data["edge_index"][0]]
    owners = (data["batch"], of_edge, torch.arange(4).repeat_interleave(3), torch.arange(4))
    for key, owner in zip(keys, owners, strict=True):
        kept = ((owner == 0) | (owner == 2))[:, None]
        close(data[key].grad, 2 * data[key].detach() * kept)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_indices_of_graphs(name: str) -> None:
    value, words = WRONG[name]
    symmetry = Symmetry("SE(3)", SPEC, GRAPH_OUT, index="batch", num_graphs="count")
    with pytest.raises(ValueError, match=words):
        symmetry.bind(None, (), whole_graphs(0)).take(torch.as_tensor(value))


# ---- PyG -------------------------------------------------------------------------------------------------------------
PYG = {key: SPEC[key] for key in ("pos", "energy", "cell")} | {
    "z": Per("node", Invariant()),
    "edge_vec": "1o",  # which PyG says itself belongs to edges
    "swap_index": NodeIndex(),
    "triplet": EdgeNumbers(),
    "nested": {"a": Per("edge", Invariant())},
}


def pyg_graphs(seed: int) -> list[Any]:
    """The same graphs, with names, labels that nobody reads, and numbers of edges that a class of its own raises."""
    data = pytest.importorskip("torch_geometric.data")

    class Molecule(data.Data):  # type: ignore[misc, name-defined]
        def __inc__(self, key: str, value: Any, *args: Any) -> Any:
            return self.edge_index.shape[1] if key == "triplet" else super().__inc__(key, value, *args)

    graphs = []
    for number, one in enumerate(graphs_of_seed(seed)):
        keys = {key: one[key] for key in ("pos", "energy", "cell", "z", "edge_vec", "edge_index")}
        own = {"swap_index": one["root"].long(), "triplet": one["pair"][0], "nested": {"a": one["edge_vec"][:, :1]}}
        names = {"name": f"molecule {number}", "tags": {"kind": str(number)}, "label": normal(2, 1, seed=number)}
        graphs.append(Molecule(**keys, **own, **names, num_nodes=len(one["pos"])))
    return graphs


def equal_graphs(actual: Any, expected: Any) -> None:
    keys = set(expected.keys()) - {"label"}
    equal({key: actual[key] for key in keys}, {key: expected[key] for key in keys})
    assert set(actual.keys()) == set(expected.keys())
    assert actual.num_nodes == expected.num_nodes


@pytest.mark.parametrize("chosen", ORDERS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("declared", [{}, {"edge_index": NodeIndex(), "ptr": Pointer(), "batch": GraphNumbers()}])
def test_pyg_batches(seed: int, chosen: list[int], declared: dict[str, Any]) -> None:
    graphs = pyg_graphs(seed)
    from torch_geometric.data import Batch

    batch, twin = Batch.from_data_list(graphs), Batch.from_data_list([graphs[i] for i in chosen])
    symmetry = Symmetry("SE(3)", (PYG | declared, "1o"), {"force": Per("node", "1o")})
    index = torch.tensor(chosen)
    whole = symmetry.bind(None, (batch, normal(4, 3)))
    taken, alone = whole.take(index), symmetry.bind(None, (twin, normal(4, 3)[chosen]))
    g = draw(SE3(), 2 * len(chosen))
    for call, expected in (
        (taken.arguments(), alone.arguments()),
        (taken.move(g[: len(chosen)]), alone.move(g[: len(chosen)])),
        (taken.move(g, 2), alone.move(g, 2)),
        (whole.take(torch.arange(4)).take(index).arguments(), alone.arguments()),
    ):
        (out, field), (out_twin, field_twin) = call[0], expected[0]
        assert torch.equal(field, field_twin)
        equal_graphs(out, out_twin)
        assert out.num_graphs == out_twin.num_graphs == len(field)
        with pytest.raises(ValueError, match=r"'0.label'.*not named by the symmetry's `inputs`"):
            out.label.sum()
        for own, own_twin in zip(out.to_data_list(), out_twin.to_data_list(), strict=True):
            equal_graphs(own, own_twin)
        equal_graphs(out[len(chosen) - 1], out_twin[len(chosen) - 1])
    for own, i in zip(taken.arguments()[0][0].to_data_list(), chosen, strict=True):
        equal_graphs(own, graphs[i])
    equal_trees(taken.output({"force": twin.pos}), alone.output({"force": twin.pos}))
    equal_graphs(batch, Batch.from_data_list(graphs))  # the caller's is as it was
    assert batch.num_graphs == 4
    assert symmetry.bind(None, taken.arguments()[0]).num_inputs == len(chosen)  # which can be bound again


def test_pyg_graphs_taken_of_repeated_ones() -> None:
    graphs = pyg_graphs(1)
    from torch_geometric.data import Batch

    whole = Symmetry("SE(3)", (PYG,), "1o").bind(None, (Batch.from_data_list(graphs),))
    (out,) = whole.inputs.repeat(3).take(torch.tensor([9, 2, 4])).repeat(2).tree
    assert out.num_graphs == 6
    equal_graphs(out, Batch.from_data_list([graphs[i] for i in (1, 2, 0)] * 2))
    for own, i in zip(out.to_data_list(), (1, 2, 0, 1, 2, 0), strict=True):
        equal_graphs(own, graphs[i])


def test_a_pyg_tensor_of_the_whole_call_belongs_to_no_graph() -> None:
    graphs = pyg_graphs(1)
    from torch_geometric.data import Batch

    batch = Batch.from_data_list(graphs)
    spec = PYG | {"label": Per("call", Invariant())}
    (out,), _ = Symmetry("SE(3)", (spec,), "1o").bind(None, (batch,)).take(torch.tensor([2])).arguments()
    assert torch.equal(out.label, batch.label)
    assert "label" not in out.to_data_list()[0]


def test_pyg_data_as_one_graph_and_with_a_batch_by_hand() -> None:
    data = pytest.importorskip("torch_geometric.data")
    x, edges = normal(5, 3), torch.tensor([[0, 4, 2], [1, 4, 3]])
    symmetry = Symmetry("SE(3)", {"pos": Point()}, "1o")
    one = symmetry.bind(None, (data.Data(pos=x, edge_index=edges, num_nodes=5),))
    (out,), _ = one.take(torch.tensor([0])).arguments()
    assert "batch" not in out
    assert torch.equal(out.pos, x)
    assert torch.equal(out.edge_index, edges)
    with pytest.raises(ValueError, match="numbers of the 1 inputs, 0 to 0, got 1"):
        one.take(torch.tensor([1]))
    graph = data.Data(pos=x, edge_index=edges, batch=torch.tensor([1, 1, 0, 0, 2]), num_nodes=5)
    (out,), _ = symmetry.bind(None, (graph,)).take(torch.tensor([2, 1])).arguments()
    assert (out.batch.tolist(), out.edge_index.tolist(), out.num_nodes) == ([0, 1, 1], [[0, 1], [0, 2]], 3)
    assert torch.equal(out.pos, x[[4, 0, 1]])
    assert graph.num_nodes == 5
