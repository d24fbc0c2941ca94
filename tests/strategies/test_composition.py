"""Strategies compose in pairs: each trains as if the other's part were written by hand in the user's step."""

from __future__ import annotations

import functools
from itertools import combinations_with_replacement
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_equiv import REMUL, EquivarianceMonitor, GroupAugmentation, SymmetryCallback, SymmetryCloning
from tests.strategies.cloned_by_hand import Stretch, make_cloning
from tests.strategies.recm_by_hand import RecmByHand, make_recm
from tests.strategies.relaxed_by_hand import LAYERS, RelaxedByHand, make_relaxation
from tests.strategies.test_contract import CASES, ByHand, Fails, mse, turn
from tests.strategies.toys import SYMMETRY, Plain, loader, make_net, rotations, snapshot, trainer, weights

# What a pair does and what its order means; a strategy with itself is two of different names.
WORKS = {
    ("GroupAugmentation", "GroupAugmentation"): "the batch is moved twice, first by the first in the list",
    ("GroupAugmentation", "REMUL"): "both losses and REMUL's labels are of the moved batch, in either order",
    ("GroupAugmentation", "SymmetryCloning"): "phase one sees the loader's batches, then moved ones, in either order",
    ("GroupAugmentation", "RECM"): "layers and targets are those of the moved batch, in either order",
    ("GroupAugmentation", "ConstraintRelaxation"): "layers and penalties are of the moved batch, in either order",
    ("REMUL", "REMUL"): "both losses are added, in either order",
    ("REMUL", "SymmetryCloning"): "the second loss and the pull are added, in either order",
    ("REMUL", "RECM"): "the second pass has the theta of the first, held constant, in either order",
    ("REMUL", "ConstraintRelaxation"): "the second pass is relaxed, and not penalised, in either order",
    ("SymmetryCloning", "SymmetryCloning"): "the last in the list teaches last, and each pulls to its own clone",
    ("SymmetryCloning", "RECM"): "the network without branches is taught and pulled, in either order",
    ("SymmetryCloning", "ConstraintRelaxation"): "the network without branches is taught and pulled, in either order",
    ("RECM", "RECM"): "a layer's branches are added, each with its own theta, in either order",
    ("RECM", "ConstraintRelaxation"): "a layer's branches are added, in either order; the scheduled one goes to 0",
    ("ConstraintRelaxation", "ConstraintRelaxation"): "a layer's branches and penalties are added, in either order",
}
ORDER_MATTERS = {("GroupAugmentation",) * 2, ("SymmetryCloning",) * 2}
CASE = {
    "GroupAugmentation": CASES["augmentation"],
    "REMUL": CASES["remul, label-anchored"],
    "SymmetryCloning": CASES["symmetry cloning, break"],
    "RECM": CASES["recm"],
    "ConstraintRelaxation": CASES["constraint relaxation"],
}


class Opposite(Stretch):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


def second_cloning() -> SymmetryCloning:
    strategy = make_cloning(name="second", seed=1, weight=0.2)
    strategy.teacher = Opposite()
    return strategy


SECOND = {  # another of the kind, with other settings
    "GroupAugmentation": lambda: GroupAugmentation(SYMMETRY, name="second"),
    "REMUL": lambda: REMUL(SYMMETRY, "net", weight=0.5, target=1, name="second"),
    "SymmetryCloning": second_cloning,
    "RECM": lambda: make_recm(name="second", seed=1, gain=0.3),
    "ConstraintRelaxation": lambda: make_relaxation(name="second", seed=1, peak=0.7, end=1.0),
}
BETWEEN = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}  # what stands between a loss and a step
on_pairs = pytest.mark.parametrize("pair", WORKS, ids="-".join)
in_both_orders = pytest.mark.parametrize("swap", [False, True], ids=["in order", "swapped"])


def make(pair: tuple[str, str], swap: bool = False) -> list[SymmetryCallback]:
    a, b = pair
    return ordered([SECOND[a]() if a == b else CASE[a].make(), CASE[b].make()], swap)


def ordered(pair: list[Any], swap: bool) -> list[Any]:
    return pair[::-1] if swap else pair


def on(strategy: Any, layers: Any) -> Any:
    strategy.layers = layers
    return strategy


def fit(module: L.LightningModule, *callbacks: L.Callback, **settings: Any) -> Tensor:
    """The network's weights after training."""
    trainer(*callbacks, max_epochs=2, **settings).fit(module, loader())
    return weights(module.net)


@functools.cache
def alone(name: str) -> Tensor:
    return fit(Plain(), CASE[name].make(), **BETWEEN)


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_every_pair_is_in_the_table() -> None:
    assert {type(case.make()).__name__ for case in CASES.values()} == set(CASE)
    assert list(WORKS) == list(combinations_with_replacement(CASE, 2))


# ---- the training is the one that is meant ---------------------------------------------------------------------------
def with_remul(twin: type[Plain], name: str, weight: float) -> type[Plain]:
    """REMUL by hand in the step of another twin, whose `again` is its network's second pass."""

    class Both(twin):  # type: ignore[valid-type, misc]
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.levels: list[Tensor] = []
            loss = super().training_step(batch, batch_idx)
            x, y = batch
            R = rotations(len(x), "REMUL", name, 0, 0, (self.current_epoch, batch_idx))
            return loss + weight * mse(self.again(turn(R, x)), turn(R, y))

        def again(self, x: Tensor) -> Tensor:
            return self.net(x)

        def theta(self, *args: Any, **kwargs: Any) -> Any:
            self.levels.append(torch.as_tensor(super().theta(*args, **kwargs)))
            return self.levels[-1]

    return Both


class RelaxedAgain(with_remul(RelaxedByHand, "remul", 2.0)):  # type: ignore[misc]
    def again(self, x: Tensor) -> Tensor:
        return relaxed(self.net, self.levels * 2, (lambda x: x @ self.W.T, lambda a: a @ self.V.T), x)


class RecmAgain(with_remul(RecmByHand, "remul", 2.0)):  # type: ignore[misc]
    def again(self, x: Tensor) -> Tensor:
        self.branches.eval()  # a second pass moves no power iteration
        output = relaxed(self.net, self.levels, self.branches, x)
        self.branches.train()
        return output


def relaxed(net: nn.Module, levels: list[Tensor], branches: Any, x: Tensor) -> Tensor:
    a = torch.tanh(net[0](x) + levels[0].detach() * branches[0](x))
    return net[2](a) + levels[1].detach() * branches[1](a)


BOTH_BY_HAND = {
    ("REMUL", "REMUL"): lambda: with_remul(ByHand, "second", 0.5)(CASE["REMUL"]),
    ("REMUL", "RECM"): RecmAgain,
    ("REMUL", "ConstraintRelaxation"): RelaxedAgain,
}


@functools.cache
def by_hand(pair: tuple[str, str]) -> Tensor:
    """What the weights should be: both by hand, or the second by hand and the first, which wraps it, attached."""
    if pair in BOTH_BY_HAND:
        return fit(BOTH_BY_HAND[pair](), **BETWEEN)
    case = CASE[pair[1]]
    return fit(case.twin(case), make(pair)[0], **BETWEEN)


@in_both_orders
@on_pairs
def test_trains_as_written_by_hand(pair: tuple[str, str], swap: bool) -> None:
    """Whatever their order in the list of callbacks:

    all augmentations move the batch before anybody looks at it, the first in the list first; then the user's step
    runs, with the branches of all on the layers; then each adds its term to the loss. A second pass of REMUL's is
    of the network as it was in the step, but neither a penalty nor a state nor another REMUL sees it. Phase one of
    cloning comes before, on the network without branches, the first in the list first. So order matters only for
    two augmentations and two clonings.
    """
    weights = fit(Plain(), *make(pair, swap), **BETWEEN)
    for name in pair:
        assert (weights - alone(name)).abs().max() > 1e-4, "the other had no effect"
    if swap and pair in ORDER_MATTERS:
        assert (weights - by_hand(pair)).abs().max() > 1e-4
    else:
        close(weights, by_hand(pair))


class FirstByHand(RecmByHand):
    """RECM of the first layer only."""

    def __init__(self) -> None:
        super().__init__()
        strategy = on(make_recm(), FIRST)
        strategy.attach(Plain())
        self.branches[0], self.critics[0] = strategy.branches[0].network, strategy.recurrences["net.0"].critic
        self.h[0] = strategy.recurrences["net.0"].h

    def theta(self, i: int, *args: Any, **kwargs: Any) -> Tensor:
        return (1 - i) * super().theta(i, *args, **kwargs)


FIRST, LAST = ({name: irreps} for name, irreps in LAYERS.items())
BRANCHES = {"RECM": make_recm, "ConstraintRelaxation": make_relaxation}
on_branches = pytest.mark.parametrize("branch", BRANCHES)


@in_both_orders
@on_branches
def test_branches_on_different_layers(branch: str, swap: bool) -> None:
    """RECM on the first layer, written by hand, and a branch on the last."""

    def last() -> SymmetryCallback:
        return on(BRANCHES[branch](name="second"), LAST)

    pair = [on(make_recm(), FIRST), last()]
    close(fit(Plain(), *ordered(pair, swap)), fit(FirstByHand(), last()))


def test_two_relaxations_of_different_layers() -> None:
    pair = [on(make_relaxation(name="first"), FIRST), on(make_relaxation(name="last", seed=1), LAST)]
    twin = RelaxedByHand()
    for strategy, parameter in zip(pair, (twin.W, twin.V), strict=True):
        strategy.attach(Plain())
        parameter.data = strategy.branches[0].network.weight.detach().clone()
        strategy.detach()
    close(fit(Plain(), *pair), fit(twin))


@in_both_orders
def test_phase_one_sees_the_batches_of_the_loader(swap: bool) -> None:
    pair = [make_cloning(inputs=[0]), GroupAugmentation(SYMMETRY)]
    single = make_cloning(inputs=[0])
    for strategies in (ordered(pair, swap), [single]):
        fit(Plain(), *strategies)
    assert pair[0].report["clone_error"] == single.report["clone_error"]


# ---- nothing is left behind, and a resumed run is the same -----------------------------------------------------------
@in_both_orders
@on_pairs
def test_nothing_is_left_behind(pair: tuple[str, str], swap: bool) -> None:
    module, fails, strategies = Plain(), Fails(), make(pair)
    trainer().fit(module, loader())
    before, before_failure = snapshot(module), snapshot(fails)
    for _ in range(2):
        trainer(*ordered(strategies, swap)).fit(module, loader(), loader())
        assert snapshot(module) == before
    with pytest.raises(RuntimeError, match="the user's own"):
        trainer(*ordered(strategies, swap)).fit(fails, loader())
    assert snapshot(fails) == before_failure
    for strategy in strategies:
        strategy.attach(module)
    for strategy in ordered(strategies, swap):
        strategy.detach()
    assert snapshot(module) == before


@on_pairs
def test_resumes_bit_for_bit(pair: tuple[str, str], tmp_path: Any) -> None:
    def new() -> L.Trainer:
        save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, every_n_epochs=2)
        return trainer(*make(pair), save, max_epochs=4, enable_checkpointing=True)

    modules = Plain(), Plain()
    for module, path in zip(modules, (None, str(tmp_path / "epoch=1.ckpt")), strict=True):
        module.configure_optimizers = lambda m=module: torch.optim.Adam(m.parameters())  # type: ignore[method-assign]
        new().fit(module, loader(), ckpt_path=path)
    assert torch.equal(*map(weights, modules))
    module = Plain()
    before = snapshot(module)
    assert list(torch.load(path, weights_only=True)["state_dict"]) == before["keys"]
    new().validate(module, loader(), ckpt_path=path, verbose=False)
    assert {"on_load_checkpoint", "configure_gradient_clipping"}.isdisjoint(snapshot(module)["attributes"])
    assert snapshot(module)["modules"] == before["modules"]


# ---- the monitor -----------------------------------------------------------------------------------------------------
def validated(*callbacks: L.Callback) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Weights and random state after training, and what was logged."""
    torch.manual_seed(0)
    module, training = Plain(), trainer(*callbacks, max_epochs=2)
    training.fit(module, loader(), loader())
    return weights(module), torch.get_rng_state(), training.callback_metrics


@in_both_orders
@pytest.mark.parametrize("name", CASE)
def test_a_monitor_watches_and_changes_nothing(name: str, swap: bool) -> None:
    callbacks = [CASE[name].make(), EquivarianceMonitor(SYMMETRY, "net")]
    *watched, logged = validated(*ordered(callbacks, swap))
    *unwatched, others = validated(CASE[name].make())
    assert all(map(torch.equal, watched, unwatched))
    assert 0 < logged.pop("equivariance_error") < 10
    assert logged == others


@in_both_orders
@on_branches
def test_a_monitor_measures_the_users_calls_only(branch: str, swap: bool) -> None:
    """evaluate="both" runs the validation step once more; the network that is measured is the projected one."""
    errors = []
    for evaluate in ("both", "projected"):
        callbacks = [BRANCHES[branch](evaluate=evaluate), EquivarianceMonitor(SYMMETRY, "net")]
        errors.append(validated(*ordered(callbacks, swap))[-1]["equivariance_error"])
    close(*errors)


# ---- the branches of one are not the network, nor the layers, of the other -------------------------------------------
class Named(nn.Module):
    """The network of `make_net`, with names in place of numbers: branches live inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.between, self.last = make_net()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


NAMED = {"net.first": LAYERS["net.0"], "net.last": LAYERS["net.2"]}


class WithHead(Plain):
    """Something that trains beside the network."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__(net)
        self.head = make_net(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return mse(self.head(self.net(batch[0])), batch[1])


OTHERS = {
    "REMUL": CASE["REMUL"].make,
    "REMUL, gradnorm": lambda: REMUL(SYMMETRY, "net", balance="gradnorm", gradnorm_lr=0.2),
    "cloning, break": make_cloning,
    "cloning, retain": lambda: make_cloning(mode="retain", weight=None),
}


@in_both_orders
@on_branches
@pytest.mark.parametrize("other", OTHERS)
def test_where_the_branches_live_and_who_came_first_does_not_matter(branch: str, other: str, swap: bool) -> None:
    def run(net: nn.Module, layers: dict[str, Any], swap: bool) -> Tensor:
        module, pair = WithHead(net), [OTHERS[other](), on(BRANCHES[branch](), layers)]
        fit(module, *ordered(pair, swap))
        return weights(module)

    close(run(Named(), NAMED, swap), run(make_net(), LAYERS, False))


@on_branches
def test_a_network_is_relaxed_that_was_cloned_before(branch: str) -> None:
    module, cloning = Plain(Named()), make_cloning()
    fit(module, cloning)
    fit(module, cloning, on(BRANCHES[branch](), NAMED))


@in_both_orders
def test_branches_get_no_branches(swap: bool) -> None:
    """Layers chosen by type are the user's, whoever comes first."""
    module, pair = Plain(), [make_recm(), on(make_relaxation(lie_weight=0), nn.Linear)]
    for strategy in ordered(pair, swap):
        strategy.attach(module)
    assert [b.layer.name for b in pair[1].branches] == list(LAYERS)


@in_both_orders
@on_branches
def test_kept_layers_are_put_back_before_others_look(branch: str, swap: bool) -> None:
    """finalize="keep" leaves modules in the place of layers; in the next fit all begin from the user's."""
    module, pair = Plain(), [make_recm(finalize="keep", threshold=0.0), BRANCHES[branch](name="second")]
    layers = [module.net[0], module.net[2]]
    for _ in range(2):
        trainer(*ordered(pair, swap)).fit(module, loader())
        assert [b.layer.module for b in pair[1].branches] == layers
        assert [m.layer for m in (module.net[0], module.net[2])] == layers


def test_two_kept_branches_of_a_layer_are_nested() -> None:
    module, pair = Plain(), [make_recm(finalize="keep", threshold=0.0, name=f"{i}", seed=i) for i in range(2)]
    layer, x = module.net[0], next(iter(loader()))[0]
    trainer(*pair).fit(module, loader())
    close(module.net[0](x), layer(x) + sum(r.branches[0].theta * r.branches[0].network(x) for r in pair))


# ---- pairs that make no sense ----------------------------------------------------------------------------------------
@in_both_orders
@pytest.mark.parametrize(
    ("second", "module", "message"),
    [(make_relaxation, Plain, "nothing else"), (second_cloning, WithHead, "retain")],
    ids=["only branches that are dropped at the end would train", "another one would teach the network anew"],
)
def test_what_does_not_go_with_a_retained_clone(second: Any, module: Any, message: str, swap: bool) -> None:
    with pytest.raises(ValueError, match=message):
        fit(module(), *ordered([OTHERS["cloning, retain"](), second()], swap))


@pytest.mark.parametrize("name", CASE)
def test_two_of_one_kind_and_name_are_refused(name: str) -> None:
    """Their states would be one in a checkpoint, and their draws are the same."""
    with pytest.raises(RuntimeError, match=r"state_key. must be unique"):
        trainer(CASE[name].make(), CASE[name].make())


@in_both_orders
def test_two_kinds_of_branches_of_one_name_are_refused(swap: bool) -> None:
    with pytest.raises(RuntimeError, match="name the second one otherwise"):
        fit(Plain(), *ordered([make_recm(name="same"), make_relaxation(name="same")], swap))
