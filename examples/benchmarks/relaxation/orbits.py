"""Which representation do the hidden neurons of a free network have? The search, for one hidden layer of relus.

A finite group G acts on the inputs by permutations. The average over G of a free network is a strict one,

    sum_i a_i relu(d_i . [x, 1])   ->   sum_i a_i / |G| sum_g relu(d_i . [g x, 1])

with a regular orbit for each neuron: the right function, |G| times too wide. Orbits that are nearly the same are then
merged; after that orbits are merged, made smaller or left out, always what costs least for each neuron saved, until
they fit the width, and on for as long as it costs nearly nothing: what is left is the representation. Two relu layers
are the same function where their neurons agree up to order, size (relu(c z) = c relu(z)) and sign (relu(z) = relu(-z) +
z, whose z averages to an invariant linear map); so neurons are compared up to these and up to G. On normal inputs, a
neuron with |b| > 3.5 |w| is always off, or linear.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np

HINGE = 3.5  # |b| / |w| of neurons that are taken for linear ones, or for none
FREE = 0.003  # a change that costs less than this part of the whole is made although the width does not ask for it


@dataclass(frozen=True)
class Group:
    """Matrices (|G|, n, n) of the action on the inputs, and a subgroup of each type that is a stabiliser."""

    name: str
    matrices: np.ndarray
    subgroups: dict[str, tuple[int, ...]]  # name of the orbit type to the places of the stabiliser's elements

    @property
    def order(self) -> int:
        return len(self.matrices)

    def projection(self, kind: str) -> np.ndarray:
        """Onto the inputs that the stabiliser fixes (n, n)."""
        return self.matrices[list(self.subgroups[kind])].mean(0)

    def width(self, kind: str) -> int:
        return self.order // len(self.subgroups[kind])

    def representatives(self, kind: str) -> list[int]:
        """An element of each coset g H."""
        seen: dict[bytes, int] = {}
        for i, g in enumerate(self.matrices):
            coset = sorted((g @ self.matrices[h]).astype(int).tobytes() for h in self.subgroups[kind])
            seen.setdefault(coset[0], i)
        return list(seen.values())


def cyclic(n: int) -> Group:
    matrices = np.stack([np.roll(np.eye(n), k, axis=0) for k in range(n)])
    return Group(f"C{n}", matrices, {"regular": (0,), f"C{n}/C{n // 2}": (0, 2), "trivial": tuple(range(n))})


def symmetric_3() -> Group:
    """S_3 on three letters; the alternating group is left out: what it fixes, all permutations fix."""
    matrices = np.stack([np.eye(3)[list(pi)] for pi in permutations(range(3))])
    fixing_first = tuple(i for i, g in enumerate(matrices) if g[0, 0] == 1)
    return Group("S3", matrices, {"regular": (0,), "S3/S2": fixing_first, "trivial": tuple(range(6))})


@dataclass
class Orbit:
    """a sum_g relu(d . [g x, 1]) over all of G; |d| = 1, and d is fixed by the type's subgroup."""

    kind: str
    d: np.ndarray
    a: float


@dataclass
class Found:
    """The orbits, the linear map l . [x, 1] beside them, and what the changes cost, relative to the whole."""

    orbits: list[Orbit]
    linear: np.ndarray
    cost: float

    def types(self, group: Group) -> dict[str, int]:
        """How many orbits of each type."""
        return {kind: sum(o.kind == kind for o in self.orbits) for kind in group.subgroups}


def search(group: Group, W: np.ndarray, a: np.ndarray, width: int) -> Found:
    """Orbits of any type in place of free neurons.

    Args:
        group: acts on the inputs.
        W: incoming weights and bias of each neuron (N, n + 1).
        a: outgoing weights (N,).
        width: how many neurons the orbits may have together, a linear map's two included.
    """
    n = W.shape[1] - 1
    moves = np.zeros((group.order, n + 1, n + 1))
    moves[:, :n, :n], moves[:, n, n] = group.matrices, 1.0
    mean = moves.mean(0)
    fixed = {kind: moves[list(subgroup)].mean(0) for kind, subgroup in group.subgroups.items()}
    size = np.linalg.norm(W, axis=1)
    orbits = [
        Orbit("regular", w / s, x * s / group.order) for w, s, x in zip(W, size, a, strict=True) if abs(x) * s > 0
    ]
    linear, whole, spent = np.zeros(n + 1), sum(abs(o.a) for o in orbits), 0.0
    for o in [o for o in orbits if abs(o.d[-1]) > HINGE * np.linalg.norm(o.d[:-1])]:
        orbits = [other for other in orbits if other is not o]
        linear = linear + (group.order * o.a * (mean @ o.d) if o.d[-1] > 0 else 0.0)

    def merged(o: Orbit, other: Orbit) -> tuple[float, int, Orbit, np.ndarray]:
        """Cost, neurons saved, the orbit in place of both, and what is linear."""
        moved = moves @ other.d
        dot = moved @ o.d
        at = np.abs(dot).argmax()
        sign = 1.0 if dot[at] >= 0 else -1.0
        kind = o.kind if o.kind == other.kind else "regular"
        one, two = abs(o.a), abs(other.a)
        same = o.a * other.a > 0
        far = 2 - 2 * abs(dot[at])
        cost = far * (one * two / (one + two) if same else min(one, two))
        d = fixed[kind] @ ((one * o.d + two * sign * moved[at]) if same else (o.d if one > two else sign * moved[at]))
        length = np.linalg.norm(d)
        amplitude = (o.a + other.a) * (length / (one + two) if same else 1.0)
        left_over = group.order * other.a * (mean @ other.d) if sign < 0 else np.zeros(n + 1)
        saved = group.width(o.kind) + group.width(other.kind) - group.width(kind)
        return cost, saved, Orbit(kind, d / max(length, 1e-30), amplitude), left_over

    def smaller(o: Orbit, kind: str) -> tuple[float, Orbit]:
        moved = moves @ o.d
        onto = moved @ fixed[kind].T
        at = (onto**2).sum(1).argmax()
        length = np.linalg.norm(onto[at])
        return abs(o.a) * (1 - length**2), Orbit(kind, onto[at] / max(length, 1e-30), o.a * length)

    def total() -> int:
        return sum(group.width(o.kind) for o in orbits) + 2 * is_linear(linear, whole)

    while orbits:
        options = []  # cost for each neuron saved, cost, orbits to remove, orbits to add, linear part
        for i, o in enumerate(orbits):
            options.append((abs(o.a), group.width(o.kind), (i,), [], 0.0))
            if o.kind == "regular":
                for kind in group.subgroups:
                    if kind != "regular":
                        cost, new = smaller(o, kind)
                        options.append((cost, group.order - group.width(kind), (i,), [new], 0.0))
            for j in range(i):
                cost, saved, new, left_over = merged(o, orbits[j])
                if saved > 0:
                    options.append((cost, saved, (i, j), [new], left_over))
        merges = [option for option in options if len(option[2]) == 2 and option[0] <= FREE * whole]
        cost, _, gone, new, left_over = min(merges or options, key=lambda option: option[0] / option[1])
        if total() <= width and cost > FREE * whole:
            break
        orbits = [o for i, o in enumerate(orbits) if i not in gone] + new
        orbits = [o for o in orbits if abs(o.a) > 1e-9]
        linear = linear + left_over
        spent += cost
    return Found(orbits, linear, spent / max(whole, 1e-30))


def is_linear(linear: np.ndarray, whole: float) -> bool:
    """Whether a linear map is large enough to be given two neurons."""
    return bool(np.linalg.norm(linear[:-1]) > 0.01 * whole)
