"""What a report says of data whose symmetry is known."""

from __future__ import annotations

import json
import math

import pytest
import torch

from lightning_equiv import Image, Invariant, Point, Symmetry
from lightning_equiv.datasets import ChargedDataModule, DigitsDataModule, charged_dataset, gravity_dataset
from lightning_equiv.discovery.run import symmetry_report
from tests.helpers import normal

FAST = {"level": 0.05, "draws": 199}
CHARGES = Symmetry("SO(3)", {"charges": Invariant(), "positions": "1o", "velocities": "1o"}, "1o")


def verdicts(report):
    return {f.name: f.verdict for f in report.findings}


def clouds(n, seed=0, axis_only=False):
    """Labelled points in any pose, or in any pose about z."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, 3, generator=generator, dtype=torch.float64)
    if axis_only:
        x[:, 0, 2] += 1.5
    return x


def test_a_field_is_found_in_the_labels_and_its_axis_is_kept():
    data = charged_dataset(200, steps=100, field=20.0)
    report = symmetry_report(data, CHARGES, "targets", level=0.01)
    assert verdicts(report) == {
        "SO(2) about x": "broken", "SO(2) about y": "broken", "SO(2) about z": "kept", "SO(3)": "broken"
    }  # fmt: skip
    whole = report["SO(3)"]
    assert (whole.on_inputs, whole.on_labels) == ("kept", "broken")
    assert whole.joint.variation > 0.2
    field = whole.conditional.field
    assert math.degrees(math.acos(float(field[2]))) < 8  # up, with its sign
    assert whole.conditional.share > 0.05
    assert whole.task.high < 1
    assert report["SO(2) about z"].task.high > 0.95
    assert report.kept == "SO(2) about z"
    words = " ".join(report.advice)
    assert "declare 'SO(2)'" in words
    assert "RECM" in words


def test_without_a_field_nothing_is_found():
    report = symmetry_report(charged_dataset(200, steps=100), CHARGES, "targets", level=0.01)
    assert set(verdicts(report).values()) == {"kept"}
    assert report.kept == "SO(3)"
    assert "Nothing proves a symmetry" in report.advice[0]


def test_a_tilted_field_is_found_about_its_own_axis():
    data = charged_dataset(250, steps=100, field=20.0)
    axis = torch.tensor([2.0, -1.0, 2.0]) / 3
    turn = torch.linalg.qr(torch.stack([axis, torch.eye(3)[0], torch.eye(3)[1]], 1))[0].flip(1)
    turned = {k: v @ turn.T if v.ndim == 3 else v for k, v in data.items()}
    report = symmetry_report(turned, CHARGES, "targets", **FAST)
    extra = report.findings[3]
    cosine = abs(float(extra.candidate.axis.double() @ axis.double()))
    assert math.degrees(math.acos(min(1.0, cosine))) < 10
    assert extra.verdict == "kept"
    assert report.findings[2].verdict == "broken"  # about z


def test_turned_a_little_breaks_the_inputs_and_not_the_labels():
    symmetry = Symmetry("SO(3)", {"masses": Invariant(), "positions": "1o", "velocities": "1o"}, "1o")
    report = symmetry_report(gravity_dataset(200), symmetry, "targets", level=0.01)
    whole = report["SO(3)"]
    assert (whole.on_inputs, whole.on_labels) == ("broken", "kept")
    assert whole.inputs.auc > 0.9
    assert report["SO(2) about z"].verdict == "kept"
    assert "labels turn along" in report.advice[0]


def test_handedness_is_found_by_what_reflects_only():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 4, 3, generator=generator, dtype=torch.float64)
    x = x * torch.linalg.det(x[:, 1:] - x[:, :1]).sign()[:, None, None]  # by the inversion, all of one hand
    weights = torch.arange(4.0).expand(400, 4)
    symmetry = Symmetry("O(3)", (Invariant(), "1o"), Invariant())
    found = verdicts(symmetry_report((weights, x), symmetry, **FAST))
    assert {name for name, v in found.items() if v == "broken"} == {
        "inversion", "reflection of x", "reflection of y", "reflection of z", "O(3)"
    }  # fmt: skip
    assert found["SO(3)"] == "kept"


@pytest.mark.parametrize(
    ("problem", "expected"), [("broken", ("kept", "broken")), ("kept", ("broken", "not told apart"))]
)
def test_digits_say_what_they_were_made_to_say(problem, expected):
    pytest.importorskip("sklearn")
    data = DigitsDataModule(f"rotations {problem}", train_size=600)
    report = symmetry_report(data, Symmetry("C4", {"images": Image()}, Invariant()), "labels", **FAST)
    whole = report["C4"]
    assert (whole.on_inputs, whole.on_labels) == expected
    assert (report["C2"].verdict == "kept") == (problem == "broken")


def test_an_orbit_seen_in_one_pose_is_not_told_apart():
    generator = torch.Generator().manual_seed(0)
    x = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]], dtype=torch.float64)
    x = x + 0.05 * torch.randn(200, 4, 3, generator=generator, dtype=torch.float64)
    energy = (x[:, 1] - x[:, 0]).norm(dim=-1)
    report = symmetry_report(x, Symmetry("SO(3)", "1o", Invariant()), energy, **FAST)
    whole = report["SO(3)"]
    assert (whole.on_inputs, whole.on_labels, whole.verdict) == ("broken", "not told apart", "broken")
    assert "one pose" in whole.words
    assert "question of physics" in report.advice[0]


def test_the_order_of_the_data_and_batches_do_not_matter():
    data = charged_dataset(60, steps=20)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    turned = {name: x[order] for name, x in data.items()}
    batches = [{name: x[i : i + 25] for name, x in turned.items()} for i in (0, 25, 50)]
    one, two = (symmetry_report(d, [CHARGES], "targets", **FAST).findings[0] for d in (data, batches))
    for a, b in ((one.inputs, two.inputs), (one.joint, two.joint), (one.conditional, two.conditional)):
        assert a.p == b.p
    assert one.inputs.auc == pytest.approx(two.inputs.auc, abs=1e-9)


def test_groups_are_moved_and_split_as_a_whole():
    """Twenty frames of one trajectory are one independent thing, in any pose; taken for twenty they would break S1."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(40, 1, 3, 3, generator=generator, dtype=torch.float64)
    frames = (start + 0.01 * torch.randn(40, 20, 3, 3, generator=generator, dtype=torch.float64)).flatten(0, 1)
    ids = torch.arange(40).repeat_interleave(20)
    symmetry = [Symmetry("SO(3)", {"x": "1o"}, Invariant())]
    grouped = symmetry_report({"x": frames, "id": ids}, symmetry, groups="id", **FAST)
    assert grouped.num_units == 40
    assert grouped.findings[0].inputs.tested == 20
    assert grouped.findings[0].on_inputs != "broken"
    assert not grouped.notes
    alone = symmetry_report({"x": frames}, symmetry, **FAST)
    assert "groups=" in alone.notes[0]


def test_copies_are_left_out_and_said():
    x = clouds(30)
    report = symmetry_report(torch.cat([x, x]), [Symmetry("SO(3)", "1o", Invariant())], **FAST)
    assert report.num_inputs == 30
    assert "30 of 60" in report.notes[0]


def test_graphs_of_varying_size():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(3, 9, (120,), generator=generator)
    index = torch.arange(120).repeat_interleave(sizes)
    x = torch.randn(len(index), 3, generator=generator, dtype=torch.float64)
    symmetry = Symmetry("SO(3)", {"pos": Point()}, Invariant(), index="batch")
    kept = symmetry_report({"pos": x, "batch": index}, [symmetry], **FAST)
    assert kept.findings[0].on_inputs == "kept"
    flat = symmetry_report({"pos": x * torch.tensor([1.0, 1.0, 0.5]), "batch": index}, [symmetry], **FAST)
    assert flat.findings[0].on_inputs == "broken"


def test_pyg_graphs_and_a_witness_of_ones_own():
    data = pytest.importorskip("torch_geometric.data")
    generator = torch.Generator().manual_seed(0)
    graphs = []
    for _ in range(60):
        pos = torch.randn(int(torch.randint(3, 7, (1,), generator=generator)), 3, generator=generator)
        graphs.append(data.Data(pos=pos * torch.tensor([1, 1, 0.3]), y=pos.square().sum()[None]))
    batches = [data.Batch.from_data_list(graphs[:25]), data.Batch.from_data_list(graphs[25:])]
    symmetry = Symmetry("SO(3)", {"pos": Point()}, Invariant())

    def heights(graph):
        total = torch.zeros(graph.num_graphs).index_add(0, graph.batch, graph.pos[:, 2].square())
        return total[:, None]

    report = symmetry_report(batches, [symmetry], "y", witness=heights, **FAST)
    assert report.num_inputs == 60
    assert report.findings[0].on_inputs == "broken"


def test_a_network_is_measured_beside():
    data = charged_dataset(60, steps=20)
    flat = symmetry_report(
        data, [CHARGES, "SO(3)"], "targets", network=lambda charges, positions, velocities: positions, **FAST
    )
    assert flat.findings[0].error < 1e-6
    upright = symmetry_report(
        data, [CHARGES], "targets", network=lambda charges, positions, velocities: positions.abs(), **FAST
    )
    assert upright.findings[0].error > 0.3


def test_a_data_module_and_files(tmp_path):
    data = ChargedDataModule(train_size=60, val_size=20, test_size=20, steps=20)
    report = symmetry_report(data, CHARGES, "targets", **FAST)
    assert report.num_inputs == 60
    for ending in (".html", ".md", ".txt", ".json"):
        assert report.save(tmp_path / f"report{ending}").stat().st_size > 500
    held = json.loads((tmp_path / "report.json").read_text())
    assert [g["group"] for g in held["groups"]][-1] == "SO(3)"
    assert report.conclusion in (tmp_path / "report.txt").read_text()
    with pytest.raises(ValueError, match=r"ends in one of"):
        report.save(tmp_path / "report.pdf")


def test_too_few_inputs_for_a_verdict_is_said():
    report = symmetry_report(clouds(20), [Symmetry("SO(3)", "1o", Invariant())], level=0.001, draws=999)
    assert report.findings[0].verdict == "not told apart"
    assert "too few" in report.advice[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": clouds(19)}, "at least 20 independent inputs, got 19 inputs"),
        ({"groups": torch.arange(30) // 2}, "got 15 groups of inputs"),
        ({"labels": torch.ones(30)}, "labels of all 30 inputs are equal"),
        ({"candidates": Symmetry("SE(3)", Point(), Invariant())}, r"not compact.*Centre the inputs.*'SO\(3\)'"),
        ({"candidates": Symmetry("T(3)", Point(), Invariant())}, "not compact.*leave it out"),
        ({"draws": 99, "level": 0.001}, "write draws="),
        ({"witness": "forest"}, "expected witness to be one of"),
        ({"witness": lambda x: x.sum()}, r"return features \(30, k\)"),
        ({"data": clouds(30).log()}, "NaN or infinity"),
        ({"data": [(clouds(15),), (clouds(15, 1),)], "labels": torch.rand(30)}, "got values, and 2 batches"),
        ({"candidates": Symmetry("SO(3)", Invariant(), Invariant())}, "move none of the features"),
    ],
)
def test_what_cannot_be_tested_is_said(change, message):
    settings = {"data": clouds(30), "candidates": [Symmetry("SO(3)", "1o", Invariant())], **change}
    if isinstance(settings["candidates"], Symmetry):
        settings["candidates"] = [settings["candidates"]]
    with pytest.raises(ValueError, match=message):
        symmetry_report(**settings)


def test_candidates_without_a_symmetry():
    with pytest.raises(TypeError, match="expected a Symmetry"):
        symmetry_report(clouds(30), "SO(3)")


def test_labels_of_several_outputs_are_where_a_dict_says():
    x = normal(200, 4, 3)
    y = {"size": x.norm(dim=-1).sum(1, keepdim=True), "mean": x.mean(1)}
    symmetry = Symmetry("SO(3)", {"x": "1o"}, {"size": "0e", "mean": "1o"})
    data = {"x": x, "s": y["size"], "labels": [y["mean"]]}
    by_name = symmetry_report(data, symmetry, {"size": "s", "mean": ["labels", 0]}, **FAST).as_dict()["groups"]
    assert by_name == symmetry_report(data, symmetry, lambda _: y, **FAST).as_dict()["groups"]
    assert by_name == symmetry_report(data, symmetry, y, **FAST).as_dict()["groups"]
