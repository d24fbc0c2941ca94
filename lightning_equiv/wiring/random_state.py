"""Run something a second time, and leave the global random generators where they were."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class RandomState:
    """Where torch's global generators stand: the CPU's, and CUDA's where it is in use."""

    def __init__(self) -> None:
        generators = [torch.default_generator]
        if torch.cuda.is_initialized():
            generators += torch.cuda.default_generators
        self._before: list[tuple[torch.Generator, Tensor]] = [(g, g.get_state()) for g in generators]

    def moved(self) -> bool:
        """Whether something was drawn since."""
        return not all(torch.equal(generator.get_state(), state) for generator, state in self._before)

    def restore(self) -> None:
        """Put them back."""
        for generator, state in self._before:
            generator.set_state(state)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """What is drawn inside is not missing afterwards: torch's, Python's and NumPy's generators are put back."""
    numpy: Any = sys.modules.get("numpy.random")
    torchs, pythons, numpys = RandomState(), random.getstate(), numpy and numpy.get_state()
    try:
        yield
    finally:
        torchs.restore()
        random.setstate(pythons)
        if numpy:
            numpy.set_state(numpys)
