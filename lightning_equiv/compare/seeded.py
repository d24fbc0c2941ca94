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
        if name.startswith("__") or name in ("state_dict", "load_state_dict"):  # a run goes on at the end of an epoch
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


def seed_data(data: L.LightningDataModule, seed: int, seen: Callable[[Any], None]) -> None:
    """Make everything that a data module draws a function of the seed, in place.

    `setup` draws the same in every stage, so that a split is one; a data module that makes its training set in the
    stage "fit" and its test set in "test" takes a `seed`, or both begin with the same numbers. What is drawn in
    `on_after_batch_transfer` is a way's own.

    Args:
        data: any data module; its `prepare_data`, `setup` and loaders are overridden on the instance.
        seed: of the run.
        seen: called with each training batch.
    """

    def epoch() -> int:
        return 0 if data.trainer is None else data.trainer.current_epoch

    def drawing(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def seeded(*args: Any, **kwargs: Any) -> Any:
            with GlobalState.seeded(seed, name).in_use():  # whatever the stage: a split is the same in each
                return method(*args, **kwargs)

        return seeded

    def loading(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        trains = name == "train_dataloader"

        def wrapped(loaders: Any, key: object) -> Any:
            if isinstance(loaders, Mapping):
                return {k: wrapped(loader, (key, k)) for k, loader in loaders.items()}
            if isinstance(loaders, CombinedLoader):
                loaders.flattened = wrapped(loaders.flattened, key)
                return loaders
            if isinstance(loaders, list | tuple):
                return [wrapped(loader, (key, i)) for i, loader in enumerate(loaders)]
            number = epoch if trains else lambda: 0
            return SeededLoader(loaders, key, number, seen if trains else lambda batch: None)

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
