"""The one table that the tests of all strategies run over, and what these tests share.

A case is a strategy, the same training written by hand, its twin, and what is expected of it. A new strategy is one
case here, and one sentence in PAIRS for each strategy that it trains together with. The twin of one with branches is a
`BranchesByHand`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations_with_replacement
from typing import Any

import lightning as L
import pytest
from torch import Tensor, nn

from lightning_equiv import REMUL, GroupAugmentation, SymmetryCallback, SymmetryCloning
from tests.strategies.ace_by_hand import AceByHand, ResilientByHand, make_ace, make_resilient
from tests.strategies.cloned_by_hand import AnnealedByHand, ClonedByHand, Stretch, make_cloning
from tests.strategies.projection_by_hand import ProjectionByHand, ToleranceByHand, make_projection, make_tolerance
from tests.strategies.recm_by_hand import RecmByHand, make_recm
from tests.strategies.relaxed_by_hand import NearestByHand, RelaxedByHand, make_nearest, make_relaxation
from tests.strategies.remul_by_hand import DualByHand, EveryByHand, NearByHand, PartByHand
from tests.strategies.rpp_by_hand import RppByHand, make_rpp
from tests.strategies.toys import SYMMETRY, Plain, Task, draws, once, turn

mse, l1 = nn.functional.mse_loss, nn.functional.l1_loss
Net = Callable[[Tensor], Tensor]
Draw = Callable[[int], Tensor]  # n -> rotations (n, 3, 3)


@dataclass(frozen=True)
class Loss:
    """The loss of a step, written by hand, of a strategy that only draws rotations.

    Attributes:
        term: what joins the loss for a call of the network, (net, x, y, R) -> term; the mean over calls is added.
        moves: whether the step sees a batch that was moved.
        num_samples: rotations drawn for each row of a call.
    """

    term: Callable[[Net, Tensor, Tensor, Tensor], Tensor] | None = None
    moves: bool = False
    num_samples: int = 1

    def move(self, x: Tensor, y: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """The batch that the step sees."""
        if not self.moves:
            return x, y
        R = draw(len(x))
        return turn(R, x), turn(R, y)

    def added(self, net: Net, calls: list[Tensor], y: Tensor, draw: Draw) -> Tensor | float:
        """What joins the loss of a step whose calls of the network were with these inputs."""
        if self.term is None:
            return 0.0
        terms = [self.term(net, x, y, draw(self.num_samples * len(x))) for x in calls]
        return sum(terms) / len(terms)

    def __call__(self, net: Net, x: Tensor, y: Tensor, draw: Draw, task: Task = once) -> Tensor:
        x, y = self.move(x, y, draw)
        calls: list[Tensor] = []

        def called(x: Tensor) -> Tensor:
            calls.append(x)
            return net(x)

        loss = task(called, x, y)
        return loss + self.added(net, calls, y, draw)


class ByHand(Plain):
    """The twin of a strategy that only draws rotations: their generator depends on `key`."""

    def __init__(self, loss: Loss, key: tuple[Any, ...], net: nn.Module | None = None) -> None:
        super().__init__(net)
        self.loss, self.key = loss, key

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self.net, *batch, self.draw(batch_idx), self.task)

    def draw(self, batch_idx: int) -> Draw:
        """The rotations of a batch, one call's after the other's."""
        return draws(*self.key, 0, self.global_rank, (self.current_epoch, batch_idx))


@dataclass(frozen=True)
class Refusal:
    """That a strategy refuses something: what its error matches, and what the table says."""

    match: str
    words: str
    error: type[Exception] = RuntimeError


@dataclass(frozen=True)
class Case:
    """A strategy, the same training written by hand, and what is expected of it.

    The expectations that a strategy declares itself, such as `needs_end`, are compared with what stands here.

    Attributes:
        name: of the case: "kind, variant".
        make: a fresh strategy; arguments change its settings.
        twin: the module written by hand, of a network, where `loss` is not enough.
        loss: the loss of a step written by hand, of a strategy that only draws rotations; makes the twin.
        second: another one of the kind with another name and settings. Exactly one case of each class has one: the
            case that is tested in pairs.
        adds_parameters: whether weights of its own train with the model.
        changes_loss: whether it needs automatic optimisation.
        needs_end: whether it must know how long the run is.
        has_state: whether a checkpoint holds something of it.
        keeps_step: whether the user's own step computes what it would without the strategy.
        prepare: what changes the weights before training: a loop without a Trainer calls it after `attach`.
        one_graph: whether its network compiles as one graph.
        distributed: whether it is trained on two processes, too; no need where another case runs the same code.
        doubled: how far two processes may end from one with the doubled batch, in units of what the training moved.
        sharded: why it is refused where the network's weights are sharded; None for a strategy that works there.
        called_twice: how it refuses a step that calls the network twice.
        folds: whether it writes its branches into the layers' weights, once: these must train, the branches be linear.
        reads_task_loss: it depends on the user's loss, and a twin whose loss is changed after its step is none.
    """

    name: str
    make: Callable[..., SymmetryCallback]
    twin: Callable[[nn.Module | None], Plain] | None = None
    loss: Loss | None = None
    second: Case | None = None
    adds_parameters: bool = False
    changes_loss: bool = True
    needs_end: bool = False
    has_state: bool = False
    keeps_step: bool = False
    prepare: Callable[[Any, L.LightningModule], None] | None = None
    one_graph: bool = True
    distributed: bool = True
    doubled: float = 1e-5
    sharded: str | None = None
    called_twice: Refusal | None = None
    reads_task_loss: bool = False
    folds: bool = False

    @cached_property
    def kind(self) -> str:
        """The name of the class."""
        return type(self.make()).__name__

    @cached_property
    def key(self) -> tuple[str, str]:
        """What tells its draws from those of other strategies."""
        return self.kind, self.make().name

    def make_twin(self, net: nn.Module | None = None, task: Task = once) -> Plain:
        """The same training written by hand, of another network or with another loss of the user's."""
        if self.loss is not None:
            twin: Plain = ByHand(self.loss, self.key, net)
        else:
            assert self.twin is not None, f"{self.name} has no twin"
            twin = self.twin(net)
        twin.task = task
        return twin


REMUL_CASE = partial(Case, keeps_step=True)
BRANCH_CASE = partial(
    Case, adds_parameters=True, needs_end=True, has_state=True, sharded="its branches would be sharded wrongly"
)
CLONING_CASE = partial(
    Case,
    has_state=True,
    prepare=lambda strategy, module: strategy.teach(module),
    sharded="it needs the network's whole weights",
)
PROJECTION_CASE = partial(Case, keeps_step=True, sharded="it needs the layers' whole weights")
A_LABEL = Refusal(r"calls the network 2 times.*leave `target` out", "a label belongs to one call: leave `target` out")


def anchored(weight: float) -> Loss:
    """REMUL's, anchored on labels."""
    return Loss(lambda net, x, y, R: weight * mse(net(turn(R, x)), turn(R, y)))


class Opposite(Stretch):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


def second_cloning() -> SymmetryCloning:
    strategy = make_cloning(name="second", seed=1, weight=0.2)
    strategy.teacher = Opposite()
    return strategy


CASES = {
    case.name: case
    for case in (
        REMUL_CASE(
            "remul, label-anchored",
            partial(REMUL, SYMMETRY, "net", weight=2.0, target=1),
            loss=anchored(2.0),
            second=REMUL_CASE(
                "remul, second",
                partial(REMUL, SYMMETRY, "net", weight=0.5, target=1, name="second"),
                loss=anchored(0.5),
            ),
            called_twice=A_LABEL,
        ),
        REMUL_CASE(
            "remul, prediction-anchored",
            partial(REMUL, SYMMETRY, "net", weight=0.5),
            loss=Loss(lambda net, x, y, R: 0.5 * mse(net(turn(R, x)), turn(R, net(x)))),
        ),
        REMUL_CASE(
            "remul, detached",
            partial(REMUL, SYMMETRY, "net", detach_target=True),
            loss=Loss(lambda net, x, y, R: mse(net(turn(R, x)), turn(R, net(x).detach()))),
            distributed=False,
        ),
        REMUL_CASE(
            "remul, l1, three samples",
            partial(REMUL, SYMMETRY, "net", target=1, loss="l1", num_samples=3),
            loss=Loss(
                lambda net, x, y, R: sum(l1(net(turn(r, x)), turn(r, y)) for r in R.unflatten(0, (3, -1))) / 3,
                num_samples=3,
            ),
            distributed=False,
            called_twice=A_LABEL,
        ),
        REMUL_CASE(
            "remul, a third of the batch",
            partial(REMUL, SYMMETRY, "net", weight=0.5, fraction=1 / 3),
            PartByHand,
            distributed=False,
        ),
        REMUL_CASE(
            "remul, every second step",
            partial(REMUL, SYMMETRY, "net", weight=0.5, every=2),
            EveryByHand,
            distributed=False,
        ),
        REMUL_CASE(
            "remul, near the identity",
            partial(REMUL, SYMMETRY, "net", weight=0.5, elements="near", angle=0.2),
            NearByHand,
            distributed=False,
        ),
        REMUL_CASE(
            "remul, to a tolerance",
            partial(REMUL, SYMMETRY, "net", balance="dual", tolerance=2.0),  # it warns of one that is not reached
            DualByHand,
            has_state=True,
            reads_task_loss=True,
            doubled=2e-2,  # each process draws elements of its own, and the mean of ratios is not the ratio of means
        ),
        Case(
            "augmentation",
            partial(GroupAugmentation, SYMMETRY),
            loss=Loss(moves=True),
            second=Case(
                "augmentation, second",
                partial(GroupAugmentation, SYMMETRY, name="second"),
                loss=Loss(moves=True),
                changes_loss=False,
            ),
            changes_loss=False,
        ),
        BRANCH_CASE(
            "constraint relaxation",
            make_relaxation,
            RelaxedByHand,
            second=BRANCH_CASE(
                "constraint relaxation, second", partial(make_relaxation, name="second", seed=1, peak=0.7, end=1.0)
            ),
            doubled=1e-3,  # the root of a mean is not the mean of the roots
        ),
        BRANCH_CASE("constraint relaxation, nearest", make_nearest, NearestByHand, folds=True),
        BRANCH_CASE(
            "recm",
            make_recm,
            RecmByHand,
            second=BRANCH_CASE("recm, second", partial(make_recm, name="second", seed=1, gain=0.3)),
            one_graph=False,  # it breaks the graph at each layer
            doubled=2e-2,  # each process draws elements of its own
        ),
        BRANCH_CASE(
            "ace, equality",
            make_ace,
            AceByHand,
            second=BRANCH_CASE("ace, second", partial(make_ace, name="second", seed=1, gamma_lr=0.3)),
        ),
        BRANCH_CASE("ace, resilient", make_resilient, ResilientByHand, distributed=False),
        BRANCH_CASE(
            "rpp",
            make_rpp,
            RppByHand,
            second=BRANCH_CASE("rpp, second", partial(make_rpp, name="second", seed=1, free_weight=0.2)),
            needs_end=False,
        ),
        PROJECTION_CASE(
            "equivariance projection",
            make_projection,
            ProjectionByHand,
            second=PROJECTION_CASE(
                "equivariance projection, second", partial(make_projection, name="second", weight=0.5)
            ),
        ),
        PROJECTION_CASE(
            "equivariance projection, to a tolerance",
            make_tolerance,
            ToleranceByHand,
            has_state=True,
            reads_task_loss=True,
        ),
        CLONING_CASE(
            "symmetry cloning, break",
            make_cloning,
            ClonedByHand,
            second=CLONING_CASE("symmetry cloning, second", second_cloning),
        ),
        CLONING_CASE("symmetry cloning, anneal", partial(make_cloning, mode="anneal"), AnnealedByHand, needs_end=True),
    )
}
# settings that some tests run over besides, and that have no twin here
GRADNORM = Case("remul, gradnorm", partial(REMUL, SYMMETRY, "net", balance="gradnorm", gradnorm_lr=0.2), has_state=True)
RETAIN = CLONING_CASE("symmetry cloning, retain", partial(make_cloning, mode="retain", weight=None))

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


# ---- pairs -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Pair:
    """Two kinds of strategies, what they do together, and whether it depends on their order in the list.

    The first one stands around the second: it acts on what the second leaves of the user's step. A strategy with itself
    is two of different names.
    """

    first: str
    second: str
    words: str
    order_matters: bool = False

    def __str__(self) -> str:
        return f"{self.first}-{self.second}"

    @property
    def cases(self) -> tuple[Case, Case]:
        """Two cases whose strategies have different names."""
        first, second = PAIRED[self.first], PAIRED[self.second]
        if self.first != self.second:
            return first, second
        assert first.second is not None
        return first.second, second

    def make(self, swap: bool = False) -> list[SymmetryCallback]:
        """Fresh strategies, in order or not."""
        strategies = [case.make() for case in self.cases]
        return strategies[::-1] if swap else strategies


PAIRED = {case.kind: case for case in CASES.values() if case.second is not None}
PAIRS = [
    Pair(
        "GroupAugmentation",
        "GroupAugmentation",
        "the batch is moved twice, first by the first in the list",
        order_matters=True,
    ),
    Pair("GroupAugmentation", "REMUL", "both losses and REMUL's labels are of the moved batch, in either order"),
    Pair(
        "GroupAugmentation",
        "SymmetryCloning",
        "phase one sees the loader's batches, then moved ones, in either order",
    ),
    Pair("GroupAugmentation", "RECM", "layers and targets are those of the moved batch, in either order"),
    Pair("GroupAugmentation", "ACE", "layers are those of the moved batch, in either order"),
    Pair("GroupAugmentation", "ConstraintRelaxation", "layers and penalties are of the moved batch, in either order"),
    Pair("GroupAugmentation", "RPP", "layers are those of the moved batch, in either order"),
    Pair("GroupAugmentation", "EquivarianceProjection", "the penalty does not see the batch"),
    Pair("REMUL", "REMUL", "both losses are added, in either order"),
    Pair("REMUL", "SymmetryCloning", "the second loss and the pull are added, in either order"),
    Pair("REMUL", "RECM", "the second pass has the theta of the first, held constant, in either order"),
    Pair("REMUL", "ACE", "the second pass has the gamma of the first, held constant, in either order"),
    Pair("REMUL", "ConstraintRelaxation", "the second pass is relaxed, and not penalised, in either order"),
    Pair("REMUL", "RPP", "the second pass has the free pathways, and the priors are counted once, in either order"),
    Pair("REMUL", "EquivarianceProjection", "the second loss and the penalty are added, in either order"),
    Pair("EquivarianceProjection", "EquivarianceProjection", "both penalties are added, in either order"),
    Pair("EquivarianceProjection", "SymmetryCloning", "the penalty and the pull are added, in either order"),
    Pair("EquivarianceProjection", "ACE", "the penalty is of the layers without their branches, in either order"),
    Pair("EquivarianceProjection", "RPP", "the penalty is of the layers without their branches, in either order"),
    Pair("EquivarianceProjection", "RECM", "the penalty is of the layers without their branches, in either order"),
    Pair(
        "EquivarianceProjection",
        "ConstraintRelaxation",
        "the penalty is of the layers without their branches, in either order",
    ),
    Pair(
        "SymmetryCloning",
        "SymmetryCloning",
        "the last in the list teaches last, and each pulls to its own clone",
        order_matters=True,
    ),
    Pair("SymmetryCloning", "ACE", "the network without branches is taught and pulled, in either order"),
    Pair("SymmetryCloning", "RECM", "the network without branches is taught and pulled, in either order"),
    Pair(
        "SymmetryCloning",
        "ConstraintRelaxation",
        "the network without branches is taught and pulled, in either order",
    ),
    Pair("SymmetryCloning", "RPP", "the network without branches is taught and pulled, in either order"),
    Pair("ACE", "ACE", "a layer's branches are added, each with its own gamma, in either order"),
    Pair("RECM", "ACE", "a layer's branches are added, each with its own level, in either order"),
    Pair("ACE", "ConstraintRelaxation", "a layer's branches are added, in either order; both go to 0"),
    Pair("RECM", "RECM", "a layer's branches are added, each with its own theta, in either order"),
    Pair(
        "RECM",
        "ConstraintRelaxation",
        "a layer's branches are added, in either order; the scheduled one goes to 0",
    ),
    Pair(
        "ConstraintRelaxation",
        "ConstraintRelaxation",
        "a layer's branches and penalties are added, in either order",
    ),
    Pair("ACE", "RPP", "a layer's branches are added, in either order; the priors are of RPP's branches alone"),
    Pair("RECM", "RPP", "a layer's branches are added, in either order; the priors are of RPP's branches alone"),
    Pair("ConstraintRelaxation", "RPP", "a layer's branches and penalties are added, in either order; RPP's stay"),
    Pair("RPP", "RPP", "a layer's branches and priors are added, in either order"),
]


def missing_pairs() -> list[tuple[str, ...]]:
    """Pairs of strategies that nothing is said about."""
    said = {frozenset((pair.first, pair.second)) for pair in PAIRS}
    return [pair for pair in combinations_with_replacement(PAIRED, 2) if frozenset(pair) not in said]


# ---- modules ---------------------------------------------------------------------------------------------------------
class Fails(Plain):
    """Raises in the third step."""

    error: type[BaseException] = RuntimeError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx == 2:
            raise self.error("the user's own")
        return super().training_step(batch, batch_idx)
