"""Strings, specs, trees and settings drawn at random: each is taken, or refused in words."""

import inspect
import math
import re
from functools import partial

import numpy as np
import pytest
import torch
from e3nn import o3
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import nn

import lightning_equiv as le
from lightning_equiv import Symmetry, as_group, as_representation, equivariance_error
from lightning_equiv.symmetry.tree import tensors
from tests.contracts import concrete_subclasses
from tests.helpers import TOLERANCE, seeded

FUZZ = settings(max_examples=100, deadline=10_000, derandomize=True, database=None)  # 10 s: a hang, not a busy machine
REFUSED = (ValueError, TypeError)
ROWS = 3


def said(error, *patterns):
    """The message says what was expected, and whatever else it should."""
    words = "expect|is not named by|does not mirror|names .* but|names a factor that|needs|: write "
    for pattern in (words, *patterns):
        assert re.search(pattern, str(error)), error


# ---- strings ---------------------------------------------------------------------------------------------------------
GROUPS = ["SO(2)", "SO(3)", "O(3)", "SE3", "E(3, scale=2.5)", "C4", "D4", "S5", "SO(3) x S5", "C4 x D4 × SO(2)"]
WRITTEN = [
    *("1o", "16x0e+8x1o+4x2e", "Point()", "IrrepsTensor('1o', dim=2)", "CartesianTensor(rank=3)", "Permuted((1, 2))"),
    *("Permuted(1) @ '1o'", "Factor(0, '1o') @ Factor(1, Permuted(1))", "Composed('1o', Point())", "NodeIndex()"),
    *("Invariant(shared=True)", "Shifted(-2)", "Image() @ Regular(-3)", "VectorField()", "Factor(-1, Factor(0, '2e'))"),
]
NAMES = sorted(cls.__name__ for cls in concrete_subclasses(le.Representation))
TOKENS = [*"SECDx+@()[]{},=-* .'\"#\\\n\0", "SO", " x ", " × ", "'1o'", "1o", "2e", "16x", "dim=", "lambda", *NAMES]
NUMBERS = ["0", "1", "-1", "7", "1.5", "1e400", "9999999999", "9" * 5000, "٣", "²", "True", "None", "1j", "..."]
CHARACTER = st.one_of(st.just(""), st.sampled_from("0123456789()x×@+-.,'\" oeCDSE=[]{}\0٣²\n"), st.characters())
LITERAL = st.recursive(
    st.sampled_from([0, 1, -1, 2, 7, 1.5, math.inf, 10**10, True, None, "1o", "x", "", b"1o", 1j, ...]),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.tuples(inner, inner), st.dictionaries(st.just("x"), inner)),
    max_leaves=4,
)


@st.composite
def mutated(draw, valid):
    """A valid string with one character taken out, put in or exchanged."""
    text = draw(st.sampled_from(valid))
    at = draw(st.integers(0, len(text)))
    return text[:at] + draw(CHARACTER) + text[at + draw(st.integers(0, 1)) :]


def strings(valid):
    words = st.lists(st.sampled_from([*TOKENS, *NUMBERS]), max_size=8).map("".join)
    return st.one_of(mutated(valid), words, st.text(max_size=20))


@st.composite
def calls(draw):
    arguments = draw(st.lists(LITERAL, max_size=2))
    return f"{draw(st.sampled_from(NAMES))}({', '.join(map(repr, arguments))})"


@FUZZ
@given(strings(GROUPS))
@example("C" + "9" * 5000)
@example("S" + "9" * 100)
@example("C999999999999")
@example("SE(3, scale=1e400)")
@example("SE(3, scale=" + "9" * 5000 + ")")
@example(" x ".join(["S5"] * 3000))
def test_a_string_is_a_group_or_refused_in_words(text):
    try:
        group = as_group(text)
    except REFUSED as error:
        said(error, "expected", "got |named ")
        return
    assert as_group(str(group)) == group
    assert as_group(str(group) + " x C2").factors[-1] == le.Cyclic(2)


@settings(FUZZ, max_examples=200)
@given(st.one_of(strings(WRITTEN), calls()))
@example("9999999999x0e")
@example("IrrepsTensor('99999999x9o')")
@example("IrrepsTensor('1o', 'x')")
@example("@".join(["'1o'"] * 150))
def test_a_string_is_a_representation_or_refused_in_words(text):
    try:
        rho = as_representation(text)
    except REFUSED as error:
        said(error, "expected", re.escape(repr(text)))
        return
    assert not isinstance(rho, le.Custom)
    assert as_representation(repr(rho)) == rho


HUGE = {
    "SO(3)": ["9999999999x0e", "99999999x9o", "1x99999999e", "CartesianTensor(999999999999)", f"Point({10**20})"],
    "S5": [f"Permuted({10**20})"],
    **{f"S{10**n}": ["Permuted(1)"] for n in (13, 22)},
    **{f"SO(3) x S{10**n}": ["1o"] for n in (13, 22)},
    **{f"{polygon}{10**12}": ["Shifted(1)", "Regular(1)"] for polygon in "CD"},
    **{f"{polygon}{10**22}": ["1o"] for polygon in "CD"},
}


@pytest.mark.parametrize(("group", "rho"), [(group, rho) for group, rhos in HUGE.items() for rho in rhos])
def test_huge_numbers_are_refused_where_they_do_not_fit(group, rho):
    def move():
        symmetry = Symmetry(group, rho, "Invariant()")
        symmetry.move_inputs(symmetry.group.sample(2), (torch.ones(2, 2),))

    with pytest.raises(REFUSED, match=r"expect|needs the group"):
        move()


# ---- specs, as a configuration file holds them -----------------------------------------------------------------------
def nested(leaves):
    def containers(inner):
        lists = st.lists(inner, max_size=3)
        return st.one_of(lists, lists.map(tuple), st.dictionaries(st.sampled_from(["x", "y", "a.b"]), inner))

    return st.recursive(leaves, containers, max_leaves=5)


OBJECTS = [None, 3, 0, 1.5, math.nan, True, b"1o", {"1o"}, object(), le.Point, torch.ones(3), np.ones(3), print, 1j]
ANYTHING = st.one_of(st.sampled_from([*WRITTEN, *OBJECTS, o3.Irreps("1o"), o3.Irrep("1o")]), mutated(WRITTEN), calls())
SPECS = nested(ANYTHING)


@settings(FUZZ, max_examples=300)
@given(st.sampled_from([*GROUPS, None, 3, "nothing", le.Cyclic]), SPECS, SPECS, st.one_of(st.none(), SPECS))
@example("S5", "Permuted('1')", "1o", None)
@example("SO(3)", "Point('x')", "1o", None)
@example("SO(3)", "CartesianTensor(1.5)", "1o", None)
@example("SO(3) x S5", "Factor('a', '1o')", "1o", None)
@example("SO(3) x S5", "Factor(1.5, '1o')", "1o", None)
def test_a_spec_is_a_symmetry_or_refused_in_words(group, inputs, outputs, batch):
    try:
        symmetry = Symmetry(group, inputs, outputs, batch=batch)
    except REFUSED as error:
        said(error)
        return
    assert Symmetry(symmetry.group, symmetry.inputs, symmetry.outputs, batch=symmetry.batch) == symmetry
    assert repr(symmetry).startswith("Symmetry(group=")
    assume(all(not isinstance(rho, le.Custom) for rho in symmetry.inputs))  # a user's function may raise anything
    try:
        symmetry.move_inputs(symmetry.group.sample(2), (torch.ones(2, 3),))
    except REFUSED as error:
        said(error)


# ---- trees that a spec mirrors ---------------------------------------------------------------------------------------
COMMON = [("Invariant()", (ROWS, 2)), ("Invariant()", ()), ("Invariant(shared=True)", (7,)), (None, None)]
SPACE = [("1o", (ROWS, 3)), ("2x0e+1x2e", (ROWS, 4, 7)), ("IrrepsTensor('1o', dim=2)", (ROWS, 2, 3, 4))]
POINTS = [("Point()", (ROWS, 4, 3)), ("CartesianTensor(2)", (ROWS, 3, 3)), ("Point(dim=1)", (ROWS, 3, 2))]
PLANE = [("Image()", (ROWS, 4, 4)), ("VectorField()", (ROWS, 4, 5, 5)), ("Point()", (ROWS, 2)), ("1e", (ROWS, 3))]
FITTING = {
    "SO(3)": SPACE + POINTS,
    "E(3)": SPACE + POINTS,
    "C4": [*PLANE, ("Shifted(1)", (ROWS, 8, 2)), ("Image() @ Regular(-3)", (ROWS, 4, 3, 3))],
    "D4": [*PLANE, ("Regular(1)", (ROWS, 8)), ("Image() @ Regular(-3)", (ROWS, 8, 3, 3))],
    "S5": [("Permuted(1)", (ROWS, 5)), ("Permuted((1, 2))", (ROWS, 5, 5)), ("Permuted(-1)", (ROWS, 2, 5))],
    "SO(3) x S5": [*SPACE, ("Permuted(1) @ '1o'", (ROWS, 5, 3)), ("Factor(1, Permuted(1))", (ROWS, 5, 2))],
    "O(3) x SO(3)": [("Factor(0, '1e')", (ROWS, 3)), ("Factor(1, Point()) @ Factor(0, Point(1))", (ROWS, 3, 3))],
}


class Leaf:
    """A representation and a tensor that it moves; None and a text."""

    def __init__(self, rho, shape):
        self.rho, self.shape = rho, shape

    def value(self, dtype):
        if self.rho is None:
            return "text"
        return torch.randn(self.shape, generator=seeded(len(self.shape)), dtype=torch.float64).to(dtype)


def mapped(function, tree):
    if isinstance(tree, dict):
        return {key: mapped(function, value) for key, value in tree.items()}
    return type(tree)(mapped(function, v) for v in tree) if isinstance(tree, list | tuple) else function(tree)


def shown(tree):
    """Everything of a tree but its numbers."""
    return mapped(lambda x: (x.shape, x.dtype) if isinstance(x, torch.Tensor) else x, tree)


def acted(rho, g, x):
    """Every tensor that has a row for each element, moved by itself."""
    if isinstance(x, dict):
        return {key: acted(rho[key], g, value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(acted(r, g, value) for r, value in zip(rho, x, strict=True))
    return rho(g, x) if isinstance(x, torch.Tensor) and x.shape[:1] == (ROWS,) else x


def close(left, right, dtype):
    assert shown(left) == shown(right)
    for (_, a), (_, b) in zip(tensors(left), tensors(right), strict=True):
        torch.testing.assert_close(a, b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@st.composite
def mirrored(draw):
    """A symmetry, a tuple that its specs mirror, and the precision."""
    group, dtype = draw(st.sampled_from(list(FITTING))), draw(st.sampled_from(list(TOLERANCE)))
    fitting = [Leaf(*leaf) for leaf in FITTING[group]]
    others = nested(st.sampled_from([*fitting, *(Leaf(*leaf) for leaf in COMMON)]))
    leaves = (draw(st.sampled_from(fitting)), *draw(st.lists(others, max_size=2)))  # at least one that has rows
    spec = mapped(lambda leaf: leaf.rho, leaves)
    return Symmetry(group, spec, spec, batch=spec), mapped(lambda leaf: leaf.value(dtype), leaves), dtype


def by_keyword(symmetry, g, x):
    named = Symmetry(symmetry.group, dict(zip("xyz", symmetry.inputs, strict=False)), "Invariant()")
    return tuple(named.move_inputs(g, kwargs=dict(zip("xyz", x, strict=False)))[1].values())


MOVES = {
    "inputs": lambda symmetry, g, x: symmetry.move_inputs(g, x)[0],
    "outputs": lambda symmetry, g, x: symmetry.move_outputs(g, x),
    "batch": lambda symmetry, g, x: symmetry.move_batch(g, x),
}


@FUZZ
@given(mirrored(), st.sampled_from([*MOVES.values(), by_keyword]), st.integers(0, 99), st.sampled_from([1, ROWS]))
def test_what_a_spec_mirrors_is_moved(case, move, seed, n):
    symmetry, x, dtype = case
    move, generator, before = partial(move, symmetry), seeded(seed), mapped(lambda v: 1 * v, x)
    g, h = (symmetry.group.sample(count, generator=generator) for count in (n, ROWS))
    close(move(g, x), acted(symmetry.inputs, g, x), dtype)
    close(move(symmetry.group.identity(n), x), x, dtype)
    close(move(g @ h, x), move(g, move(h, x)), dtype)
    close(x, before, dtype)


@FUZZ
@given(mirrored(), st.sampled_from(["relative", "absolute", "orbit_mean", "max"]), st.booleans())
def test_an_identity_has_no_error(case, kind, per_irrep):
    symmetry, x, dtype = case
    options = {"kind": kind, "per_irrep": per_irrep, "num_samples": 2}
    metric = le.EquivarianceError(symmetry, **options)
    if any(value.ndim == 0 for _, value in tensors(x)):
        with pytest.raises(REFUSED, match="shared=True"):
            metric.update(lambda *args: args, *x)
        return
    metric.update(lambda *args: args, *x)
    for errors in (equivariance_error(lambda *args: args, x, symmetry, **options), metric.compute()):
        for error in errors.values() if per_irrep else [errors]:
            assert float(error.max()) < 100 * max(TOLERANCE[dtype], TOLERANCE[torch.float32])


WRONG = [
    *(lambda x: x[..., None], lambda x: [x], lambda x: {"x": x, "y": None}, lambda x: (), lambda x: None),
    *(lambda x: x.long(), lambda x: x > 0, lambda x: x.to(torch.complex64), lambda x: "text"),
    *(lambda x: x[:0] if x.ndim else x, lambda x: x[:-1] if x.ndim else x, lambda x: x[0] if x.ndim else x),
    *(lambda x: x[..., :1] if x.ndim else x, lambda x: torch.cat([x, x[..., :1]], -1) if x.ndim else x),
]


@settings(FUZZ, max_examples=300)
@given(mirrored(), st.sampled_from(sorted(MOVES)), st.sampled_from(WRONG), st.integers(0, 9))
def test_what_a_spec_does_not_mirror_is_moved_or_named(case, which, wrong, number):
    symmetry, x, _ = case
    paths = [path for path, _ in tensors(x)]
    place, count = number % len(paths), iter(range(len(paths)))
    broken = mapped(lambda v: wrong(v) if isinstance(v, torch.Tensor) and next(count) == place else v, x)
    try:
        moved = MOVES[which](symmetry, symmetry.group.sample(ROWS, generator=seeded()), broken)
    except REFUSED as error:
        # of two tensors with unlike rows either is the wrong one; of none there is none to name
        offenders = "|".join(map(re.escape, paths)) if "rows" in str(error) else re.escape(paths[place])
        said(error, f"'({offenders})['.]|got an empty batch|no tensor of a |one for each input. or one")
        return
    assert shown(moved) == shown(broken)


def test_an_array_is_not_taken_for_something_that_nothing_moves():
    symmetry = Symmetry("SO(3)", ("1o", {"y": "1o"}), "1o")
    with pytest.raises(REFUSED, match=r"'1\.y'.*ndarray"):
        symmetry.move_inputs(symmetry.group.sample(ROWS), (torch.ones(ROWS, 3), {"y": np.ones((ROWS, 3))}))


@pytest.mark.parametrize("inputs", [{"x": {"x": "1o"}}, {"x": "1o"}], ids=["by name", "one dict"])
def test_an_argument_may_hold_a_part_of_its_own_name(inputs):
    symmetry, x = Symmetry("SO(3)", inputs, "1o"), torch.ones(ROWS, 3)
    g = symmetry.group.sample(ROWS)
    moved = symmetry.move_inputs(g, kwargs={"x": {"x": x}})[1]
    close(moved, {"x": {"x": as_representation("1o")(g, x)}}, torch.float32)


def test_complex_numbers_do_not_lose_a_half():
    with pytest.raises(REFUSED, match="complex"):
        equivariance_error(lambda x: x + 1j, torch.ones(ROWS, 3), Symmetry("SO(3)", "1o", "Invariant()"))


# ---- settings --------------------------------------------------------------------------------------------------------
TURNED = Symmetry("SO(3)", "1o", "1o", batch=("1o", "1o"))
MAKERS = [
    partial(le.REMUL, TURNED),
    partial(le.ConstraintRelaxation, "SO(3)", "*"),
    partial(le.RECM, TURNED, "*"),
    partial(le.SymmetryCloning, nn.Linear(3, 3), inputs=[(3,)]),
    partial(le.EquivarianceMonitor, TURNED),
    partial(le.EquivarianceError, TURNED),
    partial(le.SymmetryModule, nn.Identity()),
    partial(le.IrrepsTensor, "1o"),
    partial(le.Factor, representation="1o"),
    *map(partial, [le.SE3, le.E3, le.Cyclic, le.Dihedral, le.Permutation]),
    *map(partial, [le.Point, le.Permuted, le.Shifted, le.Regular, le.CartesianTensor]),
]
SETTINGS = [
    pytest.param(make, name, id=f"{make.func.__name__}-{name}")
    for make in MAKERS
    for name, parameter in inspect.signature(make).parameters.items()
    if re.search(r"\b(int|float|Literal|Kind|Evaluate|Resample)\b", str(parameter.annotation)) and name != "seed"
]
WILD = [math.nan, math.inf, -math.inf, -1, 0, 1e308, 2**70, 10**400, 2.5, "x", "", "1", None, [], {}, 1j, object()]


@pytest.mark.parametrize(("make", "name"), SETTINGS)
def test_settings_are_taken_or_refused_in_words(make, name):
    faults = []
    for value in WILD:
        try:
            make(**{name: value})
        except REFUSED as error:
            if "expected" not in str(error) or not (name in str(error) or repr(value) in str(error)):
                faults.append(f"{value!r}: {type(error).__name__}: {error}")
        else:
            faults += [f"{value} passed silently"] if value != value else []
    assert not faults, "\n".join(faults)
