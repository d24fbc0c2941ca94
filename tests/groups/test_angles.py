import pytest
import scipy.stats
import torch
from scipy.spatial.transform import Rotation

from lightning_equiv import E3, O3, SE3, SO2, SO3, Cyclic, Dihedral, Permutation, Translation
from lightning_equiv.groups.angles import angle, turns
from tests.contracts import draw, same
from tests.helpers import close, seeded

MANY = 4000
SPACE = [SO3(), O3(), SE3(scale=20.0), E3()]
EXACT = torch.float64
EXTREME = torch.tensor([0.0, 1e-12, 1e-6, 0.3, 1.5, 3.0, torch.pi - 1e-6, torch.pi - 1e-12], dtype=torch.float64)


@pytest.mark.parametrize("group", SPACE, ids=str)
def test_turns_are_scipy_s(group):
    g = turns(group, 1.2, MANY, generator=seeded())
    assert g.group == group
    rotation = Rotation.from_matrix(g.matrix.numpy())
    close(torch.from_numpy(rotation.magnitude()), torch.full((MANY,), 1.2, dtype=EXACT))
    close(torch.linalg.det(g.matrix), torch.ones(MANY))
    assert g.translation is None or not g.translation.any()
    axes = torch.from_numpy(rotation.as_rotvec()) / 1.2
    close(axes.mean(0), torch.zeros(3), 5 / (3 * MANY) ** 0.5)
    close(axes.mT @ axes / MANY, torch.eye(3) / 3, 5 / (5 * MANY) ** 0.5)
    for component in axes.mT.numpy():  # a point on the sphere has uniform components
        assert scipy.stats.kstest(component, "uniform", args=(-1, 2)).pvalue > 1e-3


@pytest.mark.parametrize("group", [*SPACE, SO2(), Permutation(3) * SE3(), SO2() * Translation(3)], ids=str)
def test_angles_of_turns(group):
    """Exact to rounding also near 0, where the cosine says nothing, and near pi."""
    g = turns(group, EXTREME, len(EXTREME), generator=seeded())
    close(angle(g), EXTREME, 2e-15)
    close(angle(turns(group, -EXTREME, len(EXTREME), generator=seeded())), EXTREME, 2e-15)
    close(angle(turns(group, torch.tensor(4.0), 3)), torch.full((3,), 2 * torch.pi - 4, dtype=EXACT))
    assert angle(g.to(dtype=torch.float32)).dtype == torch.float64


def test_angle_is_scipy_s():
    g = draw(O3(), 200)
    proper = g.matrix * torch.linalg.det(g.matrix)[:, None, None]
    close(angle(g), torch.from_numpy(Rotation.from_matrix(proper.numpy()).magnitude()))
    close(angle(O3().element(-torch.eye(3))), torch.zeros(1))
    close(angle(O3().element(torch.diag(torch.tensor([1.0, 1.0, -1.0])))), torch.tensor([torch.pi]), 1e-7)
    quarter = SO2().element(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
    close(angle(quarter), torch.tensor([torch.pi / 2], dtype=torch.float64))


@pytest.mark.parametrize("group", [SO2(), Cyclic(8), Dihedral(8)], ids=str)
def test_turns_of_the_plane_go_both_ways(group):
    R = turns(group, torch.pi / 4, MANY, generator=seeded()).matrix
    close(R[:, 0, 0], torch.full((MANY,), 0.5**0.5, dtype=EXACT))
    close(torch.linalg.det(R), torch.ones(MANY))
    close(R[:, 1, 0].abs(), torch.full((MANY,), 0.5**0.5, dtype=EXACT))
    close(R[:, 1, 0].sign().mean(), torch.tensor(0.0), 5 / MANY**0.5)


@pytest.mark.parametrize("n", range(1, 8))
def test_angles_of_polygons(n):
    g = Dihedral(n).elements()
    in_space = torch.linalg.det(g.matrix)[:, None, None] * g.matrix_in(3)  # the proper part
    twin = torch.from_numpy(Rotation.from_matrix(in_space.numpy()).magnitude())
    close(angle(g), twin, 1e-7)
    close(angle(Cyclic(n).elements()), twin[:n], 1e-7)
    for k in range(-1, n + 1):
        a = torch.tensor(2 * torch.pi * k / n)
        for group in (Cyclic(n), Dihedral(n)):
            close(angle(turns(group, a, 4)), torch.arccos(a.cos()).expand(4), 1e-3)
    with pytest.raises(ValueError, match=rf"expected multiples of 2 pi / {n} = .*, got 0.1"):
        turns(Dihedral(n), 0.1, 2)


def test_each_its_own_angle_in_a_product():
    group = Permutation(4) * SE3() * Translation(2)
    a = torch.tensor([0.1, 0.2, 0.3])
    g = turns(group, a, 3)
    close(angle(g), a, 1e-7)
    order, _, shift = g.parts
    same(order, Permutation(4).identity(3))
    same(shift, Translation(2).identity(3))


def test_generator_decides():
    state = torch.get_rng_state()
    first, again, other = (turns(SO3(), 1.0, 5, generator=seeded(seed)).matrix for seed in (0, 0, 1))
    turns(SO3(), 1.0, 5)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert turns(SO2(), 1.0, 2, device="meta").device.type == "meta"


def test_what_cannot_turn():
    for group in (Permutation(3), Translation(3)):
        with pytest.raises(ValueError, match="has no rotations"):
            turns(group, 1.0, 2)
        with pytest.raises(ValueError, match="has no rotations"):
            angle(draw(group))
    with pytest.raises(ValueError, match=r"expected rotations in one factor of SO\(3\) x C4, got 2"):
        turns(SO3() * Cyclic(4), 1.0, 2)
    with pytest.raises(ValueError, match=r"expected rotations in one factor of .*, got 0"):
        angle(draw(Permutation(3) * Translation(3)))
    for wrong in (torch.zeros(3), torch.zeros(2, 1), torch.tensor([0.0, torch.nan])):
        with pytest.raises(ValueError, match="expected one finite angle or 2 of them"):
            turns(SO3(), wrong, 2)
    with pytest.raises(ValueError, match="expected angle"):
        turns(SO3(), float("inf"), 2)
    with pytest.raises(ValueError, match="expected n"):
        turns(SO3(), 1.0, 0)
