"""What an audit reads from files: the weights of a model, a module by its class, a saved batch."""

from __future__ import annotations

import argparse
import pickle
from collections import defaultdict
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=L.LightningModule)
_SHOWN = 3  # keys in a message


def existing(path: str | Path, what: str) -> Path:
    """The path of a file.

    Args:
        path: of the file.
        what: the setting that it came from, for the message.

    Raises:
        ValueError: there is no such file.
    """
    path = Path(path)
    if path.is_file():
        return path
    there = path.parent.is_dir()
    held = f"{path.parent} has {_some(sorted(p.name for p in path.parent.iterdir()))}" if there else ""
    raise ValueError(f"{what}: {path} is no file; {held or f'there is no folder {path.parent}'}")


def load_weights(model: nn.Module, path: Path, trusted: bool = False) -> None:
    """Load weights into a model, from a Lightning checkpoint or a state dict.

    Where all keys of the model are in the file under one prefix, such as "net.", those are taken.

    Args:
        model: the model; its weights are replaced.
        path: of the file.
        trusted: read objects of any class, which runs code that the file names.

    Raises:
        ValueError: the file holds something else, other keys or other shapes.
    """
    held = _read(path, "checkpoint", trusted)
    state = held["state_dict"] if isinstance(held, Mapping) and "state_dict" in held else held
    if not isinstance(state, Mapping) or not any(isinstance(x, Tensor) for x in state.values()):
        there = f"the keys {_some(map(str, held))}" if isinstance(held, Mapping) else f"a {type(held).__name__}"
        raise ValueError(
            f"checkpoint: expected a Lightning checkpoint, which has a 'state_dict', or a state dict in {path}, got "
            f"{there}: write it by trainer.save_checkpoint(path) or torch.save(model.state_dict(), path)"
        )
    wanted = set(model.state_dict())
    prefix = _prefix(wanted, set(state), path)
    own = {key[len(prefix) :]: x for key, x in state.items() if key.startswith(prefix)}
    try:
        missing, unexpected = model.load_state_dict(own, strict=False)
    except RuntimeError as error:  # other shapes
        raise ValueError(f"checkpoint: {path} does not fit the model: {' '.join(str(error).split())}") from None
    if not missing and not unexpected:
        return
    lacks = [f"{what} {_some(keys)}" for what, keys in (("lacks", missing), ("has besides", unexpected)) if keys]
    raise ValueError(
        f"checkpoint: the keys of {path} are not those of {type(model).__name__}: the file {' and '.join(lacks)}"
        + (f" (under {prefix!r})" if prefix else "")
        + ": make the model with the settings that it was trained with, or give as `model` the class path alone of the "
        "LightningModule that was trained"
    )


def load_module(cls: type[Module], path: Path, trusted: bool = False) -> Module:
    """The module that a Lightning checkpoint holds, on the CPU, by `cls.load_from_checkpoint`.

    Args:
        cls: its class.
        path: of the checkpoint.
        trusted: read objects of any class, which runs code that the file names.

    Raises:
        ValueError: the checkpoint does not hold what the class needs.
    """
    _read(path, "checkpoint", trusted)  # says what is wrong with the file itself
    try:
        return cls.load_from_checkpoint(path, map_location="cpu", weights_only=not trusted)
    except (RuntimeError, TypeError, ValueError, KeyError, argparse.ArgumentError) as error:
        raise ValueError(
            f"checkpoint: {cls.__name__}.load_from_checkpoint({str(path)!r}) failed, {type(error).__name__}: "
            f"{' '.join(str(error).split())}; or write model: {{class_path: ..., init_args: {{...}}}}, into which the "
            "weights are loaded"
        ) from None


def read_batch(path: Path, trusted: bool = False) -> Any:
    """The batch that `torch.save` wrote: tensors, dicts, tuples, lists, numbers, strings, and PyG's Data and Batch.

    Args:
        path: of the file.
        trusted: read objects of any class, which runs code that the file names.

    Raises:
        ValueError: the file holds objects of other classes.
    """
    return _read(path, "batch", trusted)


def _prefix(wanted: set[str], held: set[str], path: Path) -> str:
    """What stands before every key of the model in the file; where no prefix is right, that of most keys."""
    prefixes = {key[: -len(name)] for key in held for name in wanted if key == name or key.endswith(f".{name}")}
    found = {p: sum(p + name in held for name in wanted) for p in prefixes}
    if found.get("") == len(wanted):
        return ""
    whole = sorted(p for p, n in found.items() if n == len(wanted) and not _others(p, wanted, held))
    if len(whole) > 1:
        raise ValueError(
            f"checkpoint: {path} holds the keys of the model more than once, under {_some(whole)}: give as `model` the "
            "LightningModule that was trained, and as `network` the name of the sub-module that is meant"
        )
    return whole[0] if whole else max(sorted(found), key=found.__getitem__, default="")


def _others(prefix: str, wanted: set[str], held: set[str]) -> bool:
    """Whether there are keys under a prefix that the model does not have."""
    return any(key.startswith(prefix) and key[len(prefix) :] not in wanted for key in held)


def _read(path: Path, what: str, trusted: bool) -> Any:
    """What a file of torch holds, on the CPU; objects of other classes than torch's only where it is trusted."""
    unknown = _unknown(path)
    graphs = any(name.startswith("torch_geometric.") for name in unknown)
    try:
        with _graphs() if graphs and not trusted else nullcontext():
            unknown = _unknown(path)
            return torch.load(path, map_location="cpu", weights_only=not trusted)
    except Exception as error:  # whatever bytes can lead to
        if isinstance(error, pickle.UnpicklingError) and unknown and not trusted:
            raise ValueError(
                f"{what}: {path} holds objects of {_some(unknown)}, which run code when they are read; expected "
                "tensors, containers of them, PyG's Data and Batch: save it without the others or, if the file is your "
                "own, write trusted: true"
            ) from None
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ValueError(f"{what}: torch.load cannot read {path}, {reason}: write it by torch.save") from None


def _unknown(path: Path) -> list[str]:
    """Names of the classes and functions in a file that torch does not read unless told."""
    with suppress(Exception):  # a format from before torch 1.6, or no file of torch: torch.load finds out
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    return []


def _graphs() -> AbstractContextManager[Any]:
    """PyG's Data and Batch are made of tensors, and may be read."""
    from torch_geometric.data import Batch, Data
    from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
    from torch_geometric.data.storage import GlobalStorage

    def batch(cls: type, base: type) -> Any:
        if cls is not Batch or base is not Data:
            raise pickle.UnpicklingError(f"expected a Batch of Data, got one of {base.__name__}")
        return Batch(_base_cls=Data)

    class Getter:
        """In the place of PyG's, an instance of which is called, which torch's safe reader does not allow."""

        def __new__(cls) -> Any:
            return batch

    classes = [Data, Batch, type(batch(Batch, Data)), DataEdgeAttr, DataTensorAttr, GlobalStorage, defaultdict]
    named = [(Getter, "torch_geometric.data.batch.DynamicInheritanceGetter"), (batch, "torch_geometric._batch")]
    known = torch.serialization.get_safe_globals()  # what is allowed already is not to be forbidden afterwards
    return torch.serialization.safe_globals([x for x in (*classes, *named) if x not in known])


def _some(names: Any) -> str:
    """The first of some names."""
    names = list(names)
    return ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
