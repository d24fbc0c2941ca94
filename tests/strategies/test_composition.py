"""Strategies compose in pairs: each trains as if the other's part were written by hand in the user's step."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from lightning_equiv import EquivarianceMonitor, GroupAugmentation, SymmetryCallback
from tests.strategies.cases import (
    CASES,
    GRADNORM,
    PAIRED,
    PAIRS,
    RETAIN,
    Case,
    Fails,
    Pair,
    missing_pairs,
    mse,
    second_cloning,
)
from tests.strategies.cloned_by_hand import WEIGHT, make_cloning
from tests.strategies.recm_by_hand import RecmByHand, make_recm
from tests.strategies.relaxed_by_hand import LAYERS, BranchesByHand, RelaxedByHand, make_relaxation
from tests.strategies.toys import (
    SYMMETRY,
    EachStep,
    Plain,
    assert_same,
    draws,
    loader,
    make_net,
    snapshot,
    trainer,
    weights,
)

BETWEEN = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}  # what stands between a loss and a step
BRANCHES = {kind: case for kind, case in PAIRED.items() if case.adds_parameters}
OTHERS = {case.name: case for case in (*(PAIRED[k] for k in PAIRED if k not in BRANCHES), GRADNORM, RETAIN)}
each_kind = pytest.mark.parametrize("case", PAIRED.values(), ids=PAIRED)
each_pair = pytest.mark.parametrize("pair", PAIRS, ids=str)
each_branch = pytest.mark.parametrize("case", BRANCHES.values(), ids=BRANCHES)
in_both_orders = pytest.mark.parametrize("swap", [False, True], ids=["in order", "swapped"])


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
def alone(case: Case) -> Tensor:
    return fit(Plain(), case.make(), **BETWEEN)


def test_something_is_said_about_every_pair() -> None:
    assert set(PAIRED) == {case.kind for case in CASES.values()}, "expected one case of each class with a `second`"
    assert missing_pairs() == []
    assert len({frozenset((pair.first, pair.second)) for pair in PAIRS}) == len(PAIRS), "one is said twice"


# ---- the training is the one that is meant ---------------------------------------------------------------------------
def both_by_hand(first: Case, twin: Plain) -> Plain:
    """A twin in whose step the loss of another case is written by hand, too."""
    loss, step = first.loss, twin.training_step
    assert loss is not None

    def training_step(batch: Any, batch_idx: int) -> Tensor:
        draw = draws(*first.key, 0, 0, (twin.current_epoch, batch_idx))
        x, y = loss.move(*batch, draw)
        again = twin.again if isinstance(twin, BranchesByHand) else twin.net
        return step((x, y), batch_idx) + loss.added(again, [x], y, draw)

    twin.training_step = training_step  # type: ignore[method-assign]
    return twin


@functools.cache
def by_hand(pair: Pair) -> Tensor:
    """What the weights should be: both by hand, or the second by hand and the first, which wraps it, attached."""
    first, second = pair.cases
    if first.loss is not None:
        return fit(both_by_hand(first, second.make_twin()), **BETWEEN)
    return fit(second.make_twin(), first.make(), **BETWEEN)


@in_both_orders
@each_pair
def test_trains_as_written_by_hand(pair: Pair, swap: bool) -> None:
    """Whatever their order in the list of callbacks:

    all augmentations move the batch before anybody looks at it, the first in the list first; then the user's step
    runs, with the branches of all on the layers; then each adds its term to the loss. A second pass of REMUL's is
    of the network as it was in the step, but neither a penalty nor a state nor another REMUL sees it. Phase one of
    cloning comes before, on the network without branches, the first in the list first. So order matters only for
    two augmentations and two clonings.
    """
    weights = fit(Plain(), *pair.make(swap), **BETWEEN)
    for kind in (pair.first, pair.second):
        assert (weights - alone(PAIRED[kind])).abs().max() > 1e-4, "the other had no effect"
    if swap and pair.order_matters:
        assert (weights - by_hand(pair)).abs().max() > 1e-4
    else:
        assert_same(weights, by_hand(pair))


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


@in_both_orders
@each_branch
def test_branches_on_different_layers(case: Case, swap: bool) -> None:
    """RECM on the first layer, written by hand, and a branch on the last."""

    def last() -> SymmetryCallback:
        return on(case.make(name="second"), LAST)

    pair = [on(make_recm(), FIRST), last()]
    assert_same(fit(Plain(), *ordered(pair, swap)), fit(FirstByHand(), last()))


def test_two_relaxations_of_different_layers() -> None:
    pair = [on(make_relaxation(name="first"), FIRST), on(make_relaxation(name="last", seed=1), LAST)]
    twin = RelaxedByHand()
    for strategy, parameter in zip(pair, (twin.W, twin.V), strict=True):
        strategy.attach(Plain())
        parameter.data = strategy.branches[0].network.weight.detach().clone()
        strategy.detach()
    assert_same(fit(Plain(), *pair), fit(twin))


@pytest.mark.parametrize("module", [Plain, Fails])
def test_two_relaxations_leave_compiling_as_it_was(module: type[L.LightningModule]) -> None:
    """Each looks at its layers in a first step that is not compiled, one inside the other."""
    pair = [on(make_relaxation(name="first"), FIRST), on(make_relaxation(name="last"), LAST)]
    with pytest.raises(RuntimeError, match="the user's own") if module is Fails else nullcontext():
        fit(module(), *pair)
    compiled = CompileCounter()
    torch.compile(torch.sin, backend=compiled)(torch.ones(2))
    assert compiled.frame_count == 1


@in_both_orders
def test_phase_one_sees_the_batches_of_the_loader(swap: bool) -> None:
    pair = [make_cloning(inputs=[0]), GroupAugmentation(SYMMETRY)]
    single = make_cloning(inputs=[0])
    for strategies in (ordered(pair, swap), [single]):
        fit(Plain(), *strategies)
    assert pair[0].report["clone_error"] == single.report["clone_error"]


# ---- nothing is left behind, and a resumed run is the same -----------------------------------------------------------
@in_both_orders
@each_pair
def test_nothing_is_left_behind(pair: Pair, swap: bool) -> None:
    module, fails, strategies = Plain(), Fails(), pair.make()
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


@each_pair
def test_resumes_bit_for_bit(pair: Pair, tmp_path: Any) -> None:
    def new() -> L.Trainer:
        save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, every_n_epochs=2)
        return trainer(*pair.make(), save, max_epochs=4, enable_checkpointing=True)

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
@each_kind
def test_a_monitor_watches_and_changes_nothing(case: Case, swap: bool) -> None:
    callbacks = [case.make(), EquivarianceMonitor(SYMMETRY, "net")]
    *watched, logged = validated(*ordered(callbacks, swap))
    *unwatched, others = validated(case.make())
    assert all(map(torch.equal, watched, unwatched))
    assert 0 < logged.pop("equivariance_error") < 10
    assert logged == others


@in_both_orders
@each_branch
def test_a_monitor_measures_the_users_calls_only(case: Case, swap: bool) -> None:
    """evaluate="both" runs the validation step once more; the network that is measured is the projected one."""
    errors = []
    for evaluate in ("both", "projected"):
        callbacks = [case.make(evaluate=evaluate), EquivarianceMonitor(SYMMETRY, "net")]
        errors.append(validated(*ordered(callbacks, swap))[-1]["equivariance_error"])
    assert_same(*errors)


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


@in_both_orders
@each_branch
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_where_the_branches_live_and_who_came_first_does_not_matter(case: Case, other: Case, swap: bool) -> None:
    def run(net: nn.Module, layers: dict[str, Any], swap: bool) -> Tensor:
        module, pair = WithHead(net), [other.make(), on(case.make(), layers)]
        fit(module, *ordered(pair, swap))
        return weights(module)

    assert_same(run(Named(), NAMED, swap), run(make_net(), LAYERS, False))


@each_branch
def test_a_network_is_relaxed_that_was_cloned_before(case: Case) -> None:
    """The second fit teaches nothing: it goes on from the first, relaxed, and pulls to the clone of the first."""
    module, cloning, net = Plain(Named()), make_cloning(), make_net()
    fit(module, cloning)
    for ours, theirs in zip(net.parameters(), module.net.parameters(), strict=True):
        ours.data.copy_(theirs.data)
    twin, clone = case.make_twin(net), list(cloning.state_dict()["clone"].values())
    step = twin.training_step

    def pulled(batch: Any, batch_idx: int) -> Tensor:
        squares = [(p - start).square().sum() for p, start in zip(net.parameters(), clone, strict=True)]
        return step(batch, batch_idx) + WEIGHT / 2 * sum(squares)

    twin.training_step = pulled  # type: ignore[method-assign]
    assert_same(fit(module, cloning, on(case.make(), NAMED)), fit(twin))


@in_both_orders
def test_branches_get_no_branches(swap: bool) -> None:
    """Layers chosen by type are the user's, whoever comes first."""
    module, pair = Plain(), [make_recm(), on(make_relaxation(lie_weight=0), nn.Linear)]
    for strategy in ordered(pair, swap):
        strategy.attach(module)
    assert [b.layer.name for b in pair[1].branches] == list(LAYERS)


@in_both_orders
@each_branch
def test_kept_layers_are_put_back_before_others_look(case: Case, swap: bool) -> None:
    """finalize="keep" leaves modules in the place of layers; in the next fit all begin from the user's."""
    module, pair = Plain(), [make_recm(finalize="keep", threshold=0.0), case.make(name="second")]
    layers, seen = [module.net[0], module.net[2]], []
    look = EachStep(lambda _: seen.append([b.layer.module for b in pair[1].branches] == layers))
    for _ in range(2):
        trainer(*ordered(pair, swap), look).fit(module, loader())
        assert len(seen) >= len(loader())
        assert all(seen)
        assert [m.layer for m in (module.net[0], module.net[2])] == layers


def test_two_kept_branches_of_a_layer_are_nested() -> None:
    module, pair = Plain(), [make_recm(finalize="keep", threshold=0.0, name=f"{i}", seed=i) for i in range(2)]
    layer, x = module.net[0], next(iter(loader()))[0]
    trainer(*pair).fit(module, loader())
    outer, inner = module.net[0], module.net[0].layer
    assert inner.layer is layer
    assert_same(outer(x), layer(x) + sum(relaxed.theta * relaxed.branch(x) for relaxed in (inner, outer)))


# ---- pairs that make no sense ----------------------------------------------------------------------------------------
@in_both_orders
@pytest.mark.parametrize(
    ("second", "module", "message"),
    [(make_relaxation, Plain, "nothing else"), (second_cloning, WithHead, "retain")],
    ids=["only branches that are dropped at the end would train", "another one would teach the network anew"],
)
def test_what_does_not_go_with_a_retained_clone(second: Any, module: Any, message: str, swap: bool) -> None:
    with pytest.raises(ValueError, match=message):
        fit(module(), *ordered([RETAIN.make(), second()], swap))


@each_kind
def test_two_of_one_kind_and_name_are_refused(case: Case) -> None:
    """Their states would be one in a checkpoint, and their draws are the same."""
    with pytest.raises(RuntimeError, match=r"state_key. must be unique"):
        trainer(case.make(), case.make())


@in_both_orders
def test_two_kinds_of_branches_of_one_name_are_refused(swap: bool) -> None:
    with pytest.raises(RuntimeError, match="give the second one another name"):
        fit(Plain(), *ordered([make_recm(name="same"), make_relaxation(name="same")], swap))
