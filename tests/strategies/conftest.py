"""Writes the table of docs/contract.md: what became of every strategy in every situation.

A test in the table is marked `@pytest.mark.situation("what happens")` and has a parameter whose id is the name of a
case. Passed is "yes", passed after `record_property("refused", why)` is "refused: why", skipped is the reason.
"""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _place_in_the_table(request: pytest.FixtureRequest) -> None:
    """Tell the report which row and column a test is, also where another process writes the table."""
    marker = request.node.get_closest_marker("situation")
    if marker is not None:
        request.node.user_properties.append(("situation", marker.args[0]))
