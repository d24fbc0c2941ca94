"""Data sets of particles: the initial state in, the positions some steps later out.

The physics commutes with rotations, translations, reflections and permutations; the data sets differ in their poses.
Everything is integrated in float64 near the origin and cast once at the end; every number comes from the seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_equiv._checks import check_number
from lightning_equiv.datasets.dynamics import (
    sample_charges,
    sample_gravity,
    simulate_charges,
    simulate_gravity,
)
from lightning_equiv.datasets.in_memory import InMemoryDataModule, Samples

SHIFT = 20.0
MAX_DISPLACEMENT = 2.0
ID_ANGLES = (-10.0, 10.0)  # degrees
OOD_ANGLES = (90.0, 180.0)

_MAX_ROUNDS = 100  # of redrawing dropped samples


def gravity_dataset(
    num_samples: int,
    *,
    angles: tuple[float, float] = ID_ANGLES,
    num_bodies: int = 4,
    centre: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Samples:
    """Systems of `sample_gravity`, rotated by an angle, and where the bodies are after T = 0.1.

    The axis of rotation is uniform on the sphere, the angle uniform in `angles`. A random axis makes a negative angle
    the same as a positive one. Systems in which a body moves more than 2 are drawn again.

    The same seed gives the same systems and axes whatever `angles` are: `angles=(a, a)` for several a gives one set of
    systems rotated further and further.

    Args:
        num_samples: n >= 1.
        angles: lowest and highest angle in degrees, -180 <= lowest <= highest <= 180.
        num_bodies: N >= 2.
        centre: subtract each sample's initial centre of mass from positions and targets (in float64); False leaves
            the samples shifted by N(0, 20^2) along each axis.
        seed: of every random number.
        dtype: of the tensors returned.

    Returns:
        {"masses": (n, N), "positions": (n, N, 3), "velocities": (n, N, 3), "targets": (n, N, 3)}, targets being the
        final positions.

    Raises:
        ValueError: num_samples < 1, num_bodies < 2, or the angles are out of range or reversed.
        RuntimeError: so many systems are dropped that the set is not filled.

    Examples:
        >>> samples = gravity_dataset(8, angles=(90, 180))
        >>> {name: tuple(tensor.shape) for name, tensor in samples.items()}
        {'masses': (8, 4), 'positions': (8, 4, 3), 'velocities': (8, 4, 3), 'targets': (8, 4, 3)}
    """
    low, high = angles
    if not -180 <= low <= high <= 180:
        raise ValueError(f"expected angles to be (lowest, highest) in degrees within -180..180, got {angles}")
    check_number("num_samples", num_samples, least=1, whole=True)
    generator = torch.Generator().manual_seed(seed)
    rounds: list[tuple[Tensor, ...]] = []
    missing = num_samples
    while missing and len(rounds) < _MAX_ROUNDS:
        masses, x, v = sample_gravity(missing, num_bodies=num_bodies, generator=generator)
        final, _ = simulate_gravity(masses, x, v)
        kept = (final - x).norm(dim=-1).amax(-1) <= MAX_DISPLACEMENT  # False for NaN
        rounds.append((masses[kept], x[kept], v[kept], final[kept]))
        missing -= int(kept.sum())
    if missing:
        raise RuntimeError(
            f"{missing} of {num_samples} systems of {num_bodies} bodies still move further than "
            f"{MAX_DISPLACEMENT} after {_MAX_ROUNDS} draws: use fewer bodies"
        )
    masses, x, v, final = (torch.cat(parts) for parts in zip(*rounds, strict=True))

    axes = torch.randn(num_samples, 3, generator=generator, dtype=torch.float64)
    theta = torch.deg2rad(low + (high - low) * torch.rand(num_samples, generator=generator, dtype=torch.float64))
    shift = SHIFT * torch.randn(num_samples, 1, 3, generator=generator, dtype=torch.float64)
    # row vectors: x R^T
    turn = _axis_rotation(torch.nn.functional.normalize(axes, dim=-1), theta).mT
    x, v, final = x @ turn, v @ turn, final @ turn
    origin = (masses.unsqueeze(-1) * x).sum(1, keepdim=True) / masses.sum(1)[:, None, None] if centre else -shift
    samples = {"masses": masses, "positions": x - origin, "velocities": v, "targets": final - origin}
    return {name: tensor.to(dtype) for name, tensor in samples.items()}


def charged_dataset(
    num_samples: int,
    *,
    num_particles: int = 5,
    steps: int = 1000,
    field: float = 0.0,
    centre: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Samples:
    """Systems of `sample_charges`, and where the particles are after `steps` steps of 0.001.

    Args:
        num_samples: n >= 1.
        num_particles: N >= 2.
        steps: horizon, at least 1.
        field: strength of a uniform electric field along z, see `simulate_charges`; 0 keeps the full symmetry.
        centre: subtract the mean over the particles of each sample's initial positions, one vector per sample, from
            positions and targets (in float64).
        seed: of every random number.
        dtype: of the tensors returned.

    Returns:
        {"charges": (n, N), "positions": (n, N, 3), "velocities": (n, N, 3), "targets": (n, N, 3)}, targets being the
        final positions.

    Raises:
        ValueError: num_samples < 1, num_particles < 2 or steps < 1.

    Examples:
        >>> samples = charged_dataset(4, steps=10)
        >>> samples["targets"].shape, bool(samples["positions"].mean(1).abs().max() < 1e-6)
        (torch.Size([4, 5, 3]), True)
    """
    generator = torch.Generator().manual_seed(seed)
    charges, x, v = sample_charges(num_samples, num_particles=num_particles, generator=generator)
    final, _ = simulate_charges(charges, x, v, steps=steps, field=field)
    if centre:
        origin = x.mean(1, keepdim=True)
        x, final = x - origin, final - origin
    samples = {"charges": charges, "positions": x, "velocities": v, "targets": final}
    return {name: tensor.to(dtype) for name, tensor in samples.items()}


@dataclass(kw_only=True, eq=False, repr=False)
class GravityDataModule(InMemoryDataModule):
    r"""Four bodies under gravity: from masses, positions and velocities to the positions after T = 0.1.

    Training, validation and "id" test samples are rotated by at most 10 degrees (in distribution), those of the second
    test set, "ood", by 90 to 180 degrees (out of distribution), see `gravity_dataset`. An equivariant model does
    equally well on both; predicting no motion has a mean squared error of about 0.018.

    Batches are {"masses": (B, N), "positions": (B, N, 3), "velocities": (B, N, 3), "targets": (B, N, 3)}, float32. A
    rotation leaves the masses alone and rotates the others as vectors, "1o"; a translation moves positions and targets.

    Args:
        num_bodies: N, the star included.
        centre: subtract the initial centre of mass from positions and targets; False leaves a shift of N(0, 20^2).

    The other arguments are those of `InMemoryDataModule`.

    Raises:
        ValueError: a size is less than 1, or num_bodies less than 2.

    Examples:
        >>> data = GravityDataModule(train_size=6, val_size=6, test_size=6, batch_size=4)
        >>> data.setup("test")
        >>> {name: len(loader.dataset) for name, loader in zip(data.test_names, data.test_dataloader())}
        {'id': 6, 'ood': 6}

    Reference:
        @inproceedings{elhag2025relaxed,
          title={Relaxed Equivariance via Multitask Learning},
          author={Elhag, Ahmed A. and Rusch, T. Konstantin and Di Giovanni, Francesco and Bronstein, Michael},
          booktitle={Learning on Graphs Conference},
          year={2025},
          note={arXiv:2410.17878}
        }

        @inproceedings{brehmer2023geometric,
          title={Geometric Algebra Transformer},
          author={Brehmer, Johann and de Haan, Pim and Behrends, S{\"o}nke and Cohen, Taco},
          booktitle={Advances in Neural Information Processing Systems},
          year={2023}
        }
    """

    test_names = ("id", "ood")

    train_size: int = 100
    val_size: int = 5000
    test_size: int = 5000
    batch_size: int = 64
    eval_batch_size: int = 1000
    num_bodies: int = 4
    centre: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("num_bodies", self.num_bodies, least=2, whole=True)

    def _draw(self, split: str, seed: int) -> Samples:
        return gravity_dataset(
            self._size(split),
            angles=OOD_ANGLES if split == "ood" else ID_ANGLES,
            num_bodies=self.num_bodies,
            centre=self.centre,
            seed=seed,
        )


@dataclass(kw_only=True, eq=False, repr=False)
class ChargedDataModule(InMemoryDataModule):
    """Five charged particles: from charges, positions and velocities to the positions 1000 steps of 0.001 later.

    All sets are drawn alike, see `charged_dataset`. Batches are {"charges": (B, N), "positions": (B, N, 3),
    "velocities": (B, N, 3), "targets": (B, N, 3)}, float32. Drawing the default sizes takes a few seconds.

    Args:
        num_particles: N.
        steps: horizon, in steps of 0.001.
        field: strength of a uniform electric field along z, which breaks the symmetry; see `simulate_charges`.
        centre: subtract the mean over the particles of the initial positions from positions and targets.

    The other arguments are those of `InMemoryDataModule`.

    Raises:
        ValueError: a size or steps is less than 1, or num_particles less than 2.

    Examples:
        >>> data = ChargedDataModule(train_size=6, val_size=6, test_size=6, batch_size=4, steps=10)
        >>> data.setup("fit")
        >>> [tuple(batch["positions"].shape) for batch in data.train_dataloader()]
        [(4, 5, 3), (2, 5, 3)]

    Reference:
        @inproceedings{satorras2021en,
          title={E(n) Equivariant Graph Neural Networks},
          author={Satorras, Victor Garcia and Hoogeboom, Emiel and Welling, Max},
          booktitle={International Conference on Machine Learning},
          year={2021}
        }

        @inproceedings{brandstetter2022geometric,
          title={Geometric and Physical Quantities Improve E(3) Equivariant Message Passing},
          author={Brandstetter, Johannes and Hesselink, Rob and van der Pol, Elise and Bekkers, Erik J. and
                  Welling, Max},
          booktitle={International Conference on Learning Representations},
          year={2022}
        }
    """

    test_names = ("test",)

    train_size: int = 3000
    val_size: int = 2000
    test_size: int = 2000
    batch_size: int = 100
    eval_batch_size: int = 1000
    num_particles: int = 5
    steps: int = 1000
    field: float = 0.0
    centre: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("num_particles", self.num_particles, least=2, whole=True)
        check_number("steps", self.steps, least=1, whole=True)

    def _draw(self, split: str, seed: int) -> Samples:
        return charged_dataset(
            self._size(split),
            num_particles=self.num_particles,
            steps=self.steps,
            field=self.field,
            centre=self.centre,
            seed=seed,
        )


def _axis_rotation(axes: Tensor, angles: Tensor) -> Tensor:
    """Rodrigues: R = I + sin(theta) K + (1 - cos(theta)) K^2, K v = axis x v; (n, 3), (n,) radians -> (n, 3, 3)."""
    identity = torch.eye(3, dtype=axes.dtype)
    # K[:, a, b] = (axis x e_b)_a
    cross: Tensor = torch.linalg.cross(axes.unsqueeze(1), identity.expand(len(axes), 3, 3)).mT
    sine, cosine = angles.sin()[:, None, None], angles.cos()[:, None, None]
    return identity + sine * cross + (1 - cosine) * (cross @ cross)
