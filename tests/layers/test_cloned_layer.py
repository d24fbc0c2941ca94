"""A layer of a teacher is the strict layer; a layer of any student is a loop over channels, safe at 0."""

from __future__ import annotations

import copy
import inspect
import itertools

import pytest
import torch
from torch import nn

from lightning_equiv import (
    CircularConvolution,
    ClonedLayer,
    ConditionalBilinear,
    ConditionalMLP,
    EquivariantLinear,
    EquivariantTensorProduct,
    GroupConvolution,
    Symmetry,
    equivariance_error,
)
from tests.helpers import close, seeded


def normal(*shape, seed=3, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


# ---- the strict layer ------------------------------------------------------------------------------------------------
def test_a_layer_of_circular_convolutions_is_conv2d():
    teacher = CircularConvolution((12, 12), 3)
    layer = ClonedLayer(teacher, 3, 5).double()
    nn.init.normal_(layer.bias)
    conv = nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular").double()
    conv.weight.data = teacher.scale * layer.tau.data.reshape(5, 3, 3, 3)
    conv.bias.data = layer.bias.data
    x = (100 * normal(4, 3, 12, 12)).requires_grad_()
    close(layer(x), conv(x), 1e-11)
    weight = normal(4, 5, 12, 12)
    ours = torch.autograd.grad((weight * layer(x)).sum(), (x, layer.tau, layer.bias))
    theirs = torch.autograd.grad((weight * conv(x)).sum(), (x, conv.weight, conv.bias))
    close(ours[0], theirs[0], 1e-10)
    close(ours[1].reshape(5, 3, 3, 3) / teacher.scale, theirs[1], 1e-9)
    close(ours[2], theirs[2], 1e-10)


def test_a_layer_of_lifts_is_conv2d_with_turned_filters():
    teacher = GroupConvolution("C4", 6, 3, lift=True)
    layer = ClonedLayer(teacher, 2, 3).double()
    x, w = normal(4, 2, 6, 6), teacher.scale * layer.tau.reshape(3, 2, 3, 3)
    filters = torch.stack([w.rot90(r, (-2, -1)) for r in range(4)], dim=1).flatten(0, 1)
    expected = nn.functional.conv2d(x, filters, padding="same").unflatten(1, (3, 4))
    close(layer(x), expected, 1e-11)


@pytest.mark.parametrize("lift", [True, False])
def test_a_layer_keeps_the_symmetry_with_its_bias(lift):
    teacher = GroupConvolution("D4", 5, 3, lift=lift)
    layer = ClonedLayer(teacher, 2, 3).double()
    nn.init.normal_(layer.bias)
    symmetry = Symmetry(teacher.symmetry.group, teacher.symmetry.inputs[0], teacher.symmetry.outputs)
    assert equivariance_error(layer, normal(4, 2, *teacher.in_shape), symmetry).max() < 1e-10


def test_a_bias_singles_out_a_direction_for_vectors():
    teacher = EquivariantLinear("2x1o", "1o")
    x, symmetry = normal(8, 2, 6), Symmetry("O(3)", teacher.symmetry.inputs[0], teacher.symmetry.outputs)
    assert equivariance_error(ClonedLayer(teacher, 2, 3, bias=False).double(), x, symmetry).max() < 1e-10
    broken = ClonedLayer(teacher, 2, 3).double()
    nn.init.normal_(broken.bias)
    assert equivariance_error(broken, x, symmetry).min() > 1e-2


def test_a_layer_of_products_scales_with_the_square():
    teacher = EquivariantTensorProduct("1o+0e", "1o", "0e+1o").double()
    layer = ClonedLayer(teacher, 2, 3, bias=False).double()
    x = 7 * normal(4, 2, *teacher.in_shape)
    expected = torch.stack(
        [sum(teacher(x[:, c], layer.tau[o, c].expand(4, -1)) for c in range(2)) for o in range(3)], dim=1
    )
    assert layer.degree == 2
    close(layer(x) / 49, expected / 49, 1e-11)


# ---- any student -----------------------------------------------------------------------------------------------------
class Student(nn.Module):
    """Called like a Teacher, and says nothing of itself."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8 + 3, 10)

    def forward(self, x, tau):
        self.seen = x, tau
        return self.linear(torch.cat([x.flatten(1), tau], -1)).tanh().unflatten(-1, (2, 5))


def test_the_layer_is_a_loop_over_channels():
    student = Student().double()
    layer = ClonedLayer(student, 3, 4, num_weights=3, degree=2).double()
    nn.init.normal_(layer.bias)
    x = normal(5, 3, 2, 4) * torch.tensor([1e-3, 1.0, 1e3]).reshape(1, 3, 1, 1)
    out = layer(x)
    assert out.shape == (5, 4, 2, 5)
    for b, o in itertools.product(range(5), range(4)):
        expected = layer.bias[o].clone()
        for c in range(3):
            size, weight = x[b, c].square().mean().sqrt(), layer.tau[o, c].square().mean().sqrt()
            h = student(x[b : b + 1, c] / size, layer.tau[o : o + 1, c] / weight)[0]
            expected = expected + size**2 * weight * h
        close(out[b, o] / 1e6, expected / 1e6, 1e-12)


def test_all_calls_are_one_at_the_scale_it_was_taught_at():
    student = Student().double()
    ClonedLayer(student, 3, 4, 3).double()(100 * normal(5, 3, 2, 4))
    x, tau = student.seen
    assert (x.shape, tau.shape) == ((60, 2, 4), (60, 3))
    close(x.square().mean((1, 2)), torch.ones(60))
    close(tau.square().mean(1), torch.ones(60))


def test_zeros_give_zeros_and_gradients_that_are_numbers():
    layer = ClonedLayer(Student(), 2, 3, 3, bias=False)
    layer.tau.data[0] = 0
    x = normal(4, 2, 2, 4, dtype=torch.float32)
    x[1] = 0
    x[2, 0] = 0
    x.requires_grad_()
    out = layer(x)
    assert not out[1].any()
    assert not out[:, 0].any()
    assert bool(out[2, 1:].any())
    out.square().sum().backward()
    assert all(bool(t.grad.isfinite().all()) for t in (x, *layer.parameters()))


def test_outputs_keep_their_variance():
    torch.manual_seed(0)
    for teacher in (CircularConvolution((12, 12), 3), GroupConvolution("C4", 12, 3), EquivariantLinear("8x1o", "4x1o")):
        layer = ClonedLayer(teacher, 32, 64)
        out = layer(normal(50, 32, *teacher.in_shape, dtype=torch.float32))
        assert out.detach().square().mean() == pytest.approx(1, abs=0.1)


def test_every_weight_learns_and_a_copy_is_the_same():
    layer = ClonedLayer(ConditionalMLP((6,), 3, (6,), width=16), 2, 3)
    x = normal(4, 2, 6, dtype=torch.float32)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    layer(x).square().sum().backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in layer.parameters())
    assert set(dict(layer.named_parameters())) >= {"tau", "bias", "student.layers.0.weight"}
    assert layer(x[:0]).shape == (0, 3, 6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClonedLayer(Student(), 1, 1), r"expected num_weights.*\(None\), got None"),
        (lambda: ClonedLayer(ConditionalMLP((8,), 3, (8,)), 1, 1, 4), r"of the student \(3\), got 4"),
        (lambda: ClonedLayer(ConditionalMLP((8,), 0, (8,)), 1, 1), r"\(0\), got 0; .* h\(x\) alone"),
        (lambda: ClonedLayer(Student(), 0, 1, 3), "at least one channel, got in_channels=0"),
        (lambda: ClonedLayer(Student(), 1, 0, 3), "out_channels=0"),
        (lambda: ConditionalMLP((8,), -1, (8,)), "num_weights=-1"),
        (lambda: ConditionalMLP((8,), 3, (8,), width=0), "width=0"),
        (lambda: ConditionalMLP((8,), 3, (8,), depth=0), "depth=0"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_shapes_of_a_call_are_checked():
    layer = ClonedLayer(ConditionalMLP((8,), 3, (8,)), 2, 1)
    for shape in ((4, 8), (4, 3, 8), (4, 2, 7), (2, 8), (4,)):
        with pytest.raises(ValueError, match=r"expected x \(B, 2, 8\), B samples of 2 channels, got"):
            layer(torch.ones(shape))


# ---- the student -----------------------------------------------------------------------------------------------------
def test_the_student_is_a_perceptron_on_both():
    mlp = ConditionalMLP((2, 3), 4, (5, 2), width=7, depth=2)
    x, tau = normal(6, 2, 3, dtype=torch.float32), normal(6, 4, dtype=torch.float32)
    W = [(m.weight, m.bias) for m in mlp.layers if isinstance(m, nn.Linear)]
    assert [tuple(w.shape) for w, _ in W] == [(7, 10), (7, 7), (10, 7)]
    y = torch.cat([x.reshape(6, 6), tau], 1)
    for i, (w, b) in enumerate(W):
        y = y @ w.T + b
        if i < 2:
            y = nn.functional.gelu(y)
    close(mlp(x, tau), y.reshape(6, 5, 2), 1e-5)
    for wrong in ((x, tau[:, 1:]), (x[..., 1:], tau), (x, tau[:1])):
        with pytest.raises(ValueError, match=r"expected x \(B, 2, 3\) and tau \(B, 4\), got x"):
            mlp(*wrong)


def test_without_weights_it_is_called_with_x_alone():
    mlp = ConditionalMLP((6,), 0, (3,))
    assert list(inspect.signature(mlp.forward).parameters) == ["x"]
    assert list(inspect.signature(ConditionalMLP((6,), 1, (3,)).forward).parameters) == ["x", "tau"]
    assert mlp(torch.ones(2, 6)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"expected x \(B, 6\), got x \(2, 7\)"):
        mlp(torch.ones(2, 7))
    with pytest.raises(TypeError):
        mlp(torch.ones(2, 6), torch.ones(2, 0))


def test_like_takes_a_teacher_s_shapes():
    teacher = GroupConvolution("C4", 4, 3, lift=True)
    mlp = ConditionalMLP.like(teacher, width=8, depth=3)
    assert (mlp.in_shape, mlp.num_weights, mlp.out_shape, mlp.degree) == ((4, 4), 9, (4, 4, 4), 1)
    assert mlp(torch.ones(2, 4, 4), torch.ones(2, 9)).shape == (2, *teacher.out_shape)
    assert len(mlp.layers) == 7
    assert ClonedLayer(ConditionalMLP.like(EquivariantTensorProduct("1o", "1o", "0e")), 1, 1).degree == 2


def test_a_student_learns_a_teacher():
    torch.manual_seed(0)
    teacher = CircularConvolution((6,), 3)
    student = ConditionalMLP.like(teacher, width=64)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    for _ in range(400):
        x, tau = torch.randn(128, 6), torch.randn(128, 3)
        loss = (student(x, tau) - teacher(x, tau)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.15  # 1 is what knowing nothing gives
    symmetry = Symmetry("C6", "Shifted(-1)", "Shifted(-1)")
    x = torch.randn(64, 2, 6)
    taught = equivariance_error(ClonedLayer(student, 2, 3), x, symmetry).mean()
    untaught = equivariance_error(ClonedLayer(ConditionalMLP.like(teacher, width=64), 2, 3), x, symmetry).mean()
    assert taught < 0.5 * untaught


def test_a_student_that_is_linear_is_one_matrix_for_each_pair_of_channels():
    student = ConditionalBilinear((3, 2), 4, (5,))
    layer = ClonedLayer(student, in_channels=2, out_channels=3)
    nn.init.normal_(layer.bias)
    x = torch.randn(6, 2, 3, 2)
    expected = torch.stack(
        [sum(student(x[:, c], layer.tau[o, c].expand(6, -1)) for c in range(2)) + layer.bias[o] for o in range(3)],
        dim=1,
    )
    torch.testing.assert_close(layer(x), expected)


def test_a_linear_student_s_formula():
    student = ConditionalBilinear((3,), 2, (4,))
    x, tau = torch.randn(5, 3), torch.randn(5, 2)
    slow = torch.stack(
        [sum(t * (A @ v) for t, A in zip(w, student.weight, strict=True)) for v, w in zip(x, tau, strict=True)]
    )
    torch.testing.assert_close(student(x, tau), slow)
    torch.testing.assert_close((student.matrix(tau) @ x[..., None])[..., 0], slow)


def test_a_linear_student_learns_a_linear_family_exactly():
    """With the matrices of a circular convolution it is the convolution: shifts, one for each tap."""
    teacher = CircularConvolution((8,), 3)
    student = ConditionalBilinear.like(teacher)
    with torch.no_grad():
        for k in range(3):
            tap = torch.eye(3)[k].expand(8, -1)
            student.weight[k] = teacher(torch.eye(8), tap).mT
    x, tau = torch.randn(20, 8), torch.randn(20, 3)
    torch.testing.assert_close(student(x, tau), teacher(x, tau))
    with pytest.raises(ValueError, match="linear in x"):
        ConditionalBilinear.like(EquivariantTensorProduct("1o", "1o", "1e"))
    with pytest.raises(ValueError, match="num_weights"):
        ConditionalBilinear((3,), 0, (3,))
    with pytest.raises(ValueError, match="expected x"):
        student(x, tau[:, :2])
