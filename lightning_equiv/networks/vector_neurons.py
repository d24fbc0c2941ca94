"""Vector neurons on point clouds: every channel is a vector, so that the layers commute with O(3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class VNLinear(nn.Module):
    """Mixes vectors: y_o = sum_c W_oc x_c, without bias.

    Args:
        in_channels: C_in.
        out_channels: C_out; the weight is (C_out, C_in).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels))
        nn.init.normal_(self.weight, std=in_channels**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, 3, ...) to (B, C_out, 3, ...)."""
        weight = self.weight.expand(len(x), -1, -1)  # a view; `weight @ x` would copy x, transposed
        return torch.bmm(weight, x.flatten(2)).view(len(x), -1, *x.shape[2:])

    def extra_repr(self) -> str:
        """The channels."""
        return f"{self.in_channels}, {self.out_channels}"


class VNLeakyReLU(nn.Module):
    """Shortens what points against a learned direction d = direction(x).

        y = x - (1 - slope) min(<x, d> / <d, d>, 0) d

    Args:
        channels: C.
        slope: How much of the component against d is left.
    """

    def __init__(self, channels: int, slope: float = 0.2) -> None:
        super().__init__()
        self.slope = slope
        self.direction = VNLinear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 3, ...) to the same."""
        d = self.direction(x)
        along = (x * d).sum(2, keepdim=True) / (d.square().sum(2, keepdim=True) + 1e-6)
        return torch.addcmul(x, along.clamp(max=0), d, value=self.slope - 1)


class VNBatchNorm(nn.Module):
    """Batch normalisation of the channels' mean squared length; lengths have no sign, so nothing is subtracted.

    Args:
        channels: C.
        momentum: How fast the running mean follows.
    """

    mean_square: Tensor

    def __init__(self, channels: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.register_buffer("mean_square", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 3, ...) to the same."""
        square = self.mean_square
        if self.training:
            square = x.square().transpose(0, 1).flatten(1).mean(1)
            self.mean_square.lerp_(square.detach(), self.momentum)
        return x * (self.weight * (square + 1e-6).rsqrt()).view(-1, *[1] * (x.ndim - 2))


class VNBlock(nn.Sequential):
    """Linear map, normalisation where wanted, nonlinearity."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: bool = True) -> None:
        super().__init__()
        self.linear = VNLinear(in_channels, out_channels)
        if norm:
            self.norm = VNBatchNorm(out_channels)
        self.activation = VNLeakyReLU(out_channels)


class VectorNeuronClassifier(nn.Module):
    """From a point cloud to class logits that no rotation, reflection, translation or order of the points changes.

    A PointNet of vector neurons: edges to the nearest points, (x_j - x_i, x_i), are embedded and averaged; a layer on
    each point, its mean over the cloud joined to every point, another layer; inner products with a learned frame make
    scalars, whose mean and maximum over the points are classified. The cloud is centred first.

    Without edges a point brings (x, S x, u): S the second moment of the cloud, u the mean of |x| x.

    Its `VNLinear` maps are ``edge.linear``, ``local.linear``, ``deeper.0.linear`` and so on, ``context.linear``,
    ``frame`` and the directions, ``edge.activation.direction`` and so on.

    Args:
        num_classes: Length of the logits.
        channels: Vectors of each point.
        num_neighbours: Nearest points of each point; 0 for none.
        num_layers: Vector layers from ``local`` to ``context``.
        head: Hidden scalars; twice the channels where not given.

    Reference:
        @inproceedings{deng2021vector,
          title={Vector Neurons: A General Framework for SO(3)-Equivariant Networks},
          author={Deng, Congyue and Litany, Or and Duan, Yueqi and Poulenard, Adrien and Tagliasacchi, Andrea and
                  Guibas, Leonidas},
          booktitle={International Conference on Computer Vision},
          year={2021}
        }
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 32,
        *,
        num_neighbours: int = 8,
        num_layers: int = 2,
        head: int | None = None,
    ) -> None:
        super().__init__()
        head = 2 * channels if head is None else head
        self.num_neighbours = num_neighbours
        first = max(channels // 4, 4)  # few: there are num_neighbours times as many edges as points
        self.edge = VNBlock(2 if num_neighbours else 3, first, norm=False)
        self.local = VNBlock(first, channels)
        self.deeper = nn.Sequential(*(VNBlock(channels, channels) for _ in range(num_layers - 2)))
        self.context = VNBlock(2 * channels, channels)
        self.frame = VNLinear(channels, 3)
        self.point = nn.Sequential(nn.Linear(3 * channels, head), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(2 * head, head), nn.ReLU(), nn.Linear(head, num_classes))

    def forward(self, points: Tensor) -> Tensor:
        """(B, P, 3) to (B, num_classes)."""
        x = (points - points.mean(1, keepdim=True)).mT  # (B, 3, P)
        if self.num_neighbours:
            x = self.edge(edge_features(x, self.num_neighbours)).mean(-1)
        else:
            x = self.edge(moment_features(x))
        x = self.deeper(self.local(x))
        mean = x.mean(-1, keepdim=True).expand_as(x)
        x = self.context(torch.cat([x, mean], dim=1))
        # (B, C, 3, P), (B, 3, 3, P) -> (B, 3 C, P): the coordinates of every vector in the frame
        scalars = torch.einsum("bcip,bfip->bpcf", x, self.frame(x)).flatten(2)
        scalars = self.point(scalars)
        return self.head(torch.cat([scalars.mean(1), scalars.amax(1)], dim=-1))


def edge_features(x: Tensor, k: int) -> Tensor:
    """(B, 3, P) to (B, 2, 3, P, k): from each point to its k nearest, and the point itself."""
    with torch.no_grad():
        distance = torch.cdist(x.mT, x.mT, compute_mode="donot_use_mm_for_euclid_dist")
        j = distance.topk(k + 1, largest=False).indices[..., 1:]  # the nearest is the point itself
    near = x.gather(2, j.flatten(1)[:, None].expand(-1, 3, -1)).unflatten(2, j.shape[1:])
    here = x[..., None].expand_as(near)
    return torch.stack([near - here, here], dim=1)


def moment_features(x: Tensor) -> Tensor:
    """(B, 3, P) to (B, 3, 3, P): x, S x, u."""
    moment = x @ x.mT / x.shape[-1]
    mean = (x * x.norm(dim=1, keepdim=True)).mean(-1, keepdim=True)
    return torch.stack([x, moment @ x, mean.expand_as(x)], dim=1)


def one_sided(module: nn.Module, data: Any) -> dict[str, float]:
    """Share of (channel, cloud) for which a `VNLeakyReLU` is linear: all points on one side of their directions.

    For `compare(extra="lightning_equiv.networks.vector_neurons.one_sided")`: of the first test batch, over all layers.
    """
    shares: list[float] = []

    def look(activation: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (x,) = inputs
        ahead = (x * activation.get_submodule("direction")(x)).sum(2).flatten(2) > 0  # (B, C, P)
        shares.append((ahead.all(-1) | ~ahead.any(-1)).float().mean().item())

    hooks = [m.register_forward_pre_hook(look) for m in module.modules() if isinstance(m, VNLeakyReLU)]
    with torch.no_grad():
        module.get_submodule("net")(next(iter(data.test_dataloader()[0]))["points"])
    for hook in hooks:
        hook.remove()
    return {"one_sided": sum(shares) / len(shares)}
