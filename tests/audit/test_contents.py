"""From figures to a document: several models beside each other, nothing said twice, elements in words."""

from __future__ import annotations

import math
import re

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import nn

from lightning_equiv import E3, EquivarianceReport, Point, Symmetry, audit
from lightning_equiv.audit.cause_sections import _combination, _element
from lightning_equiv.audit.words import interval_words, percent, plainly, share_words

SYMMETRY = Symmetry("SO(3)", "1o", "1o")


class Longer(nn.Module):
    def forward(self, x):
        return x.norm(dim=-1, keepdim=True) * x


def linear(scale):
    torch.manual_seed(0)
    net = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.eye(3) + scale * torch.diag(torch.tensor([0.0, 0.0, 1.0])))
    return net


def report(net, symmetry=SYMMETRY, **settings):
    torch.manual_seed(1)
    x = torch.randn(24, 3)
    return audit(net, (x, x), symmetry, labels=1, draws=8, progress=False, **settings)


@pytest.fixture(scope="module")
def compared():
    reports = [report(linear(3.0)), report(linear(0.05)), report(Longer())]
    return EquivarianceReport.compare(reports, names=["far", "near", "exact"])


def tables(document):
    return {table.title: table for section in document.sections for table in section.tables}


def test_nothing_is_said_twice_of_several(compared):
    for section in compared.document.sections:
        sentences = [re.sub(r"^(far|near|exact)( and \w+)?: ", "", text) for text in section.text]
        assert len(set(sentences)) == len(sentences)
        titles = [re.sub(", (far|near|exact)$", "", table.title) for table in section.tables]
        assert len(set(titles)) == len(titles), section.key
        assert len({picture.name for picture in section.pictures}) == len(section.pictures)


def test_what_matters_is_in_one_table(compared):
    first = tables(compared.document)["Side by side"]
    assert first.header == ("", "far", "near", "exact")
    rows = {row[0]: row[1:] for row in first.rows}
    assert rows["verdict"] == tuple(r["verdict"] for r in compared.figures["reports"])
    errors = [r["error"]["total"] for r in compared.figures["reports"]]
    assert rows["relative error"] == tuple(map(interval_words, errors))
    assert rows["generators kept exactly"] == ("rotations about z", "rotations about z", "all")


def test_the_verdict_names_those_that_it_is_on(compared):
    verdicts = [r["verdict"] for r in compared.figures["reports"]]
    those = [name for name, v in zip(("far", "near", "exact"), verdicts, strict=True) if v == compared.verdict]
    assert compared.document.label == f"Verdict on {' and '.join(those)}"
    assert compared.document.label in str(compared)
    assert compared.document.label in compared.html()
    assert report(linear(1.0)).document.label == "Verdict"


def test_settings_that_are_alike_stand_once(compared):
    found = tables(compared.document)
    alike, differ = found["Settings, the same for all"], found["Settings, where they differ"]
    assert alike.header == ("", "value")
    assert ("group", "SO(3)") in alike.rows
    assert differ.header == ("", "far", "near", "exact")
    assert not {row[0] for row in alike.rows} & {row[0] for row in differ.rows}
    assert all(len(set(row[1:])) > 1 for row in differ.rows)


def test_the_rounding_of_an_exact_network_is_not_split_and_not_predicted():
    document = report(Longer()).document
    assert {"error_by_degree", "error_of_each_input", "error_against_angle"} & {p.name for p in document.pictures} == {
        "error_of_each_input",
        "error_against_angle",
    }
    (angles,) = [p for p in document.pictures if p.name == "error_against_angle"]
    assert angles.data["lines"] == {}


def test_models_far_apart_are_drawn_on_a_logarithmic_axis(compared):
    pictures = {p.name: p for p in compared.document.pictures}
    assert pictures["error_against_angle"].data["log"]
    assert pictures["error_by_degree"].data["log"]
    values = [v for s in pictures["error_by_degree"].data["series"].values() for v in s["value"] if v is not None]
    assert values
    assert min(values) > 0
    compared.figure()
    two = EquivarianceReport.compare([report(linear(0.5)), report(linear(1.0))], names=["a", "b"])
    assert not any(p.data.get("log") for p in two.document.pictures if p.name == "error_against_angle")


def test_outputs_have_tables_of_errors_of_their_own():
    symmetry = Symmetry("SO(3)", "1o", {"energy": "0e", "forces": "1o"})

    class Two(nn.Module):
        def forward(self, x):
            return {"energy": x[:, :1], "forces": x + 0.1}

    torch.manual_seed(0)
    x = torch.randn(24, 3)
    labels = {"energy": x[:, 1:2], "forces": x}
    found = audit(
        Two(), x, symmetry, labels=lambda _: labels, draws=8, units={"energy": "eV", "forces": "eV/Å"}, progress=False
    )
    assert {"Error of energy.0e in eV", "Error of forces.1o in eV/Å"} <= set(tables(found.document))
    assert "Error of total" not in str(found)


# ---- numbers and elements in words ----------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("improper", [False, True])
def test_a_rotation_in_words_is_that_rotation(seed, improper):
    matrix = Rotation.random(random_state=seed).as_matrix() * (-1 if improper else 1)
    words = _element([matrix.tolist()])
    assert words.startswith("inverted and ") == improper
    angle, *axis = (float(v) for v in re.findall(r"-?\d+\.?\d*", words))
    expected = Rotation.from_matrix(matrix * (-1 if improper else 1)).as_rotvec()
    length = math.sqrt(float(expected @ expected))
    assert abs(angle - math.degrees(length)) < 0.51
    assert axis == pytest.approx((expected / length).tolist(), abs=0.0051)


@pytest.mark.parametrize("axis", [(1.0, 0.0, 0.0), (0.0, 0.6, 0.8), (0.6, 0.0, -0.8)])
def test_a_half_turn_has_an_axis(axis):
    matrix = Rotation.from_rotvec([math.pi * v for v in axis]).as_matrix()
    angle, *found = (float(v) for v in re.findall(r"-?\d+\.?\d*", _element([matrix.tolist()])))
    assert angle == 180
    assert abs(sum(a * b for a, b in zip(axis, found, strict=True))) == pytest.approx(1, abs=0.01)


def test_elements_of_e3_are_turned_and_shifted():
    g = E3().sample(1, generator=torch.Generator().manual_seed(0))
    words = _element([c[0].tolist() for c in g.coordinates])
    assert "turned by" in words
    assert "shifted by" in words
    assert _element([[2, 0, 1]]) == "`[2, 0, 1]`"


def test_the_sign_of_a_direction_does_not_matter():
    axis = [0.1, -0.7, 0.7071]
    assert _combination(axis, ["x", "y", "z"]) == _combination([-v for v in axis], ["x", "y", "z"])


@pytest.mark.parametrize("write", [interval_words, share_words, plainly])
@pytest.mark.parametrize("value", [0.0, 1e-9, 3e-4, 0.04, 0.7, 1.3, 20.0, 3e5])
@pytest.mark.parametrize("spread", [0.0, 1e-9, 0.02, 0.4, 3.0])
def test_an_interval_is_written_around_its_value(write, value, spread):
    words = write((value, value * (1 - spread), value * (1 + spread)))
    numbers = [float(v) for v in re.findall(r"-?\d+\.?\d*(?:e[-+]\d+)?", words)]
    scale = 100 if "%" in words else 1
    assert len(numbers) in (1, 3)
    assert "-0 " not in words
    half = max(value * spread, 0.06 * value)
    assert numbers[0] / scale == pytest.approx(value, abs=0.5 * half + 1e-12)
    if len(numbers) == 3:
        assert numbers[1] <= numbers[0] <= numbers[2]


def test_missing_bounds_are_said():
    assert "too few inputs" in interval_words((0.3, None, None))
    assert "too few inputs" in plainly((0.3, math.nan, math.nan))
    assert percent(None) == percent(math.nan) == "–"


def test_points_are_unmoved_by_nobody():
    symmetry = Symmetry("E(3)", Point(), "1o")
    found = audit(lambda x: x * 0 + 1, torch.randn(8, 3), symmetry, draws=4, progress=False)
    assert "Every input is moved." in str(found)
