"""Which inputs of a network no element moves, and whether one looks as if it should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lightning_equiv.audit.calls import AuditCall
from lightning_equiv.groups.product import as_group
from lightning_equiv.representations.invariant import NodeIndex
from lightning_equiv.symmetry.symmetry import Symmetry
from lightning_equiv.symmetry.tree import BOOKKEEPING, children, is_graph, tensors


def unmoved_inputs(network: Callable[..., Any], call: AuditCall, symmetry: Symmetry) -> list[dict[str, str]]:
    """The inputs that no element moves, each with what speaks against it, "" where nothing does.

    A forgotten unit cell, or velocities that are declared invariant, are what most wrong figures turn out to be.

    Args:
        network: whose inputs these are.
        call: one call of it.
        symmetry: which says how they move.

    Returns:
        Dicts with "input" (dotted name), "shape", "declared" and "doubt".
    """
    bound = symmetry.bind(network, call.args, call.kwargs)
    space = as_group(symmetry.group).space_dim or 0
    found = []
    moved = [t for t in bound.inputs.tensors if not t.representation.trivial]
    for t in bound.inputs.tensors:
        if t.representation.trivial and not isinstance(t.representation, NodeIndex):
            beside = any(t.x.shape == other.x.shape[: t.x.ndim] and other.x.ndim > t.x.ndim for other in moved)
            doubt = "" if beside or not t.x.is_floating_point() else _doubt(t.path, t.x, space)
            found.append(_row(t.path, t.x, repr(t.representation), doubt))
    named = {t.path for t in bound.inputs.tensors}
    for value in (*call.args, *call.kwargs.values()):
        if not is_graph(value):
            continue
        for key, x in (children(value) or {}).items():
            for path, tensor in tensors(x, key):
                if key not in BOOKKEEPING and path not in named and not any(p.endswith(f".{path}") for p in named):
                    doubt = "it is there, and the network does not read it: is it meant to know no cell?"
                    found.append(_row(path, tensor, "not declared, not read", doubt if _is_cell(path) else ""))
    return found


def _doubt(path: str, x: Tensor, space: int) -> str:
    if _is_cell(path):
        return "a unit cell turns with the positions: '1o' for its rows, Per('graph', '1o', rows=3)"
    if space and x.ndim > 1 and x.shape[-1] == space:
        return f"{space} components, declared invariant: is it a vector ('1o') or positions (Point())?"
    if space and x.ndim > 2 and x.shape[-2] == space:
        return f"{space} rows, declared invariant: are they vectors, IrrepsTensor('1o', dim=-2)?"
    return ""


def _is_cell(path: str) -> bool:
    return any(word in path.rpartition(".")[2].lower() for word in ("cell", "lattice", "box", "pbc_vectors"))


def _row(path: str, x: Tensor, declared: str, doubt: str) -> dict[str, str]:
    return {"input": path or "the input", "shape": str(tuple(x.shape)), "declared": declared, "doubt": doubt}
