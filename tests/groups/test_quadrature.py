import e3nn.o3
import pytest
import torch

from lightning_equiv import E3, O3, SE3, SO2, SO3, Cyclic, Dihedral, Permutation, Translation, as_group
from lightning_equiv.groups.harmonics import harmonics
from lightning_equiv.groups.parts import embedded, linear_part, translations
from lightning_equiv.groups.quadrature import quadrature
from tests.contracts import draw, same
from tests.helpers import close, default_dtype, normal

COMPACT = ["SO(2)", "SO(3)", "O(3)", "C1", "C5", "D4", "S3", "SO(3) x C2", "SO(2) x S3", "D3 x C4"]


def entries(group, g, degree):
    """All matrix entries of irreps up to a degree, (n, count), and their mean squares."""
    if group == SO2():
        a = torch.atan2(g.matrix[:, 1, 0], g.matrix[:, 0, 0])
        waves = [f(m * a) for m in range(1, degree + 1) for f in (torch.cos, torch.sin)]
        return torch.stack([torch.ones_like(a), *waves], dim=1), torch.tensor(
            [1.0] + [0.5] * (2 * degree), dtype=torch.float64
        )
    parities = (1, -1) if group == O3() else (1,)
    irreps = [e3nn.o3.Irrep(J, p) for J in range(degree + 1) for p in parities]
    with default_dtype(torch.float64):
        found = torch.cat([irrep.D_from_matrix(g.matrix).flatten(1) for irrep in irreps], dim=1)
    return found, torch.cat([torch.full((irrep.dim**2,), 1 / irrep.dim, dtype=torch.float64) for irrep in irreps])


@pytest.mark.parametrize("degree", range(6))
@pytest.mark.parametrize("group", [SO2(), SO3(), O3()], ids=str)
def test_exact_up_to_the_degree_and_no_further(group, degree):
    g, weights = quadrature(group, degree)
    means = weights @ entries(group, g, degree + 1)[0]
    within = len(entries(group, g[:1], degree)[1])
    close(means[0], torch.tensor(1.0))
    close(means[1:within], torch.zeros(within - 1))
    assert float(means[within:].abs().max()) > 1e-2


@pytest.mark.parametrize("degree", [0, 2, 4])
@pytest.mark.parametrize("group", [SO2(), SO3(), O3()], ids=str)
def test_entries_are_orthogonal(group, degree):
    """E[D^J_mn D^K_pq] = delta / (2J+1): products of degree J + K."""
    g, weights = quadrature(group, degree)
    u, squares = entries(group, g, degree // 2)
    close(u.mT @ (weights[:, None] * u), torch.diag(squares))
    above, squares = entries(group, g, degree // 2 + 1)
    assert float((above.mT @ (weights[:, None] * above) - torch.diag(squares)).abs().max()) > 1e-2


@pytest.mark.parametrize("degree", [0, 1, 4, 5])
@pytest.mark.parametrize("name", COMPACT)
def test_weights_and_kernels(name, degree):
    """Of mean 0 in every irreducible but the trivial one."""
    group = as_group(name)
    g, weights = quadrature(group, degree)
    assert g.group == group
    assert weights.shape == (len(g),)
    assert weights.dtype == torch.float64
    assert float(weights.min()) > 0
    close(weights.sum(), torch.tensor(1.0))
    kernels = harmonics(group, degree).kernels(g)
    close(kernels @ weights, torch.nn.functional.one_hot(torch.tensor(0), len(kernels)).double())


def test_numbers_of_elements():
    sizes = {"SO(2)": 5, "SO(3)": 75, "O(3)": 150, "C7": 7, "D4": 8, "S4": 24, "SO(2) x C3": 15}
    for name, size in sizes.items():
        assert len(quadrature(as_group(name), 4)[0]) == size
    R = quadrature(O3(), 3)[0].matrix
    close(R @ R.mT, torch.eye(3).expand_as(R).double())
    assert torch.linalg.det(R).round().sum() == 0


def test_second_moments_of_rotations():
    g, weights = quadrature(SO3(), 2)
    second = torch.einsum("n,nij,nkl->ijkl", weights, g.matrix, g.matrix)
    delta = torch.eye(3, dtype=torch.float64)
    close(second, torch.einsum("ik,jl->ijkl", delta, delta) / 3)


def test_what_has_no_quadrature():
    for group in (SE3(), E3(), E3() * Cyclic(2)):
        with pytest.raises(ValueError, match=r"not compact.*take its rotations, `linear_part\(group\)`"):
            quadrature(group, 2)
    with pytest.raises(ValueError, match=r"T\(2\) is not compact"):
        quadrature(Translation(2), 2)
    with pytest.raises(ValueError, match="too many to list"):
        quadrature(Permutation(9), 2)
    with pytest.raises(ValueError, match="expected degree"):
        quadrature(SO3(), -1)


# ---- parts of groups -------------------------------------------------------------------------------------------------
PARTS = {
    "SE(3)": "SO(3)",
    "E(3)": "O(3)",
    "SE(3, scale=20)": "SO(3)",
    "T(2)": None,
    "T(2) x T(3)": None,
    "E(3) x S4": "O(3) x S4",
    "T(3) x S4": "S4",
    "C4 x T(3) x SE(3)": "C4 x SO(3)",
    "O(3)": "O(3)",
    "D4 x S3": "D4 x S3",
}


@pytest.mark.parametrize("name", PARTS)
def test_linear_part(name):
    group, expected = as_group(name), PARTS[name] and as_group(PARTS[name])
    assert linear_part(group) == expected
    if expected is None:
        return
    g, h = draw(expected, seed=1), draw(expected, seed=2)
    there = embedded(group, g)
    assert there.group == group
    same(embedded(group, g @ h), there @ embedded(group, h))
    for part in there.parts:
        assert part.translation is None or not part.translation.any()
    kept = [part for part in there.parts if part.group.linear_part is not None]
    for part, of_g in zip(kept, g.parts, strict=True):
        close(part.coordinates[0], of_g.coordinates[0])
    single = embedded(group, g.to(dtype=torch.float32))
    if any(c.is_floating_point() for c in g.coordinates):
        assert all(c.dtype in (torch.float32, torch.long) for c in single.coordinates)


def test_embedded_takes_the_linear_part_alone():
    with pytest.raises(ValueError, match=r"expected elements of SO\(3\), the linear part of SE\(3\), got <2 of O3"):
        embedded(SE3(), draw(O3(), 2))


@pytest.mark.parametrize("name", ["SE(3)", "E(3)", "T(3)", "T(2)", "S3 x SE(3)", "T(3) x C4", "T(2) x D4"])
def test_translations(name):
    group = as_group(name)
    t = normal(5, group.translation_dim)
    g = translations(group, t)
    assert g.group == group
    same(translations(group, -t), g.inverse())
    same(translations(group, t + 1), g @ translations(group, torch.ones_like(t)))
    for part in g.parts:
        if part.translation is None:
            same(part, part.group.identity(5))
        else:
            close(part.translation, t)
            close(part.matrix, torch.eye(t.shape[1]).expand(5, -1, -1))
    assert all(c.dtype in (torch.float32, torch.long) for c in translations(group, t.float()).coordinates)


def test_what_has_no_translations():
    for group in (SO3(), Permutation(3)):
        with pytest.raises(ValueError, match="has no translations"):
            translations(group, torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"expected translations in one factor of .*, got 0"):
        translations(SO3() * Dihedral(3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"expected translations in one factor of T\(2\) x SE\(3\), got 2"):
        translations(Translation(2) * SE3(), torch.zeros(2, 3))
    for t in (torch.zeros(2, 2), torch.zeros(3), torch.zeros(2, 3, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"expected real translations of shape \(n, 3\)"):
            translations(SE3(), t)
