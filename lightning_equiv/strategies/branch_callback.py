"""BranchCallback: a strategy that attaches one non-equivariant branch to each chosen layer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelPruning, StochasticWeightAveraging, WeightAveraging
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_equiv._checks import check_number
from lightning_equiv._random import DrawsFrom, derived_generator
from lightning_equiv.groups.group import Group, element_dtype
from lightning_equiv.groups.product import as_group
from lightning_equiv.layers.branch import Branch, attach_branch, container_key, make_branch
from lightning_equiv.layers.choose import Layers, find_layers
from lightning_equiv.layers.hidden_parameters import CONTAINER, HiddenParameters, common_owner, remove_copies
from lightning_equiv.layers.layer import Layer, LayerFamily
from lightning_equiv.layers.measure import measured_on_example
from lightning_equiv.metrics.equivariance_error import EquivarianceError
from lightning_equiv.strategies.base import SymmetryCallback
from lightning_equiv.strategies.instruments import Gauge, Instruments, Step, as_instruments
from lightning_equiv.symmetry.symmetry import Symmetry
from lightning_equiv.wiring.call_recorder import CallRecorder, recording_paused
from lightning_equiv.wiring.clipping import clip_apart
from lightning_equiv.wiring.dry_validation import dry_validation_step
from lightning_equiv.wiring.network import find_network
from lightning_equiv.wiring.training_step import StepHooks, wrap_training_step

Evaluate = Literal["projected", "relaxed", "both"]


@dataclass(eq=False)
class Branches:
    """The branches while they are attached.

    Attributes:
        branches: one for each layer.
        container: holds their weights, and what a subclass adds.
        extra: what a subclass keeps beside them.
        sums: of what an evaluation logs, by name.
        validated: batches that were summed.
        uncompiled: the first step, in which layers are looked at as a compiled network does not allow.
        began: whether there was a step.
        readings: of the instruments.
    """

    branches: list[Branch]
    container: HiddenParameters
    extra: Any = None
    readings: Mapping[str, Tensor] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    validated: int = 0
    uncompiled: ExitStack = field(default_factory=ExitStack)
    began: bool = False


class BranchCallback(SymmetryCallback):
    """A strategy that relaxes layers: f_l(x) + theta_l n_l(x), with a branch n_l that knows no symmetry.

    The branches are made before the optimizers and before DDP wraps the module, live in a container that the module's
    state dict does not show, have their gradients clipped apart from the model's, and are gone after `fit`. Validation
    sees the projected network, theta = 0, unless `evaluate` asks for the relaxed one. A subclass writes what theta is
    (`set_progress`) and what joins the loss (`penalty`).

    Args:
        layers: which layers, see `layers.choose.find_layers`.
        families: families of layers, asked before the built-in ones.
        branch: "linear" (a convolution beside a convolution) or "mlp".
        init_scale: size of n(x) over that of x at the start.
        evaluate: "projected" validates the network without branches, "relaxed" the one with; "both" validates the
            projected one and logs what the relaxed one would have logged under `name`/relaxed/..., the difference
            under `name`/projection_gap/...; for that it runs the step twice more, and what the step appends to lists
            of its own is there three times.
        symmetry: the group (or its name) that the layers are equivariant to, or a `Symmetry`: then "both" measures the
            relaxed network's equivariance error, too.
        network: dotted name of the network that a `Symmetry` is of.
        horizon: optimizer steps of the whole run, where the Trainer cannot know them.
        name: prefix of what is logged.
        seed: of the branches' first weights.
        instruments: what is measured besides while training: `Instruments`, or what they measure, "loss dead
            curvature".
    """

    changes_loss = True
    adds_parameters = True
    needs_end = True

    def __init__(
        self,
        layers: Layers,
        *,
        families: Sequence[LayerFamily] = (),
        branch: Literal["linear", "mlp"],
        init_scale: float,
        evaluate: Evaluate,
        symmetry: Symmetry | Group | str,
        network: str,
        horizon: int | None,
        name: str,
        seed: int,
        instruments: Instruments | str | None = None,
    ) -> None:
        super().__init__(name=name, seed=seed)
        if branch not in ("linear", "mlp"):
            raise ValueError(f"expected branch to be 'linear' or 'mlp', got {branch!r}")
        if evaluate not in ("projected", "relaxed", "both"):
            raise ValueError(f"expected evaluate to be 'projected', 'relaxed' or 'both', got {evaluate!r}")
        check_number("init_scale", init_scale, least=0)
        check_number("horizon", horizon, least=1, whole=True, optional=True)
        self.layers, self.families, self.branch, self.init_scale = layers, families, branch, init_scale
        self.evaluate, self.horizon, self.network = evaluate, horizon, network
        self.instruments = as_instruments(instruments)
        self.symmetry = symmetry if isinstance(symmetry, Symmetry) else None
        self.group = as_group(symmetry.group if isinstance(symmetry, Symmetry) else symmetry)
        self.metric = (
            None if self.symmetry is None else EquivarianceError(self.symmetry, num_samples=4, needs_grad=True)
        )

    # ---- what a subclass writes ------------------------------------------------------------------------------------
    @abstractmethod
    def set_progress(self, step: int, total: int) -> None:
        """Set every branch's theta for an optimizer step."""

    @abstractmethod
    def penalty(self, module: L.LightningModule) -> Tensor:
        """What joins the loss."""

    def restore_module(self, module: L.LightningModule) -> None:
        """Undo what an earlier fit left; called for all branch strategies before any of them looks at the layers."""

    def check_layer(self, layer: Layer) -> None:
        """ValueError for a layer that this strategy cannot relax."""

    def fold(self, module: L.LightningModule, step: Step) -> bool:
        """Take what is due out of the branches into the layers, before a step of training; whether that was done.

        Args:
            module: which is trained.
            step: runs the user's own step once more, on a copy of the batch.
        """
        return False

    def add_modules(self, branches: list[Branch], container: HiddenParameters) -> Any:
        """Change or add to what trains with the branches, with this strategy's own random numbers; their `extra`."""

    def find(self, module: nn.Module) -> list[str]:
        """The names of the layers of a module that `layers` means, without a Trainer; the module stays as it is.

        Raises:
            ValueError: nothing matches.
        """
        return [layer.name for layer in find_layers(module, self.layers, self.families)]

    # ---- the attachment ------------------------------------------------------------------------------------------
    @property
    def branches(self) -> list[Branch]:
        """The branches; none while nothing is attached."""
        return self._branches.branches if self.is_attached else []

    @property
    def readings(self) -> dict[str, Tensor]:
        """What the instruments measured last, by the names under which it is logged; none while nothing is attached."""
        return dict(self._branches.readings) if self.is_attached else {}

    @property
    def _branches(self) -> Branches:
        parts: Branches = self._parts
        return parts

    def _attach(self, module: L.LightningModule, undo: ExitStack) -> Branches:
        """Find and check every layer, then make the branches."""
        found = find_layers(module, self.layers, self.families)
        layers = measured_on_example(module, found, isinstance(self.layers, Mapping))
        for layer in layers:
            if isinstance(layer.module, torch.jit.ScriptModule):
                raise ValueError(
                    f"layer {layer.name!r} is scripted and takes no hooks: relax it before torch.jit.script"
                )
            self.check_layer(layer)
        gauge = None if self.instruments is None else Gauge(self.instruments, self, module)
        remove_copies(module)
        container = HiddenParameters()
        seed = derived_generator(type(self).__name__, self.seed).initial_seed() % 2**31
        with torch.device("cpu"), DrawsFrom(torch.Generator().manual_seed(seed)):
            branches = [Branch(layer, make_branch(layer, self.branch, self.init_scale)) for layer in layers]
            for b in branches:
                like = next(b.layer.module.parameters(), next(module.parameters()))
                b.network.to(dtype=like.dtype if like.dtype.is_floating_point else None)
                b.theta = b.theta.to(like.device, element_dtype(like.device))
                container[container_key(b.layer)] = b.network
            extra = self.add_modules(branches, container)
        for b in branches:
            b.network.to(b.theta.device)
        owner = common_owner(module, [layer.name for layer in layers])
        place = f"{CONTAINER}_{self.name}"
        if hasattr(owner, place):
            raise RuntimeError(
                f"a strategy named {self.name!r} has branches there already: give the second one another name"
            )
        setattr(owner, place, container)
        undo.callback(delattr, owner, place)
        undo.callback(self._switch_off, branches)
        undo.callback(clip_apart(module, container.parameters()))
        for b in branches:
            undo.callback(attach_branch(b))

        def look(step: Step) -> None:
            folded = self.fold(module, step)
            if gauge is not None:
                gauge.look(step, branches, folded)

        hooks = StepHooks(look=look, ready=self._ready, after=self._after(module), done=self._done)
        undo.callback(wrap_training_step(module, hooks))
        return Branches(branches, container, extra, {} if gauge is None else gauge.values)

    def _switch_off(self, branches: list[Branch]) -> None:
        """Leave the layers alone, and warn of those that never ran."""
        for b in branches:
            b.active = False
        never = [b.layer.name for b in branches if not b.ever_ran]
        if 0 < len(never) < len(branches):
            rank_zero_warn(f"{type(self).__name__}: these layers never ran while training: {never}")

    def _ready(self, batch: Any) -> None:
        if not self._branches.began:
            self._branches.began = True
            self._branches.uncompiled.enter_context(torch.compiler.set_stance("force_eager"))
        for b in self.branches:
            b.start()

    def _done(self) -> None:
        self._branches.uncompiled.close()
        for b in self.branches:
            b.stop()

    def _after(self, module: L.LightningModule) -> Any:
        def after(batch: Any, loss: Tensor) -> Tensor:
            total = loss + self.penalty(module)
            for b in self.branches:
                b.inputs = []
                if not b.active or not b.calls:  # every parameter takes part in every step, as DDP demands
                    total = total + 0 * sum(p.sum() for p in b.network.parameters())
            return total

        return after

    def relax(self, theta: float) -> None:
        """Set one level on all layers, in a loop without a Trainer; 0 is the strictly equivariant network."""
        for b in self.branches:
            b.set_theta(theta)

    @contextmanager
    def projected(self) -> Iterator[None]:
        """Inside, the network is the strict one, theta = 0: to evaluate it in a loop without a Trainer."""
        active = [b.active for b in self.branches]
        try:
            for b in self.branches:
                b.active = False
            yield
        finally:
            for b, was in zip(self.branches, active, strict=True):
                b.active = was

    # ---- Lightning's hooks ---------------------------------------------------------------------------------------
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Attach now, or as soon as a lazily built model is there: before the optimizers and before DDP."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            if isinstance(callback, BranchCallback):
                callback.restore_module(pl_module)
        earlier = callbacks[: callbacks.index(self)]
        if any(isinstance(callback, WeightAveraging | StochasticWeightAveraging) for callback in earlier):
            raise RuntimeError(f"weight averaging must come after {type(self).__name__} in the list of callbacks")
        for callback in callbacks[callbacks.index(self) :]:
            if isinstance(callback, ModelPruning) and not callback._parameters_to_prune:
                raise RuntimeError(
                    f"ModelPruning takes whatever has a weight, and would take the branches of {type(self).__name__}: "
                    "expected it before in the list of callbacks, or with the parameters that are meant, e.g. "
                    'ModelPruning(..., parameters_to_prune=[(module.net[0], "weight")])'
                )
        self.attach_early(pl_module)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check what only the optimizers can tell."""
        super().on_fit_start(trainer, pl_module)
        held = {id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
        if any(id(p) not in held for p in self._branches.container.parameters()):
            raise RuntimeError(
                f"{type(self).__name__}: no optimizer holds the branches of {[b.layer.name for b in self.branches]}: "
                "give the optimizer "
                "`self.parameters()`, or those of the module that holds these layers, in `configure_optimizers`"
            )
        for b in self.branches:
            b.theta = b.theta.to(pl_module.device)
        names = [b.layer.name for b in self.branches]
        layers = f"{len(names)} layer{'s' * (len(names) > 1)}"
        rank_zero_info(f"{type(self).__name__}: relaxing {layers}: {', '.join(names)}")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Project, unless the relaxed network is to be validated."""
        if self._attachment is None:
            return
        self._branches.sums, self._branches.validated = {}, 0
        if self.evaluate != "relaxed":
            self._attachment.evaluation_undo.enter_context(self.projected())

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """With "both": what the step logs projected and relaxed, and how equivariant the relaxed network is."""
        if self.evaluate != "both" or trainer.sanity_checking or not self.is_attached:
            return
        with trainer.precision_plugin.forward_context(), recording_paused(), self.projected(), ExitStack() as undo:
            projected = dry_validation_step(pl_module, batch, batch_idx, dataloader_idx)
            for b in self.branches:
                b.active = bool(b.theta)
            if self.metric is not None:
                network = find_network(pl_module, self.network)
                recorder = CallRecorder(network)
                undo.callback(recorder.remove)
                recorder.start()
            relaxed = dry_validation_step(pl_module, batch, batch_idx, dataloader_idx)
            if self.metric is not None:
                self.metric.to(pl_module.device)
                for call in recorder.stop():
                    self.metric.update(network, *call.args, **call.kwargs)
        sums = self._branches.sums
        for key, value in relaxed.items():
            gap = value - projected[key]
            for name, part in ((f"relaxed/{key}", value), (f"projection_gap/{key}", gap)):
                sums[name] = sums.get(name, torch.zeros_like(part)) + part
        self._branches.validated += 1

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the means over batches."""
        if not self.is_attached or not self._branches.validated:
            return
        values: dict[str, Any] = {name: s / self._branches.validated for name, s in self._branches.sums.items()}
        if self.metric is not None:
            values["relaxed/equivariance_error"] = self.metric.compute()
            self.metric.reset()
        pl_module.log_dict({f"{self.name}/{name}": value for name, value in values.items()}, sync_dist=True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Relax again."""
        if self._attachment is not None:
            self._attachment.evaluation_undo.close()

    def own_state(self) -> dict[str, Any]:
        """The branches' weights, and what weight averaging made of them, which its own state does not hold."""
        container = self._branches.container
        averages = [
            {"is_saved_as_model": isinstance(callback, WeightAveraging), "branches": average.own_state()}
            for callback, average in self._averages()
        ]
        return {"branches": container.own_state(), **({"averages": averages} if averages else {})}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """The branches' weights and averages; a new average begins from the weights."""
        averages, saved = self._averages(), state.get("averages", [])
        branches = state["branches"]
        if not averages:  # the checkpoint's `state_dict` is the average, where there is one
            branches = next((other["branches"] for other in saved if other["is_saved_as_model"]), branches)
        self._branches.container.load_own_state(branches)
        for i, (_, average) in enumerate(averages):
            average.load_own_state(saved[i]["branches"] if i < len(saved) else branches)

    def _averages(self) -> list[tuple[L.Callback, HiddenParameters]]:
        """The callbacks of this run that average weights, each with its copy of the container."""
        attachment, container = self._attached(), self._branches.container
        trainer: Any = None if attachment.run is None else attachment.run()
        place = next(name for name, m in attachment.module.named_modules() if m is container)
        found = []
        for callback in [] if trainer is None else trainer.callbacks:
            model = getattr(callback, "_average_model", None)
            averaged = dict(getattr(model, "module", model or nn.Module()).named_modules()).get(place)
            if isinstance(averaged, HiddenParameters) and [*averaged] == [*container]:
                found.append((callback, averaged))
        return found
