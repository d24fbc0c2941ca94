"""What RECM says before and after a training, which it never ends."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_equiv.strategies.recm.report import steps_to_forget, too_short
from tests.strategies.recm_by_hand import make_recm
from tests.strategies.toys import EachStep, Plain, loader, trainer


@pytest.mark.parametrize(
    ("gain", "threshold", "expected"),
    [(0.02, 1e-3, 461), (0.1, 1e-3, 93), (0.4, 1e-2, 16), (0.02, 2, 0), (0.02, 0, 0)],
)
def test_the_number_of_steps_follows_from_gain_and_threshold(gain: float, threshold: float, expected: int) -> None:
    steps = steps_to_forget(gain, threshold)
    assert steps == expected
    if steps:
        assert math.exp(-0.75 * gain * steps) < threshold <= math.exp(-0.75 * gain * (steps - 1))
        assert too_short("RECM", gain, threshold, steps) is None
        assert "write gain=" in str(too_short("RECM", gain, threshold, steps - 1))


@pytest.mark.parametrize(
    ("threshold", "start", "said"), [(1e-3, "relaxed", 1), (0.5, "relaxed", 0), (0, "equivariant", 0)]
)
def test_a_run_that_is_too_short_says_so_once(
    threshold: float, start: str, said: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        trainer(make_recm(threshold=threshold, start=start, gain=0.2)).fit(Plain(), loader())
    found = [message for message in caplog.messages if "Train for" in message]
    assert len(found) == said
    assert all("RECM: after 6 optimizer steps 0.41 of" in m and "Train for 47 steps" in m for m in found)


def test_a_report_that_cannot_be_written_keeps_the_training(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    taken = EachStep(lambda _: (Path(logger.log_dir) / "recm_report.json").mkdir(parents=True, exist_ok=True))
    module, strategy = Plain(), make_recm(finalize="keep", threshold=0.0)
    with pytest.warns(UserWarning, match="recm_report.json cannot be written: .* it is in `report`"):
        trainer(strategy, taken, logger=logger).fit(module, loader())
    assert type(module.net[0]).__name__ == "RelaxedLayer"
    assert len(strategy.report) == 2


def test_a_theta_that_is_no_number_is_null(tmp_path: Path) -> None:
    strategy, logger = make_recm(), CSVLogger(tmp_path)

    def spoil(_: object) -> None:
        for recurrence in strategy.recurrences.values():
            recurrence.critic.w.data.fill_(torch.nan)

    trainer(strategy, EachStep(spoil), logger=logger, max_steps=2).fit(Plain(), loader())
    report = json.loads((Path(logger.log_dir) / "recm_report.json").read_text(), parse_constant=lambda name: 1 / 0)
    assert report == strategy.report
    assert {v["theta"] for v in report} == {None}
