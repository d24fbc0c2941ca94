"""What a package index and GitHub read of the package: its metadata, its README, its citation."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import lightning_equiv

ROOT = Path(__file__).parents[1]


class Base:
    """In the place of hatchling's, which is in no environment but that of a build."""

    def __init__(self, root: str, config: dict[str, object]) -> None:
        self.root = root


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """hatch_build.py."""
    interface = ModuleType("hatchling.metadata.plugin.interface")
    interface.MetadataHookInterface = Base
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    for parent in ("hatchling", "hatchling.metadata", "hatchling.metadata.plugin"):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    spec.loader.exec_module(module)
    return module


def test_a_package_index_shows_a_readme_whose_links_all_lead_somewhere(hook: ModuleType) -> None:
    metadata: dict[str, dict[str, str]] = {}
    hook.ReadmeHook(str(ROOT), {}).update(metadata)
    text = metadata["readme"]["text"]
    links = re.findall(r"\]\(([^)]+)\)", text)
    ours = [link.partition("#")[0] for link in links if "github" in link]
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    assert len(ours) >= 10
    for link in ours:
        path = link.removeprefix(hook.PAGES).removeprefix(hook.PICTURES)
        assert (ROOT / path).exists(), link
        assert link.startswith(hook.PICTURES) == link.endswith((".png", ".svg")), link


def test_links_are_made_absolute_one_by_one(hook: ModuleType) -> None:
    text = "[a](docs/a.md#b), ![c](d/c.png), [e](https://x.org/y), [f](#f), a[i](j)"
    page, picture = f"{hook.PAGES}docs/a.md#b", f"{hook.PICTURES}d/c.png"
    said = f"[a]({page}), ![c]({picture}), [e](https://x.org/y), [f](#f), a[i]({hook.PAGES}j)"
    assert hook.with_absolute_links(text) == said
    assert hook.with_absolute_links(said) == said


def test_the_citation_file_has_the_papers_that_citation_prints() -> None:
    listed = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    classes = [getattr(lightning_equiv, name) for name in lightning_equiv.__all__]
    printed = lightning_equiv.citation(*(c for c in classes if isinstance(c, type)))
    titles = {" ".join(title.split()) for title in re.findall(r"title=\{((?:[^{}]|\{[^}]*\})*)\}", printed)}
    titles -= set(re.findall(r"booktitle=\{([^}]*)\}", printed))
    assert len(titles) >= 8
    assert {reference["title"] for reference in listed} == titles
    for reference in listed:
        assert {"type", "title", "authors", "year"} <= set(reference)
        entry = printed[printed.index(reference["title"].split()[0]) :]
        assert f"year={{{reference['year']}}}" in entry
    assert "lightning_equiv.citation(...)" in yaml.safe_load((ROOT / "CITATION.cff").read_text())["message"]


def test_this_version_has_a_section_in_the_changelog() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert lightning_equiv.__version__ in headings[:2]  # the next one may be begun
