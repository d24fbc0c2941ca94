"""From what was measured of each input to the figures of a report: plain numbers with their intervals."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from lightning_equiv.audit.collected import Collected
from lightning_equiv.audit.measured import LENGTHS, Numbers
from lightning_equiv.groups.group import Group
from lightning_equiv.groups.product import as_group
from lightning_equiv.metrics.interval import interval
from lightning_equiv.metrics.subgroups import describe_kept, generator_names
from lightning_equiv.symmetry.call import TOTAL
from lightning_equiv.symmetry.symmetry import Symmetry

Figures = dict[str, Any]

_WORST = 10  # inputs that are listed
_ROUNDING = 3  # times the floor: what counts as rounding
_FAR = 100  # times smaller in float64: what counts as rounding
_UNRELATED = 0.9  # of the distance of unrelated outputs: what counts as not equivariant


def summarise(taken: Collected, symmetry: Symmetry, name: str) -> Figures:
    """All figures of a report, as JSON has them.

    Args:
        taken: what was measured.
        symmetry: of the network.
        name: of the model.
    """
    group = as_group(symmetry.group)
    errors = taken.section("errors")
    finite = torch.isfinite(errors[f"error/{TOTAL}"]) & torch.isfinite(errors[f"norm/{TOTAL}"])
    figures: Figures = {
        "name": name,
        "group": str(group),
        "symmetry": {"inputs": repr(symmetry.inputs), "outputs": repr(symmetry.outputs)},
        "not_finite": (~finite).nonzero()[:, 0].tolist(),
        "unmoved": taken.notes.get("unmoved", []),
        "skipped": dict(taken.skipped),
        "how": _how(taken),
    }
    if not bool(finite.any()):
        return {**figures, "verdict": "not equivariant", "sentence": "The network returned NaN or infinity throughout."}
    figures |= _errors({key: x[finite] for key, x in errors.items()})
    sections: dict[str, Callable[[Numbers], Figures]] = {
        "floor": _floor,
        "spectrum": lambda numbers: _spectrum(numbers, taken.notes["casimirs"]),
        "profile": lambda numbers: {"angles": taken.notes["angles"], **_along(numbers)},
        "lengths": lambda numbers: {"lengths": list(LENGTHS), **_along(numbers)},
        "group_parts": _group_parts,
        "resampling": lambda numbers: {"value": interval(numbers["lost"], root=True)},
        "labels": _labels,
        "classes": lambda numbers: {key: interval(x) for key, x in numbers.items()},
        "worst": lambda numbers: _worst(numbers, figures["rms_norm"]),
    }
    for key, section in sections.items():
        numbers = _finite(taken.section(key))
        if numbers:
            figures[key] = section(numbers)
    floor = figures.get("floor", {}).get("value", (math.nan,))[0]
    if lie := _finite(taken.section("lie")):
        figures["lie"] = _lie(lie, group, taken.notes, floor, figures)
    for key in ("layers", "task"):
        if taken.notes.get(key):
            figures[key] = taken.notes[key]
    figures["verdict"] = _verdict(figures)
    return figures


def _finite(numbers: Numbers) -> Numbers:
    """The inputs of a section whose numbers all are; the places of the others are kept as "place"."""
    if not numbers:
        return {}
    real = {key: x for key, x in numbers.items() if x.is_floating_point()}
    keep = torch.stack(
        [torch.isfinite(x).flatten(1).all(1) if x.ndim > 1 else torch.isfinite(x) for x in real.values()]
    )
    kept = keep.all(0)
    if not bool(kept.any()):
        return {}
    return {"place": kept.nonzero()[:, 0], **{key: x[kept] for key, x in numbers.items()}}


def _errors(numbers: Numbers) -> Figures:
    parts = [key.removeprefix("error/") for key in numbers if key.startswith("error/")]
    norm = numbers[f"norm/{TOTAL}"]
    sizes = {part: numbers[f"numbers/{part}"] for part in parts if part != TOTAL}
    mean_norm = norm.mean()
    each = (numbers[f"error/{TOTAL}"] / mean_norm).sqrt() if bool(mean_norm) else torch.zeros_like(norm)
    quantiles = torch.quantile(each, torch.tensor([0.5, 0.95], dtype=each.dtype)).tolist()
    return {
        "error": {p: interval(numbers[f"error/{p}"], numbers[f"norm/{p}"], root=True) for p in parts},
        "rms": {p: interval(numbers[f"error/{p}"], size, root=True) for p, size in sizes.items()},
        "output_rms": {p: float((numbers[f"norm/{p}"].sum() / size.sum()).sqrt()) for p, size in sizes.items()},
        "half": interval(numbers[f"half/{TOTAL}"], norm, root=True),
        "unrelated": float((numbers["total_spread"].sum() / norm.sum()).sqrt()),
        "rms_norm": float(mean_norm.sqrt()),
        "each": each.tolist(),
        "median": quantiles[0],
        "quantile_95": quantiles[1],
        "largest": float((numbers["largest"].max() / mean_norm).sqrt()),
    }


def _floor(numbers: Numbers) -> Figures:
    found: Figures = {"value": interval(numbers["rounding"], numbers["norm"], root=True)}
    if "in_float64" not in numbers:
        return {**found, "kind": "stand-in"}
    return {
        **found,
        "kind": "float64",
        "in_float64": interval(numbers["in_float64"], numbers["norm"], root=True),
        "error": interval(numbers["own"], numbers["norm"], root=True),
    }


def _spectrum(numbers: Numbers, casimirs: dict[str, float]) -> Figures:
    total, norm = numbers["total"], numbers["total"].sum()
    names = list(casimirs)
    shares = {name: interval(numbers[f"{TOTAL}/{name}"], total) for name in [*names, "rest"]}
    parts = sorted({key.rpartition("/")[0] for key in numbers if "/" in key} - {TOTAL})
    by_part = {p: {name: float(numbers[f"{p}/{name}"].sum() / norm) for name in [*names, "rest"]} for p in parts}
    variance = interval(total - numbers[f"{TOTAL}/{names[0]}"], total)
    broken = sum(float(numbers[f"{TOTAL}/{name}"].sum()) for name in names[1:])
    lie = sum(casimirs[name] * float(numbers[f"{TOTAL}/{name}"].sum()) for name in names)
    return {
        "names": names,
        "shares": shares,
        "by_part": by_part if len(parts) > 1 else {},
        "variance": variance,
        "roughness": lie / (2 * broken) if broken > 0 else None,
    }


def _along(numbers: Numbers) -> Figures:
    norm = numbers["norm"]
    return {"error": [interval(square, norm, root=True) for square in numbers["squares"].unbind(1)]}


def _group_parts(numbers: Numbers) -> Figures:
    rest = {key: x for key, x in numbers.items() if key not in ("norm", "place")}
    return {key: interval(x, numbers["norm"], root=True) for key, x in rest.items()}


def _labels(numbers: Numbers) -> Figures:
    parts = [key.removeprefix("as_is/") for key in numbers if key.startswith("as_is/")]
    found: Figures = {}
    for part in parts:
        n = numbers[f"numbers/{part}"]
        own = {name: numbers[f"{name}/{part}"] for name in ("as_is", "averaged", "variance", "oriented")}
        found[part] = {
            **{name: interval(x, n, root=True) for name, x in own.items()},
            "removed": interval(own["variance"], own["oriented"]),
        }
    return found


def _worst(numbers: Numbers, rms_norm: float) -> Figures:
    error = numbers["error"]
    order = error.argsort(descending=True)[:_WORST]
    first = int(order[0])
    coordinates = {key: x[first].tolist() for key, x in numbers.items() if key.startswith("element/")}
    return {
        "input": int(numbers["place"][first]),
        "error": float(error[first]),
        "relative": float(error[first]) / rms_norm if rms_norm else 0.0,
        "sampled": float(numbers["sampled"].max()) / rms_norm if rms_norm else 0.0,
        "element": [coordinates[f"element/{i}"] for i in range(len(coordinates))],
        "ten": [
            {
                "input": int(numbers["place"][i]),
                "error": float(error[i]),
                "relative": float(error[i]) / rms_norm if rms_norm else 0.0,
            }
            for i in order.tolist()
        ],
    }


def _lie(numbers: Numbers, group: Group, notes: Figures, floor: float, figures: Figures) -> Figures:
    gram, norm = numbers["gram"], numbers["norm"]
    mean = gram.sum(0) / norm.sum()
    values, vectors = torch.linalg.eigh(mean)
    names = generator_names(group)
    rotations = [i for i, name in enumerate(names) if not name.rpartition(".")[2].startswith("t")]
    kept_below = 10 * (floor if math.isfinite(floor) else 1e-5)
    found = {
        "total": interval(gram.diagonal(dim1=1, dim2=2).sum(1), norm, root=True),
        "generators": {name: interval(gram[:, i, i], norm, root=True) for i, name in enumerate(names)},
        "gram": mean.tolist(),
        "eigenvalues": values.clamp_min(0).sqrt().tolist(),
        "axes": vectors.mT.tolist(),
        "kept": describe_kept(group, mean, kept_below),
        "kept_below": kept_below,
        "method": notes.get("method", ""),
    }
    if rotations and "profile" in figures:
        found["slope"] = float((mean.diagonal()[rotations].sum() / len(rotations)).clamp_min(0).sqrt())
    return found


def _verdict(figures: Figures) -> str:
    """One of three: rounding explains the error, or it does not, or the outputs might as well be unrelated."""
    error = figures["error"][TOTAL].value
    floor = figures.get("floor")
    if floor is not None:
        in_float64 = floor.get("in_float64")
        same_draws = floor["error"].value if in_float64 is not None else error
        if error <= _ROUNDING * floor["value"].value or (
            in_float64 is not None and in_float64.value < same_draws / _FAR
        ):
            return "exact to rounding"
    elif error <= 100 * torch.finfo(getattr(torch, figures["how"]["dtype"])).eps:
        return "exact to rounding"
    if figures["unrelated"] > 0 and error >= _UNRELATED * figures["unrelated"]:
        return "not equivariant"
    return "approximate"


def _how(taken: Collected) -> Figures:
    keys = ("dtype", "device", "draws", "seed", "budget", "whole", "needs_grad", "chunks", "parameters", "network")
    return {
        "inputs": taken.num_inputs,
        **{key: taken.notes[key] for key in keys if taken.notes.get(key) is not None},
        "units": taken.notes.get("units", {}),
        "seconds": round(float(taken.notes["seconds"]), 1),
        "seconds_by_section": {name: round(seconds, 2) for name, seconds in taken.seconds.items()},
        "versions": {
            "lightning_equiv": version("lightning_equiv"),
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    }


def as_json(value: Any) -> Any:
    """Figures with lists in the place of tuples and None in the place of what is no number."""
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, Tensor):
        return as_json(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
