"""audit against closed forms and direct calls of the metrics, and that a model is left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_equiv import (
    CartesianTensor,
    EquivarianceReport,
    Invariant,
    Point,
    Symmetry,
    as_group,
    audit,
    class_changes,
    equivariance_error,
    layerwise_error,
    lie_derivative_error,
)
from tests.helpers import global_seed, normal, seeded

VECTORS = Symmetry("SO(3)", "1o", "1o")
SMALL: dict[str, Any] = {"draws": 16, "progress": False}


def linear(matrix: Tensor) -> nn.Linear:
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, dtype=matrix.dtype)
    with torch.no_grad():
        layer.weight.copy_(matrix)
    return layer


def mlp(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    with global_seed(3):
        return nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 3)).to(dtype)


def spherical_design(n: int) -> Tensor:
    """n inputs, one along each axis in turn: their second moments are those of the sphere."""
    return torch.eye(3, dtype=torch.float64).repeat(n // 3, 1)


MATRIX = normal(3, 3, seed=5)


@pytest.fixture(scope="module")
def of_matrix():
    return audit(linear(MATRIX), spherical_design(240), VECTORS, draws=64, progress=False)


# ---- figures ---------------------------------------------------------------------------------------------------------
def shares_of(matrix: Tensor) -> list[float]:
    """A 3 x 3 matrix by J: its trace, its antisymmetric part, and what is symmetric without trace; e_J / |W|^2."""
    trace = torch.eye(3, dtype=torch.float64) * matrix.trace() / 3
    odd = (matrix - matrix.mT) / 2
    even = (matrix + matrix.mT) / 2 - trace
    return [float(part.square().sum() / matrix.square().sum()) for part in (trace, odd, even)]


def inside(interval: Any, value: float, times: float = 1.6) -> bool:
    """Whether a value is within so many widths of a 95 % interval."""
    middle, low, high = interval
    return bool(abs(value - middle) <= times * max(high - middle, middle - low) + 1e-12)


def test_spectrum_and_error_of_a_linear_map(of_matrix: Any) -> None:
    shares = shares_of(MATRIX)
    figures = of_matrix.figures
    for name, share in zip("012", shares, strict=True):
        assert inside(figures["spectrum"]["shares"][name], share)
    for name in ("3", "4", "rest"):
        assert inside(figures["spectrum"]["shares"][name], 0.0)
    # mean over the axes of E_g |g^-1 W g x - W x|^2 = 2 (e_1 + e_2), whatever the axes
    assert abs(of_matrix.error[0] - (2 * (shares[1] + shares[2])) ** 0.5) < 0.03
    assert figures["verdict"] == "not equivariant"


def test_roughness_of_a_linear_map(of_matrix: Any) -> None:
    """Mean of J (J + 1) / 2 over the error: 1 of degree 1 and 3 of degree 2."""
    _, odd, even = shares_of(MATRIX)
    assert abs(of_matrix.figures["spectrum"]["roughness"] - (odd + 3 * even) / (odd + even)) < 0.35


def test_generators_of_a_linear_map(of_matrix: Any) -> None:
    """L_i f = (W A_i - A_i W) x, exactly: nothing is drawn."""
    basis = VECTORS.group.algebra_matrix(VECTORS.group.algebra())
    commutators = MATRIX @ basis - basis @ MATRIX
    gram = torch.einsum("iab,jab->ij", commutators, commutators) / MATRIX.square().sum()
    found = of_matrix.figures["lie"]
    torch.testing.assert_close(torch.tensor(found["gram"], dtype=torch.float64), gram, rtol=1e-10, atol=1e-12)
    assert abs(found["total"].value - float(gram.trace().sqrt())) < 1e-10
    assert abs(found["slope"] - float((gram.trace() / 3).sqrt())) < 1e-10
    assert found["kept"] == "none"


def test_profile_of_a_linear_map(of_matrix: Any) -> None:
    """2 sum e_J (1 - chi_J(a) / (2J + 1)): 0 at 0, and all of it known at every angle."""
    _, odd, even = shares_of(MATRIX)
    found = of_matrix.figures["profile"]
    assert found["error"][0].value < 1e-14
    for angle, error in zip(found["angles"][1:], found["error"][1:], strict=True):
        a = torch.tensor(angle, dtype=torch.float64).deg2rad()
        chi = [float(torch.sin((2 * j + 1) * a / 2) / torch.sin(a / 2)) / (2 * j + 1) for j in (1, 2)]
        square = 2 * (odd * (1 - chi[0]) + even * (1 - chi[1]))
        assert inside(error, square**0.5, 2.0), angle


def test_same_figures_as_the_metrics() -> None:
    """The deterministic ones to rounding, the sampled ones within their intervals."""
    net, x = mlp(torch.float64), normal(48, 3)
    report = audit(net, x, VECTORS, draws=64, progress=False)
    derivative = lie_derivative_error(net, x, VECTORS)
    torch.testing.assert_close(torch.tensor(report.figures["lie"]["gram"], dtype=torch.float64), derivative.gram)
    own = equivariance_error(net, x, VECTORS, num_samples=512, generator=seeded(7))
    norms = net(x).detach().square().sum(1)
    value = float(((own.square() * norms).sum() / norms.sum()).sqrt())
    assert inside(report.figures["error"]["total"], value, 1.0)
    sampled = torch.tensor(report.figures["each"], dtype=torch.float64)
    twin = own * (norms / norms.mean()).sqrt()
    assert float((sampled - twin).abs().median() / twin.median()) < 0.1


def test_a_finite_group_is_taken_whole() -> None:
    net, x = mlp(torch.float64), normal(20, 3)
    symmetry = Symmetry("C4", "1o", "1o")
    report = audit(net, x, symmetry, draws=8, progress=False)
    own = equivariance_error(net, x, symmetry, num_samples=None)
    norms = net(x).detach().square().sum(1)
    assert abs(report.error[0] - float(((own.square() * norms).sum() / norms.sum()).sqrt())) < 1e-12
    assert report.figures["how"]["whole"]
    assert "lie" not in report.figures
    assert "Generators" not in str(report)
    # with the whole group the two ways to the variance are one: 2 (1 - e_0) of E |z|^2 = E_gh |z(g) - z(h)|^2
    matrices = torch.eye(3, dtype=torch.float64).repeat(4, 1, 1)
    matrices[:, :2, :2] = symmetry.group.elements().matrix
    z = torch.stack([net(x @ m.mT).detach() @ m for m in matrices])
    share = float(z.mean(0).square().sum() / z.square().sum(-1).mean(0).sum())
    assert abs(next(iter(report.figures["spectrum"]["shares"].values())).value - share) < 1e-12
    assert report.figures["spectrum"]["roughness"] is None


def test_labelled_identity_and_its_figures(of_matrix: Any) -> None:
    x = normal(90, 3)
    report = audit(linear(MATRIX), (x, x), VECTORS, labels=1, **SMALL)
    found = report.figures["labels"]["total"]
    square = {name: found[name].value ** 2 for name in ("averaged", "variance", "oriented")}
    assert abs(square["averaged"] + square["variance"] - square["oriented"]) < 1e-12
    assert abs(found["as_is"].value ** 2 - float((x @ MATRIX.mT - x).square().mean())) < 1e-12
    assert abs(found["removed"].value - square["variance"] / square["oriented"]) < 1e-12
    # averaging leaves trace / 3 times the identity
    averaged = float((MATRIX.trace() / 3 - 1).square() * x.square().mean())
    assert abs(square["averaged"] - averaged) < 0.15 * averaged


def test_class_changes() -> None:
    """Classes by the sign of x: half of all turns change an answer."""
    symmetry = Symmetry("SO(2)", "1o", Invariant())
    x = normal(64, 3)
    y = (x[:, 0] > 0).long()
    report = audit(linear(torch.tensor([[-1.0, 0, 0], [1, 0, 0]]).double()), (x, y), symmetry, labels=1, **SMALL)
    found = report.figures["classes"]
    assert inside(found["changed"], 0.5)
    assert found["right"].value == 1.0
    assert inside(found["right_oriented"], 0.5)
    own = class_changes(linear(torch.tensor([[-1.0, 0, 0], [1, 0, 0]]).double()), x, symmetry, y, num_samples=256)
    assert inside(found["divergence"], float(own.divergence.mean()))


def test_the_tasks_own_metric() -> None:
    x = normal(64, 3)
    report = audit(linear(MATRIX), (x, x), VECTORS, labels=1, metric=nn.functional.l1_loss, **SMALL)
    found = report.figures["task"]
    assert abs(found["as_is"] - float((x @ MATRIX.mT - x).abs().mean())) < 1e-12
    assert found["name"] == "l1_loss"
    assert found["averaged"] < found["oriented"]


# ---- verdicts --------------------------------------------------------------------------------------------------------
class Longer(nn.Module):
    """|x| x, and a part of it that is stretched along z."""

    def __init__(self, stretch: float) -> None:
        super().__init__()
        self.register_buffer("factors", torch.tensor([1.0, 1.0, 1.0 + stretch], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x.norm(dim=-1, keepdim=True) * x * self.factors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("stretch", "verdict"), [(0.0, "exact to rounding"), (0.1, "approximate"), (-4.0, "not equivariant")]
)
def test_verdicts(dtype: torch.dtype, stretch: float, verdict: str) -> None:
    report = audit(Longer(stretch).to(dtype), normal(32, 3).to(dtype), VECTORS, **SMALL)
    assert report.verdict == verdict
    assert report.figures["how"]["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_break_as_small_as_rounding_is_not_rounding(dtype: torch.dtype) -> None:
    """Ten times the rounding of float32 is seen in float32, and twenty times that of float64 in float64."""
    stretch = 1e-6 if dtype == torch.float32 else 1e-14
    report = audit(Longer(stretch).to(dtype), normal(32, 3).to(dtype), VECTORS, **SMALL)
    assert report.verdict == "approximate"


def test_a_break_of_the_size_of_rounding_is_seen_in_float64() -> None:
    report = audit(Longer(2.4e-7).float(), normal(32, 3).float(), VECTORS, **SMALL)
    floor = report.figures["floor"]
    assert report.error[0] < 3 * floor["value"].value
    assert floor["in_float64"].value > 0.5 * floor["value"].value
    assert report.verdict == "approximate"


@pytest.mark.parametrize(("share", "verdict"), [(0.85, "approximate"), (0.6, "not equivariant")])
def test_half_of_unrelated_is_the_border(share: float, verdict: str) -> None:
    """A multiple of the identity that has this share of a map: an error of sqrt(1 - share) of unrelated outputs."""
    odd = torch.linalg.cross(torch.eye(3), torch.tensor([[1.0, 2.0, 3.0]]).expand(3, -1)).double()
    odd = odd / odd.norm()
    matrix = (share / 3) ** 0.5 * torch.eye(3, dtype=torch.float64) + (1 - share) ** 0.5 * odd
    report = audit(linear(matrix), spherical_design(60), VECTORS, draws=64, progress=False)
    assert abs(report.error[0] / report.figures["unrelated"] - (1 - share) ** 0.5) < 0.05
    assert report.verdict == verdict


def test_layers_of_several_batches() -> None:
    """Of 64 inputs at most, in the order of the data."""
    net = nn.Sequential(linear(MATRIX), nn.Tanh(), linear(MATRIX.mT.contiguous()))
    x = normal(100, 3)
    layers = {"0": ("1o", "1o"), "2": ("1o", "1o")}
    report = audit(net, [(b,) for b in x.split(25)], VECTORS, layers=layers, draws=4, progress=False)
    own = layerwise_error(net, x[:64], VECTORS, layers)
    found = report.figures["layers"]
    assert found["inputs"] == 64
    assert found["makes"] == pytest.approx(own.makes.tolist(), rel=1e-9)
    assert found["ends_up"] == pytest.approx(own.ends_up.tolist(), rel=1e-9)
    assert found["remainder"] == pytest.approx(float(own.remainder), rel=1e-9)
    assert "Of 64 inputs." in " ".join(str(report).split())


def test_the_worst_input_of_many() -> None:
    """Only the worst by sampling are refined; the largest error of |g c - c| is known, twice |c|."""
    x = normal(150, 3)
    x[101] *= 5

    def network(x: Tensor) -> Tensor:
        return x.square().sum(1, keepdim=True) * x.new_tensor([[1.0, 0, 0]])

    report = audit(network, x, VECTORS, draws=32, progress=False)
    worst = report.figures["worst"]
    assert worst["input"] == 101
    assert worst["error"] == pytest.approx(2 * float(x[101].square().sum()), rel=1e-2)
    g = torch.tensor(worst["element"][0], dtype=torch.float64)
    assert float(g[0, 0]) < -0.98
    assert len(worst["ten"]) == 10
    expected = (2 * x.square().sum(1)).topk(10)
    assert [row["input"] for row in worst["ten"]][:3] == expected.indices.tolist()[:3]


def test_an_ordinary_network_is_not_equivariant() -> None:
    report = audit(mlp(), normal(64, 3).float(), VECTORS, **SMALL)
    assert report.verdict == "not equivariant"
    assert 1.2 < report.figures["unrelated"] < 1.6
    assert report.figures["floor"]["value"].value < 1e-6


def test_a_large_constant_does_not_hide_an_error() -> None:
    """Energies of -10000 that turn by as much as they differ from each other."""
    symmetry = Symmetry("SO(3)", "1o", "0e")
    x = normal(200, 3)
    report = audit(lambda x: x[:, :1] - 1e4, x, symmetry, units={"": "eV"}, **SMALL)
    assert report.error[0] < 1e-3
    assert report.verdict == "not equivariant"
    assert abs(report.figures["unrelated"] * 1e4 - float(2**0.5 * x[:, 0].std())) < 1e-3
    text = " ".join(str(report).split())
    assert "that makes a relative error look small" in text
    assert " eV of " in text


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_unrelated_outputs_are_those_of_all_batches(batch: int) -> None:
    x = normal(40, 3)
    batches = [(b,) for b in x.split(batch)]
    report = audit(lambda x: x.square().sum(1, keepdim=True) + 9, batches, Symmetry("SO(3)", "1o", "0e"), **SMALL)
    y = x.square().sum(1) + 9
    assert abs(report.figures["unrelated"] - float((2 * y.var() / y.square().mean()).sqrt())) < 1e-6
    assert report.verdict == "exact to rounding"


def test_the_verdict_is_that_of_the_worst_output() -> None:
    """Large energies that are exact beside forces that are not."""

    class EnergyAndForces(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"energy": 1e3 * x.square().sum(1, keepdim=True), "forces": x.roll(1, -1)}

    symmetry = Symmetry("SO(3)", "1o", {"energy": "0e", "forces": "1o"})
    report = audit(EnergyAndForces(), normal(32, 3), symmetry, **SMALL)
    assert report.figures["verdicts"]["energy.0e"] == "exact to rounding"
    assert report.figures["verdicts"]["forces.1o"] == report.verdict == "not equivariant"
    assert report.figures["verdicts"]["total"] == "approximate"
    assert "The verdict is that of `forces.1o`" in " ".join(str(report).split())


def test_a_network_that_returns_zero() -> None:
    report = audit(lambda x: 0 * x, normal(8, 3), VECTORS, **SMALL)
    assert report.error[0] == 0
    assert report.verdict == "exact to rounding"
    assert "returned 0 throughout" in " ".join(str(report).split())


# ---- E(3) ------------------------------------------------------------------------------------------------------------
POINTS = Symmetry("E(3)", Point(), "0e")


def test_translations_are_told_apart() -> None:
    report = audit(lambda x: x.norm(dim=-1).sum(-1, keepdim=True), normal(24, 4, 3), POINTS, **SMALL)
    parts = report.figures["group_parts"]
    assert parts["rotations"].value < 1e-14
    assert parts["reflections"].value < 1e-14
    assert parts["translations"].value > 0.05
    assert report.figures["lie"]["kept"] == "rotations"
    assert report.figures["lengths"]["error"][-1].value > 10 * report.figures["lengths"]["error"][2].value


def test_reflections_are_told_apart() -> None:
    """A volume with its sign changes it under reflections, and under nothing else."""
    report = audit(lambda x: torch.linalg.det(x[:, 1:] - x[:, :1])[:, None], normal(24, 4, 3), POINTS, **SMALL)
    parts = report.figures["group_parts"]
    assert parts["rotations"].value < 1e-13
    assert abs(parts["reflections"].value - 2) < 1e-12
    assert parts["translations"].value < 1e-12
    assert report.figures["lie"]["kept"] == "all"
    assert inside(report.figures["spectrum"]["shares"]["0o"], 1.0)
    assert inside(report.figures["spectrum"]["shares"]["0e"], 0.0)


def test_translations_alone_have_no_spectrum() -> None:
    report = audit(nn.Identity(), normal(8, 4, 3), Symmetry("T(3)", Point(), Point()), **SMALL)
    assert report.verdict == "exact to rounding"
    assert "holds translations alone" in report.figures["skipped"]["spectrum"]
    assert "profile" not in report.figures
    assert "lengths" in report.figures


def test_many_permutations_have_no_spectrum() -> None:
    report = audit(lambda x: x + x[:, :1], normal(8, 9), Symmetry("S9", "Permuted(1)", "Permuted(1)"), **SMALL)
    assert "S9 are too many" in report.figures["skipped"]["spectrum"]
    assert report.figures["error"]["total"].value > 0.3


def test_stress_of_a_tensor_output() -> None:
    """x x^T moves as a tensor of rank 2, and its transposed sum with a constant does not."""
    symmetry = Symmetry("O(3)", "1o", CartesianTensor(2))
    exact = audit(lambda x: x[:, :, None] * x[:, None], normal(12, 3), symmetry, **SMALL)
    broken = audit(
        lambda x: x[:, :, None] * x[:, None] + torch.diag(x.new_tensor([0, 0, 1])), normal(12, 3), symmetry, **SMALL
    )
    assert exact.verdict == "exact to rounding"
    assert broken.verdict != "exact to rounding"
    assert broken.figures["lie"]["kept"] == "rotations about z"
    assert as_group("O(3)") == symmetry.group


def test_whole_numbers_beside() -> None:
    """A count is compared, too; it has a spectrum, and no derivative."""
    symmetry = Symmetry("SO(3)", "1o", {"y": "1o", "count": Invariant()})
    report = audit(lambda x: {"y": x, "count": (x > 0).sum(1)}, normal(32, 3), symmetry, **SMALL)
    assert report.figures["verdicts"]["y.1o"] == "exact to rounding"
    assert report.verdict != "exact to rounding"
    assert report.figures["spectrum"]["by_part"]["count"]["2"] != 0


def test_reports_of_several_groups_and_of_nothing_beside_each_other() -> None:
    x = normal(8, 3)
    groups = ("SO(3)", "SO(2)", "C4", "O(3)")
    reports = [audit(linear(MATRIX), x, Symmetry(group, "1o", "1o"), name=group, **SMALL) for group in groups]
    for network in (lambda x: 0 * x, lambda x: x * torch.nan):
        reports.append(audit(network, x, VECTORS, name="nothing", **SMALL))
    both = EquivarianceReport.compare(reports)
    assert both.verdict == "not equivariant"
    for written in (str(both), both.markdown(), both.html()):
        assert all(group in written for group in groups)
