"""Adam whose step is equally large in every irrep block of an equivariant network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from lightning_equiv._checks import check_number
from lightning_equiv.layers.choose import find_blocks
from lightning_equiv.layers.layer import Block, LayerFamily
from lightning_equiv.optim.parameters import ParametersOf


class BlockNormalizedAdam(torch.optim.Optimizer):
    """Adam with the update of every irrep block divided by its largest singular value.

        W_b <- W_b - lr U_b / |U_b|_2        U_b: Adam's update of block b, |.|_2: its largest singular value

    Adam's steps differ in spectral size from block to block; these are all `lr`. The blocks are known to the layers'
    `LayerFamily`: the paths of e3nn's maps and tensor products, the kernel of a convolution, any other matrix as a
    whole. Vectors, biases, embeddings and e3nn's weights of single channels ("uvu") take Adam's own update.

    The singular values are exact. A step takes 3.2 times Adam's on the e3nn network of 32 parameters in the examples,
    1.8 ms beside 20 ms for gradients (`examples/benchmark_relaxation.py`, CPU), and grows as n^3 for n x n matrices.

    Args:
        params: the network, for all of its parameters, or what optimizers of torch take, with `network`.
        lr: the largest singular value of a block's step, and Adam's rate for the rest; about ten times that of Adam.
        betas: decay of the averages of the gradient and of its square; (0.5, 0.99) is the reference's other choice.
        eps: added to the denominator of Adam's update.
        weight_decay: this multiple of the parameters is added to their gradients, as in `torch.optim.Adam`.
        network: where the blocks are read; it holds the parameters that `params` has.
        families: asked for the blocks of a layer before the built-in ones.

    Raises:
        TypeError: parameters without a network, or numbers that are none.
        ValueError: a network without a block, numbers out of bounds, a parameter that is smaller than its blocks.

    Examples:
        >>> from e3nn import o3
        >>> net = o3.Linear("4x0e+8x1o", "2x0e+3x1o")
        >>> optimizer = BlockNormalizedAdam(net, lr=0.01)
        >>> before = net.weight.detach().clone()
        >>> net(torch.randn(5, 28)).square().sum().backward()
        >>> optimizer.step()
        >>> steps = net.weight_views(net.weight.detach() - before)
        >>> [round(torch.linalg.matrix_norm(step, 2).item(), 5) for step in steps]
        [0.01, 0.01]

    Reference:
        @article{manolache2026equivariance,
          title={Equivariance Breaks the Learning Rate},
          author={Manolache and Niepert},
          journal={arXiv preprint arXiv:2609.08381},
          year={2026}
        }
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        network: nn.Module | None = None,
        families: Sequence[LayerFamily] = (),
    ) -> None:
        params = ParametersOf(params) if isinstance(params, nn.Module) else params
        network = getattr(params, "network", None) if network is None else network
        if not isinstance(network, nn.Module):
            raise TypeError(
                "expected the network, whose layers say which of its parameters are blocks, got "
                f"params={type(params).__name__} and network={network!r}: write BlockNormalizedAdam(self, lr=...) in "
                "place of self.parameters(), or BlockNormalizedAdam(groups, network=self)"
            )
        for name, value in {"lr": lr, "eps": eps, "weight_decay": weight_decay}.items():
            check_number(name, value, least=0)
        for i in (0, 1):
            check_number(f"betas[{i}]", betas[i], least=0, below=1)
        self._blocks = find_blocks(network, families)
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_blocks": self._blocks}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure` computes the loss and its gradients again."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            present = [p for p in group["params"] if p.grad is not None]
            blocked = [p for p in present if p in self._blocks]
            rest = [p for p in present if p not in self._blocks]
            self._adam(group, rest, rest, group["lr"])
            updates = [torch.zeros_like(p, memory_format=torch.contiguous_format) for p in blocked]
            self._adam(group, blocked, updates, 1.0)
            normalize_(updates, [self._blocks[p] for p in blocked])
            for p, update in zip(blocked, updates, strict=True):
                p.add_(update * group["lr"])
        return loss

    def _adam(self, group: dict[str, Any], params: list[Tensor], updated: list[Tensor], lr: float) -> None:
        """Adam's update from the gradients of `params`, added to `updated`."""
        decay = group["weight_decay"]
        for p in params:
            if not self.state[p]:
                self.state[p]["step"] = torch.tensor(0.0, dtype=torch.float32, device="cpu")
                self.state[p].update(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        m, v, t = ([self.state[p][name] for p in params] for name in ("exp_avg", "exp_avg_sq", "step"))
        adam(
            updated,
            [p.grad.add(p, alpha=decay) if decay else p.grad for p in params],  # type: ignore[union-attr,misc]
            m,
            v,
            [],
            t,
            has_complex=any(torch.is_complex(p) for p in params),
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=lr,
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )


def normalize_(updates: Sequence[Tensor], blocks: Sequence[Sequence[Block]]) -> None:
    """Divide every block of the contiguous updates by its largest singular value, where that is not 0."""
    alike: dict[Any, list[Tensor]] = {}
    for update, inside in zip(updates, blocks, strict=True):
        for start, rows, columns in inside:
            matrix = update.view(-1)[start : start + rows * columns].view(rows, columns)
            alike.setdefault((rows, columns, update.dtype, update.device), []).append(matrix)
    for matrices in alike.values():
        stacked = torch.stack(matrices)
        stacked = stacked.to(torch.promote_types(stacked.dtype, torch.float32))  # no singular values of half precision
        largest = torch.linalg.matrix_norm(stacked.nan_to_num(), 2, keepdim=True)  # of NaN they raise
        normalized = stacked / largest.clamp_min(torch.finfo(largest.dtype).tiny)
        for matrix, new in zip(matrices, normalized, strict=True):
            matrix.copy_(new)
