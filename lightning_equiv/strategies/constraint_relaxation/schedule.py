"""Relaxation levels over a run: pure functions of progress."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float], float]


def triangle(p: float) -> float:
    """0 -> 1 -> 0: 2 p up to the middle, 2 - 2 p after it.

    Examples:
        >>> [triangle(p) for p in (0.0, 0.25, 0.5, 1.0)]
        [0.0, 0.5, 1.0, 0.0]
    """
    return 2 * p if p <= 0.5 else 2 - 2 * p


def linear(p: float) -> float:
    """1 -> 0 in a line."""
    return 1 - p


def cosine(p: float) -> float:
    """1 -> 0 along half a cosine."""
    return (1 + math.cos(math.pi * p)) / 2


def constant(p: float) -> float:
    """1 all the time."""
    return 1.0


SCHEDULES: dict[str, Schedule] = {"triangle": triangle, "linear": linear, "cosine": cosine, "constant": constant}


def level(schedule: Schedule, step: int, total: int, end: float) -> float:
    """theta over its peak at an optimizer step: the schedule run over the first `end` of the run, exactly 0 after it.

    Args:
        schedule: a function of progress 0 .. 1.
        step: optimizer steps done.
        total: optimizer steps of the whole run.
        end: the part of the run after which the level is 0.
    """
    p = step / (total * end)
    return schedule(p) if p < 1 else 0.0
