"""An SE(3)-Transformer that nobody here wrote, wrapped for systems of moving bodies.

The network is `se3-transformer-pytorch` (pip install se3-transformer-pytorch), imported when the wrapper is built.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

START = 0.03  # scale of the untrained output; see SE3TransformerPeer


class SE3TransformerPeer(nn.Module):
    """Predict where bodies will be: the positions now plus a displacement from an SE(3)-Transformer.

    Every body attends to itself and to all others. Masses enter as scalars, velocities as vectors, positions only as
    differences. The output turns with any rotation of positions and velocities and moves with any translation of the
    positions; a reflection is no symmetry of it. The library keeps its components of a vector in the order of the
    coordinates, so nothing is permuted.

    The library's untrained displacements are some thirty times those of the bodies. Here they start `START` times as
    large, which costs no symmetry: from where the library starts, a short training does not get below "no motion".

    The default has as many parameters as `ParticleTransformer`, 0.79 million.

    Do not differentiate with respect to the positions: the library holds its angular basis constant.

    Args:
        dim: Channels of each degree.
        depth: Blocks of attention and feed-forward.
        heads: Attention heads.
        dim_head: Channels of each head and degree.
        num_degrees: Hidden features have degrees 0 to ``num_degrees - 1``; at least 2, since velocities are vectors.

    Raises:
        ImportError: When ``se3-transformer-pytorch`` is not installed.
        ValueError: When ``num_degrees < 2``.

    Reference:
        @inproceedings{fuchs2020se3,
          title={SE(3)-Transformers: 3D Roto-Translation Equivariant Attention Networks},
          author={Fuchs, Fabian B. and Worrall, Daniel E. and Fischer, Volker and Welling, Max},
          booktitle={Advances in Neural Information Processing Systems},
          year={2020}
        }
    """

    def __init__(self, dim: int = 8, depth: int = 2, heads: int = 4, dim_head: int = 4, num_degrees: int = 2) -> None:
        super().__init__()
        if num_degrees < 2:
            raise ValueError(f"num_degrees must be at least 2, since velocities are vectors, got {num_degrees}.")
        self.network = _import_se3_transformer()(
            dim=dim,
            depth=depth,
            heads=heads,
            dim_head=dim_head,
            num_degrees=num_degrees,
            input_degrees=2,
            dim_in=(1, 1),
            out_fiber_dict={1: 1},  # one vector a body and nothing else: every parameter has a gradient
            splits=1,  # the default saves memory by looping over pieces; one piece is faster
        )
        last = self.network.conv_out
        linear = [last.self_interact, *(kernel.rp.net[-1] for kernel in last.kernel_unary.values())]
        with torch.no_grad():
            for parameter in nn.ModuleList(linear).parameters():
                parameter.mul_(START)

    def forward(self, masses: Tensor, positions: Tensor, velocities: Tensor) -> Tensor:
        """Map masses (B, N), positions (B, N, 3) and velocities (B, N, 3) to final positions (B, N, 3)."""
        features = {"0": masses[..., None, None], "1": velocities.unsqueeze(-2)}  # (B, N, channels, components)
        displacements = self.network(features, positions, return_type=1).squeeze(-2)
        return positions + displacements


def _import_se3_transformer() -> Any:
    """Import the library without its habit of writing a cache into the home folder."""
    before = os.environ.get("CLEAR_CACHE")
    os.environ["CLEAR_CACHE"] = "1"  # read once, at import; what it would store takes a moment to compute
    try:
        from se3_transformer_pytorch import SE3Transformer
    except ImportError as error:
        raise ImportError(
            "SE3TransformerPeer needs an SE(3)-Transformer: pip install se3-transformer-pytorch"
        ) from error
    finally:
        if before is None:
            del os.environ["CLEAR_CACHE"]
        else:
            os.environ["CLEAR_CACHE"] = before
    return SE3Transformer
