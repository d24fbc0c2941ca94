"""Every family is equivariant, bilinear and of unit variance, and equals its formula written as a loop."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from e3nn import o3

from lightning_equiv import (
    CircularConvolution,
    Cyclic,
    Dihedral,
    EquivarianceError,
    EquivariantLinear,
    EquivariantTensorProduct,
    GroupConvolution,
    Image,
    Regular,
    Teacher,
)
from tests.helpers import TOLERANCE, close, seeded

TEACHERS = {
    "ring": lambda: CircularConvolution((8,), 3),
    "ring, widest kernel": lambda: CircularConvolution((5,), 5),
    "ring of one": lambda: CircularConvolution((1,), 1),
    "torus": lambda: CircularConvolution((6, 4), 3),
    "C4 lift": lambda: GroupConvolution("C4", 6, 3, lift=True),
    "C4": lambda: GroupConvolution("C4", 5, 3),
    "D4 lift": lambda: GroupConvolution("D4", 5, 5, lift=True),
    "D4": lambda: GroupConvolution(Dihedral(4), 4, 3),
    "linear": lambda: EquivariantLinear("2x0e+3x1o+1o+2e", "0e+2x1o+2e"),
    "tensor product": lambda: EquivariantTensorProduct("2x0e+1o", "0e+2x1o+2e", "2x0e+1o+1e+2e"),
}


def draws(teacher, n=6, seed=0, dtype=torch.float64):
    x, tau = (
        torch.randn(n, *shape, generator=seeded(seed + i), dtype=dtype)
        for i, shape in enumerate((teacher.in_shape, (teacher.num_weights,)))
    )
    return x, tau


@pytest.fixture(params=TEACHERS)
def teacher(request):
    return TEACHERS[request.param]()


# ---- what every family must satisfy ----------------------------------------------------------------------------------
def test_every_family_has_a_row():
    assert set(Teacher.__subclasses__()) == {type(make()) for make in TEACHERS.values()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equivariant_to_every_element(teacher, dtype):
    teacher.to(dtype)
    group = teacher.symmetry.group
    elements = group.elements() if group.order is not None else group.sample(20, generator=seeded())
    for seed, g in enumerate(elements):
        x, tau = draws(teacher, seed=seed, dtype=dtype)
        (gx, _), _ = teacher.symmetry.move_inputs(g, (x, tau))
        tolerance = 1e-5 if isinstance(teacher, EquivariantTensorProduct) else TOLERANCE[dtype]  # e3nn's float32 tables
        close(teacher(gx, tau), teacher.symmetry.move_outputs(g, teacher(x, tau)), max(tolerance, TOLERANCE[dtype]))


def test_the_metric_agrees(teacher):
    x, tau = draws(teacher, 50, dtype=torch.float32)
    metric = EquivarianceError(teacher.symmetry, num_samples=4)
    metric.update(teacher, x, tau)
    assert metric.compute() < 1e-5


def test_linear_in_tau_and_homogeneous_in_x(teacher):
    teacher.double()
    x, tau = draws(teacher)
    other = draws(teacher, seed=9)[1]
    close(teacher(x, 2 * tau - 3 * other), 2 * teacher(x, tau) - 3 * teacher(x, other))
    close(teacher(-3 * x, tau), (-3) ** teacher.degree * teacher(x, tau))
    if teacher.degree == 1:
        y = draws(teacher, seed=9)[0]
        close(teacher(2 * x - 3 * y, tau), 2 * teacher(x, tau) - 3 * teacher(y, tau))


def test_outputs_have_mean_square_one(teacher):
    out = teacher(*draws(teacher, 40_000, dtype=torch.float32)).double()
    assert out.shape == (40_000, *teacher.out_shape)
    assert out.square().mean() == pytest.approx(1, abs=0.03)
    if not isinstance(teacher, GroupConvolution):  # less is added up near a border of zeros
        close(out.square().mean(0), torch.ones(teacher.out_shape), 0.08)
    close(out.mean(0), torch.zeros(teacher.out_shape), 0.04)


def test_samples_are_independent_and_weights_are_inputs(teacher):
    x, tau = draws(teacher, dtype=torch.float32)
    out = teacher(x, tau)
    for i in range(len(x)):
        close(teacher(x[i : i + 1], tau[i : i + 1]), out[i : i + 1], 1e-5)
    assert teacher(x[:0], tau[:0]).shape == (0, *teacher.out_shape)
    assert not list(teacher.parameters())
    x.requires_grad_(), tau.requires_grad_()
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(teacher(x, tau).square().sum(), (x, tau)))


def test_a_copy_is_the_same_family(teacher):
    x, tau = draws(teacher, dtype=torch.float32)
    twin = copy.deepcopy(teacher)
    assert torch.equal(twin(x, tau), teacher(x, tau))
    assert repr(twin) == repr(teacher)
    assert (twin.symmetry, twin.in_shape) == (teacher.symmetry, teacher.in_shape)


def test_the_repr_tells_families_apart():
    assert len({repr(make()) for make in TEACHERS.values()}) == len(TEACHERS)


# ---- twins -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("sizes", "k"), [((8,), 3), ((5,), 5), ((6, 4), 3)])
def test_circular_convolution_is_the_sum(sizes, k):
    teacher = CircularConvolution(sizes, k)
    x, tau = draws(teacher, 2)
    kernel, expected = tau.reshape(-1, *[k] * len(sizes)), torch.zeros(2, *sizes, dtype=torch.float64)
    every = (slice(None),)
    for p in itertools.product(*map(range, sizes)):
        for q in itertools.product(range(k), repeat=len(sizes)):
            there = tuple((a + b - k // 2) % n for a, b, n in zip(p, q, sizes, strict=True))
            expected[every + p] += kernel[every + q] * x[every + there]
    close(teacher(x, tau), expected / k ** (len(sizes) / 2))
    assert teacher.scale == pytest.approx(k ** (-len(sizes) / 2))


@pytest.mark.parametrize("lift", [True, False])
@pytest.mark.parametrize("group", [Cyclic(4), Dihedral(4)], ids=str)
def test_group_convolution_is_the_sum_over_group_and_positions(group, lift):
    size, k = 4, 3
    teacher = GroupConvolution(group, size, k, lift)
    x, tau = draws(teacher, 2)
    R = group.elements().matrix.round().long()  # of (x, y), x to the right, y up
    order = len(R)
    psi = tau.reshape(2, -1, k, k)
    maps = x.reshape(2, -1, size, size)
    expected = torch.zeros(2, order, size, size, dtype=torch.float64)
    terms = 0
    for h, row, column in itertools.product(range(order), range(size), range(size)):
        for qx, qy in itertools.product((-1, 0, 1), repeat=2):
            r, c = row - qy, column + qx
            if not (0 <= r < size and 0 <= c < size):
                continue
            bx, by = (R[h].T @ torch.tensor([qx, qy])).tolist()  # h^-1 q
            for g in range(len(maps[0])):
                which = 0 if lift else next(i for i in range(order) if torch.equal(R[i], R[h].T @ R[g]))  # h^-1 g
                expected[:, h, row, column] += psi[:, which, 1 - by, 1 + bx] * maps[:, g, r, c]
                terms += 1
    close(teacher(x, tau), teacher.scale * expected)
    assert teacher.scale == pytest.approx((order * size**2 / terms) ** 0.5)


def test_c4_is_rot90_of_filters_and_roll_of_orientations():
    teacher, lift = GroupConvolution("C4", 6, 3), GroupConvolution("C4", 6, 3, lift=True)
    (x, tau), (image, weight) = draws(teacher, 1), draws(lift, 1)
    w = tau.reshape(4, 3, 3)
    filters = torch.stack([w.rot90(r, (-2, -1)).roll(r, 0) for r in range(4)])
    close(teacher(x, tau), teacher.scale * torch.nn.functional.conv2d(x, filters, padding="same"))
    filters = torch.stack([weight.reshape(1, 3, 3).rot90(r, (-2, -1)) for r in range(4)])
    close(lift(image, weight), lift.scale * torch.nn.functional.conv2d(image[None], filters, padding="same"))


def test_lifted_maps_are_what_the_next_convolution_takes():
    lift, conv = GroupConvolution("D4", 5, 3, lift=True), GroupConvolution("D4", 5, 3)
    assert lift.out_shape == conv.in_shape == conv.out_shape == (8, 5, 5)
    assert lift.symmetry.outputs == conv.symmetry.inputs[0] == conv.symmetry.outputs == Image() @ Regular(-3)


def test_irreps_are_e3nn_s_weight_by_weight():
    linear = EquivariantLinear("2x0e+1o", "0e+3x1o")
    x, tau = draws(linear, 4)
    scalar = torch.einsum("nu,nu->n", tau[:, :2], x[:, :2]) / 2**0.5
    vectors = torch.einsum("nv,ni->nvi", tau[:, 2:], x[:, 2:])
    close(linear(x, tau), torch.cat([scalar[:, None], vectors.flatten(1)], -1))
    product = EquivariantTensorProduct("1o", "1o", "0e+1e").double()
    x, tau = draws(product, 4)
    a, b = x[:, :3], x[:, 3:]
    dot, cross = (a * b).sum(-1, keepdim=True) / 3**0.5, torch.linalg.cross(a, b) / 2**0.5
    out = product(x, tau) / torch.cat([tau[:, :1], tau[:, 1:].expand(-1, 3)], -1)
    close(out.abs(), torch.cat([dot, cross], -1).abs(), 1e-6)  # e3nn's coefficients are float32


# ---- bad input -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CircularConvolution((12,), 4), "expected an odd kernel_size.*got 4: write 3 or 5"),
        (lambda: CircularConvolution((12,), 0), "got 0"),
        (lambda: CircularConvolution((12, 4), 5), "at most the grid's size 4, got 5: write 3"),
        (lambda: CircularConvolution((4, 4, 4), 3), r"one or two sizes, \(12,\) or \(12, 12\), got \(4, 4, 4\)"),
        (lambda: CircularConvolution((), 3), "one or two sizes"),
        (lambda: CircularConvolution((0,), 1), "one or two sizes"),
        (lambda: GroupConvolution("C4", 8, 2), "expected an odd kernel_size"),
        (lambda: GroupConvolution("C4", 3, 5), "at most the grid's size 3, got 5: write 3"),
        (lambda: GroupConvolution("C5", 8, 3), "expected the group 'C4' or 'D4', got 'C5'"),
        (lambda: GroupConvolution("SO(2)", 8, 3), r"'C4' or 'D4', got 'SO\(2\)'"),
        (lambda: EquivariantLinear("0e+1o", "0e+2e"), "no path leads from the inputs to .*2e; expected irreps among"),
        (lambda: EquivariantLinear("0e+0x1o", "1o"), "no path leads from the inputs to .*1o"),
        (lambda: EquivariantLinear("", "1o"), "expected irreps_in such as"),
        (lambda: EquivariantLinear("1o", "0x0e"), "expected irreps_out such as"),
        (lambda: EquivariantLinear("hello", "1o"), "expected irreps such as"),
        (lambda: EquivariantTensorProduct("1o", "1o", "1o"), "no path leads from the inputs to .*1o.*0e, 1e, 2e"),
        (lambda: EquivariantTensorProduct("1o", "", "1o"), "expected irreps_in2 such as"),
    ],
)
def test_a_family_is_refused_when_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_shapes_are_checked(teacher):
    x, tau = draws(teacher)
    for wrong in ((x[..., None], tau), (x, tau[:, :-1]), (x, tau[:1]), (x, tau[0]), (x[0], tau[0])):
        with pytest.raises(ValueError, match=rf"^{type(teacher).__name__}\(.*expects x \(B, .* got x .*expand"):
            teacher(*wrong)


def test_irreps_may_be_e3nn_s():
    teacher = EquivariantLinear(o3.Irreps("2x1o"), o3.Irreps("1o"))
    assert (teacher.in_shape, teacher.out_shape, teacher.num_weights) == ((6,), (3,), 2)
