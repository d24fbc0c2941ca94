"""A layer assembled from a student that was taught a family of maps, and the plain student itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lightning_equiv.layers.teachers import Teacher


class ClonedLayer(nn.Module):
    r"""A layer with channels, assembled from a student h(x, tau) of a family of maps.

        y_o = b_o + sum_c |x_c|^d |tau_oc| h(x_c / |x_c|, tau_oc / |tau_oc|)

    with |.| the root mean square of all entries of one sample's x_c, and of one tau_oc. A student knows its teacher at
    the scale of N(0, I); teachers are homogeneous, Phi(s x; t tau) = s^d t Phi(x; tau), so that the sizes can be taken
    out before and multiplied back after, and what the student gives is homogeneous too. |x_c| is invariant: the
    symmetries permute or turn the entries. Where x_c = 0 its term is 0. With a `Teacher` as the student this is
    exactly the strict layer, b_o + sum_c Phi(x_c; tau_oc).

    All `B * C * O` calls of the student are one call. A student that is linear in x and has `matrix(tau)`, as
    `ConditionalBilinear`, is asked for that instead, which is much cheaper. Layers may share one student.

    Args:
        student: any module called like a `Teacher`: `x (n, *in_shape)` and `tau (n, num_weights)` to
            `(n, *out_shape)`.
        in_channels: C.
        out_channels: O.
        num_weights: length of one tau; None takes the student's own.
        bias: adds b_o to every entry of channel o. It keeps the symmetry where this permutes entries (shifts, turns of
            a grid); switch it off where it turns vectors (`EquivariantLinear`, `EquivariantTensorProduct`), for a
            constant vector singles out a direction.
        degree: d; None takes the student's own, 1 where it has none. 2 for clones of `EquivariantTensorProduct`.

    Attributes:
        tau: (O, C, num_weights), the layer's weights, drawn from N(0, 1 / C): outputs have the variance of the inputs.
        bias: (O,) zeros at first, or None.

    Shape:
        `(B, C, *in_shape)` to `(B, O, *out_shape)`.

    Raises:
        ValueError: no channels; a length of tau that is not the student's, is 0 or is not known; on a call, another
            number of channels or another in_shape.

    Examples:
        >>> from lightning_equiv import CircularConvolution
        >>> layer = ClonedLayer(ConditionalMLP((8,), 3, (8,), width=64), in_channels=2, out_channels=5)
        >>> layer(torch.randn(10, 2, 8)).shape
        torch.Size([10, 5, 8])
        >>> strict = ClonedLayer(CircularConvolution((8,), 3), in_channels=2, out_channels=5)
        >>> x = torch.randn(10, 2, 8)
        >>> torch.allclose(strict(x.roll(3, -1)), strict(x).roll(3, -1), atol=1e-5)
        True

    Reference:
        @misc{huang2024symmetry,
          title={Symmetry From Scratch: Group Equivariance as a Supervised Learning Task},
          author={Huang, Haozhe and Cheng, Leo Kaixuan and Chen, Kaiwen and Aspuru-Guzik, Al{\'a}n},
          year={2024}, note={arXiv:2410.03989}}
    """

    def __init__(
        self,
        student: nn.Module,
        in_channels: int,
        out_channels: int,
        num_weights: int | None = None,
        *,
        bias: bool = True,
        degree: int | None = None,
    ) -> None:
        super().__init__()
        own = getattr(student, "num_weights", None)
        num_weights = own if num_weights is None else num_weights
        if in_channels < 1 or out_channels < 1:
            raise ValueError(f"expected at least one channel, got {in_channels=}, {out_channels=}")
        if num_weights is None or num_weights < 1 or own not in (None, num_weights):
            raise ValueError(
                f"expected num_weights, the length of one tau, as that of the student ({own}), got {num_weights}; the "
                "student is called as h(x, tau), one that is called as h(x) alone has no weights to make a layer of"
            )
        self.student, self.in_channels, self.out_channels = student, in_channels, out_channels
        self.degree = int(getattr(student, "degree", 1)) if degree is None else degree
        self.tau = nn.Parameter(torch.empty(out_channels, in_channels, num_weights))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw tau and set the bias to 0; the student is left alone."""
        nn.init.normal_(self.tau, std=self.in_channels**-0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, *in_shape)` to `(B, O, *out_shape)`."""
        in_shape = getattr(self.student, "in_shape", x.shape[2:])
        if x.shape[1:] != (self.in_channels, *in_shape):
            shape = ", ".join(map(str, (self.in_channels, *in_shape)))
            raise ValueError(f"expected x (B, {shape}), B samples of {self.in_channels} channels, got {tuple(x.shape)}")
        matrix: Callable[[Tensor], Tensor] | None = getattr(self.student, "matrix", None)
        if matrix is not None:
            return self._linear(x, matrix(self.tau.flatten(0, 1)))
        x, size_x = _normalised(x, first=2)  # (B, C, ...), (B, C)
        tau, size_tau = _normalised(self.tau, first=2)  # (O, C, w), (O, C)
        calls = (len(x), *self.tau.shape[:2])
        y = self.student(
            x.unsqueeze(1).expand(*calls, *x.shape[2:]).flatten(0, 2), tau.expand(*calls, -1).flatten(0, 2)
        )
        size = size_x.unsqueeze(1) ** self.degree * size_tau  # (B, O, C)
        return self._biased(torch.einsum("boc,bocn->bon", size, y.reshape(*calls, math.prod(y.shape[1:]))), y.shape[1:])

    def _linear(self, x: Tensor, matrices: Tensor) -> Tensor:
        """A student that is linear in x: a matrix (O C, m, n) for each pair of channels, no call for each sample."""
        matrices = matrices.unflatten(0, (self.out_channels, self.in_channels))
        out_shape = getattr(self.student, "out_shape", matrices.shape[2:3])
        return self._biased(torch.einsum("bcn,ocmn->bom", x.flatten(2), matrices), out_shape)

    def _biased(self, out: Tensor, out_shape: Sequence[int]) -> Tensor:
        if self.bias is not None:
            out = out + self.bias[:, None]
        return out.unflatten(-1, tuple(out_shape))

    def extra_repr(self) -> str:
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, num_weights={self.tau.shape[-1]}, "
            f"bias={self.bias is not None}, degree={self.degree}"
        )


class ConditionalMLP(nn.Module):
    r"""The student: a GELU multilayer perceptron on [x, tau], which knows nothing of any symmetry.

        h(x, tau) = W_depth gelu( .. W_1 gelu(W_0 [x, tau] + b_0) + b_1 .. ) + b_depth        x flattened

    Args:
        in_shape: shape of one x.
        num_weights: length of one tau. With 0 it is unconditional and is called as h(x): for one member of a family,
            `SymmetryCloning(resample="never")`.
        out_shape: shape of one output.
        width: of the hidden layers.
        depth: number of hidden layers.
        degree: of the teacher in x, for `ClonedLayer`; it changes nothing here.

    Raises:
        ValueError: a width or depth below 1, num_weights below 0; on a call, other shapes.

    Examples:
        >>> ConditionalMLP((12, 12), 9, (12, 12), width=64)(torch.randn(5, 12, 12), torch.randn(5, 9)).shape
        torch.Size([5, 12, 12])
        >>> ConditionalMLP((8,), 0, (4, 2))(torch.randn(5, 8)).shape
        torch.Size([5, 4, 2])
        >>> from lightning_equiv import EquivariantTensorProduct
        >>> ConditionalMLP.like(EquivariantTensorProduct("1o", "1o", "1e"), width=64).degree
        2

    Reference:
        @misc{huang2024symmetry,
          title={Symmetry From Scratch: Group Equivariance as a Supervised Learning Task},
          author={Huang, Haozhe and Cheng, Leo Kaixuan and Chen, Kaiwen and Aspuru-Guzik, Al{\'a}n},
          year={2024}, note={arXiv:2410.03989}}
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        num_weights: int,
        out_shape: Sequence[int],
        width: int = 256,
        depth: int = 1,
        *,
        degree: int = 1,
    ) -> None:
        super().__init__()
        if width < 1 or depth < 1 or num_weights < 0:
            raise ValueError(
                f"expected width and depth of at least 1, num_weights of at least 0, got {width=}, {depth=}, "
                f"{num_weights=}"
            )
        self.in_shape, self.out_shape, self.num_weights = tuple(in_shape), tuple(out_shape), num_weights
        self.degree = degree
        widths = [math.prod(self.in_shape) + num_weights, *[width] * depth]
        hidden = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.GELU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, math.prod(self.out_shape)))

    @classmethod
    def like(cls, teacher: Teacher, width: int = 256, depth: int = 1) -> ConditionalMLP:
        """The student of a teacher: its shapes, its number of weights and its degree."""
        shapes = (teacher.in_shape, teacher.num_weights, teacher.out_shape)
        return cls(*shapes, width=width, depth=depth, degree=teacher.degree)

    @property
    def forward(self) -> Callable[..., Tensor]:  # type: ignore[override]
        """h(x, tau), or h(x) where there are no weights: the signature says which, and `SymmetryCloning` reads it."""
        return self._conditional if self.num_weights else self._unconditional

    def _conditional(self, x: Tensor, tau: Tensor) -> Tensor:
        if x.shape[1:] != self.in_shape or tau.shape != (*x.shape[:1], self.num_weights):
            raise ValueError(f"expected {self._expected()}, got x {tuple(x.shape)} and tau {tuple(tau.shape)}")
        return self._reshaped(torch.cat([x.flatten(1), tau], dim=-1))

    def _unconditional(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.in_shape:
            raise ValueError(f"expected {self._expected()}, got x {tuple(x.shape)}")
        return self._reshaped(x.flatten(1))

    def _reshaped(self, rows: Tensor) -> Tensor:
        out: Tensor = self.layers(rows)
        return out.reshape(len(rows), *self.out_shape)

    def _expected(self) -> str:
        x = f"x (B, {', '.join(map(str, self.in_shape))})"
        return f"{x} and tau (B, {self.num_weights})" if self.num_weights else x


class ConditionalBilinear(nn.Module):
    r"""A student for linear families: dense in x and in tau, and without any notion of a symmetry.

        h(x, tau) = sum_k tau_k A_k x        A_k dense, x flattened

    It can learn a bilinear family of maps exactly, which a perceptron of moderate width cannot.

    Args:
        in_shape: shape of one x, n numbers.
        num_weights: length of one tau.
        out_shape: shape of one output, m numbers.

    Attributes:
        weight: A, (num_weights, m, n).

    Examples:
        >>> ConditionalBilinear((12, 12), 9, (12, 12))(torch.randn(5, 12, 12), torch.randn(5, 9)).shape
        torch.Size([5, 12, 12])
    """

    def __init__(self, in_shape: Sequence[int], num_weights: int, out_shape: Sequence[int]) -> None:
        super().__init__()
        if num_weights < 1:
            raise ValueError(f"expected num_weights of at least 1, got {num_weights}")
        self.in_shape, self.out_shape, self.num_weights = tuple(in_shape), tuple(out_shape), num_weights
        n, m = math.prod(self.in_shape), math.prod(self.out_shape)
        self.weight = nn.Parameter(torch.randn(num_weights, m, n) / math.sqrt(num_weights * n))

    @classmethod
    def like(cls, teacher: Teacher) -> ConditionalBilinear:
        """The student of a teacher that is linear in x.

        Raises:
            ValueError: the teacher is of another degree.
        """
        if teacher.degree != 1:
            raise ValueError(f"expected a teacher that is linear in x, got one of degree {teacher.degree}")
        return cls(teacher.in_shape, teacher.num_weights, teacher.out_shape)

    def matrix(self, tau: Tensor) -> Tensor:
        """sum_k tau_k A_k, (r, m, n) of tau (r, num_weights)."""
        return torch.einsum("rk,kmn->rmn", tau, self.weight)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        """(r, *in_shape) and (r, num_weights) to (r, *out_shape)."""
        if x.shape[1:] != self.in_shape or tau.shape != (*x.shape[:1], self.num_weights):
            raise ValueError(
                f"expected x (r, {', '.join(map(str, self.in_shape))}) and tau (r, {self.num_weights}), got "
                f"{tuple(x.shape)} and {tuple(tau.shape)}"
            )
        moved = torch.einsum("kmn,rn->rkm", self.weight, x.flatten(1))
        return torch.einsum("rkm,rk->rm", moved, tau).unflatten(-1, self.out_shape)


def _normalised(x: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """x divided by its root mean square over all but the `first` dimensions, and that; 0 stays 0."""
    rows = x.reshape(*x.shape[:first], math.prod(x.shape[first:]))
    size = torch.linalg.vector_norm(rows, dim=-1) / math.sqrt(rows.shape[-1])  # its gradient at 0 is 0, not nan
    divisor = torch.where(size > 0, size, torch.ones_like(size))
    return (rows / divisor.unsqueeze(-1)).reshape(x.shape), size
