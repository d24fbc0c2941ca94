"""REMUL: relaxed equivariance as a second task."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn

from lightning_equiv._checks import check_number
from lightning_equiv.layers.hidden_parameters import own_parameters
from lightning_equiv.metrics.comparison import Distance, as_distance, equivariance_losses
from lightning_equiv.strategies.base import SymmetryCallback
from lightning_equiv.strategies.remul.gradnorm import gradnorm_weights
from lightning_equiv.strategies.remul.labels import Targets, find_labels, weights_of
from lightning_equiv.strategies.remul.second_pass import Losses, SecondPass
from lightning_equiv.symmetry.symmetry import Symmetry, as_symmetry
from lightning_equiv.wiring.call_recorder import Call, CallRecorder
from lightning_equiv.wiring.network import find_network
from lightning_equiv.wiring.ranks import mean_over_ranks
from lightning_equiv.wiring.training_step import StepHooks, wrap_training_step


@dataclass
class Balance:
    """The weights of the two losses.

    Attributes:
        weights: (2,) alpha and beta.
        second_pass: runs the network again.
        first_losses: (2,) both losses of the first step where they are finite, for GradNorm.
    """

    weights: Tensor
    second_pass: SecondPass
    first_losses: Tensor | None = None


class REMUL(SymmetryCallback):
    r"""REMUL: trains any network to be nearly equivariant by a second loss.

        L = alpha L_task + beta L_equi
        L_equi = mean_i l( f(g_i x_i), g_i y_i )       label-anchored: `target` says where y is; the paper's loss
        L_equi = mean_i l( f(g_i x_i), g_i f(x_i) )    prediction-anchored: no label needed

    with a fresh g_i for every sample and step. L_task is what `training_step` returns. The call of the network is
    remembered while the user's own step runs, and only the network is run again: a second forward pass a step.

    Constant weights: alpha = 1, beta = `weight`; try 0.01, 0.1, 1, 10, 100 on the validation set. Gradual weights
    ("gradnorm"): GradNorm on the last layer's weights keeps both tasks learning at one rate; alpha + beta = 2.

    Logs `remul/task_loss`, `remul/equivariance_loss`, `remul/task_weight`, `remul/equivariance_weight`.

    Args:
        symmetry: says how a group element moves the network's inputs and outputs; labels move like outputs.
        network: dotted name of the sub-module that is meant, or "" for the LightningModule itself.
        weight: beta, in units of the task loss; with "gradnorm" the ratio beta / alpha to start from. Or one for each
            output, {"energy": 1.0, "forces": 100.0}: L_equi is their weighted sum, beta is 1, and each is logged.
        balance: "constant" or "gradnorm".
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
        balance: Literal["constant", "gradnorm"] = "constant",
        target: Targets | None = None,
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
        if balance not in ("constant", "gradnorm"):
            raise ValueError(f"expected balance to be 'constant' or 'gradnorm', got {balance!r}")
        check_number("num_samples", num_samples, least=1, whole=True)
        weights = {f"weight[{k!r}]": w for k, w in weight.items()} if isinstance(weight, dict) else {"weight": weight}
        for key, value in (*weights.items(), ("gradnorm_gamma", gradnorm_gamma), ("gradnorm_lr", gradnorm_lr)):
            check_number(key, value, least=0)
        self.symmetry, self.network, self.weight, self.balance = as_symmetry(symmetry), network, weight, balance
        self.target, self.num_samples, self.detach_target = target, num_samples, detach_target
        self.distance, self.of_classes = as_distance(loss), loss == "cross_entropy"
        if self.of_classes and target is None:
            raise ValueError("loss='cross_entropy' expects class labels: say `target`, or loss='mse' between logits")
        self.freeze_stochastic, self.last_layer = freeze_stochastic, last_layer
        self.gradnorm_gamma, self.gradnorm_lr = gradnorm_gamma, gradnorm_lr
        self.works_sharded = balance == "constant"  # GradNorm looks at the last weights

    def _attach(self, module: L.LightningModule, undo: ExitStack) -> Balance:
        """Record the network's calls and wrap `training_step`."""
        network = find_network(module, self.network)
        shared = self._shared_weights(network) if self.balance == "gradnorm" else None
        recorder = CallRecorder(network)
        undo.callback(recorder.remove)

        second_pass = SecondPass(module, self.freeze_stochastic)

        def before(batch: Any) -> Any:
            recorder.start()
            second_pass.start()
            return batch

        def after(batch: Any, task_loss: Tensor) -> Tensor:
            return self._total(module, network, shared, batch, task_loss, recorder.stop())

        undo.callback(wrap_training_step(module, StepHooks(before=before, after=after, skipped=recorder.stop)))
        weight = 1.0 if isinstance(self.weight, dict) else float(self.weight)
        scale = 1.0 if self.balance == "constant" else 2 / (1 + weight)
        return Balance(torch.tensor([1.0, weight]) * scale, second_pass)

    def _total(
        self,
        module: L.LightningModule,
        network: nn.Module,
        shared: Tensor | None,
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
        balance: Balance = self._parts
        terms = balance.second_pass(lambda: self._losses(network, calls, batch, generator.clone_state()))
        equivariance = torch.stack(list(terms.values())).sum()
        trained = equivariance.requires_grad or not any(p.requires_grad for p in network.parameters())
        if torch.is_grad_enabled() and not trained:
            raise RuntimeError(
                f"{kind}: the equivariance loss has no gradient, and would train nothing: expected outputs of "
                f"network={self.network!r} that depend on its weights with a gradient; a network that differentiates "
                "inside must build its graph (create_graph=True), and nothing may be detached"
            )
        losses_ = torch.stack([task_loss, equivariance])
        weights = balance.weights = balance.weights.to(losses_.device)
        total = (weights.to(losses_.dtype) * losses_).sum()
        if shared is not None:
            self._gradnorm(balance, losses_, shared)
        values = dict(zip(("task_loss", "equivariance_loss"), losses_.detach().unbind(), strict=True))
        values |= dict(zip(("task_weight", "equivariance_weight"), weights.unbind(), strict=True))
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
        return equivariance_losses(
            network,
            bound,
            self.symmetry,
            anchor=f_x if labels is None else bound.output(f_x.put(labels.get(t.path, t.x) for t in f_x.tensors)),
            distance=self.distance,
            num_samples=self.num_samples,
            detach_target=self.detach_target or labels is not None,
            generator=generator,
            labelled=labels,
            f_x=f_x,
        )

    def _gradnorm(self, balance: Balance, losses: Tensor, shared: Tensor) -> None:
        """One step of GradNorm on the weights, for the next batch."""
        gradients = [torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)[0] for loss in losses]
        flat = torch.stack([torch.zeros_like(shared) if g is None else g for g in gradients]).flatten(1).float()
        values = mean_over_ranks(torch.cat([flat, losses.detach().float()[:, None]], dim=1))
        gradient_norms, values = values[:, :-1].norm(dim=1), values[:, -1]
        finite = torch.isfinite(values).all() & torch.isfinite(gradient_norms).all()
        if balance.first_losses is None:
            if not bool(finite):
                return
            balance.first_losses = values
        weights = gradnorm_weights(
            balance.weights,
            values,
            balance.first_losses.to(values.device),
            gradient_norms,
            gamma=self.gradnorm_gamma,
            lr=self.gradnorm_lr,
        )
        balance.weights = torch.where(finite & torch.isfinite(weights).all(), weights, balance.weights)

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
        """GradNorm's weights and first losses; constant weights have no state."""
        if self.balance == "constant":
            return {}
        return {"weights": self._parts.weights, "first_losses": self._parts.first_losses}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Go on from saved weights."""
        if self.balance == "gradnorm":
            self._parts.weights, self._parts.first_losses = state["weights"], state["first_losses"]
