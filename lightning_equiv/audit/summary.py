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
from lightning_equiv.groups.parts import linear_part
from lightning_equiv.groups.product import as_group
from lightning_equiv.metrics.interval import Interval, interval
from lightning_equiv.metrics.subgroups import describe_kept, generator_names
from lightning_equiv.report.document import VERDICTS
from lightning_equiv.symmetry.call import TOTAL
from lightning_equiv.symmetry.symmetry import Symmetry

Figures = dict[str, Any]

_WORST = 10  # inputs that are listed
_ROUNDING = 3  # times the floor: what counts as rounding
_FAR = 100  # times smaller in float64: what counts as rounding
_UNRELATED = 0.5  # of the distance of unrelated outputs: what counts as not equivariant


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
    apart = _unrelated({key: x[finite] for key, x in errors.items()}, taken.notes["means"])
    figures["unrelated"] = apart[TOTAL]
    sections: dict[str, Callable[[Numbers], Figures]] = {
        "floor": lambda numbers: _floor(numbers, bool(taken.notes.get("float32_constants"))),
        "spectrum": lambda numbers: {"of": str(linear_part(group)), **_spectrum(numbers, taken.notes["casimirs"])},
        "profile": lambda numbers: {"angles": taken.notes["angles"], **_along(numbers)},
        "lengths": lambda numbers: {"lengths": list(LENGTHS), **_along(numbers)},
        "group_parts": _group_parts,
        "resampling": lambda numbers: {"value": interval(numbers["lost"], root=True)},
        "labels": _labels,
        "classes": lambda numbers: {key: _share(key, x) for key, x in numbers.items() if key != "place"},
        "worst": lambda numbers: _worst(numbers, figures["rms_norm"]),
    }
    for key, section in sections.items():
        numbers = _finite(taken.section(key))
        if numbers:
            figures[key] = section(numbers)
    figures["verdicts"] = _verdicts(figures, apart)
    figures["verdict"] = max(figures["verdicts"].values(), key=VERDICTS.index)
    if figures["verdict"] == "exact to rounding" and "spectrum" in figures:
        figures["spectrum"]["roughness"] = None  # of rounding
    if lie := _finite(taken.section("lie")):
        figures["lie"] = _lie(lie, group, taken.notes, _kept_below(figures, taken.notes.get("method", "")), figures)
    for key in ("layers", "task"):
        if taken.notes.get(key):
            figures[key] = taken.notes[key]
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
    squares = {part: float(numbers[f"norm/{part}"].sum()) for part in sizes}
    tensors: dict[str, float] = {}
    for part, square in squares.items():
        tensor = part.rpartition(".")[0]
        tensors[tensor] = tensors.get(tensor, 0.0) + square
    shares = {part: square / (tensors[part.rpartition(".")[0]] or 1.0) for part, square in squares.items()}
    each = (numbers[f"error/{TOTAL}"] / mean_norm).sqrt() if bool(mean_norm) else torch.zeros_like(norm)
    quantiles = torch.quantile(each, torch.tensor([0.5, 0.95], dtype=each.dtype)).tolist()
    return {
        "error": {p: interval(numbers[f"error/{p}"], numbers[f"norm/{p}"], root=True) for p in parts},
        "rms": {p: interval(numbers[f"error/{p}"], size, root=True) for p, size in sizes.items()},
        "rms_per_node": {
            p: interval(numbers[f"error/{p}"] / numbers["nodes"].clamp_min(1).square(), root=True)
            for p, size in sizes.items()
            if "nodes" in numbers and bool((size == 1).all())
        },
        "output_rms": {p: float((numbers[f"norm/{p}"].sum() / size.sum()).sqrt()) for p, size in sizes.items()},
        "half": interval(numbers[f"half/{TOTAL}"], norm, root=True),
        "share_of_tensor": {part: math.sqrt(share) for part, share in shares.items()},
        "rms_norm": float(mean_norm.sqrt()),
        "each": each.tolist(),
        "median": quantiles[0],
        "quantile_95": quantiles[1],
        "largest": float((numbers["largest"].max() / mean_norm).sqrt()),
    }


def _unrelated(numbers: Numbers, means: dict[str, list[tuple[int, Tensor]]]) -> dict[str, float]:
    """The relative distance of unrelated outputs: sqrt( 2 sum |f - mean f|^2 / sum |f|^2 ), of all and of each part."""
    spreads = {}
    for part, pieces in means.items():
        rows = sum(count for count, _ in pieces)
        sums = [x for _, x in pieces]
        if len({len(x) for x in sums}) > 1:  # of batches with outputs of several sizes: the mean of all numbers
            sums = [x.new_full((1,), float(x.sum() / len(x) ** 0.5)) for x in sums]
        common = float(torch.stack(sums).sum(0).square().sum()) / rows
        square = float(numbers[f"norm/{part}"].sum())
        spreads[part] = 2 * max(0.0, square - common) * rows / (rows - 1) if rows > 1 else 2 * square
    norms = {part: float(numbers[f"norm/{part}"].sum()) for part in (TOTAL, *spreads)}
    spreads[TOTAL] = sum(spreads.values())
    return {part: math.sqrt(spreads[part] / norm) if norm else 0.0 for part, norm in norms.items()}


def _floor(numbers: Numbers, float32_constants: bool) -> Figures:
    """The floor of the whole output, and that of its parts."""

    def of(part: str) -> Figures:
        norm = numbers[f"norm/{part}"]
        figures = {"value": "rounding", "in_float64": "in_float64", "error": "own"}
        return {
            figure: interval(numbers[f"{name}/{part}"], norm, root=True)
            for figure, name in figures.items()
            if f"{name}/{part}" in numbers
        }

    by_part = {key.removeprefix("norm/"): of(key.removeprefix("norm/")) for key in numbers if key.startswith("norm/")}
    kind = "float64" if "in_float64" in by_part[TOTAL] else "stand-in"
    return {**by_part.pop(TOTAL), "kind": kind, "float32_constants": float32_constants, "by_part": by_part}


def _spectrum(numbers: Numbers, casimirs: dict[str, float]) -> Figures:
    total, norm = numbers["total"], numbers["total"].sum()
    names = list(casimirs)
    shares = {name: interval(numbers[f"{TOTAL}/{name}"], total) for name in [*names, "rest"]}
    parts = sorted({key.rpartition("/")[0] for key in numbers if "/" in key} - {TOTAL})
    by_part = {p: {name: float(numbers[f"{p}/{name}"].sum() / norm) for name in [*names, "rest"]} for p in parts}
    variance = interval(total - numbers[f"{TOTAL}/{names[0]}"], total)
    broken = sum(float(numbers[f"{TOTAL}/{name}"].sum()) for name in names[1:])
    lie = sum(casimirs[name] * float(numbers[f"{TOTAL}/{name}"].sum()) for name in names)
    lowest = min((c for c in casimirs.values() if c), default=0.0)
    return {
        "names": names,
        "shares": shares,
        "by_part": by_part if len(parts) > 1 else {},
        "variance": variance,
        "roughness": lie / (lowest * broken) if lowest and broken > 0 and lie > 0 and variance.low > 0 else None,
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


def _share(name: str, numbers: Tensor) -> Interval:
    """A mean of numbers from 0 to 1, or of a divergence, whose interval stays where they are."""
    value, low, high = interval(numbers)
    most = math.inf if name == "divergence" else 1.0
    return Interval(value, low if math.isnan(low) else max(0.0, low), high if math.isnan(high) else min(most, high))


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


def _kept_below(figures: Figures, method: str) -> float:
    """Up to which speed a direction counts as kept: what rounding makes of a derivative, with a margin of ten."""
    eps = torch.finfo(getattr(torch, figures["how"]["dtype"])).eps
    floor = figures["floor"]["value"].value if "floor" in figures else 0.0
    if figures["verdict"] == "exact to rounding":
        floor = max(floor, figures["error"][TOTAL].value)
    rounding = floor or (1e-5 if eps > torch.finfo(torch.float64).eps else 1e-14)
    return 10 * rounding * (eps ** (-1 / 3) if method == "central_difference" else 1.0)


def _lie(numbers: Numbers, group: Group, notes: Figures, kept_below: float, figures: Figures) -> Figures:
    gram, norm = numbers["gram"], numbers["norm"]
    mean = torch.where(gram.sum(0) == 0, 0.0, gram.sum(0) / norm.sum())
    values, vectors = torch.linalg.eigh(mean)
    names = generator_names(group)
    rotations = [i for i, name in enumerate(names) if not name.rpartition(".")[2].startswith("t")]
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


def _is_rounding(error: float, floor: Figures | None, dtype: torch.dtype) -> bool:
    """Whether an error is no more than rounding: about the floor, and gone in float64."""
    if floor is None:
        return error <= 100 * torch.finfo(dtype).eps
    least = floor["value"].value
    if floor["kind"] == "stand-in":
        return error <= _ROUNDING * least
    if dtype == torch.float64:  # which is its own other precision
        in_float32 = least * torch.finfo(torch.float32).eps / torch.finfo(torch.float64).eps
        return error <= _ROUNDING * least or (floor["float32_constants"] and error <= in_float32)
    exact: float = floor["in_float64"].value
    return (error <= _ROUNDING * least and exact <= least / 2) or exact < floor["error"].value / _FAR


def _verdicts(figures: Figures, unrelated: dict[str, float]) -> dict[str, str]:
    """Of all and of each part, one of three: rounding explains the error, or not, or outputs might be unrelated.

    A large energy hides the errors of small forces in the whole: the worst part is the network's.
    """
    floor, dtype = figures.get("floor"), getattr(torch, figures["how"]["dtype"])
    found = {}
    for part, error in figures["error"].items():
        own, value = floor, error.value
        if floor is not None and part != TOTAL:
            own = {**floor, **floor["by_part"][part]}
        elif part != TOTAL:  # of an irrep that is nearly 0 rounding is that of the tensor it lies in
            value *= figures["share_of_tensor"][part]
        if _is_rounding(value, own, dtype):
            found[part] = "exact to rounding"
        else:
            far = unrelated[part] > 0 and error.value >= _UNRELATED * unrelated[part]
            found[part] = "not equivariant" if far else "approximate"
    return found


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
