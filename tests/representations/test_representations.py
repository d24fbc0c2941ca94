import inspect
import itertools

import pytest
import torch
from e3nn import io, o3

from lightning_equiv import (
    E3,
    O3,
    SE3,
    SO2,
    SO3,
    CartesianTensor,
    Custom,
    Cyclic,
    Dihedral,
    Factor,
    Image,
    Invariant,
    IrrepsTensor,
    NodeIndex,
    Permutation,
    Permuted,
    Point,
    Representation,
    VectorField,
    as_representation,
)
from lightning_equiv.representations.action import apply_matrix
from tests.contracts import MIXED, REPRESENTATION_LAWS, REPRESENTATIONS, concrete_subclasses, draw, velocity
from tests.helpers import close, normal, seeded


@pytest.mark.parametrize("law", REPRESENTATION_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_contract(name, law):
    law(REPRESENTATIONS[name])


def test_every_representation_has_a_row():
    assert concrete_subclasses(Representation) == {type(case.representation) for case in REPRESENTATIONS.values()}


# ---- twins -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("group", [SO3(), O3(), SE3(), E3(), SO2(), Dihedral(4)], ids=str)
def test_irreps_are_e3nn_s_dense_matrices(group, float64_default):
    g, x = draw(group, 5), normal(5, 4, 32)
    D = torch.stack([o3.Irreps(MIXED).D_from_matrix(R) for R in g.matrix_in(3)])
    close(IrrepsTensor(MIXED)(g, x), torch.einsum("nij,ncj->nci", D, x), 1e-10)


def test_irreps_in_another_dimension_are_the_same_moved():
    g, x = draw(O3(), 5), normal(5, 7, 6, 4)
    moved = IrrepsTensor("1o+1e")(g, x.movedim(2, -1)).movedim(-1, 2)
    close(IrrepsTensor("1o+1e", dim=2)(g, x), moved)


def test_vectors_turn_with_the_matrix_and_pseudovectors_with_its_determinant():
    g, x = draw(O3(), 20), normal(20, 3)
    turned = torch.einsum("nij,nj->ni", g.matrix, x)
    close(IrrepsTensor("1o")(g, x), turned)
    close(IrrepsTensor("1e")(g, x), torch.linalg.det(g.matrix)[:, None] * turned)
    y = normal(20, 3, seed=4)  # a cross product of vectors is a pseudovector
    cross = torch.linalg.cross(IrrepsTensor("1o")(g, x), IrrepsTensor("1o")(g, y))
    close(IrrepsTensor("1e")(g, torch.linalg.cross(x, y)), cross)


def test_irreps_derivative_is_a_cross_product():
    a, x = velocity(SO3()), normal(6, 3)
    close(IrrepsTensor("1o").infinitesimal(a, x), torch.linalg.cross(a.coefficients, x))


def test_cartesian_tensors_turn_by_einsum():
    g, T, third = draw(O3(), 5), normal(5, 2, 3, 3), normal(5, 3, 3, 3)
    R = g.matrix
    close(CartesianTensor()(g, T), torch.einsum("nij,ncjk,nlk->ncil", R, T, R))
    close(CartesianTensor(3)(g, third), torch.einsum("nia,njb,nkc,nabc->nijk", R, R, R, third))
    a = velocity(O3(), 5)
    W = a.matrix[:, None]
    close(CartesianTensor().infinitesimal(a, T), W @ T + T @ W.mT)


@pytest.mark.parametrize("formula", ["ij=ji", "ij=-ji", "ij"])
def test_cartesian_tensors_are_e3nn_s(formula, float64_default):
    g = draw(O3(), 5)
    basis = io.CartesianTensor(formula)
    x = normal(5, basis.dim)
    T = basis.to_cartesian(x)
    turned = basis.to_cartesian(IrrepsTensor(o3.Irreps(basis))(g, x))
    close(CartesianTensor()(g, T), turned, 1e-10)


def test_permuted_is_a_permutation_matrix():
    g, x, A = draw(Permutation(5), 6), normal(6, 5, 2), normal(6, 5, 5)
    P = torch.zeros(6, 5, 5, dtype=torch.float64)
    for n, i in itertools.product(range(6), range(5)):
        P[n, g.permutation[n, i], i] = 1  # thing i goes to place g(i)
    close(Permuted(1)(g, x), P @ x)
    close(Permuted((1, 2))(g, A), P @ A @ P.mT)
    close(Permuted(-1)(g, x.mT), (P @ x).mT)


def test_permuted_moves_numbers_of_every_kind():
    g = Permutation(3).element(torch.tensor([1, 2, 0]))
    for dtype in (torch.long, torch.bool, torch.float16):
        x = torch.tensor([[1, 0, 0]]).to(dtype)
        assert torch.equal(Permuted()(g, x), torch.tensor([[0, 1, 0]]).to(dtype))


def test_composed_acts_with_both():
    group = SO3() * Permutation(4)
    g, x = draw(group, 6), normal(6, 4, 3)
    rotation, order = g.parts
    expected = torch.empty_like(x)
    for n, i in itertools.product(range(6), range(4)):
        expected[n, order.permutation[n, i]] = rotation.matrix[n] @ x[n, i]
    close((Permuted(1) @ "1o")(g, x), expected)
    close((IrrepsTensor("1o") @ Permuted(1))(g, x), expected)


def test_factors_act_by_their_own():
    g, x = draw(SO3() * O3(), 6), normal(6, 3)
    close(Factor(0, "1o")(g, x), IrrepsTensor("1o")(g.parts[0], x))
    close(Factor(1, "1e")(g, x), IrrepsTensor("1e")(g.parts[1], x))


# ---- translations and planes -----------------------------------------------------------------------------------------
def test_translations_move_points_and_nothing_else():
    g = SE3().element(torch.eye(3, dtype=torch.float64), torch.tensor([1.0, 2.0, 3.0]))
    x = normal(4, 3)
    close(Point()(g, x), x + torch.tensor([1.0, 2.0, 3.0]))
    close(Point(dim=1)(g, x[..., None]), (x + torch.tensor([1.0, 2.0, 3.0]))[..., None])
    for still in ("1o", "1e", "2e", "0e"):
        rho = IrrepsTensor(still)
        y = normal(4, rho.irreps.dim)
        close(rho(g, y), y)
    close(CartesianTensor()(g, normal(4, 3, 3)), normal(4, 3, 3))
    a = velocity(SE3(), 4)
    close(Point().infinitesimal(a, x), torch.linalg.cross(a.coefficients[:, :3], x) + a.coefficients[:, 3:])
    close(IrrepsTensor("1o").infinitesimal(a, x), torch.linalg.cross(a.coefficients[:, :3], x))


@pytest.mark.parametrize("rho", [IrrepsTensor("1o"), Point(), CartesianTensor(1)], ids=repr)
def test_planes_turn_space_about_z(rho):
    x = torch.tensor([[1.0, 2.0, 3.0]])
    close(rho(Cyclic(4).elements()[1], x), torch.tensor([[-2.0, 1.0, 3.0]]))
    flip = Dihedral(4).elements()[4]
    close(rho(flip, x), torch.tensor([[1.0, -2.0, 3.0]]))
    angle = 0.3
    g = (SO2().algebra() * angle).exp()
    c, s = torch.tensor([angle]).cos(), torch.tensor([angle]).sin()
    close(rho(g, x), torch.tensor([[c - 2 * s, s + 2 * c, 3.0]]), 1e-6)


def test_reflection_of_the_plane_turns_pseudovectors_over():
    flip = Dihedral(4).elements()[4]  # y -> -y: a pseudovector keeps y alone
    close(IrrepsTensor("1e")(flip, torch.tensor([[1.0, 2.0, 3.0]])), torch.tensor([[-1.0, 2.0, -3.0]]))
    close(IrrepsTensor("0o")(flip, torch.tensor([[1.0]])), torch.tensor([[-1.0]]))


# ---- small elements, gradients of elements ---------------------------------------------------------------------------
def test_small_turns_are_kept_in_float32():
    g = (SO3().algebra()[2] * 1e-4).exp()
    moved = IrrepsTensor("1o")(g, torch.tensor([[1.0, 0.0, 0.0]]))
    close(moved[0, 1], torch.tensor(1e-4), 1e-9)


def test_gradients_reach_the_element():
    t = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    g = (SO3().algebra()[0] * 0.0).exp()
    for rho, shape in ((IrrepsTensor("1o+2e"), (1, 8)), (Point(), (1, 3)), (CartesianTensor(), (1, 3, 3))):
        x, w = normal(*shape), normal(*shape, seed=4)
        a = type(SO3().algebra())(SO3(), (t,))
        (gradient,) = torch.autograd.grad((w * rho(a.exp(), x)).sum(), t)
        expected = [(w * rho.infinitesimal(b, x)).sum() for b in SO3().algebra()]
        close(gradient[0], torch.stack(expected), 1e-10)
    assert len(g) == 1


def test_custom_needs_a_derivative_only_when_asked():
    rho = as_representation(lambda g, x: x)
    assert isinstance(rho, Custom)
    a, x = velocity(SO3(), 2), normal(2, 3)
    assert rho(draw(SO3(), 2), x) is x
    with pytest.raises(NotImplementedError, match="does not know its infinitesimal action"):
        rho.infinitesimal(a, x)


@pytest.mark.parametrize("function", [lambda g, x: x[..., :1], lambda g, x: x.float()])
def test_custom_must_keep_shape_and_dtype(function):
    with pytest.raises(ValueError, match="expected an action that keeps shape and dtype"):
        Custom(function)(draw(SO3(), 2), normal(2, 3))


def test_invariant_passes_the_tensor_on():
    x = normal(3)
    assert Invariant()(draw(SO3(), 3), x) is x
    assert not Invariant().infinitesimal(velocity(SO3(), 3), x).any()
    assert not NodeIndex().infinitesimal(velocity(SO3(), 3), torch.arange(3)).any()


def test_apply_matrix_leaves_other_rows_alone():
    with pytest.raises(ValueError, match="1 or 4 group elements"):
        apply_matrix(torch.eye(3).repeat(2, 1, 1), torch.ones(4, 3))
    with pytest.raises(ValueError, match="1 or 4 group elements"):
        Point().infinitesimal(velocity(SO3(), 2), normal(4, 3))


# ---- strings ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("1o", IrrepsTensor("1o")),
        (" 16x0e + 8x1o", IrrepsTensor("16x0e+8x1o")),
        ("'1o'", IrrepsTensor("1o")),
        ("IrrepsTensor('1o', dim=2)", IrrepsTensor("1o", dim=2)),
        ("IrrepsTensor(irreps='1o', dim=-2)", IrrepsTensor("1o", dim=-2)),
        (" Point() ", Point()),
        ("Point(1)", Point(dim=1)),
        ("CartesianTensor(rank=3)", CartesianTensor(3)),
        ("Permuted((1, 2))", Permuted((1, 2))),
        ("Permuted([1, 2])", Permuted((1, 2))),
        ("Permuted(1) @ '1o'", Permuted(1) @ "1o"),
        ("Permuted(1) @ ('1o' @ Permuted(2))", Permuted(1) @ (IrrepsTensor("1o") @ Permuted(2))),
        ("Composed('1o', Permuted(1))", IrrepsTensor("1o") @ Permuted(1)),
        ("Factor(0, '1o')", Factor(0, IrrepsTensor("1o"))),
        ("Factor(1, Permuted(1) @ '1o')", Factor(1, Permuted(1) @ "1o")),
        ("Factor(0, 'Point()')", Factor(0, Point())),
        ("Invariant(shared=True)", Invariant(shared=True)),
        ("Image()", Image()),
        ("VectorField()", VectorField()),
        ("NodeIndex()", NodeIndex()),
    ],
)
def test_strings(text, meant):
    assert as_representation(text) == meant
    assert as_representation(repr(meant)) == meant


def test_order_of_composition_survives_its_repr():
    a, b, c = Permuted(1), IrrepsTensor("1o"), Point()
    assert as_representation(repr(a @ (b @ c))) == a @ (b @ c) != (a @ b) @ c
    assert as_representation(repr((a @ b) @ c)) == (a @ b) @ c


def test_irreps_objects_are_irreps():
    assert as_representation(o3.Irreps("2x1o")) == IrrepsTensor("2x1o")
    assert as_representation(o3.Irrep("1o")) == IrrepsTensor("1o")


def test_every_class_can_be_written():
    for cls in concrete_subclasses(Representation) - {Custom}:
        with pytest.raises(ValueError, match=rf"{cls.__name__}\(\.\.\.\)"):
            as_representation("no such thing")


def test_a_representation_is_an_abstract_class_with_one_thing_to_write():
    assert Representation.__abstractmethods__ == {"action"}
    assert inspect.isabstract(Representation)


@pytest.mark.parametrize("rho", [Point(), CartesianTensor(2), IrrepsTensor("1o")], ids=repr)
def test_reduced_precision_matmuls_do_not_blur_a_rotation(rho: Representation) -> None:
    before = torch.get_float32_matmul_precision()
    x = normal(64, 3, 3, dtype=torch.float32)
    g = SO3().sample(64, generator=seeded(1))
    exact = rho(g, x.double())
    try:
        torch.set_float32_matmul_precision("medium")
        moved = rho(g, x)
    finally:
        torch.set_float32_matmul_precision(before)
    assert (moved - exact).abs().max() < 1e-5
