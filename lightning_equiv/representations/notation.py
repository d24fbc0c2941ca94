"""How a representation is written: as a string, as irreps or as a callable."""

from __future__ import annotations

import ast
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

from e3nn import o3
from torch import Tensor

from lightning_equiv.groups.group import GroupElement
from lightning_equiv.representations.representation import Custom, IrrepsTensor, Representation

RepresentationLike: TypeAlias = Representation | str | o3.Irreps | Callable[[GroupElement, Tensor], Tensor]


def as_representation(value: RepresentationLike) -> Representation:
    """The representation that a string, e3nn irreps or a callable stands for.

    A string is either irreps ("16x0e+1o") or what is typed in Python ("Point()", "IrrepsTensor('1o', dim=2)",
    "Permuted(1) @ '1o'"), so that it can be written in a configuration file.

    Raises:
        ValueError: the string is neither.
        TypeError: the value is none of these.

    Examples:
        >>> as_representation("1o"), as_representation("Permuted(1) @ '1o'")
        (IrrepsTensor('1x1o'), Permuted(dim=1) @ IrrepsTensor('1x1o'))
    """
    if isinstance(value, Representation):
        return value
    if isinstance(value, o3.Irreps | o3.Irrep):
        return IrrepsTensor(value)
    if isinstance(value, str):
        return _parse(value)
    if isinstance(value, type):
        raise TypeError(f"expected a representation, got the class {value.__name__}: write {value.__name__}(...)")
    if callable(value):
        return Custom(value)
    raise TypeError(f"expected a representation, irreps such as '1o' or a callable (g, x) -> x', got {value!r}")


def _parse(text: str) -> Representation:
    with suppress(ValueError):
        return IrrepsTensor(text)
    try:
        return _from_syntax(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, TypeError, KeyError, RecursionError, MemoryError):  # the last two: absurdly nested
        names = ", ".join(f"{name}(...)" for name in sorted(_named()))
        raise ValueError(
            f"no representation is written {text!r}: expected irreps such as '16x0e+1o', or one of {names}"
        ) from None


def _from_syntax(node: ast.expr) -> Representation:
    """A representation from its parsed repr; only known names and literals are understood, nothing is evaluated."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
        return _from_syntax(node.left) @ _from_syntax(node.right)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return IrrepsTensor(node.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if any(k.arg is None for k in node.keywords):
            raise ValueError("**")
        keywords = {str(k.arg): _argument(k.value) for k in node.keywords}
        return _named()[node.func.id](*map(_argument, node.args), **keywords)
    raise ValueError(ast.dump(node))


def _argument(node: ast.expr) -> object:
    return _from_syntax(node) if isinstance(node, ast.Call | ast.BinOp) else ast.literal_eval(node)


def _named() -> dict[str, Callable[..., Representation]]:
    found, stack = {}, [Representation]
    while stack:
        for cls in stack.pop().__subclasses__():
            stack.append(cls)
            found[cls.__name__] = cls
    return {name: cls for name, cls in found.items() if cls.__module__.startswith(__package__) and cls is not Custom}
