"""A clone in a file, with what it depends on, so that a second run need not clone again."""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_equiv.layers.hidden_parameters import CONTAINER, own_parameters
from lightning_equiv.strategies.symmetry_cloning.inputs import Settings

_PLAIN = (bool, int, float, str, tuple)  # attributes in which teachers with the same weights differ


def fingerprint(teacher: nn.Module, student: nn.Module, settings: Settings, inputs: object) -> str:
    """What a clone depends on: the teacher with its weights, the student's layers, the settings and the inputs."""
    digest = hashlib.sha256()
    for name, tensor in teacher.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    plain = [(n, k, v) for n, m in teacher.named_modules() for k, v in vars(m).items() if isinstance(v, _PLAIN)]
    digest.update(repr((teacher, plain, getattr(teacher, "num_weights", 0), settings, inputs)).encode())
    modules = [(n, type(m).__name__, m.extra_repr()) for n, m in student.named_modules() if CONTAINER not in n]
    digest.update(repr((modules, [tuple(p.shape) for p in own_parameters(student).values()])).encode())
    return digest.hexdigest()


def read_clone(path: Path, key: str) -> dict[str, Any]:
    """What `write_clone` wrote under this key.

    Raises:
        ValueError: the file belongs to another clone, or cannot be read.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        found = saved["fingerprint"]
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} holds no clone that can be read ({error}): delete the file") from error
    if found != key:
        raise ValueError(
            f"the clone in {path} belongs to another teacher, student or setting: delete the file, or name another "
            "with cache=..."
        )
    state: dict[str, Any] = saved
    return state


def write_clone(path: Path, key: str, state: dict[str, Any]) -> None:
    """Keep a clone; whoever reads the file meanwhile, or writes it too, sees a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    os.close(handle)
    try:
        torch.save({"fingerprint": key, **state}, temporary)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
