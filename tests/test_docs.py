"""The docs name every public thing, and the README's code runs as it stands."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import lightning_equiv
from lightning_equiv import EquivarianceReport, GroupConvolution, Symmetry, compare, datasets
from lightning_equiv.audit.words import interval_words, percent
from lightning_equiv.compare.command import main as compare_command
from lightning_equiv.compare.records import read
from lightning_equiv.compare.way import ready_made
from tests.helpers import global_seed
from tests.pages import FENCE, pages

ROOT = Path(__file__).parents[1]


def public_names() -> set[str]:
    names = set(lightning_equiv.__all__)
    return names | {name for name in vars(datasets) if name.endswith("DataModule")}


@pytest.mark.parametrize("name", sorted(public_names()))
def test_every_public_name_is_in_the_docs_and_the_changelog(name: str) -> None:
    docs = "\n".join(path.read_text() for path in [*ROOT.glob("docs/**/*.md"), ROOT / "README.md"])
    assert re.search(rf"\b{name}\b", docs)
    if name[0].isupper():
        assert re.search(rf"\b{name}\b", (ROOT / "CHANGELOG.md").read_text()) or name in (
            "Group",
            "Representation",
            "SymmetryCallback",
        )


def test_the_citation_file_names_this_release() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "abstract", "keywords", "license"} <= set(citation)
    assert citation["version"] == lightning_equiv.__version__
    assert f'Source = "{citation["repository-code"]}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.skipif(not (ROOT / ".ci").is_dir(), reason="a source distribution has no .ci")
def test_the_oldest_versions_are_those_that_pyproject_promises() -> None:
    lines = (ROOT / ".ci" / "constraints-oldest.txt").read_text().splitlines()
    pins = dict(line.partition("#")[0].strip().split("==") for line in lines if "==" in line)
    text = (ROOT / "pyproject.toml").read_text()
    promised = re.search(r"^dependencies = .*?^docs = ", text, re.DOTALL | re.MULTILINE)
    assert promised
    requirements = [Requirement(line) for line in re.findall(r'"(.+?[<>=].+?)"', promised[0])]
    requirements = [r for r in requirements if r.name != "torch-cluster"]  # compiled, and skipped there
    assert len(requirements) >= 9
    for requirement in requirements:
        (oldest,) = [s.version for s in requirement.specifier if s.operator == ">="]
        pin = pins[requirement.name]
        assert pin in requirement.specifier
        assert (pin + ".0").startswith(oldest + "."), f"{requirement} is tested with {pin}"


def test_the_api_pages_list_what_is_public_once_and_nothing_else() -> None:
    public = [f"lightning_equiv.{name}" for name in lightning_equiv.__all__]
    public += [f"lightning_equiv.datasets.{name}" for name in datasets.__all__]
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))
    shown = re.findall(r"^::: (\S+)$", pages, re.MULTILINE)
    # Modules have the names of these functions: their headings and anchors are the public names.
    same_names = re.compile(r"(audit|compare)\.run\.(?=\1)|citation\.(?=citation)")
    assert sorted(same_names.sub("", name) for name in shown) == sorted(public)
    for name in [same_names.sub("", name) for name in shown if same_names.search(name)]:
        assert f"[](){{#{name}}}" in pages
        assert f"heading: {name}\n" in pages
    index = (ROOT / "docs" / "api.md").read_text()
    assert sorted(re.findall(r"\[`\w+`\]\[(.+?)\]", index)) == sorted(public)
    assert set(re.findall(r"\]\(api/(\w+)\.md\)", index)) == {path.stem for path in ROOT.glob("docs/api/*.md")}


# Words that are also a public name: a key of the results, a command.
NOT_A_NAME = {"comparing.md": {"equivariance_error"}, "modules.md": {"audit"}}
NOT_LINKED = ("README.md", "index.md", "api.md", "results.md", "contract.md", "contributing.md", "guarantees.md")


@pytest.mark.parametrize("page", sorted(pages().keys() - set(NOT_LINKED)))
def test_public_names_on_a_page_lead_to_the_api(page: str) -> None:
    text = re.sub(r"^#.*|^    .*", "", FENCE.sub("", pages()[page]), flags=re.MULTILINE)
    linked = set(re.findall(r"\]\[lightning_equiv\.(?:datasets\.)?(\w+)\]", text))
    prose = re.sub(r"\[[^\]]*\](\([^)]*\)|\[[^\]]*\])", "", text)  # without links, also to other pages
    mentioned = set(re.findall(r"(?<![`\w])`(\w+)`(?!`)", prose)) & public_names()
    assert mentioned - linked - NOT_A_NAME.get(page, set()) == set()


def test_the_page_on_guarantees_names_every_file_of_faults() -> None:
    named = set(re.findall(r"`(tests/\S+\.py)`", (ROOT / "docs" / "guarantees.md").read_text()))
    assert {path for path in named if not (ROOT / path).exists()} == set()
    assert {f"tests/faults/{path.name}" for path in (ROOT / "tests/faults").glob("test_*.py")} <= named


def test_every_local_link_of_the_readme_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_script_of_the_front_page_prints_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    readme, index = ((ROOT / page).read_text() for page in ("README.md", "docs/index.md"))
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (said,) = re.findall(r"```text\n(.*?)```", readme, re.DOTALL)
    assert code in index
    assert said in index
    assert len(code.splitlines()) < 40
    quiet = "accelerator='cpu', enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False"
    with global_seed():
        exec(code.replace("L.Trainer(", f"L.Trainer({quiet}, "), {})
    printed, expected = (
        re.findall(r"(\w+): error ([\d.]+), then ([\d.]+); MSE ([\d.]+)", text)
        for text in (capsys.readouterr().out, said)
    )
    assert [line[0] for line in printed] == ["plain", "REMUL"]
    for line, of_page in zip(printed, expected, strict=True):
        assert [float(n) for n in line[1:]] == pytest.approx(
            [float(n) for n in of_page[1:]], rel=0.5
        )  # other processors round otherwise


def test_the_front_page_of_the_docs_has_the_strategies_of_the_readme() -> None:
    pattern = re.compile(r"^\| \| for which network.*?\n\n", re.DOTALL | re.MULTILINE)
    (readme,), (index,) = (pattern.findall(pages()[page]) for page in ("README.md", "index.md"))
    assert readme.replace("](docs/", "](") == index


def blocks_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def test_the_page_on_discovery_says_what_its_code_finds() -> None:
    report_block, generators_block = blocks_of("discovery.md")
    space: dict[str, object] = {}
    exec(report_block, space)
    assert f"# {space['report'].conclusion!r}" in report_block  # type: ignore[attr-defined]
    exec(generators_block, space)


def test_every_block_of_the_page_on_measuring_runs_after_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = blocks_of("measuring.md")
    assert len(others) == 9
    monkeypatch.chdir(tmp_path)  # the audit writes a page
    space: dict[str, object] = {}
    exec(first, space)
    for block in others:
        exec(block, dict(space))
    assert (tmp_path / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["plain", "augmentation", "remul"])
def test_the_page_on_measuring_has_the_numbers_of_the_committed_audits(name: str) -> None:
    page = " ".join((ROOT / "docs" / "measuring.md").read_text().split())
    report = EquivarianceReport.load(ROOT / "docs" / "results" / f"audit_nbody_{name}.json")
    assert interval_words(report.error) in page
    assert percent(report.figures["labels"]["total"]["removed"][0]) in page


def test_the_code_of_the_page_on_modules_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = blocks_of("modules.md")
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)  # it writes a checkpoint
    quiet = "accelerator='cpu', enable_progress_bar=False, enable_model_summary=False, logger=False"
    space: dict[str, object] = {}
    for block in blocks:
        exec(block.replace("L.Trainer(", f"L.Trainer({quiet}, "), space)
    assert type(space["again"]).__name__ == "Gravity"


def test_the_page_on_comparing_runs_and_says_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "comparing.md").read_text()
    first, ways, *others = blocks_of("comparing.md")
    assert len(others) == 3
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    exec(first, space)
    assert space["comparison"].advice[-1] in page
    named = set(re.findall(r"`(\w+)`", page))
    assert {key for record in read(tmp_path / "comparison.jsonl") for key in record} <= named
    for block in others:
        exec(block, dict(space))
    exec(ways, space)
    module, data, symmetry = (space[name] for name in ("Torque", "Torques", "symmetry"))
    quick = {"steps": 2, "seeds": 1, "trainer": {"accelerator": "cpu"}, "progress": False, "results": "ways.jsonl"}
    own = compare(module, data, ways=space["ways"], symmetry=symmetry, network="net", target=1, **quick)
    assert len(own.ways) == 6
    assert own.failures == ()

    (settings,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(settings)
    (tmp_path / "torques.py").write_text(first.partition("symmetry = Symmetry")[0])
    monkeypatch.syspath_prepend(tmp_path)
    compare_command(["--config", "mine.yaml", "--fast-dev-run", "--no-progress"])
    assert "equivariant" in capsys.readouterr().out
    assert not list(tmp_path.glob("mine.jsonl*"))  # two steps are not kept among the runs


class FakeRay:
    """`ray` as the page calls it: a decorator, `.remote(...)`, and `.future()` of what that returns."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool, self.calls = pool, 0

    def remote(self, *, num_cpus: int) -> Callable[[Callable[..., Any]], SimpleNamespace]:
        assert num_cpus == 1
        return lambda function: SimpleNamespace(remote=partial(self.started, function))

    def started(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> SimpleNamespace:
        self.calls += 1
        future = self.pool.submit(function, *args, **kwargs)
        return SimpleNamespace(future=lambda: future)


class FakeClient:
    """`dask.distributed.Client` as the page calls it."""

    pool: ThreadPoolExecutor

    def __init__(self, *, n_workers: int, threads_per_worker: int) -> None:
        assert (n_workers, threads_per_worker) == (4, 1)

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()

    def get_executor(self, *, pure: bool) -> ThreadPoolExecutor:
        assert not pure
        return self.pool


def test_the_page_on_comparing_hands_runs_to_dask_and_to_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "comparing.md").read_text()
    dask, ray = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    definitions = blocks_of("comparing.md")[0].partition("comparison = compare")[0]
    monkeypatch.chdir(tmp_path)
    quick = {"steps": 2, "seeds": 1, "ways": ["plain"], "trainer": {"accelerator": "cpu"}, "progress": False}
    quick["num_inputs"] = 4
    space: dict[str, Any] = {}
    exec(definitions, space)
    space["compare"] = lambda *args, **kwargs: compare(*args, **(kwargs | quick))
    with ThreadPoolExecutor(1) as pool:
        fake = FakeRay(pool)
        FakeClient.pool = ThreadPoolExecutor(1)
        monkeypatch.setitem(sys.modules, "ray", fake)  # type: ignore[arg-type]
        monkeypatch.setitem(sys.modules, "dask", SimpleNamespace())  # type: ignore[arg-type]
        monkeypatch.setitem(sys.modules, "dask.distributed", SimpleNamespace(Client=FakeClient))  # type: ignore[arg-type]
        exec(dask, space)
        exec(ray, space)
    assert fake.calls == 1
    for found in (space["of_dask"], space["of_ray"]):
        assert [r["status"] for r in found.runs] == ["ok"]


def test_the_page_on_comparing_has_every_way_that_is_ready_made() -> None:
    page = (ROOT / "docs" / "comparing.md").read_text()
    given = {"symmetry": Symmetry("SO(3)", "1o", "1o", batch="1o"), "layers": "*"}
    given["teacher"] = GroupConvolution("C4", 4, 3)
    (table,) = re.findall(r"^\| way \|.*?\n\n", page, re.DOTALL | re.MULTILINE)
    assert set(re.findall(r'"(.+?)"', table)) == set(ready_made(given))
