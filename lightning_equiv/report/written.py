"""Written: a report that can be shown in the terminal and in a notebook, and saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from lightning_equiv.report.document import Document
from lightning_equiv.report.html import to_html
from lightning_equiv.report.markdown import to_markdown
from lightning_equiv.report.terminal import to_terminal, to_text


class Written(ABC):
    """What every report can do once it says what its `document` is, and what a file with its figures alone holds.

    Attributes:
        ENDINGS: of the files that it can be saved as.
    """

    ENDINGS: ClassVar[tuple[str, ...]] = (".html", ".json", ".md", ".txt")

    @property
    @abstractmethod
    def document(self) -> Document:
        """What is read, apart from how it is written."""

    def markdown(self) -> str:
        """The report as Markdown."""
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
            path: ends in .html (one page, with its pictures), .json (all figures), .md or .txt.

        Raises:
            ValueError: another ending.
        """
        path = Path(path)
        if path.suffix not in self.ENDINGS:
            raise ValueError(f"expected a path that ends in one of {self.ENDINGS}, got {str(path)!r}")
        content = self._content(path.suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def _content(self, ending: str) -> str | bytes:
        """What a file with one of the `ENDINGS` holds."""
        if ending == ".html":
            return self.html()
        if ending == ".md":
            return self.markdown()
        assert ending == ".txt"
        return f"{self}\n"

    def __str__(self) -> str:
        return to_text(self.document)

    def _repr_html_(self) -> str:
        return to_html(self.document, page=False, pictures=find_spec("matplotlib") is not None)
