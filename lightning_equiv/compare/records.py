"""The results of a comparison: a file of JSON lines, a run each, that is only ever appended to."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

Record = dict[str, Any]
"""One run, as JSON has it.

| key | is |
|---|---|
| `kind` | "run", "trial" of a sweep; "cost" of a way has other keys, see `costs.py` |
| `case`, `way`, `seed` | which run; `case` is "" where there is one only |
| `trial` | of a sweep: its number; else None |
| `settings` | keyword arguments that a sweep chose, {} without one |
| `status`, `message` | "ok"; "diverged": the monitored quantity was not finite; "failed": an exception, and which |
| `asked_steps`, `steps` | optimizer steps that were wanted, and taken |
| `seconds`, `cpu_seconds` | of training, without validation, resumed parts included |
| `peak_memory` | MiB: of the GPU, else of the process |
| `parameters` | of the module |
| `metrics` | name -> number: what validation (of the best weights) and test logged, and what `extra` returned |
| `equivariance_error` | name of a test set -> relative equivariance error |
| `profile` | {"angle": degrees, "error": relative errors}, or None where the group has no rotations |
| `inference_ms` | of the network, an input, without gradients |
| `curve` | logged name -> [[step, seconds, value], ...] |
| `monitor`, `mode` | what chose the best weights, "min" or "max" |
| `judged` | names in `metrics` that the ways are compared by |
| `batches` | hashes of the first 1, 2, 4, 8, ... training batches |
| `trained_on` | share of the test inputs that were among the training inputs; None where that was not looked at |
| `fingerprint` | hash of what must be equal for runs to be compared: data, steps, monitor, Trainer |
| `way_fingerprint` | hash of what the way is |
| `versions` | package -> version, and the commit of the working tree |
| `device`, `threads`, `date` | where and when |

A record whose status is not "ok" has what was known when it ended.
"""


class RunKey(NamedTuple):
    """What tells one run from another."""

    case: str
    way: str
    seed: int
    trial: int | None = None


def key_of(record: Record) -> RunKey:
    """The key of a record."""
    return RunKey(record["case"], record["way"], record["seed"], record["trial"])


def append(path: Path, record: Record) -> None:
    """Append one line, at once and as a whole, also where several processes append.

    Args:
        path: of the file; its folder is made.
        record: as above.
    """
    line = json.dumps(record) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"), path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else f"\n{line}"  # a process was killed while it wrote
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[Record]:
    """All records of a file; of several with one key the last. A line that a killed process began is left out.

    Args:
        path: of the file; none yet reads as no records.

    Raises:
        ValueError: a line in the middle is no record.
    """
    if not path.exists():
        return []
    records: dict[RunKey, Record] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # begun by a process that was killed
        if not isinstance(record, dict) or "kind" not in record:
            raise ValueError(f"{path}, line {number}: expected a run of a comparison, a JSON object with 'kind'")
        records[key_of(record)] = record
    return list(records.values())


def only(records: Sequence[Record], **wanted: Any) -> list[Record]:
    """Those whose keys have these values."""
    return [r for r in records if all(r[key] == value for key, value in wanted.items())]
