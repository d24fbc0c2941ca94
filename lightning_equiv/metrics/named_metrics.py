"""Metrics of a monitor, under the names by which it logs them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torchmetrics import Metric


def named_metrics(metrics: Sequence[Metric] | Mapping[str, Metric]) -> dict[str, Metric]:
    """Metrics by name: that of a dict, or the `log_name` of their classes, "spectrum" of an EquivarianceSpectrum.

    Raises:
        TypeError: something else than a list or a dict of torchmetrics Metrics.
        ValueError: two of one name, or one metric twice.
    """
    if isinstance(metrics, str) or not isinstance(metrics, Sequence | Mapping):
        raise TypeError(
            f"expected `metrics` to be a list of torchmetrics Metrics, or a dict of names to them, got {metrics!r}"
        )
    pairs = list(metrics.items()) if isinstance(metrics, Mapping) else [(log_name(m), m) for m in metrics]
    for name, metric in pairs:
        if not isinstance(metric, Metric):
            raise TypeError(f"expected a torchmetrics Metric in `metrics`, got {metric!r}")
        if not isinstance(name, str) or not name:
            raise TypeError(f"expected names of `metrics` to be strings, got {name!r}")
    if len({id(metric) for _, metric in pairs}) < len(pairs):
        raise ValueError("a metric is in `metrics` twice, and would count every batch twice")
    if clash := clash_of([name for name, _ in pairs]):
        raise ValueError(
            f"two metrics would be logged as {clash!r}: give them names, metrics={{'{clash}': ..., '{clash}_2': ...}}"
        )
    return dict(pairs)


def log_name(metric: object) -> str:
    """What a metric is called in a log: its class's `log_name`, or the class's own name in small letters.

    Examples:
        >>> from lightning_equiv import LieDerivativeError, Symmetry
        >>> from torchmetrics import MeanSquaredError
        >>> [log_name(metric) for metric in (LieDerivativeError(Symmetry("SO(3)", "1o", "1o")), MeanSquaredError())]
        ['lie_derivative', 'mean_squared_error']
    """
    own = getattr(type(metric), "log_name", None)
    return own if isinstance(own, str) else re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", type(metric).__name__).lower()


def clash_of(names: Sequence[str]) -> str | None:
    """A name that another one is equal to, or begins with before a slash: their figures could have one name.

    Examples:
        >>> clash_of(["spectrum", "spectrum_2"]), clash_of(["layers/own", "error", "layers"])
        (None, 'layers')
    """
    for i, name in enumerate(names):
        for j, other in enumerate(names):
            if i != j and (name == other or other.startswith(f"{name}/")):
                return name
    return None


def computed(metric: Metric) -> dict[str, Any]:
    """What a metric computes, by name; a single value has the name "". Every rank calls this, also one without input.

    Raises:
        ValueError: the metric has no value.
    """
    metric._update_count = max(1, metric._update_count)  # the sums are taken together: this rank may have nothing
    value = metric.compute()
    return dict(value) if isinstance(value, Mapping) else {"": value}


def names_of(metric: Metric) -> list[str]:
    """What the values would be called that a metric does not have, as far as it says without input."""
    fresh = metric.clone()
    fresh.reset()
    fresh._to_sync = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has seen nothing
            value = fresh.compute()
    except Exception:  # of anybody's metric
        return [""]
    return list(value) if isinstance(value, Mapping) else [""]
