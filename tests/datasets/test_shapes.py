"""Shapes: points against the surfaces they are drawn from, poses, seeds and loaders against their definition."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import Tensor

trimesh = pytest.importorskip("trimesh")

from lightning_equiv.datasets import SHAPE_CLASSES, ShapesDataModule, shapes_dataset  # noqa: E402
from lightning_equiv.datasets.in_memory import InMemoryDataModule  # noqa: E402
from lightning_equiv.datasets.shapes import _template, sample_surface, shape_meshes  # noqa: E402


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _of_class(name: str, num_samples: int = 4, **kwargs: object) -> Tensor:
    """Clean and upright unless said otherwise; float64."""
    settings = {"noise": 0.0, "rotated": False, "dtype": torch.float64, **kwargs}
    samples = shapes_dataset(num_samples * len(SHAPE_CLASSES), **settings)
    return samples["points"][samples["labels"] == SHAPE_CLASSES.index(name)]


class TestMeshes:
    """`shape_meshes` and `sample_surface`."""

    @pytest.mark.parametrize("name", SHAPE_CLASSES)
    def test_bodies_are_sound_and_differ(self, name: str) -> None:
        vertices, faces = shape_meshes(name, 3, generator=_generator())
        for body in vertices:
            mesh = trimesh.Trimesh(body.numpy(), faces.numpy(), process=False)
            pieces = mesh.split(only_watertight=False)
            closed = [piece for piece in pieces if piece.is_watertight]
            assert len(closed) == len(pieces) - (name == "mug")  # the handle is half a ring, open at its ends
            assert all(piece.is_winding_consistent and piece.volume > 0 for piece in closed)
        assert (vertices[0] - vertices[1]).abs().max() > 1e-3

    @pytest.mark.parametrize("name", SHAPE_CLASSES)
    def test_bodies_are_their_own_mirror_image(self, name: str) -> None:
        vertices, _ = shape_meshes(name, 2, generator=_generator())
        mirrored = vertices * torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
        assert torch.cdist(vertices, mirrored).amin(1).max() < 1e-6

    @pytest.mark.parametrize("name", SHAPE_CLASSES)
    def test_points_lie_on_the_surface(self, name: str) -> None:
        vertices, faces = shape_meshes(name, 1, generator=_generator(1))
        (points,) = sample_surface(vertices, faces, 12, generator=_generator(2))
        triangles = np.tile(vertices[0, faces].numpy(), (12, 1, 1))
        repeated = points.repeat_interleave(len(faces), 0).numpy()
        nearest = trimesh.triangles.closest_point(triangles, repeated)
        gaps = np.linalg.norm(nearest - repeated, axis=1).reshape(12, -1)
        assert gaps.min(1).max() < 1e-6  # closest_point rounds beside thin triangles

    def test_points_are_uniform_on_the_surface(self) -> None:
        size = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        vertices, faces = _template("box", extents=(1, 1, 1))
        (points,) = sample_surface((vertices * size)[None], faces, 40_000, generator=_generator())
        on_face = ((points.abs() - size / 2).abs() < 1e-12).double().mean(0)
        area = size.prod() / size
        torch.testing.assert_close(on_face, area / area.sum(), rtol=0, atol=0.01)
        top = points[points[:, 2] == 1.5, :2] / size[:2] + 0.5
        torch.testing.assert_close(top.mean(0), torch.full((2,), 0.5, dtype=torch.float64), rtol=0, atol=0.02)
        torch.testing.assert_close(top.T.cov(), torch.eye(2, dtype=torch.float64) / 12, rtol=0, atol=0.005)

    def test_closed_forms(self) -> None:
        def mesh(name: str) -> tuple[Tensor, Tensor, Tensor]:
            (vertices,), _ = shape_meshes(name, 1, generator=_generator())
            return vertices, vertices[:, :2].norm(dim=-1), vertices[:, 2]

        _, radius, z = mesh("torus")
        minor = z.max()
        assert ((radius - 1) ** 2 + z**2 - minor**2).abs().max() < 1e-9
        _, radius, z = mesh("capsule")
        end, thick = z.max(), radius.max()
        assert end.item() == pytest.approx(0.5)
        assert (radius**2 + (z.abs() - (end - thick)).clamp(min=0) ** 2 - thick**2).abs().max() < 1e-9
        vertices, _, _ = mesh("ellipsoid")
        assert ((vertices / vertices.amax(0)) ** 2).sum(-1).sub(1).abs().max() < 1e-9
        _, radius, z = mesh("frustum")
        rims = [radius[(z - end).abs() < 1e-9].max().item() for end in (-0.5, 0.5)]
        assert 0.2 <= rims[1] / rims[0] <= 0.7
        _, radius, _ = mesh("annulus")
        assert radius.max().item() == pytest.approx(1)
        assert len(radius.round(decimals=9).unique()) == 2

    def test_unknown_class(self) -> None:
        with pytest.raises(ValueError, match=r"expected one of \('box', .*\), got 'teapot'"):
            shape_meshes("teapot", 1, generator=_generator())


class TestDataset:
    """`shapes_dataset`."""

    def test_shapes_and_balance(self) -> None:
        assert len(set(SHAPE_CLASSES)) == len(SHAPE_CLASSES) == 16
        samples = shapes_dataset(100, num_points=50)
        assert samples["points"].shape == (100, 50, 3)
        assert samples["points"].dtype == torch.float32
        assert samples["labels"].shape == (100,)
        assert samples["labels"].dtype == torch.int64
        counts = samples["labels"].bincount(minlength=16)
        assert counts.min() >= 6
        assert counts.max() <= 7
        assert not torch.equal(samples["labels"], samples["labels"].sort().values)

    @pytest.mark.parametrize("noise", [0.0, 0.3])
    def test_centred_and_scaled(self, noise: float) -> None:
        points = shapes_dataset(32, noise=noise, dtype=torch.float64)["points"]
        assert points.mean(1).abs().max() < 1e-12
        torch.testing.assert_close(
            points.square().sum(-1).mean(1), torch.ones(32, dtype=torch.float64), rtol=0, atol=1e-12
        )

    def test_clean_points_lie_on_the_body(self) -> None:
        for cloud in _of_class("box"):  # each point on one of the six planes
            on_plane = (cloud - cloud.amin(0)).abs().minimum((cloud - cloud.amax(0)).abs()) < 1e-9
            # an end that was cut off has no plane
            assert on_plane.any(1).double().mean() > 0.75
        for cloud in _of_class("ellipsoid", crop=0.0):  # each point on one quadric: (x^2, y^2, z^2, x, y, z) w = 1
            terms = torch.cat([cloud.square(), cloud], 1)
            fit = torch.linalg.lstsq(terms, torch.ones(len(cloud), 1, dtype=torch.float64)).solution
            assert (terms @ fit - 1).abs().max() < 0.03  # facets

    def test_noise_is_what_is_asked_for(self) -> None:
        clean, noisy = (shapes_dataset(32, noise=noise, dtype=torch.float64)["points"] for noise in (0.0, 0.1))
        scale = (1 + 3 * 0.1**2) ** 0.5
        assert (noisy * scale - clean).std().item() == pytest.approx(0.1, rel=0.03)

    def test_crop_takes_one_side_away(self) -> None:
        # the mean of an uncropped ellipsoid's points is its centre: the farthest points on both sides are alike
        def skew(crop: float) -> float:
            cloud = _of_class("ellipsoid", 20, crop=crop)
            return (cloud.amax(1) + cloud.amin(1)).norm(dim=-1).mean().item()

        assert skew(0.6) > 2 * skew(0.0)

    def test_rotations_are_uniform(self) -> None:
        upright, turned = (
            shapes_dataset(2000, num_points=8, noise=0.0, rotated=rotated, dtype=torch.float64)["points"]
            for rotated in (False, True)
        )
        # turned = upright R^T: eight points determine R
        r = torch.linalg.lstsq(upright, turned).solution.mT
        eye = torch.eye(3, dtype=torch.float64)
        torch.testing.assert_close(r @ r.mT, eye.expand_as(r), rtol=0, atol=1e-6)
        assert (torch.linalg.det(r) > 0.99).all()
        entries = r.flatten(1)
        assert entries.mean(0).abs().max() < 0.06  # 1 / sqrt(3 * 2000) = 0.013
        torch.testing.assert_close(entries.T @ entries / 2000, torch.eye(9, dtype=torch.float64) / 3, rtol=0, atol=0.04)
        trace = r.diagonal(dim1=1, dim2=2).sum(1)
        assert trace.square().mean().item() == pytest.approx(1, abs=0.12)  # the vector representation is irreducible

    def test_seeds_and_global_state(self) -> None:
        _template.cache_clear()
        state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        first, again, other = (shapes_dataset(40, seed=seed) for seed in (7, 7, 8))
        assert torch.equal(torch.get_rng_state(), state)
        assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
        for name, tensor in first.items():
            assert torch.equal(tensor, again[name])
            assert not torch.equal(tensor, other[name])

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match="expected num_samples to be a whole number of at least 1, got 0"):
            shapes_dataset(0)
        with pytest.raises(ValueError, match="expected num_points to be a whole number of at least 2, got 1"):
            shapes_dataset(1, num_points=1)
        for noise in (-0.1, float("nan")):
            with pytest.raises(ValueError, match="expected noise to be a finite number of at least 0"):
                shapes_dataset(1, noise=noise)
        for crop in (-0.1, 1.0):
            with pytest.raises(ValueError, match="expected crop to be a finite number of at least 0 and below 1"):
                shapes_dataset(1, crop=crop)

    def test_without_trimesh(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _template.cache_clear()
        monkeypatch.setitem(sys.modules, "trimesh.creation", None)
        with pytest.raises(ImportError, match=r'pip install "lightning_equiv\[examples\]"'):
            shapes_dataset(1)


class TestDataModule:
    """`ShapesDataModule`."""

    def test_loaders(self) -> None:
        data = ShapesDataModule(
            train_size=10, val_size=7, test_size=6, num_points=20, batch_size=4, eval_batch_size=5, steps_per_epoch=4
        )
        assert isinstance(data, InMemoryDataModule)
        data.setup("fit")
        data.setup("test")
        assert [len(batch["labels"]) for batch in data.train_dataloader()] == [4] * 4
        assert [tuple(batch["points"].shape) for batch in data.val_dataloader()] == [(5, 20, 3), (2, 20, 3)]
        assert data.test_names == ("test",)
        (loader,) = data.test_dataloader()
        assert [tuple(batch["points"].shape) for batch in loader] == [(5, 20, 3), (1, 20, 3)]

    def test_settings_and_seeds_reach_the_samples(self) -> None:
        def points(split: str = "val", **settings: float) -> Tensor:
            sizes = {"train_size": 9, "val_size": 9, "test_size": 9, "num_points": 16}
            return ShapesDataModule(**{**sizes, **settings}).samples(split)["points"]

        drawn = [points(), points("train"), points("test"), points(seed=1), points(noise=0.2), points(crop=0.5)]
        for index, one in enumerate(drawn):
            assert all(not torch.equal(one, other) for other in drawn[:index])
        assert torch.equal(points(), drawn[0])

    def test_bad_input(self) -> None:
        for wrong in ("train_size", "batch_size", "steps_per_epoch"):
            with pytest.raises(ValueError, match=f"expected {wrong} to be a whole number of at least 1.* got 0"):
                ShapesDataModule(**{wrong: 0})
        with pytest.raises(ValueError, match="expected num_points to be a whole number of at least 2"):
            ShapesDataModule(num_points=1)
        with pytest.raises(ValueError, match="noise"):
            ShapesDataModule(noise=-1.0)
        with pytest.raises(ValueError, match="crop"):
            ShapesDataModule(crop=1.0)
