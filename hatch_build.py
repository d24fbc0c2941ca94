"""What hatchling asks while it builds: the README for a package index, which has none of the files that it links to."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PAGES = "https://github.com/lightning-equiv/lightning_equiv/blob/main/"
PICTURES = "https://raw.githubusercontent.com/lightning-equiv/lightning_equiv/main/"
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)]+)\)")


def with_absolute_links(markdown: str) -> str:
    """Markdown whose links to files of the repository lead there from anywhere."""
    return _LINK.sub(lambda link: f"{link[1]}[{link[2]}]({PICTURES if link[1] else PAGES}{link[3]})", markdown)


class ReadmeHook(MetadataHookInterface):
    """The README with absolute links."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set it."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": with_absolute_links(text)}
