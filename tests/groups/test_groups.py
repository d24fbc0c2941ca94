import dataclasses
import itertools
import os
import subprocess
import sys

import lightning
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from scipy.spatial.transform import Rotation

from lightning_equiv import (
    E3,
    O3,
    SE3,
    SO2,
    SO3,
    Cyclic,
    Dihedral,
    Group,
    GroupElement,
    IrrepsTensor,
    Permutation,
    Point,
    Product,
    Symmetry,
    Translation,
    as_group,
    equivariance_error,
)
from lightning_equiv._random import derived_generator
from lightning_equiv.groups.group import AlgebraElement
from lightning_equiv.groups.rotation import quaternion_to_matrix
from tests.contracts import GROUP_LAWS, GROUPS, concrete_subclasses, draw, row_of
from tests.helpers import close, normal

MANY = 20_000
FIVE_SIGMA = 5 / MANY**0.5  # of the mean of a quantity between -1 and 1
FINITE = [name for name, case in GROUPS.items() if case.order is not None and case.order > 1]


@pytest.mark.parametrize("law", GROUP_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", GROUPS)
def test_contract(name, law):
    law(GROUPS[name])


def test_every_group_has_a_row():
    assert concrete_subclasses(Group) == {type(case.group) for case in GROUPS.values()}


# ---- the Haar measure ------------------------------------------------------------------------------------------------
def features(g):
    """(n, m) bounded numbers that tell elements apart: entries of matrices, determinants, and who sits where."""
    found = []
    for part in g.parts:
        if part.group.space_dim is not None:
            found += [part.matrix.flatten(1), torch.linalg.det(part.matrix)[:, None]]
        else:
            found.append(torch.nn.functional.one_hot(part.permutation, part.group.n).flatten(1).double())
    return torch.cat(found, dim=1)


def moments(g):
    """First and second moments; the second also say that the factors of a product are independent."""
    f = features(g)
    return torch.cat([f.mean(0), (f.T @ f / len(f)).flatten()])


@pytest.mark.parametrize("name", GROUPS)
def test_distribution_is_left_and_right_invariant(name):
    group = GROUPS[name].group
    g = draw(group, MANY)
    for h in draw(group, 4, seed=1):
        close(moments(h @ g), moments(g), 2 * FIVE_SIGMA)
        close(moments(g @ h), moments(g), 2 * FIVE_SIGMA)


@pytest.mark.parametrize("group", [SO3(), O3(), SE3(), E3()], ids=str)
def test_moments_of_rotations(group):
    R = draw(group, MANY).matrix
    delta = torch.eye(3, dtype=torch.float64)
    close(R.mean(0), torch.zeros(3, 3), FIVE_SIGMA)
    second = torch.einsum("nij,nkl->ijkl", R, R) / MANY
    close(second, torch.einsum("ik,jl->ijkl", delta, delta) / 3, FIVE_SIGMA)
    determinant = torch.linalg.det(R)
    proper = not group.reflections
    close(determinant.mean(), torch.tensor(1.0 if proper else 0.0), FIVE_SIGMA)
    # E[R_ij R_kl R_mn] = eps_ikm eps_jln / 6 for rotations, 0 with reflections
    eps = torch.linalg.cross(delta[:, None].expand(3, 3, 3), delta[None].expand(3, 3, 3))
    third = torch.einsum("nij,nkl,nmp->ijklmp", R, R, R) / MANY
    close(third, proper * torch.einsum("ikm,jlp->ijklmp", eps, eps) / 6, FIVE_SIGMA)


def test_angles_are_distributed_as_the_haar_measure_says():
    R = draw(SO3(), MANY).matrix
    angle = Rotation.from_matrix(R.numpy()).magnitude()
    assert scipy.stats.kstest(angle, lambda t: (t - np.sin(t)) / np.pi).pvalue > 1e-3
    turn = draw(SO2(), MANY).matrix
    angle = torch.atan2(turn[:, 1, 0], turn[:, 0, 0]) / (2 * torch.pi) + 0.5
    assert scipy.stats.kstest(angle.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("name", FINITE)
def test_finite_groups_are_drawn_uniformly(name):
    group = GROUPS[name].group
    seen = dict.fromkeys(map(row_of, group.elements()), 0)
    coordinates = torch.cat([c.reshape(MANY, -1) for c in draw(group, MANY).coordinates], dim=1)
    rows, counts = coordinates.unique(dim=0, return_counts=True)
    seen.update(zip(map(tuple, rows.tolist()), counts.tolist(), strict=True))
    assert len(seen) == group.order
    assert scipy.stats.chisquare(list(seen.values())).pvalue > 1e-3


@pytest.mark.parametrize("scale", [0.0, 1.0, 20.0])
def test_translations_are_gaussian(scale):
    for group in (SE3(scale), E3(scale=scale)):
        t = draw(group, MANY).translation
        if scale == 0:
            assert not t.any()
        else:
            assert scipy.stats.kstest(t.flatten().numpy() / scale, "norm").pvalue > 1e-3
            close(torch.cov(t.T) / scale**2, torch.eye(3), 2 * FIVE_SIGMA)


def test_factors_of_a_product_are_independent():
    g, h = draw(SO3() * SO3(), MANY).parts
    cross = torch.einsum("nij,nkl->ijkl", g.matrix, h.matrix) / MANY
    close(cross, torch.zeros(3, 3, 3, 3), FIVE_SIGMA)


# ---- twins -----------------------------------------------------------------------------------------------------------
def test_quaternions_are_scipy_s(generator):
    q = torch.randn(100, 4, generator=generator, dtype=torch.float64)
    twin = Rotation.from_quat(q[:, [1, 2, 3, 0]].numpy()).as_matrix()
    close(quaternion_to_matrix(q), torch.from_numpy(twin))


@pytest.mark.parametrize("group", [SO3(), O3()], ids=str)
def test_exponential_is_scipy_s_rotation_vector(group, generator):
    omega = torch.randn(100, 3, generator=generator, dtype=torch.float64) * 3
    twin = torch.from_numpy(Rotation.from_rotvec(omega.numpy()).as_matrix())
    close(AlgebraElement(group, (omega,)).exp().matrix, twin, 1e-11)


def test_exponential_of_motions_is_the_series(generator):
    xi = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    g = AlgebraElement(SE3(), (xi,)).exp()
    for (x, y, z, *v), R, t in zip(xi.tolist(), g.matrix, g.translation, strict=True):
        motion = scipy.linalg.expm(np.array([[0, -z, y, v[0]], [z, 0, -x, v[1]], [-y, x, 0, v[2]], [0, 0, 0, 0]]))
        close(R, torch.from_numpy(motion[:3, :3]))
        close(t, torch.from_numpy(motion[:3, 3]))


def test_exponential_of_the_plane_turns_from_x_to_y():
    quarter = AlgebraElement(SO2(), (torch.tensor([[torch.pi / 2]], dtype=torch.float64),)).exp()
    close(quarter.matrix @ torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 12])
def test_polygon_groups_are_turns_and_flips(n):
    corner = [(np.cos(2 * np.pi * k / n), np.sin(2 * np.pi * k / n)) for k in range(n)]
    flip = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    turns = [torch.tensor([[c, -s], [s, c]], dtype=torch.float64) for c, s in corner]
    close(Cyclic(n).elements().matrix, torch.stack(turns))
    close(Dihedral(n).elements().matrix, torch.stack([*turns, *(turn @ flip for turn in turns)]))


def test_quarter_turns_are_exact():
    for group in (Cyclic(4), Dihedral(4), Dihedral(2)):
        matrix = group.elements().matrix
        assert torch.equal(matrix, matrix.round())


def test_permutations_are_itertools():
    assert Permutation(4).elements().permutation.tolist() == [list(p) for p in itertools.permutations(range(4))]


def test_permutation_composes_as_matrices():
    g, h = draw(Permutation(6), seed=1), draw(Permutation(6), seed=2)
    as_matrix = lambda p: torch.nn.functional.one_hot(p.permutation, 6).double().mT  # noqa: E731 (column i has its one in row g(i))
    close(as_matrix(g @ h), as_matrix(g) @ as_matrix(h))


# ---- planes in space -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("group", [SO2(), Cyclic(5), Dihedral(4)], ids=str)
def test_plane_acts_in_space_about_z(group):
    g = draw(group, 5)
    R = g.matrix_in(3)
    close(R[:, :2, :2], g.matrix)
    close(R[:, 2], torch.tensor([[0.0, 0.0, 1.0]]).repeat(5, 1))
    close(R[:, :, 2], torch.tensor([[0.0, 0.0, 1.0]]).repeat(5, 1))
    if group.dim:
        a = group.algebra()
        close((a * 0.7).exp().matrix_in(3), torch.linalg.matrix_exp(0.7 * a.matrix_in(3)))


def test_motions_embed_in_more_dimensions():
    g = draw(SE3(), 2)
    close(g.translation_in(4), torch.cat([g.translation, torch.zeros(2, 1)], dim=1))
    assert draw(SO3(), 2).translation_in(3) is None


# ---- values ----------------------------------------------------------------------------------------------------------
def test_elements_of_given_matrices():
    R = draw(SO3(), 4).matrix
    close(SO3().element(R).matrix, R)
    close(SO3().element(R[0]).matrix, R[:1])
    t = torch.arange(12.0).reshape(4, 3)
    moved = SE3().element(R, t)
    close(moved.matrix, R)
    close(moved.translation, t)
    assert moved.translation.dtype == torch.float64
    close(SE3().element(R[0], t[0]).translation, t[:1])
    close(O3().element(-R).matrix, -R)
    single = R.float()
    assert SO3().element(single).matrix.dtype == torch.float32
    assert Permutation(3).element(torch.tensor([2, 0, 1], dtype=torch.int32)).permutation.dtype == torch.long


def test_groups_and_elements_are_frozen():
    g = SE3().sample(2)
    for value, name in ((SE3(), "scale"), (SO3(), "space"), (Cyclic(4), "n"), (g, "coordinates"), (g, "group")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        (SO3() * SO2()).factors = ()


def test_equal_groups_are_equal():
    assert Cyclic(4) == Cyclic(4) != Cyclic(5)
    assert Cyclic(4) != Dihedral(4)
    assert SO3() != O3()
    assert SE3() != SE3(scale=2.0)
    assert len({SO3(), SO3(), O3(), Product((SO3(), O3())), SO3() * O3()}) == 3


def test_products_are_flat():
    flat = Product((SO3(), SO2(), Permutation(3)))
    assert SO3() * SO2() * Permutation(3) == flat
    assert SO3() * (SO2() * Permutation(3)) == flat
    assert Product((SO3(), Product(("SO(2)", "S3")))) == flat
    assert as_group(str(flat)) == flat
    assert as_group("SO(3) × SO(2)  x  S3") == flat


def test_product_answers_from_the_factor_that_can():
    group = SE3() * Permutation(4)
    assert (group.dim, group.order, group.compact, group.space_dim) == (6, None, False, 3)
    assert (Cyclic(3) * Dihedral(2)).order == 12
    assert (SO3() * SO2()).compact
    g = draw(group, 3)
    motion, order = g.parts
    close(g.matrix, motion.matrix)
    close(g.translation, motion.translation)
    assert torch.equal(g.permutation, order.permutation)
    a = group.algebra()
    assert len(a) == 6
    close(a.matrix, SE3().algebra().matrix)
    close(a.translation, SE3().algebra().translation)


def test_basis_of_the_algebra_turns_about_x_y_z():
    axes = torch.eye(3, dtype=torch.float64)
    for i, L in enumerate(SO3().algebra().matrix):
        close(L @ axes[(i + 1) % 3], axes[(i + 2) % 3])
        close(L @ axes[i], torch.zeros(3))


def test_printed_elements_tell_group_number_and_device():
    assert repr(SO3().sample(4)) == "<4 of SO3() on cpu>"


def test_elements_have_gradients():
    omega = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    R = AlgebraElement(SO3(), (omega,)).exp().matrix
    (gradient,) = torch.autograd.grad(R[0, 2, 1] - R[0, 1, 2], omega)
    close(gradient, torch.tensor([[2.0, 0.0, 0.0]]))


# ---- randomness ------------------------------------------------------------------------------------------------------
DRAW = """
import lightning, lightning_equiv
lightning.seed_everything(1)
print(lightning_equiv.SO3().sample(2).matrix.tolist())
"""


def test_seed_everything_decides_draws_without_a_generator():
    def fresh(seed):
        lightning.seed_everything(seed, verbose=False)
        return SO3().sample(2).matrix

    before = torch.get_rng_state()
    try:
        first, other, again = fresh(1), fresh(2), fresh(1)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        torch.rand(1)  # as anything does that has first weights
        assert not torch.equal(fresh(1), SO3().sample(2).matrix)
        torch.rand(1)
        SO3().sample(2)
        assert torch.equal(fresh(1), first), "the same seed a second time"
        environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
        printed = subprocess.run(
            [sys.executable, "-c", DRAW], capture_output=True, text=True, check=True, env=environment
        ).stdout
        assert torch.equal(torch.tensor(eval(printed.splitlines()[-1]), dtype=torch.float64), first)
    finally:
        torch.set_rng_state(before)


def test_draws_without_a_generator_go_on():
    assert not torch.equal(SO3().sample(2).matrix, SO3().sample(2).matrix)


def test_derived_generators_are_functions_of_their_key():
    first = torch.rand(3, generator=derived_generator("a", 1))
    assert torch.equal(first, torch.rand(3, generator=derived_generator("a", 1)))
    for key in (("a", 2), ("b", 1), ("a1",), ("a", 1, None)):
        assert not torch.equal(first, torch.rand(3, generator=derived_generator(*key)))


@pytest.mark.parametrize("name", ["C1", "C4", "D4", "S4", "S1", "C2 x S3", "D3 x C4"])
def test_generators_generate_a_finite_group(name: str) -> None:
    group = as_group(name)
    generators = group.generators()
    found = {_key(group.identity())}
    frontier = group.identity()
    for _ in range(group.order):
        n, k = len(frontier), len(generators)
        index = torch.arange(n).repeat_interleave(k)
        frontier = generators.repeat(n) @ frontier[index]
        new = [i for i in range(len(frontier)) if _key(frontier[i]) not in found]
        if not new:
            break
        found |= {_key(frontier[i]) for i in new}
        frontier = frontier[torch.tensor(new)]
    assert len(found) == group.order


def _key(g: GroupElement) -> tuple[int, ...]:
    return tuple(int(v) for c in g.coordinates for v in c.flatten())


@pytest.mark.parametrize(("name", "count"), [("SO(2)", 0), ("SO(3)", 0), ("SE(3)", 0), ("O(3)", 1), ("E(3)", 1)])
def test_generators_of_what_is_not_connected(name: str, count: int) -> None:
    generators = as_group(name).generators()
    assert len(generators) == count
    assert (torch.linalg.det(generators.matrix) < 0).all()


def test_translations_are_those_of_rigid_motions():
    """A subgroup of SE(3): points move alike, directions stay; and the draws have the scale that is asked for."""
    g = draw(Translation(3, scale=4.0), 2000)
    rigid = SE3().element(g.matrix, g.translation)
    x = normal(2000, 5, 3)
    close(Point()(g, x), Point()(rigid, x))
    assert torch.equal(IrrepsTensor("1o")(g, x), x)
    assert g.translation.std(dim=0).sub(4.0).abs().max() < 0.3
    error = equivariance_error(lambda x: x - x.mean(1, keepdim=True), normal(4, 5, 3), Symmetry("T(3)", Point(), "1o"))
    assert float(error.max()) < 1e-12
    assert float(equivariance_error(lambda x: x**2, normal(4, 5, 3), Symmetry("T(3)", Point(), "1o")).min()) > 0.1


@pytest.mark.parametrize("t", [torch.zeros(2), torch.zeros(4, 3, dtype=torch.long), torch.full((3,), torch.inf)])
def test_bad_translations(t):
    with pytest.raises(ValueError, match=r"expected (real|finite) translations"):
        Translation(3).element(t)
