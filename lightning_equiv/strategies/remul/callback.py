"""REMUL: relaxed equivariance as a second task."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch._functorch import config as functorch_config

from lightning_equiv._checks import check_number
from lightning_equiv.groups.product import as_group
from lightning_equiv.layers.hidden_parameters import own_parameters
from lightning_equiv.metrics.comparison import Distance, as_distance, equivariance_losses, nearby
from lightning_equiv.representations.action import wide
from lightning_equiv.strategies.balances import Balance, ConstantBalance, DualBalance
from lightning_equiv.strategies.base import SymmetryCallback
from lightning_equiv.strategies.remul.gradnorm import GradNormBalance
from lightning_equiv.strategies.remul.labels import find_labels, weights_of
from lightning_equiv.strategies.remul.second_pass import Losses, SecondPass
from lightning_equiv.symmetry.call import TOTAL
from lightning_equiv.symmetry.symmetry import Symmetry, as_symmetry
from lightning_equiv.symmetry.tree import Places
from lightning_equiv.wiring.call_recorder import Call, CallRecorder
from lightning_equiv.wiring.network import find_network
from lightning_equiv.wiring.training_step import StepHooks, wrap_training_step


@dataclass
class Parts:
    """What REMUL has while it is attached.

    Attributes:
        balance: the weights of the two losses.
        second_pass: runs the network again.
        number: of the step, counted from 0.
        sizes: |f(x)|^2 of an input, mean over each call of the step, where there is a tolerance.
    """

    balance: Balance
    second_pass: SecondPass
    number: int = -1
    sizes: list[Tensor] = field(default_factory=list)


class REMUL(SymmetryCallback):
    r"""REMUL: trains any network to be nearly equivariant by a second loss.

        L = alpha L_task + beta L_equi
        L_equi = mean_i l( f(g_i x_i), g_i y_i )       label-anchored: `target` says where y is; the paper's loss
        L_equi = mean_i l( f(g_i x_i), g_i f(x_i) )    prediction-anchored: no label needed

    with a fresh g_i for every sample and step. L_task is what `training_step` returns. The call of the network is
    remembered while the user's own step runs, and only the network is run again: a second forward pass a step, of a
    random `fraction` of the batch, or in one of `every` steps; its mean estimates L_equi without bias.

    How beta is set (alpha = 1 unless said otherwise):

        "dual"       say how equivariant the network has to be, `tolerance`: L_task is minimised subject to a relative
                     error |f(g x) - g f(x)| / |f(x)| of at most that, with beta its multiplier; see `DualBalance`
        "constant"   beta = `weight`; try 0.01, 0.1, 1, 10, 100 on the validation set
        "gradnorm"   GradNorm on the last layer's weights keeps both tasks learning at one rate; alpha + beta = 2

    Logs `remul/task_loss`, `remul/equivariance_loss`, `remul/task_weight`, `remul/equivariance_weight`, and with a
    tolerance `remul/equivariance_error`.

    Args:
        symmetry: says how a group element moves the network's inputs and outputs; labels move like outputs.
        network: dotted name of the sub-module that is meant, or "" for the LightningModule itself.
        weight: beta, in units of the task loss; with "gradnorm" the ratio beta / alpha to start from. Or one for each
            output, {"energy": 1.0, "forces": 100.0}: L_equi is their weighted sum, beta is 1, and each is logged.
        balance: "constant", "gradnorm" or "dual".
        tolerance: with "dual", the relative equivariance error that is allowed, such as 0.05. At the end of a training
            that did not reach it a warning says what was in the way.
        max_weight: with "dual", the largest beta, in units of the first task loss: what an error at the tolerance costs
            at most, one of twice the tolerance four times as much. Where data contradict the symmetry (a field, a
            forgotten input) beta would rise without end.
        fraction: which part of the batch the second pass sees: a random part of its inputs (whole graphs), at least
            one.
        every: a second pass in one of so many steps, whose weight is as many times as large; the others are plain.
        elements: "haar", uniform on the group, or "near": by `angle` from the identity, rotations by that many radians.
        angle: of "near".
        target: where the label is: a key, an index or a path of these into the batch ("y", 1, ["labels", "y"]), or a
            callable from the batch. Of nested outputs it may hold some; a dict says where each is, {"energy": "y",
            "forces": ["labels", "dy"]}. Outputs without a label are not compared. None anchors on the prediction.
        loss: l: "mse", "l1", "cross_entropy" (logits against class labels, with `target`), or a callable (prediction,
            target) -> scalar; summed over the tensors of nested outputs.
        num_samples: group elements for each input, folded into one call of the network.
        detach_target: no gradient through the side g f(x) of the prediction-anchored loss.
        freeze_stochastic: the second pass draws no dropout, and leaves batch-norm statistics, other buffers and the
            global generators alone.
        last_layer: dotted name of the weights that GradNorm looks at; by default the network's last matrix.
        gradnorm_gamma: strength of GradNorm's pull.
        gradnorm_lr: GradNorm's step.
        seed: of the draws.
        name: prefix of what is logged. Two REMULs of one Trainer need two names: where Lightning found "more than one
            stateful callback of type REMUL", write REMUL(..., name="second").

    Raises:
        ValueError: a name that does not exist, a target that is not in the batch or not of the prediction's shape.
        RuntimeError: manual optimisation; a step that never calls the network, or changes in place what it got or
            returned; a second loss without a gradient.

    Examples:
        >>> symmetry = Symmetry("SO(3)", inputs="1o", outputs="1o")
        >>> remul = REMUL(symmetry, network="net", weight=10.0, target=1)  # batches are (x, y)
        >>> trainer = L.Trainer(callbacks=[remul], logger=False, enable_checkpointing=False)

    Reference:
        @inproceedings{elhag2025relaxed,
          title={Relaxed Equivariance via Multitask Learning},
          author={Elhag, Ahmed A. and Rusch, T. Konstantin and Di Giovanni, Francesco and Bronstein, Michael},
          booktitle={Learning on Graphs Conference}, year={2025}, note={arXiv:2410.17878}}
    """

    changes_loss = True
    ready_made = {  # noqa: RUF012 (never changed)
        **{f"REMUL({weight:g})": {"weight": weight} for weight in (0.1, 1.0, 10.0)},
        "REMUL(GradNorm)": {"balance": "gradnorm"},
        "REMUL(5 %)": {"balance": "dual", "tolerance": 0.05, "target": None},  # without a label
    }
    continues = True
    by_hand = (
        ", or a module that inherits from `SymmetryMixin` and adds `self.equivariance_loss(x)` to the loss that it "
        "passes to `manual_backward`"
    )

    def __init__(
        self,
        symmetry: Symmetry,
        network: str = "",
        *,
        weight: float | dict[str, float] = 1.0,
        balance: Literal["constant", "gradnorm", "dual"] = "constant",
        tolerance: float | None = None,
        max_weight: float = 0.1,
        fraction: float = 1.0,
        every: int = 1,
        elements: Literal["haar", "near"] = "haar",
        angle: float = 0.1,
        target: Places | None = None,
        loss: Literal["mse", "l1", "cross_entropy"] | Distance = "mse",
        num_samples: int = 1,
        detach_target: bool = False,
        freeze_stochastic: bool = True,
        last_layer: str | None = None,
        gradnorm_gamma: float = 1.5,
        gradnorm_lr: float = 0.025,
        seed: int = 0,
        name: str = "remul",
    ) -> None:
        super().__init__(name=name, seed=seed)
        if balance not in ("constant", "gradnorm", "dual"):
            raise ValueError(f"expected balance to be 'constant', 'gradnorm' or 'dual', got {balance!r}")
        if (balance == "dual") != (tolerance is not None):
            raise ValueError(
                f"expected balance='dual' together with a tolerance, the relative equivariance error that is allowed: "
                f"REMUL(..., balance='dual', tolerance=0.05), got balance={balance!r}, tolerance={tolerance!r}"
            )
        check_number("tolerance", tolerance, above=0, optional=True)
        check_number("max_weight", max_weight, above=0)
        if elements not in ("haar", "near"):
            raise ValueError(f"expected elements to be 'haar' or 'near', got {elements!r}")
        check_number("angle", angle, above=0)
        check_number("fraction", fraction, above=0, most=1)
        check_number("every", every, least=1, whole=True)
        check_number("num_samples", num_samples, least=1, whole=True)
        weights = {f"weight[{k!r}]": w for k, w in weight.items()} if isinstance(weight, dict) else {"weight": weight}
        for key, value in (*weights.items(), ("gradnorm_gamma", gradnorm_gamma), ("gradnorm_lr", gradnorm_lr)):
            check_number(key, value, least=0)
        if balance == "dual" and (target is not None or loss != "mse" or weight != 1.0):
            raise ValueError(
                "balance='dual' holds the relative distance of f(g x) from g f(x) to a tolerance: expected it without "
                "target, loss and weight, which say what else is compared and how it is weighed"
            )
        self.symmetry, self.network, self.weight, self.balance = as_symmetry(symmetry), network, weight, balance
        self.tolerance, self.max_weight, self.fraction, self.every = tolerance, max_weight, fraction, every
        self.elements, self.angle = elements, angle
        if elements == "near":
            nearby(as_group(self.symmetry.group), angle, 1, generator=torch.Generator())  # which a finite group refuses
        self.target, self.num_samples, self.detach_target = target, num_samples, detach_target
        self.distance, self.of_classes = as_distance(loss), loss == "cross_entropy"
        if self.of_classes and target is None:
            raise ValueError("loss='cross_entropy' expects class labels: say `target`, or loss='mse' between logits")
        self.freeze_stochastic, self.last_layer = freeze_stochastic, last_layer
        self.gradnorm_gamma, self.gradnorm_lr = gradnorm_gamma, gradnorm_lr
        self.works_sharded = balance != "gradnorm"  # which looks at the last weights

    def _attach(self, module: L.LightningModule, undo: ExitStack) -> Parts:
        """Record the network's calls and wrap `training_step`."""
        network = find_network(module, self.network)
        balance = self._make_balance(network)
        if self.balance == "gradnorm":  # a compiled backward would give its buffers away after the first of two passes
            undo.enter_context(functorch_config.patch(donated_buffer=False))
        recorder = CallRecorder(network)
        undo.callback(recorder.remove)

        second_pass = SecondPass(module, self.freeze_stochastic)
        undo.callback(second_pass.close)

        def before(batch: Any) -> Any:
            number, parts = self.batch_number(), self._parts
            parts.number = parts.number + 1 if number is None else number
            if self._has_second_pass():
                recorder.start()
                second_pass.start()
            return batch

        def after(batch: Any, task_loss: Tensor) -> Tensor:
            if not self._has_second_pass():
                return task_loss
            return self._total(module, network, batch, task_loss, recorder.stop())

        undo.callback(wrap_training_step(module, StepHooks(before=before, after=after, skipped=recorder.stop)))
        return Parts(balance, second_pass)

    def _make_balance(self, network: nn.Module) -> Balance:
        if self.tolerance is not None:
            return DualBalance(self.tolerance, self.max_weight)
        weight = 1.0 if isinstance(self.weight, dict) else float(self.weight)
        if self.balance == "constant":
            return ConstantBalance(weight * self.every)
        return GradNormBalance(weight, self._shared_weights(network), self.gradnorm_gamma, self.gradnorm_lr)

    def _has_second_pass(self) -> bool:
        """Whether the network is run again in this step."""
        second: bool = self._parts.number % self.every == 0
        return second

    def _total(
        self,
        module: L.LightningModule,
        network: nn.Module,
        batch: Any,
        task_loss: Tensor,
        calls: list[Call],
    ) -> Tensor:
        """alpha L_task + beta L_equi."""
        kind = type(self).__name__
        if not calls:
            raise RuntimeError(
                f"{kind}: network={self.network!r} was not called in `training_step`: name the sub-module that is, "
                f"one of {[n for n, _ in module.named_children()]}, and call it (`self.net(x)`, not "
                "`self.net.forward(x)`)"
            )
        if self.target is not None and len(calls) > 1:
            raise RuntimeError(
                f"{kind}: the step calls the network {len(calls)} times, and target={self.target!r} "
                "belongs to one of them: leave `target` out to anchor every call on its own prediction"
            )
        if changed := next(filter(None, (call.changed_in_place() for call in calls)), ""):
            raise RuntimeError(
                f"{kind}: {changed} was changed in place in the step, and the second loss would be of other numbers: "
                "write `x = x + 1` in the place of `x += 1`, or call the network with a copy, `self.net(x.clone())`"
            )
        generator = self.generator()
        parts: Parts = self._parts
        parts.sizes.clear()
        terms = parts.second_pass(lambda: self._losses(network, calls, batch, generator.clone_state()))
        equivariance = torch.stack(list(terms.values())).sum()
        trained = equivariance.requires_grad or not any(p.requires_grad for p in network.parameters())
        if torch.is_grad_enabled() and not trained:
            raise RuntimeError(
                f"{kind}: the equivariance loss has no gradient, and would train nothing: expected outputs of "
                f"network={self.network!r} that depend on its weights with a gradient; a network that differentiates "
                "inside must build its graph (create_graph=True), and nothing may be detached"
            )
        parts.second_pass.follow(task_loss, equivariance)
        losses = torch.stack([task_loss, equivariance])
        total = parts.balance.total(losses)
        values = dict(zip(("task_loss", "equivariance_loss"), losses.detach().unbind(), strict=True))
        values |= parts.balance.logged()  # the weights of this step
        parts.balance.update(losses, torch.stack(parts.sizes).mean() if parts.sizes else None)
        if isinstance(self.weight, dict):
            values |= {f"equivariance_loss/{path}": term.detach() for path, term in terms.items()}
        self.log_values(module, values, batch_size=self._batch_size)
        return total

    def _losses(self, network: nn.Module, calls: list[Call], batch: Any, generator: torch.Generator) -> Losses:
        """The terms of L_equi, each with its weight: means over the calls."""
        of_calls = [self._losses_of(network, call, batch, generator) for call in calls]
        means = {path: torch.stack([losses[path] for losses in of_calls]).mean() for path in of_calls[0]}
        if not isinstance(self.weight, dict):
            return means
        weights = weights_of(self.weight, list(means))
        return {path: weights[path] * mean for path, mean in means.items()}

    def _losses_of(self, network: nn.Module, call: Call, batch: Any, generator: torch.Generator) -> Losses:
        bound = self.symmetry.bind(network, call.args, call.kwargs)
        self._batch_size = bound.num_inputs
        f_x, labels = bound.output(call.output), None
        if self.target is not None:
            labels = find_labels(batch, self.target, f_x, self.of_classes)
        anchor = f_x if labels is None else bound.output(f_x.put(labels.get(t.path, t.x) for t in f_x.tensors))
        if self.fraction < 1:
            some = torch.randperm(bound.num_inputs, generator=generator)[: self._part_of(bound.num_inputs)]
            bound, f_x, anchor = bound.take(some), f_x.take(some), anchor.take(some)
        losses = equivariance_losses(
            network,
            bound,
            self.symmetry,
            anchor=anchor,
            distance=self.distance if self.tolerance is None else _squared_distance,
            num_samples=self.num_samples,
            detach_target=self.detach_target or labels is not None,
            generator=generator,
            labelled=labels,
            f_x=f_x,
            near=self.angle if self.elements == "near" else None,
        )
        if self.tolerance is None:
            return losses
        norm = f_x.squared_norms(f_x.parts())[TOTAL].detach().sum()
        self._parts.sizes.append(norm / bound.num_inputs)
        norm = norm * self.num_samples * self.tolerance**2
        tiny = torch.finfo(torch.float32).tiny
        return {path: loss / norm.to(loss.dtype).clamp_min(tiny) for path, loss in losses.items()}

    def _part_of(self, num_inputs: int) -> int:
        """How many inputs the second pass sees: at least one."""
        return max(1, round(self.fraction * num_inputs))

    def _shared_weights(self, network: nn.Module) -> Tensor:
        named = {name: p for name, p in own_parameters(network).items() if p.requires_grad}
        if self.last_layer is not None:
            for name in (self.last_layer, f"{self.last_layer}.weight"):
                if name in named:
                    return named[name]
            raise ValueError(
                f"last_layer={self.last_layer!r} names no trained weights of the network: it has {sorted(named)}"
            )
        matrices = [p for p in named.values() if p.ndim > 1]
        if not matrices:
            raise ValueError(
                "balance='gradnorm' needs a weight matrix in the network: expected `last_layer` to name trained weights"
            )
        return matrices[-1]

    def own_state(self) -> dict[str, Any]:
        """The state of weights that change; constant weights have none."""
        state: dict[str, Any] = self._parts.balance.state()
        return state

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Go on from saved weights."""
        if self.balance != "constant":
            self._parts.balance.load(state)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say whether a tolerance was reached, and if not what was in the way."""
        super().on_train_end(trainer, pl_module)
        balance = self._parts.balance
        if isinstance(balance, DualBalance) and (words := balance.verdict()):
            rank_zero_warn(f"{type(self).__name__}: {words}")


def _squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Summed over everything, in float32 at least."""
    return (wide(a) - wide(b)).square().sum()
