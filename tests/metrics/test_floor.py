"""The noise floor: of exact networks it is their error, of others it is far below."""

from __future__ import annotations

import math

import pytest
import torch
from e3nn import o3
from torch import Tensor, nn

from lightning_equiv import Image, Invariant, Symmetry, equivariance_error, noise_floor
from lightning_equiv.metrics.floor import round_trip
from lightning_equiv.metrics.measurement import measuring
from tests.helpers import default_dtype, global_seed, normal, seeded

VECTORS = Symmetry("SO(3)", "1o", "1o")


class Square(nn.Module):
    """Its constants are exact in float64, too, where it is made as such."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        with global_seed(), default_dtype(dtype):
            self.product = o3.FullyConnectedTensorProduct("4x1o", "4x1o", "2x0e+2x1e+1x2e")

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, x)


SQUARES = Symmetry("SO(3)", "4x1o", "2x0e+2x1e+1x2e")


def test_an_exact_network_reads_its_floor():
    floor = noise_floor(Square(), normal(20, 12, dtype=torch.float32), SQUARES, generator=seeded())
    assert 1e-8 < floor.floor.value < 1e-6
    assert floor.error.value == pytest.approx(floor.floor.value, rel=0.1)
    assert floor.exact.value < 1e-8, "Clebsch-Gordan coefficients of float32"


def test_in_float64_an_exact_network_is_exact():
    class Longer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.norm(dim=-1, keepdim=True) * x

    floor = noise_floor(Longer(), normal(20, 3, dtype=torch.float32), VECTORS, generator=seeded())
    assert floor.exact.value < 1e-14
    assert floor.error.value == pytest.approx(floor.floor.value, rel=1e-4)


def test_a_broken_network_is_far_above_it():
    class Shift(Square):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1e-4

    floor = noise_floor(Shift(), normal(20, 12, dtype=torch.float32), SQUARES, generator=seeded())
    assert floor.exact.value == pytest.approx(floor.error.value, rel=0.01)
    assert floor.error.value > 30 * floor.floor.value


def test_a_float64_network_has_the_floor_of_float64():
    floor = noise_floor(Square(torch.float64), normal(20, 12), SQUARES, generator=seeded())
    assert floor.error.value < 10 * floor.floor.value < 1e-13


def test_constants_of_the_default_dtype_follow():
    class Constants(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.eye(3)  # float32, unless the default says otherwise

    floor = noise_floor(Constants(), normal(8, 3, dtype=torch.float32), VECTORS)
    assert floor.exact.value < 1e-14
    assert torch.get_default_dtype() == torch.float32


def test_the_network_is_left_alone():
    network = Square()
    noise_floor(network, normal(5, 12, dtype=torch.float32), SQUARES)
    assert {x.dtype for x in network.state_dict().values() if x.is_floating_point()} == {torch.float32}
    assert network.training


@pytest.mark.parametrize(("network", "words"), [(lambda x: x, "an nn.Module"), ("stubborn", "does not run in")])
def test_what_cannot_be_copied_says_so(network, words):
    class Stubborn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float()

    with pytest.raises(ValueError, match=words):
        noise_floor(Stubborn() if network == "stubborn" else network, normal(4, 3, dtype=torch.float32), VECTORS)


def test_resampling_is_measured_on_the_inputs():
    """Turned and turned back: rounding for vectors, for smooth images little, for noise much."""
    lost = {}
    p = torch.stack(torch.meshgrid(torch.arange(21.0) - 10, torch.arange(21.0) - 10, indexing="ij"), -1).double()
    images = {"smooth": (-p.square().sum(-1) / 18).exp()[None], "noise": normal(1, 21, 21)}
    for name, x in images.items():
        with measuring(lambda x: x.sum((1, 2)), x, Symmetry("SO(2)", Image(), Invariant())) as m:
            m_elements = m.group.sample(8, generator=seeded())
            lost[name] = float(round_trip(m, m_elements))
    assert lost["smooth"] < 1e-4
    assert lost["noise"] > 0.1
    with measuring(lambda x: x, normal(3, 3), VECTORS) as m:
        assert float(round_trip(m, m.elements(4)).max()) < 1e-28
    assert math.isfinite(float(equivariance_error(lambda x: x, normal(3, 3), VECTORS).max()))
