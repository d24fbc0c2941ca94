import math
import subprocess
import sys

import pytest
import torch
from e3nn import o3
from scipy.spatial.transform import Rotation
from torch.autograd import gradcheck, gradgradcheck

from lightning_equiv.representations.wigner import (
    rotate_irreps,
    rotate_irreps_infinitesimal,
    wigner_D,
    wigner_D_list,
    wigner_generators,
)
from tests import helpers
from tests.helpers import normal, seeded

MAX_DEGREE = 8
MIXED = "2x0e+3x0o+1o+2x1e+2x2e+2o+0x3e+3o+4x1o"
pytestmark = pytest.mark.usefixtures("float64_default")
TOLERANCE = {**helpers.TOLERANCE, torch.bfloat16: 3e-2, torch.float16: 4e-3}  # of components larger than one


def random_rotations(n, seed=0):
    return torch.from_numpy(Rotation.random(n, random_state=seed).as_matrix())


def axis_angle(axis, angle):
    axis = torch.tensor(axis, dtype=torch.float64)
    return torch.from_numpy(Rotation.from_rotvec((axis / axis.norm() * angle).numpy()).as_matrix())


def special_rotations():
    axes = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 2.0, 3.0]]
    angles = [0.0, 1e-9, 0.7, math.pi / 2, math.pi - 1e-9, math.pi]
    return torch.stack([axis_angle(axis, angle) for axis in axes for angle in angles])


def improper(rotations):
    """Every second one times -1."""
    sign = torch.ones(len(rotations))
    sign[1::2] = -1
    return rotations * sign[:, None, None]


def dense(matrix, irreps):
    """e3nn's matrix, on the CPU in float64."""
    return o3.Irreps(irreps).D_from_matrix(matrix.double())


def features(n, irreps, *, dtype=torch.float64, seed=0):
    return normal(n, o3.Irreps(irreps).dim, seed=seed).to(dtype)


# wigner_D


@pytest.mark.parametrize("degree", range(MAX_DEGREE + 1))
def test_wigner_D_is_e3nn_s(degree):
    R = torch.cat([random_rotations(20), special_rotations()])
    # e3nn goes through Euler angles, which lose half of the digits near the poles.
    torch.testing.assert_close(wigner_D(degree, R[:20]), o3.Irrep(degree, 1).D_from_matrix(R[:20]), atol=1e-12, rtol=0)
    torch.testing.assert_close(wigner_D(degree, R), o3.Irrep(degree, 1).D_from_matrix(R), atol=2e-6, rtol=0)


@pytest.mark.parametrize("degree", range(MAX_DEGREE + 1))
def test_homomorphism_and_orthogonality(degree):
    R = torch.cat([special_rotations(), random_rotations(20)])
    D = wigner_D(degree, R)
    products = R[:, None] @ R[None]
    assert (D[:, None] @ D[None] - wigner_D(degree, products)).abs().max() < 1e-12
    assert (D @ D.mT - torch.eye(2 * degree + 1)).abs().max() < 1e-12
    assert (wigner_D(degree, R.mT) - D.mT).abs().max() < 1e-12
    assert (wigner_D(degree, torch.eye(3)) - torch.eye(2 * degree + 1)).abs().max() < 1e-12


def test_degree_one_is_the_matrix_itself():
    R = random_rotations(4)
    assert torch.equal(wigner_D(1, R), R)


@pytest.mark.parametrize("degree", range(1, MAX_DEGREE + 1))
def test_spherical_harmonics_turn_with_it(degree):
    R = torch.cat([special_rotations(), random_rotations(10)])
    v = normal(len(R), 3, seed=1)
    turned = o3.spherical_harmonics(degree, (R @ v[..., None])[..., 0], normalize=True)
    still = o3.spherical_harmonics(degree, v, normalize=True)
    torch.testing.assert_close(turned, (wigner_D(degree, R) @ still[..., None])[..., 0], atol=1e-11, rtol=0)


@pytest.mark.parametrize("degree", range(MAX_DEGREE + 1))
def test_homogeneous_of_its_degree(degree):
    R = random_rotations(3)
    torch.testing.assert_close(wigner_D(degree, -R), (-1) ** degree * wigner_D(degree, R), atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3), (2, 0, 3)])
def test_any_leading_shape(shape):
    R = torch.eye(3).expand(*shape, 3, 3)
    for degree, D in enumerate(wigner_D_list(4, R)):
        assert D.shape == (*shape, 2 * degree + 1, 2 * degree + 1)
        torch.testing.assert_close(D, torch.eye(2 * degree + 1).expand_as(D))


def test_list_is_each_degree():
    R = random_rotations(3)
    for degree, D in enumerate(wigner_D_list(5, R)):
        assert torch.equal(D, wigner_D(degree, R))


def test_float32_loses_nothing_but_the_last_rounding():
    R = random_rotations(30).float()
    D = wigner_D(MAX_DEGREE, R)
    assert D.dtype == torch.float32
    assert torch.equal(D, wigner_D(MAX_DEGREE, R.double()).float())


@pytest.mark.parametrize("R", [random_rotations(2), torch.eye(3)[None], axis_angle([0, 1, 0], math.pi)[None]])
@pytest.mark.parametrize("degree", [2, 3, 4])
def test_wigner_D_has_two_derivatives_everywhere(degree, R):
    R = R.double().requires_grad_()
    assert gradcheck(lambda m: wigner_D(degree, m), R)
    assert gradgradcheck(lambda m: wigner_D(degree, m), R)


# wigner_generators


@pytest.mark.parametrize("degree", range(MAX_DEGREE + 1))
def test_generators_are_e3nn_s_and_those_of_the_matrices(degree):
    J = wigner_generators(degree)
    torch.testing.assert_close(J, o3._wigner.so3_generators(degree), atol=1e-12, rtol=0)
    for k in range(3):
        axis = [float(i == k) for i in range(3)]
        expected = torch.linalg.matrix_exp(0.7 * J[k])
        torch.testing.assert_close(wigner_D(degree, axis_angle(axis, 0.7)), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("degree", range(5))
def test_generators_keep_the_brackets_of_so3(degree):
    J = wigner_generators(degree)
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        torch.testing.assert_close(J[i] @ J[j] - J[j] @ J[i], J[k], atol=1e-12, rtol=0)


def test_generators_are_the_caller_s_own():
    wigner_generators(2).zero_()
    assert wigner_generators(2).abs().max() > 1


# rotate_irreps


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("matrix_dtype", [torch.float64, torch.float32])
def test_is_the_dense_matrix(dtype, matrix_dtype):
    matrix, x = improper(random_rotations(12)).to(matrix_dtype), features(12, MIXED, dtype=dtype)
    y = rotate_irreps(matrix, x, MIXED)
    expected = torch.einsum("bij,bj->bi", dense(matrix, MIXED), x.double())
    assert y.dtype == dtype
    # e3nn takes Euler angles of the float32 matrix, which is orthogonal to 1e-7 only.
    tolerance = TOLERANCE[dtype] if matrix_dtype == torch.float64 else max(TOLERANCE[dtype], 1e-5)
    torch.testing.assert_close(y.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    matrix, x = improper(random_rotations(200)), features(200, MIXED, dtype=dtype)
    exact = rotate_irreps(matrix, x.double(), MIXED)
    step = (exact.to(dtype).double() - exact).abs()
    # No further from the truth than the nearest number of this dtype, but for float32's own error.
    assert ((rotate_irreps(matrix, x, MIXED).double() - exact).abs() <= step + 1e-5).all()


def test_float64_features_are_float64_exact():
    matrix, x = improper(random_rotations(12)).float(), features(12, MIXED)
    assert torch.equal(rotate_irreps(matrix, x, MIXED), rotate_irreps(matrix.double(), x, MIXED))


def test_scalars_are_copied_and_pseudoscalars_flip_exactly():
    matrix, x = improper(random_rotations(6)).float(), features(6, "4x0e+4x0o", dtype=torch.float32)
    y = rotate_irreps(matrix, x, "4x0e+4x0o")
    assert torch.equal(y[:, :4], x[:, :4])
    assert torch.equal(y[::2, 4:], x[::2, 4:])
    assert torch.equal(y[1::2, 4:], -x[1::2, 4:])


@pytest.mark.parametrize("irreps", ["3x0e", "2x1o", "0x1o", ""])
def test_result_is_new_memory(irreps):
    x = features(2, irreps)
    y = rotate_irreps(torch.eye(3)[None], x, irreps)
    assert torch.equal(y, x)
    assert y is not x
    assert x.numel() == 0 or y.data_ptr() != x.data_ptr()


def test_one_matrix_moves_every_row():
    matrix, x = improper(random_rotations(2))[1:], features(7, MIXED)
    expected = rotate_irreps(matrix.expand(7, 3, 3), x, MIXED)
    torch.testing.assert_close(rotate_irreps(matrix, x, MIXED), expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize(("shape", "dim"), [((5, 4, 3, 6), 2), ((5, 3), 1), ((5, 3, 7), 1), ((5, 2, 4, 3), -1)])
@pytest.mark.parametrize("n", [1, 5])
def test_vectors_in_any_dimension(shape, dim, n):
    R, x = random_rotations(n), torch.randn(shape)
    expected = (R.reshape(n, *[1] * (len(shape) - 2), 3, 3) @ x.movedim(dim, -1)[..., None])[..., 0].movedim(-1, dim)
    torch.testing.assert_close(rotate_irreps(R, x, "1o", dim=dim), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(rotate_irreps(R, x, "1o", dim=dim - len(shape) if dim > 0 else 3), expected)


def test_mixed_irreps_in_the_middle():
    matrix = improper(random_rotations(3))
    x = torch.randn(3, 2, o3.Irreps(MIXED).dim, 5)
    expected = torch.einsum("bij,bcjn->bcin", dense(matrix, MIXED), x)
    torch.testing.assert_close(rotate_irreps(matrix, x, MIXED, dim=2), expected, atol=1e-12, rtol=0)


def test_strided_features():
    matrix, x = random_rotations(6), features(12, MIXED)
    odd = x.T.contiguous().T[::2]
    assert not odd.is_contiguous()
    torch.testing.assert_close(rotate_irreps(matrix, odd, MIXED), rotate_irreps(matrix, odd.contiguous(), MIXED))


@pytest.mark.parametrize("shape", [(0, 48), (0, 2, 48), (3, 0, 48)])
@pytest.mark.parametrize("n", [None, 1])
def test_empty(shape, n):
    matrix, x = torch.eye(3).expand(shape[0] if n is None else n, 3, 3), torch.randn(shape)
    assert rotate_irreps(matrix, x, MIXED).shape == shape
    assert rotate_irreps_infinitesimal(matrix[:, 0], x, MIXED).shape == shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    matrix, x = improper(random_rotations(6)).float(), features(6, MIXED, dtype=dtype)
    outside = [rotate_irreps(matrix, x, MIXED), rotate_irreps_infinitesimal(matrix[:, 0], x, MIXED)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.is_autocast_enabled("cpu")
        inside = [rotate_irreps(matrix, x, MIXED), rotate_irreps_infinitesimal(matrix[:, 0], x, MIXED)]
        assert torch.is_autocast_enabled("cpu")
    for a, b in zip(outside, inside, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reduced_matmul_precision_changes_nothing(precision):
    matrix, x = random_rotations(64).float(), features(64, "32x1o+32x2e", dtype=torch.float32)
    before = torch.get_float32_matmul_precision()
    outside = rotate_irreps(matrix, x, "32x1o+32x2e")
    try:
        torch.set_float32_matmul_precision(precision)  # on a CPU with AMX, "medium" alone costs 2e-2
        inside = rotate_irreps(matrix, x, "32x1o+32x2e")
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(inside, outside, atol=2e-6, rtol=0)


@pytest.mark.parametrize("dim", [1, 2])
def test_two_derivatives_in_features_and_matrix(dim):
    irreps = "0e+0o+1o+1e+2e+2o"
    matrix = improper(random_rotations(2)).requires_grad_()
    width = o3.Irreps(irreps).dim
    x = torch.randn((2, width) if dim == 1 else (2, 1, width, 2), requires_grad=True)
    assert gradcheck(lambda m, x: rotate_irreps(m, x, irreps, dim=dim), (matrix, x))
    assert gradgradcheck(lambda m, x: rotate_irreps(m, x, irreps, dim=dim), (matrix, x))


def test_vmap_jvp_and_compile():
    matrix, x = improper(random_rotations(3)), torch.randn(4, 3, o3.Irreps(MIXED).dim)
    expected = torch.stack([rotate_irreps(matrix, row, MIXED) for row in x])
    torch.testing.assert_close(torch.func.vmap(lambda row: rotate_irreps(matrix, row, MIXED))(x), expected)
    _, tangent = torch.func.jvp(lambda row: rotate_irreps(matrix, row, MIXED), (x[0],), (x[1],))
    torch.testing.assert_close(tangent, expected[1])
    compiled = torch.compile(lambda m, row: rotate_irreps(m, row, MIXED), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(matrix, x[0]), expected[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("dim", [-1, 1])
def test_compiled_it_is_entry_by_entry_and_the_same(dim, dtype):
    torch._dynamo.reset()
    irreps = o3.Irreps(MIXED) + o3.Irreps("2x4e+4o")  # the last ones are too large to be unrolled
    matrix = improper(random_rotations(5))
    x = features(10, irreps).reshape(5, 2, -1).movedim(-1, dim).contiguous().to(dtype)
    w = normal(*x.shape, seed=1).to(dtype)
    compiled = torch.compile(rotate_irreps, fullgraph=True, backend="aot_eager")
    pairs = []
    for rotate in (compiled, rotate_irreps):
        leaf = x.clone().requires_grad_()
        y = rotate(matrix, leaf, str(irreps), dim)
        pairs.append((y.detach(), torch.autograd.grad((w * y).sum(), leaf)[0]))
    for ours, eager in zip(*pairs, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, eager, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    expected = torch.einsum("bij,b...j->b...i", dense(matrix, irreps), x.double().movedim(dim, -1)).movedim(-1, dim)
    atol = max(TOLERANCE[dtype], 2e-6)  # e3nn's own matrices of degree 4
    torch.testing.assert_close(pairs[0][0].double(), expected, atol=atol, rtol=atol)


@pytest.mark.slow
def test_compiled_to_machine_code_it_is_the_same():
    torch._dynamo.reset()
    matrix, x = improper(random_rotations(5)), features(5, MIXED, dtype=torch.float32)
    compiled = torch.compile(rotate_irreps, fullgraph=True)
    expected = rotate_irreps(matrix, x, MIXED)
    torch.testing.assert_close(compiled(matrix, x, MIXED), expected, atol=1e-5, rtol=1e-5)


def test_constants_survive_the_context_they_are_made_in():
    # In a fresh process: nothing has been cached.
    script = """
import torch
from lightning_equiv.representations.wigner import wigner_D
with torch.inference_mode(), torch.device("meta"):
    wigner_D(4, torch.eye(3, device="cpu"))
R = torch.eye(3, requires_grad=True)
wigner_D(4, R).sum().backward()
assert R.grad.isfinite().all()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cuda_without_synchronisation():
    matrix, x = improper(random_rotations(12)), features(12, MIXED, dtype=torch.float32)
    on_gpu = matrix.cuda(), x.cuda()
    y = rotate_irreps(*on_gpu, MIXED)
    torch.cuda.set_sync_debug_mode("error")
    try:
        y = rotate_irreps(*on_gpu, MIXED)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert y.is_cuda
    torch.testing.assert_close(y.cpu(), rotate_irreps(matrix, x, MIXED), atol=1e-5, rtol=1e-5)


# rotate_irreps_infinitesimal


@pytest.mark.parametrize(("shape", "dim"), [((4, 48), -1), ((4, 2, 48, 3), 2)])
def test_infinitesimal_is_the_derivative(shape, dim):
    omega, x = torch.randn(4, 3), torch.randn(shape)
    L = torch.einsum("bk,kij->bij", omega, wigner_generators(1))

    def turned(t):
        return rotate_irreps(torch.linalg.matrix_exp(t * L), x, MIXED, dim=dim)

    _, expected = torch.func.jvp(turned, (torch.zeros(()),), (torch.ones(()),))
    y = rotate_irreps_infinitesimal(omega, x, MIXED, dim=dim)
    torch.testing.assert_close(y, expected, atol=1e-12, rtol=0)


def test_infinitesimal_broadcasts_and_keeps_the_dtype():
    omega, x = torch.randn(1, 3), features(4, MIXED, dtype=torch.bfloat16)
    y = rotate_irreps_infinitesimal(omega, x, MIXED)
    assert y.dtype == torch.bfloat16
    expected = rotate_irreps_infinitesimal(omega.expand(4, 3), x.double(), MIXED)
    torch.testing.assert_close(y.double(), expected, atol=3e-2, rtol=3e-2)
    assert rotate_irreps_infinitesimal(omega, x[:, :5], "2x0e+3x0o").abs().max() == 0


def test_infinitesimal_has_two_derivatives():
    omega, x = torch.randn(2, 3, requires_grad=True), torch.randn(2, 9, requires_grad=True)
    assert gradcheck(lambda w, x: rotate_irreps_infinitesimal(w, x, "0e+1o+2e"), (omega, x))
    assert gradgradcheck(lambda w, x: rotate_irreps_infinitesimal(w, x, "0e+1o+2e"), (omega, x))


# what cannot be


@pytest.mark.parametrize(
    ("matrix", "x", "irreps", "dim", "message"),
    [
        (torch.eye(3), torch.ones(2, 3), "1o", -1, r"shape \(B, 3, 3\), got \(3, 3\)"),
        (torch.eye(2)[None], torch.ones(2, 3), "1o", -1, r"shape \(B, 3, 3\), got \(1, 2, 2\)"),
        (torch.eye(3)[None], torch.ones(2, 4), "1o", -1, r"3 components \(1o\) in dimension -1"),
        (torch.eye(3)[None], torch.ones(3, 3), "1o", 0, "after a first dimension that is the batch"),
        (torch.eye(3)[None], torch.ones(3), "1o", -1, "after a first dimension that is the batch"),
        (torch.eye(3)[None], torch.ones(3, 3), "1o", 5, "in dimension 5"),
        (torch.eye(3).expand(2, 3, 3), torch.ones(3, 3), "1o", -1, "1 or 3 group elements for 3 rows, got 2"),
        (torch.eye(3)[None], torch.ones(3, 3, dtype=torch.long), "1o", -1, r"write x\.float\(\)"),
        (torch.eye(3)[None], torch.ones(3, 3), "vector", -1, "irreps such as '16x0e"),
    ],
)
def test_errors_say_what_was_expected(matrix, x, irreps, dim, message):
    with pytest.raises(ValueError, match=message):
        rotate_irreps(matrix, x, irreps, dim)


def test_errors_of_degrees_and_shapes():
    with pytest.raises(ValueError, match="degree l >= 0, got -1"):
        wigner_D(-1, torch.eye(3))
    with pytest.raises(ValueError, match="degree l >= 0, got -1"):
        wigner_generators(-1)
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 3, 3\), got \(3, 2\)"):
        wigner_D(1, torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"shape \(B, 3\), got \(3,\)"):
        rotate_irreps_infinitesimal(torch.ones(3), torch.ones(2, 3), "1o")


@pytest.mark.parametrize("n", [257, 700, 1024])
def test_many_rows_at_a_time_are_the_same_rows(n: int) -> None:
    """Large batches without a graph go piece by piece; with one they go at once."""
    generator = seeded()
    matrix = torch.linalg.qr(torch.randn(n, 3, 3, generator=generator, dtype=torch.float64))[0]
    x = torch.randn(n, 2, 18, generator=generator, dtype=torch.float64)
    irreps = "2x0e+1o+1e+2e+0o"
    width = o3.Irreps(irreps).dim
    x = x[..., :width]
    pieces = rotate_irreps(matrix, x, irreps)
    whole = rotate_irreps(matrix, x.clone().requires_grad_(), irreps).detach()
    assert torch.equal(pieces, whole) or (pieces - whole).abs().max() < 1e-14
    rows = torch.stack([rotate_irreps(matrix[i : i + 1], x[i : i + 1], irreps)[0] for i in (0, 255, 256, n - 1)])
    assert (pieces[[0, 255, 256, n - 1]] - rows).abs().max() < 1e-14
