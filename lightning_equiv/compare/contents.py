"""From the results of a comparison to the document that is read."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import Any

from lightning_equiv.audit.words import enumerated
from lightning_equiv.compare.drawings import case_pictures, pictures_of_cases
from lightning_equiv.compare.records import Record
from lightning_equiv.compare.results import Results
from lightning_equiv.compare.tables import MANY, choices, result_tables
from lightning_equiv.report.document import Document, Section, Table
from lightning_equiv.report.markdown import escape, table_rows


def document_of(results: Results, title: str = "") -> Document:
    """The page of a comparison.

    Args:
        results: the runs.
        title: of the page.
    """
    sections = [make(results) for make in (_advice, _results, _pictures, _sweep, _failures, _how)]
    counts = [f"{len(results.ways)} ways", f"{len(results.seeds)} seeds", f"{len(results.cases)} cases"]
    counts = [f"one {text[2:-1]}" if text.startswith("1 ") else text for text in counts]
    several = counts if len(results.cases) > 1 else counts[:2]
    compared = f", compared with `{results.reference}`" if len(results.ways) > 1 else ""
    subtitle = f"{enumerated(several)}{compared}"
    found = tuple(section for section in sections if section is not None)
    return Document(title or "Which way of training?", subtitle, "", (), found)


def excerpt(results: Results, picture: str = "") -> str:
    """Advice and tables as Markdown without headings, for a page of others' making.

    Args:
        results: the runs.
        picture: where the saved picture lies, as the page links it; "" for none.
    """
    tables = result_tables(results)
    blocks = [escape(paragraph) for paragraph in _paragraphs(results)]
    for table in tables:
        blocks += [f"**{escape(table.title)}**"] if len(tables) > 1 else []
        blocks.append(table_rows(table))
    blocks += [escape(tables[-1].note)]
    blocks += [f"![The figures of each way, drawn](<{picture}>)"] if picture else []
    return "\n\n".join(block for block in blocks if block) + "\n"


def _advice(results: Results) -> Section | None:
    text = _paragraphs(results)
    return Section("advice", "Advice", text) if text else None


def _paragraphs(results: Results) -> tuple[str, ...]:
    """Warnings, then advice: a sentence each, or a case each."""
    if len(results.cases) == 1:
        return (*results.warnings, *results.advice)
    each = [(case, " ".join(results.advice_on(case))) for case in results.cases]
    return (*results.warnings, *(f"{case}: {advice}" for case, advice in each if advice))


def _results(results: Results) -> Section:
    return Section("results", "Results", (), result_tables(results))


def _pictures(results: Results) -> Section | None:
    if len(results.cases) > MANY:
        pictures = pictures_of_cases(results)
    else:
        # All of one kind together: what is compared between cases stands side by side.
        kinds = zip_longest(*(case_pictures(results, case) for case in results.cases))
        pictures = tuple(picture for kind in kinds for picture in kind if picture is not None)
    return Section("pictures", "Pictures", (), (), pictures) if pictures else None


def _sweep(results: Results) -> Section | None:
    table = choices(results)
    return Section("sweep", "Settings", (), (table,)) if table else None


def _failures(results: Results) -> Section | None:
    if not results.failures:
        return None
    several = len(results.cases) > 1
    rows = tuple(
        (f.way, *([f.case] if several else []), str(f.seed), f.status, f.message or "–") for f in results.failures
    )
    header = ("", *(["case"] if several else []), "seed", "status", "message")
    table = Table("Runs without figures", header, rows)
    return Section("failures", "What failed", (), (table,))


def _how(results: Results) -> Section:
    """What was the same for all runs, and with what they were made."""
    runs = results.runs
    text = []
    if prints := [r["fingerprint"] for r in runs if r.get("fingerprint")]:
        which = ", ".join(f"`{p}`" for p in dict.fromkeys(prints))
        whose = " of a case" if len(results.cases) > 1 else ""
        text.append(f"All runs{whose} have the same data, steps, monitor and Trainer (fingerprint {which}).")
    if results.warnings:
        text += results.warnings
    elif len(results.ways) > 1 and any(r.get("batches") for r in runs):
        text.append("With one seed all ways were trained on the same batches.")
    sizes = {r["parameters"] for r in runs if r.get("parameters")}
    rows = {
        "ways": ", ".join(results.ways),
        "reference": results.reference if len(results.ways) > 1 else "",
        "seeds": ", ".join(map(str, results.seeds)),
        "steps": _distinct(results, lambda r: r.get("steps") if r["status"] == "ok" else None),
        "best weights chosen by": _distinct(results, lambda r: r.get("monitor") and f"{r['monitor']}, {r['mode']}"),
        "parameters": f"{sizes.pop():,}" if len(sizes) == 1 else "",  # else in the tables
        "device": _distinct(results, lambda r: r.get("device")),
        "threads": _distinct(results, lambda r: r.get("threads")),
        "versions": _distinct(results, lambda r: ", ".join(f"{n} {v}" for n, v in (r.get("versions") or {}).items())),
    }
    table = Table("Settings of the runs", ("", "value"), tuple((name, value) for name, value in rows.items() if value))
    return Section("how", "How it was made", tuple(text), (table,))


def _distinct(results: Results, value: Callable[[Record], Any]) -> str:
    """A setting of all runs; of one that differs, each value with the ways that have it."""
    ways: dict[str, list[str]] = {}
    for r in results.runs:
        found = value(r)
        if found not in (None, "") and r["way"] not in ways.setdefault(str(found), []):
            ways[str(found)].append(r["way"])
    if len(ways) <= 1 or all(len(own) == len(results.ways) for own in ways.values()):
        return "; ".join(ways)
    return "; ".join(f"{found} ({enumerated(own)})" for found, own in ways.items())
