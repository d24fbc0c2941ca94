"""What a user may get wrong, and what the message says."""

import math
import re

import pytest
import torch
from e3nn import o3
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_equiv import (
    E3,
    O3,
    SE3,
    SO2,
    SO3,
    CartesianTensor,
    Composed,
    Custom,
    Cyclic,
    Dihedral,
    Factor,
    Group,
    Image,
    Invariant,
    IrrepsTensor,
    NodeIndex,
    Permutation,
    Permuted,
    Point,
    Product,
    Representation,
    Symmetry,
    VectorField,
    as_group,
    as_representation,
)
from tests.contracts import GROUPS, draw
from tests.helpers import normal

ROTATIONS = draw(SO3(), 4).matrix


def refused(message, error=ValueError):
    return pytest.raises(error, match=message)


# ---- groups ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("SU(3)", "did you mean 'SO(3)'"),
        ("SO(4)", "did you mean 'SO"),
        ("SO3D", "did you mean 'SO(3)'"),
        ("E(2)", r"did you mean 'E\(3\)"),
        ("C-4", "did you mean 'C4'"),
        ("", "expected one of 'SO(2)', 'SO(3)'"),
        ("anything", "expected one of 'SO(2)', 'SO(3)'"),
        ("SO(3) x ", "SO(3) x"),
        ("SO(3) x nonsense", "nonsense"),
    ],
)
def test_unknown_group(name, hint):
    with refused(hint.replace("(", r"\(").replace(")", r"\)").replace(r"\\", "\\")) as caught:
        as_group(name)
    assert "no group is named" in str(caught.value)


@pytest.mark.parametrize("value", [3, None, SO3, ["SO(3)"]])
def test_a_group_is_a_group_or_a_string(value):
    with refused("expected a Group or its name", TypeError):
        as_group(value)


@pytest.mark.parametrize(
    "make", [lambda: Cyclic(0), lambda: as_group("C0"), lambda: Dihedral(-1), lambda: Permutation(0)]
)
def test_groups_of_nothing(make):
    with refused("a whole number of at least 1"):
        make()


def test_empty_product():
    with refused("at least one factor"):
        Product(())


@pytest.mark.parametrize("scale", [-1.0, math.nan, math.inf])
def test_translation_scale(scale):
    for group in (SE3, E3):
        with refused("expected the translation scale to be a finite number of at least 0"):
            group(scale)


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("n", [0, -1])
def test_drawing_nothing(name, n):
    with refused(rf"at least one element of .*n={n} \(an empty batch"):
        GROUPS[name].group.sample(n)


def test_too_many_permutations_to_list():
    with refused("S9 has 362880 elements, too many to list"):
        Permutation(9).elements()


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (torch.eye(2), r"shape \(3, 3\) or \(n, 3, 3\), got \(2, 2\)"),
        (torch.eye(3).expand(2, 2, 3, 3), r"got \(2, 2, 3, 3\)"),
        (torch.ones(3), r"got \(3,\)"),
        (torch.ones(0, 3, 3), r"got \(0, 3, 3\)"),
        (torch.full((3, 3), math.nan), "NaN"),
        (torch.full((3, 3), math.inf), "NaN or infinity"),
        (1.01 * torch.eye(3), r"\|R R\^T - 1\| = 0.02: orthogonalise"),
        (1.1 * torch.eye(3, dtype=torch.bfloat16), "orthogonalise"),
        (torch.zeros(3, 3), "orthogonalise"),
        (torch.cat([ROTATIONS, 2 * ROTATIONS]), "orthogonalise"),
    ],
)
def test_matrices_are_checked(matrix, message):
    for element in (SO3().element, O3().element, lambda R: SE3().element(R, torch.zeros(3))):
        with refused(message):
            element(matrix)


def test_reflections_are_not_rotations():
    for element in (SO3().element, lambda R: SE3().element(R, torch.zeros(4, 3))):
        with refused(r"got a reflection: O\(3\) has those"):
            element(torch.cat([ROTATIONS[:3], -ROTATIONS[3:]]))
    assert len(O3().element(-ROTATIONS)) == 4
    assert len(E3().element(-ROTATIONS, torch.zeros(4, 3))) == 4


@pytest.mark.parametrize("matrix", [None, [[1.0]], ROTATIONS.numpy(), torch.eye(3).long(), torch.eye(3).cfloat()])
def test_matrices_are_real_tensors(matrix):
    with refused(r"expected a real torch.Tensor of matrices of SO\(3\)", TypeError):
        SO3().element(matrix)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_matrices_of_every_precision_are_good(dtype):
    assert SO3().element(draw(SO3(), 500).matrix.to(dtype)).matrix.dtype == dtype


@pytest.mark.parametrize("shift", [torch.zeros(3, 3), torch.zeros(4, 2), torch.zeros(4), torch.tensor(0.0)])
def test_translations_are_checked(shift):
    with refused(r"expected translations of shape \(4, 3\)"):
        SE3().element(ROTATIONS, shift)
    with refused("finite translations"):
        SE3().element(ROTATIONS, torch.full((4, 3), math.nan))


@pytest.mark.parametrize(
    "order",
    [[0, 1], [0, 1, 1], [1, 2, 3], [0.0, 1.0, 2.0], [[0, 1, 2], [0, 0, 2]], [[0, 1, 2, 3]], 0, [[[0, 1, 2]]], []],
)
def test_permutations_are_checked(order):
    with refused(r"expected orderings of 0 \.\. 2"):
        Permutation(3).element(torch.tensor(order))


def test_elements_of_different_groups_do_not_compose():
    for g, h in ((draw(SO3(), 2), draw(O3(), 2)), (draw(Cyclic(4), 2), draw(Cyclic(6), 2))):
        with refused("elements of one group"):
            g @ h
    with refused("elements of one group"):
        draw(SO3(), 2) @ torch.eye(3)


def test_what_a_group_has_not():
    with refused("S3 have no matrix", AttributeError):
        _ = draw(Permutation(3), 2).matrix
    with refused("S3 has no matrices", AttributeError):
        _ = Permutation(3).algebra().matrix
    with refused(r"SO\(3\) permute nothing", AttributeError):
        _ = draw(SO3(), 2).permutation
    assert draw(SO3(), 2).translation is None
    with refused("more than one factor"):
        _ = draw(SO3() * SO3(), 2).matrix
    with refused("more than one factor"):
        _ = draw(Permutation(3) * Permutation(3), 2).permutation
    with refused("vectors of 3 components, but the tensor holds vectors of 2"):
        draw(SO3(), 2).matrix_in(2)


# ---- representations -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("rho", "group", "shape", "message"),
    [
        ("1o", SO3(), (2, 4), r"expects 3 components along dimension -1.*got a tensor of shape \(2, 4\)"),
        ("2x1o+0e", SO3(), (2, 6), "expects 7 components"),
        ("1o", SO3(), (3,), "first dimension that is the batch"),
        (IrrepsTensor("1o", dim=2), SO3(), (2, 3), "along dimension 2"),
        (IrrepsTensor("1o", dim=0), SO3(), (3, 3), "along dimension 0"),
        (Point(), SE3(), (2, 2), "expects 3 components"),
        (Point(), SO2(), (2, 4), "expects 3 components"),
        (Point(), SE3(), (3,), "first dimension that is the batch"),
        (Point(dim=0), SE3(), (3, 3), "along dimension 0"),
        (Point(dim=5), SE3(), (3, 3), "along dimension 5"),
        (Point(dim=-5), SE3(), (3, 3), "along dimension -5"),
        (CartesianTensor(), SO3(), (3, 3), "first dimension that is the batch"),
        (CartesianTensor(), SO3(), (2, 3, 2), "expects 3 components along dimension -1"),
        (CartesianTensor(), SO2(), (5, 2, 3), "along dimension -2"),
        (CartesianTensor(), SO2(), (5, 3, 2), "along dimension -2"),
        (Permuted(1), Permutation(4), (2, 3), "expects 4 components along dimension 1"),
        (Permuted(0), Permutation(4), (4, 3), "along dimension 0"),
        (Permuted((1, 2)), Permutation(4), (2, 4, 3), "along dimension 2"),
        (Image(), SO3(), (2, 4, 4), r"needs a group of the plane \(SO\(2\), C4, D4\), got SO\(3\)"),
        (Image(), Cyclic(4), (2, 4, 5), "square grid"),
        (Image(), Cyclic(4), (4, 4), "expects .batch"),
        (VectorField(), Cyclic(4), (2, 3, 4, 4), "expects 2 components along dimension -3"),
        (VectorField(), Cyclic(4), (2, 4, 4), "along dimension -3"),
        (Factor(2, "1o"), SO3() * O3(), (2, 3), "it has 2, counted from 0"),
        (Permuted(1) @ "1o", SO3() * Permutation(4), (2, 3, 3), "expects 4 components"),
    ],
)
def test_shapes_are_checked(rho, group, shape, message):
    with refused(message):
        as_representation(rho)(draw(group, 1), torch.ones(shape))


@pytest.mark.parametrize("rho", [IrrepsTensor("1o"), Point(), CartesianTensor(1), Image(), VectorField()], ids=repr)
def test_whole_numbers_are_not_turned(rho):
    group = SO2() if isinstance(rho, Image | VectorField) else SO3()
    x = torch.ones((2, 2, 3, 3) if group == SO2() else (2, 3), dtype=torch.long)
    with refused(r"floating point .*got torch.int64: write x.float\(\)"):
        rho(draw(group, 2), x)
    with refused(r"floating point .*got torch.int64: write x.float\(\)"):
        rho.infinitesimal(group.algebra()[0], x)


def test_rank_of_a_cartesian_tensor():
    with refused("to be a whole number of at least 1, got 0"):
        CartesianTensor(0)


@pytest.mark.parametrize(
    ("rho", "group"),
    [
        ("1o", "S5"),
        (Point(), "S5"),
        (CartesianTensor(), "S5"),
        (Permuted(1), "SO(3)"),
        (Permuted(1) @ "1o", "SO(3)"),
        (Permuted(1) @ "1o", "S5"),
        ("1o", "SO(3) x SO(3)"),
        (Factor(1, "1o"), "SO(3) x S5"),
        (Factor(0, Permuted(1)), "SO(3) x S5"),
        (Factor(2, "1o"), "SO(3) x S5"),
        (Factor(1, "1o"), "SO(3)"),
        (Image(), "SO(3)"),
        (Image(), "S5"),
        (VectorField(), "E(3)"),
    ],
)
def test_a_symmetry_is_refused_when_made(rho, group):
    for arguments in ((rho, Invariant()), (Invariant(), {"y": (rho,)})):
        with refused(r"^`(inputs|outputs)`: .*"):
            Symmetry(group, *arguments)
    with refused("^`batch`: "):
        Symmetry(group, Invariant(), Invariant(), batch=rho)


# ---- strings ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "__import__('os').system('true')",
        "().__class__",
        "Point().__class__",
        "Custom(print)",
        "Custom('print')",
        "lambda g, x: x",
        "Representation()",
        "Points()",
        "point()",
        "Point",
        "Point(",
        "Point(dimension=1)",
        "Point(1, 2)",
        "Point(**{'dim': 1})",
        "Point(*[1])",
        "Factor()",
        "Factor(0, 1)",
        "Factor(0, 'nonsense')",
        "'1o' + '1e'",
        "1o @ 1e",
        "1o,1e",
        "1x",
        "1o+",
        "1",
        "CartesianTensor(0)",
        "IrrepsTensor(5)",
        "[Point()]",
        "Point(dim=open('x'))",
        "\0",
        "(" * 500 + ")" * 500,
        "-" * 100_000 + "1",
        "@".join(["'1o'"] * 20_000),
    ],
    ids=lambda text: text[:20],
)
def test_unknown_representation(text):
    with refused(
        "no representation is written .*expected irreps such as '16x0e[+]1o', or one of CartesianTensor"
    ) as caught:
        as_representation(text)
    assert "Custom" not in str(caught.value).replace(repr(text), "")


def test_strings_are_not_evaluated(tmp_path):
    trace = tmp_path / "trace"
    for text in (
        f"open({str(trace)!r}, 'w')",
        f"Point(dim=open({str(trace)!r}, 'w'))",
        f"Point() @ open({str(trace)!r}, 'w')",
    ):
        with refused("no representation"):
            as_representation(text)
    assert not trace.exists()


@pytest.mark.parametrize("value", [3, None, 1.5, object()])
def test_not_a_representation(value):
    with refused("expected a representation, irreps such as '1o' or a callable", TypeError):
        as_representation(value)


def test_class_in_place_of_a_representation():
    with refused(r"got the class Point: write Point\(\.\.\.\)", TypeError):
        Symmetry("SE(3)", (Point, "1o"), "1o")


def test_irreps_that_are_none():
    with refused("expected irreps such as '16x0e[+]8x1o', got '1x'"):
        IrrepsTensor("1x")


# ---- symmetries ------------------------------------------------------------------------------------------------------
X, M = normal(4, 4, seed=3, dtype=torch.float32).split([3, 1], dim=1)
G = draw(SO3(), 4)


def move(inputs, *args, group="SO(3)", index=None, network=None, **kwargs):
    symmetry = Symmetry(group, inputs, "1o", index=index)
    return symmetry.bind(network, args, kwargs).move(G)


def by_position_only(*args, **kwargs):
    pass


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: move(("1o",), X, M), r"'1' \(shape \(4, 1\), .* is not named by the symmetry's `inputs`.*Point"),
        (lambda: move({"x": "1o"}, x=X, cell=M), "'cell' .*is not named"),
        (lambda: move({"x": {"a": "1o"}}, x={"a": X, "b": [M]}), r"'x\.b\.0' .*is not named"),
        (lambda: move({"pos": "1o", "mas": "0e"}, pos=X, mass=M), r"'mas' \(did you mean 'mass'\?\).*'mass', 'pos'"),
        (lambda: move({"a": {"pos": "1o"}}, a={"poss": X}), r"names 'a\.pos' \(did you mean 'poss'\?\)"),
        (lambda: move({"other": "1o"}, {"x": X}), r"names 'other', but what was passed holds only \['x'\]"),
        (lambda: move(("1o", "0e"), X), "does not mirror what was passed at 'the top'.*a tuple of 1"),
        (lambda: move("1o", (X, M)), "does not mirror what was passed at '0'.*a tuple of 2"),
        (lambda: move("1o", {"x": X}), "does not mirror what was passed at '0'.*a dict of 1: x"),
        (lambda: move((("1o",),), X), r"does not mirror what was passed at '0'.*a tensor of shape \(4, 3\)"),
        (lambda: move(({"x": "1o"},), (X,)), "does not mirror"),
        (lambda: move((("1o",),), {"x": X}), "does not mirror"),
        (lambda: move(("1o", "0e"), X, M[:3]), r"'1' has shape \(3, 1\), but 4 rows are .*Invariant\(shared=True\)"),
        (lambda: move(("1o", Invariant()), X, torch.ones(2)), r"'1' has shape \(2,\), but 4 rows"),
        (lambda: move("1o", X[:0]), "at least one input, got an empty batch"),
        (lambda: move(Invariant(shared=True), X), "no tensor of a tuple of 1: 0 has a batch dimension"),
        (lambda: move("1o", None), "no tensor"),
        (lambda: move("1o"), "does not mirror"),
        (lambda: move("1o", X[:3]), "expected 3 elements .one for each input. or one, got 4"),
        (lambda: move("2e", X), r"'0' in `inputs`: IrrepsTensor\('1x2e'\) expects 5 components along dimension -1"),
        (lambda: move({"x": "2e"}, x=X), "'x' in `inputs`: "),
        (lambda: move({"x": "1o", "m": "0e"}, X, M), "called with 2 arguments by position whose names are unknown"),
        (lambda: move({"x": "1o"}, X), "called with 1 arguments by position whose names are unknown"),
        (lambda: move(("1o", "0e"), X, m=M), "keyword 'm' whose position is unknown: write `inputs` as a dict"),
        (lambda: move(("1o", "0e"), X, m=M, network=by_position_only), "keyword 'm' whose position is unknown"),
        (lambda: move({"x": "1o"}, x=X, index="graph"), r"index='graph' names no tensor of the call: it holds \['x'\]"),
        (lambda: move({"x": "1o"}, x=X, graph=M[:, 0], index="graph"), r"expected whole numbers.*torch.float32"),
        (lambda: move({"x": "1o"}, x=X, graph=torch.zeros(4, 1).long(), index="graph"), r"expected whole numbers"),
        (lambda: move({"x": "1o"}, x=X[:0], graph=torch.zeros(0).long(), index="graph"), "empty batch"),
        (lambda: move({"x": "1o"}, x=X, graph=torch.arange(3), index="graph"), r"each graph \(3\) or each node \(3\)"),
        (lambda: move(("1o", NodeIndex()), X, torch.zeros(2, 3).long()), r"'1' points at nodes.*Invariant\(shared"),
    ],
)  # fmt: skip
def test_calls_that_are_not_mirrored(call, message):
    with refused(message):
        call()


@pytest.mark.parametrize("name", ["inputs", "outputs"])
def test_inputs_and_outputs_must_be_said(name):
    arguments = {"inputs": "1o", "outputs": "1o", name: None}
    with refused(f"expected `{name}` to say how"):
        Symmetry("SO(3)", **arguments)


def test_outputs_are_checked_too():
    symmetry = Symmetry("SO(3)", "1o", {"y": "1o"})
    with refused("'z' .*is not named by the symmetry's `outputs`"):
        symmetry.move_outputs(G, {"y": X, "z": X})
    with refused("rows"):
        symmetry.move_outputs(G, {"y": X[:3]})


# ---- anything at all -------------------------------------------------------------------------------------------------
PIECES = st.sampled_from(
    [
        *(
            "1o",
            "0e",
            "16x",
            "2e",
            "+",
            "x",
            "@",
            "(",
            ")",
            "'",
            ",",
            "=",
            " ",
            "-",
            "*",
            "1",
            "[",
            "]",
            "dim",
            "None",
            "\\",
        ),
        *("Point", "Permuted", "Factor", "Composed", "IrrepsTensor", "Invariant", "Custom", "Image", "CartesianTensor"),
        *(
            "SO(3)",
            "S5",
            "C4",
            "D",
            "E(3)",
            " x ",
            "٣",
            "lambda",
            "__import__",
            "\n",
            "#",
            "{",
            "}",
            ":",
            "1e9",
            "'1o'",
        ),
    ]
)
TEXT = st.one_of(st.text(max_size=20), st.lists(PIECES, max_size=8).map("".join))
FUZZ = settings(max_examples=250, deadline=None, derandomize=True, database=None)


@FUZZ
@given(TEXT)
def test_any_string_is_a_group_or_a_value_error(text):
    try:
        group = as_group(text)
    except ValueError:
        return
    assert isinstance(group, Group)
    assert as_group(str(group)) == group


@FUZZ
@given(TEXT)
def test_any_string_is_a_representation_or_a_value_error(text):
    try:
        rho = as_representation(text)
    except ValueError:
        return
    assert isinstance(rho, Representation)
    assert not isinstance(rho, Custom)
    assert as_representation(repr(rho)) == rho


def nested(leaves):
    def containers(inner):
        return st.one_of(st.lists(inner, max_size=3), st.tuples(inner), st.dictionaries(st.sampled_from("xym"), inner))

    return st.recursive(leaves, containers, max_leaves=5)


SPECS = nested(st.sampled_from(["1o", "0e", "Point()", "Permuted(1)", "?", None, 3, Image(), o3.Irreps("1o")]))
TREES = nested(st.sampled_from([X, M, X[:0], X[:1], torch.ones(()), torch.ones(4, 5).long(), None, 3, "text"]))


@FUZZ
@given(
    group=st.sampled_from(["SO(3)", "SE(3)", "C4", "S5", "SO(3) x S5", "SO(3) x O(3)", "nothing"]),
    inputs=SPECS,
    args=st.lists(TREES, max_size=2).map(tuple),
    kwargs=st.dictionaries(st.sampled_from("xym"), TREES, max_size=2),
    index=st.sampled_from([None, None, "x", 0]),
)
def test_any_spec_is_a_symmetry_or_an_error_in_words(group, inputs, args, kwargs, index):
    message = "as it should be"
    try:
        symmetry = Symmetry(group, inputs, "Invariant()", index=index)
        bound = symmetry.bind(lambda x, y, m: None, args, kwargs)
        bound.move(symmetry.group.sample(2 * bound.num_inputs), times=2)
    except (ValueError, TypeError) as error:
        message = str(error)
    assert re.search("expect|needs|write|say|names|mirror|as it should be", message), message


def test_composed_of_strings():
    assert Composed("Permuted(1)", "1o") == Permuted(1) @ "1o"
    assert Factor(0, "1o").representation == IrrepsTensor("1o")
