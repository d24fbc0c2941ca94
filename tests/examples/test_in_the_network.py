"""What a network or a loader does by itself: checkpointing, compiling, changes in place, loaders cut short."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_equiv import RECM, REMUL, GroupAugmentation, SymmetryCloning
from tests.examples.test_real_training import TOY, Make, assert_resumes, fit, fit_charged, recm, relax
from tests.strategies.toys import SYMMETRY, Plain, assert_same, make_net, weights


class Rerun(nn.Sequential):
    """All but the first layer is run again in backward."""

    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self
        return checkpoint(
            lambda h: functools.reduce(lambda h, f: f(h), others, h), first(x), use_reentrant=self.reentrant
        )


class Reentrant(Rerun):
    reentrant = True


class OwnDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.2, self.training)


@pytest.mark.parametrize("noise", [nn.Dropout(0.2), OwnDropout()], ids=["module", "function"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: [REMUL(SYMMETRY, "net")],
        lambda: [REMUL(SYMMETRY, "net", freeze_stochastic=False)],
        lambda: [REMUL(SYMMETRY, "net"), REMUL(SYMMETRY, "net", target=1, num_samples=2, name="second")],
        lambda: [REMUL(SYMMETRY, "net", balance="gradnorm")],
        lambda: [relax()],
        lambda: [recm()],
        lambda: [recm(), REMUL(SYMMETRY, "net")],
        lambda: [REMUL(SYMMETRY, "net", balance="gradnorm"), recm()],
    ],
    ids=["remul", "unfrozen", "two", "gradnorm", "relax", "recm", "recm_remul", "gradnorm_recm"],
)
def test_gradient_checkpointing(make: Make, noise: nn.Module) -> None:
    """What backward runs again is what ran: dropout, batch norm and theta as they were."""
    kinds = (nn.Sequential, Rerun, Reentrant)
    modules = [Plain(kind(*make_net(), noise, nn.BatchNorm1d(3), nn.Linear(3, 3))) for kind in kinds]
    for module in modules[1:]:
        module.load_state_dict(modules[0].state_dict())
    for module in modules:
        torch.manual_seed(0)
        strategies = make()
        if type(module.net) is Reentrant and getattr(strategies[0], "balance", "") == "gradnorm":
            with pytest.raises(RuntimeError, match="write use_reentrant=False"):
                fit(module, *strategies)
            continue
        fit(module, *strategies, precision="64-true", accumulate_grad_batches=2, max_epochs=2)
        torch.testing.assert_close(weights(module), weights(modules[0]), rtol=1e-9, atol=1e-11)


class BreaksOff(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise KeyError("in backward")


def test_a_backward_that_breaks_off_leaves_nothing_frozen() -> None:
    class Breaks(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return BreaksOff.apply(super().forward(x))

    net = Breaks(*make_net(), nn.Dropout(0.2), nn.BatchNorm1d(3))
    with pytest.raises(KeyError, match="in backward"):
        fit(Plain(net), REMUL(SYMMETRY, "net"))
    assert all(m.training for m in net.modules())
    assert net[-1].track_running_stats


def test_gradnorm_of_a_compiled_network() -> None:
    torch._dynamo.reset()
    plain, compiled = Plain(), Plain(torch.compile(make_net(), backend="aot_eager"))
    for module in (plain, compiled):
        fit(module, REMUL(SYMMETRY, "net", balance="gradnorm"))
    assert_same(weights(compiled), weights(plain))


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("step", [4, 6])
@pytest.mark.parametrize("limit", [{"limit_train_batches": 3}, {"overfit_batches": 3}], ids=str)
def test_a_part_of_an_ordered_data_set_resumes(limit: dict[str, Any], step: int, tmp_path: Path) -> None:
    assert_resumes(tmp_path, step, list, **limit)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train dataloader shuffling")
@pytest.mark.parametrize("step", [4, 6])
def test_overfitting_a_part_resumes(step: int, tmp_path: Path) -> None:
    whole = fit_charged(tmp_path, "both", overfit_batches=3)
    again = fit_charged(tmp_path, "both", tmp_path / f"step={step}.ckpt", overfit_batches=3)
    assert torch.equal(weights(again), weights(whole))


class HalvesItsInput(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(0.5))


class HalvesACopy(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clone().mul_(0.5))


def recm_of(layer: str, target: int) -> RECM:
    return RECM(SYMMETRY, {layer: TOY[layer]}, target=target)


IN_PLACE: list[tuple[int, Make, str]] = [
    (3, lambda: GroupAugmentation(SYMMETRY), ""),
    (3, lambda: REMUL(SYMMETRY, "net"), r"was changed in place.*self.net\(x.clone\(\)\)"),
    (3, lambda: REMUL(SYMMETRY, "net", target=1), "was changed in place"),
    (16, lambda: REMUL(SYMMETRY, "net"), ""),
    (3, lambda: recm_of("net.0", 1), r"layer 'net.0' \(HalvesItsInput\) changes its input in place.*x = 2 \* x"),
    (16, relax, "layer 'net.2'"),
    (16, recm, "layer 'net.2'"),
    (3, lambda: recm_of("net.2", 1), ""),
    (3, lambda: recm_of("net.2", 0), "the target of shape .* was changed in place"),
    (
        3,
        lambda: SymmetryCloning(make_net(), "net", symmetry=SYMMETRY, inputs=[(3,)], max_teacher_error=2.0),
        "in place",
    ),
    (16, lambda: SymmetryCloning(make_net(1), "net", inputs=[0], mode="break", weight=1.0, tolerance=2.0), ""),
]


@pytest.mark.parametrize(("features", "make", "words"), IN_PLACE)
def test_what_is_changed_in_place(features: int, make: Make, words: str) -> None:
    """A layer that changes its input, the network's (3 features) or a hidden one (16): as on a copy, or refused."""
    modules = []
    for kind in (HalvesACopy, HalvesItsInput):
        net = make_net()
        place = {3: 0, 16: 2}[features]
        layer = kind(features, net[place].out_features)
        layer.load_state_dict(net[place].state_dict())
        net[place] = layer
        net[1] = nn.Softsign() if features == 3 else nn.Identity()  # Tanh needs its output in backward
        modules.append(Plain(net))
    strategies = [make(), make()]
    fit(modules[0], strategies[0])
    if words:
        with pytest.raises((RuntimeError, ValueError), match=words):
            fit(modules[1], strategies[1])
    else:
        fit(modules[1], strategies[1])
        assert torch.equal(weights(modules[1]), weights(modules[0]))


@pytest.mark.parametrize("make", [relax, recm])
def test_a_compiled_layer_that_changes_its_input_is_refused(make: Make) -> None:
    torch._dynamo.reset()
    net = make_net()
    net[1], net[2] = nn.Identity(), HalvesItsInput(16, 3)
    with pytest.raises(ValueError, match="changes its input in place"):
        fit(Plain(torch.compile(net, backend="aot_eager")), make())
    assert torch._dynamo.eval_frame._stance.stance == "default"
