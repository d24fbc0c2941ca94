import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from e3nn import o3
from torch import Tensor, nn

import lightning_equiv
from lightning_equiv import (
    E3,
    O3,
    SE3,
    SO3,
    Custom,
    Cyclic,
    Factor,
    Image,
    Invariant,
    IrrepsTensor,
    NodeIndex,
    Permutation,
    Permuted,
    Point,
    Symmetry,
    as_representation,
)
from lightning_equiv.symmetry.graphs import Inputs
from lightning_equiv.symmetry.tree import children, is_graph, lookup, map_tensors, tensors
from tests.contracts import draw
from tests.helpers import close, normal

N = 4  # inputs; graphs are 3, with 2, 1 and 3 nodes
NODE = torch.tensor([0, 0, 1, 2, 2, 2])
EDGES = torch.tensor([[0, 1, 3, 4, 5], [1, 0, 4, 5, 3]])


def turned(g, x):
    return torch.einsum("nij,n...j->n...i", g.matrix, x)


def repeated(bound, times):
    """The call `times` times over, where it is."""
    return bound.unpack(bound.inputs.repeat(times).tree)


class Frame(NamedTuple):
    x: Tensor
    m: Tensor


@dataclass
class Sample:
    x: Tensor
    m: Tensor
    name: str = "water"
    doubled: Tensor = field(init=False)

    def __post_init__(self):
        assert self.x.shape[-1] == 3  # would fail on anything that is not the tensor
        self.doubled = 2 * self.x


@dataclass(frozen=True)
class Frozen:
    x: Tensor
    m: Tensor


@dataclass(frozen=True)
class Case:
    """Inputs as `Symmetry` takes them, a call that they describe, and where its vectors `x` and masses `m` are."""

    inputs: Any
    args: tuple
    kwargs: dict

    def symmetry(self):
        return Symmetry("SO(3)", self.inputs, "1o")


X, M = normal(N, 3), normal(N, 1, seed=4)
XM = {"x": "1o", "m": "0e"}
CALLS = {
    "one argument": Case("1o", (X,), {}),
    "irreps object": Case(o3.Irreps("1o"), (X,), {}),
    "tuple of irreps objects": Case((o3.Irreps("1o"), o3.Irrep("0e")), (X, M), {}),
    "tuple": Case(("1o", "0e"), (X, M), {}),
    "list": Case(["1o", "0e"], (X, M), {}),
    "tuple, keywords": Case(("1o", "0e"), (), {"m": M, "x": X}),
    "tuple, one keyword": Case(("1o", "0e"), (X,), {"m": M}),
    "tuple, other things": Case(("1o", None, "0e"), (X, "adjective", M, None, 3), {}),
    "tuple, gap before a keyword": Case(("1o", None, "0e"), (X,), {"third": M}),
    "dict, keywords": Case(XM, (), {"m": M, "x": X}),
    "dict, positions": Case(XM, (X, M), {}),
    "dict, both": Case(XM, (X,), {"m": M, "flag": True}),
    "one dict": Case(XM, ({"x": X, "m": M, "name": "water"},), {}),
    "one dict by keyword": Case(XM, (), {"x": {"x": X, "m": M}}),
    "one dict by name": Case({"x": {"y": "1o", "m": "0e"}}, ({"y": X, "m": M},), {}),
    "one dict by name and keyword": Case({"x": {"y": "1o"}}, (), {"x": {"y": X}}),
    "one dict by position": Case((XM,), ({"x": X, "m": M},), {}),
    "nested": Case({"x": {"a": ("1o", {"b": "1o"}), "c": "0e"}}, (), {"x": {"a": [X, {"b": 2 * X}], "c": M}}),
    "nested tuple": Case((("1o", "0e"), "1o"), ((X, M), X), {}),
    "named tuple": Case((("1o", "0e"),), (Frame(X, M),), {}),
    "dataclass": Case(({**XM, "doubled": "1o"},), (Sample(X, M),), {}),
    "one dataclass": Case({**XM, "doubled": "1o"}, (Sample(X, M),), {}),
    "frozen dataclass": Case(XM, (Frozen(X, M),), {}),
    "callable": Case((turned, Invariant()), (X, M), {}),
    "shared": Case(("1o", Invariant(shared=True)), (X, torch.ones(7)), {}),
    "without dimensions": Case(("1o", Invariant()), (X, torch.tensor(3.0)), {}),
}


def network(x, m=None, third=None, flag=False):
    """Only its parameters' names are asked for."""


def flat(tree):
    return dict(tensors(tree))


def call(case):
    return copy.deepcopy(case.args), copy.deepcopy(case.kwargs)


@pytest.mark.parametrize("name", CALLS)
def test_calls(name):
    case = CALLS[name]
    symmetry, (args, kwargs) = case.symmetry(), call(case)
    g = draw(SO3(), N)
    bound = symmetry.bind(network, args, kwargs)
    assert bound.num_inputs == N
    moved_args, moved_kwargs = bound.move(g)
    assert type(moved_args) is tuple
    assert list(moved_kwargs) == list(kwargs)
    before, after = flat((args, kwargs)), flat((moved_args, moved_kwargs))
    assert list(before) == list(after)
    for path, x in before.items():
        assert torch.equal(x, flat((case.args, case.kwargs))[path])  # the caller's tensors are as they were
        close(after[path], turned(g, x) if x.shape[-1:] == (3,) else x)
    assert [type(a) for a in moved_args] == [type(a) for a in args]
    assert [a for a in moved_args if isinstance(a, str | int)] == [a for a in args if isinstance(a, str | int)]
    assert "flag" not in kwargs or moved_kwargs["flag"] is True


@pytest.mark.parametrize("name", CALLS)
def test_repeated_calls(name):
    case = CALLS[name]
    symmetry, (args, kwargs) = case.symmetry(), call(case)
    bound = symmetry.bind(network, args, kwargs)
    again = repeated(bound, 3)
    assert symmetry.bind(network, *again).num_inputs == 3 * N
    before, after = flat((args, kwargs)), flat(again)
    for path, x in before.items():
        assert torch.equal(x, flat((case.args, case.kwargs))[path])
        shared = x.shape[:1] != (N,)
        assert torch.equal(after[path], x if shared else torch.cat([x] * 3))


NEED_NAMES = (
    "tuple, keywords",
    "tuple, one keyword",
    "tuple, gap before a keyword",
    "dict, positions",
    "dict, both",
    "one dict by name",
)


@pytest.mark.parametrize("name", [name for name in CALLS if name not in NEED_NAMES])  # of parameters, of the network
def test_one_element_moves_every_input(name):
    case, g = CALLS[name], draw(SO3(), 1)
    one, many = (flat(case.symmetry().move_inputs(h, *call(case))) for h in (g, g.repeat(N)))
    assert list(one) == list(many)
    for path in one:
        close(one[path], many[path])


def test_names_come_from_forward_of_a_module():
    class Network(nn.Module):
        def forward(self, x, m):
            return x * m

    symmetry = Symmetry("SO(3)", ("1o", "0e"), "1o")
    for module in (Network(), torch.compile(Network())):
        bound = symmetry.bind(module, (), {"m": M, "x": X})
        assert [(t.path, t.x is x) for t, x in zip(bound.inputs.tensors, (X, M), strict=True)] == [
            ("0", True),
            ("1", True),
        ]
        assert bound.unpack(bound.inputs.tree) == ((), {"m": M, "x": X})


def test_moved_outputs_and_batches():
    symmetry = Symmetry("SO(3)", "1o", {"force": "1o", "energy": Invariant()}, batch=("1o", {"y": "1o"}, "0e"))
    g = draw(SO3(), N)
    out = symmetry.move_outputs(g, {"force": X, "energy": M, "note": "text"})
    close(out["force"], turned(g, X))
    assert out["energy"] is M
    assert out["note"] == "text"
    x, labels, m = symmetry.move_batch(g, (X, {"y": 2 * X}, M))
    close(x, turned(g, X))
    close(labels["y"], turned(g, 2 * X))
    close(m, M)
    with pytest.raises(ValueError, match="expected 4 elements"):
        symmetry.move_batch(draw(SO3(), 3), (X, {"y": 2 * X}, M))


def test_equivariant_network_commutes():
    symmetry = Symmetry("E(3)", (Point(), "0e"), Point())
    g = draw(E3(), N)
    x, m = normal(N, 5, 3), normal(N, 5, 1).abs()
    centre = lambda x, m: (m * x).sum(1) / m.sum(1)  # noqa: E731
    args, _ = symmetry.move_inputs(g, (x, m))
    close(centre(*args), symmetry.move_outputs(g, centre(x, m)))


# ---- graphs ----------------------------------------------------------------------------------------------------------
def graph_call():
    return {
        "pos": normal(6, 3),
        "z": torch.arange(6),
        "edge_index": EDGES.clone(),
        "edge_vec": normal(5, 3, seed=5),
        "energy": normal(3, 1, seed=6),
        "graph": NODE.clone(),
    }


GRAPH = {"pos": Point(), "z": Invariant(), "edge_vec": "1o", "energy": "0e"}


def check_moved_graph(g, before, after):
    for key in ("z", "energy", "edge_index"):
        assert torch.equal(after[key], before[key])
    for i, owner in enumerate(NODE.tolist()):
        close(after["pos"][i], g.matrix[owner] @ before["pos"][i] + g.translation[owner])
    for e, node in enumerate(EDGES[0].tolist()):
        close(after["edge_vec"][e], g.matrix[NODE[node]] @ before["edge_vec"][e])


def check_repeated_graph(before, after, times=3):
    """The twin: the same graphs put side by side by hand."""
    for key in ("pos", "z", "edge_vec", "energy"):
        assert torch.equal(after[key], torch.cat([before[key]] * times))
    assert after["edge_index"].tolist() == [[i + 6 * k for k in range(times) for i in row] for row in EDGES.tolist()]


@pytest.mark.parametrize("as_one_dict", [True, False])
def test_graphs_named_by_index(as_one_dict):
    symmetry = Symmetry("SE(3)", GRAPH, "1o", index="graph")
    g, before = draw(SE3(), 3), graph_call()
    args, kwargs = ((before,), {}) if as_one_dict else ((), before)
    moved_args, moved_kwargs = symmetry.move_inputs(g, args, kwargs)
    after = moved_args[0] if as_one_dict else moved_kwargs
    check_moved_graph(g, graph_call(), after)
    assert torch.equal(after["graph"], NODE)
    assert all(torch.equal(before[key], value) for key, value in graph_call().items())

    bound = symmetry.bind(None, args, kwargs)
    again_args, again_kwargs = repeated(bound, 3)
    again = again_args[0] if as_one_dict else again_kwargs
    check_repeated_graph(graph_call(), again)
    assert again["graph"].tolist() == [k * 3 + i for k in range(3) for i in NODE.tolist()]
    side_by_side, laid_out = bound.inputs.inputs.repeat(3), symmetry.bind(None, again_args, again_kwargs).inputs.inputs
    assert side_by_side.num == laid_out.num == 9
    assert torch.equal(side_by_side.node, laid_out.node)
    assert torch.equal(side_by_side.edge, laid_out.edge)
    assert all(torch.equal(before[key], value) for key, value in graph_call().items())


def test_graphs_by_position():
    symmetry = Symmetry("SE(3)", (Point(), NodeIndex()), Point(), index=2)
    g, x = draw(SE3(), 3), normal(6, 3)
    (moved, edges, node), _ = symmetry.move_inputs(g, (x, EDGES, NODE))
    close(moved, torch.stack([g.matrix[o] @ x[i] + g.translation[o] for i, o in enumerate(NODE)]))
    assert edges is EDGES
    assert node is NODE
    bound = symmetry.bind(None, (x, EDGES, NODE))
    again, _ = repeated(bound, 2)
    assert again[1].tolist() == [row + [i + 6 for i in row] for row in EDGES.tolist()]
    assert again[2].tolist() == [*NODE.tolist(), *(i + 3 for i in NODE.tolist())]
    out = bound.move_output(g, x)
    close(out, moved)


def test_unsorted_graphs():
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    symmetry = Symmetry("SO(3)", ("1o",), "1o", index=1)
    g, x = draw(SO3(), 3), normal(6, 3)
    (moved, _), _ = symmetry.move_inputs(g, (x[order], NODE[order]))
    (sorted_moved, _), _ = symmetry.move_inputs(g, (x, NODE))
    close(moved, sorted_moved[order])


def pyg_batch(**more):
    from torch_geometric.data import Batch, Data

    before, graphs = graph_call(), []
    for i, n in enumerate([2, 1, 3]):
        nodes, edges = i == NODE, NODE[EDGES[0]] == i
        first = int(nodes.nonzero()[0])
        part = {key: before[key][nodes] for key in ("pos", "z")}
        extra = {key: value(n) for key, value in more.items()}
        graphs.append(
            Data(
                **part,
                edge_index=EDGES[:, edges] - first,
                edge_vec=before["edge_vec"][edges],
                energy=before["energy"][i : i + 1],
                **extra,
            )
        )
    return Batch.from_data_list(graphs)


@pytest.mark.parametrize(
    "place", ["inputs is the graph's dict", "inputs is a tuple", "by keyword", "with another argument"]
)
def test_pyg_batches(place):
    pytest.importorskip("torch_geometric")
    batch, untouched = pyg_batch(name=lambda n: f"{n} atoms"), pyg_batch()
    tuple_spec = {"inputs is a tuple": (GRAPH,), "with another argument": (GRAPH, "0e")}
    symmetry = Symmetry("SE(3)", tuple_spec.get(place, GRAPH), "1o")
    args = (batch, normal(3, 1)) if place == "with another argument" else (batch,)
    args, kwargs = ((), {"data": batch}) if place == "by keyword" else (args, {})
    g = draw(SE3(), 3)
    moved_args, moved_kwargs = symmetry.move_inputs(g, args, kwargs)
    moved = moved_kwargs["data"] if place == "by keyword" else moved_args[0]
    assert type(moved) is type(batch)
    check_moved_graph(g, graph_call(), moved)
    assert moved.name == ["2 atoms", "1 atoms", "3 atoms"]

    again_args, again_kwargs = repeated(symmetry.bind(None, args, kwargs), 3)
    again = again_kwargs["data"] if place == "by keyword" else again_args[0]
    check_repeated_graph(graph_call(), again)
    from torch_geometric.data import Batch

    twin = Batch.from_data_list([graph for _ in range(3) for graph in untouched.to_data_list()])
    assert torch.equal(again.batch, twin.batch)
    assert torch.equal(again.ptr, twin.ptr)
    assert again.num_graphs == twin.num_graphs == 9
    assert again.num_nodes == twin.num_nodes == 18
    for key in ("pos", "z", "edge_vec", "edge_index", "energy", "batch", "ptr"):
        assert torch.equal(batch[key], untouched[key])
    assert batch.num_graphs == 3


def test_pyg_data_is_one_graph():
    pytest.importorskip("torch_geometric")
    from torch_geometric.data import Data

    x = normal(6, 3)
    data = Data(pos=x, edge_index=EDGES.clone(), edge_vec=normal(5, 3), num_nodes=6)
    symmetry = Symmetry("SE(3)", {"pos": Point(), "edge_vec": "1o"}, "1o")
    bound = symmetry.bind(None, (data,))
    assert bound.num_inputs == 1
    g = draw(SE3(), 2)
    (again,), _ = bound.move(g, times=2)
    assert again.batch.tolist() == [0] * 6 + [1] * 6
    assert again.num_nodes == 12
    assert data.num_nodes == 6
    assert "batch" not in data
    assert again.edge_index.tolist() == [row + [i + 6 for i in row] for row in EDGES.tolist()]
    close(again.pos, torch.cat([x @ g.matrix[k].T + g.translation[k] for k in range(2)]))


def test_pyg_data_with_a_batch_written_by_hand():
    pytest.importorskip("torch_geometric")
    from torch_geometric.data import Data

    x = normal(6, 3)
    symmetry = Symmetry("SO(3)", {"pos": "1o"}, "1o")
    bound = symmetry.bind(None, (Data(pos=x, batch=NODE.clone()),))
    assert bound.num_inputs == 3
    (again,), _ = repeated(bound, 2)
    assert again.batch.tolist() == [*NODE.tolist(), *(i + 3 for i in NODE.tolist())]


def test_pyg_number_of_nodes_is_repeated():
    pytest.importorskip("torch_geometric")
    batch = pyg_batch(num_nodes=lambda n: n)
    symmetry = Symmetry("SE(3)", GRAPH, "1o")
    (again,), _ = repeated(symmetry.bind(None, (batch,)), 2)
    assert again.num_nodes == 12
    assert batch.num_nodes == 6


def test_pyg_tensor_that_is_not_named():
    pytest.importorskip("torch_geometric")
    batch = pyg_batch(cell=lambda n: normal(3, 3))
    (moved,), _ = Symmetry("SE(3)", GRAPH, "1o").move_inputs(draw(SE3(), 3), (batch,))
    with pytest.raises(ValueError, match=r"'cell' \(shape \(9, 3\).*not named by the symmetry's `inputs`"):
        moved.cell.sum()


def test_a_graph_is_told_without_asking_for_its_nodes():
    pytest.importorskip("torch_geometric")
    from torch_geometric.data import Data

    assert is_graph(Data(colour=torch.ones(3)))  # num_nodes would warn
    assert not is_graph({"keys": 1, "stores": 2, "num_nodes": 3})


# ---- values ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "symmetry",
    [
        Symmetry("SO(3)", "1o", "1o"),
        Symmetry("SE(3)", (Point(), "16x0e"), {"force": "1o", "stress": "CartesianTensor(2)"}, batch=None),
        Symmetry(
            SO3() * Permutation(5), {"x": Permuted(1) @ "1o", "m": [Permuted(1)]}, Invariant(), batch=("1o", None)
        ),
        Symmetry(Cyclic(4), Image(), Invariant(), index="batch"),
        Symmetry("SO(3) x O(3)", Factor(1, "1e"), Factor(0, Point()), index=2),
        Symmetry("SO(3)", {}, ()),
    ],
    ids=str,
)
def test_repr_can_be_typed_back(symmetry):
    assert eval(repr(symmetry), vars(lightning_equiv)) == symmetry


def test_symmetry_is_a_value():
    spec = {"x": ["1o"]}
    symmetry = Symmetry("SO(3)", spec, "1o")
    spec["x"] = "broken"
    assert symmetry.inputs == {"x": (IrrepsTensor("1o"),)}
    assert symmetry.group == SO3()
    assert Symmetry(SO3(), "1o", "1o") == Symmetry("SO(3)", ("1o",), IrrepsTensor("1o"))
    with pytest.raises(AttributeError):
        symmetry.group = O3()
    copied = copy.deepcopy(symmetry)
    assert copied == symmetry


def test_symmetry_is_made_of_primitives():
    """What a configuration file can hold."""
    written = {"group": "SO(3) x S5", "inputs": {"x": "Permuted(1) @ '1o'"}, "outputs": ["1o", "Invariant()"]}
    assert Symmetry(**written) == Symmetry(SO3() * Permutation(5), {"x": Permuted(1) @ "1o"}, ("1o", Invariant()))


# ---- trees -----------------------------------------------------------------------------------------------------------
def test_lookup():
    batch = (X, {"labels": {"y": M}, "a.b": X}, Frozen(X, M))
    assert lookup(batch, 0) is X
    assert lookup(batch[1], "labels.y") is M
    assert lookup(batch[1], "a.b") is X
    assert lookup(batch, [1, "labels", "y"]) is M
    assert lookup(batch, [2, "m"]) is M
    with pytest.raises(ValueError, match=r"target='label' is not in the batch.*a dict of 2: labels, a\.b"):
        lookup(batch[1], "label")
    with pytest.raises(ValueError, match="'z' was looked for in a tensor of shape"):
        lookup(batch[1], "labels.y.z")


def test_pairs_and_maps():
    spec = {"a": as_representation("1o"), "b": (None, Invariant())}
    left, right = {"a": X, "b": ("text", M)}, {"b": ("other", 2 * M), "a": 2 * X}
    symmetry = Symmetry("SO(3)", "1o", spec)
    pairs = symmetry.bind_output(left, Inputs(N)).pairs(symmetry.bind_output(right, Inputs(N)))
    assert [(x is x_, torch.equal(y, 2 * x)) for (x, y), x_ in zip(pairs.values(), (X, M), strict=True)] == [
        (True, True)
    ] * 2
    halved = map_tensors(lambda x: x / 2, left)
    assert halved["b"][0] == "text"
    assert torch.equal(halved["a"], X / 2)
    assert left["a"] is X
    assert children(3) is None
    assert children(Sample) is None


def test_callables_are_shown():
    assert "turned" in repr(Symmetry("SO(3)", turned, "1o"))
    assert isinstance(Symmetry("SO(3)", turned, "1o").inputs[0], Custom)


# ---- a dict of specs, and the network's signature --------------------------------------------------------------------
def test_a_dict_that_can_be_read_in_two_ways_is_refused():
    def network(x, flag=None):
        """Its only argument is called as what the argument holds."""

    symmetry = Symmetry("SO(3)", {"x": None}, "1o")
    with pytest.raises(
        ValueError, match=r"two ways: 'x' as the network's argument, or as what the only argument, a dict"
    ):
        symmetry.bind(network, ({"x": "text"},))
    g = draw(SO3(), N)
    for spec, argument in (({"x": "1o"}, {"x": X}), ({"x": {"x": "1o"}}, {"x": X})):  # which have one reading
        (moved,), _ = Symmetry("SO(3)", spec, "1o").bind(network, (argument,)).move(g)
        close(moved["x"], turned(g, X))


def test_names_and_positions_come_from_the_signature():
    def network(x, *rest, m=None):
        """Only the first position has a name."""

    symmetry = Symmetry("SO(3)", {"x": "1o", "m": "0e"}, "1o")
    assert symmetry.bind(network, (X,), {"m": M}).num_inputs == N
    with pytest.raises(ValueError, match="2 arguments by position whose names are unknown"):
        symmetry.bind(network, (X, X), {"m": M})
    with pytest.raises(ValueError, match="cannot be called with 2 arguments by position: too many"):
        symmetry.bind(lambda x: x, (X, M))
    with pytest.raises(ValueError, match="the keyword 'm' whose position is unknown"):
        Symmetry("SO(3)", ("1o", "0e"), "1o").bind(network, (X,), {"m": M})


def test_an_index_inside_an_argument():
    symmetry = Symmetry("SE(3)", ({"data": GRAPH},), Point(), index="graph", num_graphs="energy")
    g = draw(SE3(), 3)
    (moved,), _ = symmetry.bind(None, ({"data": graph_call()},)).move(g)
    check_moved_graph(g, graph_call(), moved["data"])


@pytest.mark.parametrize(("number", "words"), [("cells", "num_graphs='cells' names no tensor"), (None, "goes with")])
def test_a_number_of_graphs_that_is_not_there(number, words):
    with pytest.raises(ValueError, match=words):
        Symmetry("SO(3)", "1o", "1o", index=1 if number else None, num_graphs=number or "cells").bind(
            None, (X, NODE[:N])
        )
