"""Particle data sets: poses, drops, seeds and loaders against their definition."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable

import lightning as L
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from lightning_equiv.datasets import (
    ChargedDataModule,
    GravityDataModule,
    charged_dataset,
    gravity_dataset,
    sample_gravity,
    simulate_charges,
    simulate_gravity,
)
from lightning_equiv.datasets.in_memory import InMemoryDataModule


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestDatasets:
    """`gravity_dataset` and `charged_dataset`."""

    @pytest.mark.parametrize(("angles", "low", "high"), [((-10, 10), 0, 10), ((90, 180), 90, 180), ((37, 37), 37, 37)])
    def test_angles_measured_from_the_data(self, angles: tuple[float, float], low: float, high: float) -> None:
        base = gravity_dataset(400, angles=(0, 0), seed=3, dtype=torch.float64)
        turned = gravity_dataset(400, angles=angles, seed=3, dtype=torch.float64)
        measured, axes = [], []
        for one, other in zip(base["positions"], turned["positions"], strict=True):
            rotation, _ = Rotation.align_vectors(other.numpy(), one.numpy())
            measured.append(math.degrees(rotation.magnitude()))
            axes.append(rotation.as_rotvec() / max(rotation.magnitude(), 1e-9))
        angle = torch.tensor(measured)
        assert angle.min() >= low - 1e-4
        assert angle.max() <= high + 1e-4
        assert angle.mean().item() == pytest.approx((low + high) / 2, abs=max(0.1, 0.05 * (high - low)))
        # the axis is uniform on the sphere
        assert np.abs(np.mean(axes, 0)).max() < 0.12
        np.testing.assert_allclose(np.mean(np.square(axes), 0), 1 / 3, atol=0.06)
        assert (base["positions"][..., 2].abs().max() < 1e-12).item()

    def test_the_same_systems_at_every_angle(self) -> None:
        near, far = (gravity_dataset(50, angles=angles, seed=1, dtype=torch.float64) for angles in ((0, 0), (120, 120)))
        assert torch.equal(near["masses"], far["masses"])
        for name in ("positions", "velocities", "targets"):
            lengths = torch.linalg.vector_norm(near[name], dim=-1)
            torch.testing.assert_close(torch.linalg.vector_norm(far[name], dim=-1), lengths, rtol=0, atol=1e-12)
            assert (near[name] - far[name]).abs().max() > 0.1

    @pytest.mark.parametrize("angles", [(-10, 10), (90, 180)])
    def test_targets_are_the_simulation_of_the_inputs(self, angles: tuple[float, float]) -> None:
        s = gravity_dataset(100, angles=angles, dtype=torch.float64)
        final, _ = simulate_gravity(s["masses"], s["positions"], s["velocities"])
        near = (final - s["targets"]).abs().amax((1, 2)) < 1e-9
        assert near.double().mean() > 0.95  # close encounters amplify rounding
        c = charged_dataset(20, steps=100, field=0.4, dtype=torch.float64)
        final, _ = simulate_charges(c["charges"], c["positions"], c["velocities"], steps=100, field=0.4)
        torch.testing.assert_close(c["targets"], final, rtol=0, atol=1e-10)

    def test_centring(self) -> None:
        s = gravity_dataset(50, dtype=torch.float64)
        centre = (s["masses"].unsqueeze(-1) * s["positions"]).sum(1)
        assert centre.abs().max() < 1e-12
        raw = gravity_dataset(2000, centre=False, dtype=torch.float64)
        assert raw["positions"].mean(1).std().item() == pytest.approx(20, rel=0.05)
        fixed = gravity_dataset(2000, dtype=torch.float64)
        for name in ("positions", "targets"):
            gap = raw[name] - fixed[name]
            torch.testing.assert_close(gap, gap[:, :1].expand_as(gap), rtol=0, atol=1e-12)
        c = charged_dataset(50, steps=10, dtype=torch.float64)
        assert c["positions"].mean(1).abs().max() < 1e-12  # over particles
        assert c["positions"].mean(2).abs().max() > 0.1  # not over x, y, z
        shifted = charged_dataset(50, steps=10, centre=False, dtype=torch.float64)
        torch.testing.assert_close(
            shifted["targets"] - shifted["positions"], c["targets"] - c["positions"], rtol=0, atol=1e-12
        )

    def test_far_flung_systems_are_redrawn(self) -> None:
        masses, x, v = sample_gravity(2000, generator=_generator(5))
        moved = (simulate_gravity(masses, x, v)[0] - x).norm(dim=-1).amax(-1)
        assert (moved > 2).any()  # seed 5 has something to drop
        s = gravity_dataset(2000, seed=5)
        assert len(s["masses"]) == 2000
        assert (s["targets"] - s["positions"]).norm(dim=-1).max() <= 2
        kept = masses[moved <= 2].float()
        assert torch.equal(s["masses"][: len(kept)], kept)

    def test_impossible_systems_end_in_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lightning_equiv.datasets.nbody.MAX_DISPLACEMENT", 0.0)
        with pytest.raises(RuntimeError, match="3 of 3 systems of 4 bodies"):
            gravity_dataset(3)

    def test_no_motion_score(self) -> None:
        s = gravity_dataset(5000)
        score = (s["targets"] - s["positions"]).square().mean().item()
        assert score == pytest.approx(17.8e-3, rel=0.06)

    @pytest.mark.parametrize(
        "make", [lambda seed: gravity_dataset(20, seed=seed), lambda seed: charged_dataset(20, steps=3, seed=seed)]
    )
    def test_seeds(self, make: Callable[[int], dict[str, Tensor]]) -> None:
        state = torch.get_rng_state()
        first, again, other = make(7), make(7), make(8)
        assert torch.equal(torch.get_rng_state(), state)
        assert {tensor.dtype for tensor in first.values()} == {torch.float32}
        for name, tensor in first.items():
            assert torch.equal(tensor, again[name])
            assert not torch.equal(tensor, other[name])

    @pytest.mark.parametrize("angles", [(10, -10), (0, 200), (float("nan"), 10)])
    def test_bad_angles(self, angles: tuple[float, float]) -> None:
        with pytest.raises(ValueError, match="expected angles to be"):
            gravity_dataset(1, angles=angles)

    def test_bad_sizes(self) -> None:
        with pytest.raises(ValueError, match="expected num_samples to be a whole number of at least 1, got -1"):
            gravity_dataset(-1)
        with pytest.raises(ValueError, match="num_samples"):
            charged_dataset(0)
        with pytest.raises(ValueError, match="steps"):
            charged_dataset(1, steps=0)


class TestDataModules:
    """`GravityDataModule` and `ChargedDataModule`."""

    def test_sizes_and_shapes(self) -> None:
        data = GravityDataModule(train_size=10, val_size=7, test_size=6, num_bodies=3, batch_size=4, eval_batch_size=5)
        data.setup("fit")
        data.setup("test")
        assert [len(batch["masses"]) for batch in data.train_dataloader()] == [4, 4, 2]
        assert [len(batch["masses"]) for batch in data.val_dataloader()] == [5, 2]
        assert data.test_names == ("id", "ood")
        loaders = data.test_dataloader()
        assert [len(loader.dataset) for loader in loaders] == [6, 6]
        batch = next(iter(loaders[1]))
        shapes = {name: tuple(tensor.shape) for name, tensor in batch.items()}
        assert shapes == {"masses": (5, 3), "positions": (5, 3, 3), "velocities": (5, 3, 3), "targets": (5, 3, 3)}
        charged = ChargedDataModule(train_size=5, val_size=4, test_size=3, steps=3, num_particles=6)
        assert charged.test_names == ("test",)
        (loader,) = charged.test_dataloader()
        (batch,) = loader
        shapes = {name: tuple(tensor.shape) for name, tensor in batch.items()}
        assert shapes == {"charges": (3, 6), "positions": (3, 6, 3), "velocities": (3, 6, 3), "targets": (3, 6, 3)}

    def test_sets_are_in_and_out_of_distribution(self) -> None:
        data = GravityDataModule(train_size=200, val_size=200, test_size=200)
        tilt = {}
        for split in ("train", "val", "id", "ood"):
            normal = torch.linalg.svd(data.samples(split)["positions"].double())[2][:, 2]
            tilt[split] = torch.rad2deg(normal[:, 2].abs().clamp(max=1).acos())
        assert max(tilt[split].max() for split in ("train", "val", "id")) < 10.01
        assert (tilt["ood"] > 10).double().mean() > 0.95

    def test_splits_and_seeds_differ(self) -> None:
        drawn = [
            data.samples(split)["masses"]
            for data in (GravityDataModule(train_size=9, val_size=9, test_size=9, seed=seed) for seed in (0, 1))
            for split in ("train", "val", *data.test_names)
        ]
        for index, one in enumerate(drawn):
            assert all(not torch.equal(one, other) for other in drawn[:index])
        again = GravityDataModule(train_size=9, val_size=9, test_size=9, seed=0)
        assert torch.equal(again.samples("val")["masses"], drawn[1])

    def test_long_epochs(self) -> None:
        data = GravityDataModule(train_size=10, val_size=1, test_size=1, batch_size=4, steps_per_epoch=25)
        loader = data.train_dataloader()
        batches = list(loader)
        assert len(loader) == len(batches) == 25
        assert {len(batch["masses"]) for batch in batches} == {4}
        served = torch.cat([batch["targets"] for batch in batches]).flatten(1)
        counts = (served[:, None] == data.samples("train")["targets"].flatten(1)).all(-1).sum(0)
        assert counts.tolist() == [10] * 10

    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_order_is_a_function_of_seed_and_epoch(self, num_workers: int) -> None:
        def order(seed: int, epoch: int, workers: int = 0) -> Tensor:
            data = GravityDataModule(
                train_size=40, val_size=1, test_size=1, batch_size=8, seed=seed, steps_per_epoch=6, num_workers=workers
            )
            data._splits["train"] = {"masses": torch.arange(40)}
            loader = data.train_dataloader()
            loader.sampler.set_epoch(epoch)
            return torch.cat([batch["masses"] for batch in loader])

        state = torch.get_rng_state()
        assert torch.equal(order(0, 1), order(0, 1, num_workers))
        assert not torch.equal(order(0, 1), order(0, 2))
        assert not torch.equal(order(0, 1), order(5, 1))
        assert torch.equal(torch.get_rng_state(), state)

    def test_a_row_alone(self) -> None:
        data = GravityDataModule(train_size=3, val_size=1, test_size=1, batch_size=2, steps_per_epoch=4)
        rows = data.train_dataloader().dataset
        assert len(rows) == 8
        assert torch.equal(rows[4]["masses"], data.samples("train")["masses"][1])

    def test_pickles(self) -> None:
        data = pickle.loads(pickle.dumps(GravityDataModule(train_size=3, val_size=1, test_size=1)))
        assert next(iter(data.train_dataloader()))["masses"].shape == (3, 4)

    def test_trainer(self) -> None:
        class Module(L.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.layer = torch.nn.Linear(3, 3)
                self.seen: list[list[float]] = [[], []]

            def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
                self.seen[self.current_epoch].append(batch["masses"].sum().item())
                return (batch["positions"] + self.layer(batch["velocities"]) - batch["targets"]).square().mean()

            def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
                self.log("val", batch["masses"].mean())

            def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
                self.log("size", float(len(batch["masses"])), batch_size=len(batch["masses"]))

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), lr=0.01)

        trainer = L.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = Module()
        data = GravityDataModule(train_size=10, val_size=5, test_size=4, batch_size=4, steps_per_epoch=7)
        trainer.fit(module, datamodule=data)
        assert trainer.global_step == 14
        assert len(module.seen[0]) == len(module.seen[1]) == 7
        assert module.seen[0] != module.seen[1]  # the Trainer tells the sampler its epoch
        results = trainer.test(module, datamodule=data, verbose=False)
        assert [list(result.values()) for result in results] == [[4.0], [4.0]]

    def test_bad_input(self) -> None:
        for wrong in ("train_size", "val_size", "test_size", "batch_size", "eval_batch_size", "steps_per_epoch"):
            with pytest.raises(ValueError, match=f"expected {wrong} to be a whole number of at least 1.* got 0"):
                GravityDataModule(**{wrong: 0})
        with pytest.raises(ValueError, match="expected num_bodies to be a whole number of at least 2, got 1"):
            GravityDataModule(num_bodies=1)
        with pytest.raises(ValueError, match="expected num_particles to be a whole number of at least 2, got 1"):
            ChargedDataModule(num_particles=1)
        with pytest.raises(ValueError, match=r"expected one of .*'id', 'ood'"):
            GravityDataModule().samples("test")
        assert isinstance(GravityDataModule(), InMemoryDataModule)


@pytest.mark.parametrize("batches", [5, 3])  # whole epochs, and some that are cut short
@pytest.mark.parametrize("step", [3, 6, 9])
def test_a_run_resumes_in_mid_epoch_bit_for_bit(batches, step, tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    from lightning_equiv import RegressionModule
    from tests.strategies.toys import trainer, weights

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(6, 3)

        def forward(self, masses, positions, velocities):
            return positions + self.linear(torch.cat([positions, velocities], dim=-1))

    def fit(ckpt_path=None):
        torch.manual_seed(0)
        module = RegressionModule(Net(), target="targets")
        save = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=3)
        data = GravityDataModule(train_size=20, val_size=4, test_size=4, batch_size=4)
        run = trainer(save, max_epochs=4, enable_checkpointing=True, limit_val_batches=0, limit_train_batches=batches)
        run.fit(module, data, ckpt_path=ckpt_path)
        return weights(module)

    whole = fit()
    assert torch.equal(fit(str(tmp_path / f"step={step}.ckpt")), whole)
