"""What an audit has measured so far, section by section."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from lightning_equiv.audit.measured import Numbers


@dataclass
class Collected:
    """What was measured, section by section.

    Attributes:
        numbers: of each section, (n, ..) of each input that it was measured on.
        notes: facts beside the numbers.
        skipped: section -> why it is not there, or not on all inputs.
        seconds: what each section took.
        num_inputs: how many inputs there were.
    """

    numbers: dict[str, list[Numbers]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    num_inputs: int = 0

    def section(self, name: str) -> Numbers:
        """All inputs of a section, one after the other, on the CPU; {} where it was not measured."""
        pieces = self.numbers.get(name, [])
        return {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]} if pieces else {}
