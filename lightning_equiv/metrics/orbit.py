"""The output of a network on the orbits of its inputs, turned back: one set of draws for many figures."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_equiv.groups.group import GroupElement, element_dtype
from lightning_equiv.metrics.measurement import Measurement
from lightning_equiv.symmetry.call import TOTAL, BoundTree

_MOST_NUMBERS = 2**24  # in the largest tensor of a pairing


@dataclass(frozen=True)
class Orbit:
    r"""What K elements change in the output for each of n inputs.

        z(g) = rho_out(g)^-1 f(rho_in(g) x),    w_k = z(g_k) - f(x)

    z is constant exactly where f is equivariant at x. Everything is kept in float64, where the device has it: squares
    of small changes beside large outputs would be lost in float32.

    Attributes:
        elements: K n; element k n + i moved input i.
        f_x: (rows, d) f(x) of every output part, its rows flattened.
        changes: (K, rows, d) w of every output part.
        owners: (rows,) the input of every row of a part; None where row i belongs to input i.
        num_inputs: n.
    """

    elements: GroupElement
    f_x: dict[str, Tensor]
    changes: dict[str, Tensor]
    owners: dict[str, Tensor | None]
    num_inputs: int

    @property
    def num_samples(self) -> int:
        """K."""
        return len(self.elements) // self.num_inputs

    def per_input(self, part: str, rows: Tensor) -> Tensor:
        """(..., rows) numbers of a part summed over each input's own rows: (..., n)."""
        owner = self.owners[part]
        return rows if owner is None else rows.new_zeros(*rows.shape[:-1], self.num_inputs).index_add(-1, owner, rows)

    def squares(self) -> dict[str, Tensor]:
        """(K, n) |w_k|^2 of every part and of all together as "total"."""
        return _with_total({p: self.per_input(p, w.square().sum(-1)) for p, w in self.changes.items()})

    def mean_squares(self) -> dict[str, Tensor]:
        """(n,) |mean_k w_k|^2 of every part and of all together as "total"."""
        return _with_total({p: self.per_input(p, w.mean(0).square().sum(-1)) for p, w in self.changes.items()})

    def norms(self) -> dict[str, Tensor]:
        """(n,) |f(x)|^2 of every part and of all together as "total"."""
        return _with_total({p: self.per_input(p, f.square().sum(-1)) for p, f in self.f_x.items()})

    def along(self, vectors: dict[str, Tensor]) -> dict[str, Tensor]:
        """(K, n) <w_k, v> of every part and of all together as "total".

        Args:
            vectors: (rows, d) v of every part, such as `f_x`.
        """
        return _with_total({p: self.per_input(p, (w * vectors[p]).sum(-1)) for p, w in self.changes.items()})

    def paired(self, kernel: Tensor) -> dict[str, Tensor]:
        """(n,) sum_kl kernel_kl <w_k, w_l> of every part and of all together as "total".

        Args:
            kernel: (n, K, K), or (1, K, K) for all inputs.
        """
        found = {}
        for part, w in self.changes.items():
            rows = w.movedim(0, 1)  # (rows, K, d)
            owner = self.owners[part]
            sums = []
            step = max(1, _MOST_NUMBERS // (self.num_samples * max(self.num_samples, rows.shape[-1])))
            for start in range(0, len(rows), step):
                some = rows[start : start + step]
                if len(kernel) == 1:
                    own = kernel.expand(len(some), -1, -1)
                else:
                    own = kernel[start : start + step] if owner is None else kernel[owner[start : start + step]]
                sums.append((torch.bmm(own, some) * some).sum((1, 2)))
            found[part] = self.per_input(part, torch.cat(sums))
        return _with_total(found)


def orbit(measurement: Measurement, elements: GroupElement) -> Orbit:
    """The outputs for K n elements, as `Measurement.elements` gives them, turned back."""
    n = measurement.num_inputs
    f_x = exact(measurement.f_x)
    dtype = element_dtype(measurement.device)  # also of whole numbers
    parts = {part: (x.flatten(1) if x.ndim > 1 else x[:, None]).to(dtype) for part, x in f_x.parts().items()}

    def changes(g: GroupElement, f_gx: BoundTree, _: BoundTree) -> dict[str, Tensor]:
        z = exact(f_gx).move(g.inverse()).parts()
        return {part: z[part].reshape(len(g) // n, *x.shape) - x for part, x in parts.items()}

    chunks = measurement.for_each_chunk(elements, changes)
    gathered = {part: torch.cat([chunk[part] for chunk in chunks]) for part in parts}
    return Orbit(elements, parts, gathered, measurement.f_x.part_owners(), n)


def exact(tree: BoundTree) -> BoundTree:
    """A tree in the precision in which elements live, so that turning back rounds nothing of the network's."""
    exact = (replace(t, x=t.x.to(element_dtype(t.x.device))) if t.x.is_floating_point() else t for t in tree.tensors)
    return replace(tree, tensors=tuple(exact))


def _with_total(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {TOTAL: torch.stack(list(parts.values())).sum(0), **parts}
