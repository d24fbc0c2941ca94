"""What a symmetry report says: verdicts, figures, a picture, and how it was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_equiv.discovery.conditional_test import told
from lightning_equiv.discovery.exact_test import ExactTest
from lightning_equiv.discovery.findings import Finding
from lightning_equiv.report.document import Document, Picture, Section, Table, shown

_NONE = "–"


def document_of(
    findings: Sequence[Finding], conclusion: str, advice: Sequence[str], measured: dict[str, Any], notes: Sequence[str]
) -> Document:
    """The report as a document."""
    whole = findings[-1]
    labelled = whole.joint is not None
    sections = [
        Section("verdict", "Which symmetry", (conclusion, *advice, *notes), (_verdicts(findings, labelled),)),
        Section("inputs", "The law of the inputs", _INPUTS, (_exact(findings, False),), (_picture(findings),)),
    ]
    if labelled:
        tables = (_exact(findings, True), _conditional(findings))
        sections.append(Section("labels", "How labels depend on inputs", _LABELS, tables))
    if any(f.error is not None for f in findings):
        rows = tuple((f.name, shown(f.error)) for f in findings)
        table = Table("The network's own error", ("group", "|f(g x) - g f(x)| / |f(x)|"), rows)
        sections.append(Section("network", "The network", (), (table,)))
    sections.append(Section("measured", "How it was measured", _HOW, (_settings(measured),)))
    headline = [("inputs", f"{measured['independent']}", "independent")]
    headline += [(f.name, f.verdict, "") for f in findings[-3:]]
    return Document("Which symmetry the data have", f"Group {whole.name}", "", tuple(headline), tuple(sections))


_INPUTS = (
    "Where the group leaves the law of inputs as it is, an input and copies of it that the group has moved cannot be "
    "told apart. p is exact for any number of inputs. The AUC is how often a learned score is higher for an input than "
    "for a moved one: 0.5 is no difference, 1 always.",
)
_LABELS = (
    "The first table is the same test with the labels moved along: small where the inputs are not symmetric, or where "
    "the labels do not turn along with them. The second asks for the labels alone, whatever the inputs: labels are "
    "turned back by the orientation of their input, and may then depend on its shape only. Its p is approximate, too "
    "small by a factor of about 2. The error ratio is that of a small learner which sees the orientation, in that of "
    "one which sees another: below 1 the orientation is of use.",
)
_HOW = (
    "One half of the independent inputs trained the score, the other half was tested. p-values are corrected for the "
    "number of groups by Holm's method. The least share found is simulated: of data that the group has made symmetric, "
    "so many put into one orientation would have been found four times of five.",
)


def _verdicts(findings: Sequence[Finding], labelled: bool) -> Table:
    header = ("group", "verdict", "inputs", *(("labels",) if labelled else ()), "in words")
    rows = []
    for f in findings:
        labels = (f.on_labels or _NONE,) if labelled else ()
        rows.append((f.name, f.verdict, f.on_inputs, *labels, f.words))
    return Table("The groups, small to large", header, tuple(rows))


def _exact(findings: Sequence[Finding], joint: bool) -> Table:
    header = ("group", "p", "corrected", "AUC", "total variation", *(() if joint else ("least share found",)))
    rows = []
    for f in findings:
        test, p = (f.joint, f.joint_p) if joint else (f.inputs, f.inputs_p)
        assert isinstance(test, ExactTest)
        share = () if joint else ("more than all" if f.share is None else f"{f.share:.0%}",)
        auc = f"{test.auc:.2f} ({test.low:.2f} to {test.high:.2f})"
        rows.append((f.name, shown(test.p), shown(p), auc, f"≥ {test.variation:.2f}", *share))
    title = "Inputs with their labels, against moved ones" if joint else "Inputs against moved ones"
    return Table(title, header, tuple(rows), "Intervals of 95 %.")


def _conditional(findings: Sequence[Finding]) -> Table:
    header = ("group", "p", "corrected", "share of variance", "reacts most", "drawn along", "error ratio")
    rows = []
    for f in findings:
        c, t = f.conditional, f.task
        if c is None or t is None:
            rows.append((f.name, *[_NONE] * 6))
            continue
        along = _NONE if c.field is None else f"({', '.join(f'{v + 0.0:.2f}' for v in c.field.tolist())})"
        p = (shown(c.p), shown(f.conditional_p)) if told(c) else ("not told", _NONE)
        ratio = f"{t.ratio:.2f} ({t.low:.2f} to {t.high:.2f})"
        rows.append((f.name, *p, f"{c.share:.1%}", c.label, along, ratio))
    note = "–: the group gives an input no orientation that these tests know."
    return Table("Labels given inputs", header, tuple(rows), note)


def _picture(findings: Sequence[Finding]) -> Picture:
    series = {"inputs": [f.inputs for f in findings]}
    if findings[-1].joint is not None:
        series["inputs with labels"] = [f.joint for f in findings if f.joint is not None]
    data = {
        "labels": [f.name for f in findings],
        "series": {
            name: {"value": [t.auc for t in tests], "low": [t.low for t in tests], "high": [t.high for t in tests]}
            for name, tests in series.items()
        },
        "x_label": "group",
        "y_label": "AUC",
        "horizontal": True,
    }
    caption = "How well the data are told from moved ones: 0.5 is not at all."
    return Picture("told_from_moved_ones", "bars", data, caption)


def _settings(measured: dict[str, Any]) -> Table:
    return Table("Settings", ("", "value"), tuple((name, str(value)) for name, value in measured.items()))
