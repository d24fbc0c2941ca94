"""What RECM says of every layer when training is over."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only

from lightning_equiv.layers.branch import Branch

Report = list[dict[str, Any]]


def layer_report(branches: list[Branch], threshold: float) -> Report:
    """For every layer its theta, and whether it is strict: |theta| < threshold."""
    return [{"layer": b.layer.name, "theta": float(b.theta), "strict": strict(b, threshold)} for b in branches]


def strict(branch: Branch, threshold: float) -> bool:
    """Whether a layer is left without its branch."""
    return abs(float(branch.theta)) < threshold


def format_report(who: str, report: Report, gain: float, steps: int) -> str:
    """The report in words, and a warning where much of the start is left after so many steps."""
    lines = [f"  {v['layer']}: theta {v['theta']:+.4f}{', strict' if v['strict'] else ''}" for v in report]
    left = math.exp(-0.75 * gain * steps)  # the product of 1 - b over the run
    if left > 0.01:
        lines.append(f"  {left:.0%} of the start is left in every state: train longer, or raise gain={gain}")
    return "\n".join([f"{who}, relaxation of every layer:", *lines])


@rank_zero_only
def write(path: Path, report: Report) -> None:
    """The report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1))
