"""What a call and an output may be made of, what is refused, and what may lie there unread or ignored."""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_equiv import SO3, Ignored, Invariant, Symmetry, equivariance_error
from lightning_equiv.symmetry.unread import Unread
from tests.helpers import close, normal, seeded

X, M = normal(4, 3), normal(4, 1, seed=1)
VECTORS = Symmetry("SO(3)", "1o", "1o")


class Holder:
    """A plain object that holds a tensor."""

    def __init__(self, x: Any) -> None:
        self.x = x


class Slots:
    __slots__ = ("x",)

    def __init__(self, x: Any) -> None:
        self.x = x


HIDDEN = {
    "object": Holder(X),
    "nested object": Holder({"a": [X]}),
    "slots": Slots(X),
    "namespace": SimpleNamespace(x=X),
    "set": {X},
    "frozenset": frozenset([X]),
    "deque": deque([X]),
}


# ---- tensors that cannot be seen -------------------------------------------------------------------------------------
@pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN)
def test_hidden_tensors_are_refused(hidden: Any) -> None:
    words = "holds tensors, which cannot be moved there: pass them in a dict"
    for spec in ("1o", {"x": "1o"}, None):
        with pytest.raises(ValueError, match=rf"'h' in `inputs` is a {type(hidden).__name__} that {words}"):
            Symmetry("SO(3)", {"v": "1o", "h": spec}, "1o").bind(None, (), {"v": X, "h": hidden})
    with pytest.raises(ValueError, match=rf"'1' in `outputs` is a .*{words}.*Ignored\(\) if nobody looks"):
        equivariance_error(lambda x: (x, hidden), X, Symmetry("SO(3)", "1o", ("1o",)))
    symmetry = Symmetry("SO(3)", {"v": "1o", "h": Invariant(shared=True)}, "1o")
    _, moved = symmetry.bind(None, (), {"v": X, "h": hidden}).move(SO3().identity(8), times=2)
    assert moved["h"] is hidden
    ignoring = Symmetry("SO(3)", "1o", ("1o", Ignored()))
    assert float(equivariance_error(lambda x: (x, hidden), X, ignoring).max()) < 1e-12


def test_other_objects_are_passed_on() -> None:
    for other in (nn.Linear(2, 2), nn.Linear, Holder(3), "text", 3, None, torch.float32, lambda x: x, {1, 2}, torch):
        symmetry = Symmetry("SO(3)", {"v": "1o"}, "1o")
        _, moved = symmetry.bind(None, (), {"v": X, "h": other}).move(SO3().identity(8), times=2)
        assert moved["h"] is other


# ---- names that are missing ------------------------------------------------------------------------------------------
def test_every_missing_name_is_listed_at_once() -> None:
    with pytest.raises(ValueError, match=r"'b' \(shape.*, 'a\.c' \(shape.*, 'd' \(shape.* are not named by"):
        Symmetry("SO(3)", {"v": "1o"}, "1o").bind(None, (), {"v": X, "b": X, "a": {"c": X}, "d": X})


# ---- graphs ----------------------------------------------------------------------------------------------------------
def graph(**more: Any) -> Any:
    data = pytest.importorskip("torch_geometric.data")
    keys = {"pos": normal(3, 3), "z": torch.arange(3), "energy": normal(1, 1), "forces": normal(3, 3), **more}
    return data.Batch.from_data_list([data.Data(**keys, edge_index=torch.zeros(2, 1).long()) for _ in range(2)])


GRAPHS = Symmetry("SO(3)", {"pos": "1o", "z": "Invariant()"}, "1o")


def test_labels_that_the_network_does_not_read_need_no_name() -> None:
    data = graph(name="water", nested={"charge": normal(3)})
    before = {key: copy.copy(value) for key, value in data.to_dict().items()}
    error = equivariance_error(lambda d: d.pos * d.z[:, None], data, GRAPHS)
    assert float(error.max()) < 1e-12
    assert data.to_dict().keys() == before.keys()
    assert torch.equal(data.forces, before["forces"])


READS = {
    "method": lambda d: d.forces.sum(),
    "property": lambda d: d.forces.shape,
    "function": lambda d: torch.cat([d.pos, d.forces]),
    "times": lambda d: d.pos * d.forces,
    "times a number": lambda d: d.forces * 2,
    "number times": lambda d: 2 - d.forces,
    "row": lambda d: d.forces[0] + d.pos,
    "nested": lambda d: d.nested["charge"] + 1,
    "item": lambda d: d["forces"] @ d.pos.T,
    "if": lambda d: 1 if d.forces else 0,
    "for": lambda d: list(d.forces),
    "number": lambda d: float(d.energy),
    "indexed": lambda d: d.pos[d.forces],
    "equal": lambda d: d.energy == 0,
    "greater": lambda d: d.energy > 0,
    "element": lambda d: d.to_data_list()[1].forces.sum(),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_labels_that_the_network_reads_must_be_named(read: Any) -> None:
    def network(d: Any) -> Tensor:
        read(d)
        return d.pos

    with pytest.raises(ValueError, match=r"not named by the symmetry's `inputs`: say how"):
        equivariance_error(network, graph(nested={"charge": normal(3)}), GRAPHS)


def test_a_batch_to_be_moved_names_its_labels() -> None:
    """A label that lies there unmoved would be wrong."""
    symmetry = Symmetry("SO(3)", "1o", "1o", batch={"pos": "1o", "z": "Invariant()"})
    more = {key: normal(3) for key in "cab"}
    words = r"^'a' \(.*, 'b' \(.*, 'c' \(.*, 'energy' \(.*, 'forces' \(.* are not named by the symmetry's `batch`"
    with pytest.raises(ValueError, match=words):  # in one order, PyG's is that of a set
        symmetry.bind_batch(graph(**more))


def test_what_is_unread_can_be_copied() -> None:
    unread = copy.deepcopy(copy.copy(Unread("why")))
    with pytest.raises(ValueError, match="why"):
        unread.sum()
    assert isinstance(unread[0], Unread)


def test_hetero_data_is_refused_and_left_alone() -> None:
    data = pytest.importorskip("torch_geometric.data").HeteroData()
    data["atom"].x = X
    with pytest.raises(ValueError, match="HeteroData that holds tensors"):
        Symmetry("SO(3)", {"v": "1o", "data": {"atom": "1o"}}, "1o").bind(None, (), {"v": X, "data": data})
    assert data.node_types == ["atom"]
    assert data.edge_types == []


# ---- outputs at which nobody looks -----------------------------------------------------------------------------------
def test_the_rest_of_an_output_is_ignored_where_asked() -> None:
    def network(x: Tensor) -> dict[str, Any]:
        return {"f": 2 * x, "loss": x.sum(), "extra": {"rows": torch.ones(7, 2)}, "count": torch.arange(3)}

    for outputs in (
        {"f": "1o", "*": "Ignored()"},
        {"f": "1o", "loss": Ignored(), "extra": Ignored(), "count": Ignored(), "not there": Ignored()},
    ):
        symmetry = Symmetry("SO(3)", "1o", outputs)
        assert symmetry.output_parts == ("f.1o",)
        errors = equivariance_error(network, X, symmetry, per_irrep=True)
        assert list(errors) == ["total", "f.1o"]
        assert float(errors["total"].max()) < 1e-12
        moved = symmetry.bind(None, (X,)).move_output(SO3().sample(4, generator=seeded()), network(X))
        assert torch.equal(moved["count"], torch.arange(3))
    with pytest.raises(
        ValueError, match=r"'loss' \(.*'extra.rows' \(.*'count' \(.*not named by the symmetry's `outputs`"
    ):
        equivariance_error(network, X, Symmetry("SO(3)", "1o", {"f": "1o"}))
    for inputs, words in (({"*": "1o"}, r"expected Ignored\(\)"), ({"x": Ignored()}, r"Ignored\(\) is for outputs")):
        with pytest.raises(ValueError, match=words):
            Symmetry("SO(3)", inputs, "1o")


@dataclass
class Answer:
    f: Tensor
    loss: Tensor


def test_the_rest_of_a_dataclass_is_ignored() -> None:
    symmetry = Symmetry("SO(3)", "1o", {"f": "1o", "*": Ignored()})
    assert float(equivariance_error(lambda x: Answer(x, x.sum()), X, symmetry).max()) < 1e-12


# ---- positions and names ---------------------------------------------------------------------------------------------
class Anything(nn.Module):
    """Takes what it gets."""

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        x, m = (*args, *kwargs.values())
        return x * m


def test_inputs_may_mix_positions_and_names() -> None:
    symmetry = Symmetry("SO(3)", {0: "1o", 1: "0e", "mass": "0e"}, "1o")
    g = SO3().sample(4, generator=seeded())
    for args, kwargs in (((X, M), {}), ((X,), {"mass": M})):
        bound = symmetry.bind(Anything(), args, kwargs)
        moved_args, moved_kwargs = bound.move(g)
        assert (len(moved_args), list(moved_kwargs)) == (len(args), list(kwargs))
        close(moved_args[0], torch.einsum("nij,nj->ni", g.matrix, X))
        assert float(equivariance_error(Anything(), args, symmetry, kwargs=kwargs).max()) < 1e-12
    with pytest.raises(ValueError, match=r"'other' \(shape"):
        symmetry.bind(Anything(), (X,), {"other": M})
    with pytest.raises(ValueError, match=r"'2' \(shape"):
        symmetry.bind(Anything(), (X, M, M))


def test_positions_and_names_of_a_network_with_names() -> None:
    def network(x: Tensor, mass: Tensor) -> Tensor:
        return x * mass

    g = SO3().sample(4, generator=seeded())
    for inputs in ({0: "1o", "mass": "0e"}, {"x": "1o", 1: "0e"}):
        (moved, _), _ = Symmetry("SO(3)", inputs, "1o").bind(network, (X, M)).move(g)
        close(moved, torch.einsum("nij,nj->ni", g.matrix, X))


# ---- one number an input ---------------------------------------------------------------------------------------------
def test_one_scalar_an_input_may_have_no_second_dimension() -> None:
    symmetry = Symmetry("O(3)", "1o", {"energy": "0e", "chirality": "0o"})
    network = lambda x: {"energy": x.norm(dim=-1), "chirality": x.prod(-1)}  # noqa: E731
    errors = equivariance_error(network, X, symmetry, per_irrep=True, generator=seeded())
    assert float(errors["energy.0e"].max()) < 1e-12
    assert float(errors["chirality.0o"].min()) > 1e-3
    flat = equivariance_error(lambda x: {k: v[:, None] for k, v in network(x).items()}, X, symmetry, generator=seeded())
    close(errors["total"], flat)
    with pytest.raises(ValueError, match="expects 2 components"):
        equivariance_error(lambda x: x.norm(dim=-1), X, Symmetry("O(3)", "1o", "2x0e"))
