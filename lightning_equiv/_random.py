"""Random generators that are derived from keys, so that a draw needs no state to resume from."""

from __future__ import annotations

import hashlib
from contextvars import ContextVar

import torch


def derived_generator(*key: object) -> torch.Generator:
    """A fresh CPU generator whose numbers are a pure function of `key`.

    Draws that depend on (seed, rank, epoch, batch) alone need no state to resume from and no state to protect.

    Examples:
        >>> a, b = (torch.rand(1, generator=derived_generator("seed", 0)) for _ in range(2))
        >>> bool(a == b)
        True
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


# of this thread: where the global generator stood at the last draw, and the generator for draws from there on
_private: ContextVar[tuple[bytes, torch.Generator] | None] = ContextVar("_private", default=None)


def private_generator() -> torch.Generator:
    """One generator for all draws without a generator: follows `seed_everything`, leaves the global one alone.

    It begins anew, as a function of the global generator's state, wherever that state is another one than at the last
    draw. So `seed_everything(0)` begins the same draws again, unless nothing was drawn from the global generator since
    the last `seed_everything(0)`: nobody can tell the two then, and a generator of one's own is the way.
    """
    state = hashlib.blake2b(torch.get_rng_state().numpy().tobytes(), digest_size=8).digest()
    private = _private.get()
    if private is None or private[0] != state:
        private = state, derived_generator("lightning_equiv", state)
        _private.set(private)
    return private[1]
