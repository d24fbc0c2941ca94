"""Tells the report of a test which cell of the table in docs/contract.md it is."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _cell(request: pytest.FixtureRequest) -> None:
    from tests.strategies.table import cell

    request.node.user_properties.extend(cell(request.node))
