"""Layer families: the contract that each satisfies over one table, how layers find theirs, and a network of PyG."""

from __future__ import annotations

import importlib
import pickle
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from e3nn import o3
from torch import Tensor, nn

from lightning_equiv import (
    RECM,
    ConstraintRelaxation,
    Image,
    IrrepsTensor,
    LayerFamily,
    VectorChannelsLast,
    VectorNeurons,
    as_group,
)
from lightning_equiv.layers import families
from lightning_equiv.layers.branch import Branch, attach_branch, make_branch, relaxed, tensors
from lightning_equiv.layers.choose import family_of, find_layers
from lightning_equiv.layers.families import FAMILIES, Convolutions, E3nn, Escnn, Plain
from lightning_equiv.layers.layer import Layer, is_of
from lightning_equiv.layers.measure import measured, unmeasured
from lightning_equiv.strategies.constraint_relaxation.penalties import EPS, penalties
from tests.strategies.test_escnn import REGULAR, SCALAR, GeometricTensor, R2Conv, regular
from tests.strategies.toys import EachStep, trainer


@pytest.fixture(autouse=True)
def _float64() -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


# ---- modules of every family -----------------------------------------------------------------------------------------


class VNLinear(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("oc,bci...->boi...", self.weight, x)


class Published(nn.Module):
    """As the published vector neurons, under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.map_to_feat = nn.Linear(4, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.map_to_feat(x.transpose(1, -1)).transpose(1, -1)


class MixVectors(nn.Module):
    """Vector neurons that say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = VNLinear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class TwoMaps(nn.Module):
    """A convolution on (batch, channels, 2, h, w), whose channels only a call shows."""

    kernel_size, padding = 3, 1

    def __init__(self) -> None:
        super().__init__()
        self.inner = symmetric(nn.Conv2d(4, 6, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(1, 2)).unflatten(1, (3, 2))


def symmetric(conv: nn.Conv2d) -> nn.Conv2d:
    """With the filter's mean over quarter turns."""
    conv.weight.data = sum(conv.weight.data.rot90(k, (-2, -1)) for k in range(4)) / 4
    return conv


def scaled_vectors() -> nn.Linear:
    linear = nn.Linear(6, 3, bias=False)
    linear.weight.data = torch.cat([2 * torch.eye(3), -torch.eye(3)], dim=1)
    return linear


def along(irreps: str, dim: int) -> Callable[[Tensor, Tensor], Tensor]:
    """R x by e3nn's dense matrices along one dimension."""

    def move(R: Tensor, x: Tensor) -> Tensor:
        return torch.tensordot(x, o3.Irreps(irreps).D_from_matrix(R), ([dim], [1])).movedim(-1, dim)

    return move


def turned(_: Tensor, x: Tensor) -> Tensor:
    """One quarter turn of the grid."""
    return x.rot90(1, (-2, -1))


def turned_fields(_: Tensor, x: Tensor) -> Tensor:
    """The grid turns, and the orientations move on."""
    return torch.einsum("hg,bcgij->bchij", regular(1), x.unflatten(1, (-1, 4))).flatten(1, 2).rot90(1, (-2, -1))


@dataclass
class Case:
    """A layer of a family.

    `moves` are a slow twin of how a group element, as a matrix, moves the layer's first input and output; `kernel` is
    the filter of the ordinary convolution that an equivariant one is; `measured` layers do not say their features.
    """

    family: LayerFamily
    make: Callable[[], nn.Module]
    args: Callable[[], tuple[Any, ...]]
    features: tuple[tuple[int, ...], tuple[int, ...]]
    dims: tuple[int, ...]
    moves: tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]
    group: str = "O(3)"
    grid: int = 0
    given: Any = None
    kernel: Callable[[Any], Tensor] | None = None
    measured: bool = False


IN, OUT = "2x0e+2x1o+2e", "3x0e+1x1o+1e+2e"
vectors = along("1o", 2)
CASES: dict[str, Case] = {
    "e3nn, linear": Case(
        E3nn(),
        lambda: o3.Linear(IN, OUT),
        lambda: (torch.randn(7, 13),),
        ((13,), (14,)),
        (-1,),
        (along(IN, -1), along(OUT, -1)),
    ),
    "e3nn, tensor product": Case(
        E3nn(),
        lambda: o3.FullyConnectedTensorProduct(IN, "0e", OUT),
        lambda: (torch.randn(7, 13), torch.ones(1, 1)),
        ((13,), (14,)),
        (-1,),
        (along(IN, -1), along(OUT, -1)),
    ),
    "escnn": Case(
        Escnn(),
        lambda: R2Conv(SCALAR, REGULAR),
        lambda: (GeometricTensor(torch.randn(2, 1, 6, 6), SCALAR),),
        ((1,), (12,)),
        (1,),
        (turned, turned_fields),
        "C4",
        grid=2,
        kernel=lambda module: module.filter(),
    ),
    "vector neurons": Case(
        VectorNeurons(),
        lambda: VNLinear(4, 5),
        lambda: (torch.randn(2, 4, 3, 6),),
        ((4, 3), (5, 3)),
        (1, 2),
        (vectors, vectors),
    ),
    "vector neurons, without points": Case(
        VectorNeurons(),
        lambda: VNLinear(4, 5),
        lambda: (torch.randn(8, 4, 3),),
        ((4, 3), (5, 3)),
        (1, 2),
        (vectors, vectors),
    ),
    "vector neurons, published": Case(
        VectorNeurons(),
        Published,
        lambda: (torch.randn(2, 4, 3, 5, 2),),
        ((4, 3), (5, 3)),
        (1, 2),
        (vectors, vectors),
    ),
    "vector neurons, by type": Case(
        VectorNeurons(of=MixVectors),
        MixVectors,
        lambda: (torch.randn(2, 4, 3, 6),),
        ((4, 3), (5, 3)),
        (1, 2),
        (vectors, vectors),
        measured=True,
    ),
    "vectors with channels last": Case(
        VectorChannelsLast(of=nn.Linear),
        lambda: nn.Linear(4, 5, bias=False),
        lambda: (torch.randn(7, 3, 4),),
        ((3, 4), (3, 5)),
        (-2, -1),
        (along("1o", -2), along("1o", -2)),
    ),
    "two degrees with channels last, edges": Case(
        VectorChannelsLast(of="Lin*", irreps="1o+2e"),
        lambda: nn.Linear(3, 2, bias=False),
        lambda: (torch.randn(2, 4, 8, 3),),
        ((8, 3), (8, 2)),
        (-2, -1),
        (along("1o+2e", -2), along("1o+2e", -2)),
    ),
    "components in front of channels, by representation": Case(
        Plain(),
        lambda: nn.Linear(4, 5, bias=False),
        lambda: (torch.randn(7, 3, 4),),
        ((3, 4), (3, 5)),
        (1, -1),
        (along("1o", 1), along("1o", 1)),
        given=("IrrepsTensor('1o', dim=1)", "IrrepsTensor('1o', dim=1)"),
    ),
    "convolution": Case(
        Convolutions(),
        lambda: symmetric(nn.Conv2d(2, 3, 3, padding=1, bias=False)),
        lambda: (torch.randn(2, 2, 6, 6),),
        ((2,), (3,)),
        (1,),
        (turned, turned),
        "C4",
        grid=2,
        given=(Image(), Image()),
        kernel=lambda module: module.weight,
    ),
    "convolution, two maps a channel": Case(
        Convolutions(),
        TwoMaps,
        lambda: (torch.randn(2, 2, 2, 6, 6),),
        ((2, 2), (3, 2)),
        (1,),
        (turned, turned),
        "C4",
        grid=2,
        given=("Image()", "Image()"),
        kernel=lambda module: module.inner.weight,
        measured=True,
    ),
    "plain": Case(
        Plain(),
        scaled_vectors,
        lambda: (torch.randn(2, 4, 6),),
        ((6,), (3,)),
        (-1,),
        (along("2x1o", -1), along("1o", -1)),
        given=("2x1o", "1o"),
    ),
    "plain, components in the middle": Case(
        Plain(),
        MixVectors,
        lambda: (torch.randn(2, 4, 3, 6),),
        ((4, 3), (5, 3)),
        (1, 2),
        (vectors, vectors),
        given=(IrrepsTensor("1o", dim=2), IrrepsTensor("1o", dim=2)),
        measured=True,
    ),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def layer_of(case: Case) -> tuple[Layer, tuple[Any, ...], Any]:
    """The layer as a strategy would find it, a call's arguments and its output."""
    model = nn.ModuleDict({"layer": case.make()})
    args = case.args()
    own = () if case.family in FAMILIES else (case.family,)
    found = find_layers(model, "layer" if case.given is None else {"layer": case.given}, own)
    assert bool(unmeasured(found)) is case.measured
    with torch.no_grad():
        (layer,) = measured(found, lambda: model["layer"](*args))
        return layer, args, layer.module(*args)


def branch_of(layer: Layer, kind: str = "linear") -> Branch:
    return Branch(layer, make_branch(layer, kind, 1.0))


def dense(case: Case, layer: Layer, args: tuple[Any, ...]) -> Tensor:
    """The matrix, or the kernel, of the layer itself."""
    if case.kernel is not None:
        return case.kernel(layer.module).detach()
    assert layer.in_features is not None
    size, trailing = torch.Size(layer.in_features).numel(), 0
    if layer.dims[0] > 0:
        trailing = args[0].ndim - 1 - len(layer.in_features)
    basis = torch.eye(size).reshape(size, *layer.in_features, *[1] * trailing)
    return layer.module(basis, *args[1:]).detach().reshape(size, -1).T


# ---- the contract ----------------------------------------------------------------------------------------------------


def test_every_family_has_a_row() -> None:
    for file in pkgutil.iter_modules(families.__path__):
        importlib.import_module(f"{families.__name__}.{file.name}")
    classes, stack = set(), [LayerFamily]
    while stack:
        new = [cls for cls in stack.pop().__subclasses__() if cls.__module__.startswith("lightning_equiv.")]
        classes |= set(new)
        stack += new
    assert classes == {type(case.family) for case in CASES.values()}
    assert classes >= {type(family) for family in FAMILIES}
    assert isinstance(FAMILIES[-1], Plain)


@cases
def test_a_layer_is_described(case: Case) -> None:
    layer, _, _ = layer_of(case)
    assert layer.family == case.family
    assert (layer.in_features, layer.out_features) == case.features
    assert (layer.dims, layer.grid) == (case.dims, case.grid)


@cases
def test_rows_and_their_inverse(case: Case) -> None:
    """Every row is the features of one place, and the rows of an output are put where they were."""
    layer, args, output = layer_of(case)
    x, f_x = tensors(layer, args, {}, output)
    b = branch_of(layer)
    for value, features in ((x, layer.in_features), (f_x, layer.out_features)):
        assert b.rows(value).shape[1] == torch.Size(features).numel()
        assert sorted(b.rows(value).flatten().tolist()) == sorted(value.flatten().tolist())
    assert torch.equal(b.unrows(b.rows(f_x), f_x), f_x)


@cases
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_branch_gives_the_shape_of_the_output(case: Case, kind: str) -> None:
    layer, args, output = layer_of(case)
    x, f_x = tensors(layer, args, {}, output)
    b = branch_of(layer, kind)
    n_x = b.apply(x, f_x)
    assert n_x.shape == f_x.shape
    torch.testing.assert_close(n_x, b.unrows(b.network(b.rows(x)), f_x))


def test_vectors_with_points_behind_them_are_not_copied_into_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, args, output = layer_of(CASES["vector neurons"])
    b = branch_of(layer)
    expected = b.unrows(b.network(b.rows(args[0])), output)
    monkeypatch.delattr(LayerFamily, "rows")
    torch.testing.assert_close(b.apply(args[0], output), expected)


@cases
def test_a_linear_branch_can_be_the_layer_itself(case: Case) -> None:
    """Rows, features and their order are those of the layer: with its matrix, n(x) is f(x)."""
    layer, args, output = layer_of(case)
    x, f_x = tensors(layer, args, {}, output)
    b = branch_of(layer)
    b.network.weight.data.copy_(dense(case, layer, args))
    torch.testing.assert_close(b.apply(x, f_x), f_x)


@cases
def test_theta_zero_is_the_layer_bit_for_bit(case: Case) -> None:
    layer, args, output = layer_of(case)
    x, f_x = tensors(layer, args, {}, output)
    b = branch_of(layer)
    detach = attach_branch(b)
    b.set_theta(0.5)
    assert not torch.equal(tensors(layer, args, {}, layer.module(*args))[1], f_x)
    b.set_theta(0.0)
    assert torch.equal(tensors(layer, args, {}, layer.module(*args))[1], f_x)
    detach()
    assert torch.equal(tensors(layer, args, {}, relaxed(b, torch.zeros(()), x, output))[1], f_x)


@cases
def test_opened_and_closed(case: Case) -> None:
    layer, args, output = layer_of(case)
    for value in (args[0], output):
        inside = layer.family.tensor(value)
        assert isinstance(inside, Tensor)
        closed = layer.family.wrapped(inside, value)
        assert type(closed) is type(value)
        assert layer.family.tensor(closed) is inside
        assert getattr(closed, "type", None) == getattr(value, "type", None) or isinstance(value, Tensor)
    assert layer.family.tensor({"x": output}) is None
    assert layer.family.first_tensor((None, 3), {"x": args[0]}) is layer.family.tensor(args[0])
    assert layer.family.first_tensor((None,), {}) is None


@cases
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_the_lie_penalty_against_a_slow_loop(case: Case, kind: str) -> None:
    """Zero for the layer's own matrix; for another, one sample and one direction at a time, by finite differences."""
    layer, args, output = layer_of(case)
    x, f_x = tensors(layer, args, {}, output)
    group, h = as_group(case.group), 1e-4
    b = branch_of(layer, kind)
    b.inputs = [x]
    move_in, move_out = case.moves
    count = f_x.numel() // torch.Size(case.features[1]).numel()
    total = torch.zeros(())
    with torch.no_grad():
        for g in group.generators().matrix:
            total += (b.apply(move_in(g, x), f_x) - move_out(g, b.apply(x, f_x))).square().sum()
        algebra = group.algebra()
        for i in range(len(algebra)):
            plus, minus = ((algebra[i] * t).exp().matrix[0] for t in (h, -h))
            moved = (move_out(q.T, b.apply(move_in(q, x), f_x)) for q in (plus, minus))
            total += ((next(moved) - next(moved)) / (2 * h)).square().sum()
    lie = penalties([b], group)[0]
    assert lie > 0.1
    torch.testing.assert_close(lie.detach(), (total / count).sqrt(), rtol=1e-5, atol=1e-8)
    if kind == "linear":
        b.network.weight.data.copy_(dense(case, layer, args))
        lie, norm = penalties([b], group)
        assert lie - EPS**0.5 < 1e-10
        assert norm > 0.1


@cases
def test_a_family_is_a_value(case: Case) -> None:
    assert pickle.loads(pickle.dumps(case.family)) == case.family
    assert hash(case.family) == hash(case.family)


# ---- how a layer finds its family ------------------------------------------------------------------------------------


class Gated(nn.Module):
    """A layer of one's own: scalars and vectors in one tensor, as it says in its own words."""

    def __init__(self) -> None:
        super().__init__()
        self.scalars, self.vectors = 3, 2

    def forward(self, x: Tensor) -> Tensor:
        return x


class GatedLayers(LayerFamily):
    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, Gated)

    def representations(self, module: Any) -> tuple[str, str]:
        irreps = f"{module.scalars}x0e+{module.vectors}x1o"
        return irreps, irreps


class InDict(GatedLayers):
    """The same where the tensor is in a dict."""

    def tensor(self, value: Any) -> Tensor | None:
        return value["x"] if isinstance(value, dict) else None

    def wrapped(self, tensor: Tensor, like: Any) -> Any:
        return {**like, "x": tensor}


def test_built_in_families() -> None:
    modules = {
        E3nn: o3.Linear("1o", "1o"),
        Escnn: R2Conv(SCALAR, REGULAR),
        VectorNeurons: Published(),
        Convolutions: nn.Conv3d(1, 1, 3),
        Plain: nn.Linear(3, 3),
    }
    assert [type(family_of(module)) for module in modules.values()] == list(modules)
    assert type(family_of(type("VNMaxPool", (nn.Module,), {})())) is Plain, "it does not say its channels"


def test_a_family_of_ones_own() -> None:
    model = nn.ModuleDict({"a": Gated(), "b": nn.Linear(9, 9)})
    gated, linear = find_layers(model, "*", [GatedLayers()])
    assert (gated.in_features, gated.inputs) == ((9,), IrrepsTensor("3x0e+2x1o"))
    assert isinstance(linear.family, Plain)
    x = torch.randn(5, 9)
    (layer,) = find_layers(model, {"a": InDict()})
    b = branch_of(layer)
    b.set_theta(0.5)
    attach_branch(b)
    output = model["a"]({"x": x, "y": 1})
    assert output["y"] == 1
    torch.testing.assert_close(output["x"], x + 0.5 * x @ b.network.weight.T)


def test_a_family_for_a_glob() -> None:
    """Layers of one type, some of them on vectors: their names tell which."""
    model = nn.ModuleDict({"vec_proj": nn.Linear(4, 5, bias=False), "scalars": nn.Linear(4, 5)})
    layers = {"vec_*": VectorChannelsLast(), "scalars": ("4x0e", "5x0e")}
    vec, scalars = find_layers(model, layers)
    assert (vec.in_features, scalars.in_features) == ((3, 4), (4,))


def test_given_representations_come_before_those_of_a_family() -> None:
    model = nn.ModuleDict({"layer": VNLinear(4, 5)})
    (layer,) = find_layers(model, {"layer": ("1o", "1o")})
    assert (layer.dims, layer.in_features) == ((-1,), (3,))


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (MixVectors, True),
        ("MixVectors", True),
        ("Mix*", True),
        ("Module", True),
        (["Linear", MixVectors], True),
        (("Linear", "Conv*"), False),
        ((), False),
        (nn.Linear, False),
    ],
)
def test_types_and_their_names(of: Any, expected: bool) -> None:
    assert is_of(MixVectors(), of) is expected
    assert VectorNeurons(of=of).matches(MixVectors()) is expected


def test_families_that_are_none() -> None:
    model = nn.ModuleDict({"layer": VNLinear(4, 5)})
    with pytest.raises(ValueError, match=r"VectorNeurons\(of='Vec\*'\) matches none .* types \['VNLinear'\]"):
        find_layers(model, "layer", [VectorNeurons(of="Vec*")])
    with pytest.raises(TypeError, match=r"expected families such as \[VectorNeurons\(of=...\)\]"):
        find_layers(model, "layer", [VectorNeurons])  # type: ignore[list-item]


def test_a_layer_that_does_not_run_cannot_be_measured() -> None:
    model = nn.ModuleDict({"layer": MixVectors(), "known": VNLinear(4, 5)})
    layers = find_layers(model, "*", [VectorNeurons(of=MixVectors)])
    with pytest.raises(ValueError, match=r"layers \['layer'\] did not run"):
        measured(layers, lambda: model["known"](torch.randn(2, 4, 3, 6)))
    assert not model["layer"]._forward_hooks
    both = measured(layers, lambda: [m(torch.randn(2, 4, 3, 6)) for m in model.values()])
    assert [layer.in_features for layer in both] == [(4, 3), (4, 3)]
    assert both[1] is layers[1]


# ---- in a strategy ---------------------------------------------------------------------------------------------------


class Clouds(L.LightningModule):
    """Vector neurons of another package, which do not say their channels."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = MixVectors()
        self.example_input_array = torch.randn(2, 4, 3, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, x: Tensor) -> Tensor:
        return (self.net(x).square().sum((1, 2)) - 1).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@pytest.mark.parametrize("strategy", [ConstraintRelaxation, RECM])
def test_strategies_take_families(strategy: Any) -> None:
    module = Clouds()
    with pytest.raises(ValueError, match="does not say how"):
        strategy("SO(3)", "net").attach(Clouds())
    relaxation = strategy("SO(3)", "net", families=[VectorNeurons(of=MixVectors)])
    features = []
    look = EachStep(lambda _: features.extend((b.layer.in_features, b.layer.out_features) for b in relaxation.branches))
    trainer(relaxation, look).fit(module, torch.utils.data.DataLoader(torch.randn(12, 4, 3, 6), 4))
    assert features == [((4, 3), (5, 3))] * 3
    assert not relaxation.is_attached


def test_families_in_a_configuration_file() -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=L.Callback)
    vectors = {"class_path": "lightning_equiv.VectorNeurons", "init_args": {"of": ["Mix*", "VectorLinear"]}}
    last = {"class_path": "lightning_equiv.VectorChannelsLast", "init_args": {"irreps": "1o+2e"}}
    for own in ({"layers": "net", "families": [vectors]}, {"layers": {"net": last}}, {"layers": {"net": ["1o", "1o"]}}):
        callback = {"class_path": "lightning_equiv.ConstraintRelaxation", "init_args": {"symmetry": "SO(3)", **own}}
        make = getattr(parser, "instantiate", None) or parser.instantiate_classes  # its name before 4.49
        made = make(parser.parse_object({"callback": callback})).callback
        (layer,) = find_layers(Clouds(), made.layers, made.families)
        assert isinstance(layer.family, Plain if own["layers"] == {"net": ["1o", "1o"]} else LayerFamily)
        if "families" in own:
            assert layer.family == VectorNeurons(of=["Mix*", "VectorLinear"])
        elif isinstance(own["layers"]["net"], dict):
            assert layer.family == VectorChannelsLast(irreps="1o+2e")


def test_the_family_of_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "constraint_relaxation.md").read_text()
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "LayerFamily" in b)
    space: dict[str, Any] = {"nn": nn, "LayerFamily": LayerFamily, "ConstraintRelaxation": ConstraintRelaxation}
    exec(block, space)
    (layer,) = find_layers(nn.ModuleDict({"m": space["Mixing"](3, 2)}), "m", [space["MixingLayers"]()])
    assert (layer.in_features, layer.inputs) == ((9,), IrrepsTensor("3x0e+2x1o"))
