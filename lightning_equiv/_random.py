"""Random generators that are derived from keys, so that a draw needs no state to resume from."""

from __future__ import annotations

import hashlib
from contextvars import ContextVar
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


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


class DrawsFrom(TorchDispatchMode):
    """Inside, in this thread, whatever is drawn without a generator comes from this one, such as first weights.

    The global generators, the CPU's and every device's, stay as they are: nothing reads, seeds or restores them.

    Examples:
        >>> before = torch.get_rng_state()
        >>> with DrawsFrom(derived_generator("weights", 0)):
        ...     layer = torch.nn.Linear(2, 2)
        >>> bool((before == torch.get_rng_state()).all())
        True
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.generator = generator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        takes = any(argument.name == "generator" for argument in func._schema.arguments)
        if not takes and "generator" in func.overloadpacket.overloads():
            func, takes = func.overloadpacket.generator, True
        if takes and kwargs.get("generator") is None:
            kwargs["generator"] = self.generator
        return func(*args, **kwargs)


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
