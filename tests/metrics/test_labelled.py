"""Figures with labels: the identity of oriented, averaged and variance; averages over whole groups by a loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_equiv import Invariant, Point, Symmetry, class_changes, oriented_errors, turns
from lightning_equiv.metrics.labelled import label_parts, oriented_errors_of
from lightning_equiv.metrics.measurement import measuring
from lightning_equiv.metrics.orbit import orbit
from tests.helpers import close, normal, seeded

C6 = Symmetry("C6", Point(), Point())
VECTORS = Symmetry("SO(3)", "1o", "1o")


def bent(x: Tensor) -> Tensor:
    return x + 0.2 * x[:, :1] + 0.1


def turned_back(x: Tensor, symmetry: Symmetry = C6) -> Tensor:
    """(|G|, n, ..) outputs turned back, by a loop over the group."""
    z = []
    for i in range(symmetry.group.order):
        g = symmetry.group.elements()[i]
        (gx,), _ = symmetry.move_inputs(g, (x,))
        z.append(symmetry.move_outputs(g.inverse(), bent(gx)))
    return torch.stack(z)


def test_a_whole_group_by_a_loop():
    x, y = normal(7, 2), normal(7, 2, seed=1)
    errors, z = oriented_errors(bent, x, C6, y, num_samples=None), turned_back(x)
    close(errors.as_is, (bent(x) - y).square().sum(-1))
    close(errors.oriented, (z - y).square().sum(-1).mean(0))
    close(errors.averaged, (z.mean(0) - y).square().sum(-1))
    close(errors.variance, (z - z.mean(0)).square().sum(-1).mean(0))
    close(errors.oriented, errors.averaged + errors.variance)
    close(errors.rmse("oriented"), (z - y).square().mean().sqrt())


def test_draws_estimate_the_same_without_bias():
    x, y = normal(1, 3).expand(4000, 3).contiguous(), normal(1, 3, seed=1)
    few = oriented_errors(bent, x, VECTORS, y.expand(4000, 3).contiguous(), num_samples=3, generator=seeded())
    many = oriented_errors(bent, x[:1], VECTORS, y, num_samples=60000, generator=seeded(1))
    for name in ("averaged", "variance", "oriented"):
        values, expected = getattr(few, name), getattr(many, name)
        assert abs(float(values.mean() - expected)) < 4 * float(values.std()) / math.sqrt(4000) + 2e-2, name
    close(few.oriented, few.averaged + few.variance)


def test_averaging_a_symmetric_task_helps_by_the_variance():
    """y = x, f = x + c: averaging turns c away, so that all of the oriented error is variance."""
    c = torch.tensor([0.0, 0.3, 0.4], dtype=torch.float64)
    errors = oriented_errors(lambda x: x + c, normal(300, 3), VECTORS, normal(300, 3), generator=seeded())
    assert float(errors.rmse("oriented")) == pytest.approx(0.5 / math.sqrt(3))
    assert float(errors.variance.mean()) == pytest.approx(0.25, rel=0.02)
    assert abs(float(errors.averaged.mean())) < 0.005


def test_parts_and_graphs():
    symmetry = Symmetry("SO(3)", {"pos": "1o"}, {"e": Invariant(), "f": "1o"}, index="batch")

    def network(data: dict[str, Tensor]) -> dict[str, Tensor]:
        x, batch = data["pos"], data["batch"]
        return {"e": x.new_zeros(int(batch.max()) + 1).index_add(0, batch, x[:, 0]), "f": bent(x)}

    data = {"pos": normal(5, 3), "batch": torch.tensor([0, 0, 0, 1, 1])}
    labels = {"e": normal(2, seed=1), "f": normal(5, 3, seed=2)}
    found = oriented_errors(network, (data,), symmetry, labels, per_irrep=True, generator=seeded())
    assert set(found) == {"total", "e", "f.1o"}
    assert found["f.1o"].numbers.tolist() == [9, 6]
    assert found["total"].numbers.tolist() == [10, 7]
    close(found["total"].oriented, found["e"].oriented + found["f.1o"].oriented)
    close(found["e"].as_is, (network(data)["e"] - labels["e"]).square())


def test_one_set_of_draws_serves_many_figures():
    x, y = normal(5, 2), normal(5, 2, seed=1)
    with measuring(bent, x, C6) as measurement:
        turned = orbit(measurement, measurement.elements(None))
        found = oriented_errors_of(turned, label_parts(measurement, y), drawn=False)["total"]
    close(found.variance, oriented_errors(bent, x, C6, y, num_samples=None).variance)


def test_the_task_error_at_an_angle():
    """Of x + c against x, moved and labels alike: |c|^2 at every angle; of a network that looks along z, by a loop."""
    z = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    network = lambda x: x * (1 + (x @ z)[:, None])  # noqa: E731
    x, g = normal(6, 3), turns("SO(3)", 1.0, 5, generator=seeded())
    found = oriented_errors(network, x, VECTORS, x, elements=g)
    moved = torch.stack([network(x @ r.mT) - x @ r.mT for r in g.matrix])
    close(found.oriented, moved.square().sum(-1).mean(0))


def test_labels_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"shaped as the network's output.*got a tensor of shape \(4, 1\)"):
        oriented_errors(bent, normal(4, 3), VECTORS, normal(4, 1))
    with pytest.raises(ValueError, match=r"labels of shape \(4,\).*got \(4, 1\)"):
        oriented_errors(lambda x: x[:, 0], normal(4, 3), Symmetry("SO(3)", "1o", "0e"), normal(4, 1))
    with pytest.raises(ValueError, match="num_samples"):
        oriented_errors(bent, normal(4, 3), VECTORS, normal(4, 3), num_samples=1)


# ---- classes ---------------------------------------------------------------------------------------------------------
def logits(x: Tensor) -> Tensor:
    return torch.stack([x[:, 0], x[:, 1], -x[:, 0] - 0.2], -1)


def test_classes_by_a_loop():
    symmetry = Symmetry("C6", Point(), Invariant())
    x, labels = normal(50, 2), torch.arange(50) % 3
    changes = class_changes(logits, x, symmetry, labels, num_samples=None)
    p = torch.stack([logits(symmetry.move_inputs(symmetry.group.elements()[i], (x,))[0][0]) for i in range(6)])
    answers, own = p.argmax(-1), logits(x).argmax(-1)
    close(changes.changed, (answers != own).double().mean(0))
    kl = torch.nn.functional.kl_div(
        p.log_softmax(-1), logits(x).log_softmax(-1).expand_as(p), reduction="none", log_target=True
    )
    close(changes.divergence, kl.sum(-1).mean(0))
    close(changes.right, (own == labels).double())
    close(changes.right_oriented, (answers == labels).double().mean(0))
    close(changes.right_averaged, (p.softmax(-1).mean(0).argmax(-1) == labels).double())


def test_an_invariant_classifier_never_changes():
    changes = class_changes(
        lambda x: torch.stack([x.norm(dim=-1), 1 - x.norm(dim=-1)], -1), normal(20, 3), Symmetry("SO(3)", "1o", "2x0e")
    )
    assert float(changes.changed.max()) == 0
    assert abs(float(changes.divergence.max())) < 1e-12


def test_what_is_no_classifier_is_refused():
    with pytest.raises(ValueError, match="one output of logits"):
        class_changes(lambda x: x[:, :1], normal(4, 2), Symmetry("C6", Point(), Invariant()))
    with pytest.raises(ValueError, match="class numbers"):
        class_changes(logits, normal(4, 2), Symmetry("C6", Point(), Invariant()), normal(4))
