"""SymmetryCloning: teach a plain network a symmetry, then keep it or break it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn

from lightning_equiv._checks import check_number
from lightning_equiv.layers.branch import branches_off
from lightning_equiv.layers.hidden_parameters import on_cpu, own_parameters
from lightning_equiv.strategies.base import SymmetryCallback
from lightning_equiv.strategies.symmetry_cloning.cache import check_confirmed, fingerprint, read_clone, write_clone
from lightning_equiv.strategies.symmetry_cloning.cloning import (
    Pair,
    Report,
    check_reached,
    clone,
    held_out_error,
    measured_error,
    teaching,
)
from lightning_equiv.strategies.symmetry_cloning.inputs import (
    Args,
    Draws,
    Inputs,
    Match,
    Resample,
    Settings,
    drawn,
    num_weights,
    shapes_or_reader,
    takes_weights,
    without_tau,
)
from lightning_equiv.strategies.symmetry_cloning.one_process import made_by_the_first
from lightning_equiv.symmetry.symmetry import Symmetry, as_symmetry
from lightning_equiv.wiring.network import find_network
from lightning_equiv.wiring.training_batches import training_batches
from lightning_equiv.wiring.training_step import StepHooks, wrap_training_step


@dataclass
class Taught:
    """The clone that a student is pulled back to.

    Attributes:
        clone: its weights by name; none before it is taught.
        length: |theta_clone|^2.
        decay: of the pull, 1 .. 0.
    """

    clone: dict[str, Tensor] = field(default_factory=dict)
    length: Tensor | None = None
    decay: float = 1.0


class SymmetryCloning(SymmetryCallback):
    r"""Symmetry cloning: a plain network learns an equivariant teacher's behaviour, then trains with or without it.

        phase one     min_theta  mean |h_theta(x, tau) - Phi(x; tau)|^2 / mean |Phi|^2      x, tau ~ N(0, I)
        phase two     L = L_task + weight / 2 |theta - theta_clone|^2

    The teacher Phi is a family of equivariant maps with weights tau as inputs (`CircularConvolution`,
    `GroupConvolution`, `EquivariantLinear`, ..), cloned by a student h(x, tau) of which a `ClonedLayer` assembles a
    layer; or any equivariant network, trained or not, whose behaviour a student takes over (distillation).

    Phase one runs before training begins, with an optimizer of its own. It stops at a held-out relative MSE of
    (tolerance / 2)^2: then the clone's relative equivariance error is about `tolerance` at most, as
    |h(g x) - g h(x)| <= err(g x) + err(x). One process clones, the others receive. A second `fit` of the same module
    does not clone again; a run that is resumed goes on.

    The clone is equivariant where it was taught: at inputs like those that were drawn. Phase one also ends where the
    held-out error no longer falls, at a plateau.

    Logs `symmetry_cloning/clone_error` (relative MSE), `/clone_equivariance_error`, and `/drift`,
    |theta - theta_clone| / |theta_clone|.

    Args:
        teacher: the equivariant network, or a family with `num_weights`, `in_shape` and `symmetry`. It is copied, and
            is in no checkpoint, optimizer or process group.
        network: dotted name of the student. Weights of it that are frozen are taught all the same, and stay frozen.
        symmetry: what the teacher is equivariant to; None takes the teacher's own `symmetry`. Without any, neither
            teacher nor clone is measured.
        inputs: what the student is shown: shapes for noise N(0, I), [(5,), (5, 3)] or {"charges": (5,), ..}; keys of
            the training batch, ["charges", "positions"]; or a callable from a batch to the arguments (a tuple, a dict
            of keywords, or a single one). Training data is moved by random elements of the symmetry's group. None is
            noise of the teacher's `in_shape`.
        resample: how often a family's weights tau are drawn: at every "step", every "epoch" of 100 steps, or "never",
            which clones one member of it.
        steps: at most so many of phase one.
        tolerance: wanted equivariance error of the clone.
        on_failure: where the tolerance is not reached "raise", with the student as it was; or "warn", and go on with
            the clone as it is.
        mode: phase two. "retain": the student stays as it is, or, with a `weight`, near; "break": it trains, pulled
            back with a constant `weight`; "anneal": the pull decays linearly to 0.
        weight: beta / s^2 of the pull; None is frozen for "retain", 0 for "break", 1e-3 for "anneal".
        match: "output", or {layer of the student: layer of the teacher}, whose outputs are to be equal.
        batch_size: inputs of a step of phase one, for noise.
        lr: of phase one, Adam, falling along half a cosine.
        max_teacher_error: relative equivariance error above which a teacher is refused.
        needs_grad: teacher or student differentiate inside (conservative forces).
        cache: a file for the clone; a second run that finds it does not clone again, but measures the held-out error
            once, and refuses a file whose error it is not.
        cache_key: what else the clone depends on; a file written under another key is refused. Needed where `inputs` is
            a function.
        seed: of the draws.
        name: prefix of what is logged.

    Raises:
        ValueError: an unconditional student of a family whose weights are drawn again; outputs that do not match; a
            teacher that is not equivariant; a cache that belongs to another teacher or student.
        RuntimeError: a tolerance that was not reached; manual optimisation.

    Examples:
        >>> cloning = SymmetryCloning(nn.Linear(3, 3), network="net", inputs=[(3,)], mode="break")
        >>> trainer = L.Trainer(callbacks=[cloning], logger=False, enable_checkpointing=False)

    Reference:
        @misc{huang2024symmetry, title={Symmetry From Scratch: Group Equivariance as a Supervised Learning Task},
          author={Huang, Haozhe and Cheng, Leo Kaixuan and Chen, Kaiwen and Aspuru-Guzik, Al{\'a}n},
          year={2024}, note={arXiv:2410.03989}}
    """

    changes_loss = True
    continues = True
    ready_made = {"SymmetryCloning": {"on_failure": "warn"}}  # noqa: RUF012 (never changed)

    def __init__(
        self,
        teacher: nn.Module,
        network: str = "",
        *,
        symmetry: Symmetry | None = None,
        inputs: Inputs | None = None,
        resample: Resample = "step",
        steps: int = 2000,
        tolerance: float = 0.1,
        on_failure: Literal["raise", "warn"] = "raise",
        mode: Literal["retain", "break", "anneal"] = "break",
        weight: float | None = None,
        match: Match = "output",
        batch_size: int = 128,
        lr: float = 1e-3,
        max_teacher_error: float = 1e-3,
        needs_grad: bool = False,
        cache: str | Path | None = None,
        cache_key: str | None = None,
        seed: int = 0,
        name: str = "symmetry_cloning",
    ) -> None:
        super().__init__(name=name, seed=seed)
        for key, value, options in (
            ("resample", resample, ("step", "epoch", "never")),
            ("mode", mode, ("retain", "break", "anneal")),
            ("on_failure", on_failure, ("raise", "warn")),
        ):
            if value not in options:
                raise ValueError(f"expected {key} to be one of {', '.join(map(repr, options))}, got {value!r}")
        check_number("weight", weight, least=0, optional=True)
        check_number("max_teacher_error", max_teacher_error, least=0)
        for key, number in (("tolerance", tolerance), ("lr", lr)):
            check_number(key, number, above=0)
        for key, number in (("steps", steps), ("batch_size", batch_size)):
            check_number(key, number, least=1, whole=True)
        if match != "output" and not isinstance(match, Mapping):
            raise ValueError(f"expected match to be 'output' or {{student's layer: teacher's layer}}, got {match!r}")
        self.teacher, self.network = teacher, network
        self.symmetry = getattr(teacher, "symmetry", None) if symmetry is None else as_symmetry(symmetry)
        self.inputs = shapes_or_reader(teacher, inputs)
        self.mode, self.max_teacher_error, self.on_failure = mode, max_teacher_error, on_failure
        self.needs_end = mode == "anneal"
        self.weight = {"retain": 0.0, "break": 0.0, "anneal": 1e-3}[mode] if weight is None else weight
        self.frozen = mode == "retain" and not weight
        self.cache = None if cache is None else Path(cache)
        if callable(inputs) and cache is not None and cache_key is None:
            raise ValueError(
                "`inputs` is a function, and no file can tell one function from another: write cache_key='...', a name "
                "that you change with the function"
            )
        self.cache_key = (cache_key, None if callable(inputs) else inputs)
        self.settings = Settings(steps, batch_size, lr, tolerance, resample, match, seed, needs_grad)
        self.report: dict[str, float] = {}

    # ---- the hold ------------------------------------------------------------------------------------------------
    def _attach(self, module: L.LightningModule, undo: ExitStack) -> Taught:
        """Find the student, freeze it where it is to stay as it is, and pull it back to the clone."""
        student = find_network(module, self.network)
        if not any(True for _ in student.parameters()):
            raise ValueError(f"network={self.network!r} has no parameters: expected the network to teach")
        if num_weights(self.teacher) and self.settings.resample != "never" and not takes_weights(student, 1):
            raise ValueError(
                f"network={self.network!r} ({type(student).__name__}) is called with x alone, but the teacher's "
                f"weights tau are drawn again (resample={self.settings.resample!r}): the best that such a student can "
                "learn is the mean over tau, which is 0. Let it be called with (x, tau), as `ConditionalMLP` is, or "
                "clone one member of the family with resample='never'"
            )
        if self.frozen:
            for p in own_parameters(student).values():
                undo.callback(p.requires_grad_, p.requires_grad)
                p.requires_grad_(False)
            if not any(p.requires_grad for p in own_parameters(module).values()):
                raise ValueError(
                    f"mode='retain' freezes network={self.network!r}, and nothing else of {type(module).__name__} "
                    "trains: say a weight to keep it near the clone instead, mode='break', or the part that was cloned"
                )
        taught = Taught()
        undo.callback(wrap_training_step(module, StepHooks(after=self._after(module, student, taught))))
        return taught

    def set_progress(self, step: int, total: int) -> None:
        if self.needs_end:
            self._taught.decay = max(0.0, 1 - step / total)

    def _after(self, module: L.LightningModule, student: nn.Module, taught: Taught) -> Callable[[Any, Tensor], Tensor]:
        parameters = own_parameters(student)

        def after(batch: Any, loss: Tensor) -> Tensor:
            if not taught.clone:
                return loss
            if taught.length is None:  # a clone from a checkpoint, perhaps in another place
                taught.clone = {n: t.to(parameters[n]) for n, t in taught.clone.items()}
                taught.length = torch.stack([t.square().sum() for t in taught.clone.values()]).sum()
            weight = self.weight * taught.decay
            with torch.set_grad_enabled(torch.is_grad_enabled() and weight > 0):
                squares = torch.stack([(p - taught.clone[n]).square().sum() for n, p in parameters.items()]).sum()
            values = {**self.report, "drift": (squares.detach() / taught.length).sqrt()}
            self.log_values(module, {k: values[k] for k in values if k != "steps"}, batch_size=1)
            return loss + weight / 2 * squares if weight else loss

        return after

    @property
    def _taught(self) -> Taught:
        taught: Taught = self._parts
        return taught

    def _state_owner(self, module: L.LightningModule) -> nn.Module:
        return find_network(module, self.network)

    # ---- phase one -----------------------------------------------------------------------------------------------
    def teach(
        self, module: L.LightningModule, batches: Callable[[], Any] | None = None, *, progress: bool = False
    ) -> None:
        """Phase one; a Trainer does it when `fit` begins, a hand-written loop calls it after `attach`.

        Args:
            module: the attached module.
            batches: gives an iterable of training batches, where `inputs` takes them from there.
            progress: whether to show a bar.

        Raises:
            ValueError: see the class.
            RuntimeError: the tolerance was not reached; the student is as it was before.
        """
        self._teach(module, batches, progress, lambda: None)

    @branches_off()
    def _teach(
        self,
        module: L.LightningModule,
        batches: Callable[[], Any] | None,
        progress: bool,
        alive: Callable[[], None],
    ) -> None:
        """Phase one, which says `alive` from time to time."""
        student, settings = find_network(module, self.network), self.settings
        like = next(iter(own_parameters(student).values()))
        wide = torch.empty((), dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
        teacher = copy.deepcopy(self.teacher).to(wide).eval()
        key = fingerprint(teacher, student, settings, (self.cache_key, self.symmetry))
        saved = None if self.cache is None else read_clone(self.cache, key)
        with torch.random.fork_rng(devices=[]):  # a loader shuffles by the global generator
            x = drawn(self.inputs, settings, self.symmetry, self.teacher, batches)
            draws = Draws(teacher, x, settings, wide)
            pair = Pair(student, teacher, settings.match, settings.needs_grad)
            held_out = draws(-1)
            self._check_teacher(teacher, *held_out)
        bar = Tqdm(total=settings.steps, desc="cloning", disable=not progress, leave=False)

        def tell(step: int, error: float) -> None:
            bar.update(step - bar.n)
            bar.set_postfix(error=f"{error:.1e}")
            alive()

        with closing(bar), teaching(student):
            if saved is None:
                with torch.enable_grad(), torch.random.fork_rng(devices=[]):
                    result = clone(pair, draws, settings, tell)
            else:
                result = self._confirmed(saved, pair, *held_out)
            check_reached(result, settings, self.on_failure)
            self.report = {"clone_error": result.error, "steps": float(result.steps)}
            self._measure(student, *held_out)
        self._remember(own_parameters(student))
        if saved is None:
            rank_zero_info(f"{type(self).__name__}: {result.in_words(self.report.get('clone_equivariance_error'))}")
            if self.cache is not None:
                write_clone(self.cache, key, self._as_saved(student))

    def _confirmed(self, saved: Mapping[str, Any], pair: Pair, args: Args, tau: Tensor | None) -> Report:
        """The clone of a file, whose error is what the file says."""
        assert self.cache is not None
        try:
            pair.student.load_state_dict(saved["student"])
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"the clone in {self.cache} does not fit the student: delete the file") from error
        found, kept = held_out_error(pair, args, tau), saved["report"]["clone_error"]
        check_confirmed(self.cache, kept, found, self.settings.goal, isinstance(self.inputs, dict | tuple))
        return Report(found, int(saved["report"]["steps"]))

    def _remember(self, taught: Mapping[str, Tensor]) -> None:
        self._taught.clone, self._taught.length = {name: p.detach().clone() for name, p in taught.items()}, None

    def _check_teacher(self, teacher: nn.Module, args: Args, tau: Tensor | None) -> None:
        error = self._error(teacher, args, tau)
        if error is not None and not error <= self.max_teacher_error:
            raise ValueError(
                f"the teacher {type(teacher).__name__} is not equivariant under the declared symmetry: its relative "
                f"error is {error:.2e}, expected at most max_teacher_error={self.max_teacher_error:.0e}; correct the "
                "symmetry, or raise max_teacher_error if that much is meant"
            )

    def _measure(self, student: nn.Module, args: Args, tau: Tensor | None) -> None:
        if self.settings.match != "output":
            return
        error = self._error(student, args, tau if tau is not None and takes_weights(student, len(args[0])) else None)
        if error is not None:
            self.report["clone_equivariance_error"] = error

    def _error(self, network: nn.Module, args: Args, tau: Tensor | None) -> float | None:
        if self.symmetry is None:
            return None
        symmetry = without_tau(self.symmetry, self.teacher) if tau is None else self.symmetry
        return measured_error(network, args, tau, symmetry, self.settings)

    def _as_saved(self, student: nn.Module) -> dict[str, Any]:
        """The student with its buffers, for the cache and the other processes."""
        return {"student": on_cpu(student.state_dict()), "report": self.report}

    def _take(self, state: Mapping[str, Any], student: nn.Module) -> None:
        """A clone's weights into the student."""
        self.report = dict(state["report"])
        student.load_state_dict(state["student"])
        self._remember(own_parameters(student))

    # ---- Lightning's hooks ---------------------------------------------------------------------------------------
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Attach before the optimizers and before DDP: what is frozen must be so by then."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.attach_early(pl_module)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Clone, on one process; take what a checkpoint or the last fit of this module has left."""
        super().on_fit_start(trainer, pl_module)
        student = find_network(pl_module, self.network)
        parameters = own_parameters(student)
        self._check_alone(trainer, pl_module, parameters)
        if self._taught.clone:  # by an earlier fit, or the run that is resumed: go on from the student as it is
            return

        def make(alive: Callable[[], None]) -> dict[str, Any]:
            shown = getattr(trainer.progress_bar_callback, "is_enabled", False)
            self._teach(pl_module, lambda: training_batches(trainer, pl_module), shown, alive)
            return self._as_saved(student)

        made = made_by_the_first(trainer, make)
        if not trainer.is_global_zero:
            self._take(made, student)

    def _check_alone(self, trainer: L.Trainer, module: L.LightningModule, taught: dict[str, nn.Parameter]) -> None:
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        mine = {id(p) for p in taught.values()}
        others = [c for c in callbacks if isinstance(c, SymmetryCloning) and c is not self and c.frozen]
        for other in others:
            if mine & {id(p) for p in own_parameters(find_network(module, other.network)).values()}:
                raise ValueError(
                    f"network={self.network!r} is retained by {other.name!r}, mode='retain', and {self.name!r} would "
                    "teach it something else: expected networks of their own, or one of the two"
                )

    def own_state(self) -> dict[str, Any]:
        """The clone, and what it reached."""
        clone = self._taught.clone
        return {"clone": on_cpu(clone), "report": self.report} if clone else {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Go on: the student has been taught."""
        self._taught.clone, self._taught.length = dict(state["clone"]), None
        self.report = dict(state["report"])
