"""Data sets of particles: the initial state in, the positions some steps later out.

The physics commutes with rotations, translations, reflections and permutations; the data sets differ in how they are
posed. Everything is integrated in float64 near the origin and cast once at the end; every number comes from the seed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_equiv.datasets.dynamics import (
    sample_charges,
    sample_gravity,
    simulate_charges,
    simulate_gravity,
)
from lightning_equiv.datasets.in_memory import InMemoryDataModule, Samples, check_at_least

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
    """Draw systems of `sample_gravity`, rotate them by an angle, and say where the bodies are after T = 0.1.

    The axis of rotation is uniform on the sphere, the angle uniform in ``angles``. A random axis makes a negative angle
    the same as a positive one. Systems in which a body moves more than 2 are redrawn.

    The same seed gives the same systems and axes whatever ``angles`` are: ``angles=(a, a)`` for several ``a`` shows
    one set of systems turned further and further.

    Args:
        num_samples: n >= 1.
        angles: Lowest and highest angle in degrees, -180 <= lowest <= highest <= 180.
        num_bodies: N >= 2.
        centre: Subtract each sample's initial centre of mass from positions and targets (in float64). False leaves
            the samples shifted by N(0, 20^2) along each axis.
        seed: Seed of every random number.
        dtype: Type of what is returned.

    Returns:
        ``{"masses": (n, N), "positions": (n, N, 3), "velocities": (n, N, 3), "targets": (n, N, 3)}``, targets being
        the final positions.

    Raises:
        ValueError: When ``num_samples < 1``, ``num_bodies < 2`` or the angles are out of range or reversed.
        RuntimeError: When so many systems are dropped that redrawing does not fill the set.

    Examples:
        >>> samples = gravity_dataset(8, angles=(90, 180))
        >>> {name: tuple(tensor.shape) for name, tensor in samples.items()}
        {'masses': (8, 4), 'positions': (8, 4, 3), 'velocities': (8, 4, 3), 'targets': (8, 4, 3)}
    """
    low, high = angles
    if not -180 <= low <= high <= 180:
        raise ValueError(f"angles must be (lowest, highest) in degrees within -180..180, got {angles}.")
    check_at_least(1, num_samples=num_samples)
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
            f"{missing} of {num_samples} systems of {num_bodies} bodies were still flung further than "
            f"{MAX_DISPLACEMENT} after {_MAX_ROUNDS} draws: use fewer bodies."
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
    """Draw systems of `sample_charges` and say where the particles are after ``steps`` steps of 0.001.

    Args:
        num_samples: n >= 1.
        num_particles: N >= 2.
        steps: Horizon.
        field: Strength of a uniform electric field along z, see `simulate_charges`; 0 keeps the full symmetry.
        centre: Subtract the mean over the particles of each sample's initial positions, one vector a sample, from
            positions and targets (in float64).
        seed: Seed of every random number.
        dtype: Type of what is returned.

    Returns:
        ``{"charges": (n, N), "positions": (n, N, 3), "velocities": (n, N, 3), "targets": (n, N, 3)}``, targets being
        the final positions.

    Raises:
        ValueError: When ``num_samples < 1``, ``num_particles < 2`` or ``steps < 1``.

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


class GravityDataModule(InMemoryDataModule):
    r"""Four bodies under gravity: from masses, positions and velocities to the positions after T = 0.1.

    Training, validation and "id" test samples are turned by at most 10 degrees (in distribution), those of the second
    test set, "ood", by 90 to 180 degrees (out of distribution), see `gravity_dataset`. An equivariant model does
    equally well on both; predicting no motion scores a mean squared error of about 0.018.

    Batches are ``{"masses": (B, N), "positions": (B, N, 3), "velocities": (B, N, 3), "targets": (B, N, 3)}``, float32.
    A rotation leaves the masses alone and turns the others as vectors, "1o"; a translation moves positions and targets.

    Args:
        train_size: Number of training samples.
        val_size: Number of validation samples.
        test_size: Number of samples of each test set.
        num_bodies: N, the star included.
        batch_size: Training batch, of each process.
        eval_batch_size: Validation and test batch.
        steps_per_epoch: Make an epoch this many batches long; None is one pass through the samples.
        centre: Subtract the initial centre of mass from positions and targets. False leaves a shift of N(0, 20^2).
        seed: Seed of the samples and of the order of batches. Outside a Trainer call
            ``loader.sampler.set_epoch(epoch)`` for a new order.
        num_workers: Processes that cut batches; 0 is the fastest.

    Raises:
        ValueError: When a size is less than 1 or ``num_bodies < 2``.

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

    def __init__(
        self,
        *,
        train_size: int = 100,
        val_size: int = 5000,
        test_size: int = 5000,
        num_bodies: int = 4,
        batch_size: int = 64,
        eval_batch_size: int = 1000,
        steps_per_epoch: int | None = None,
        centre: bool = True,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            train_size=train_size,
            val_size=val_size,
            test_size=test_size,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            steps_per_epoch=steps_per_epoch,
            seed=seed,
            num_workers=num_workers,
        )
        check_at_least(2, num_bodies=num_bodies)
        self.num_bodies = num_bodies
        self.centre = centre

    def _draw(self, split: str, seed: int) -> Samples:
        size = {"train": self.train_size, "val": self.val_size}.get(split, self.test_size)
        angles = OOD_ANGLES if split == "ood" else ID_ANGLES
        return gravity_dataset(size, angles=angles, num_bodies=self.num_bodies, centre=self.centre, seed=seed)


class ChargedDataModule(InMemoryDataModule):
    """Five charged particles: from charges, positions and velocities to the positions 1000 steps of 0.001 later.

    All sets are drawn alike, see `charged_dataset`. Batches are ``{"charges": (B, N), "positions": (B, N, 3),
    "velocities": (B, N, 3), "targets": (B, N, 3)}``, float32. Drawing the default sizes takes a few seconds.

    Args:
        train_size: Number of training samples.
        val_size: Number of validation samples.
        test_size: Number of test samples.
        num_particles: N.
        steps: Horizon, in steps of 0.001.
        field: Strength of a uniform electric field along z, which breaks the symmetry; see `simulate_charges`.
        batch_size: Training batch, of each process.
        eval_batch_size: Validation and test batch.
        steps_per_epoch: Make an epoch this many batches long; None is one pass through the samples.
        centre: Subtract the mean over the particles of the initial positions from positions and targets.
        seed: Seed of the samples and of the order of batches, as in `GravityDataModule`.
        num_workers: Processes that cut batches; 0 is the fastest.

    Raises:
        ValueError: When a size or ``steps`` is less than 1 or ``num_particles < 2``.

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

    def __init__(
        self,
        *,
        train_size: int = 3000,
        val_size: int = 2000,
        test_size: int = 2000,
        num_particles: int = 5,
        steps: int = 1000,
        field: float = 0.0,
        batch_size: int = 100,
        eval_batch_size: int = 1000,
        steps_per_epoch: int | None = None,
        centre: bool = True,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            train_size=train_size,
            val_size=val_size,
            test_size=test_size,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            steps_per_epoch=steps_per_epoch,
            seed=seed,
            num_workers=num_workers,
        )
        check_at_least(2, num_particles=num_particles)
        check_at_least(1, steps=steps)
        self.num_particles = num_particles
        self.steps = steps
        self.field = field
        self.centre = centre

    def _draw(self, split: str, seed: int) -> Samples:
        return charged_dataset(
            {"train": self.train_size, "val": self.val_size}.get(split, self.test_size),
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
