"""`soften` and `softness_curve`: closed forms, averages over elements, and what is measured."""

from __future__ import annotations

import csv
import itertools
import math
import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from e3nn import o3
from torch import Tensor, nn

from lightning_equiv import Image, Invariant, Symmetry, equivariance_error
from lightning_equiv.groups.product import as_group
from lightning_equiv.representations.linear_maps import LinearMaps
from lightning_equiv.representations.representation import as_representation
from lightning_equiv.symmetrize.soften import soften
from lightning_equiv.symmetrize.softness_curve import softness_curve

IRREPS = "2x0e+2x1o+1x2e", "1x0e+3x1o+1x2e"
LAYERS: dict[str, Any] = {"0": (*IRREPS,)}
FIELD = "Image() @ Shifted(-3)"  # channels that C4 turns into one another
CNN_LAYERS = {"0": ("Image()", FIELD), "2": (FIELD, FIELD), "6": ("Shifted(-1)", "Invariant()")}


def linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(13, 15)).double()


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 5, padding=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def matrix(network: nn.Module) -> Tensor:
    """W of the only layer."""
    return next(network.parameters()).detach()


def turned(network: nn.Module, x: Tensor) -> Tensor:
    """f(g x) - f(x) for the quarter turn."""
    return network(x.rot90(1, (-2, -1))) - network(x)


# ---- the matrices ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("softness", [0.0, 0.3, 0.9, 1.0])
def test_closed_form_of_a_map_between_vectors(softness: float) -> None:
    """J = 0, 1, 2: the trace stays, the antisymmetric part is multiplied by s, the symmetric rest by s^3."""
    network = nn.Sequential(nn.Linear(3, 3)).double()
    W, b = (p.detach() for p in network.parameters())
    trace = torch.eye(3, dtype=W.dtype) * W.trace() / 3
    expected = trace + softness * (W - W.mT) / 2 + softness**3 * ((W + W.mT) / 2 - trace)
    found = soften(network, "SO(3)", {"0": ("1o", "1o")}, softness)[0]
    torch.testing.assert_close(found.weight.detach(), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.bias.detach(), softness * b, atol=1e-12, rtol=0)  # a constant vector: J = 1


def test_closed_form_of_circulants() -> None:
    """C4 moves each diagonal of W along itself: its Fourier mode m is multiplied by s^((2 - 2 cos(m pi / 2)) / 2)."""
    network = nn.Sequential(nn.Linear(4, 4, bias=False)).double()
    W = matrix(network)
    i = torch.arange(4)
    diagonals = torch.stack([W[(i + k) % 4, i] for k in range(4)])  # C4 moves each along itself
    modes = torch.fft.fft(diagonals)
    filtered = torch.fft.ifft(modes * torch.tensor([1, 0.5, 0.25, 0.5], dtype=torch.float64)).real
    expected = torch.zeros_like(W)
    for k in range(4):
        expected[(i + k) % 4, i] = filtered[k]
    found = soften(network, "C4", {"0": ("Shifted(-1)", "Shifted(-1)")}, 0.5)
    torch.testing.assert_close(matrix(found), expected, atol=1e-12, rtol=0)


def test_0_projects() -> None:
    network = linear()
    rho = [as_representation(irreps) for irreps in IRREPS]
    maps = LinearMaps(rho[0], rho[1], (13,), (15,), as_group("SO(3)"))
    found = soften(network, "SO(3)", LAYERS, 0.0)
    torch.testing.assert_close(matrix(found), maps.project(matrix(network)), atol=1e-12, rtol=0)
    R = o3.rand_matrix(dtype=torch.float64)
    D_in, D_out = (o3.Irreps(irreps).D_from_matrix(R) for irreps in IRREPS)
    x = torch.randn(5, 13, dtype=torch.float64)
    torch.testing.assert_close(found(x @ D_in.mT), found(x) @ D_out.mT, atol=1e-6, rtol=0)  # e3nn's D


def test_1_leaves_every_bit() -> None:
    network = cnn()
    found = soften(network, "C4", CNN_LAYERS, 1.0)
    assert found is not network
    assert all(torch.equal(p, q) for p, q in zip(found.parameters(), network.parameters(), strict=True))


def test_a_semigroup() -> None:
    once = soften(linear(), "SO(3)", LAYERS, 0.3 * 0.7)
    twice = soften(soften(linear(), "SO(3)", LAYERS, 0.3), "SO(3)", LAYERS, 0.7)
    for p, q in zip(once.parameters(), twice.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-12, rtol=0)


def test_copies_of_an_irrep_may_be_mixed() -> None:
    """Degenerate parts are not split: an orthogonal change of basis among the vectors goes through the filter."""
    network, mixed = linear(), linear()
    Q = torch.linalg.qr(torch.randn(3, 3))[0].contiguous()
    change = torch.block_diag(torch.eye(1), torch.kron(Q, torch.eye(3)), torch.eye(5)).double()
    with torch.no_grad():
        mixed[0].weight.copy_(change @ network[0].weight)
    one, other = (soften(f, "SO(3)", LAYERS, 0.5) for f in (network, mixed))
    torch.testing.assert_close(matrix(other), change @ matrix(one), atol=1e-12, rtol=0)
    assert (matrix(one) - matrix(network)).norm() > 0.1


def test_a_convolution_turns_with_its_channels() -> None:
    """Strict at s = 0; in between the kernel is the mean of turned ones with the weights of a random walk on C4."""
    network, x = cnn(), torch.randn(4, 1, 8, 8)
    assert turned(network, x).abs().max() > 1e-3
    strict = soften(network, "C4", CNN_LAYERS, 0.0)
    assert turned(strict, x).abs().max() < 1e-6
    fields = strict[:4](x).unflatten(1, (4, 2))  # orientations, copies
    moved = strict[:4](x.rot90(1, (-2, -1))).unflatten(1, (4, 2))
    torch.testing.assert_close(moved, fields.rot90(1, (-2, -1)).roll(1, 1), atol=1e-6, rtol=0)
    assert fields.std() > 1e-3

    s, kernel, expected = 0.5, network[2].weight.detach(), torch.zeros(8, 8, 5, 5)
    for k in range(4):  # the Fourier transform of 1, s, s^2, s
        weight = (1 + 2 * s * math.cos(k * math.pi / 2) + s**2 * math.cos(k * math.pi)) / 4
        expected += weight * kernel.rot90(k, (-2, -1)).roll((2 * k, 2 * k), (0, 1))
    found = soften(network, "C4", CNN_LAYERS, s)
    torch.testing.assert_close(found[2].weight.detach(), expected, atol=1e-6, rtol=0)


# ---- the network -----------------------------------------------------------------------------------------------------
def test_a_copy_with_the_same_keys() -> None:
    network = cnn()
    network.to(torch.bfloat16)[2].weight.requires_grad_(False)
    network[1].train(False)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found = soften(network, "C4", CNN_LAYERS, 0.5)
    assert [type(m) for m in found.modules()] == [type(m) for m in network.modules()]
    assert [m.training for m in found.modules()] == [m.training for m in network.modules()]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert {k: (v.dtype, v.shape) for k, v in found.state_dict().items()} == {
        k: (v.dtype, v.shape) for k, v in before.items()
    }
    assert [p.requires_grad for p in found.parameters()] == [p.requires_grad for p in network.parameters()]
    assert not torch.equal(found[2].weight, network[2].weight)  # a frozen one is softened, too


def test_a_lightning_module_and_layers_that_are_not_chosen() -> None:
    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = cnn()

    module = Module()
    found = soften(module, "C4", {"net.2": (FIELD, FIELD)}, 0.0)
    changed = [name for name, p in found.named_parameters() if not torch.equal(p, module.get_parameter(name))]
    assert changed == ["net.2.weight", "net.2.bias"]


def test_a_strict_layer_stays() -> None:
    network = nn.Sequential(o3.Linear("2x0e+3x1o", "4x0e+2x1o", biases=True)).double()
    found = soften(network, "O(3)", "0", 0.3)
    for p, q in zip(found.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-12, rtol=0)


class Triangle(nn.Module):
    """y = W x with W triangular: the mean over the group has numbers where it has none."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.in_features, self.out_features = nn.Parameter(torch.randn(3, 3)), 3, 3

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.triu().mT


def test_what_a_layer_cannot_express_is_reported() -> None:
    torch.manual_seed(0)
    network, layers, x = nn.Sequential(Triangle()), {"0": ("Permuted(-1)", "Permuted(-1)")}, torch.randn(64, 3)
    W = network[0].weight.detach().triu()
    mean = (W.sum() - W.trace()) / 6
    left = torch.full((3, 3), float(mean)).tril(-1).norm() / W.norm()
    with pytest.warns(UserWarning, match=rf"'0' \({100 * left:.2g} % of its matrix\) cannot express"):
        soften(network, "S3", layers, 0.0)
    curve = softness_curve(
        network, Symmetry("S3", "Permuted(1)", "Permuted(1)"), layers, x, lambda f: 0.0, [0.0, 1.0], num_samples=None
    )
    assert curve.left_over["0"] == pytest.approx(float(left), rel=1e-5)
    assert curve.equivariance_errors[0] > 0.1
    assert "cannot express their softened matrices" in curve.text


# ---- errors of layers and of networks --------------------------------------------------------------------------------
def test_the_error_of_a_layer_is_what_is_measured() -> None:
    """A network of one layer, on many inputs of independent entries; a convolution on a torus has no border."""
    torch.manual_seed(0)
    symmetry, x = Symmetry("SO(3)", *IRREPS), torch.randn(4000, 13).double()
    curve = softness_curve(linear(), symmetry, LAYERS, x, lambda f: 0.0, [0.5, 0.9])
    assert curve.equivariance_errors == pytest.approx(curve.layer_errors["0"], rel=0.02)
    ring = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"))
    ring[0].bias.data.fill_(0.3).mul_(torch.tensor([1.0, 2, 3, 4]))
    symmetry, x = Symmetry("C4", FIELD, FIELD), torch.randn(400, 4, 7, 7)
    curve = softness_curve(ring, symmetry, {"0": (FIELD, FIELD)}, x, lambda f: 0.0, [0.3, 1.0], num_samples=None)
    assert curve.equivariance_errors == pytest.approx(curve.layer_errors["0"], rel=0.02)


def test_the_error_of_a_linear_network_rises_with_softness() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(13, 13), nn.Linear(13, 15))
    layers = {"0": ("2x0e+2x1o+1x2e",) * 2, "1": IRREPS}
    curve = softness_curve(network, Symmetry("SO(3)", *IRREPS), layers, torch.randn(32, 13), lambda f: 0.0)
    assert curve.equivariance_errors[0] < 1e-5
    for errors in (curve.equivariance_errors, *curve.layer_errors.values()):
        assert all(after > before for before, after in itertools.pairwise(errors))


def test_the_rows_are_the_softened_networks() -> None:
    network, x = cnn(), torch.randn(16, 1, 8, 8)
    network.train()
    symmetry = Symmetry("C4", Image(), Invariant())
    task = {"size": lambda f: f(x).square().mean(), "training": lambda f: f.training or torch.is_grad_enabled()}
    curve = softness_curve(network, symmetry, CNN_LAYERS, x, task, [1.0, 0.5, 0.5], num_samples=None)
    assert [row["softness"] for row in curve.rows] == [0.5, 1.0]
    for row in curve.rows:
        softened = soften(network, "C4", CNN_LAYERS, row["softness"])
        error = equivariance_error(softened, x, symmetry, num_samples=None)
        f_x = softened(x).detach().square().sum(-1)
        assert isinstance(error, Tensor)
        pooled = ((error**2 * f_x).sum() / f_x.sum()).sqrt()
        assert row["equivariance error"] == pytest.approx(float(pooled), rel=1e-4)
        assert row["size"] == pytest.approx(float(f_x.mean() / 3), rel=1e-5)
        assert row["training"] == 0
    assert network.training


def test_a_nonlinearity_that_breaks_the_symmetry_is_named() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 3))
    symmetry, x, breaks = Symmetry("SO(3)", "1o", "1o"), torch.randn(32, 3), "something between them breaks"
    layers = {"0": ("1o", "4x1o"), "2": ("4x1o", "1o")}
    curve = softness_curve(network, symmetry, layers, x, lambda f: 0.0, [0.0, 1.0])
    assert curve.equivariance_errors[0] > 0.05
    assert breaks in curve.text
    assert breaks in curve.markdown()
    sound = softness_curve(
        nn.Sequential(network[0], network[2]), symmetry, {"0": layers["0"], "1": layers["2"]}, x, lambda f: 0.0
    )
    assert breaks not in sound.text


def test_a_network_that_becomes_0_is_equivariant() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))
    layers = {"0": ("1o", "4x0e"), "2": ("4x0e", "1o")}
    symmetry = Symmetry("SO(3)", "1o", "1o")
    curve = softness_curve(network, symmetry, layers, torch.randn(8, 3), lambda f: 0.0, [0.0])
    assert curve.equivariance_errors == (0.0,)
    assert curve.layer_errors["2"] == (0.0,)


def test_tables_and_pictures(tmp_path: Path) -> None:
    x = torch.randn(8, 3)
    network, symmetry = nn.Sequential(nn.Linear(3, 3)), Symmetry("SO(3)", "1o", "1o")
    curve = softness_curve(network, symmetry, {"0": ("1o", "1o")}, x, lambda f: 0.25, [0.0, 1.0])
    with curve.save(tmp_path / "new" / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["equivariance error"]) for row in rows] == list(curve.equivariance_errors)
    assert curve.save(tmp_path / "curve.md").read_text().startswith("| softness | task error | equivariance error |")
    assert curve.save(tmp_path / "curve.png").stat().st_size > 10_000
    above, below = curve.plot().axes
    assert list(above.lines[0].get_ydata()) == [0.25, 0.25]
    assert list(below.lines[0].get_ydata()) == list(curve.equivariance_errors)
    with pytest.raises(ValueError, match="ends in"):
        curve.save(tmp_path / "curve.txt")


# ---- bad input -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("group", "layers", "softness", "match"),
    [
        ("C4", CNN_LAYERS, 1.5, "expected softness to be a finite number of at least 0 and at most 1, got 1.5"),
        ("C4", CNN_LAYERS, -0.1, "expected softness"),
        ("C4", "6", 0.5, r"'6' \(Linear\) does not say how its features move: .* of 8 and 3 features"),
        ("C4", {"6": ("Regular(-1)", "Invariant()")}, 0.5, r"layer '6' \(Linear\), features \(8,\) of its input"),
        ("C4", {"1": ("Invariant()", "Invariant()")}, 0.5, r"'1' \(ReLU\) does not say of which shape"),
        ("SO(2)", {"2": ("Image()", "Image()")}, 0.5, r"'2' \(Conv2d\): the mean over SO\(2\) is not known"),
        ("C4", {"2": ("1o", "1o")}, 0.5, r"'2' \(Conv2d\)"),
        ("SO(3)", {"2": ("Image()", "Image()")}, 0.5, r"'2' \(Conv2d\): Image\(\) needs a group of the plane"),
    ],
)
def test_bad_input(group: str, layers: Any, softness: float, match: str) -> None:
    network = cnn()
    before = [p.clone() for p in network.parameters()]
    with pytest.raises(ValueError, match=match):
        soften(network, group, layers, softness)
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))


class Squared(nn.Linear):
    """Not linear."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 2


def test_layers_that_cannot_be_softened() -> None:
    vectors = ("1o", "1o")
    with pytest.raises(ValueError, match=r"is not linear in its input: .* choose other layers"):
        soften(nn.Sequential(Squared(3, 3)), "SO(3)", {"0": vectors}, 0.5)
    with pytest.raises(ValueError, match="stride 1"):
        soften(nn.Sequential(nn.Conv2d(1, 1, 3, stride=2)), "C4", {"0": ("Image()", "Image()")}, 0.5)
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="'0' and '1' share weights"):
        soften(tied, "SO(3)", {"*": vectors}, 0.5)


def test_bad_input_of_the_curve() -> None:
    network, symmetry = nn.Sequential(nn.Linear(3, 3)), Symmetry("SO(3)", "1o", "1o")
    layers, x = {"0": ("1o", "1o")}, torch.randn(8, 3)
    with pytest.raises(TypeError, match="task_error as a function"):
        softness_curve(network, symmetry, layers, x, {})
    with pytest.raises(ValueError, match="softnesses from 0 to 1"):
        softness_curve(network, symmetry, layers, x, lambda f: 0.0, [])
    with pytest.raises(ValueError, match="at softness 0 the network returned NaN"):
        softness_curve(network, symmetry, layers, x * torch.nan, lambda f: 0.0)


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2] / "docs" / "soften.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)  # it writes a picture
    space: dict[str, Any] = {}
    exec(code, space)
    assert space["curve"].equivariance_errors[0] < 1e-5
    assert (tmp_path / "curve.png").exists()
