"""Ways of training: callbacks, a changed network, a changed setting; and those that are ready-made."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import lightning as L
from torch import nn

from lightning_equiv.compare.made import Spec, class_of, make, takes
from lightning_equiv.strategies.base import SymmetryCallback

PLAIN = "plain"


@dataclass(frozen=True)
class Way:
    """A way of training.

    Args:
        callbacks: each a callback, of which every run has a copy, or a spec `{"class_path": ..., "init_args": {...}}`.
            A spec's arguments `symmetry`, `network`, `target`, `layers` and `teacher` are those of the comparison,
            where its class takes them and it does not say them itself.
        model: another model than the comparison's, a factory or a spec.
        settings: keyword arguments of the model that differ from the comparison's; "REMUL.weight" is the argument
            `weight` of the callback `REMUL`, which must be a spec.
        sweep: setting -> values that are tried, all combinations; the best on validation is taken.
    """

    callbacks: Sequence[L.Callback | Spec] = ()
    model: Spec | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    sweep: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def trials(self) -> list[dict[str, Any]]:
        """The settings that a sweep tries; one, {}, without a sweep."""
        return [dict(zip(self.sweep, values, strict=True)) for values in product(*self.sweep.values())]

    def with_settings(self, settings: Mapping[str, Any]) -> Way:
        """This way with a trial's settings."""
        return replace(self, settings={**self.settings, **settings}, sweep={})

    def make_model(self, default: Spec) -> L.LightningModule:
        """A fresh model."""
        own = {name: value for name, value in self.settings.items() if "." not in name}
        return make(default if self.model is None else self.model, "model", **own)

    def make_callbacks(self, given: Mapping[str, Any], seed: int) -> list[L.Callback]:
        """Fresh callbacks; the seeds of strategies are raised by the run's.

        Args:
            given: see `ready_made`.
            seed: of the run.

        Raises:
            ValueError: a setting names a callback that is not there.
        """
        changes: dict[str, dict[str, Any]] = {}
        for name, value in self.settings.items():
            if "." in name:
                changes.setdefault(name.partition(".")[0], {})[name.partition(".")[2]] = value
        made = []
        for callback in self.callbacks:
            if isinstance(callback, L.Callback):
                made.append(copy.deepcopy(callback))
                continue
            filled = filled_in(callback, given)
            if "teacher" in filled:
                filled["teacher"] = _made_teacher(filled["teacher"], seed)
            own = changes.pop(getattr(class_of(callback, "callbacks"), "__name__", ""), {})
            made.append(make(callback, "callbacks", **{**filled, **own}))
        if changes:
            raise ValueError(
                f"settings of {sorted(changes)}: expected names of callbacks that are given as {{class_path, "
                f"init_args}}, such as 'REMUL.weight', got the callbacks {[type(c).__name__ for c in made]}"
            )
        for callback in made:
            if isinstance(callback, SymmetryCallback):
                callback.seed += seed
        return made


def filled_in(callback: L.Callback | Spec, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given of the arguments that a callback's spec takes and does not say itself."""
    if isinstance(callback, L.Callback):
        return {}
    said = callback.get("init_args") or {} if isinstance(callback, Mapping) else getattr(callback, "keywords", {})
    return {k: v for k, v in given.items() if k not in said and takes(callback, k, "callbacks")}


def ready_made(given: Mapping[str, Any]) -> dict[str, Way]:
    """The ways that are made of the strategies there are, as far as what is given allows.

    "plain" has no callback. Each class of strategies names its own, `SymmetryCallback.ready_made`; those are left out
    that need something which is not given: `layers` or a `teacher`, or, to augment, how the symmetry moves a batch.

    Args:
        given: those of `symmetry`, `network`, `target`, `layers` and `teacher` that are known.

    Examples:
        >>> from lightning_equiv import Symmetry
        >>> symmetry = Symmetry("SO(3)", "1o", "1o")
        >>> list(ready_made({"symmetry": symmetry, "network": "net"}))
        ['plain', 'REMUL(0.1)', 'REMUL(1)', 'REMUL(10)', 'REMUL(GradNorm)', 'REMUL(5 %)']
    """
    ways = {PLAIN: Way()}
    for strategy in _strategies(SymmetryCallback):  # type: ignore[type-abstract]
        for name, arguments in strategy.__dict__.get("ready_made", {}).items():
            needed = [
                p.name
                for p in inspect.signature(strategy).parameters.values()
                if p.default is p.empty and p.name not in arguments
            ]
            if all(given.get(n) is not None for n in needed):
                path = f"{strategy.__module__}.{strategy.__qualname__}"
                way = Way([{"class_path": path, "init_args": dict(arguments)}])
                with suppress(ValueError):  # the strategy's own check: augmentation needs to know how a batch moves
                    way.make_callbacks(without_teacher(given), 0)
                    ways[name] = way
    return ways


def without_teacher(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, with something in the place of a teacher that is still to be made, for a check."""
    teacher = given.get("teacher")
    return dict(given) if teacher is None or isinstance(teacher, nn.Module) else {**given, "teacher": _SomeTeacher()}


class _SomeTeacher(nn.Identity):
    in_shape = ()


def as_ways(ways: Any, given: Mapping[str, Any]) -> dict[str, Way]:
    """Ways as users write them.

    Args:
        ways: None takes all that are ready-made; names of those; or name -> a `Way`, a list of callbacks, a mapping of
            a `Way`'s arguments, or None for the one that is ready-made by this name.
        given: see `ready_made`.

    Raises:
        ValueError: a name that is not ready-made, or something that is no way.
    """
    known = ready_made(given)
    if ways is None:
        return known
    if isinstance(ways, str):
        ways = [ways]
    if not isinstance(ways, Mapping):
        ways = dict.fromkeys(ways)
    return {str(name): _as_way(str(name), way, known) for name, way in ways.items()}


def _as_way(name: str, way: Any, known: Mapping[str, Way]) -> Way:
    if isinstance(way, Way):
        return way
    if way is None:
        if name not in known:
            raise ValueError(
                f"way {name!r} is not ready-made from what is given: expected one of {list(known)}, or what it is, "
                f"{name!r}: Way([REMUL(...)]); REMUL needs a `symmetry`, augmentation one with `batch`, "
                "ConstraintRelaxation, ACE, RECM and RPP need `layers` as well, SymmetryCloning a `teacher`"
            )
        return known[name]
    if isinstance(way, L.Callback):
        return Way([way])
    if isinstance(way, Mapping) and set(way) <= {"callbacks", "model", "settings", "sweep"}:
        return Way(**way)
    if isinstance(way, Sequence) and not isinstance(way, str):
        return Way(way)
    raise ValueError(
        f"way {name!r}: expected a Way, a list of callbacks, or a mapping with callbacks, model, settings or sweep, "
        f"got {way!r}"
    )


def _made_teacher(teacher: Any, seed: int) -> nn.Module:
    """A network of the run's own; made, where it is a spec, for the run's seed if it asks for one."""
    if isinstance(teacher, nn.Module):
        return copy.deepcopy(teacher)
    return make(teacher, "teacher", **({"seed": seed} if takes(teacher, "seed", "teacher") else {}))


def _strategies(cls: type[SymmetryCallback]) -> Iterator[type[SymmetryCallback]]:
    for strategy in cls.__subclasses__():
        yield strategy
        yield from _strategies(strategy)
