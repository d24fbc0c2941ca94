"""SymmetryReport: what a symmetry report holds, and how it is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_equiv.discovery.advice import advice_of, conclusion, largest_kept
from lightning_equiv.discovery.contents import document_of
from lightning_equiv.discovery.findings import Finding
from lightning_equiv.report.document import Document
from lightning_equiv.report.html import to_html
from lightning_equiv.report.markdown import to_markdown
from lightning_equiv.report.terminal import to_terminal, to_text

ENDINGS = (".html", ".json", ".md", ".txt")


@dataclass(frozen=True)
class SymmetryReport:
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

    def markdown(self) -> str:
        """The report in Markdown."""
        return to_markdown(self.document)

    def html(self) -> str:
        """The report as one page that needs nothing else; without matplotlib, tables in the place of pictures."""
        return to_html(self.document, pictures=find_spec("matplotlib") is not None)

    def print(self) -> None:
        """The report in the terminal, in colours where `rich` is installed."""
        to_terminal(self.document)

    def save(self, path: str | Path) -> Path:
        """Write the report.

        Args:
            path: ends in .html, .json (all figures), .md or .txt.

        Raises:
            ValueError: another ending.
        """
        path = Path(path)
        if path.suffix not in ENDINGS:
            raise ValueError(f"expected a path that ends in one of {ENDINGS}, got {str(path)!r}")
        write: dict[str, Callable[[], str]] = {
            ".html": self.html,
            ".json": lambda: json.dumps(self.as_dict(), indent=1) + "\n",
            ".md": self.markdown,
            ".txt": lambda: f"{self}\n",
        }
        written = write[path.suffix]()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(written, encoding="utf-8")
        return path

    def __str__(self) -> str:
        return to_text(self.document)

    def __repr__(self) -> str:
        return f"<SymmetryReport: {self.conclusion}>"

    def _repr_html_(self) -> str:
        return to_html(self.document, page=False, pictures=find_spec("matplotlib") is not None)
