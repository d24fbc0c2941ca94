"""Families Phi(x; tau) of maps that are equivariant for every tau: what symmetry cloning teaches."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from e3nn import o3
from torch import Tensor, nn

from lightning_equiv.groups.finite import Cyclic, Dihedral
from lightning_equiv.groups.group import Group
from lightning_equiv.groups.product import Product, as_group
from lightning_equiv.groups.rotation import O3
from lightning_equiv.representations.image import Image
from lightning_equiv.representations.invariant import Invariant
from lightning_equiv.representations.irreps import IrrepsTensor
from lightning_equiv.representations.permuted import Regular, Shifted
from lightning_equiv.representations.representation import Factor, Representation
from lightning_equiv.symmetry.symmetry import Symmetry


class Teacher(nn.Module, ABC):
    r"""A family Phi(x; tau) of maps, equivariant for every tau.

        Phi(g x; tau) = g Phi(x; tau)

    The weights tau are an input, each sample has its own; there are no parameters. Phi is linear in tau and homogeneous
    in x, Phi(s x; t tau) = s^degree t Phi(x; tau), and scaled: for x ~ N(0, I) and tau ~ N(0, I) its outputs have mean
    square 1, E |Phi|^2 = dim(out_shape).

    `SymmetryCloning` takes a Teacher as it is; `ClonedLayer` makes a layer of one, or of the student that was taught.

    Attributes:
        in_shape: shape of one x.
        out_shape: shape of one output.
        num_weights: length of one tau.
        symmetry: how group elements move x and the output; tau is invariant.
        degree: in x; 1 for a linear map.

    Reference:
        @misc{huang2024symmetry,
          title={Symmetry From Scratch: Group Equivariance as a Supervised Learning Task},
          author={Huang, Haozhe and Cheng, Leo Kaixuan and Chen, Kaiwen and Aspuru-Guzik, Al{\'a}n},
          year={2024}, note={arXiv:2410.03989}}
    """

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    num_weights: int
    symmetry: Symmetry
    degree: int = 1

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        """Phi(x; tau), sample by sample.

        Args:
            x: (B, *in_shape).
            tau: (B, num_weights).

        Returns:
            (B, *out_shape).

        Raises:
            ValueError: other shapes.
        """
        if x.shape[1:] != self.in_shape or tau.shape != (*x.shape[:1], self.num_weights):
            shape = ", ".join(map(str, self.in_shape))
            raise ValueError(
                f"{type(self).__name__}({self.extra_repr()}) expects x (B, {shape}) and tau (B, {self.num_weights}), "
                f"got x {tuple(x.shape)} and tau {tuple(tau.shape)}; for one tau of all samples write "
                "tau.expand(len(x), -1)"
            )
        return self.phi(x, tau) if len(x) else x.new_zeros(0, *self.out_shape)

    @abstractmethod
    def phi(self, x: Tensor, tau: Tensor) -> Tensor:
        """Phi(x; tau), with shapes already checked: what a new family writes."""


class CircularConvolution(Teacher):
    r"""Circular correlation with a kernel tau, equivariant to shifts of a ring (T(1)) or of a torus (T(2)).

        Phi(x; tau)(p) = k^{-d/2} sum_q tau(q) x(p + q mod sizes)        q in {-(k-1)/2, .., (k-1)/2}^d

    d = len(sizes). Every output has unit variance for x, tau ~ N(0, I).

    Args:
        sizes: (n,) for signals, or (n, m) for images.
        kernel_size: k, odd, at most the smallest of the sizes. num_weights = k^d.

    Attributes:
        scale: k^{-d/2}; `torch.nn.functional.conv2d` does the same with the kernel `scale * tau`.

    Raises:
        ValueError: sizes that are not one or two, an even kernel, or one that is larger than the grid.

    Examples:
        >>> teacher = CircularConvolution((12, 12), 3)
        >>> x, tau = torch.randn(5, 12, 12), torch.randn(5, 9)
        >>> torch.allclose(teacher(x.roll(4, -1), tau), teacher(x, tau).roll(4, -1), atol=1e-5)
        True
        >>> teacher.symmetry.inputs[0]
        Factor(index=0, representation=Shifted(dim=-2)) @ Factor(index=1, representation=Shifted(dim=-1))

    Reference:
        @misc{huang2024symmetry,
          title={Symmetry From Scratch: Group Equivariance as a Supervised Learning Task},
          author={Huang, Haozhe and Cheng, Leo Kaixuan and Chen, Kaiwen and Aspuru-Guzik, Al{\'a}n},
          year={2024}, note={arXiv:2410.03989}}
    """

    def __init__(self, sizes: Sequence[int], kernel_size: int) -> None:
        super().__init__()
        sizes = tuple(sizes)
        if len(sizes) not in (1, 2) or min(sizes) < 1:
            raise ValueError(f"expected one or two sizes, (12,) or (12, 12), got {sizes}")
        _check_kernel(kernel_size, min(sizes))
        self.sizes, self.kernel_size = sizes, kernel_size
        self.in_shape = self.out_shape = sizes
        self.num_weights = kernel_size ** len(sizes)
        self.scale = self.num_weights**-0.5
        group: Group = Cyclic(sizes[0]) if len(sizes) == 1 else Product(tuple(Cyclic(n) for n in sizes))
        plane = Factor(0, Shifted(-2)) @ Factor(1, Shifted(-1))
        grid: Representation = Shifted(-1) if len(sizes) == 1 else plane
        self.symmetry = Symmetry(group, inputs=(grid, Invariant()), outputs=grid)

    def phi(self, x: Tensor, tau: Tensor) -> Tensor:
        d, reach = len(self.sizes), self.kernel_size // 2
        x = nn.functional.pad(x.unsqueeze(1), (reach, reach) * d, mode="circular")
        kernel = (self.scale * tau).reshape(len(tau), 1, 1, *[self.kernel_size] * d)
        return _correlate(x, kernel).squeeze(1)

    def extra_repr(self) -> str:
        return f"sizes={self.sizes}, kernel_size={self.kernel_size}"


class GroupConvolution(Teacher):
    r"""Group correlation with a kernel tau: quarter turns (C4), or these and reflections (D4), of a square grid.

        Phi(x; tau)[h](p) = scale sum_{g in G} sum_q tau(h^{-1} g, h^{-1} q) x[g](p + q)          lift=False
        Phi(x; tau)[h](p) = scale sum_q tau(h^{-1} q) x(p + q)                                    lift=True

    q from the middle of the k x k kernel; x is 0 beyond the border. g turns the grid and moves orientation h to g h:
    `Image() @ Regular(-3)`. Elements are numbered as `group.elements()` lists them. Near the border fewer terms are
    added: the scale is such that the mean over positions of the outputs' variance is 1.

    Args:
        group: "C4" or "D4".
        size: side of the grid.
        kernel_size: k, odd, at most the size.
        lift: from an image (size, size), with num_weights = k^2, instead of from feature maps (|G|, size, size), with
            num_weights = |G| k^2. The output is (|G|, size, size) either way.

    Attributes:
        scale: the root of 1 / (number of terms of an output, in the mean over positions).

    Raises:
        ValueError: another group, an even kernel, or one that is larger than the grid.

    Examples:
        >>> teacher = GroupConvolution("C4", size=8, kernel_size=3, lift=True)
        >>> x, tau = torch.randn(5, 8, 8), torch.randn(5, 9)
        >>> turned = teacher(x, tau).rot90(1, (-2, -1)).roll(1, 1)
        >>> torch.allclose(teacher(x.rot90(1, (-2, -1)), tau), turned, atol=1e-5)
        True

    Reference:
        @misc{huang2024symmetry,
          title={Symmetry From Scratch: Group Equivariance as a Supervised Learning Task},
          author={Huang, Haozhe and Cheng, Leo Kaixuan and Chen, Kaiwen and Aspuru-Guzik, Al{\'a}n},
          year={2024}, note={arXiv:2410.03989}}
    """

    table: Tensor  # (|G|, num_weights): the number of the weight of tau in each place of the kernel of output h

    def __init__(self, group: Group | str, size: int, kernel_size: int, lift: bool = False) -> None:
        super().__init__()
        self.group = as_group(group)
        if not isinstance(self.group, Cyclic | Dihedral) or self.group.n != 4:
            raise ValueError(
                f"expected the group 'C4' or 'D4', got {group!r}: a square grid has no other quarter turns"
            )
        _check_kernel(kernel_size, size)
        self.size, self.kernel_size, self.lift = size, kernel_size, lift
        order, k, reach = self.group.order, kernel_size, kernel_size // 2
        self.in_shape = (size, size) if lift else (order, size, size)
        self.out_shape = (order, size, size)
        self.num_weights = k * k if lift else order * k * k
        inside = k - reach * (reach + 1) / size  # places of a kernel's row within the grid, in the mean over positions
        self.scale = 1 / (inside * math.sqrt(1 if lift else order))
        maps = Image() @ Regular(-3)
        grid: Representation = Image() if lift else maps
        self.symmetry = Symmetry(self.group, inputs=(grid, Invariant()), outputs=maps)
        tau = torch.arange(self.num_weights).reshape(*self.in_shape[:-2], k, k)
        turned = grid(self.group.elements(), tau.expand(order, *tau.shape))  # (h tau)(g, q) = tau(h^-1 g, h^-1 q)
        self.register_buffer("table", turned.flatten(1), persistent=False)

    def phi(self, x: Tensor, tau: Tensor) -> Tensor:
        order, k = self.out_shape[0], self.kernel_size
        kernel = (self.scale * tau).index_select(1, self.table.flatten())
        maps = x.unsqueeze(1) if self.lift else x
        return _correlate(maps, kernel.reshape(len(tau), order, maps.shape[1], k, k), padding=k // 2)

    def extra_repr(self) -> str:
        return f"group={str(self.group)!r}, size={self.size}, kernel_size={self.kernel_size}, lift={self.lift}"


class EquivariantLinear(Teacher):
    r"""Linear maps between irreps of O(3), one weight for each pair of an input and an output of the same irrep.

        Phi(x; tau)_{l, v} = n_l^{-1/2} sum_u tau_{l, u v} x_{l, u}       n_l = number of inputs of irrep l

    e3nn's `o3.Linear`, without biases. Every output has unit variance for x, tau ~ N(0, I).

    Args:
        irreps_in: of x, in the last dimension.
        irreps_out: of the output.

    Raises:
        ValueError: no irreps, or an output whose irrep is not among the inputs.

    Examples:
        >>> teacher = EquivariantLinear("2x0e+3x1o", "0e+2x1o")
        >>> teacher.num_weights, teacher(torch.randn(5, 11), torch.randn(5, 8)).shape
        (8, torch.Size([5, 7]))

    Reference:
        @misc{huang2024symmetry,
          title={Symmetry From Scratch: Group Equivariance as a Supervised Learning Task},
          author={Huang, Haozhe and Cheng, Leo Kaixuan and Chen, Kaiwen and Aspuru-Guzik, Al{\'a}n},
          year={2024}, note={arXiv:2410.03989}}
    """

    def __init__(self, irreps_in: str | o3.Irreps, irreps_out: str | o3.Irreps) -> None:
        super().__init__()
        x, out = _irreps(irreps_in, "irreps_in"), _irreps(irreps_out, "irreps_out")
        _check_paths(out, {ir for mul, ir in x if mul})
        self.linear = o3.Linear(x, out, shared_weights=False, internal_weights=False)
        _declare(self, x, out, self.linear.weight_numel)

    def phi(self, x: Tensor, tau: Tensor) -> Tensor:
        return self.linear(x, tau)

    def extra_repr(self) -> str:
        return f"irreps_in={str(self.linear.irreps_in)!r}, irreps_out={str(self.linear.irreps_out)!r}"


class EquivariantTensorProduct(Teacher):
    r"""Products of two tensors of irreps, one weight for each path (u of x1, v of x2) -> w of the output.

        Phi([x1, x2]; tau)_w = sum_{u v} c_{u v w} tau_{u v w} (x1_u (x) x2_v)_w      (x) by Clebsch-Gordan coefficients

    e3nn's `o3.FullyConnectedTensorProduct`. x is the direct sum [x1, x2] and Phi is quadratic in it (degree 2). Every
    output has unit variance for x, tau ~ N(0, I).

    Args:
        irreps_in1: of x1, the first entries of the last dimension of x.
        irreps_in2: of x2, the others.
        irreps_out: of the output.

    Raises:
        ValueError: no irreps, or an output that no product of inputs holds.

    Examples:
        >>> teacher = EquivariantTensorProduct("1o", "1o", "0e+1e")  # a scalar and a cross product
        >>> teacher.num_weights, teacher(torch.randn(5, 6), torch.randn(5, 2)).shape
        (2, torch.Size([5, 4]))

    Reference:
        @misc{huang2024symmetry,
          title={Symmetry From Scratch: Group Equivariance as a Supervised Learning Task},
          author={Huang, Haozhe and Cheng, Leo Kaixuan and Chen, Kaiwen and Aspuru-Guzik, Al{\'a}n},
          year={2024}, note={arXiv:2410.03989}}
    """

    degree = 2

    def __init__(self, irreps_in1: str | o3.Irreps, irreps_in2: str | o3.Irreps, irreps_out: str | o3.Irreps) -> None:
        super().__init__()
        x1, x2 = _irreps(irreps_in1, "irreps_in1"), _irreps(irreps_in2, "irreps_in2")
        out = _irreps(irreps_out, "irreps_out")
        _check_paths(out, {ir for m, a in x1 for n, b in x2 if m and n for ir in a * b})
        self.product = o3.FullyConnectedTensorProduct(x1, x2, out, shared_weights=False, internal_weights=False)
        self.split = (x1.dim, x2.dim)
        _declare(self, x1 + x2, out, self.product.weight_numel)

    def phi(self, x: Tensor, tau: Tensor) -> Tensor:
        return self.product(*x.split(self.split, dim=-1), tau)

    def extra_repr(self) -> str:
        names = ("irreps_in1", "irreps_in2", "irreps_out")
        return ", ".join(f"{name}={str(getattr(self.product, name))!r}" for name in names)


def _correlate(x: Tensor, kernel: Tensor, padding: int = 0) -> Tensor:
    """Every sample with its own kernels: one convolution with a group for each sample.

    Args:
        x: (B, C, *grid).
        kernel: (B, O, C, *k).
        padding: zeros around x.

    Returns:
        (B, O, *grid'). On one CPU thread, B = 256 .. 4,000, C = O = 4 or 8, unfold and bmm took 9 to 27 times as long
        forward and 4 to 8 times with backward; for C = 1 about as long, and 2 to 4 times with backward.
    """
    conv = nn.functional.conv1d if x.ndim == 3 else nn.functional.conv2d
    y = conv(x.flatten(0, 1).unsqueeze(0), kernel.flatten(0, 1), padding=padding, groups=len(x))
    return y.squeeze(0).unflatten(0, kernel.shape[:2])


def _declare(teacher: Teacher, irreps_in: o3.Irreps, irreps_out: o3.Irreps, num_weights: int) -> None:
    """Set what a family of maps between irreps says of itself."""
    teacher.in_shape, teacher.out_shape, teacher.num_weights = (irreps_in.dim,), (irreps_out.dim,), num_weights
    inputs = (IrrepsTensor(irreps_in), Invariant())
    teacher.symmetry = Symmetry(O3(), inputs=inputs, outputs=IrrepsTensor(irreps_out))


def _irreps(irreps: str | o3.Irreps, name: str) -> o3.Irreps:
    found = IrrepsTensor(irreps).irreps
    if not found.dim:
        raise ValueError(f"expected {name} such as '2x0e+1o', got {str(irreps)!r}, which has no components")
    return found


def _check_paths(irreps_out: o3.Irreps, reached: set[o3.Irrep]) -> None:
    if missing := sorted({ir for mul, ir in irreps_out if mul and ir not in reached}):
        raise ValueError(
            f"irreps_out={str(irreps_out)!r}: no path leads from the inputs to {', '.join(map(str, missing))}; "
            f"expected irreps among {', '.join(map(str, sorted(reached)))}: leave it out, or add inputs that lead there"
        )


def _check_kernel(kernel_size: int, size: int) -> None:
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"expected an odd kernel_size, whose middle is a place, got {kernel_size}: write 3 or 5")
    if kernel_size > size:
        odd = size - 1 + size % 2
        raise ValueError(f"expected a kernel_size of at most the grid's size {size}, got {kernel_size}: write {odd}")
