"""Comparison: what was found by training one module in several ways, to be read and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_equiv.compare.contents import document_of, excerpt
from lightning_equiv.compare.records import Record, read
from lightning_equiv.compare.results import Results
from lightning_equiv.compare.tables import to_csv
from lightning_equiv.report.document import Document
from lightning_equiv.report.html import to_html
from lightning_equiv.report.markdown import to_markdown
from lightning_equiv.report.pictures import figure, save_png
from lightning_equiv.report.terminal import to_terminal, to_text

ENDINGS = (".html", ".md", ".txt", ".csv", ".png")


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Comparison(Results):
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

    def markdown(self) -> str:
        """The whole report as Markdown."""
        return to_markdown(self.document)

    def excerpt(self, picture: str = "") -> str:
        """Advice and tables alone as Markdown without headings, to be put into a page.

        Args:
            picture: where the page finds the picture that `save("....png")` wrote; "" for none.
        """
        return excerpt(self, picture)

    def html(self) -> str:
        """The report as one page that needs nothing else; without matplotlib, tables in the place of pictures."""
        return to_html(self.document, pictures=find_spec("matplotlib") is not None)

    def print(self) -> None:
        """The report in the terminal, in colours where `rich` is installed."""
        to_terminal(self.document)

    def save(self, path: str | Path) -> Path:
        """Write the report.

        Args:
            path: ends in .html (one page, with its pictures), .md, .txt, .csv (the numbers of the tables) or .png (the
                pictures).

        Raises:
            ValueError: another ending, or a picture of runs that have nothing to draw.
        """
        path = Path(path)
        if path.suffix not in ENDINGS:
            raise ValueError(f"expected a path that ends in one of {ENDINGS}, got {str(path)!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            if not self.document.pictures:
                raise ValueError(f"there is nothing to draw in {path}: no run has figures")
            save_png(self.figure(), path)
            return path
        write: dict[str, Callable[[], str]] = {
            ".html": self.html,
            ".md": self.markdown,
            ".txt": lambda: f"{self}\n",
            ".csv": lambda: to_csv(self),
        }
        path.write_text(write[path.suffix](), encoding="utf-8")
        return path

    def __str__(self) -> str:
        return to_text(self.document)

    def __repr__(self) -> str:
        return f"<Comparison: {len(self.runs)} runs of {', '.join(self.ways)}>"

    def _repr_html_(self) -> str:
        return to_html(self.document, page=False, pictures=find_spec("matplotlib") is not None)
