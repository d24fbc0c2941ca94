"""Digits: the images, moves and labels against the originals, moved one by one by numpy."""

from __future__ import annotations

import sys
from collections import Counter

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn

load_digits = pytest.importorskip("sklearn.datasets").load_digits

from lightning_equiv.datasets import DigitsDataModule  # noqa: E402
from lightning_equiv.datasets import digits as digits_module  # noqa: E402
from lightning_equiv.datasets.digits import PROBLEMS  # noqa: E402
from lightning_equiv.datasets.in_memory import InMemoryDataModule  # noqa: E402
from lightning_equiv.groups.finite import Cyclic  # noqa: E402
from lightning_equiv.representations.image import Image  # noqa: E402

SPLITS = ("train", "val", "test")
SIZES = {"train": 1000, "val": 297, "test": 500}


def _kind(problem: str) -> tuple[str, bool]:
    moves, rest = problem.split()
    return moves, rest == "broken"


def _moves(problem: str, max_shift: int) -> list[object]:
    """All moves of a problem where the symmetry is kept: (rows down, columns to the right), or quarter turns."""
    if _kind(problem)[0] == "rotations":
        return [0, 1, 2, 3]
    steps = range(-max_shift, max_shift + 1)
    return [(down, right) for down in steps for right in steps]


def _moved(image: np.ndarray, move: object) -> np.ndarray:
    """One canvas, moved by numpy."""
    return np.roll(image, move, axis=(0, 1)) if isinstance(move, tuple) else np.rot90(image, move)


def _canvas(image: np.ndarray, size: int) -> np.ndarray:
    canvas = np.zeros((size, size), dtype=np.int64)
    start = (size - 8) // 2
    canvas[start : start + 8, start : start + 8] = image
    return canvas


def _pixels(images: Tensor) -> np.ndarray:
    """Back to whole numbers 0..16, (n, size, size)."""
    size = images.shape[-1]
    pixels = images.squeeze(1).double().numpy() * np.sqrt((load_digits().images ** 2).mean()) * 8 / size
    assert np.abs(pixels - pixels.round()).max() < 1e-5
    return pixels.round().astype(np.int64)


def _every_move(problem: str, size: int, max_shift: int) -> dict[bytes, tuple[int, object]]:
    """What every image looks like after every move -> (number of the image, move)."""
    moves = _moves(problem, max_shift)
    originals = load_digits().images.astype(np.int64)
    every = {
        _moved(_canvas(image, size), move).tobytes(): (i, move) for i, image in enumerate(originals) for move in moves
    }
    assert len(every) == len(originals) * len(moves)  # no two alike, so that the move can be told from the image
    return every


def _found(data: DigitsDataModule) -> dict[str, list[tuple[int, object]]]:
    """The number of the original and the move of every sample of every split; KeyError when there is none."""
    every = _every_move(data.problem, data.size, data.max_shift)
    return {split: [every[x.tobytes()] for x in _pixels(data.samples(split)["images"])] for split in SPLITS}


@pytest.fixture(scope="module", params=PROBLEMS)
def problem(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def data(problem: str) -> DigitsDataModule:
    return DigitsDataModule(problem)


@pytest.fixture(scope="module")
def found(data: DigitsDataModule) -> dict[str, list[tuple[int, object]]]:
    return _found(data)


class TestSamples:
    """The default sizes, every problem."""

    def test_shapes_and_dtypes(self, problem: str, data: DigitsDataModule) -> None:
        assert isinstance(data, InMemoryDataModule)
        size = {"translations": 12, "rotations": 8}[_kind(problem)[0]]
        for split in SPLITS:
            samples = data.samples(split)
            assert set(samples) == {"images", "labels"}
            assert samples["images"].shape == (SIZES[split], 1, size, size)
            assert samples["images"].dtype == torch.float32
            assert samples["labels"].shape == (SIZES[split],)
            assert samples["labels"].dtype == torch.int64

    def test_splits_are_disjoint_and_together_everything(self, found: dict[str, list[tuple[int, object]]]) -> None:
        numbers = [number for split in SPLITS for number, _ in found[split]]
        assert sorted(numbers) == list(range(1797))

    def test_the_moves(self, problem: str, found: dict[str, list[tuple[int, object]]]) -> None:
        kind, broken = _kind(problem)
        still = {"translations": (0, 0), "rotations": 0}[kind]
        moves = {split: Counter(move for _, move in found[split]) for split in SPLITS}
        for split in SPLITS:
            if not broken and split != "test":
                assert set(moves[split]) == {still}
                continue
            wanted = {m for m in _moves(problem, 2) if not (broken and kind == "translations" and m[1] == 0)}
            assert set(moves[split]) == wanted
            # chi-squared with len(wanted) - 1 degrees of freedom: below its mean + 4 standard deviations
            mean = SIZES[split] / len(wanted)
            chi = sum((count - mean) ** 2 / mean for count in moves[split].values())
            assert chi < len(wanted) - 1 + 4 * (2 * (len(wanted) - 1)) ** 0.5

    def test_the_labels(self, problem: str, data: DigitsDataModule, found: dict[str, list[tuple[int, object]]]) -> None:
        target = load_digits().target
        for split in SPLITS:
            for (number, move), label in zip(found[split], data.samples(split)["labels"].tolist(), strict=True):
                digit = int(target[number])
                if problem == "translations broken" and move[1] > 0:  # to the right
                    digit = (digit + 5) % 10
                if problem == "rotations broken" and move in (1, 3):
                    digit = (digit + 5) % 10
                assert label == digit

    def test_balance(self, problem: str, found: dict[str, list[tuple[int, object]]], data: DigitsDataModule) -> None:
        target = load_digits().target
        for split in SPLITS:
            drawn = np.bincount([target[number] for number, _ in found[split]], minlength=10)
            share = np.bincount(target) * SIZES[split] / 1797
            assert np.abs(drawn - share).max() <= 2
            if not _kind(problem)[1]:
                continue
            # of every digit as many with one label as with the other
            labels = data.samples(split)["labels"].tolist()
            pairs = Counter(
                (int(target[number]), label) for (number, _), label in zip(found[split], labels, strict=True)
            )
            for digit in range(10):
                assert abs(pairs[digit, digit] - pairs[digit, (digit + 5) % 10]) <= 1
            assert sum(pairs[digit, digit] for digit in range(10)) <= SIZES[split] / 2 + 5

    def test_background_and_scale(self, problem: str, data: DigitsDataModule) -> None:
        every = torch.cat([data.samples(split)["images"] for split in SPLITS]).double()
        assert every.square().mean().item() == pytest.approx(1, abs=1e-6)
        assert every.min() == 0
        expected = (load_digits().images == 0).sum() + 1797 * (data.size**2 - 64)
        assert (every == 0).sum() == expected
        assert every.mean().item() == pytest.approx({8: 0.63, 12: 0.42}[data.size], abs=0.01)


class TestMoves:
    """Which way is which."""

    def test_turns_are_those_of_image(self) -> None:
        elements = Cyclic(4).elements()
        data = DigitsDataModule("rotations kept")
        samples, found = data.samples("test"), _found(data)["test"]
        for k in range(4):
            images = samples["images"][torch.tensor([move == k for _, move in found])]
            numbers = [number for number, move in found if move == k]
            upright = torch.tensor(load_digits().images[numbers]).unsqueeze(1)
            scale = upright.max() / images.max()
            torch.testing.assert_close(Image()(elements[k], upright), images.double() * scale, rtol=0, atol=1e-5)

    @pytest.mark.parametrize(("settings", "size"), [({"max_shift": 3}, 14), ({"max_shift": 1, "size": 16}, 16)])
    def test_other_shifts_and_canvases(self, settings: dict[str, int], size: int) -> None:
        data = DigitsDataModule("translations kept", **settings)
        assert data.size == size
        moves = {move for _, move in _found(data)["test"]}
        assert moves == set(_moves("translations kept", settings["max_shift"]))

    def test_no_shift_and_a_wide_canvas(self) -> None:
        still = DigitsDataModule("translations kept", max_shift=0)
        assert still.size == 8
        assert {move for _, move in _found(still)["test"]} == {(0, 0)}
        assert DigitsDataModule("rotations broken", max_shift=9).size == 8
        wide = DigitsDataModule("rotations broken", size=10)
        assert {move for _, move in _found(wide)["train"]} == {0, 1, 2, 3}


class TestSeeds:
    """What comes from the seed, and from nothing else."""

    def test_same_seed_same_samples_in_any_order(self, problem: str, data: DigitsDataModule) -> None:
        again = DigitsDataModule(problem)
        for split in reversed(SPLITS):
            for name, tensor in again.samples(split).items():
                assert torch.equal(tensor, data.samples(split)[name])
        other = DigitsDataModule(problem, seed=1)
        for split in SPLITS:
            assert not torch.equal(other.samples(split)["images"], data.samples(split)["images"])

    def test_the_global_state_is_left_alone(self, problem: str) -> None:
        digits_module._load.cache_clear()
        state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        DigitsDataModule(problem).samples("test")
        assert torch.equal(torch.get_rng_state(), state)
        assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002

    def test_another_seed_other_sets(self) -> None:
        one, other = (
            {number for number, _ in _found(DigitsDataModule("rotations kept", seed=s))["test"]} for s in (0, 1)
        )
        assert 100 < len(one & other) < 180  # 500^2 / 1797 = 139 by chance

    def test_small_sets(self, problem: str) -> None:
        found = _found(DigitsDataModule(problem, train_size=1, val_size=3, test_size=20))
        assert [len(numbers) for numbers in found.values()] == [1, 3, 20]
        assert len({number for numbers in found.values() for number, _ in numbers}) == 24
        target = load_digits().target
        digits = [target[number] for number, _ in found["test"]]
        assert max(Counter(digits).values()) <= 4


class _Linear(L.LightningModule):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(size**2, 10))

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch["images"]), batch["labels"])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        self.log("accuracy", (self.net(batch["images"]).argmax(1) == batch["labels"]).float().mean())

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


class TestDataModule:
    """Loaders, and what is refused."""

    def test_loaders(self) -> None:
        data = DigitsDataModule(
            "rotations kept", train_size=10, val_size=7, test_size=6, batch_size=4, eval_batch_size=5, steps_per_epoch=4
        )
        data.setup("fit")
        data.setup("test")
        assert [len(batch["labels"]) for batch in data.train_dataloader()] == [4] * 4
        assert [tuple(batch["images"].shape) for batch in data.val_dataloader()] == [(5, 1, 8, 8), (2, 1, 8, 8)]
        assert data.test_names == ("test",)
        (loader,) = data.test_dataloader()
        assert [len(batch["labels"]) for batch in loader] == [5, 1]

    def test_a_trainer_learns_what_is_upright_and_fails_on_what_is_moved(self) -> None:
        L.seed_everything(0)
        data = DigitsDataModule("translations kept")
        trainer = L.Trainer(
            max_epochs=5,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = _Linear(data.size)
        trainer.fit(module, data)
        assert trainer.callback_metrics["accuracy"] > 0.9
        (moved,) = trainer.test(module, data, verbose=False)
        assert moved["accuracy"] < 0.6

    def test_unknown_problem(self) -> None:
        with pytest.raises(
            ValueError, match=r"no problem is named 'rotation broken' \(did you mean 'rotations broken'"
        ):
            DigitsDataModule("rotation broken")
        with pytest.raises(ValueError, match="named '@': expected one of 'translations kept', 'translations broken', "):
            DigitsDataModule("@")

    def test_bad_numbers(self) -> None:
        for wrong in ("train_size", "val_size", "test_size", "batch_size", "steps_per_epoch"):
            with pytest.raises(ValueError, match=f"expected {wrong} to be a whole number of at least 1.* got 0"):
                DigitsDataModule("rotations kept", **{wrong: 0})
        for problem in PROBLEMS:
            with pytest.raises(ValueError, match="expected max_shift to be a whole number of at least 0, got -1"):
                DigitsDataModule(problem, max_shift=-1)
        with pytest.raises(ValueError, match=r"left and right, got max_shift=0: write max_shift=2"):
            DigitsDataModule("translations broken", max_shift=0)

    def test_bad_canvas(self) -> None:
        with pytest.raises(ValueError, match="expected size to be a whole number of at least 12, got 10"):
            DigitsDataModule("translations broken", size=10)
        with pytest.raises(ValueError, match="expected size to be a whole number of at least 8, got 6"):
            DigitsDataModule("rotations kept", size=6)
        with pytest.raises(ValueError, match=r"expected size to be even, .* got 13: write size=14"):
            DigitsDataModule("translations kept", size=13)

    def test_more_images_than_there_are(self) -> None:
        message = r"at most 1797, .* got 1000 \+ 297 \+ 501 = 1798: write test_size=500"
        with pytest.raises(ValueError, match=message):
            DigitsDataModule("rotations kept", test_size=501)
        with pytest.raises(ValueError, match=r"1500 \+ 297 \+ 500 = 2297: ask for 500 images fewer"):
            DigitsDataModule("rotations kept", train_size=1500)

    def test_without_scikit_learn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        digits_module._load.cache_clear()
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
        data = DigitsDataModule("rotations kept")
        with pytest.raises(ImportError, match="pip install scikit-learn"):
            data.setup("fit")
