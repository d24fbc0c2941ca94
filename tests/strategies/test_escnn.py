"""Networks of escnn, whose layers say how their fields move: a stand-in of its interface, and escnn itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_equiv import ConstraintRelaxation, Cyclic, as_group
from lightning_equiv.layers.branch import Branch, make_branch
from lightning_equiv.layers.choose import find_layers
from lightning_equiv.layers.families.escnn import EscnnFields
from lightning_equiv.strategies.constraint_relaxation.penalties import EPS, penalties
from tests.helpers import global_seed
from tests.strategies.toys import snapshot, trainer


def regular(k: int) -> Tensor:
    """Orientation r of a channel goes to r + k."""
    return torch.eye(4, dtype=torch.float64).roll(k, 0)


class FieldType:
    """`n` scalar or regular fields of C4, with what escnn's class is asked for."""

    def __init__(self, n: int, kind: str) -> None:
        self.n, self.kind, self.size = n, kind, n * {"scalar": 1, "regular": 4}[kind]
        numbered = [2, 0, 3, 1]  # an element's name is not its angle
        group = SimpleNamespace(elements=numbered, order=lambda: 4)
        self.gspace = SimpleNamespace(fibergroup=group, basespace_action=lambda k: Cyclic(4).elements()[k].matrix[0])

    def representation(self, k: int) -> Any:
        one = regular(k) if self.kind == "regular" else torch.ones(1, 1)
        return torch.block_diag(*[one] * self.n).numpy()

    def __repr__(self) -> str:
        return f"{self.n} {self.kind} fields of C4"


class GeometricTensor:
    def __init__(self, tensor: Tensor, type: FieldType) -> None:
        self.tensor, self.type = tensor, type


class R2Conv(nn.Module):
    """A convolution whose filter is averaged over C4, a slow twin of escnn's."""

    def __init__(self, in_type: FieldType, out_type: FieldType) -> None:
        super().__init__()
        self.in_type, self.out_type = in_type, out_type
        self.kernel_size, self.stride, self.padding, self.dilation = 3, 1, 1, 1
        self.weights = nn.Parameter(torch.randn(out_type.size, in_type.size, 3, 3) / 3)

    def filter(self) -> Tensor:
        def turned(k: int) -> Tensor:
            out, back = (torch.as_tensor(t.representation(k)).to(self.weights) for t in (self.out_type, self.in_type))
            return torch.einsum("ao,oiyx,bi->abyx", out, self.weights.rot90(k, (-2, -1)), back)

        return sum(turned(k) for k in range(4)) / 4

    def forward(self, x: GeometricTensor) -> GeometricTensor:
        return GeometricTensor(nn.functional.conv2d(x.tensor, self.filter(), padding=1), self.out_type)


class SequentialModule(nn.Module):
    """Runs every child it has, as escnn's does."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        for i, module in enumerate(modules):
            self.add_module(str(i), module)

    def forward(self, x: Any) -> Any:
        for module in self.children():
            x = module(x)
        return x


SCALAR, REGULAR = FieldType(1, "scalar"), FieldType(3, "regular")


class Classifier(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        with global_seed():
            self.body = SequentialModule(R2Conv(SCALAR, REGULAR), R2Conv(REGULAR, REGULAR))
            self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(GeometricTensor(x, SCALAR)).tensor.square()
        return self.head(y.unflatten(1, (3, 4)).mean((-3, -2, -1)))

    def training_step(self, x: Tensor) -> Tensor:
        return self(x).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def test_fields_move_as_orientations_and_pixels_do() -> None:
    x = torch.randn(2, 12, 5, 5)
    for k in range(4):
        moved = EscnnFields(REGULAR)(Cyclic(4).elements()[k], x)
        expected = x.unflatten(1, (3, 4)).roll(k, 2).flatten(1, 2).rot90(k, (-2, -1))
        torch.testing.assert_close(moved, expected)


def test_the_penalty_is_zero_on_an_equivariant_filter_and_positive_on_another() -> None:
    module = Classifier().double()
    layer = find_layers(module, R2Conv)[1]
    branch = Branch(layer, make_branch(layer, "linear", 1.0).double())
    branch.inputs = [torch.randn(4, 12, 6, 6, dtype=torch.float64)]
    lie, norm = penalties([branch], Cyclic(4))
    assert lie > norm > 0.1
    branch.network.weight.data.copy_(layer.module.filter())
    lie, norm = penalties([branch], Cyclic(4))
    assert lie - EPS**0.5 < 1e-10
    assert norm > 0.1


def test_relaxed_and_strict_again() -> None:
    module, broken = Classifier(), []
    x = torch.randn(4, 1, 6, 6)

    def error() -> float:
        with torch.no_grad():
            return float((module(x) - module(x.rot90(1, (-2, -1)))).abs().max())

    class Measure(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            broken.append(error())

    before = snapshot(module)
    relaxation = ConstraintRelaxation("C4", R2Conv, peak=1.0, init_scale=0.3)
    trainer(relaxation, Measure()).fit(module, DataLoader(torch.randn(24, 1, 6, 6), 4))
    assert max(broken) > 1e-3
    assert error() < 1e-5
    assert snapshot(module) == before


@pytest.mark.parametrize(("group", "said"), [("SO(2)", "finite groups only"), ("C8", "name a subgroup")])
def test_a_group_that_the_fields_do_not_know(group: str, said: str) -> None:
    module = Classifier()
    with pytest.raises(ValueError, match=said):
        ConstraintRelaxation(group, R2Conv).attach(module)
    assert list(module.state_dict()) == list(Classifier().state_dict())


def test_escnn_itself() -> None:
    """Where it is installed: every element moves fields as escnn does, and its own filter has penalty 0."""
    escnn = pytest.importorskip("escnn", exc_type=ImportError)
    for space in (escnn.gspaces.rot2dOnR2(4), escnn.gspaces.flipRot2dOnR2(4)):
        group = as_group("C4" if space.fibergroup.order() == 4 else "D4")
        fields = escnn.nn.FieldType(space, [*space.fibergroup.irreps(), space.regular_repr])
        x = torch.randn(2, fields.size, 6, 6)
        ours, elements = EscnnFields(fields), group.elements()
        for k in range(len(elements)):
            plane = [torch.as_tensor(space.basespace_action(e)) for e in space.fibergroup.elements]
            (same,) = (i for i, matrix in enumerate(plane) if torch.allclose(matrix, elements[k].matrix[0]))
            element = list(space.fibergroup.elements)[same]
            expected = escnn.nn.GeometricTensor(x, fields).transform(element).tensor
            torch.testing.assert_close(ours(elements[k], x), expected)
        hidden = escnn.nn.FieldType(space, [space.regular_repr] * 2)
        layers = nn.ModuleDict({"conv": escnn.nn.R2Conv(hidden, hidden, 3, padding=1)}).double()
        (layer,) = find_layers(layers, "conv")
        branch = Branch(layer, make_branch(layer, "linear", 1.0).double())
        branch.inputs = [torch.randn(2, hidden.size, 7, 7, dtype=torch.float64)]
        assert penalties([branch], group)[0] > 0.1
        branch.network.weight.data.copy_(layer.module.expand_parameters()[0])
        assert penalties([branch], group)[0] < 1e-5  # escnn's basis is in float32
