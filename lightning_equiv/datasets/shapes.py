"""Point clouds of simple bodies in any pose: from the points to the class of the body.

A body is one primitive of trimesh, or a few of them put together, with random proportions. Many classes are near twins
(cone and frustum, capsule and ellipsoid, L, T and cross), and every body is its own mirror image, so that a classifier
that does not see reflections loses nothing. Bodies are built and sampled many at a time; every number comes from the
seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from lightning_equiv._checks import check_number
from lightning_equiv.datasets.in_memory import InMemoryDataModule, Samples
from lightning_equiv.groups.rotation import SO3

NOISE = 0.05
CROP = 0.25

_CHUNK = 64  # clouds sampled together: their triangles fit the processor's cache

# Triangle meshes of n bodies that differ in their proportions only: vertices (n, V, 3) and faces (F, 3).
Bodies = tuple[Tensor, Tensor]
# low, high -> (n,) uniform numbers
Uniform = Callable[[float, float], Tensor]


def shapes_dataset(
    num_samples: int,
    *,
    num_points: int = 256,
    noise: float = NOISE,
    crop: float = CROP,
    rotated: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Samples:
    """Bodies of every class of `SHAPE_CLASSES`, as points on their surfaces.

    In this order: points uniform on the surface of the body; cut off on one side by a plane of random direction, which
    removes a fraction uniform in [0, crop] of the surface; centred over the points and scaled to a root mean square
    distance from the origin of 1; rotated; jittered by N(0, noise^2) along each axis; centred and scaled again. Where
    two parts of a body meet, points may lie inside it.

    The same seed gives the same bodies and points whatever `rotated` and `noise` are.

    Args:
        num_samples: n >= 1; each class occurs equally often, up to one, in random order.
        num_points: P >= 2.
        noise: standard deviation of the jitter, in units of the cloud's root mean square radius.
        crop: largest fraction of the surface that is cut off, in [0, 1).
        rotated: rotate every cloud, each by a rotation uniform in SO(3); False leaves the bodies upright.
        seed: of every random number.
        dtype: of the points.

    Returns:
        {"points": (n, P, 3), "labels": (n,)}, labels being indices into `SHAPE_CLASSES`.

    Raises:
        ValueError: a size is too small, or noise or crop out of range.
        ImportError: trimesh is not installed.

    Examples:
        >>> samples = shapes_dataset(32, num_points=100)  # doctest: +SKIP
        >>> samples["points"].shape, samples["labels"].unique().numel()  # doctest: +SKIP
        (torch.Size([32, 100, 3]), 16)
    """
    check_number("num_samples", num_samples, least=1, whole=True)
    _check_cloud(num_points, noise, crop)
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(num_samples, generator=generator)
    labels = torch.arange(num_samples)[shuffled] % len(SHAPE_CLASSES)
    points = torch.empty(num_samples, num_points, 3, dtype=torch.float64)
    for label in labels.unique().tolist():
        for rows in (labels == label).nonzero().flatten().split(_CHUNK):
            vertices, faces = shape_meshes(SHAPE_CLASSES[label], len(rows), generator=generator)
            # enough that num_points are left of the most cropped cloud
            dense = sample_surface(vertices, faces, math.ceil(num_points / (1 - crop)), generator=generator)
            points[rows] = _cropped(dense, num_points, crop, generator)

    points = _normalised(points)
    rotations = SO3().sample(num_samples, generator=generator, dtype=torch.float64).matrix
    if rotated:
        points = points @ rotations.mT  # row vectors: x R^T
    points = _normalised(points + noise * torch.randn(points.shape, generator=generator, dtype=torch.float64))
    return {"points": points.to(dtype), "labels": labels}


def shape_meshes(name: str, num_samples: int, *, generator: torch.Generator) -> Bodies:
    """Upright bodies of one class.

    Args:
        name: one of `SHAPE_CLASSES`.
        num_samples: n >= 1.
        generator: whose random numbers, on the CPU.

    Returns:
        Vertices (n, V, 3), float64, and the faces (F, 3) which all bodies of a class share.

    Raises:
        ValueError: there is no such class, or num_samples < 1.
        ImportError: trimesh is not installed.
    """
    if name not in _BUILDERS:
        raise ValueError(f"expected one of {SHAPE_CLASSES}, got {name!r}")
    check_number("num_samples", num_samples, least=1, whole=True)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(num_samples, generator=generator, dtype=torch.float64)

    return _BUILDERS[name](uniform)


def sample_surface(vertices: Tensor, faces: Tensor, num_points: int, *, generator: torch.Generator) -> Tensor:
    """Independent points (n, P, 3), uniform on the surfaces of triangle meshes.

    Args:
        vertices: (n, V, 3).
        faces: (F, 3), shared by the meshes.
        num_points: P, points per mesh.
        generator: whose random numbers.
    """
    a, b, c = vertices[:, faces].unbind(2)  # (n, F, 3) each
    areas = torch.linalg.vector_norm(torch.linalg.cross(b - a, c - a), dim=-1).cumsum(1)
    u, s, t = torch.rand(3, len(vertices), num_points, generator=generator, dtype=vertices.dtype)
    face = torch.searchsorted(areas, u * areas[:, -1:]).clamp(max=len(faces) - 1)
    a, b, c = (corner.gather(1, face.unsqueeze(-1).expand(-1, -1, 3)) for corner in (a, b, c))
    # the far half of the parallelogram is folded back onto the triangle
    outside = s + t > 1
    s, t = torch.where(outside, 1 - s, s).unsqueeze(-1), torch.where(outside, 1 - t, t).unsqueeze(-1)
    return a + s * (b - a) + t * (c - a)


@dataclass(kw_only=True, eq=False, repr=False)
class ShapesDataModule(InMemoryDataModule):
    """Classification of simple bodies from points on their surfaces, in any pose; see `shapes_dataset`.

    Batches are {"points": (B, P, 3), "labels": (B,)}, float32 and int64. A rotation or reflection acts on the points as
    on vectors, "1o", and leaves the labels alone; the order of the points means nothing. All sets are drawn alike.
    trimesh is needed: `pip install "lightning_equiv[examples]"`.

    Args:
        num_points: P.
        noise: standard deviation of the jitter, in units of the cloud's root mean square radius.
        crop: largest fraction of the surface that is cut off.
        rotated: in any pose; False leaves the bodies upright, so that their pose tells something of their class.

    The other arguments are those of `InMemoryDataModule`.

    Raises:
        ValueError: a size is too small, or noise or crop out of range.

    Examples:
        >>> data = ShapesDataModule(train_size=6, val_size=6, test_size=6, batch_size=4)
        >>> data.setup("fit")  # doctest: +SKIP
        >>> [tuple(batch["points"].shape) for batch in data.train_dataloader()]  # doctest: +SKIP
        [(4, 256, 3), (2, 256, 3)]
    """

    test_names = ("test",)

    train_size: int = 2000
    val_size: int = 1000
    test_size: int = 2000
    batch_size: int = 32
    eval_batch_size: int = 200
    num_points: int = 256
    noise: float = NOISE
    crop: float = CROP
    rotated: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_cloud(self.num_points, self.noise, self.crop)

    def _draw(self, split: str, seed: int) -> Samples:
        return shapes_dataset(
            self._size(split),
            num_points=self.num_points,
            noise=self.noise,
            crop=self.crop,
            rotated=self.rotated,
            seed=seed,
        )


def _check_cloud(num_points: int, noise: float, crop: float) -> None:
    check_number("num_points", num_points, least=2, whole=True)  # one point has no size
    check_number("noise", noise, least=0)
    check_number("crop", crop, least=0, below=1)


def _normalised(points: Tensor) -> Tensor:
    """Points centred, and scaled so that mean_i |x_i|^2 = 1."""
    points = points - points.mean(1, keepdim=True)
    rms: Tensor = points.square().sum(-1).mean(1).sqrt()
    return points / rms[:, None, None]


def _cropped(points: Tensor, num_points: int, crop: float, generator: torch.Generator) -> Tensor:
    """`num_points` random points of those that are left when one side is cut off."""
    n, m, _ = points.shape
    directions = torch.randn(n, 3, 1, generator=generator, dtype=points.dtype)
    left = ((1 - crop * torch.rand(n, generator=generator, dtype=points.dtype)) * m).ceil()
    rank = (points @ directions).squeeze(-1).argsort(1).argsort(1)
    order = torch.rand(n, m, generator=generator, dtype=points.dtype)
    order[rank >= left.unsqueeze(1)] = math.inf
    kept = order.argsort(1)[:, :num_points]
    return points.gather(1, kept.unsqueeze(-1).expand(-1, -1, 3))


# ---- primitives: templates of trimesh, centred, their axis along z, brought to their proportions ---------------------


@cache
def _template(shape: str, **size: Any) -> Bodies:
    """One primitive of trimesh: vertices (V, 3), float64, and faces (F, 3)."""
    try:
        creation = import_module("trimesh.creation")
    except ImportError as error:
        raise ImportError(
            'the shapes are made with trimesh, which is not installed: pip install "lightning_equiv[examples]"'
        ) from error
    mesh = getattr(creation, shape)(**size)
    vertices = torch.tensor(mesh.vertices, dtype=torch.float64)
    middle = (vertices.amax(0) + vertices.amin(0)) / 2
    return vertices - middle, torch.tensor(mesh.faces, dtype=torch.int64)


def _scaled(template: Bodies, x: Tensor, y: Tensor, z: Tensor) -> Bodies:
    vertices, faces = template
    return vertices * torch.stack([x, y, z], -1).unsqueeze(1), faces


def _box(x: Tensor, y: Tensor, z: Tensor) -> Bodies:
    return _scaled(_template("box", extents=(1, 1, 1)), x, y, z)


def _cylinder(radius: Tensor, length: Tensor) -> Bodies:
    return _scaled(_template("cylinder", radius=1, height=1, sections=32), radius, radius, length)


def _cone(radius: Tensor, height: Tensor, sides: int = 32) -> Bodies:
    return _scaled(_template("cone", radius=1, height=1, sections=sides), radius, radius, height)


def _frustum(radius: Tensor, height: Tensor, taper: Tensor) -> Bodies:
    """A cylinder whose radius falls linearly to `taper` times that at its foot."""
    vertices, faces = _cylinder(radius, height)
    z = vertices[..., 2:] / height[:, None, None] + 0.5  # 0 at the foot, 1 at the top
    shrink = 1 - (1 - taper[:, None, None]) * z
    return torch.cat([vertices[..., :2] * shrink, vertices[..., 2:]], -1), faces


def _ellipsoid(x: Tensor, y: Tensor, z: Tensor) -> Bodies:
    return _scaled(_template("icosphere", subdivisions=3, radius=1), x, y, z)


def _capsule(radius: Tensor, length: Tensor) -> Bodies:
    """A cylinder ended by hemispheres; the length is from tip to tip."""
    ball, faces = _template("capsule", height=2, radius=1, count=(16, 16))
    end = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64) * ball[:, 2:].sign()  # the centre of its hemisphere
    return (ball - end) * radius[:, None, None] + end * (length / 2 - radius)[:, None, None], faces


def _torus(major: Tensor, minor: Tensor) -> Bodies:
    vertices, faces = _template("torus", major_radius=2, minor_radius=1, major_sections=32, minor_sections=16)
    circle = vertices * torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    circle = torch.nn.functional.normalize(circle, dim=-1)
    return circle * major[:, None, None] + (vertices - 2 * circle) * minor[:, None, None], faces


def _annulus(inner: Tensor, outer: Tensor, height: Tensor) -> Bodies:
    vertices, faces = _template("annulus", r_min=1, r_max=2, height=1, sections=32)
    radius = vertices[:, :2].norm(dim=-1)
    radius = inner.unsqueeze(1) * (2 - radius) / radius + outer.unsqueeze(1) * (radius - 1) / radius
    return torch.stack([vertices[:, 0] * radius, vertices[:, 1] * radius, height.outer(vertices[:, 2])], -1), faces


# ---- bodies ----------------------------------------------------------------------------------------------------------


def _moved(bodies: Bodies, x: Tensor | float = 0.0, z: Tensor | float = 0.0) -> Bodies:
    vertices, faces = bodies
    shift = vertices.new_zeros(len(vertices), 3)
    shift[:, 0], shift[:, 2] = x, z
    return vertices + shift.unsqueeze(1), faces


def _lying(bodies: Bodies) -> Bodies:
    """Turn the axis from z to x."""
    vertices, faces = bodies
    return vertices.roll(1, -1), faces


def _joined(*parts: Bodies) -> Bodies:
    vertices = torch.cat([vertices for vertices, _ in parts], 1)
    starts = [sum(len(part[0][0]) for part in parts[:index]) for index in range(len(parts))]
    return vertices, torch.cat([faces + start for (_, faces), start in zip(parts, starts, strict=True)])


def _build_dumbbell(u: Uniform) -> Bodies:
    ball, length = u(0.18, 0.3), u(0.35, 0.5)
    rod = _cylinder(ball * u(0.3, 0.7), 2 * length)
    other = ball * u(0.8, 1.25)
    return _joined(rod, _moved(_ellipsoid(ball, ball, ball), z=length), _moved(_ellipsoid(*3 * [other]), z=-length))


def _build_pin(u: Uniform) -> Bodies:
    ball, length = u(0.2, 0.35), u(0.4, 0.6)
    return _joined(_cylinder(ball * u(0.3, 0.7), 2 * length), _moved(_ellipsoid(ball, ball, ball), z=length))


def _build_hammer(u: Uniform) -> Bodies:
    handle, head = u(0.8, 1.2), u(0.12, 0.22)
    bar = _lying(_cylinder(head, u(0.5, 1.0)))
    return _joined(_moved(bar, z=handle / 2 + head), _cylinder(head * u(0.4, 0.8), handle))


def _build_mug(u: Uniform) -> Bodies:
    radius, height = u(0.3, 0.5), u(0.8, 1.1)
    ring = height * u(0.25, 0.35)
    vertices, faces = _torus(ring, ring * u(0.15, 0.3))
    # standing on edge: the axis from z to y; of the ring the half x >= 0
    handle = vertices.roll(2, -1)
    outer = (handle[0, :, 0] > -1e-9)[faces].all(-1)
    return _joined(_cylinder(radius, height), _moved((handle, faces[outer]), x=radius))


def _bars(u: Uniform) -> tuple[Tensor, Tensor, Bodies, Callable[[Tensor], Bodies]]:
    """Half the length and the thickness of a bar along x, the bar, and how to make uprights as deep as it is."""
    half, thick, depth, width = u(0.4, 0.6), u(0.15, 0.3), u(0.15, 0.4), u(0.15, 0.3)
    return half, thick, _box(2 * half, depth, thick), lambda length: _box(width, depth, length)


def _build_ell(u: Uniform) -> Bodies:
    half, thick, bar, upright = _bars(u)
    length, position = u(0.5, 0.9), u(0.75, 0.85)
    return _joined(bar, _moved(upright(length), x=half * position, z=(thick + length) / 2))


def _build_tee(u: Uniform) -> Bodies:
    half, thick, bar, upright = _bars(u)
    length, position = u(0.5, 0.9), u(0, 0.4)
    return _joined(bar, _moved(upright(length), x=half * position, z=(thick + length) / 2))


def _build_cross(u: Uniform) -> Bodies:
    half, thick, bar, upright = _bars(u)
    length, position, below = u(0.4, 0.7), half * u(0, 0.4), u(0.15, 0.4)
    above = _moved(upright(length), x=position, z=(thick + length) / 2)
    return _joined(bar, above, _moved(upright(below), x=position, z=-(thick + below) / 2))


_BUILDERS: dict[str, Callable[[Uniform], Bodies]] = {
    "box": lambda u: _box(u(0.4, 1), u(0.3, 1), u(1, 1)),
    "cylinder": lambda u: _cylinder(u(0.2, 0.6), u(1, 1)),
    "capsule": lambda u: _capsule(u(0.2, 0.4), u(1, 1)),
    "ellipsoid": lambda u: _ellipsoid(u(0.4, 0.7), u(0.4, 0.7), u(1, 1)),
    "cone": lambda u: _cone(u(0.4, 0.8), u(1, 1)),
    "frustum": lambda u: _frustum(u(0.4, 0.8), u(1, 1), u(0.2, 0.7)),
    "pyramid": lambda u: _cone(u(0.4, 0.9), u(1, 1), sides=4),
    "torus": lambda u: _torus(u(1, 1), u(0.2, 0.5)),
    "annulus": lambda u: _annulus(u(0.4, 0.7), u(1, 1), u(0.3, 0.9)),
    "dumbbell": _build_dumbbell,
    "pin": _build_pin,
    "hammer": _build_hammer,
    "mug": _build_mug,
    "L": _build_ell,
    "T": _build_tee,
    "cross": _build_cross,
}

SHAPE_CLASSES = tuple(_BUILDERS)
