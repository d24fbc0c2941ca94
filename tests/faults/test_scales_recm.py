"""RECM's states do not depend on the units of the data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_equiv import SO3
from lightning_equiv.representations.irreps import IrrepsTensor
from lightning_equiv.strategies.recm.critic import Draw, LipschitzCritic, Rows, mean_squares, violation
from tests.helpers import TOLERANCE, close, normal, seeded
from tests.strategies.recm_by_hand import make_recm, states
from tests.strategies.toys import EachStep, Plain, batches, loader, trainer

each_scale = pytest.mark.parametrize("scale", [2.0**k for k in (-100, -66, -27, 27, 66, 100)])  # 1e-30 to 1e30


@each_scale
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_states_of_scaled_data(scale: float, dtype: torch.dtype) -> None:
    def run(scale: float) -> Tensor:
        strategy, found = make_recm(start="equivariant"), []
        data = [(x * scale, y * scale) for x, y in loader(dtype=dtype)]
        module = Plain(lr=0.0).to(dtype)
        module.task = lambda net, x, y: 0 * net(x).mean()  # type: ignore[method-assign,assignment]
        look = EachStep(lambda _: found.append(states(strategy)["net.0"]))
        trainer(strategy, look).fit(module, batches(data))
        return torch.stack(found)

    expected = run(1.0)
    assert expected.norm(dim=1).min() > 1e-3
    close(run(scale), expected, TOLERANCE[torch.float32])


@each_scale
def test_one_side_may_be_of_another_scale(scale: float) -> None:
    def s(scale: float) -> Tensor:
        x, y = (Rows(normal(9, 3, seed=i).float() * c, (3,), IrrepsTensor("1o")) for i, c in enumerate((scale, 1.0)))
        torch.manual_seed(0)
        draw = Draw(SO3().sample(9 * 4, generator=seeded()), 4)
        return violation(LipschitzCritic(6, 8, 3), x, y, draw, mean_squares(x, y)).detach()

    close(s(scale), s(1.0), TOLERANCE[torch.float32])
    assert s(1.0).norm() > 1e-2


def test_zeros_have_no_scale() -> None:
    x, y = (Rows(torch.zeros(9, 3), (3,), IrrepsTensor("1o")) for _ in range(2))
    draw = Draw(SO3().sample(9 * 4, generator=seeded()), 4)
    assert torch.equal(violation(LipschitzCritic(6, 8, 3), x, y, draw, mean_squares(x, y)), torch.zeros(3))
