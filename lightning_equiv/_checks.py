"""Checks of numeric settings."""

from __future__ import annotations

import sys
from numbers import Integral, Real
from typing import Any


def check_number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    whole: bool = False,
    optional: bool = False,
) -> None:
    """Raise unless `value` is a finite number within the bounds; NaN and infinity never are.

    Args:
        name: of the setting, for the message.
        value: what was given.
        least: value >= least.
        above: value > above.
        most: value <= most.
        below: value < below.
        whole: only whole numbers.
        optional: None is allowed, too.

    Raises:
        TypeError: not a number, or not a whole one.
        ValueError: out of bounds.

    Examples:
        >>> check_number("gain", 0.5, above=0, below=1)
        >>> check_number("num_samples", 0, least=1, whole=True)
        Traceback (most recent call last):
        ValueError: expected num_samples to be a whole number of at least 1, got 0
    """
    if value is None and optional:
        return
    number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    within = (
        number
        and (whole or abs(value) <= sys.float_info.max)  # False for NaN
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    )
    if not within:
        bounds = {"of at least": least, "above": above, "at most": most, "below": below}
        words = " and ".join(f"{word} {bound}" for word, bound in bounds.items() if bound is not None)
        kind = f"{'a whole' if whole else 'a finite'} number {words}".strip() + (" or None" if optional else "")
        raise (ValueError if number else TypeError)(f"expected {name} to be {kind}, got {value!r}")
