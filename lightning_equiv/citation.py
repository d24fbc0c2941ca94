"""What to cite."""

from __future__ import annotations

import inspect
import textwrap


def citation(*used: object) -> str:
    """The bibtex of everything that is in use, read from its docstrings.

    Args:
        used: callbacks, metrics, data modules or their classes; what has no reference is passed over.

    Returns:
        Bibtex entries, each once, in the order of `used`.

    Examples:
        >>> from lightning_equiv import REMUL
        >>> print(citation(REMUL).splitlines()[0])
        @inproceedings{elhag2025relaxed,
    """
    entries: dict[str, str] = {}
    for thing in used:
        doc = inspect.getdoc(thing if isinstance(thing, type) else type(thing)) or ""
        _, _, reference = doc.partition("Reference:\n")
        for entry in textwrap.dedent(reference).split("@")[1:]:
            entries.setdefault(entry.partition(",")[0], "@" + entry.rstrip())
    return "\n\n".join(entries.values())
