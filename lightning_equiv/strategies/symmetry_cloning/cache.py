"""A clone in a file, with what it depends on, so that a second run need not clone again."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn

from lightning_equiv.layers.hidden_parameters import CONTAINER, own_parameters
from lightning_equiv.strategies.symmetry_cloning.inputs import Settings

_PLAIN = (bool, int, float, str, tuple)  # attributes in which teachers with the same weights differ


def fingerprint(teacher: nn.Module, student: nn.Module, settings: Settings, others: object) -> str:
    """What a clone depends on, as far as it can be read off: teacher, student, settings and others.

    What cannot, such as functions that they call, is found out when the clone is read, by its error.
    """
    digest = hashlib.sha256()
    for name, tensor in (*teacher.named_parameters(), *teacher.named_buffers()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    plain = [(n, k, v) for n, m in teacher.named_modules() for k, v in vars(m).items() if isinstance(v, _PLAIN)]
    modules = [(n, type(m).__name__, m.extra_repr()) for n, m in student.named_modules() if CONTAINER not in n]
    shapes = [tuple(p.shape) for p in own_parameters(student).values()]
    words = repr((teacher, plain, getattr(teacher, "num_weights", 0), settings, others, modules, shapes))
    digest.update(re.sub(r" at 0x[0-9a-f]+", "", words).encode())  # a function is elsewhere in every process
    return digest.hexdigest()


def read_clone(path: Path, key: str) -> dict[str, Any] | None:
    """What `write_clone` wrote under this key; None where there is no file.

    Raises:
        ValueError: the file belongs to another clone, or cannot be read.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        found, student, report = saved["fingerprint"], saved["student"], saved["report"]
        if not isinstance(student, Mapping) or not isinstance(report["clone_error"], float):
            raise TypeError("no weights, or no error beside them")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise ValueError(f"{path} holds no clone that can be read ({error}): delete the file") from error
    if found != key:
        raise ValueError(
            f"the clone in {path} belongs to another teacher, student or setting: delete the file, or name another "
            "with cache=..."
        )
    state: dict[str, Any] = saved
    return state


def check_confirmed(path: Path, kept: float, found: float, goal: float, same_inputs: bool) -> None:
    """ValueError where a clone that was read has another held-out error than when it was written.

    Args:
        path: its file.
        kept: the error in the file.
        found: the error now.
        goal: the error that is asked for.
        same_inputs: whether both are of the same inputs; batches of the data may be others, in another order.
    """
    most = 0.01 * max(kept, goal) if same_inputs else max(kept, goal)
    if not found - kept <= most or (same_inputs and kept - found > most):
        raise ValueError(
            f"the clone in {path} had a relative MSE of {kept:.2e} when it was written, and has {found:.2e} with this "
            "teacher, student, and inputs: they are not those that it was made with. Delete the file, or name another "
            "with cache=..."
        )


def write_clone(path: Path, key: str, state: dict[str, Any]) -> None:
    """Keep a clone; whoever reads the file meanwhile, or writes it too, sees a whole one. A warning if it fails."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"fingerprint": key, **state}, temporary)
        temporary.replace(path)
    except Exception as error:
        rank_zero_warn(f"the clone could not be kept in {path} ({error}): this run goes on, the next one clones again")
    finally:
        with suppress(OSError):  # its folder is none
            temporary.unlink(missing_ok=True)
