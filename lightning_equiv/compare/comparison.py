"""Comparison: what was found by training one module in several ways, to be read and kept."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_equiv.compare.contents import document_of, excerpt
from lightning_equiv.compare.records import Record, read
from lightning_equiv.compare.results import Results
from lightning_equiv.compare.tables import to_csv
from lightning_equiv.report.document import Document
from lightning_equiv.report.pictures import figure, save_png
from lightning_equiv.report.written import Written


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Comparison(Results, Written):
    """Ways of training one module on the same data, several seeds each, and which of them to take.

    `print(comparison)` shows it, a notebook renders it, `comparison.save("comparison.html")` writes it.

    Args:
        records: of the runs, and of the trials of a sweep.
        reference: the way that the others are compared with; "plain" where there is one, else the first.
        title: of the report.

    Raises:
        ValueError: no run, one run twice, a reference that is none of the ways, or runs of one case with other data,
            steps, monitor or Trainer.

    Examples:
        >>> run = {"kind": "run", "case": "", "trial": None, "status": "ok", "mode": "min", "judged": ["mse"]}
        >>> mse = {"plain": [0.4, 0.5], "remul": [0.2, 0.25]}
        >>> comparison = Comparison(
        ...     {**run, "way": way, "seed": seed, "metrics": {"mse": value}}
        ...     for way, values in mse.items()
        ...     for seed, value in enumerate(values)
        ... )
        >>> comparison.ways, comparison.reference
        (('plain', 'remul'), 'plain')
        >>> comparison.figures("", "mse")["remul"]
        {0: 0.2, 1: 0.25}
        >>> round(comparison.differences[""]["mse"]["remul"].value, 3)
        -0.5
    """

    ENDINGS = (".html", ".md", ".txt", ".csv", ".png")

    title: str

    def __init__(self, records: Iterable[Record], *, reference: str | None = None, title: str = "") -> None:
        super().__init__(records, reference=reference)
        object.__setattr__(self, "title", title)

    @classmethod
    def load(cls, *paths: str | Path, reference: str | None = None, title: str = "") -> Comparison:
        """The comparison of the runs in one or several results files.

        Args:
            paths: of the files.
            reference: as of the class.
            title: as of the class.

        Raises:
            FileNotFoundError: there is no such file.
        """
        if missing := [str(path) for path in paths if not Path(path).is_file()]:
            raise FileNotFoundError(f"expected files of results, but there is no {missing[0]!r}")
        return cls([r for path in paths for r in read(Path(path))], reference=reference, title=title)

    # ---- written ---------------------------------------------------------------------------------------------------
    @property
    def document(self) -> Document:
        """What is read, apart from how it is written."""
        return document_of(self, self.title)

    def figure(self) -> Any:
        """All pictures as one matplotlib figure."""
        return figure(self.document.pictures, one_legend=True)

    def excerpt(self, picture: str = "") -> str:
        """Advice and tables alone as Markdown without headings, to be put into a page.

        Args:
            picture: where the page finds the picture that `save("....png")` wrote; "" for none.
        """
        return excerpt(self, picture)

    def save(self, path: str | Path) -> Path:
        """Write the report.

        Args:
            path: ends in .html (one page, with its pictures), .md, .txt, .csv (the numbers of the tables) or .png (the
                pictures).

        Raises:
            ValueError: another ending, or a picture of runs that have nothing to draw.
        """
        return super().save(path)

    def _content(self, ending: str) -> str | bytes:
        if ending == ".csv":
            return to_csv(self)
        if ending != ".png":
            return super()._content(ending)
        if not self.document.pictures:
            raise ValueError("there is nothing to draw: no run has figures")
        drawn = io.BytesIO()
        save_png(self.figure(), drawn)
        return drawn.getvalue()

    def __repr__(self) -> str:
        return f"<Comparison: {len(self.runs)} runs of {', '.join(self.ways)}>"
