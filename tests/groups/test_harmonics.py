import itertools

import e3nn.o3
import numpy as np
import pytest
import scipy.special
import torch

from lightning_equiv import E3, O3, SE3, SO2, SO3, Cyclic, Dihedral, GroupElement, Permutation, Translation, as_group
from lightning_equiv.groups.angles import turns
from lightning_equiv.groups.harmonics import harmonics, partitions, symmetric_characters
from lightning_equiv.groups.quadrature import quadrature
from tests.contracts import draw, row_of
from tests.helpers import close, default_dtype, normal, seeded

FINITE = [
    *(Cyclic(n) for n in range(1, 8)),
    *(Dihedral(n) for n in range(1, 7)),
    *(Permutation(n) for n in range(1, 7)),
    Cyclic(3) * Permutation(3),
    Dihedral(4) * Cyclic(2),
]
INFINITE = [SO2(), SO3(), O3(), SO2() * Cyclic(4), SO3() * SO2(), O3() * Permutation(3)]
TOP = 3  # highest degree of infinite groups in these tests


def few(group, n=3):
    return group.elements()[torch.tensor([0, group.order // 2, group.order - 1])[:n]] if group.order else draw(group, n)


def pairs(g, h):
    """g_i h_j^-1, one row of len(h) for each i."""
    n, m = len(g), len(h)
    return g[torch.arange(n).repeat_interleave(m)] @ h.inverse().repeat(n)


def kernels_of_pairs(spectrum, g, h):
    return spectrum.kernels(pairs(g, h)).unflatten(1, (len(g), len(h)))


# ---- the projectors --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("group", [*FINITE, *INFINITE], ids=str)
def test_kernels_are_orthogonal_projectors(group):
    """E_h[kernel_rho(g h^-1) kernel_sigma(h k^-1)] = delta kernel_rho(g k^-1)."""
    spectrum, (h, weights) = harmonics(group, TOP), quadrature(group, 2 * TOP)
    g, k = few(group), few(group)[torch.tensor([1, 0])]
    left, right = kernels_of_pairs(spectrum, g, h), kernels_of_pairs(spectrum, h, k)
    both = torch.einsum("rgh,h,shk->rsgk", left, weights, right)
    close(both, torch.diag_embed(kernels_of_pairs(spectrum, g, k).movedim(0, -1)).permute(2, 3, 0, 1), 1e-11)


@pytest.mark.parametrize("group", FINITE, ids=str)
def test_kernels_of_a_finite_group_sum_to_a_delta(group):
    total = harmonics(group).kernels(group.elements()).sum(0)
    close(total, torch.nn.functional.one_hot(torch.tensor(0), group.order).double() * group.order, 1e-11)


@pytest.mark.parametrize("group", [*FINITE, *INFINITE], ids=str)
def test_kernels_are_constant_on_classes_and_the_same_for_inverses(group):
    spectrum, g, h = harmonics(group, TOP), draw(group, 20, seed=1), draw(group, 20, seed=2)
    close(spectrum.kernels(h @ g @ h.inverse()), spectrum.kernels(g), 1e-11)
    close(spectrum.kernels(g.inverse()), spectrum.kernels(g), 1e-11)


@pytest.mark.parametrize("group", [*(g for g in FINITE if str(g)[0] in "DS"), SO3(), O3()], ids=str)
def test_dimensions(group):
    """d^2 functions for each complex-irreducible one, |G| in all; as many as there are classes."""
    spectrum = harmonics(group, TOP)
    close(spectrum.kernels(group.identity())[:, 0], spectrum.dims.double() ** 2)
    if group.order is not None:
        assert int((spectrum.dims**2).sum()) == group.order
    if group.order is not None and group.order <= 24:
        g = group.elements()
        classes = {frozenset(row_of(x) for x in (g @ one) @ g.inverse()) for one in g}
        assert len(classes) == len(spectrum.names)


@pytest.mark.parametrize("group", [*(Cyclic(n) for n in range(1, 8)), SO2()], ids=str)
def test_a_pair_of_modes_counts_two(group):
    spectrum = harmonics(group, TOP)
    close(spectrum.kernels(group.identity())[:, 0], spectrum.dims.double())
    assert spectrum.names == tuple(map(str, range(len(spectrum.names))))
    assert int(spectrum.dims.sum()) == (group.order or 2 * TOP + 1)


@pytest.mark.parametrize("group", [*INFINITE, Dihedral(3)], ids=str)
def test_casimirs_are_second_derivatives(group):
    """sum_i d^2/dt^2 kernel(exp(t A_i)) = -casimir kernel(1) at t = 0."""
    spectrum, step = harmonics(group, TOP), 1e-3
    at_one = spectrum.kernels(group.identity())[:, 0]
    slope = torch.zeros_like(at_one)
    if group.dim:
        there, back = (spectrum.kernels((group.algebra() * t).exp()) for t in (step, -step))
        slope = ((there + back - 2 * at_one[:, None]) / step**2).sum(1)
    close(-slope / at_one, spectrum.casimirs, 2e-4)


@pytest.mark.parametrize("group", [Cyclic(5), Dihedral(4), Permutation(4), Dihedral(3) * Cyclic(2)], ids=str)
def test_energies_of_any_function(group):
    """Not negative, of sum E|z|^2, the trivial one |E z|^2; and a function is the sum of its parts."""
    z, g = normal(group.order, 3), group.elements()
    K = kernels_of_pairs(harmonics(group), g, g)
    energies = torch.einsum("gc,hc,rgh->r", z, z, K) / group.order**2
    assert float(energies.min()) > 0
    close(energies.sum(), z.square().sum(1).mean())
    close(energies[0], z.mean(0).square().sum())
    close(torch.einsum("rgh,hc->gc", K, z) / group.order, z)


@pytest.mark.parametrize("group", [SO3(), O3()], ids=str)
def test_energies_of_known_degrees(group):
    """z = sum of c_rho D^rho_00 has e_rho = c_rho^2 / d_rho."""
    g, weights = quadrature(group, 4)
    spectrum = harmonics(group, 2)
    c = torch.arange(1.0, 1 + len(spectrum.names), dtype=torch.float64)
    z = sum(factor * wigner(name, g)[:, 0, 0] for factor, name in zip(c, spectrum.names, strict=True)) * weights
    energies = torch.einsum("g,h,rgh->r", z, z, kernels_of_pairs(spectrum, g, g))
    close(energies, c**2 / spectrum.dims, 1e-10)


# ---- twins -----------------------------------------------------------------------------------------------------------
def wigner(name, g):
    with default_dtype(torch.float64):
        return e3nn.o3.Irrep(name if name[-1] in "eo" else f"{name}e").D_from_matrix(g.matrix)


@pytest.mark.parametrize("group", [SO3(), O3()], ids=str)
def test_kernels_are_traces_of_wigner_d(group):
    spectrum, g = harmonics(group), draw(group, 200)
    assert spectrum.names[:2] == (("0", "1") if group == SO3() else ("0e", "0o"))
    assert len(spectrum.names) == (7 if group == SO3() else 14)
    for name, d, kernel in zip(spectrum.names, spectrum.dims, spectrum.kernels(g), strict=True):
        close(kernel, d * wigner(name, g).diagonal(dim1=1, dim2=2).sum(-1), 1e-9)


def test_kernels_at_small_angles_and_near_half_turns():
    """sin((2J+1) a/2) / sin(a/2) is the Chebyshev polynomial U_2J(cos(a/2))."""
    near = torch.tensor([0.0, 1e-12, 1e-8, 1e-4], dtype=torch.float64)
    a = torch.cat([near, torch.pi - near, torch.linspace(0.1, 3.1, 20, dtype=torch.float64)])
    g = turns(SO3(), a, len(a), generator=seeded())
    for J, kernel in enumerate(harmonics(SO3(), 12).kernels(g)):
        twin = (2 * J + 1) * scipy.special.eval_chebyu(2 * J, np.cos(a.numpy() / 2))
        close(kernel, torch.from_numpy(twin), 1e-11)
    near_half = harmonics(SO3(), 1).kernels(turns(SO3(), torch.pi - 1e-6, 5, generator=seeded()))[1]
    close(near_half, torch.full((5,), 3 * (1 - 2 * np.cos(1e-6)), dtype=torch.float64), 1e-14)


def test_modes_of_the_plane_are_powers():
    g, highest = draw(SO2(), 50), 6
    power, spectrum = SO2().identity(50), harmonics(SO2(), highest)
    for m, kernel in enumerate(spectrum.kernels(g)):
        trace = power.matrix.diagonal(dim1=1, dim2=2).sum(-1)
        close(kernel, trace if m else trace / 2)
        power = power @ g


@pytest.mark.parametrize("n", range(1, 8))
def test_polygon_characters_are_traces_of_powers(n):
    for group in (Cyclic(n), Dihedral(n)):
        g, spectrum = group.elements(), harmonics(group)
        kernels = dict(zip(spectrum.names, spectrum.kernels(g), strict=True))
        k = g.coordinates[0]
        for m in range(1, (n + 1) // 2):
            turn = Cyclic(n).turn(GroupElement(Cyclic(n), (m * k % n,)))
            matrix = turn if group == Cyclic(n) else turn @ reflection(g)
            trace = matrix.diagonal(dim1=1, dim2=2).sum(-1)
            close(kernels[str(m)] if group == Cyclic(n) else kernels[f"E{m}"] / 2, trace)
        alternating = 1.0 - 2 * (k % 2)
        if group == Dihedral(n):
            det = torch.linalg.det(g.matrix)
            close(kernels["A2"], det)
            if n % 2 == 0:
                close(kernels["B1"], alternating)
                close(kernels["B2"], alternating * det)
        elif n % 2 == 0:
            close(kernels[str(n // 2)], alternating)


def reflection(g):
    f = g.coordinates[1].double()
    return torch.diag_embed(torch.stack([torch.ones_like(f), 1 - 2 * f], dim=-1))


def test_tables_of_s3_and_s4():
    """Classes of S4: 4, 31, 22, 211, 1111."""
    assert partitions(4) == [(4,), (3, 1), (2, 2), (2, 1, 1), (1, 1, 1, 1)]
    assert symmetric_characters(3).tolist() == [[1, 1, 1], [-1, 0, 2], [1, -1, 1]]
    assert symmetric_characters(4).tolist() == [
        [1, 1, 1, 1, 1],
        [-1, 0, -1, 1, 3],
        [0, -1, 2, 0, 2],
        [1, 0, -1, -1, 3],
        [-1, 1, 1, -1, 1],
    ]
    assert harmonics(Permutation(4)).names == ("[4]", "[3,1]", "[2,2]", "[2,1,1]", "[1,1,1,1]")
    assert [len(partitions(n)) for n in range(1, 9)] == [1, 2, 3, 5, 7, 11, 15, 22]


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_characters_of_permutations_count_subsets(n):
    """chi_[n-k,k] = subsets of k things that stay in place, less those of k - 1; [1,..,1] is the determinant."""
    g = draw(Permutation(n), 12)
    spectrum = harmonics(Permutation(n))
    kernels = dict(zip(spectrum.names, spectrum.kernels(g) / spectrum.dims[:, None], strict=True))
    fixed = lambda p, k: sum({p[i] for i in s} == set(s) for s in itertools.combinations(range(n), k))  # noqa: E731
    for k in range(1, n // 2 + 1):
        twin = [fixed(p, k) - fixed(p, k - 1) for p in g.permutation.tolist()]
        close(kernels[f"[{n - k},{k}]"], torch.tensor(twin))
    matrices = torch.nn.functional.one_hot(g.permutation, n).double()
    close(kernels[f"[{','.join('1' * n)}]"], torch.linalg.det(matrices))


def test_products_multiply():
    group = Cyclic(3) * Permutation(3) * SO2()
    spectrum, g = harmonics(group, 2), draw(group, 10)
    parts = [harmonics(f, 2) for f in group.factors]
    of_parts = [p.kernels(part) for p, part in zip(parts, g.parts, strict=True)]
    choices = list(itertools.product(*(range(len(p.names)) for p in parts)))
    assert spectrum.names == tuple(" x ".join(p.names[i] for p, i in zip(parts, c, strict=True)) for c in choices)
    for row, (i, j, m) in enumerate(choices):
        close(spectrum.kernels(g)[row], of_parts[0][i] * of_parts[1][j] * of_parts[2][m])
        assert int(spectrum.dims[row]) == int(parts[0].dims[i] * parts[1].dims[j] * parts[2].dims[m])
        assert float(spectrum.casimirs[row]) == m**2


# ---- values and errors -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("group", [SO2(), SO3(), O3(), Cyclic(4), Dihedral(4), Permutation(4)], ids=str)
def test_kernels_are_float64_of_any_element(group):
    spectrum, g = harmonics(group), draw(group, 5)
    assert spectrum.kernels(g.to(dtype=torch.float32)).dtype == spectrum.casimirs.dtype == torch.float64
    close(spectrum.kernels(g.to(dtype=torch.float32)), spectrum.kernels(g), 1e-3)
    assert spectrum.kernels(g[:0]).shape == (len(spectrum.names), 0)
    assert spectrum.names[0] == harmonics(group, 0).names[0]
    close(spectrum.kernels(g)[0], torch.ones(5))


@pytest.mark.parametrize("group", [SE3(), E3(), SE3() * Permutation(3)], ids=str)
def test_groups_that_are_not_compact(group):
    with pytest.raises(ValueError, match=r"not compact.*take its rotations, `linear_part\(group\)`"):
        harmonics(group)


def test_what_has_no_spectrum():
    with pytest.raises(ValueError, match=r"T\(3\) is not compact.*nothing is left"):
        harmonics(Translation(3))
    for group in (Permutation(9), as_group("SO(3) x S9")):
        with pytest.raises(ValueError, match=r"S9 are too many.*equivariance_error"):
            harmonics(group)
    with pytest.raises(ValueError, match="expected highest"):
        harmonics(SO3(), -1)
    with pytest.raises(ValueError, match=r"expected elements of SO\(3\), got <2 of O3"):
        harmonics(SO3()).kernels(draw(O3(), 2))
