"""What of the branches goes into the user's layers when they are dropped: the projection onto strict networks.

nearest    A <- P(A + theta W)           layer by layer; P the mean over the group
relabel    A <- P(T A + theta T W), A' <- P((A' + theta W') T^-1)    after the hidden features between two layers were
relabelled by the T under which most commutes; layers from the input on
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from lightning_equiv.groups.group import Group
from lightning_equiv.layers.branch import Branch
from lightning_equiv.layers.branch_networks import MLPBranch
from lightning_equiv.layers.layer import Layer, flat_sizes
from lightning_equiv.layers.open_layer import OpenLayer
from lightning_equiv.layers.relabel import Change, best_change, nearest
from lightning_equiv.wiring.ranks import is_distributed

Run = Callable[[], Tensor | None]  # a training step without a trace; None: it skips the batch
ProjectionMode = Literal["drop", "nearest", "relabel"]

_SAME = 1e-3  # relative change of a layer's output under which a relabelling left the network the same
_SAME_AUTOCAST = 5e-2  # .. in half precision
_MOST_PRINTED = 12  # layers


class LayerProjection(TypedDict):
    """What became of one layer.

    Attributes:
        layer: its name.
        branch: |theta W|, the Frobenius norm of what was relaxed.
        kept: the share |P F| / |F| of the layer with its branch, F = A + theta W, relabelled, that commutes and stays.
        left_over: the norm of what commutes and the layer's weights cannot express.
        hidden: what was done to the features that it hands on: "permutation", "orthogonal" or "" for nothing.
    """

    layer: str
    branch: float
    kept: float
    left_over: float
    hidden: str


def format_report(strategy: str, report: Sequence[LayerProjection], losses: Mapping[str, Tensor | None]) -> str:
    """What became of the branches, in words."""
    relaxed, dropped, after = ("?" if x is None else f"{float(x):.4g}" for x in losses.values())
    lines = [f"{strategy}: loss with branches {relaxed}, dropped {dropped}, folded into the layers {after}"]
    least = sorted(report, key=lambda layer: layer["kept"])[:_MOST_PRINTED]
    for layer in report if len(report) <= _MOST_PRINTED else least:
        words = {"": "", "permutation": ", hidden features permuted", "orthogonal": ", hidden features turned"}
        lines.append(
            f"  {layer['layer']}: {layer['kept']:.1%} of layer and branch was kept (norm of the branch "
            f"{layer['branch']:.3g}, left over {layer['left_over']:.2g}){words[layer['hidden']]}"
        )
    if len(report) > _MOST_PRINTED:
        lines.append(f"  and {len(report) - _MOST_PRINTED} layers of which more was kept")
    return "\n".join(lines)


class Projection:
    """Branches with their layers opened, to be folded into the layers' weights.

    Args:
        branches: linear ones.
        group: which the layers commute with.
        relabel: whether hidden features may be relabelled.

    Attributes:
        is_due: whether the run has come to where they are folded.
        done: whether they were.
        report: what became of every layer.

    Raises:
        ValueError: a layer cannot be opened, or the group's mean over its features is not known.
    """

    def __init__(self, branches: Sequence[Branch], group: Group, relabel: bool) -> None:
        assert not any(isinstance(b.network, MLPBranch) for b in branches)
        self.branches, self.relabel = branches, relabel
        self.is_due, self.done = False, False
        self.report: list[LayerProjection] = []
        self.opened = [OpenLayer(b.layer) for b in branches]
        self._projects = [layer.maps(group).project for layer in self.opened]

    def fold(self, run: Run) -> None:
        """Change the layers' weights, as said at the head of this file.

        Args:
            run: a training step without a trace, and its loss.
        """
        before = [opened.matrix() for opened in self.opened]
        relaxed = [
            float(b.theta) * opened.branch_matrix(b.network)
            for b, opened in zip(self.branches, self.opened, strict=True)
        ]
        whole = [A + W for A, W in zip(before, relaxed, strict=True)]
        hidden = [""] * len(whole)
        for i in range(len(whole) - 1) if self.relabel else ():
            change = self._freedom(self.branches[i].layer, self.branches[i + 1].layer, run)
            if change is not None:
                T = self._best_change(whole, i, change)
                hidden[i] = "" if torch.equal(T, torch.eye(len(T), dtype=T.dtype)) else change
                whole[i] = (T @ whole[i].reshape(len(T), -1)).reshape(whole[i].shape)
                whole[i + 1] = _on_inputs(whole[i + 1], T)
        self.report = []
        parts = zip(self.opened, self._projects, before, relaxed, whole, hidden, strict=True)
        for opened, project, A, W, F, change_made in parts:
            left_over = opened.take(project(F) - A)
            self.report.append(
                LayerProjection(
                    layer=opened.layer.name,
                    branch=float(W.norm()),
                    kept=float(project(F).norm() / F.norm()) if bool(F.any()) else 1.0,
                    left_over=float(left_over.norm()),
                    hidden=change_made,
                )
            )
            if is_distributed():  # of equal searches rounding may choose one or the other
                for p in opened.layer.module.parameters():
                    torch.distributed.broadcast(p.data, 0)
        self.done = True

    def _best_change(self, whole: list[Tensor], i: int, change: Change) -> Tensor:
        """T of the features between layers i and i + 1; the constant of the second does not see it."""
        out_of, constant = whole[i + 1][:, :-1], whole[i + 1][:, -1:]

        def project_out_of(matrix: Tensor) -> Tensor:
            return self._projects[i + 1](torch.cat([matrix, torch.zeros_like(constant)], dim=1))[:, :-1]

        return best_change(whole[i], out_of, self._projects[i], project_out_of, change)

    def _freedom(self, layer: Layer, following: Layer, run: Run) -> Change | None:
        """Which changes of the features between two layers leave the network as it is, seen by trying a random one."""
        size = flat_sizes(layer)[1]
        if size != flat_sizes(following)[0] or layer.grid != following.grid:
            return None
        plain = _outputs(layer, following, None, run)
        if not plain:
            return None
        noise = torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        same = _SAME_AUTOCAST if torch.is_autocast_enabled(plain[0].device.type) else _SAME
        changes: tuple[Change, ...] = ("orthogonal", "permutation")
        for change in changes:
            changed = _outputs(layer, following, nearest(noise, change), run)
            if len(changed) == len(plain) and all(
                (x - y).norm() <= same * y.norm() for x, y in zip(changed, plain, strict=True)
            ):
                return change
        return None


def _on_inputs(matrix: Tensor, T: Tensor) -> Tensor:
    """[A' T^-1, b'] of [A' b']; T is orthogonal."""
    return torch.cat([matrix[:, :-1] @ T.mT, matrix[:, -1:]], dim=1)


def _outputs(layer: Layer, following: Layer, T: Tensor | None, run: Run) -> list[Tensor]:
    """What the second layer returns, then the loss, where T acts behind the first and T^-1 in front of the second."""
    found: list[Tensor] = []

    def turned(of: Layer, x: Tensor, T: Tensor) -> Tensor:
        rows = of.family.rows(of, x)
        return of.family.unrows(of, (rows.movedim(1, -1) @ T.mT.to(rows)).movedim(-1, 1), x)

    def behind(_: nn.Module, args: Any, output: Any) -> Any:
        x = layer.family.tensor(output)
        return None if T is None or x is None else layer.family.wrapped(turned(layer, x, T), output)

    def in_front(_: nn.Module, args: tuple[Any, ...]) -> Any:
        x = following.family.tensor(args[0]) if args else None
        if T is None or x is None:
            return None
        inputs = replace(following, out_features=following.in_features)
        return following.family.wrapped(turned(inputs, x, T.mT), args[0]), *args[1:]

    def seen(_: nn.Module, args: Any, output: Any) -> None:
        x = following.family.tensor(output)
        if x is not None:
            found.append(x.detach())

    with ExitStack() as undo:
        for handle in (
            layer.module.register_forward_hook(behind),
            following.module.register_forward_pre_hook(in_front),
            following.module.register_forward_hook(seen),
        ):
            undo.callback(handle.remove)
        loss = run()
    return [] if loss is None or not found else [*found, loss.detach()]
