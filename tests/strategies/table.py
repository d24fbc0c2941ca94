"""The tables of docs/contract.md: what became of every strategy in every situation, from the tests themselves.

A test in the table is marked `@pytest.mark.situation("what happens")` and has a parameter `case`. Passed is "yes",
passed after `record_property("refused", why)` is "refused: why", after `record_property("words", ..)` these words;
skipped is the reason.

    python -m tests.strategies.table    runs the tests and writes docs/results/contract.md and composition.md
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).parents[2] / "docs/results"
FILES = [f"tests/strategies/test_{name}.py" for name in ("contract", "faults", "sharded")]
COMMAND = "python -m tests.strategies.table"


def cell(item: pytest.Function) -> list[tuple[str, str]]:
    """(situation, strategy, variant) of a test, as report properties; nothing for a test that is in no table."""
    marker = item.get_closest_marker("situation")
    if marker is None:
        return []
    params = item.callspec.params
    case = params["case"]
    variant = case.name.partition(", ")[2]
    return [("situation", marker.args[0].format(**params)), ("strategy", case.kind), ("variant", variant)]


class Collector:
    """Remembers what every test says."""

    def __init__(self) -> None:
        self.cells: dict[tuple[str, str], dict[str, list[str]]] = {}  # (situation, strategy) -> outcome -> variants

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take a report's word once the test has run, or failed to."""
        properties: dict[str, Any] = dict(report.user_properties)
        if "situation" not in properties or not (report.when == "call" or report.failed):
            return
        if report.skipped:
            outcome = str(report.longrepr[2]).removeprefix("Skipped: ")
        elif report.failed:
            outcome = "FAILED"
        else:
            refused = f"refused: {properties['refused']}" if "refused" in properties else "yes"
            outcome = properties.get("words", refused)
        place = self.cells.setdefault((properties["situation"], properties["strategy"]), {})
        place.setdefault(outcome, []).append(properties["variant"])

    def rows(self) -> list[list[str]]:
        """The table, situations in the order in which they were tested."""
        situations = list(dict.fromkeys(situation for situation, _ in self.cells))
        strategies = list(dict.fromkeys(strategy for _, strategy in self.cells))
        body = [[s, *(self._words(self.cells.get((s, strategy), {})) for strategy in strategies)] for s in situations]
        return [["situation", *strategies], *body]

    @staticmethod
    def _words(outcomes: dict[str, list[str]]) -> str:
        if not outcomes:
            return "not run"
        if len(outcomes) == 1:
            return next(iter(outcomes))
        return "; ".join(f"{' / '.join(variants)}: {outcome}" for outcome, variants in outcomes.items())


def main() -> int:
    """Run, and write what came of it."""
    collector = Collector()
    itself = f"{FILES[0]}::test_the_published_tables_are_those_of_the_tests"
    status = pytest.main(["-q", "--deselect", itself, *FILES], plugins=[collector])
    (RESULTS / "contract.md").write_text(markdown(collector.rows()))
    (RESULTS / "composition.md").write_text(composition())
    return int(status)


def composition() -> str:
    """The table of pairs, from the one that the tests of pairs run over."""
    from tests.strategies.cases import PAIRS

    return markdown([["pair", "", "together"], *([pair.first, pair.second, pair.words] for pair in PAIRS)])


def markdown(rows: list[list[str]]) -> str:
    """A table under the command that makes it."""
    lines = [f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])]
    return f"`{COMMAND}`\n\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
