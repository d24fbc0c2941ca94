"""Which versions, and which commit, made a result."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("torch", "lightning", "torchmetrics", "e3nn")


@cache
def versions() -> dict[str, str]:
    """Package -> version; of a working tree of this library also its commit, with "+" where files differ from it."""
    own = sys.modules["lightning_equiv"].__version__
    found = {"python": ".".join(map(str, sys.version_info[:3])), "lightning_equiv": own}
    for package in _PACKAGES:
        try:
            found.setdefault(package, version(package))
        except PackageNotFoundError:
            continue
    if commit := _commit(Path(__file__).parents[2]):
        found["commit"] = commit
    return found


def _commit(folder: Path) -> str | None:
    if not (folder / ".git").exists():
        return None

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "-uno", "--", "lightning_equiv", "examples")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
