"""A constructor's argument as what a checkpoint may hold: None, bool, int, float, str, list and dict."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from lightning_equiv.representations.representation import Representation
from lightning_equiv.symmetry.symmetry import Symmetry


def as_primitive(value: Any) -> Any:
    """`value` made of primitives, so that a checkpoint that is read with `weights_only=True` may hold it.

    numpy's numbers and enums of strings become numbers and strings, a tuple a list, a symmetry a dict of its arguments.

    Raises:
        TypeError: an object that no primitives stand for.
        ValueError: a symmetry that cannot be read back, e.g. with a callable in it.

    Examples:
        >>> as_primitive({"widths": (16, 32)})
        {'widths': [16, 32]}
        >>> as_primitive(Symmetry("SO(3)", inputs="1o", outputs="Invariant()"))["group"]
        'SO(3)'
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)  # an enum's own __str__ says its name
    if isinstance(value, list | tuple):
        return [as_primitive(item) for item in value]
    if isinstance(value, Mapping):
        return {as_primitive(key): as_primitive(item) for key, item in value.items()}
    if isinstance(value, Representation):
        return repr(value)
    if isinstance(value, Symmetry):
        names = [field.name for field in dataclasses.fields(value) if field.name != "group"]
        arguments = {"group": str(value.group), **{name: as_primitive(getattr(value, name)) for name in names}}
        if Symmetry(**arguments) == value:
            return arguments
    raise TypeError(f"expected primitives, or what can be written with them, got {value!r}")
