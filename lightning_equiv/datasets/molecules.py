"""Molecules in motion: energies and forces of one molecule along molecular dynamics, computed here with GFN2-xTB."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from lightning_equiv._checks import check_number
from lightning_equiv.datasets.in_memory import InMemoryDataModule, Samples
from lightning_equiv.groups.rotation import SO3

METHOD = "GFN2-xTB"
STEP = 0.5  # fs
FRICTION = 0.01  # per fs
WARM_UP = 2000  # steps before the first frame, ten times 1 / (STEP FRICTION)

# The parts of a trajectory that splits are drawn from; between them lies a gap.
TRAIN_PART = 0.7
TEST_PART = 0.25

# Close to a minimum, in Angstrom: (atomic number, x, y, z).
MOLECULES: dict[str, list[tuple[int, float, float, float]]] = {
    "ethanol": [
        (6, 0.901, -0.493, 0.000),
        (6, -0.280, 0.464, 0.000),
        (8, -1.471, -0.295, 0.000),
        (1, -2.228, 0.299, 0.000),
        (1, -0.238, 1.108, 0.891),
        (1, -0.238, 1.108, -0.891),
        (1, 1.835, 0.062, 0.000),
        (1, 0.860, -1.127, 0.881),
        (1, 0.860, -1.127, -0.881),
    ],
    "aspirin": [
        (6, 2.967, 1.320, -1.032),
        (6, 1.934, 0.677, -0.158),
        (8, 1.784, 0.862, 1.017),
        (8, 1.178, -0.181, -0.882),
        (6, 0.034, -0.708, -0.322),
        (6, -0.116, -2.087, -0.324),
        (6, -1.257, -2.660, 0.206),
        (6, -2.247, -1.861, 0.757),
        (6, -2.102, -0.488, 0.761),
        (6, -0.968, 0.109, 0.214),
        (6, -0.850, 1.586, 0.169),
        (8, -0.198, 2.209, -0.633),
        (8, -1.587, 2.191, 1.106),
        (1, 2.497, 2.185, -1.497),
        (1, 3.284, 0.635, -1.812),
        (1, 3.809, 1.650, -0.432),
        (1, 0.672, -2.692, -0.744),
        (1, -1.369, -3.734, 0.198),
        (1, -3.131, -2.311, 1.181),
        (1, -2.870, 0.144, 1.179),
        (1, -1.465, 3.152, 1.050),
    ],
}


def molecule_trajectory(
    molecule: str = "ethanol",
    num_frames: int = 5000,
    *,
    temperature: float = 500.0,
    every: int = 10,
    seed: int = 0,
    folder: str | Path | None = None,
) -> Samples:
    """Frames of Langevin dynamics with GFN2-xTB, from a file where they were computed before.

    From a relaxed geometry, in steps of 0.5 fs with a friction of 0.01 per fs; the first ps is left out. Each frame is
    shifted and rotated, its forces with it: the centre of mass is at the origin, and the atoms are as close as they can
    be to the relaxed geometry, in squared distances weighted by mass. All frames have this one orientation.

    On one core a frame of ethanol takes 10 to 15 ms, one of aspirin 50 to 80 ms. The same seed gives the same frames on
    the same machine with the same number of threads; elsewhere rounding leads to other frames of the same distribution.
    The cache is one file for each choice of arguments. Of several processes that ask at once one computes and the
    others wait.

    Args:
        molecule: "ethanol" (9 atoms), "aspirin" (21 atoms), or a file that `ase.io.read` reads: a neutral molecule.
        num_frames: n >= 1.
        temperature: in K.
        every: steps from frame to frame.
        seed: of the velocities at the start and of the random force.
        folder: of the cache; None is `lightning_equiv/molecules` in `$XDG_CACHE_HOME`, or else in `~/.cache`.

    Returns:
        {"numbers": (N,) int64, "positions": (n, N, 3) in Angstrom, "energy": (n,) in eV, "forces": (n, N, 3) in eV per
        Angstrom}, float64.

    Raises:
        ImportError: frames have to be computed, or a file to be read, and tblite or ase is not installed.
        ValueError: there is no such molecule, or a number is out of range.

    Reference:
        @article{bannwarth2019gfn2,
          title={{GFN2-xTB}: An Accurate and Broadly Parametrized Self-Consistent Tight-Binding Quantum Chemical Method
                 with Multipole Electrostatics and Density-Dependent Dispersion Contributions},
          author={Bannwarth, Christoph and Ehlert, Sebastian and Grimme, Stefan},
          journal={Journal of Chemical Theory and Computation},
          volume={15},
          number={3},
          pages={1652--1671},
          year={2019}
        }
    """
    check_number("num_frames", num_frames, least=1, whole=True)
    check_number("temperature", temperature, above=0)
    check_number("every", every, least=1, whole=True)
    numbers, start = _start(molecule)
    told = repr((METHOD, STEP, FRICTION, WARM_UP, numbers.tolist(), start.tolist()))
    settings = f"{temperature:g}K-every{every}-{num_frames}frames-seed{seed}"
    name = f"{Path(molecule).stem}-{settings}-{hashlib.sha256(told.encode()).hexdigest()[:8]}.npz"
    path = _folder(folder) / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                _save(path, _simulate(numbers, start, num_frames, temperature, every, seed))
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in ("numbers", "positions", "energy", "forces")}


@dataclass(kw_only=True, eq=False, repr=False)
class MoleculesDataModule(InMemoryDataModule):
    r"""Energies and forces of one molecule, on frames of `molecule_trajectory`.

    Training and validation frames are drawn from the first 70 % of the trajectory, the test set "id" from the last
    25 %, so that no test frame is next in time to a training frame. All have one orientation. The second test set,
    "ood", has the frames of "id", each with its forces under a rotation of its own, uniform over all rotations: an
    equivariant model does equally well on both.

    Batches are {"numbers": (B, N) int64, "positions": (B, N, 3) in Angstrom, "energy": (B,) in eV, less the mean over
    the trajectory, "forces": (B, N, 3) in eV per Angstrom}, float32. A rotation or reflection moves positions and
    forces as vectors, "1o", and leaves numbers and energies alone.

    The first use computes the trajectory and keeps it on disk, which needs tblite and ase:
    `pip install 'lightning_equiv[molecules]'`.

    Args:
        molecule: "ethanol", "aspirin", or a file that `ase.io.read` reads.
        num_frames: of the trajectory, the sets being drawn from it.
        temperature: of the dynamics, in K.
        every: steps of 0.5 fs from frame to frame.
        trajectory_seed: of the dynamics; `seed` draws the splits and the rotations.
        folder: of the cache, see `molecule_trajectory`.

    The other arguments are those of `InMemoryDataModule`.

    Raises:
        ImportError: the trajectory has to be computed, and tblite or ase is not installed.
        ValueError: a size is less than 1, or the trajectory has too few frames for the sizes.

    Examples:
        >>> data = MoleculesDataModule(molecule="aspirin", num_frames=4000, train_size=800, val_size=200)
        >>> data.test_names, data.test_size
        (('id', 'ood'), 1000)

    Reference:
        @article{chmiela2017machine,
          title={Machine Learning of Accurate Energy-Conserving Molecular Force Fields},
          author={Chmiela, Stefan and Tkatchenko, Alexandre and Sauceda, Huziel E. and Poltavsky, Igor and
                  Sch{\"u}tt, Kristof T. and M{\"u}ller, Klaus-Robert},
          journal={Science Advances},
          volume={3},
          number={5},
          year={2017}
        }
    """

    test_names = ("id", "ood")

    train_size: int = 1000
    val_size: int = 500
    test_size: int = 1000
    batch_size: int = 32
    eval_batch_size: int = 250
    molecule: str = "ethanol"
    num_frames: int = 5000
    temperature: float = 500.0
    every: int = 10
    trajectory_seed: int = 0
    folder: str | Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("num_frames", self.num_frames, least=1, whole=True)
        first, last = self._parts()
        for names, size, part in (
            ("train_size + val_size", self.train_size + self.val_size, first),
            ("test_size", self.test_size, last),
        ):
            if size > len(part):
                raise ValueError(
                    f"expected {names} to be at most {len(part)}, the frames that num_frames={self.num_frames} leaves "
                    f"for them, got {size}: use smaller sets or more frames"
                )

    def _parts(self) -> tuple[range, range]:
        """The frames for training and validation, and those for tests."""
        n = self.num_frames
        return range(int(TRAIN_PART * n)), range(n - int(TEST_PART * n), n)

    def _draw(self, split: str, seed: int) -> Samples:
        frames = molecule_trajectory(
            self.molecule,
            self.num_frames,
            temperature=self.temperature,
            every=self.every,
            seed=self.trajectory_seed,
            folder=self.folder,
        )
        # one order for all splits, so that none shares a frame with another
        generator = torch.Generator().manual_seed(self.seed)
        first, last = (torch.tensor(part)[torch.randperm(len(part), generator=generator)] for part in self._parts())
        start = {"train": 0, "val": self.train_size}
        rows = first[start[split] :][: self._size(split)] if split in start else last[: self.test_size]
        x, forces = frames["positions"][rows], frames["forces"][rows]
        if split == "ood":
            rotations = SO3().sample(len(rows), generator=torch.Generator().manual_seed(seed), dtype=x.dtype).matrix
            x, forces = x @ rotations.mT, forces @ rotations.mT  # rows are vectors: x R^T
        return {
            "numbers": frames["numbers"].repeat(len(rows), 1),
            "positions": x.float(),
            "energy": (frames["energy"][rows] - frames["energy"].mean()).float(),
            "forces": forces.float(),
        }


def _start(molecule: str) -> tuple[np.ndarray, np.ndarray]:
    """Atomic numbers (N,) and positions (N, 3) of the geometry that is relaxed first."""
    if molecule in MOLECULES:
        table = np.array(MOLECULES[molecule])
        return table[:, 0].astype(np.int64), table[:, 1:]
    if not Path(molecule).is_file():
        raise ValueError(f"expected molecule to be one of {sorted(MOLECULES)} or a file of atoms, got {molecule!r}")
    _chemistry()
    import ase.io

    atoms: Any = ase.io.read(molecule)
    return atoms.numbers.astype(np.int64), atoms.positions


def _folder(folder: str | Path | None) -> Path:
    """Where trajectories are kept."""
    if folder is not None:
        return Path(folder).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "lightning_equiv" / "molecules"


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write the whole file or none of it; the caller holds the lock."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    part.replace(path)


def _chemistry() -> Any:
    """The class of tblite's calculators."""
    try:
        import ase  # noqa: F401
        from tblite.ase import TBLite
    except ImportError as error:
        raise ImportError(
            f"molecules need tblite and ase ({error}): pip install 'lightning_equiv[molecules]'"
        ) from error
    return TBLite


def _simulate(
    numbers: np.ndarray, start: np.ndarray, num_frames: int, temperature: float, every: int, seed: int
) -> dict[str, np.ndarray]:
    """The arrays of `molecule_trajectory`."""
    calculator = _chemistry()(method=METHOD, verbosity=0)
    from ase import Atoms, units
    from ase.md.langevin import Langevin
    from ase.optimize import BFGS

    atoms = Atoms(numbers, start, calculator=calculator)
    BFGS(atoms, logfile=None).run(fmax=0.01, steps=1000)
    masses = atoms.get_masses()
    relaxed = atoms.positions - atoms.get_center_of_mass()

    random = np.random.default_rng(seed)
    # Maxwell: every momentum is normal, of variance m k T
    atoms.set_momenta(np.sqrt(masses * units.kB * temperature)[:, None] * random.standard_normal((len(atoms), 3)))
    dynamics = Langevin(
        atoms, STEP * units.fs, temperature_K=temperature, friction=FRICTION / units.fs, fixcm=False, rng=random
    )
    dynamics.run(WARM_UP)
    x, energy, forces = [], [], []
    for _ in range(num_frames):
        dynamics.run(every)
        centred = atoms.positions - atoms.get_center_of_mass()
        turn = _alignment(centred, relaxed, masses)
        x.append(centred @ turn.T)
        energy.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces() @ turn.T)
    return {"numbers": numbers, "positions": np.stack(x), "energy": np.array(energy), "forces": np.stack(forces)}


def _alignment(x: np.ndarray, target: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The rotation R that minimises sum_i w_i |R x_i - target_i|^2 (Kabsch), (3, 3)."""
    u, _, vt = np.linalg.svd(x.T @ (weights[:, None] * target))
    # R = V diag(1, 1, det(V U^T)) U^T: the sign keeps it from reflecting
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(vt.T @ u.T))])
    return vt.T @ (signs[:, None] * u.T)
