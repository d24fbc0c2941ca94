"""Notice what is changed in place."""

from __future__ import annotations

from torch import Tensor


def version(x: Tensor) -> int:
    """How often a tensor, or what it shares its numbers with, was changed in place; inference tensors do not count."""
    return 0 if x.is_inference() else x._version
