"""learned_generators: the one-parameter linear groups that a function, or labelled data, keep, where none was named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_equiv._checks import check_number
from lightning_equiv._random import derived_generator
from lightning_equiv.discovery.algebra_names import algebra_name, generator_name
from lightning_equiv.discovery.regressor import fitted, inner
from lightning_equiv.metrics.derivative import directional_derivative
from lightning_equiv.wiring.evaluation import evaluating

Outputs = Literal["invariant", "vector"]
_FEWEST = 20
_EMPTY = 1e-10  # of the largest second moment: directions in which the data have no extent
_BOOTSTRAPS = 100


@dataclass(frozen=True)
class LearnedGenerators:
    """The algebra that was found, of d x d matrices A: f(e^{tA} x) = f(x), or e^{tA} f(x).

    Attributes:
        matrices: (k, d, d) a basis of what is kept, each of Frobenius norm 1.
        violations: (m,) of all directions, ascending: |L_A f|^2 in that of a direction drawn at random.
        high: (m,) upper 95 % bounds, over inputs and fits.
        tolerance: the bound below which a direction is kept.
        closure: the part of the basis' commutators that lies outside it, in their size; 0 for a Lie algebra.
        trivial: (j, d, d) matrices that move none of the inputs, which says nothing of f; left out of all else.
        translations: whether the last column of the matrices, (k, d, d + 1), is a translation.
    """

    matrices: Tensor
    violations: Tensor
    high: Tensor
    tolerance: float
    closure: float
    trivial: Tensor
    translations: bool = False

    @property
    def name(self) -> str:
        """Of the algebra: "so(3)", "so(1,3)", "none"."""
        return algebra_name(self.matrices, self.translations)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the basis, in words."""
        return tuple(generator_name(a, self.translations) for a in self.matrices)

    def as_dict(self) -> dict[str, Any]:
        """All figures, as JSON has them."""
        return {
            "algebra": self.name,
            "generators": [{"name": n, "matrix": a.tolist()} for n, a in zip(self.names, self.matrices, strict=True)],
            "violations": self.violations.tolist(),
            "high": self.high.tolist(),
            "tolerance": self.tolerance,
            "closure": self.closure,
            "trivial": len(self.trivial),
        }

    def __str__(self) -> str:
        if not len(self.matrices):
            best = f"{float(self.violations[0]):.2g}" if len(self.violations) else "none"
            return f"no linear group is kept (the best direction breaks {best} of what a random one does)"
        listed = "; ".join(self.names)
        return f"{self.name}, dimension {len(self.matrices)}, closure {self.closure:.1e}: {listed}"


def learned_generators(
    network: Callable[[Tensor], Tensor] | None,
    x: Tensor,
    labels: Tensor | None = None,
    *,
    outputs: Outputs = "invariant",
    translations: bool = False,
    tolerance: float = 0.01,
    fits: int = 2,
    seed: int = 0,
) -> LearnedGenerators:
    r"""Which one-parameter linear groups leave a function, or the labels of data, as they are.

        (L_A f)(x) = J_f(x) A x - A f(x)    (the second term for `outputs="vector"` only)
        M_jk = mean <L_j f, L_k f>,   N_jk = mean <A_j x, A_k x> mean |J_f|^2 / n,   M v = mu N v

    over a basis A_j of all d x d matrices (and translations). Eigenvectors with small mu are kept. What moves no input
    is no symmetry of f: the null space of N is taken out first. With data alone, networks are fitted to disjoint
    parts of them, and M is the mean of <L_j f, L_k f'> over two fits: what one of them got wrong has no part in it.

    Discrete symmetries are invisible to it: `symmetry_report` tests for these. Null directions of a trained network are
    symmetries of the network; of the data only as far as it fits.

    Args:
        network: f, from (n, ..., d) to (n, ...); None fits networks to `labels`.
        x: (n, ..., d) vectors, or several of them, that a matrix moves alike.
        labels: (n, ...) where no network is given; with `outputs="vector"` the last dimension is d.
        outputs: "invariant", or "vector" for outputs that move as the inputs do.
        translations: look for motions x -> A x + b, too.
        tolerance: mu of a kept direction at most, by its upper 95 % bound over inputs (bootstrap), in that of a random
            direction.
        fits: how many networks are fitted, on disjoint parts; at least 2.
        seed: of parts, weights, and bootstrap.

    Returns:
        The matrices, with `name`, `names`, `closure`.

    Raises:
        ValueError: shapes that do not fit, fewer than 20 inputs, neither a network nor labels, constant labels.

    Examples:
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> found = learned_generators(lambda x: x.square().sum(-1), x)
        >>> found.name, len(found.matrices), found.closure < 1e-10
        ('so(3)', 3, True)

    Reference:
        @inproceedings{moskalev2022liegg,
          title={LieGG: Studying Learned Lie Group Generators},
          author={Moskalev, Artem and Sepliarskaia, Anna and Sosnovik, Ivan and Smeulders, Arnold},
          booktitle={Advances in Neural Information Processing Systems},
          year={2022}
        }
    """
    _check(network, x, labels, outputs, fits, tolerance)
    x = x.detach().double()
    if network is not None:
        functions = [network]
    else:
        assert labels is not None
        functions = fitted(x, labels, fits, seed)
        x = inner(x)
    basis = _basis(x.shape[-1], translations)
    moved = torch.stack([_act(a, x) for a in basis], 1)  # (n, m, ..., d)
    flat = moved.flatten(2)
    extent = torch.einsum("nji,nki->jk", flat, flat) / len(x)
    sizes, directions = torch.linalg.eigh(extent)
    seen = sizes > _EMPTY * sizes.max()
    trivial = torch.einsum("jk,jab->kab", directions[:, ~seen], basis)
    whitened = directions[:, seen] / sizes[seen].sqrt()  # columns v with v^T N v = 1, up to the mean of |J|^2
    slopes = [_slopes(f, x, basis, outputs) @ whitened for f in functions]  # (n, out, m)
    gram = _gram(slopes, torch.ones(len(x), dtype=x.dtype))
    random_direction = (gram.trace() / len(gram)).clamp_min(1e-300)
    values, vectors = torch.linalg.eigh(gram / random_direction)
    high = _upper(slopes, vectors, seed) / random_direction
    kept = high <= tolerance
    matrices = torch.einsum("jk,jab->kab", whitened @ vectors[:, kept], basis)
    matrices = matrices / matrices.flatten(1).norm(dim=1)[:, None, None].clamp_min(1e-300)
    closure = _closure(matrices, trivial, translations)
    return LearnedGenerators(_tidied(matrices), values, high, tolerance, closure, trivial, translations)


def _check(
    network: Callable[..., Any] | None, x: Tensor, labels: Tensor | None, outputs: str, fits: int, tolerance: float
) -> None:
    check_number("fits", fits, least=2, whole=True)
    check_number("tolerance", tolerance, above=0, below=1)
    if outputs not in ("invariant", "vector"):
        raise ValueError(f"expected outputs to be 'invariant' or 'vector', got {outputs!r}")
    if not isinstance(x, Tensor) or x.ndim < 2 or not x.is_floating_point():
        raise ValueError(f"expected x to be a real tensor of vectors (n, ..., d), got {getattr(x, 'shape', x)!r}")
    if len(x) < _FEWEST:
        raise ValueError(f"expected at least {_FEWEST} inputs, got {len(x)}: collect more of them")
    if network is None and labels is None:
        raise ValueError("expected a network, or labels to fit one to: learned_generators(None, x, labels)")
    if labels is not None and (len(labels) != len(x) or bool((labels == labels.flatten()[0]).all())):
        raise ValueError(f"expected {len(x)} labels that are not all equal, got {tuple(labels.shape)}")


def _basis(d: int, translations: bool) -> Tensor:
    """(m, d, d) matrices with a single 1; with translations (m, d, d + 1)."""
    columns = d + translations
    return torch.eye(d * columns, dtype=torch.float64).reshape(-1, d, columns)


def _act(a: Tensor, x: Tensor) -> Tensor:
    """A x of vectors (..., d), plus the last column of A (d, d + 1) where it has one."""
    d = x.shape[-1]
    moved = x @ a[:, :d].T
    return moved + a[:, d] if a.shape[1] > d else moved


def _slopes(network: Callable[..., Any], x: Tensor, basis: Tensor, outputs: Outputs) -> Tensor:
    """(n, outputs, m): L_A f of every matrix of the basis."""
    module = network if isinstance(network, nn.Module) else nn.Identity()
    dtype = next((p.dtype for p in module.parameters()), x.dtype)
    found = []
    with evaluating(module):
        for a in basis:
            v = _act(a, x)
            y, dy, _ = directional_derivative(lambda z: [network(z[0])], [x.to(dtype)], [v.to(dtype)])
            slope = dy[0].double()
            if outputs == "vector":
                if y[0].shape[-1] != x.shape[-1]:
                    raise ValueError(
                        f"expected vectors of {x.shape[-1]} components as outputs, got {tuple(y[0].shape)}"
                    )
                slope = slope - y[0].double() @ a[:, : x.shape[-1]].T
            found.append(slope.reshape(len(x), -1))
    return torch.stack(found, -1)


def _gram(slopes: Sequence[Tensor], weights: Tensor) -> Tensor:
    """(m, m) mean of <L_j f, L_k f'> over inputs with weights, and over pairs of different fits."""
    pairs = [(a, b) for i, a in enumerate(slopes) for b in slopes[i + 1 :]] or [(slopes[0], slopes[0])]
    total = torch.stack([torch.einsum("n,noj,nok->jk", weights, a, b) for a, b in pairs]).mean(0) / weights.sum()
    return (total + total.T) / 2


def _upper(slopes: Sequence[Tensor], vectors: Tensor, seed: int) -> Tensor:
    """(m,) upper 95 % bounds of v^T M v over drawn inputs."""
    along = [s @ vectors for s in slopes]
    pairs = [(a, b) for i, a in enumerate(along) for b in along[i + 1 :]] or [(along[0], along[0])]
    rows = torch.stack([(a * b).sum(1) for a, b in pairs]).mean(0)  # (n, m)
    generator = derived_generator("bootstrap", seed)
    drawn = torch.stack(
        [rows[torch.randint(len(rows), (len(rows),), generator=generator)].mean(0) for _ in range(_BOOTSTRAPS)]
    )
    return drawn.quantile(0.95, dim=0)


def _closure(matrices: Tensor, trivial: Tensor, translations: bool) -> float:
    """The part of the commutators outside the span, what moves no input included, in the size of the commutators."""
    if len(matrices) < 2:
        return 0.0
    full = [_square(m) if translations else m for m in (*matrices, *trivial)]
    flat = torch.stack(full).flatten(1)
    q, _ = torch.linalg.qr(flat.T)
    own = full[: len(matrices)]
    brackets = torch.stack([(a @ b - b @ a).flatten() for i, a in enumerate(own) for b in own[i + 1 :]])
    outside = brackets - (brackets @ q) @ q.T
    return float(outside.norm() / max(float(brackets.norm()), 1e-12 * len(brackets)))


def _square(a: Tensor) -> Tensor:
    """(d + 1, d + 1) of an affine motion (d, d + 1)."""
    return torch.cat([a, a.new_zeros(1, a.shape[1])])


def _tidied(matrices: Tensor) -> Tensor:
    """A basis of the same span, orthonormal, with as many zeros as reduced rows have."""
    if len(matrices) < 2:
        return matrices
    q = torch.linalg.qr(matrices.flatten(1).T)[0].T
    rows = q.clone()
    used: list[int] = []
    for k in range(len(rows)):  # Gauss and Jordan, with the largest entry as pivot
        rest = rows[k:].abs()
        i, j = divmod(int(rest.argmax()), rows.shape[1])
        rows[[k, k + i]] = rows[[k + i, k]]
        rows[k] = rows[k] / rows[k, j]
        for other in range(len(rows)):
            if other != k:
                rows[other] = rows[other] - rows[other, j] * rows[k]
        used.append(j)
    rows = rows / rows.norm(dim=1, keepdim=True)
    return rows.reshape(matrices.shape)
