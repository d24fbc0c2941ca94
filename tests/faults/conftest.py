from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch.utils.data import BatchSampler, DataLoader

REPLACED = ("__init__", "__setattr__", "__delattr__")


def with_subclasses(cls: type) -> Iterator[type]:
    yield cls
    for below in cls.__subclasses__():
        yield from with_subclasses(below)


@pytest.fixture(autouse=True)
def loaders_stay_as_they_are() -> Iterator[None]:
    """Lightning replaces methods of loaders while it asks a module for one, and leaves them so where that fails."""
    names = [*REPLACED, *(f"__old{name}" for name in REPLACED)]
    classes = {*with_subclasses(DataLoader), *with_subclasses(BatchSampler)}
    before = {cls: {name: vars(cls)[name] for name in names if name in vars(cls)} for cls in classes}
    yield
    for cls, held in before.items():
        for name in names:
            if name in held and vars(cls).get(name) is not held[name]:
                setattr(cls, name, held[name])
            elif name not in held and name in vars(cls):
                delattr(cls, name)
