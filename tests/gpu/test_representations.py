"""Groups and representations on a GPU: the numbers of the CPU to rounding, and no wait for the device."""

from __future__ import annotations

import pytest
import torch

from tests.contracts import GROUPS, REPRESENTATIONS, ROWS, GroupCase, RepresentationCase, draw, velocity
from tests.gpu.devices import each_device, nothing_waits, side_stream
from tests.helpers import TOLERANCE, close

DTYPES = {**TOLERANCE, torch.float16: 4e-3}
each_group = pytest.mark.parametrize("case", GROUPS.values(), ids=GROUPS)
each_representation = pytest.mark.parametrize("case", REPRESENTATIONS.values(), ids=REPRESENTATIONS)


@each_device
@each_group
def test_elements_are_those_of_the_cpu(case: GroupCase, device: str) -> None:
    g, h, a = draw(case.group, seed=1), draw(case.group, seed=2), velocity(case.group)
    there = [element.to(device) for element in (g, h)]
    for found, expected in (
        (case.group.sample(ROWS, generator=torch.Generator().manual_seed(1), device=device), g),
        (there[0] @ there[1], g @ h),
        (there[0].inverse(), g.inverse()),
        (a.to(device).exp(), a.exp()),
    ):
        assert found.device.type == device
        for actual, exact in zip(found.coordinates, expected.coordinates, strict=True):
            close(actual.cpu(), exact)
    own = case.group.sample(ROWS, generator=torch.Generator(device).manual_seed(1))
    assert own.device.type == device
    case.valid(own.to("cpu"))
    if case.group.order is not None:
        for actual, exact in zip(
            case.group.elements(device=device).coordinates, case.group.elements().coordinates, strict=True
        ):
            assert torch.equal(actual.cpu(), exact)


@each_device
@each_group
def test_a_draw_on_the_host_waits_for_nothing(case: GroupCase, device: str) -> None:
    case.group.sample(ROWS, device=device)  # the first upload makes room in pinned memory
    generator = torch.Generator().manual_seed(0)
    with nothing_waits(device):
        g = case.group.sample(ROWS, generator=generator, device=device)
    assert g.device.type == device


@each_device
@each_representation
def test_moves_as_on_the_cpu(case: RepresentationCase, device: str) -> None:
    g, a = draw(case.group), velocity(case.group)
    for dtype, tolerance in DTYPES.items():
        x = case.x(dtype=dtype)
        scale = 1.0 + float(x.abs().max())
        with side_stream(device):
            moved = case.move(g.to(device), x.to(device))
            moving = case.representation.infinitesimal(a.to(device), x.to(device))
        for found, expected in ((moved, case.move(g, x)), (moving, case.representation.infinitesimal(a, x))):
            assert (found.device.type, found.dtype) == (device, dtype)
            close(found.cpu().double() / scale, expected.double() / scale, tolerance)


@each_device
@each_representation
def test_moving_waits_for_nothing(case: RepresentationCase, device: str) -> None:
    g, a, x = draw(case.group).to(device), velocity(case.group).to(device), case.x().to(device)
    for _ in range(2):  # constants are sent once
        case.move(g, x)
        case.representation.infinitesimal(a, x)
    with nothing_waits(device):
        case.move(g, x)
        case.representation.infinitesimal(a, x)
