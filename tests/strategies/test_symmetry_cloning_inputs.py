"""Where the inputs of a clone come from: noise, or the training batches, which are left as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_equiv import (
    ClonedLayer,
    ConditionalBilinear,
    Invariant,
    Symmetry,
)
from tests.helpers import seeded
from tests.strategies.cloned_by_hand import SYMMETRY as TURNS
from tests.strategies.cloned_by_hand import Stretch
from tests.strategies.cloning_runs import (
    RING,
    Recording,
    cloning,
    made,
    mse,
    randn,
    refused,
    rings,
    teach,
)
from tests.strategies.toys import Plain, Rows, batches, loader, make_net, trainer


# ---- inputs ----------------------------------------------------------------------------------------------------------
class Pairs(nn.Module):
    """Two inputs, of two shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))

    def forward(self, charges: Tensor, positions: Tensor) -> Tensor:
        return (charges[..., None] * positions * self.w).sum(1)


class RecordingPairs(Pairs):
    def __init__(self) -> None:
        super().__init__()
        Recording.seen.clear()

    def forward(self, charges: Tensor, positions: Tensor) -> Tensor:
        Recording.seen.append((charges, positions))
        return 2 * super().forward(charges, positions)


class Systems(Plain):
    """Trains on dicts or on tuples of charges, positions and a label."""

    def __init__(self) -> None:
        super().__init__(Pairs())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        charges, positions, y = batch.values() if isinstance(batch, dict) else batch
        return mse(self.net(charges, positions), y)


def systems(as_dict: bool) -> DataLoader:
    rows = [(randn(4, 5, seed=i), randn(4, 5, 3, seed=50 + i), randn(4, 3, seed=90 + i)) for i in range(3)]
    return batches(dict(zip(("charges", "positions", "y"), row, strict=True)) if as_dict else row for row in rows)


SYSTEM = Symmetry("SO(3)", inputs={"charges": Invariant(), "positions": "1o"}, outputs="1o")
SHAPES: dict[str, Any] = {
    "list": [(5,), (5, 3)],
    "dict": {"charges": (5,), "positions": (5, 3)},
}
FROM_DATA: dict[str, Any] = {
    "keys": (["charges", "positions"], True),
    "indices": ([0, 1], False),
    "callable, tuple": (lambda batch: (batch["charges"], batch["positions"]), True),
    "callable, dict": (lambda batch: {"positions": batch[1], "charges": batch[0]}, False),
}


@pytest.mark.parametrize("name", SHAPES)
def test_inputs_of_noise(name: str) -> None:
    """N(0, I) of these shapes; the student arrives at the teacher's w."""
    module, strategy = Systems(), cloning(RecordingPairs(), inputs=SHAPES[name], tolerance=0.02, steps=2000)
    teach(strategy, module)
    torch.testing.assert_close(module.net.w.data, torch.full((3,), 2.0), rtol=0.02, atol=0)
    charges, positions = Recording.seen[-1]
    assert (charges.shape[1:], positions.shape[1:]) == ((5,), (5, 3))
    values = torch.cat([positions.flatten() for _, positions in Recording.seen])
    assert float(values.mean()) == pytest.approx(0, abs=0.05)
    assert float(values.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("symmetry", [None, SYSTEM], ids=["no symmetry", "symmetry"])
@pytest.mark.parametrize("name", FROM_DATA)
def test_inputs_from_the_training_batches(name: str, symmetry: Any) -> None:
    """As they are, or moved by random rotations, one for each sample and anew at each step."""
    inputs, as_dict = FROM_DATA[name]
    strategy = cloning(RecordingPairs(), inputs=inputs, symmetry=symmetry, tolerance=0.3, steps=500)
    trainer(strategy).fit(Systems(), systems(as_dict))
    data = [(batch["charges"], batch["positions"]) if as_dict else batch[:2] for batch in systems(as_dict)]
    steps = [seen for seen in Recording.seen if len(seen[0]) == 4]
    assert len(steps) >= 50
    moved = []
    for charges, positions in steps:
        [theirs] = [x for q, x in data if torch.equal(q, charges)]
        torch.testing.assert_close(positions @ positions.mT, theirs @ theirs.mT, rtol=1e-4, atol=1e-4)
        moved.append(float((positions - theirs).abs().amax((1, 2)).min()))
    assert len({float(charges.sum()) for charges, _ in steps}) == 3, "all batches were shown"
    if symmetry is None:
        assert max(moved) == 0
    else:
        assert sum(m > 1e-2 for m in moved) > 0.9 * len(moved)
        assert len({round(float(positions[0, 0, 0]), 5) for _, positions in steps}) > 40, "every step draws anew"


def test_a_family_is_taught_on_data() -> None:
    """The symmetry of a family says how tau moves, which is not in the data."""
    module = Plain(ClonedLayer(made(ConditionalBilinear.like, RING), 1, 1))
    strategy = cloning(RING, "net.student", inputs=lambda batch: batch[0][:, 0], steps=1500, tolerance=0.2)
    trainer(strategy).fit(module, rings())
    assert strategy.report["clone_error"] <= 0.1**2


def test_an_input_that_is_not_in_the_batch() -> None:
    refused(cloning(Stretch(), inputs=["x"]), Plain(), r"inputs='x' is not in the batch: 'x' was looked for in a list")


def test_no_batches_to_take_inputs_from() -> None:
    with pytest.raises(ValueError, match=r"teach\(module, batches\)"):
        teach(cloning(Stretch(), inputs=[0]), Plain())
    with pytest.raises(ValueError, match="no training batches"):
        teach(cloning(Stretch(), inputs=[0]), Plain(), list)


class Shown(Plain):
    """Remembers the batches and draws a random number at each step."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(*make_net(), nn.Dropout(0.5)))
        self.shown: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.shown.append(torch.cat([batch[0].flatten(), torch.rand(1)]))
        return super().training_step(batch, batch_idx)


LOADERS: dict[str, dict[str, Any]] = {
    "shuffled": {},
    "shuffled by its own generator": {"generator": 7},
    "persistent workers": {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "fork"},
}


@pytest.mark.parametrize("options", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("inputs", [[(3,)], [0]], ids=["noise", "data"])
def test_random_numbers_and_the_loader_are_left_alone(inputs: Any, options: dict[str, Any]) -> None:
    """All batches, in the order of a run without it."""

    def fit(*callbacks: L.Callback) -> tuple[list[Tensor], Tensor]:
        torch.manual_seed(3)
        module = Shown()
        own = {"generator": seeded(7)} if "generator" in options else {}
        trainer(*callbacks, max_epochs=2).fit(module, DataLoader(Rows(22), 4, shuffle=True, **{**options, **own}))
        return module.shown, torch.get_rng_state()

    (shown, state), (shown_alone, state_alone) = fit(cloning(Stretch(), inputs=inputs, symmetry=TURNS)), fit()
    assert len(shown) == len(shown_alone) == 12
    assert torch.equal(torch.cat(shown), torch.cat(shown_alone))
    assert torch.equal(state, state_alone)


class Both(Plain):
    """Trains on two loaders at once."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return sum(mse(self.net(x), y) for x, y in batch.values())


def test_inputs_from_one_of_several_loaders() -> None:
    strategy = cloning(Recording(), inputs=lambda batch: batch["labelled"][0])
    trainer(strategy).fit(Both(), {"labelled": loader(), "other": loader(8)})
    assert len(Recording.seen) >= 50
    shown = Rows(22).x
    for (x,) in Recording.seen:
        assert (torch.cdist(x, shown, compute_mode="donot_use_mm_for_euclid_dist").amin(1) == 0).all()


class Stream(IterableDataset):
    """Batches, nobody knows how many."""

    def __iter__(self) -> Iterator[Any]:
        yield from loader()


def test_inputs_from_a_stream() -> None:
    strategy = cloning(Recording(), inputs=[0])
    trainer(strategy).fit(Plain(), DataLoader(Stream(), batch_size=None))
    assert {len(x) for (x,) in Recording.seen} == {4, 2}
