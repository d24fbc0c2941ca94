import numpy as np
import pytest
import scipy.ndimage
import torch

from lightning_equiv import SO2, Cyclic, Dihedral, Image, VectorField
from lightning_equiv.groups.group import AlgebraElement
from lightning_equiv.representations.image import grid, interpolate, moves_pixels_to_pixels
from tests.contracts import draw
from tests.helpers import close

SIZE = 32


def turn_by(*degrees):
    return AlgebraElement(SO2(), (torch.tensor(degrees, dtype=torch.float64)[:, None].deg2rad(),)).exp()


def pixels(size=SIZE):
    """(size, size, 2) positions x, y, written independently of the code: row 0 is the top."""
    middle = (size - 1) / 2
    return torch.tensor([[[c - middle, middle - r] for c in range(size)] for r in range(size)], dtype=torch.float64)


def blobs(points):
    """A smooth image, as a formula: two Gaussians off the centre."""
    centres = torch.tensor([[5.0, 1.0], [-3.0, -4.0]], dtype=torch.float64)
    distance = (points[..., None, :] - centres).square().sum(-1)
    return (torch.tensor([1.0, -0.6], dtype=torch.float64) * (-distance / (2 * 2.5**2)).exp()).sum(-1)


def swirl(points):
    """A smooth vector field, as a formula: v(p) = A p exp(-|p|^2 / 2 s^2), A neither symmetric nor a rotation."""
    A = torch.tensor([[0.3, -1.0], [0.6, 0.2]], dtype=torch.float64)
    return torch.einsum("ij,...j->...i", A, points) * (-points.square().sum(-1, keepdim=True) / (2 * 4.0**2)).exp()


def relative_error(actual, expected):
    return float((actual - expected).norm() / expected.norm())


# ---- exact -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_quarter_turns_are_rot90(size, generator):
    x = torch.randn(8, 3, size, size, generator=generator)
    quarter = Cyclic(4).elements()
    for k in range(4):
        assert torch.equal(Image()(quarter[k], x), torch.rot90(x, k, dims=(-2, -1)))
    each = Image()(quarter.repeat(2), x)
    assert torch.equal(each[6], torch.rot90(x[6], 2, dims=(-2, -1)))


@pytest.mark.parametrize("size", [2, 5, 8])
def test_flips_are_flips(size, generator):
    x = torch.randn(8, 3, size, size, generator=generator)
    for g, (flipped, k) in zip(Dihedral(4).elements(), [(f, k) for f in (0, 1) for k in range(4)], strict=True):
        upside_down = x.flip(-2) if flipped else x  # y -> -y, then k quarter turns
        assert torch.equal(Image()(g, x), torch.rot90(upside_down, k, dims=(-2, -1)))
    side_swap = Dihedral(2).elements()[3]  # half a turn after y -> -y: x -> -x
    assert torch.equal(Image()(side_swap, x), x.flip(-1))


def test_quarter_turns_move_whole_numbers():
    x = torch.arange(9, dtype=torch.uint8).reshape(1, 3, 3)
    assert torch.equal(Image()(Cyclic(4).elements()[1], x), torch.rot90(x, 1, dims=(-2, -1)))


def test_vectors_of_a_quarter_turned_field_turn_too(generator):
    v = torch.randn(1, 4, 5, 5, generator=generator)
    moved = VectorField()(Cyclic(4).elements()[1], v)
    there = torch.rot90(v, 1, dims=(-2, -1))
    close(moved[:, 0::2], -there[:, 1::2])
    close(moved[:, 1::2], there[:, 0::2])
    flipped = VectorField()(Dihedral(4).elements()[4], v)
    close(flipped[:, 0::2], v[:, 0::2].flip(-2))
    close(flipped[:, 1::2], -v[:, 1::2].flip(-2))


def test_interpolation_at_quarter_turns_is_exact(generator):
    x = torch.randn(1, 2, 6, 6, generator=generator, dtype=torch.float64)
    for k in range(4):
        close(Image()(turn_by(90.0 * k), x), torch.rot90(x, k, dims=(-2, -1)), 1e-10)


def test_which_groups_move_pixels_to_pixels():
    exact = {str(G(n)) for G in (Cyclic, Dihedral) for n in range(1, 9) if moves_pixels_to_pixels(G(n))}
    assert exact == {"C1", "C2", "C4", "D1", "D2", "D4"}
    assert not moves_pixels_to_pixels(SO2())


# ---- interpolated, against the formula turned ------------------------------------------------------------------------
ANGLES = (-120.0, -30.0, 7.0, 45.0, 61.0, 200.0)


def test_images_turn_as_the_formula_does():
    p, g = pixels(), turn_by(*ANGLES)
    close(grid(SIZE, torch.device("cpu"), torch.float64).reshape(SIZE, SIZE, 2), p)
    moved = Image()(g, blobs(p).expand(len(g), 1, -1, -1))
    for one, R in zip(moved, g.matrix, strict=True):
        assert relative_error(one[0], blobs(p @ R)) < 1e-2  # row p^T R is R^-1 p


def test_polygons_that_miss_the_pixels_are_interpolated():
    p, g = pixels(), Dihedral(3).elements()
    moved = Image()(g, blobs(p).expand(len(g), -1, -1))
    for one, R in zip(moved, g.matrix, strict=True):
        assert relative_error(one, blobs(p @ R)) < 1e-2


def test_vector_fields_turn_as_the_formula_does():
    p, g = pixels(), turn_by(*ANGLES)
    moved = VectorField()(g, swirl(p).movedim(-1, 0).expand(len(g), -1, -1, -1))
    for one, R in zip(moved, g.matrix, strict=True):
        assert relative_error(one, torch.einsum("ij,rcj->irc", R, swirl(p @ R))) < 1e-2


def test_images_turn_as_scipy_does():
    image = blobs(pixels())
    for angle in ANGLES:
        moved = Image()(turn_by(angle), image[None])[0]
        twin = scipy.ndimage.rotate(image.numpy(), angle, reshape=False, order=3)
        assert relative_error(moved, torch.from_numpy(np.ascontiguousarray(twin))) < 1e-2


def test_cubic_convolution_is_exact_for_quadratics(generator):
    p = pixels(9)
    coefficients = torch.randn(6, generator=generator, dtype=torch.float64)

    def quadratic(q):
        x, y = q.unbind(-1)
        return (torch.stack([x**2, x * y, y**2, x, y, torch.ones_like(x)], dim=-1) * coefficients).sum(-1)

    inner = torch.rand(1, 81, 2, generator=generator, dtype=torch.float64) * 4 - 2  # its 16 neighbours lie on the grid
    close(interpolate(quadratic(p)[None], inner), quadratic(inner).reshape(1, 9, 9), 1e-11)


def test_derivative_is_the_formula_s():
    p = pixels()
    x = p.clone().requires_grad_()
    (slope,) = torch.autograd.grad(blobs(x).sum(), x)
    a = SO2().algebra()
    expected = -(slope * torch.einsum("ij,rcj->rci", a.matrix[0], p)).sum(-1)  # -grad I . Omega p
    assert (
        relative_error(Image().infinitesimal(a, blobs(p)[None])[0], expected) < 0.06
    )  # central differences: h^2 / 2 s^2, with s = 2.5


def test_beyond_the_border_is_zero():
    moved = Image()(turn_by(45.0), torch.ones(1, 17, 17, dtype=torch.float64))
    for corner in (moved[0, 0, 0], moved[0, 0, -1], moved[0, -1, 0], moved[0, -1, -1]):
        close(corner, torch.tensor(0.0))
    close(moved[0, 5:12, 5:12], torch.ones(7, 7))


def test_turning_on_the_grid_nearly_composes():
    g, h = draw(SO2(), 4, seed=1), draw(SO2(), 4, seed=2)
    x = blobs(pixels()).expand(4, 1, -1, -1)
    assert relative_error(Image()(g @ h, x), Image()(g, Image()(h, x))) < 2e-2


def test_half_precision_images_are_rounded_once():
    x, g = blobs(pixels())[None], turn_by(30.0)
    for dtype in (torch.float16, torch.bfloat16):
        rounded = x.to(dtype)
        assert torch.equal(Image()(g, rounded), Image()(g, rounded.float()).to(dtype))
