"""Molecular dynamics: forces, frames and splits against tblite, scipy and the trajectory itself."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

pytest.importorskip("ase")
tblite = pytest.importorskip("tblite.ase")

import ase  # noqa: E402
from ase.optimize import BFGS  # noqa: E402

from lightning_equiv.datasets import MoleculesDataModule, molecule_trajectory, molecules  # noqa: E402

FRAMES = 40
SIZES = {"num_frames": FRAMES, "train_size": 20, "val_size": 8, "test_size": 10, "batch_size": 8, "eval_batch_size": 8}


@pytest.fixture(autouse=True)
def _short_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(molecules, "WARM_UP", 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("molecules")


def _energy(numbers: Tensor, positions: Tensor) -> float:
    atoms = ase.Atoms(numbers.numpy(), positions.numpy())
    atoms.calc = tblite.TBLite(method="GFN2-xTB", verbosity=0, accuracy=0.01)
    return atoms.get_potential_energy()


def _rows(part: Tensor, whole: Tensor) -> set[int]:
    """Which frames these are, by their distances, which no rotation changes."""
    a, b = (torch.stack([torch.pdist(x) for x in frames.double()]) for frames in (part, whole))
    away, row = torch.cdist(a, b).min(1)
    assert away.max() < 1e-4
    return set(row.tolist())


class TestTrajectory:
    """`molecule_trajectory`."""

    @pytest.mark.parametrize("molecule", ["ethanol", "aspirin"])
    def test_forces_are_slopes_of_the_energy(self, molecule: str, folder: Path) -> None:
        frames = molecule_trajectory(molecule, 2, every=3, folder=folder)
        numbers, x, step = frames["numbers"], frames["positions"][1], 1e-3
        assert frames["energy"][1].item() == pytest.approx(_energy(numbers, x), abs=1e-4)
        for atom, axis in ((0, 0), (2, 1), (len(numbers) - 1, 2)):
            shift = torch.zeros_like(x)
            shift[atom, axis] = step
            slope = (_energy(numbers, x + shift) - _energy(numbers, x - shift)) / (2 * step)
            assert frames["forces"][1, atom, axis].item() == pytest.approx(-slope, abs=2e-3)
        assert frames["forces"].abs().mean() > 0.1

    def test_one_orientation(self, folder: Path) -> None:
        frames = molecule_trajectory("ethanol", FRAMES, folder=folder)
        masses = ase.Atoms(frames["numbers"].numpy()).get_masses()
        x = frames["positions"].numpy()
        np.testing.assert_allclose(np.einsum("i,nix->nx", masses, x), 0, atol=1e-9)
        atoms = ase.Atoms(*molecules._start("ethanol"), calculator=tblite.TBLite(method="GFN2-xTB", verbosity=0))
        BFGS(atoms, logfile=None).run(fmax=0.01)
        relaxed = atoms.positions - atoms.get_center_of_mass()
        for frame in x:
            rotation, _ = Rotation.align_vectors(relaxed, frame, weights=masses)
            assert rotation.magnitude() < 1e-3

    def test_hot(self, folder: Path) -> None:
        """Atoms move: in a harmonic valley the mean potential energy is 3 N - 6 halves of k T, 0.45 eV."""
        frames = molecule_trajectory("ethanol", FRAMES, folder=folder)
        lowest = _energy(frames["numbers"], torch.tensor(molecules._start("ethanol")[1]))
        assert 0.2 < frames["energy"].mean().item() - lowest < 0.8

    def test_every_setting_has_its_own_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []

        def simulate(numbers: np.ndarray, start: np.ndarray, num_frames: int, *rest: object) -> dict[str, np.ndarray]:
            calls.append((num_frames, *rest))
            x = np.full((num_frames, *start.shape), float(len(calls)))
            return {"numbers": numbers, "positions": x, "energy": x[:, 0, 0], "forces": x}

        monkeypatch.setattr(molecules, "_simulate", simulate)
        settings = [
            {},
            {"num_frames": 4},
            {"seed": 1},
            {"temperature": 300.0},
            {"every": 5},
            {"molecule": "aspirin"},
        ]
        for _ in range(2):
            for i, changed in enumerate(settings):
                frames = molecule_trajectory(**{"num_frames": 3, "folder": tmp_path, **changed})  # type: ignore[arg-type]
                assert frames["energy"][0] == i + 1
        told = [(3, 500, 10, 0), (4, 500, 10, 0), (3, 500, 10, 1), (3, 300, 10, 0), (3, 500, 5, 0), (3, 500, 10, 0)]
        assert calls == told
        assert len(list(tmp_path.glob("*.npz"))) == len(settings)
        assert not list(tmp_path.glob("*.part"))

    def test_one_of_several_computes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []

        def simulate(numbers: np.ndarray, start: np.ndarray, *_: object) -> dict[str, np.ndarray]:
            calls.append(time.sleep(0.2))
            return {"numbers": numbers, "positions": start[None], "energy": np.zeros(1), "forces": start[None]}

        monkeypatch.setattr(molecules, "_simulate", simulate)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: molecule_trajectory("ethanol", 1, folder=tmp_path), range(4)))
        assert len(calls) == 1
        assert all(torch.equal(frames["positions"], found[0]["positions"]) for frames in found)

    def test_half_a_file_is_not_used(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(file: IO[bytes], **_: object) -> None:
            file.write(b"PK")
            raise OSError("no space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(np, "savez_compressed", full)
            with pytest.raises(OSError, match="no space"):
                molecule_trajectory("ethanol", 1, folder=tmp_path)
        assert len(molecule_trajectory("ethanol", 1, folder=tmp_path)["energy"]) == 1

    def test_the_users_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert molecules._folder(None) == tmp_path / "lightning_equiv" / "molecules"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert molecules._folder(None) == tmp_path / ".cache" / "lightning_equiv" / "molecules"

    def test_the_seed_says_all(self, folder: Path, tmp_path: Path) -> None:
        first, again, other = (
            molecule_trajectory("ethanol", 3, every=5, seed=seed, folder=where)
            for seed, where in ((0, folder), (0, tmp_path), (1, folder))
        )
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert (first["positions"] - other["positions"]).abs().max() > 0.01

    def test_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "water.xyz"
        path.write_text("3\n\nO 0 0 0.12\nH 0 0.76 -0.48\nH 0 -0.76 -0.48\n")
        frames = molecule_trajectory(str(path), 2, folder=tmp_path)
        assert frames["numbers"].tolist() == [8, 1, 1]
        lengths = (frames["positions"][:, 1:] - frames["positions"][:, :1]).norm(dim=-1)
        assert lengths.min() > 0.8
        assert lengths.max() < 1.2

    def test_without_tblite(self, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        kept = molecule_trajectory("ethanol", FRAMES, folder=folder)
        monkeypatch.setitem(sys.modules, "tblite.ase", None)
        with pytest.raises(ImportError, match=r"pip install 'lightning_equiv\[molecules\]'"):
            molecule_trajectory("ethanol", FRAMES, folder=tmp_path)
        assert torch.equal(molecule_trajectory("ethanol", FRAMES, folder=folder)["energy"], kept["energy"])

    def test_bad_arguments(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"one of \['aspirin', 'ethanol'\] or a file of atoms, got 'etanol'"):
            molecule_trajectory("etanol", 3, folder=tmp_path)
        for name in ("num_frames", "temperature", "every"):
            with pytest.raises(ValueError, match=f"expected {name}"):
                molecule_trajectory(**{"folder": tmp_path, name: 0})  # type: ignore[arg-type]


class TestDataModule:
    """`MoleculesDataModule`."""

    def test_batches(self, folder: Path) -> None:
        data = MoleculesDataModule(**SIZES, folder=folder)
        data.setup("fit")
        first = next(iter(data.train_dataloader()))
        assert {name: (tuple(x.shape), x.dtype) for name, x in first.items()} == {
            "numbers": ((8, 9), torch.int64),
            "positions": ((8, 9, 3), torch.float32),
            "energy": ((8,), torch.float32),
            "forces": ((8, 9, 3), torch.float32),
        }

    def test_disjoint_parts_of_one_trajectory(self, folder: Path) -> None:
        whole = molecule_trajectory("ethanol", FRAMES, folder=folder)
        data = MoleculesDataModule(**SIZES, folder=folder)
        rows = {}
        for split in ("train", "val", "id", "ood"):
            samples = data.samples(split)
            rows[split] = _rows(samples["positions"], whole["positions"])
            assert len(rows[split]) == len(samples["energy"]) == data._size(split)
        assert not rows["train"] & rows["val"]
        assert rows["id"] == rows["ood"] == set(range(30, 40))
        assert max(rows["train"] | rows["val"]) == 27
        other = _rows(
            MoleculesDataModule(**SIZES, folder=folder, seed=1).samples("train")["positions"], whole["positions"]
        )
        assert other != rows["train"]
        same = MoleculesDataModule(**SIZES, folder=folder).samples("train")
        assert all(torch.equal(same[name], data.samples("train")[name]) for name in same)

    def test_labels_stay_with_their_frames(self, folder: Path) -> None:
        whole = molecule_trajectory("ethanol", FRAMES, folder=folder)
        samples = MoleculesDataModule(**SIZES, folder=folder).samples("val")
        for x, energy, forces in zip(samples["positions"], samples["energy"], samples["forces"], strict=True):
            (row,) = _rows(x[None], whole["positions"])
            assert torch.equal(forces, whole["forces"][row].float())
            assert energy.item() == pytest.approx(whole["energy"][row].item() - whole["energy"].mean().item(), abs=1e-6)

    def test_turned_frames(self, folder: Path) -> None:
        data = MoleculesDataModule(**SIZES, folder=folder)
        kept, turned = data.samples("id"), data.samples("ood")
        assert torch.equal(kept["energy"], turned["energy"])
        angles = []
        for i in range(len(kept["energy"])):
            rotation, _ = Rotation.align_vectors(turned["positions"][i].numpy(), kept["positions"][i].numpy())
            for name in ("positions", "forces"):
                np.testing.assert_allclose(rotation.apply(kept[name][i].numpy()), turned[name][i].numpy(), atol=1e-4)
            angles.append(rotation.magnitude())
        # the density of the angle is (1 - cos a) / pi: its mean is pi / 2 + 2 / pi
        assert np.mean(angles) == pytest.approx(np.pi / 2 + 2 / np.pi, abs=0.6)
        assert np.std(angles) > 0.1

    def test_too_few_frames(self) -> None:
        with pytest.raises(ValueError, match=r"train_size \+ val_size to be at most 28, .*num_frames=40.*, got 29"):
            MoleculesDataModule(**{**SIZES, "train_size": 21})
        with pytest.raises(ValueError, match=r"test_size to be at most 10, .*, got 11"):
            MoleculesDataModule(**{**SIZES, "test_size": 11})
