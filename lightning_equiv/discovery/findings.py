"""What was found about one group, and what it means in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lightning_equiv.discovery.candidates import Candidate
from lightning_equiv.discovery.conditional_test import ConditionalTest, TaskTest, told, why_not_told
from lightning_equiv.discovery.exact_test import ExactTest

Verdict = Literal["kept", "broken", "not told apart"]
_FAINT = 0.5  # share of inputs in one orientation; where only more would be found, nothing is said


@dataclass(frozen=True)
class Finding:
    """One group: the tests, and the verdicts.

    Attributes:
        candidate: the group.
        inputs: T1 of the law of inputs.
        inputs_p: its p-value, corrected for the number of groups.
        joint: T1 of inputs with labels.
        joint_p: corrected.
        conditional: T3, labels given inputs.
        conditional_p: corrected.
        task: T2.
        share: the least share of inputs in one orientation that T1 would have found; None where none would.
        error: of the network, sqrt( E |f(g x) - g f(x)|^2 / E |f(x)|^2 ).
        level: of the tests.
    """

    candidate: Candidate
    inputs: ExactTest
    inputs_p: float
    joint: ExactTest | None
    joint_p: float | None
    conditional: ConditionalTest | None
    conditional_p: float | None
    task: TaskTest | None
    share: float | None
    error: float | None
    level: float

    @property
    def name(self) -> str:
        """Of the group."""
        return self.candidate.name

    @property
    def on_inputs(self) -> Verdict:
        """S1: the law of inputs."""
        if self.inputs_p <= self.level:
            return "broken"
        return "kept" if self._would_tell else "not told apart"

    @property
    def on_labels(self) -> Verdict | None:
        """S2: how labels depend on inputs; by the exact test where the inputs are symmetric, by T3 where not."""
        if self.joint_p is None:
            return None
        if self.on_inputs != "broken":
            if self.joint_p <= self.level:
                return "broken"
            return "kept" if self._would_tell else "not told apart"
        if self.conditional is None or self.conditional_p is None or not told(self.conditional):
            return "not told apart"
        return "broken" if self.conditional_p <= self.level else "kept"

    @property
    def verdict(self) -> Verdict:
        """On inputs and labels together."""
        both = [v for v in (self.on_inputs, self.on_labels) if v is not None]
        return "broken" if "broken" in both else "not told apart" if "not told apart" in both else "kept"

    @property
    def _would_tell(self) -> bool:
        return self.share is not None and self.share <= _FAINT

    @property
    def words(self) -> str:
        """The verdict with its reason, in a sentence."""
        inputs = {
            "broken": f"inputs stand in preferred orientations (told from turned ones {self.inputs.auc:.0%} of the "
            "time)",
            "kept": "no deviation of the inputs found",
            "not told apart": "too few inputs to tell",
        }[self.on_inputs]
        if self.on_labels is None:
            return f"{inputs}."
        test = self.conditional
        if self.on_labels == "broken":
            by = "" if test is None or test.share < 5e-4 else f" ({test.share:.1%} of their variance)"
            labels = f"labels do not turn along with inputs{by}"
        elif self.on_labels == "kept":
            labels = "no deviation of the labels found"
        elif test is not None and not told(test):
            labels = why_not_told(test)
        elif self.on_inputs == "broken":
            labels = "no test of labels alone for this group"
        else:
            labels = "nor of the labels"
        return f"{inputs}; {labels}."

    def as_dict(self) -> dict[str, Any]:
        """All figures, as JSON has them."""
        t, c = self.task, self.conditional
        return {
            "group": self.name,
            "declare": self.candidate.declare,
            "verdict": self.verdict,
            "on_inputs": self.on_inputs,
            "on_labels": self.on_labels,
            "words": self.words,
            "inputs": _exact(self.inputs, self.inputs_p),
            "inputs_with_labels": None if self.joint is None else _exact(self.joint, self.joint_p),
            "labels_given_inputs": None
            if c is None
            else {
                "p": c.p,
                "corrected_p": self.conditional_p,
                "share": c.share,
                "open": c.open,
                "label": c.label,
                "direction": None if c.field is None else c.field.tolist(),
                "inputs": c.used,
            },
            "task": None if t is None else {"p": t.p, "ratio": t.ratio, "low": t.low, "high": t.high},
            "least_share_found": self.share,
            "network_error": self.error,
        }


def _exact(test: ExactTest, corrected: float | None) -> dict[str, Any]:
    return {
        "p": test.p,
        "corrected_p": corrected,
        "auc": test.auc,
        "low": test.low,
        "high": test.high,
        "total_variation_at_least": test.variation,
        "tested": test.tested,
    }
