"""What the page of results says of relaxing: what the runs tell apart, and whether a strict rival does as well."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from benchmarks.results import relaxation_pays

STRICT = [1.0, 1.1, 0.9, 1.05, 0.95]


def comparison(**ways: float) -> Any:
    """Errors that are those of strict times a factor, and a little noise."""
    noise = [1.0, 1.01, 0.99, 1.02, 0.98]
    table = {"strict": dict(enumerate(STRICT))}
    for way, factor in ways.items():
        table[way] = {i: factor * a * b for i, (a, b) in enumerate(zip(STRICT, noise, strict=True))}
    return SimpleNamespace(
        title="Relaxing a network",
        judged=lambda case: ["test_mse"],
        figures=lambda case, figure: table,
        mode=lambda case: "min",
    )


@pytest.mark.parametrize(
    ("ways", "text", "verdict"),
    [
        ({"ACE": 0.8}, "a network: ACE better by 20%", True),
        ({"ACE": 1.3}, "a network: ACE worse by 23%", False),
        ({"ACE": 1.0}, "a network: nothing was told apart from strict", None),
        (
            {"ACE": 0.8, "strict, restarted": 0.5},
            "a network: ACE better by 20%, strict, restarted better by 50%",
            False,
        ),
    ],
)
def test_sentences(ways: dict[str, float], text: str, verdict: bool | None) -> None:
    found = {"relaxation_network": comparison(**ways), "gravity": None}
    ((said, pays),) = relaxation_pays(found)
    assert (said, pays) == (text, verdict)
