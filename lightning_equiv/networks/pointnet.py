"""An ordinary classifier of point clouds: it knows permutations, but no rotation."""

from __future__ import annotations

from torch import Tensor, nn


class PointNet(nn.Module):
    """The same layers for each point, the largest of each channel, and a head.

    Args:
        num_classes: logits.
        channels: of the first layer; the last has four times as many.

    Reference:
        @inproceedings{qi2017pointnet,
          title={PointNet: Deep Learning on Point Sets for 3D Classification and Segmentation},
          author={Qi, Charles R. and Su, Hao and Mo, Kaichun and Guibas, Leonidas J.},
          booktitle={IEEE Conference on Computer Vision and Pattern Recognition},
          year={2017}
        }
    """

    def __init__(self, num_classes: int = 16, channels: int = 64) -> None:
        super().__init__()
        c = channels
        self.points = nn.Sequential(nn.Linear(3, c), nn.GELU(), nn.Linear(c, 2 * c), nn.GELU(), nn.Linear(2 * c, 4 * c))
        head = [nn.LayerNorm(4 * c), nn.Linear(4 * c, 2 * c), nn.GELU(), nn.Linear(2 * c, num_classes)]
        self.head = nn.Sequential(*head)

    def forward(self, points: Tensor) -> Tensor:
        """Logits (B, classes) of clouds (B, P, 3)."""
        return self.head(self.points(points).amax(1))
