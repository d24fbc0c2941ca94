"""AngleProfile: against closed forms, the spectrum and the error for given elements; and what it draws."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor

from lightning_equiv import (
    AngleProfile,
    EquivarianceSpectrum,
    LayerwiseError,
    Point,
    Symmetry,
    angle_profile,
    equivariance_error,
    equivariance_spectrum,
)
from lightning_equiv._random import derived_generator
from lightning_equiv.groups.angles import turns
from tests.helpers import close, normal, seeded

SPACE, PLANE = Symmetry("SO(3)", "1o", "1o"), Symmetry("SO(2)", Point(), Point())
SIX = Symmetry("C6", Point(), Point())
ALL = tuple(range(0, 181, 15))


def shift(d: int) -> Tensor:
    return torch.arange(1.0, d + 1, dtype=torch.float64)


# ---- against other ways to the same numbers --------------------------------------------------------------------------
def test_a_shift_in_the_plane() -> None:
    """|g c - c| = 2 |c| sin(a / 2), whatever the side to which g turns."""
    x, c = normal(7, 2), shift(2)
    found = angle_profile(lambda x: x + c, x, PLANE)
    assert list(found) == [str(a) for a in ALL]
    for a in ALL:
        close(found[str(a)], 2 * c.norm() * math.sin(math.radians(a) / 2) / (x + c).norm(dim=1))
    metric = AngleProfile(PLANE)
    metric.update(lambda x: x + c, x)
    for name, value in metric.compute().items():
        expected = 2 * float(c.norm()) * math.sin(math.radians(float(name)) / 2) / math.sqrt((x + c).square().sum() / 7)
        assert float(value) == pytest.approx(expected, rel=1e-6)


def test_a_shift_in_space() -> None:
    """Of c, two thirds are at right angles to an axis at random: E |g c - c|^2 = 4/3 (1 - cos a) |c|^2."""
    x, c = normal(400, 3), shift(3)
    metric = AngleProfile(SPACE, num_samples=25)
    metric.update(lambda x: x + c, x)
    size = (x + c).square().sum(1).mean()
    for name, interval in metric.intervals().items():
        expected = math.sqrt(4 / 3 * (1 - math.cos(math.radians(float(name)))) * float(c.square().sum() / size))
        assert interval.value == pytest.approx(expected, rel=0.02, abs=1e-12)
        assert interval.low <= interval.value <= interval.high


def test_it_is_the_error_for_given_elements() -> None:
    x, k, n, c = normal(3, 3), 2, 3, shift(3)
    net = lambda x: (x * c).tanh()  # noqa: E731
    angles = torch.tensor([20.0, 90.0], dtype=torch.float64).deg2rad().repeat_interleave(k * n)
    g = turns(SPACE.group, angles, len(angles), generator=seeded(5))
    found = angle_profile(net, x, SPACE, angles=[20, 90], num_samples=k, generator=seeded(5))
    for i in range(n):
        for j, name in enumerate(("20", "90")):
            own = g[torch.arange(k) * n + j * k * n + i]  # element (j K + k) n + i moved input i
            close(found[name][i : i + 1], equivariance_error(net, x[i : i + 1], SPACE, elements=own))
    metric = AngleProfile(SPACE, angles=[20, 90], num_samples=k, seed=3)
    metric.update(net, x)
    generator = derived_generator("AngleProfile", 3, 0, 1)  # the first update
    each = angle_profile(net, x, SPACE, angles=[20, 90], num_samples=k, generator=generator)
    norm = net(x).square().sum(1)
    for name, value in metric.compute().items():
        assert float(value) == pytest.approx(float(((each[name] ** 2 * norm).sum() / norm.sum()).sqrt()), rel=1e-6)


def test_it_is_that_of_the_spectrum_averaged_over_the_orbit() -> None:
    """Of a network whose orbit average is known exactly: one of degree 1."""
    x, net = normal(300, 3), lambda x: x @ torch.diag(shift(3))
    spectrum = equivariance_spectrum(net, x, SPACE, num_samples=None, highest=3)
    degrees = (40, 180)
    h = turns(SPACE.group, torch.tensor(degrees, dtype=torch.float64).deg2rad(), 2, generator=seeded())
    expected = (spectrum.squared_profile(h).sum(1) / spectrum.total.sum()).sqrt()
    metric = AngleProfile(SPACE, angles=degrees, num_samples=40)
    metric.update(net, x)
    close(torch.stack(list(metric.compute().values())), expected, 0.05)


@pytest.mark.parametrize("chunk_size", [1, 5, None, "auto"])
def test_chunks_do_not_matter(chunk_size: int | None) -> None:
    x, net = normal(4, 3), lambda x: x.tanh() + 1
    expected = angle_profile(net, x, SPACE, num_samples=3, chunk_size=None, generator=seeded(1))
    found = angle_profile(net, x, SPACE, num_samples=3, chunk_size=chunk_size, generator=seeded(1))
    for name in expected:
        close(found[name], expected[name])


# ---- which angles ----------------------------------------------------------------------------------------------------
def test_a_finite_group_has_its_own_angles() -> None:
    assert AngleProfile(SIX).figures == ("0", "60", "120", "180")
    assert AngleProfile(SIX, angles=[300]).figures == ("300",)
    assert AngleProfile(SPACE, angles=[22.5]).figures == ("22.5",)


@pytest.mark.parametrize(
    ("symmetry", "settings", "message"),
    [
        (Symmetry("T(3)", Point(), Point()), {}, "expected a group with rotations for a profile over their angle"),
        (SIX, {"angles": [0, 50]}, "expected multiples of 2 pi / 6"),
        (SPACE, {"angles": []}, "expected at least one angle"),
        (SPACE, {"angles": [90, 90.0]}, "none twice"),
        (SPACE, {"num_samples": 0}, "num_samples to be a whole number of at least 1"),
    ],
)
def test_what_is_refused(symmetry: Symmetry, settings: dict[str, list[float]], message: str) -> None:
    for make in (lambda: AngleProfile(symmetry, **settings), lambda: angle_profile(None, (), symmetry, **settings)):
        with pytest.raises(ValueError, match=message):
            make()


def test_nan_at_one_angle_is_said() -> None:
    def net(x: Tensor) -> Tensor:
        return torch.where(x[:, :1] > 0, x, torch.nan)

    metric = AngleProfile(PLANE, angles=[0, 180])
    metric.update(net, torch.tensor([[1.0, 0.5]]))
    with pytest.raises(ValueError, match="the equivariance error at 180 degrees is nan: the network returned NaN"):
        metric.compute()


# ---- pictures --------------------------------------------------------------------------------------------------------
def test_the_picture_of_the_profile() -> None:
    metric = AngleProfile(SPACE)
    metric.update(lambda x: x + 1, normal(9, 3))
    intervals = metric.intervals()
    figure, axes = metric.plot()
    assert axes.figure is figure
    (line,) = axes.lines
    assert list(line.get_xdata()) == list(ALL)
    assert list(line.get_ydata()) == [interval.value for interval in intervals.values()]
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(max(interval.high for interval in intervals.values()))
    assert axes.get_xlabel() == "angle / degrees"
    _, again = metric.plot(metric.compute(), figure.add_subplot())  # of what was kept, on axes of one's own
    assert list(again.lines[0].get_ydata()) == pytest.approx(list(line.get_ydata()))
    assert again.figure is figure


def test_the_picture_of_the_spectrum() -> None:
    metric = EquivarianceSpectrum(SPACE, num_samples=None, highest=2, per_irrep=True)
    metric.update(lambda x: x + shift(3), normal(9, 3))
    found = metric.compute()
    _, axes = metric.plot()
    points = axes.lines[-1]
    shown = {i: float(found[name]) for i, name in enumerate(("0", "1", "2", "rest")) if found[name] > 0}
    assert dict(zip(points.get_xdata(), points.get_ydata(), strict=True)) == pytest.approx(shown)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "2", "rest"]
    assert axes.get_yscale() == "log"


def test_the_picture_of_the_layers() -> None:
    net = torch.nn.Sequential(*(torch.nn.Linear(3, 3, dtype=torch.float64) for _ in range(3)))
    metric = LayerwiseError(SPACE, {"*": ("1o", "1o")})
    assert len(metric.plot()[1].patches) == 0  # of nothing
    metric.update(net, normal(9, 3))
    found = metric.compute()
    _, axes = metric.plot()
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([float(found[f"ends_up/{i}"]) for i in range(3)])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1", "2"]
    assert axes.get_ylim() == (2.5, -0.5)  # the first on top


def test_pyplot_holds_no_picture() -> None:
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    metric = AngleProfile(PLANE)
    metric.update(lambda x: x, normal(3, 2))
    metric.plot()
    assert pyplot.get_fignums() == before


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    metric = AngleProfile(PLANE)
    metric.update(lambda x: x, normal(3, 2))
    with pytest.raises(ImportError, match=r"pictures need matplotlib: pip install 'lightning_equiv\[report\]'"):
        metric.plot()
