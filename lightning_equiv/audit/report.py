"""EquivarianceReport: the figures of an audit, to be read, kept and compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_equiv.audit.contents import document_of
from lightning_equiv.audit.summary import as_json
from lightning_equiv.report.document import Document
from lightning_equiv.report.pictures import figure
from lightning_equiv.report.written import Written


@dataclass(frozen=True)
class EquivarianceReport(Written):
    """How equivariant a model is: what `audit` returns.

    `print(report)` shows it, a notebook renders it, `report.save("report.html")` writes it; `report.figures` has all
    numbers, each with its interval as (value, low, high).

    Attributes:
        figures: plain numbers, as JSON has them; of several reports side by side, see `compare`, those of each.

    Examples:
        >>> import torch
        >>> from lightning_equiv import Symmetry, audit
        >>> symmetry = Symmetry("SO(3)", "1o", "1o")
        >>> stretch = torch.nn.Linear(3, 3)
        >>> report = audit(stretch, torch.randn(32, 3), symmetry, draws=8, progress=False)
        >>> value, low, high = report.error
        >>> low < value < high
        True
        >>> report.markdown().splitlines()[0]
        '# How equivariant is Linear?'
    """

    figures: dict[str, Any]

    # ---- the figures -----------------------------------------------------------------------------------------------
    @property
    def verdict(self) -> str:
        """One of "exact to rounding", "approximate" and "not equivariant"."""
        return self.document.verdict

    @property
    def error(self) -> tuple[float, float, float]:
        """The relative error with its 95 % interval."""
        value, low, high = self.figures["error"]["total"]
        return value, low, high

    def as_dict(self) -> dict[str, Any]:
        """All figures, with None for what is no number: what `save` writes as JSON and `load` reads."""
        figures: dict[str, Any] = as_json(self.figures)
        return figures

    # ---- several ---------------------------------------------------------------------------------------------------
    @staticmethod
    def compare(reports: Sequence[EquivarianceReport], names: Sequence[str] | None = None) -> EquivarianceReport:
        """Several reports side by side: models, or one model at several times.

        Args:
            reports: two or more.
            names: of the columns, such as ("before", "after"); the models' own by default.

        Raises:
            ValueError: fewer than two reports, another number of names, or names that are not distinct.
        """
        if len(reports) < 2:
            raise ValueError(f"expected at least two reports to compare, got {len(reports)}")
        if names is not None and (len(names) != len(reports) or len(set(names)) != len(names)):
            raise ValueError(f"expected {len(reports)} distinct names, one for each report, got {list(names)}")
        own = [r.figures for r in reports]
        return EquivarianceReport({"reports": own, "names": list(names) if names is not None else None})

    # ---- written ---------------------------------------------------------------------------------------------------
    @property
    def document(self) -> Document:
        """What is read, apart from how it is written."""
        if "reports" in self.figures:
            return document_of(self.figures["reports"], self.figures["names"])
        return document_of([self.figures])

    def figure(self) -> Any:
        """All pictures as one matplotlib figure."""
        return figure(self.document.pictures)

    def _content(self, ending: str) -> str | bytes:
        return json.dumps(self.as_dict(), indent=1) + "\n" if ending == ".json" else super()._content(ending)

    @staticmethod
    def load(path: str | Path) -> EquivarianceReport:
        """The report that was saved as .json."""
        return EquivarianceReport(json.loads(Path(path).read_text(encoding="utf-8")))

    def __repr__(self) -> str:
        return f"<EquivarianceReport: {self.document.title} {self.verdict}>"
