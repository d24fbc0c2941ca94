"""Work that one process does for all, however long it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L


def made_by_the_first(trainer: L.Trainer, make: Callable[[Callable[[], None]], Any]) -> Any:
    """What `make` returns on the first process, on all of them.

    `make` is called with a function to call from time to time: the others wait from one such call to the next, for as
    long as the whole takes no process group's time-out would last.

    Raises:
        RuntimeError: on the others, if it failed on the first, which raises what it was.
    """
    several, failed, made = trainer.world_size > 1, None, None

    def alive() -> None:
        if several:
            trainer.strategy.broadcast(True)

    if trainer.is_global_zero:
        try:
            made = make(alive)
        except Exception as error:
            failed = error
    if several:
        while trainer.strategy.broadcast(False):
            pass
        made = trainer.strategy.broadcast(made)
    if failed is not None:
        raise failed
    if made is None:
        raise RuntimeError("SymmetryCloning: cloning failed on the first process")
    return made
