"""Our figures against escnn's own check, on escnn's own layers: the same inputs, elements and networks.

    pip install escnn scikit-image matplotlib    # a Fortran compiler, and numpy below 2: an environment of its own
    python examples/benchmarks/agree_with_escnn.py --out docs/results

What escnn 1.0.11 calls the equivariance error of a module, `module.check_equivariance()`, is one of these:

    EquivariantModule    20 drawn elements, 3 white noise inputs of 10 pixels a side
    ReLU, GroupPooling,
    NormNonLinearity     the group's `testing_elements`, the same inputs; moves the fibres alone, no pixel
    R2Conv               the `testing_elements`, one photograph of 5 x 5 times the pixels, averaged over blocks of 5
                         before and after, in the middle disc alone
    pooling, batch norm  nothing: it returns None

Each returns (element, mean |entry of f(g x) - g f(x)|) pairs over all inputs, and raises where an entry is beyond a
tolerance (1e-7 to 1e-6, of R2Conv 0.1). Here its inputs are drawn again from the same seed and its elements are given
to us. "declared" says how fields move in our measurement: by our own representations, Image(), Image() @ Regular(-3),
VectorField(), or by escnn's `transform` in a Custom. "same norm" are our f(g x) - g f(x) in escnn's mean |entry|,
"absolute" is `equivariance_error(kind="absolute")`, an L2 norm for each input, "by hand" the same from escnn's
`transform`. Numbers are float64 unless a check makes float32 itself; modules are in evaluation mode.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lightning_equiv
from lightning_equiv import Custom, Image, Regular, Symmetry, VectorField, as_group, equivariance_error
from lightning_equiv.groups.group import Group, GroupElement
from lightning_equiv.layers.families.escnn import EscnnFields
from lightning_equiv.metrics.measurement import measuring
from lightning_equiv.representations.representation import Representation

try:
    import escnn
    import numpy as np
    import scipy
    from escnn import gspaces
    from escnn import nn as enn
except ImportError as error:
    print(f"skipped: escnn cannot be imported ({error}); install it in an environment of its own, see --help")
    raise SystemExit(0) from None

NOTES = """\
- Right angles: our Image moves pixels bit for bit as escnn's `transform` does, on odd and even grids; regular and
  vector fields agree to 3e-16, which is escnn's rounding of its matrices. Figures on the same inputs and elements are
  the same numbers. Conventions agree: x to the right, y up, a positive angle counter-clockwise, rotation about the
  middle of the grid.
- One convention differs. escnn's dihedral group reflects in the vertical axis by default (x -> -x), ours is generated
  by y -> -y: its orientations 4 5 6 7 of D4 are our 6 7 4 5. Elements are matched by their matrices and channels put in
  our order here; with `flipRot2dOnR2(n, axis=0.0)` nothing has to be. `EscnnFields`, our family of escnn's layers,
  matches by matrices and needs no care.
- Other angles: both interpolate, escnn by quadratic splines (and a rotation matrix in float16, off by up to 2.4e-4),
  ours by cubic convolution; both read 0 beyond the border. The actions differ by 0.2 of white noise and by 0.001 of a
  smooth image. The figures of an exact layer are then what interpolation loses: on white noise of 10 pixels, as escnn
  has it, 0.03 to 0.6 relative, and ours differ from escnn's by up to a third. Through escnn's `transform` ours are
  escnn's numbers again; on a smooth photograph of 835 pixels the two declarations differ by less than 1 %.
- A broken filter: escnn's figure, the same norm and "absolute" all grow in proportion to what was added. At other
  angles the floor of interpolation hides small additions from both.
- escnn's number is a mean |entry|, in the unit of the output; "absolute" is a norm over all N entries of an output,
  sqrt(pi N / 2) times as large for differences like noise; "relative" has no unit. Exact convolutions read about 1e-7
  in float64, as their bases are float32, and so raise with `EquivariantModule`'s tolerance, which R2Conv does not use.
  GroupPooling makes float32 of any input.
- R2Conv's own check divides a photograph that is in [0, 1] already by 255: its input is -0.5 up to 0.004. It sees what
  a filter does to a constant and next to nothing else: one broken by zero-mean noise of its own size passes. With the
  whole contrast the same comparison sees both. (The photograph is synthetic here; escnn downloads one.)
- escnn checks neither pooling nor batch norm, and other modules on 10 pixels a side alone. Strides and pooling are
  exact where the windows lie the same way after a quarter turn: stride divides size + 2 padding - kernel.
"""
Rows = list[list[str]]


# ---- fields, both ways -----------------------------------------------------------------------------------------------
class Fields:
    """A field type of escnn and how we declare it: representation, and tensors there and back.

    Args:
        type: of escnn.
        kind: "trivial", "regular" or "vector" of our own; "escnn" moves by escnn's `transform`, of `elements`.
        group: ours.
        elements: of escnn; only they can be found by "escnn".
        fibre: only the fibre moves, no pixel.
    """

    def __init__(self, type: Any, kind: str, group: Group, elements: Sequence[Any] = (), fibre: bool = False) -> None:
        self.type, self.kind = type, kind
        self.elements, self.plane = list(elements), plane_of(type.gspace, elements) if elements else None
        own: dict[str, Representation] = {
            "trivial": Image(),
            "regular": Regular(-3) if fibre else Image() @ Regular(-3),
            "vector": VectorField(),
            "escnn": Custom(self.transform),
        }
        self.representation = own[kind]
        if kind == "regular":
            space = type.gspace
            self.order = numbers_of(group, plane_of(space, space.fibergroup.elements))  # escnn's k is our order[k]

    def here(self, x: Tensor) -> Tensor:
        """escnn's tensor in our layout."""
        if self.kind != "regular":
            return x
        return x.unflatten(1, (-1, len(self.order))).index_select(2, self.order.argsort())

    def there(self, x: Tensor) -> Tensor:
        """Ours in escnn's layout."""
        return x.index_select(2, self.order).flatten(1, 2) if self.kind == "regular" else x

    def transform(self, g: GroupElement, x: Tensor) -> Tensor:
        """Moved by escnn."""
        assert self.plane is not None
        nearest = (g.matrix[:, None] - self.plane).abs().amax((-2, -1)).argmin(1).expand(len(x)).tolist()
        return torch.cat([self.type.transform(x[i : i + 1], self.elements[k]) for i, k in enumerate(nearest)])


def plane_of(space: Any, elements: Sequence[Any]) -> Tensor:
    """(K, d, d) matrices of escnn's elements."""
    return torch.stack([torch.as_tensor(space.basespace_action(e), dtype=torch.float64) for e in elements])


def numbers_of(group: Group, plane: Tensor) -> Tensor:
    """(K,) numbers of our elements with these matrices."""
    distance, number = (plane[:, None] - group.elements().matrix).abs().amax((-2, -1)).min(dim=1)
    assert float(distance.max()) < 1e-9
    return number


def elements_of(group: Group, space: Any, elements: Sequence[Any]) -> GroupElement:
    """escnn's elements as ours."""
    plane = plane_of(space, elements)
    return group.element(plane) if group.order is None else group.elements()[numbers_of(group, plane)]


class Wrapped(nn.Module):
    """A module of escnn on tensors in our layout."""

    def __init__(self, module: nn.Module, into: Fields, out: Fields, before: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.module, self.into, self.out, self.before = module, into, out, before

    def forward(self, x: Tensor) -> Tensor:
        x = self.into.there(x)
        x = x if self.before is None else self.before(x)
        return self.out.here(self.module(enn.GeometricTensor(x, self.into.type)).tensor)


# ---- figures ---------------------------------------------------------------------------------------------------------
@torch.no_grad()
def by_hand(module: Any, x: Tensor, elements: Sequence[Any], fibre: bool = False) -> tuple[float, float]:
    """mean |entry| as escnn's check has it, and mean_g |d| of each input, by escnn's `transform` alone."""
    x, move = enn.GeometricTensor(x, module.in_type), "transform_fibers" if fibre else "transform"
    d = torch.stack([(getattr(module(x), move)(e).tensor - module(getattr(x, move)(e)).tensor) for e in elements])
    return float(d.abs().mean()), float(d.flatten(2).norm(dim=-1).mean())


def same_norm(network: nn.Module, x: Tensor, symmetry: Symmetry, g: GroupElement, after: Any = None) -> float:
    """mean |entry| of our f(g x) - g f(x)."""
    with measuring(network, x, symmetry) as measurement:

        def figure(_: GroupElement, f_gx: Any, g_fx: Any) -> Tensor:
            d = f_gx.tree - g_fx.tree
            d = d if after is None else after(d)
            return d.abs().flatten(1).mean(1)

        return float(torch.cat(measurement.for_each_chunk(measurement.elements(None, g), figure)).mean())


def checked(check: Callable[..., Any], exact: Callable[..., Any], seed: int) -> tuple[str, list[tuple[Any, float]]]:
    """Whether escnn's check passes with its own tolerance, and what it returns when it never raises."""
    verdict = "passes"
    for call in (check, exact):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  (escnn draws its elements there)
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                found = call()
            except AssertionError:
                verdict = "raises"
    torch.manual_seed(seed)  # the inputs are drawn first
    return verdict, found


def number(x: float) -> str:
    """Three digits, or a plain zero."""
    return "0" if x == 0 else f"{x:.3g}" if 1e-3 <= x < 1e4 else f"{x:.2e}"


def apart(a: float, b: float) -> str:
    """|a - b| / b; "rounding" where both are float64's."""
    if max(a, b) < 1e-14:
        return "rounding"
    return "0" if a == b else f"{abs(a - b) / b:.1e}" if b else "inf"


# ---- tables ----------------------------------------------------------------------------------------------------------
def spaces() -> dict[str, tuple[Group, Any]]:
    """Groups of the plane, ours and escnn's."""
    return {
        "C4": (as_group("C4"), gspaces.rot2dOnR2(4)),
        "D4": (as_group("D4"), gspaces.flipRot2dOnR2(4)),
        "D4, axis 0": (as_group("D4"), gspaces.flipRot2dOnR2(4, axis=0.0)),
        "C8": (as_group("C8"), gspaces.rot2dOnR2(8)),
        "SO(2)": (as_group("SO(2)"), gspaces.rot2dOnR2(-1)),
    }


def field_type(space: Any, kind: str, times: int) -> Any:
    """`times` fields of a kind."""
    name = {"trivial": "trivial_repr", "regular": "regular_repr", "vector": "basespace_action"}[kind]
    return enn.FieldType(space, [getattr(space, name)] * times)


def blob(size: int) -> Tensor:
    """Smooth weights that fall to 0 before the border."""
    step = (torch.arange(size) - (size - 1) / 2) / size
    return torch.exp(-(step[:, None] ** 2 + step**2) * 40)


def smooth(*shape: int) -> Tensor:
    """Images of a few long waves in the middle of the grid."""
    rows = torch.fft.fftfreq(shape[-1])
    low = torch.exp(-(rows[:, None] ** 2 + rows**2) * 400)
    waves = torch.fft.ifft2(torch.fft.fft2(torch.randn(*shape)) * low).real
    return waves / waves.std() * blob(shape[-1])


def actions(small: bool) -> Rows:
    """How far our action is from escnn's, at most over elements and relative to the field."""
    rows = [["group", "field", "grid", "elements", "white noise", "smooth image"]]
    for name, (group, space) in spaces().items():
        fibers = space.fibergroup
        elements = list(space.testing_elements)[:: 1 if group.order else 4]
        g = elements_of(group, space, elements)
        for kind in ("trivial", "regular", "vector"):
            if kind == "regular" and fibers.order() < 0:
                continue
            fields = Fields(field_type(space, kind, 2), kind, group)
            for size in (8, 9) if small else (32, 33):
                found = []
                for x in (torch.randn(1, fields.type.size, size, size), smooth(1, fields.type.size, size, size)):
                    theirs = torch.cat([fields.type.transform(x, e) for e in elements])
                    ours = fields.there(fields.representation(g, fields.here(x.repeat(len(g), 1, 1, 1))))
                    found.append(float(((ours - theirs).flatten(1).norm(dim=1) / x.norm()).max()))
                rows.append([name, f"2 {kind}", str(size), str(len(elements)), *map(number, found)])
    return rows


HEADER = ["group", "module", "declared", "elements", "escnn", "same norm", "apart", "absolute", "by hand", "apart"]
HEADER += ["relative", "escnn's check"]


def compared(name: str, module: Any, kinds: tuple[str, str], group: Group, *, own: bool = False, seed: int = 0) -> Rows:
    """Rows of one module: by our own representations, and by escnn's `transform` where these are not the same.

    Args:
        name: of the module.
        module: in evaluation mode.
        kinds: of its input and output.
        group: ours.
        own: the module's own check, which moves fibres only; otherwise that of `EquivariantModule`.
        seed: of inputs and elements.
    """
    space = module.in_type.gspace
    base = enn.EquivariantModule.check_equivariance
    if own:
        check, exact = module.check_equivariance, partial(module.check_equivariance, atol=math.inf)
    else:
        check, exact = partial(base, module), partial(base, module, atol=math.inf)
    verdict, returned = checked(check, exact, seed)
    x = torch.randn(3, module.in_type.size, *[10] * space.dimensionality)
    elements = [e for e, _ in returned]
    theirs = sum(float(error) for _, error in returned) / len(returned)
    g = elements_of(group, space, elements)
    entries, length = by_hand(module, x, elements, own)
    assert math.isclose(entries, theirs, rel_tol=1e-5, abs_tol=1e-12), (entries, theirs)  # the same inputs, really
    rows = []
    interpolated = str(group) not in ("C4", "D4")
    for kind in dict.fromkeys([kinds, ("escnn", "escnn")] if interpolated else [kinds]):
        into = Fields(module.in_type, kind[0], group, elements, own)
        out = Fields(module.out_type, kind[1], group, elements, own)
        network, moved = Wrapped(module, into, out, None), into.here(x)
        symmetry = Symmetry(group, into.representation, out.representation)
        ours = same_norm(network, moved, symmetry, g)
        absolute = float(equivariance_error(network, moved, symmetry, elements=g, kind="absolute").mean())
        relative = float(equivariance_error(network, moved, symmetry, elements=g).mean())
        declared = " -> ".join(map(written, (into, out)))
        rows.append([str(group), name, declared, str(len(elements)), number(theirs), number(ours), apart(ours, theirs)])
        rows[-1] += [number(absolute), number(length), apart(absolute, length), number(relative), verdict]
    return rows


def written(fields: Fields) -> str:
    """A declaration in a word."""
    short = {"trivial": "Image", "vector": "VectorField", "escnn": "Custom"}
    regular = "Regular" if fields.representation == Regular(-3) else "Image @ Regular"
    return short.get(fields.kind, regular)


@contextlib.contextmanager
def float32() -> Iterator[None]:
    """The default dtype of a block: escnn makes its bases in no other."""
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float64)


def conv(into: Any, out: Any, **options: Any) -> Any:
    """R2Conv of 3 x 3 pixels, with a bias."""
    with float32():
        module = enn.R2Conv(into, out, **{"kernel_size": 3, "padding": 1, **options})
    if module.bias is not None:
        nn.init.normal_(module.bias)
    return module.double().eval()


@torch.no_grad()
def normalised(fields: Any) -> Any:
    """Batch norm with statistics."""
    norm = enn.InnerBatchNorm(fields).double().train()
    norm(enn.GeometricTensor(torch.randn(8, fields.size, 10, 10) * 3 + 1, fields))
    return norm.eval()


def network_of(space: Any, hidden: Any) -> Any:
    """conv, batch norm with statistics, ReLU, max pooling, conv, group pooling, which always makes float32."""
    scalars = enn.FieldType(space, [space.trivial_repr])
    return enn.SequentialModule(
        conv(scalars, hidden),
        normalised(hidden),
        enn.ReLU(hidden),
        enn.PointwiseMaxPool2D(hidden, 2, 2),
        conv(hidden, hidden),
        enn.GroupPooling(hidden),
    ).eval()


def layers(small: bool) -> Rows:
    """escnn's layers, as they are."""
    rows = [HEADER]
    every = spaces()
    for name in ["C4"] if small else ["C4", "D4", "C8"]:
        group, space = every[name]
        scalars, regular, vectors = (field_type(space, kind, 2) for kind in ("trivial", "regular", "vector"))
        rows += compared("R2Conv", conv(scalars, regular), ("trivial", "regular"), group)
        rows += compared("R2Conv", conv(regular, regular), ("regular", "regular"), group)
        rows += compared("R2Conv", conv(regular, vectors), ("regular", "vector"), group)
        rows += compared("InnerBatchNorm", normalised(regular), ("regular", "regular"), group)
        rows += compared("ReLU", enn.ReLU(regular), ("regular", "regular"), group)
        rows += compared("PointwiseMaxPool2D(2)", enn.PointwiseMaxPool2D(regular, 2, 2), ("regular",) * 2, group)
        rows += compared("PointwiseAvgPool2D(3, 2)", enn.PointwiseAvgPool2D(regular, 3, 2), ("regular",) * 2, group)
        rows += compared("GroupPooling", enn.GroupPooling(regular), ("regular", "trivial"), group)
        rows += compared("network", network_of(space, regular), ("trivial", "trivial"), group)
        if name != "C8":
            rows += compared("ReLU, own check", enn.ReLU(regular), ("regular", "regular"), group, own=True)
    if small:
        return rows
    group, space = every["SO(2)"]
    scalars, vectors = (field_type(space, kind, 2) for kind in ("trivial", "vector"))
    hidden = enn.FieldType(space, [space.irrep(0), space.irrep(1), space.irrep(2)])
    net = enn.SequentialModule(conv(scalars, hidden), enn.NormNonLinearity(hidden).double(), conv(hidden, vectors))
    rows += compared("R2Conv", conv(scalars, vectors), ("trivial", "vector"), group)
    rows += compared(
        "NormNonLinearity, irreps 0 1 2", enn.NormNonLinearity(hidden).double().eval(), ("escnn", "escnn"), group
    )
    rows += compared("network of irreps 0 1 2", net.eval(), ("trivial", "vector"), group)
    with contextlib.redirect_stdout(io.StringIO()):
        space = gspaces.octaOnR3()
    regular, scalars = enn.FieldType(space, [space.regular_repr]), enn.FieldType(space, [space.trivial_repr])
    with float32():
        cube = enn.R3Conv(scalars, regular, 3, padding=1).double().eval()
    rows += compared("R3Conv, octahedral", cube, ("escnn", "escnn"), as_group("SO(3)"))
    return rows


def broken(small: bool) -> Rows:
    """A filter with noise added, in parts of its own size."""
    rows = [["added", *HEADER]]
    for name in ["C4"] if small else ["C4", "D4", "C8"]:
        group, space = spaces()[name]
        regular, vectors = field_type(space, "regular", 2), field_type(space, "vector", 2)
        for part in (0.0, 1e-4, 1e-2, 1.0):
            torch.manual_seed(1)
            module = conv(regular, vectors)  # in evaluation mode its filter is a buffer
            module.filter.add_(part * module.filter.std() * torch.randn_like(module.filter))
            rows += [[f"{part:g}", *row] for row in compared("R2Conv", module, ("regular", "vector"), group)]
    return rows


def grids(small: bool) -> Rows:
    """Strides and pooling on grids of several sizes, for the four quarter turns."""
    rows = [["module", "size", "escnn's formula", "same norm", "apart", "relative"]]
    group, space = spaces()["C4"]
    regular = field_type(space, "regular", 2)
    elements = list(space.testing_elements)
    modules = {
        "R2Conv(3, padding 1, stride 2)": conv(regular, regular, stride=2),
        "R2Conv(4, padding 1)": conv(regular, regular, kernel_size=4),
        "PointwiseMaxPool2D(2, 2)": enn.PointwiseMaxPool2D(regular, 2, 2),
        "PointwiseMaxPool2D(3, 2, padding 1)": enn.PointwiseMaxPool2D(regular, 3, 2, 1),
        "PointwiseAvgPoolAntialiased2D(0.66, 2)": enn.PointwiseAvgPoolAntialiased2D(regular, 0.66, 2).double(),
    }
    for name, module in modules.items():
        for size in (8, 9) if small else (8, 9, 10, 11):
            x = torch.randn(3, regular.size, size, size)
            fields = Fields(regular, "regular", group)
            network, moved = Wrapped(module, fields, fields, None), fields.here(x)
            symmetry = Symmetry(group, fields.representation, fields.representation)
            g = elements_of(group, space, elements)
            theirs, ours = by_hand(module, x, elements)[0], same_norm(network, moved, symmetry, g)
            relative = float(equivariance_error(network, moved, symmetry, elements=g).mean())
            rows.append([name, str(size), number(theirs), number(ours), apart(ours, theirs), number(relative)])
    return rows


def photograph() -> Any:
    """In the place of `scipy.datasets.face`, which is a download: whole numbers of 0 to 255, long waves."""
    waves = torch.fft.irfft2(torch.fft.rfft2(torch.randn(3, 768, 768)) * _low(768))
    waves = (waves - waves.amin()) / (waves.amax() - waves.amin())
    return (255 * waves).permute(1, 2, 0).to(torch.uint8).numpy()


def _low(size: int) -> Tensor:
    rows, columns = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)
    return 1 / (1 + ((rows**2 + columns**2).sqrt() * size / 8) ** 3)


def own_checks(small: bool) -> Rows:
    """R2Conv's own check: blocks of pixels averaged before and after, and the middle of the grid alone."""
    rows = [["group", "added", "declared", "escnn", "same norm", "apart", "whole contrast", "escnn's check"]]
    if small:
        return rows
    from skimage.transform import resize

    shrink = lambda x: nn.functional.avg_pool2d(x, 5)  # noqa: E731
    image, step = photograph(), torch.arange(33) - 16
    scipy.datasets.face = lambda: image
    disc = (step[:, None] ** 2 + step**2) < (33 / 4) ** 2
    for name in ("C4", "C8"):
        group, space = spaces()[name]
        elements = list(space.testing_elements)
        for added in ("0", "1", "1, zero mean"):
            torch.manual_seed(1)
            module = conv(field_type(space, "trivial", 1), field_type(space, "vector", 1), padding=0)
            noise = module.filter.std() * torch.randn_like(module.filter)
            noise = noise - noise.mean((-2, -1), keepdim=True) if "mean" in added else noise
            module.filter.add_(noise * (added != "0"))
            module = module.float()  # the check makes its input in float32
            check = partial(module.check_equivariance, verbose=False)
            verdict, returned = checked(check, partial(check, assertion=False), 0)
            theirs = sum(float(error) for _, error in returned) / len(returned)
            # initial_size of its source, padding 0
            x = torch.as_tensor(resize(image.transpose(2, 0, 1)[None, :1], (1, 1, 835, 835), anti_aliasing=True))
            g = elements_of(group, space, elements)
            for kinds in [("trivial", "vector"), ("escnn", "escnn")][: 1 if name == "C4" else 2]:
                into = Fields(module.in_type, kinds[0], group, elements)
                out = Fields(module.out_type, kinds[1], group, elements)
                network = Wrapped(module, into, out, shrink)
                symmetry = Symmetry(group, into.representation, out.representation)
                seen = lambda d: shrink(d)[..., disc]  # noqa: E731
                ours = same_norm(network, (x / 255 - 0.5).float(), symmetry, g, seen)
                contrast = same_norm(network, (x - 0.5).float(), symmetry, g, seen)
                declared = " -> ".join(map(written, (into, out)))
                rows.append([name, added, declared, number(theirs), number(ours), apart(ours, theirs)])
                rows[-1] += [number(contrast), verdict]
    return rows


def families() -> None:
    """Our family of escnn's layers moves fields as escnn does."""
    for name in ("C4", "D4", "D4, axis 0"):
        group, space = spaces()[name]
        fields = enn.FieldType(space, [*space.fibergroup.irreps(), space.regular_repr])
        elements, x = list(space.fibergroup.elements), torch.randn(1, fields.size, 6, 6)
        moved = EscnnFields(fields)(elements_of(group, space, elements), x.repeat(len(elements), 1, 1, 1))
        torch.testing.assert_close(moved, torch.cat([fields.transform(x, e) for e in elements]))


def aligned(rows: Rows) -> str:
    """Lines of Markdown."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write agree_with_escnn.csv and .md to this folder")
    parser.add_argument("--fast-dev-run", action="store_true", help="C4 alone, small grids")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)

    families()
    tables: dict[str, Rows] = {}
    for title, make in {
        "Actions: the largest |ours - escnn's| / |field| over the elements": actions,
        "Layers and networks, 10 pixels a side": layers,
        "A broken filter: noise added to it, in parts of its own size": broken,
        "Sizes of the grid": grids,
        "R2Conv's own check, on a photograph": own_checks,
    }.items():
        tables[title] = make(args.fast_dev_run)
        print(f"\n{title}\n\n{aligned(tables[title])}", flush=True)
    if args.out is not None:
        versions = ", ".join(f"{m.__name__} {m.__version__}" for m in (lightning_equiv, escnn, torch, np, scipy))
        head = "`python examples/benchmarks/agree_with_escnn.py --out docs/results`\n\n"
        head += f"{versions}, Python {platform.python_version()}, CPU.\n"
        text = "\n".join(f"\n## {title}\n\n{aligned(rows)}" for title, rows in tables.items())
        (args.out / "agree_with_escnn.md").write_text(f"{head}\n{NOTES}{text}\n")
        with (args.out / "agree_with_escnn.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["table", "case", "figure", "value"])
            for title, (header, *rows) in tables.items():
                for i, row in enumerate(rows):
                    writer.writerows([title, i, h, cell] for h, cell in zip(header, row, strict=True))
        print(f"written: {args.out / 'agree_with_escnn'}.md, .csv")


if __name__ == "__main__":
    main()
