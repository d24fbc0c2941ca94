"""What EquivarianceProjection says when training is over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_equiv.layers.equivariant_part import EquivariantPart

Report = dict[str, Any]

_UNSEEN, _FLOOR = 10.0, 1e-3  # the network's error against that of its layers


def ranked(parts: Sequence[EquivariantPart]) -> list[dict[str, Any]]:
    """e of every layer, None where that is no number; the layer that is furthest from its symmetry comes first."""
    errors = [(part.layer.name, float(part.square().detach().sqrt())) for part in parts]
    errors.sort(key=lambda row: row[1] if math.isfinite(row[1]) else math.inf, reverse=True)
    return [{"layer": name, "error": number(error)} for name, error in errors]


def number(x: float | None) -> float | None:
    """What JSON can hold."""
    return x if x is not None and math.isfinite(x) else None


def format_report(who: str, report: Report) -> str:
    """The report in words."""
    lines = [f"{who}, how far every layer is from commuting with the group (0 to 1):"]
    lines += [f"  {row['layer']}: {words(row['error'])}" for row in report["layers"]]
    whole = [("penalty", "penalty"), ("equivariance_error", "the network's equivariance error"), ("loss", "loss")]
    after = report["projected"]
    for key, name in whole:
        if report[key] is not None:
            lines.append(f"  {name}: {words(report[key])}" + (f", projected {words(after[key])}" if after else ""))
    return "\n".join(lines)


def words(x: float | None) -> str:
    """A number with four digits."""
    return "not a number" if x is None else f"{x:.4g}"


def unseen(report: Report, network: nn.Module, names: Sequence[str], prefix: str) -> str:
    """Why a network is far from equivariant whose layers are not; "" for any other.

    Args:
        report: of the network as it is left.
        network: whose error was measured.
        names: of the layers that were chosen.
        prefix: the network's own name.
    """
    error, penalty = report["equivariance_error"], report["penalty"]
    if error is None or penalty is None or error <= _FLOOR + _UNSEEN * math.sqrt(penalty):
        return ""
    inside = {f"{prefix}.{name}" if prefix else name: module for name, module in network.named_modules() if name}
    left_out = [
        name
        for name, module in inside.items()
        if any(True for _ in module.parameters(recurse=False))
        and not any(name == chosen or name.startswith(f"{chosen}.") for chosen in names)
    ]
    more = " and others" if len(left_out) > 5 else ""
    others = f", and layers that were not chosen, {left_out[:5]}{more}" if left_out else ""
    return (
        f"the relative equivariance error of the network is {error:.3g}, while its chosen layers are within "
        f"{math.sqrt(penalty):.2g} of commuting with the group: the penalty sees linear maps, and what it does not see "
        "breaks the symmetry: nonlinearities and norms that act on single components of vectors (they have to act on "
        f"scalars alone, or on lengths){others}. Choose hidden representations of scalars where such layers act, or "
        "REMUL, which sees the whole network"
    )
