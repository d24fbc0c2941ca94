"""What RECM says of every layer when training is over."""

from __future__ import annotations

import math
from typing import Any

from lightning_equiv.layers.branch import Branch
from lightning_equiv.strategies.keeping_callback import Report


def layer_report(branches: list[Branch], threshold: float) -> Report:
    """For every layer its theta, None where that is no number, and whether it is strict: |theta| < threshold."""
    levels = [(b, float(b.theta)) for b in branches]
    return [
        {"layer": b.layer.name, "theta": level if math.isfinite(level) else None, "strict": b.is_strict(threshold)}
        for b, level in levels
    ]


def steps_to_forget(gain: float, threshold: float) -> int:
    """Optimizer steps of a run after which less than `threshold` is left of the first state.

    exp(-0.75 gain steps) < threshold, as b is `gain` for one half and falls to 0 in the other.

    Examples:
        >>> steps_to_forget(0.02, 1e-3)
        461
    """
    return math.ceil(-math.log(threshold) / (0.75 * gain)) if 0 < threshold < 1 else 0


def too_short(who: str, gain: float, threshold: float, steps: int) -> str | None:
    """What is said of a run that is too short for any layer to become strict; None for one that is not."""
    needed = steps_to_forget(gain, threshold)
    if steps >= needed:
        return None
    return (
        f"{who}: after {steps} optimizer steps {math.exp(-0.75 * gain * steps):.2g} of the first theta is left, above "
        f"threshold={threshold:g}: no layer may become strict. Train for {needed} steps, or write "
        f"gain={-math.log(threshold) / (0.75 * steps):.2g} or start='equivariant'"
    )


def format_report(who: str, report: Report) -> str:
    """The report in words."""
    lines = [f"  {v['layer']}: theta {theta(v)}{', strict' if v['strict'] else ''}" for v in report]
    return "\n".join([f"{who}, relaxation of every layer:", *lines])


def theta(of_layer: dict[str, Any]) -> str:
    """A layer's theta in words."""
    return "not a number" if of_layer["theta"] is None else f"{of_layer['theta']:+.4f}"
