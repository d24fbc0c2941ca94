"""What every group and every representation must satisfy, and the one table of cases that it is run over.

A contract is a list of laws; a law is a function of one case. A concrete class without a row in its table fails
(`tests/groups/test_groups.py`, `tests/representations/test_representations.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import lightning_equiv
from lightning_equiv import (
    E3,
    O3,
    SE3,
    SO2,
    SO3,
    AlgebraElement,
    CartesianTensor,
    Custom,
    Cyclic,
    Dihedral,
    EdgeNumbers,
    Factor,
    GraphNumbers,
    Group,
    GroupElement,
    Ignored,
    Image,
    Invariant,
    IrrepsTensor,
    NodeIndex,
    Per,
    Permutation,
    Permuted,
    Point,
    Pointer,
    Product,
    Regular,
    Representation,
    Shifted,
    Translation,
    VectorField,
    as_group,
    as_representation,
)
from tests.helpers import TOLERANCE, close, normal, seeded

ROWS = 6
ROOMS = ("lightning_equiv.groups.", "lightning_equiv.representations.")


def same(g: GroupElement, h: GroupElement) -> None:
    assert g.group == h.group
    assert len(g.coordinates) == len(h.coordinates)
    for a, b in zip(g.coordinates, h.coordinates, strict=True):
        close(a, b)


def concrete_subclasses(base: type) -> set[type]:
    """Those that a user writes, all in these folders; a test may define its own."""
    found: set[type] = set()
    for cls in base.__subclasses__():
        found |= concrete_subclasses(cls)
        if not inspect.isabstract(cls) and cls.__module__.startswith(ROOMS):
            found.add(cls)
    return found


# ---- groups ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class GroupCase:
    """A group; how it is typed, in short and in Python; how many elements it has; what its coordinates must satisfy."""

    group: Group
    name: str
    typed: str
    order: int | None
    valid: Callable[[GroupElement], None]


def orthogonal(space: int, reflections: bool = False) -> Callable[[GroupElement], None]:
    def valid(g: GroupElement) -> None:
        R = g.coordinates[0]
        assert R.shape == (len(g), space, space)
        close(R @ R.mT, torch.eye(space, dtype=R.dtype).expand_as(R))
        determinant = torch.linalg.det(R)
        close(determinant.abs() if reflections else determinant, torch.ones(len(g)))

    return valid


def rigid(reflections: bool) -> Callable[[GroupElement], None]:
    def valid(g: GroupElement) -> None:
        orthogonal(3, reflections)(g)
        assert g.coordinates[1].shape == (len(g), 3)

    return valid


def shifts(n: int) -> Callable[[GroupElement], None]:
    def valid(g: GroupElement) -> None:
        assert g.coordinates[0].shape == (len(g), n)
        assert torch.equal(g.matrix, torch.eye(n, dtype=g.matrix.dtype).expand(len(g), n, n))

    return valid


def whole(*moduli: int) -> Callable[[GroupElement], None]:
    def valid(g: GroupElement) -> None:
        assert len(g.coordinates) == len(moduli)
        for c, m in zip(g.coordinates, moduli, strict=True):
            assert c.dtype == torch.long
            assert c.shape == (len(g),)
            assert bool(((c >= 0) & (c < m)).all())

    return valid


def ordering(n: int) -> Callable[[GroupElement], None]:
    def valid(g: GroupElement) -> None:
        assert torch.equal(g.coordinates[0].sort(-1).values, torch.arange(n).repeat(len(g), 1))

    return valid


def each_part(*valids: Callable[[GroupElement], None]) -> Callable[[GroupElement], None]:
    def valid(g: GroupElement) -> None:
        for part, of_part in zip(g.parts, valids, strict=True):
            of_part(part)

    return valid


GROUPS = {
    "SO2": GroupCase(SO2(), "SO(2)", "SO2()", None, orthogonal(2)),
    "SO3": GroupCase(SO3(), "SO(3)", "SO3()", None, orthogonal(3)),
    "O3": GroupCase(O3(), "O(3)", "O3()", None, orthogonal(3, reflections=True)),
    "SE3": GroupCase(SE3(), "SE(3)", "SE3(scale=1.0)", None, rigid(reflections=False)),
    "E3": GroupCase(E3(), "E(3)", "E3(scale=1.0)", None, rigid(reflections=True)),
    "SE3, scaled": GroupCase(SE3(20.5), "SE(3, scale=20.5)", "SE3(scale=20.5)", None, rigid(reflections=False)),
    "T2": GroupCase(Translation(2), "T(2)", "Translation(n=2, scale=1.0)", None, shifts(2)),
    "T3, scaled": GroupCase(Translation(3, 20.5), "T(3, scale=20.5)", "Translation(n=3, scale=20.5)", None, shifts(3)),
    "C1": GroupCase(Cyclic(1), "C1", "Cyclic(n=1)", 1, whole(1)),
    "C4": GroupCase(Cyclic(4), "C4", "Cyclic(n=4)", 4, whole(4)),
    "C7": GroupCase(Cyclic(7), "C7", "Cyclic(n=7)", 7, whole(7)),
    "D1": GroupCase(Dihedral(1), "D1", "Dihedral(n=1)", 2, whole(1, 2)),
    "D4": GroupCase(Dihedral(4), "D4", "Dihedral(n=4)", 8, whole(4, 2)),
    "D5": GroupCase(Dihedral(5), "D5", "Dihedral(n=5)", 10, whole(5, 2)),
    "S1": GroupCase(Permutation(1), "S1", "Permutation(n=1)", 1, ordering(1)),
    "S4": GroupCase(Permutation(4), "S4", "Permutation(n=4)", 24, ordering(4)),
    "D3 x S3": GroupCase(
        Dihedral(3) * Permutation(3),
        "D3 x S3",
        "Product(factors=(Dihedral(n=3), Permutation(n=3)))",
        36,
        each_part(whole(3, 2), ordering(3)),
    ),
    "E3 x S4": GroupCase(
        E3() * Permutation(4),
        "E(3) x S4",
        "Product(factors=(E3(scale=1.0), Permutation(n=4)))",
        None,
        each_part(rigid(reflections=True), ordering(4)),
    ),
    "SO3 x SO2 x C2": GroupCase(
        Product((SO3(), SO2(), Cyclic(2))),
        "SO(3) x SO(2) x C2",
        "Product(factors=(SO3(), SO2(), Cyclic(n=2)))",
        None,
        each_part(orthogonal(3), orthogonal(2), whole(2)),
    ),
}


def draw(group: Group, n: int = ROWS, seed: int = 0) -> GroupElement:
    return group.sample(n, generator=seeded(seed))


def velocity(group: Group, n: int = ROWS, seed: int = 0) -> AlgebraElement:
    return AlgebraElement(group, (normal(n, group.dim, seed=seed),))


def coordinates_are_valid(case: GroupCase) -> None:
    g, h = draw(case.group, seed=1), draw(case.group, seed=2)
    case.valid(g)
    case.valid(g @ h)
    case.valid(g.inverse())
    case.valid(case.group.identity(3))
    case.valid(velocity(case.group).exp())


def product_is_associative(case: GroupCase) -> None:
    g, h, k = (draw(case.group, seed=seed) for seed in range(3))
    same((g @ h) @ k, g @ (h @ k))


def identity_is_neutral(case: GroupCase) -> None:
    g, e = draw(case.group), case.group.identity(ROWS)
    same(g @ e, g)
    same(e @ g, g)
    same(g @ case.group.identity(), g)


def inverse_undoes(case: GroupCase) -> None:
    g, e = draw(case.group), case.group.identity(ROWS)
    same(g @ g.inverse(), e)
    same(g.inverse() @ g, e)


def one_element_composes_with_many(case: GroupCase) -> None:
    g, h = draw(case.group, 5), draw(case.group, 1, seed=1)
    same(g @ h, g @ h.repeat(5))
    same(h @ g, h.repeat(5) @ g)
    with pytest.raises(ValueError, match="got 5 and 2"):
        g @ draw(case.group, 2)


def matrices_and_permutations_are_homomorphic(case: GroupCase) -> None:
    for g, h in zip(draw(case.group, seed=1).parts, draw(case.group, seed=2).parts, strict=True):
        if g.group.space_dim is not None:
            close((g @ h).matrix, g.matrix @ h.matrix)
            assert g.matrix.shape[1:] == (g.group.space_dim, g.group.space_dim)
        else:
            for of_gh, of_g, of_h in zip((g @ h).permutation, g.permutation, h.permutation, strict=True):
                assert of_gh.tolist() == [int(of_g[int(i)]) for i in of_h]
        if g.translation is not None and h.translation is not None and (g @ h).translation is not None:
            close((g @ h).translation, torch.einsum("nij,nj->ni", g.matrix, h.translation) + g.translation)


def elements_are_the_whole_group(case: GroupCase) -> None:
    assert case.group.order == case.order
    if case.order is None:
        with pytest.raises(ValueError, match="infinitely many elements"):
            case.group.elements()
        return
    elements = case.group.elements()
    case.valid(elements)
    same(elements[0], case.group.identity())
    rows = [row_of(g) for g in elements]
    assert len(rows) == len(elements) == case.order
    assert len(set(rows)) == case.order
    table = {(i, j): row_of(elements[i] @ elements[j]) for i in range(case.order) for j in range(case.order)}
    assert set(table.values()) == set(rows)
    assert all(len({table[i, j] for j in range(case.order)}) == case.order for i in range(case.order))


def row_of(g: GroupElement) -> tuple[int, ...]:
    """The whole-number coordinates of the only element."""
    return tuple(int(value) for c in g.coordinates for value in c.reshape(-1))


def exponential_is_a_one_parameter_subgroup(case: GroupCase) -> None:
    a, basis = velocity(case.group), case.group.algebra()
    assert len(basis) == case.group.dim
    same((a * 0.0).exp(), case.group.identity(ROWS))
    for v in (a, basis):
        same((v * 0.3).exp() @ (v * 0.9).exp(), (v * 1.2).exp())
        same((v * -1.0).exp(), v.exp().inverse())
    each = torch.linspace(-1, 1, ROWS, dtype=torch.float64)
    same((a * each).exp(), (each[:, None] * a).exp())


def algebra_is_the_derivative_of_the_exponential(case: GroupCase) -> None:
    step = 1e-5
    for a in velocity(case.group).parts:
        if a.group.space_dim is None:
            continue
        forth, back = (a * step).exp(), (a * -step).exp()
        close((forth.matrix - back.matrix) / (2 * step), a.matrix, 1e-9)
        close(a.matrix, -a.matrix.mT)
        if a.translation is not None and forth.translation is not None and back.translation is not None:
            close((forth.translation - back.translation) / (2 * step), a.translation, 1e-9)


def generator_decides_every_draw(case: GroupCase) -> None:
    state = torch.get_rng_state()
    g, again, other = draw(case.group, 50), draw(case.group, 50), draw(case.group, 50, seed=1)
    shared = seeded()
    first, second = case.group.sample(50, generator=shared), case.group.sample(50, generator=shared)
    case.group.sample(3)
    assert torch.equal(torch.get_rng_state(), state)
    for i, c in enumerate(g.coordinates):
        assert torch.equal(c, again.coordinates[i])
        assert torch.equal(c, first.coordinates[i])
        one_value = torch.equal(c, c[:1].expand_as(c))  # a modulus of 1
        assert one_value or not torch.equal(c, other.coordinates[i])
        assert one_value or not torch.equal(c, second.coordinates[i])


def dtype_and_device_are_options(case: GroupCase) -> None:
    exact = draw(case.group)
    single = case.group.sample(ROWS, generator=seeded(), dtype=torch.float32, device="cpu")
    for built, dtype in (
        (exact, torch.float64),
        (single, torch.float32),
        (exact.to(dtype=torch.float32), torch.float32),
        (case.group.identity(2), torch.float64),
        (case.group.identity(2, dtype=torch.float32), torch.float32),
        (case.group.algebra(dtype=torch.float32), torch.float32),
        (case.group.algebra(), torch.float64),
    ):
        assert all(c.dtype in (dtype, torch.long) for c in built.coordinates)
        assert built.device == torch.device("cpu")
    for a, b in zip(exact.coordinates, single.coordinates, strict=True):
        close(a, b, TOLERANCE[torch.float32])
    assert exact.to("meta").device == torch.device("meta")


def written_as_a_string(case: GroupCase) -> None:
    assert str(case.group) == case.name
    assert as_group(case.name) == case.group
    assert as_group(case.name.lower()) == case.group
    assert as_group(case.group) is case.group
    assert repr(case.group) == case.typed
    assert eval(case.typed, vars(lightning_equiv)) == case.group
    assert hash(eval(case.typed, vars(lightning_equiv))) == hash(case.group)


def indexing_gives_batches(case: GroupCase) -> None:
    g = draw(case.group, 4)
    index = torch.tensor([3, 0, 0])
    for key, rows in (
        (0, [0]), (-1, [3]), (-4, [0]), (slice(1, 3), [1, 2]), (index, [3, 0, 0]), (torch.tensor(2), [2]),
        (torch.tensor([True, False, True, False]), [0, 2]), (slice(0, 0), []),
    ):  # fmt: skip
        assert len(g[key]) == len(rows)
        for c, picked in zip(g.coordinates, g[key].coordinates, strict=True):
            assert torch.equal(picked, c[rows] if rows else c[:0])
    assert [len(one) for one in g] == [1, 1, 1, 1]
    for outside in (4, -5):
        with pytest.raises(IndexError, match=f"got {outside}"):
            g[outside]
    assert len(g.repeat(3)) == 12
    same(g.repeat(3), g[torch.tensor([0, 1, 2, 3] * 3)])


GROUP_LAWS = (
    coordinates_are_valid,
    product_is_associative,
    identity_is_neutral,
    inverse_undoes,
    one_element_composes_with_many,
    matrices_and_permutations_are_homomorphic,
    elements_are_the_whole_group,
    exponential_is_a_one_parameter_subgroup,
    algebra_is_the_derivative_of_the_exponential,
    generator_decides_every_draw,
    dtype_and_device_are_options,
    written_as_a_string,
    indexing_gives_batches,
)


# ---- representations -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class RepresentationCase:
    """A representation of a group on tensors of (ROWS, *shape).

    `interpolates`: off the grid points nothing is exact; `typed`: whether its repr can be typed back.
    """

    representation: Representation
    group: Group
    shape: tuple[int, ...]
    interpolates: bool = False
    typed: bool = True

    def x(self, seed: int = 7, dtype: torch.dtype = torch.float64) -> Tensor:
        return normal(ROWS, *self.shape, seed=seed).to(dtype)

    def move(self, g: GroupElement, x: Tensor) -> Tensor:
        return self.representation(g, x)


def turned_twice(g: GroupElement, x: Tensor) -> Tensor:
    """A representation of SO(2) that no class has: the angle counts double."""
    return torch.einsum("nij,njc->nic", (g.matrix @ g.matrix).to(x.dtype).expand(len(x), 2, 2), x)


def turned_twice_derivative(a: AlgebraElement, x: Tensor) -> Tensor:
    return torch.einsum("nij,njc->nic", 2 * a.matrix.to(x.dtype).expand(len(x), 2, 2), x)


MIXED = "2x0e+0o+3x1o+1e+2e+2o+3o"  # 2 + 1 + 9 + 3 + 5 + 5 + 7 = 32 components

REPRESENTATIONS = {
    "irreps, O3": RepresentationCase(IrrepsTensor(MIXED), O3(), (4, 32)),
    "irreps, E3": RepresentationCase(IrrepsTensor("0e+1o"), E3(), (4,)),
    "irreps, SO2": RepresentationCase(IrrepsTensor(MIXED), SO2(), (32,)),
    "irreps, D4": RepresentationCase(IrrepsTensor(MIXED), Dihedral(4), (32,)),
    "irreps in dimension 2": RepresentationCase(IrrepsTensor("1o+1e", dim=2), O3(), (5, 6, 4)),
    "irreps in dimension -2": RepresentationCase(IrrepsTensor("1o", dim=-2), SO3(), (3, 4)),
    "one scalar an input": RepresentationCase(IrrepsTensor("0e"), SE3(), ()),
    "one pseudoscalar an input": RepresentationCase(IrrepsTensor("0o"), O3(), ()),
    "point, SE3": RepresentationCase(Point(), SE3(), (4, 3)),
    "point, E3": RepresentationCase(Point(), E3(), (3,)),
    "point, plane": RepresentationCase(Point(), SO2(), (4, 2)),
    "point, plane in space": RepresentationCase(Point(), Dihedral(4), (4, 3)),
    "point in dimension 1": RepresentationCase(Point(dim=1), SE3(), (3, 4)),
    "point, product": RepresentationCase(Point(), SE3() * Permutation(4), (4, 3)),
    "cartesian, rank 1": RepresentationCase(CartesianTensor(1), O3(), (4, 3)),
    "cartesian, rank 2": RepresentationCase(CartesianTensor(), O3(), (3, 3)),
    "cartesian, rank 3": RepresentationCase(CartesianTensor(3), SE3(), (2, 3, 3, 3)),
    "cartesian, plane": RepresentationCase(CartesianTensor(), SO2(), (2, 2)),
    "cartesian, plane in space": RepresentationCase(CartesianTensor(), Cyclic(4), (3, 3)),
    "permuted": RepresentationCase(Permuted(), Permutation(5), (5, 2)),
    "permuted adjacency": RepresentationCase(Permuted((1, 2)), Permutation(5), (5, 5, 2)),
    "permuted last": RepresentationCase(Permuted(-1), Permutation(5), (3, 5)),
    "shifted": RepresentationCase(Shifted(), Cyclic(5), (2, 5)),
    "shifted by several": RepresentationCase(Shifted(1), Cyclic(3), (6, 2)),
    "shifted, factor": RepresentationCase(Shifted(dim=-2), O3() * Cyclic(4), (4, 3)),
    "shifted plane": RepresentationCase(
        Factor(0, Shifted(-2)) @ Factor(1, Shifted(-1)), Cyclic(4) * Cyclic(3), (2, 4, 3)
    ),
    "regular, C4": RepresentationCase(Regular(), Cyclic(4), (2, 4)),
    "regular, D4": RepresentationCase(Regular(1), Dihedral(4), (8, 2)),
    "regular, D3, factor": RepresentationCase(Regular(1), Dihedral(3) * Permutation(2), (6,)),
    "regular feature maps": RepresentationCase(Image() @ Regular(-3), Dihedral(4), (2, 8, 3, 3)),
    "invariant": RepresentationCase(Invariant(), E3(), (4,)),
    "invariant, permutations": RepresentationCase(Invariant(), Permutation(3), ()),
    "composed": RepresentationCase(Permuted(1) @ "1o", SO3() * Permutation(5), (5, 3)),
    "composed of three": RepresentationCase(
        Permuted(1) @ (Factor(0, "1o") @ Factor(1, IrrepsTensor("1e", dim=2))),
        Product((O3(), SO3(), Permutation(4))),
        (4, 3, 3),
    ),
    "factor 0": RepresentationCase(Factor(0, "1o+2e"), SO3() * O3(), (8,)),
    "factor -1": RepresentationCase(Factor(-1, Point()), SO3() * SE3(), (4, 3)),
    "factor of one": RepresentationCase(Factor(0, "1o"), SO3(), (3,)),
    "custom": RepresentationCase(Custom(turned_twice, turned_twice_derivative), SO2(), (2, 4), typed=False),
    "image, C4": RepresentationCase(Image(), Cyclic(4), (2, 5, 5)),
    "image, D4": RepresentationCase(Image(), Dihedral(4), (4, 4)),
    "image, SO2": RepresentationCase(Image(), SO2(), (2, 6, 6), interpolates=True),
    "vector field, C2": RepresentationCase(VectorField(), Cyclic(2), (4, 4, 4)),
    "vector field, D4": RepresentationCase(VectorField(), Dihedral(4), (2, 5, 5)),
    "vector field, SO2": RepresentationCase(VectorField(), SO2(), (3, 4, 6, 6), interpolates=True),
    "vector field, factor": RepresentationCase(Factor(1, VectorField()), O3() * Cyclic(4), (2, 4, 4)),
    "node index": RepresentationCase(NodeIndex(), SO3(), (4,)),
    "edge numbers": RepresentationCase(EdgeNumbers(), SO3(), (4,)),
    "graph numbers": RepresentationCase(GraphNumbers(), SO3(), (4,)),
    "pointer": RepresentationCase(Pointer(), SO3(), ()),
    "ignored": RepresentationCase(Ignored(), SO3(), (2, 4)),
    "per edge": RepresentationCase(Per("edge", "1o+0e"), O3(), (2, 4)),
    "per edge, points": RepresentationCase(Per("edge", Image() @ Regular(-3)), Dihedral(4), (2, 8, 3, 3)),
    "per graph, of a factor": RepresentationCase(Per("graph", Factor(1, "1o"), rows=3), O3() * SO3(), (3,)),
    "per call": RepresentationCase(Per("call", Invariant()), SE3(), (3,)),
}


def composition_is_kept(case: RepresentationCase) -> None:
    if case.interpolates:
        return
    g, h, x = draw(case.group, seed=1), draw(case.group, seed=2), case.x()
    close(case.move(g @ h, x), case.move(g, case.move(h, x)))


def identity_moves_nothing(case: RepresentationCase) -> None:
    x = case.x()
    close(case.move(case.group.identity(), x), x)
    close(case.move(case.group.identity(ROWS), x), x)


def inverse_moves_back(case: RepresentationCase) -> None:
    if not case.interpolates:
        g, x = draw(case.group), case.x()
        close(case.move(g.inverse(), case.move(g, x)), x)


def infinitesimal_is_the_derivative(case: RepresentationCase) -> None:
    # A cubic interpolant has jumps in its second derivative where the pixels are: there the difference is only O(step).
    step, tolerance = (1e-7, 1e-5) if case.interpolates else (1e-5, 1e-8)
    a, x = velocity(case.group), case.x()
    difference = (case.move((a * step).exp(), x) - case.move((a * -step).exp(), x)) / (2 * step)
    moving = case.representation.infinitesimal(a, x)
    close(moving, difference, tolerance)
    one = case.representation.infinitesimal(a[2], x)
    close(one[2], moving[2])
    close(one, case.representation.infinitesimal(a[2].repeat(ROWS), x))


def shape_dtype_and_device_are_kept(case: RepresentationCase) -> None:
    g, a = draw(case.group), velocity(case.group)
    for dtype, tolerance in TOLERANCE.items():
        x = case.x(dtype=dtype)
        moved, moving = case.move(g, x), case.representation.infinitesimal(a, x)
        for out in (moved, moving):
            assert (out.shape, out.dtype, out.device) == (x.shape, dtype, x.device)
        scale = 1.0 + float(x.abs().max())
        close(moved.double() / scale, case.move(g, x.double()) / scale, tolerance)
        single = g.to(dtype=torch.float32)
        close(case.move(single, x).double() / scale, moved.double() / scale, max(tolerance, 1e-5))
        assert case.move(single, x).dtype == dtype


def autocast_changes_nothing(case: RepresentationCase) -> None:
    if isinstance(case.representation, Custom):
        return  # a user's einsum is the user's
    for dtype in (torch.float64, torch.float32):
        g, a, x = draw(case.group).to(dtype=dtype), velocity(case.group).to(dtype=dtype), case.x(dtype=torch.float32)
        moved, moving = case.move(g, x), case.representation.infinitesimal(a, x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            close(case.move(g, x), moved, 1e-6)
            close(case.representation.infinitesimal(a, x), moving, 1e-6)


def argument_is_left_alone(case: RepresentationCase) -> None:
    g, x = draw(case.group), case.x()
    coordinates, before = [c.clone() for c in g.coordinates], x.clone()
    case.move(g, x)
    case.representation.infinitesimal(velocity(case.group), x)
    assert torch.equal(x, before)
    assert all(torch.equal(c, old) for c, old in zip(g.coordinates, coordinates, strict=True))


def every_row_has_its_own_element(case: RepresentationCase) -> None:
    g, x = draw(case.group), case.x()
    moved = case.move(g, x)
    for i in range(ROWS):
        close(moved[i : i + 1], case.move(g[i], x[i : i + 1]))


def one_element_moves_all_rows(case: RepresentationCase) -> None:
    g, x = draw(case.group, 1), case.x()
    close(case.move(g, x), case.move(g.repeat(ROWS), x))
    assert case.move(g, x[:0]).shape == (0, *case.shape)
    assert case.move(g[:0], x[:0]).shape == (0, *case.shape)


def other_numbers_of_rows_are_refused(case: RepresentationCase) -> None:
    for n in (2, 3, ROWS + 1):
        with pytest.raises(ValueError, match="rows"):
            case.move(draw(case.group, n), case.x())


def action_is_affine(case: RepresentationCase) -> None:
    g, x, y = draw(case.group), case.x(), case.x(seed=8)
    at_0 = case.move(g, torch.zeros_like(x))
    close(case.move(g, 2 * x - 3 * y) - at_0, 2 * (case.move(g, x) - at_0) - 3 * (case.move(g, y) - at_0), 1e-11)
    if not isinstance(case.representation, Point | Factor):
        close(at_0, torch.zeros_like(x))


def gradients_flow(case: RepresentationCase) -> None:
    g, x, w = draw(case.group), case.x().requires_grad_(), case.x(seed=8)
    (gradient,) = torch.autograd.grad((w * case.move(g, x)).sum(), x)
    linear = case.move(g, x) - case.move(g, torch.zeros_like(x))
    close((gradient * x).sum(), (w * linear).sum(), 1e-10)  # <A^T w, x> = <w, A x>
    assert bool(gradient.abs().sum() > 0)


def repr_can_be_typed_back(case: RepresentationCase) -> None:
    if case.typed:
        text = repr(case.representation)
        assert as_representation(text) == case.representation
        assert hash(as_representation(text)) == hash(case.representation)
        assert eval(text, vars(lightning_equiv)) == case.representation
    assert as_representation(case.representation) is case.representation


def group_is_accepted(case: RepresentationCase) -> None:
    case.representation.check_group(case.group)
    case.representation.check(case.group, case.x().shape)


REPRESENTATION_LAWS = (
    composition_is_kept,
    identity_moves_nothing,
    inverse_moves_back,
    infinitesimal_is_the_derivative,
    shape_dtype_and_device_are_kept,
    autocast_changes_nothing,
    argument_is_left_alone,
    every_row_has_its_own_element,
    one_element_moves_all_rows,
    other_numbers_of_rows_are_refused,
    action_is_affine,
    gradients_flow,
    repr_can_be_typed_back,
    group_is_accepted,
)
