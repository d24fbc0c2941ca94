"""Data that every way of training sees alike: what a data module draws is a function of the seed alone."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import CombinedLoader

from lightning_equiv._random import derived_generator
from lightning_equiv.symmetry.tree import tensors
from lightning_equiv.wiring.override import override
from lightning_equiv.wiring.random_state import random_state_kept

_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
_MOST_BYTES = 1 << 16  # of a tensor that are hashed
_MOST_ROWS = 4096  # that are remembered, or looked at


class BatchHash:
    """A hash of all training batches so far, noted after 1, 2, 4, ... and all of them: equal as far as these were."""

    def __init__(self) -> None:
        self.count, self.digest = 0, ""
        self.noted: dict[str, str] = {}

    def update(self, batch: Any) -> None:
        """One more batch."""
        together = hashlib.blake2b(self.digest.encode(), digest_size=8)
        for name, tensor in tensors(batch):
            own = tensor.detach().cpu().contiguous().flatten()
            shown = own[: _MOST_BYTES // max(1, own.element_size())]
            together.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            together.update(shown.view(torch.uint8).numpy().tobytes())
        self.count, self.digest = self.count + 1, together.hexdigest()
        if not self.count & (self.count - 1):
            self.noted[str(self.count)] = self.digest

    def all(self) -> dict[str, str]:
        """Number of batches -> hash of so many."""
        return {**self.noted, str(self.count): self.digest} if self.count else {}

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "digest": self.digest, "noted": dict(self.noted)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.digest, self.noted = state["count"], state["digest"], dict(state["noted"])


class Overlap:
    """The share of test inputs that were trained on, by the exact rows of a batch's largest tensor.

    Attributes:
        share: of the test rows that were looked at; None where none were.
    """

    def __init__(self) -> None:
        self._trained: set[bytes] = set()
        self._looked = self._again = 0

    @property
    def share(self) -> float | None:
        return self._again / self._looked if self._looked else None

    def train(self, batch: Any) -> None:
        """One more training batch."""
        if len(self._trained) < _MOST_ROWS:
            self._trained.update(_rows(batch))

    def test(self, batch: Any) -> None:
        """One more test batch."""
        if self._looked < _MOST_ROWS:
            rows = _rows(batch)
            self._looked += len(rows)
            self._again += sum(row in self._trained for row in rows)


def _rows(batch: Any) -> list[bytes]:
    """A hash of each row of the tensor that has most numbers in a row; none of graphs, whose rows are nodes."""
    floating = [x for _, x in tensors(batch) if x.is_floating_point() and x.ndim > 1 and len(x)]
    if not floating or getattr(batch, "edge_index", None) is not None:
        return []
    largest = max(floating, key=lambda x: x[0].numel()).detach().cpu().float().flatten(1).contiguous()
    return [hashlib.blake2b(row.numpy().tobytes(), digest_size=8).digest() for row in largest]


class SeededLoader:
    """A loader whose draws, also those from the global generators, are a function of (seed, epoch).

    What a network draws between two batches, first weights or dropout, moves nothing of it.

    Args:
        loader: any iterable of batches.
        key: of the draws.
        epoch: returns the number of the epoch.
        seen: called with each batch.
    """

    def __init__(self, loader: Any, key: object, epoch: Callable[[], int], seen: Callable[[Any], None]) -> None:
        self._loader, self._key, self._epoch, self._seen = loader, key, epoch, seen

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("state_dict", "load_state_dict"):  # a run goes on at the start of one
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        state = GlobalState.seeded(self._key, self._epoch())
        with state.in_use():
            batches = iter(self._loader)
        while True:
            with state.in_use():
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            self._seen(batch)
            yield batch


class GlobalState:
    """Where the global generators of torch (the CPU's), Python and NumPy stand."""

    def __init__(self) -> None:
        numpy: Any = sys.modules.get("numpy.random")
        self._state = torch.get_rng_state(), random.getstate(), numpy and numpy.get_state()

    @classmethod
    def seeded(cls, *key: object) -> GlobalState:
        """That of a seed; the generators stay where they are."""
        with random_state_kept():
            _seed(torch.default_generator, *key)
            return cls()

    def restore(self) -> None:
        """Put the generators there."""
        torchs, pythons, numpys = self._state
        torch.set_rng_state(torchs)
        random.setstate(pythons)
        if numpys:
            sys.modules["numpy.random"].set_state(numpys)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, draws come from here and move it on; those outside do not notice."""
        outside = GlobalState()
        self.restore()
        try:
            yield
        finally:
            self._state = GlobalState()._state
            outside.restore()


def seed_all(*key: object) -> None:
    """Seed the global generators by a key."""
    _seed(torch, *key)


def _seed(torchs: Any, *key: object) -> None:
    seed = int(torch.randint(2**31, (), generator=derived_generator("compare", *key)))
    torchs.manual_seed(seed)
    random.seed(seed)
    if numpy := sys.modules.get("numpy.random"):
        numpy.seed(seed)


def seed_data(
    data: L.LightningDataModule,
    seed: int,
    trained: Callable[[Any], None],
    tested: Callable[[Any], None] = lambda batch: None,
) -> None:
    """Make everything that a data module draws a function of the seed, in place.

    As in Lightning itself, `setup` for the test draws other numbers than for training: a data module that splits its
    data again there needs a generator or a `seed` of its own, or test inputs may have been trained on (see `Overlap`).
    What is drawn in `on_after_batch_transfer` is a way's own.

    Args:
        data: any data module; its `prepare_data`, `setup` and loaders are overridden on the instance.
        seed: of the run.
        trained: called with each training batch.
        tested: called with each test batch.
    """

    def epoch() -> int:
        return 0 if data.trainer is None else data.trainer.current_epoch

    def drawing(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def seeded(*args: Any, **kwargs: Any) -> Any:
            stage = [s for s in (*args, *kwargs.values()) if s in ("test", "predict")]  # "validate" is as "fit"
            with GlobalState.seeded(seed, name, *stage).in_use():
                return method(*args, **kwargs)

        return seeded

    def loading(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        trains = name == "train_dataloader"
        seen = {"train_dataloader": trained, "test_dataloader": tested}.get(name, lambda batch: None)

        def wrapped(loaders: Any, key: object) -> Any:
            if isinstance(loaders, Mapping):
                return {k: wrapped(loader, (key, k)) for k, loader in loaders.items()}
            if isinstance(loaders, CombinedLoader):
                loaders.flattened = wrapped(loaders.flattened, key)
                return loaders
            if isinstance(loaders, list | tuple):
                return [wrapped(loader, (key, i)) for i, loader in enumerate(loaders)]
            number = epoch if trains else lambda: 0
            return SeededLoader(loaders, key, number, seen)

        def seeded() -> Any:
            with GlobalState.seeded(seed, name).in_use():
                loaders = method()
            return wrapped(loaders, (seed, name))

        return seeded

    for name in ("prepare_data", "setup"):
        override(data, name, drawing(name, getattr(data, name)))
    for name in _LOADERS:
        if getattr(type(data), name) is not getattr(L.LightningDataModule, name):
            override(data, name, loading(name, getattr(data, name)))
