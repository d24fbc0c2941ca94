"""SymmetryReport: what a symmetry report holds, and how it is read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from lightning_equiv.discovery.advice import advice_of, conclusion, largest_kept
from lightning_equiv.discovery.contents import document_of
from lightning_equiv.discovery.findings import Finding
from lightning_equiv.report.document import Document
from lightning_equiv.report.written import Written


@dataclass(frozen=True)
class SymmetryReport(Written):
    """Which symmetries data have; made by `symmetry_report`.

    Attributes:
        findings: of each group, small to large; the last is the whole group.
        num_inputs: tested, with those that trained the witness.
        num_units: independent ones.
        settings: witness, draws, level, seed.
        notes: what was found about the data on the way.
    """

    findings: tuple[Finding, ...]
    num_inputs: int
    num_units: int
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def conclusion(self) -> str:
        """The answer in a line."""
        return conclusion(self.findings)

    @property
    def advice(self) -> list[str]:
        """What follows for a training, in sentences."""
        return advice_of(self.findings, self.num_units)

    @property
    def kept(self) -> str | None:
        """The largest group for which no deviation was found; None where there is none."""
        whole = self.findings[-1]
        found = whole if whole.verdict == "kept" else largest_kept(self.findings)
        return None if found is None else found.name

    def __getitem__(self, name: str) -> Finding:
        """What was found about the group of this name."""
        found = {f.name: f for f in self.findings}
        if name not in found:
            raise KeyError(f"no group {name!r} was tested: {', '.join(map(repr, found))} were")
        return found[name]

    @property
    def document(self) -> Document:
        """What the report says, apart from how it is written."""
        return document_of(self.findings, self.conclusion, self.advice, self._measured(), self.notes)

    def _measured(self) -> dict[str, Any]:
        return {"inputs": self.num_inputs, "independent": self.num_units, **self.settings}

    def as_dict(self) -> dict[str, Any]:
        """All figures, as JSON has them."""
        return {
            "conclusion": self.conclusion,
            "advice": self.advice,
            "kept": self.kept,
            "notes": list(self.notes),
            "measured": self._measured(),
            "groups": [f.as_dict() for f in self.findings],
        }

    def _content(self, ending: str) -> str | bytes:
        return json.dumps(self.as_dict(), indent=1) + "\n" if ending == ".json" else super()._content(ending)

    def __repr__(self) -> str:
        return f"<SymmetryReport: {self.conclusion}>"
