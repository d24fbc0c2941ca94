"""Symmetrized: a network made exactly, or more, equivariant by running it on several elements of the group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_equiv._checks import check_number
from lightning_equiv._random import derived_generator
from lightning_equiv.groups.group import GroupElement
from lightning_equiv.groups.product import as_group
from lightning_equiv.metrics.chunks import ChunkSize, check_chunk_size
from lightning_equiv.symmetrize.canonical import OptimisedCanonicaliser, elements_of, pose_prior
from lightning_equiv.symmetrize.fold import Mean, chosen_from, mean_over, put_in
from lightning_equiv.symmetrize.methods import Average, Canonical, make_method
from lightning_equiv.symmetrize.rules import Subgroup, rule_of
from lightning_equiv.symmetry.arguments import call_signature
from lightning_equiv.symmetry.call import BoundCall, BoundTree
from lightning_equiv.symmetry.symmetry import Symmetry, as_symmetry
from lightning_equiv.symmetry.tree import Tree
from lightning_equiv.wiring.evaluation import evaluating
from lightning_equiv.wiring.ranks import process_rank

MethodName = Literal["average", "frame", "weighted_frame", "canonical"]


class Spread(NamedTuple):
    """A mean over elements, and how far the network's outputs lie around it.

    Attributes:
        mean: as the network's output.
        deviation: the standard deviation of z(g) over the elements, shaped as the output.
        error: the standard error of the mean, deviation / sqrt(num_samples), where the elements are drawn; else None.
    """

    mean: Tree
    deviation: Tree
    error: Tree | None


class Exactness(NamedTuple):
    """What `Symmetrized.choose_degree` tried.

    Attributes:
        degree: L.
        calls: of the network for each input.
        change: root mean square of the difference to degree L + 2, over that of z(g) - mean.
    """

    degree: int
    calls: int
    change: float


class Symmetrized(nn.Module):
    r"""A network whose outputs are means over group elements, turned back: more equivariant, without training.

        z(g)      = rho_out(g)^-1 f(rho_in(g) x)
        average     Pi f(x) = sum_k w_k z(g_k)                        the same elements for every input
        frame       mean of z(F^-1) over F in Frame(x),               Frame(h x) = h Frame(x)
        canonical   z(c(x)^-1),                                       c(h x) = h c(x)

    It is called as the network is and returns what that returns. With E over all of the group, and any labels y,
    E |z - y|^2 = |Pi f - y|^2 + Var z: an average is never worse over all orientations, see `symmetry_share`.

    | method | exact for | calls of the network | continuous | symmetric inputs | the network must have seen |
    |---|---|---|---|---|---|
    | "average", finite group | the group | its order | yes | fine | all orientations |
    | "average", `subgroup` | the subgroup; degrees up to 2, 3, 5 | 12, 24, 60 (O(3): twice) | yes | fine | all orientations |
    | "average", `degree=L` | degrees up to L | SO(2): L + 1; SO(3): (L + 1)^2 ((L + 2) // 2) | yes | fine | all orientations |
    | "average", `num_samples=m` | nothing; the error falls as 1 / sqrt(m) | m | no (random) | fine | all orientations |
    | "frame" | the group | 4 for SO(3), 8 for O(3), 2 for SO(2) | **no: it jumps where axes swap** | none: averaged | poses along the axes |
    | "weighted_frame" | the group | N (N - 1) for N points, or `num_frames` | yes | lines: averaged | poses along pairs |
    | "canonical" | the group, as far as c is | 1 | no | c's choice | canonical poses: `prior_loss` |

    "average" is the default, and the one for potentials: an energy by frames or poses jumps along a trajectory.
    Translations (SE(3), E(3), T(n)) are taken out by centring. What "must have seen" says decides the error of a network
    that is trained already: one that knows a single orientation gains nothing from averages over others. Statistics of
    batch normalisation in training mode are those of the moved inputs.

    Args:
        network: f, an nn.Module (its weights are under "network." in the state dict, and nothing else is) or another
            callable.
        symmetry: says how a group element moves what it takes and returns.
        method: see the table; or a callable that takes what the network takes and gives c(x): n group elements, or their
            matrices. One that is an nn.Module has its weights under "canonicaliser.". That it turns with the input is
            checked in the first call.
        subgroup: of the rotations of space: "tetrahedral" (12), "octahedral" (24, the default) or "icosahedral" (60).
        degree: to which an average over SO(2), SO(3), O(3) is exact; see `choose_degree`. SO(2) has 7 by default.
        num_samples: elements drawn for each input and call; the default, 32, of S_n with n > 6.
        randomise: turn the rule by one drawn element for each input and call: no axis is preferred.
        points: dotted name (or position) of the input with the points whose centre and axes are taken; by default the
            only one that is declared as `Point()`.
        stochastic: one element for each input while training, drawn by the weights; all in evaluation mode. How a
            network learns the poses that its frames show it, at the cost of a plain step.
        num_frames: most pairs of "weighted_frame": those of the largest weights, cut continuously.
        power: p of the weights |q_i x q_j|^p.
        tolerance: an input whose eigenvalues are closer, relative to the largest, has no principal axes; one whose points
            lie that close to a line has no pairs. These inputs are averaged, in their own calls, and counted in
            `num_degenerate`.
        chunk_size: most inputs in one call of the network, never fewer than the batch itself; None takes all at once,
            "auto" as many as are fast and fit into memory.
        seed: of the draws, which depend on (seed, rank, how many calls were before).

    Attributes:
        num_degenerate: how many inputs had no frame, since it was made.

    Raises:
        ValueError: an unknown method; a frame or a group with translations without points; a rule that the group does not
            have.

    Examples:
        >>> from lightning_equiv import Symmetry, equivariance_error
        >>> network = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.SiLU(), torch.nn.Linear(16, 3))
        >>> symmetry = Symmetry("C4", inputs="1o", outputs="1o")
        >>> symmetrized = Symmetrized(network, symmetry)
        >>> bool(equivariance_error(symmetrized, torch.randn(5, 3), symmetry, num_samples=None).max() < 1e-5)
        True
        >>> list(symmetrized.state_dict())[0]
        'network.0.weight'

    Reference:
        @inproceedings{puny2022frame,
          title={Frame Averaging for Invariant and Equivariant Network Design},
          author={Puny, Omri and Atzmon, Matan and Smith, Edward J. and Misra, Ishan and Grover, Aditya and Ben-Hamu, Heli
            and Lipman, Yaron},
          booktitle={International Conference on Learning Representations},
          year={2022}
        }
        @inproceedings{dym2024equivariant,
          title={Equivariant Frames and the Impossibility of Continuous Canonicalization},
          author={Dym, Nadav and Lawrence, Hannah and Siegel, Jonathan W.},
          booktitle={International Conference on Machine Learning},
          year={2024}
        }
    """  # noqa: E501

    def __init__(
        self,
        network: Callable[..., Any],
        symmetry: Symmetry,
        method: MethodName | Callable[..., GroupElement | Tensor] = "average",
        *,
        subgroup: Subgroup | None = None,
        degree: int | None = None,
        num_samples: int | None = None,
        randomise: bool = False,
        points: str | int | None = None,
        stochastic: bool = False,
        num_frames: int | None = None,
        power: float = 2.0,
        tolerance: float = 1e-4,
        chunk_size: ChunkSize = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_chunk_size(chunk_size)
        check_number("tolerance", tolerance, above=0, below=1)
        check_number("power", power, above=0)
        check_number("num_frames", num_frames, least=1, whole=True, optional=True)
        if not callable(network):
            raise TypeError(f"expected a network to call, got {network!r}")
        self.network = network
        self.symmetry = as_symmetry(symmetry)
        self.stochastic, self.chunk_size, self.seed = stochastic, chunk_size, seed
        rule = {"subgroup": subgroup, "degree": degree, "num_samples": num_samples}
        frames = {"tolerance": tolerance, "power": power, "most": num_frames}
        self.method, self.fallback = make_method(method, network, self.symmetry, rule, points, randomise, frames)
        if isinstance(method, nn.Module):
            self.canonicaliser = method
        self.num_degenerate = 0
        self._calls = 0
        known = call_signature(network)
        if known is not None:
            self.__signature__ = known

    # ---- the call ------------------------------------------------------------------------------------------------
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, *args: Any, **kwargs: Any) -> Tree:
        """What the network returns, symmetrized."""
        call = self.symmetry.bind(self.network, args, kwargs)
        return self._means(call, squares=False).output.tree

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the network inside, with the arguments of `torch.compile`; what is around it stays as it is."""
        if not isinstance(self.network, nn.Module):
            raise TypeError(f"expected a network that is an nn.Module to compile, got {self.network!r}")
        self.network.compile(*args, **kwargs)

    def spread(self, *args: Any, **kwargs: Any) -> Spread:
        """The output with its standard deviation over the elements, called as the network is.

        For a quadrature it is exact where `degree` is at least twice that of the network.

        Raises:
            ValueError: a method that takes other elements than an average does.
        """
        method = self.method
        if not isinstance(method, Average):
            raise ValueError(f"a spread over the group needs method='average', got {type(method).__name__.lower()!r}")
        mean = self._means(self.symmetry.bind(self.network, args, kwargs), squares=True)
        drawn = method.rule if isinstance(method.rule, int) else None
        squares = iter(mean.squares or [])
        deviations = []
        for t in mean.output.tensors:
            if t.shared:
                deviations.append(t.x)
                continue
            square = next(squares)
            variance = (square - t.x.to(square.dtype).square()).clamp_min(0)
            scale = drawn / (drawn - 1) if drawn is not None and drawn > 1 else 1.0
            deviations.append((variance * scale).sqrt().to(t.x.dtype))
        found = mean.output.holding(deviations)
        error = (
            None
            if drawn is None
            else found.holding(x / drawn**0.5 if x.is_floating_point() else x for x in deviations).tree
        )
        return Spread(mean.output.tree, found.tree, error)

    def prior_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        """How far canonical poses are from the data's own, called as the network is: to be added to a training loss.

        mean |R - 1|^2 of the poses R; the cross entropy to the identity of an `OptimisedCanonicaliser`. It keeps a
        network that is trained already on inputs in the poses that it knows.

        Raises:
            ValueError: another method than "canonical".

        Reference:
            Mondal, Panigrahi, Kaba, Mudumba, Ravanbakhsh. Equivariant Adaptation of Large Pretrained Models. NeurIPS
            2023, arXiv 2310.01647.
        """
        if not isinstance(self.method, Canonical):
            raise ValueError("prior_loss is of canonical poses: expected method='canonical' or a canonicaliser")
        c = self.method.canonicaliser
        if isinstance(c, OptimisedCanonicaliser):
            return c.prior_loss(*args, **kwargs)
        call = self.symmetry.bind(self.network, args, kwargs)
        return pose_prior(elements_of(c(*args, **kwargs), self.symmetry, call.num_inputs))

    def choose_degree(self, *args: Any, tolerance: float = 0.01, most: int = 16, **kwargs: Any) -> list[Exactness]:
        """Take the quadrature whose degree is enough for this network on this input, by doubling: 1, 2, 4, 8, ...

        A degree L is enough where L + 2 changes the output by less than `tolerance` of its spread over the group. Many
        inputs at once are one figure, so that a batch of data is what to call it with.

        Args:
            args: of the network.
            tolerance: of the spread.
            most: the highest degree that is tried; it is taken where none was enough.
            kwargs: of the network.

        Returns:
            What was tried, the degree that is taken last.

        Raises:
            ValueError: another method, or a finite group, whose average is exact.
        """
        group = as_group(self.symmetry.group).linear_part
        if not isinstance(self.method, Average) or group is None or group.order is not None:
            raise ValueError(
                f"there is no degree to choose: expected method='average' over a continuous group, got {group}"
            )
        check_number("tolerance", tolerance, above=0)
        check_number("most", most, least=1, whole=True)
        tried: list[Exactness] = []
        degree, before = 1, self.method.rule
        try:
            with torch.no_grad(), evaluating(self):
                while True:
                    self.method.set_rule(rule_of(group, degree=degree))
                    calls, low = self.method.num_calls, self._parts(self(*args, **kwargs), args, kwargs)
                    self.method.set_rule(rule_of(group, degree=degree + 2))
                    mean, deviation, _ = self.spread(*args, **kwargs)
                    high, width = (self._parts(y, args, kwargs) for y in (mean, deviation))
                    spread = float(width.norm())
                    change = float((high - low).norm()) / spread if spread else 0.0
                    tried.append(Exactness(degree, calls, change))
                    if change < tolerance or degree >= most:
                        break
                    degree = min(2 * degree, most)
        except BaseException:
            self.method.set_rule(before)
            raise
        self.method.set_rule(rule_of(group, degree=degree))
        return tried

    # ---- what it is made of --------------------------------------------------------------------------------------
    @property
    def num_calls(self) -> int | None:
        """How often the network sees each input in evaluation mode; None where the input says."""
        return self.method.num_calls if isinstance(self.method, Average) else None

    def _generator(self) -> torch.Generator:
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "elements that are drawn anew in every call cannot be compiled or exported: expected a fixed rule, "
                "without num_samples, randomise, and stochastic in training mode"
            )
        self._calls += 1
        return derived_generator("Symmetrized", self.seed, process_rank(), self._calls)

    def _means(self, call: BoundCall, squares: bool) -> Mean:
        """The mean of one call, and of the inputs without a frame in calls of their own."""
        one = self.stochastic and self.training
        chosen = self.method.choose(call, self._generator)
        flagged = chosen.degenerate
        chosen = chosen.one(self._generator()) if one else chosen
        mean = mean_over(self.network, call, chosen, self.chunk_size, squares)
        if flagged is None or self.fallback is None:
            return mean
        if torch.compiler.is_compiling():  # a program cannot ask which inputs these are: all are averaged besides
            rest = mean_over(self.network, call, self.fallback.choose(call, self._generator), self.chunk_size)
            return Mean(chosen_from(mean.output, rest.output, flagged), None)
        index = flagged.nonzero()[:, 0]
        if len(index):
            self.num_degenerate += len(index)
            part = call.take(index)
            chosen = self.fallback.choose(part, self._generator)
            chosen = chosen.one(self._generator()) if one else chosen
            output = mean_over(self.network, part, chosen, self.chunk_size).output
            return Mean(put_in(mean.output, output, index), None)
        return mean

    def _parts(self, y: Tree, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """All numbers of an output in a row."""
        bound: BoundTree = self.symmetry.bind(self.network, args, kwargs).output(y)
        return torch.cat([x.flatten().double() for x in bound.parts().values()])

    def extra_repr(self) -> str:
        """The method in words."""
        method = self.method
        rule = getattr(method.rule, "name", f"{method.rule} draws") if isinstance(method, Average) else ""
        return f"{as_group(self.symmetry.group)}, {type(method).__name__.lower()}{f': {rule}' if rule else ''}"
