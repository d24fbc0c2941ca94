"""A user's script that has every public name: mypy --strict and pyright pass on it, and it runs. See test_typing.py."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_equiv
from lightning_equiv import (
    ACE,
    E3,
    O3,
    RECM,
    REMUL,
    RPP,
    SE3,
    SO2,
    SO3,
    AlgebraElement,
    AngleProfile,
    BlockNormalizedAdam,
    CartesianTensor,
    CircularConvolution,
    ClassChanges,
    ClassificationModule,
    ClonedLayer,
    Comparison,
    Composed,
    ConditionalBilinear,
    ConditionalMLP,
    ConstraintRelaxation,
    Custom,
    Cyclic,
    Dihedral,
    EdgeNumbers,
    EquivarianceError,
    EquivarianceMonitor,
    EquivarianceProjection,
    EquivarianceReport,
    EquivarianceSpectrum,
    EquivariantLinear,
    EquivariantTensorProduct,
    Factor,
    GraphNumbers,
    Group,
    GroupAugmentation,
    GroupConvolution,
    GroupElement,
    Ignored,
    Image,
    Instruments,
    Invariant,
    IrrepsTensor,
    LayerFamily,
    LayerwiseError,
    LayerwiseErrors,
    LearnedGenerators,
    LieDerivativeError,
    NodeIndex,
    NoiseFloor,
    OptimisedCanonicaliser,
    OrientedErrors,
    Per,
    Permutation,
    Permuted,
    Point,
    Pointer,
    Product,
    RegressionModule,
    Regular,
    RelaxedLayer,
    Representation,
    Shifted,
    SoftnessCurve,
    Spectrum,
    SymmetrizeAtTest,
    Symmetrized,
    Symmetry,
    SymmetryCallback,
    SymmetryCloning,
    SymmetryMixin,
    SymmetryModule,
    SymmetryReport,
    SymmetryShare,
    Teacher,
    Translation,
    VectorChannelsLast,
    VectorField,
    VectorNeurons,
    Way,
    WorstCase,
    angle_profile,
    as_group,
    as_representation,
    audit,
    citation,
    class_changes,
    compare,
    equivariance_error,
    equivariance_spectrum,
    gram_schmidt,
    layerwise_error,
    learned_generators,
    lie_derivative_error,
    noise_floor,
    oriented_errors,
    soften,
    softness_curve,
    symmetry_report,
    symmetry_share,
    translations,
    turns,
    worst_case,
)
from lightning_equiv.datasets import (
    SHAPE_CLASSES,
    ChargedDataModule,
    DigitsDataModule,
    GravityDataModule,
    InMemoryDataModule,
    MoleculesDataModule,
    ShapesDataModule,
    charged_dataset,
    charged_energy,
    gravity_dataset,
    gravity_energy,
    knn_graph,
    molecule_trajectory,
    radius_graph,
    sample_charges,
    sample_gravity,
    shapes_dataset,
    simulate_charges,
    simulate_gravity,
)

VECTORS = Symmetry("SO(3)", inputs="1o", outputs="1o", batch=("1o", "1o"))


class Stretch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out


def groups() -> list[Group]:
    every: list[Group] = [SO2(), SO3(), O3(), SE3(scale=2.0), E3(), Translation(3), Cyclic(4), Dihedral(4)]
    every += [Permutation(3), Product((SO3(), Permutation(3))), as_group("SO(3) x S3")]
    return every


def elements() -> Tensor:
    g: GroupElement = SO3().sample(4, generator=torch.Generator().manual_seed(0))
    small: AlgebraElement = SO3().algebra()
    quarter: GroupElement = turns("SO(3)", 90.0, 4)
    shift: GroupElement = translations("SE(3)", torch.ones(4, 3))
    representation: Representation = as_representation("1o")
    moved: Tensor = representation(g @ quarter, torch.randn(4, 3))
    return moved.sum() + len(small) + len(shift)


def representations() -> list[Representation]:
    def double(g: GroupElement, x: Tensor) -> Tensor:
        return 2 * x

    plain: list[Representation] = [
        Point(),
        CartesianTensor(2),
        Image(),
        VectorField(),
        Permuted(),
        Shifted(),
        Regular(),
    ]
    plain += [Invariant(), Ignored(), NodeIndex(), Pointer(), EdgeNumbers(), GraphNumbers(), IrrepsTensor("1o + 0e")]
    return [*plain, Custom(double), Per("node", Point()), Factor(0, Point()), Composed(Factor(0, Point()), Permuted())]


def measured() -> float:
    network, x = Stretch(), torch.randn(16, 3)
    error: Tensor = equivariance_error(network, x, VECTORS)
    parts: dict[str, Tensor] = equivariance_error(network, x, VECTORS, per_irrep=True)
    spectrum: Spectrum = equivariance_spectrum(network, x, VECTORS, num_samples=4)
    spectra: dict[str, Spectrum] = equivariance_spectrum(network, x, VECTORS, num_samples=4, per_irrep=True)
    oriented: OrientedErrors = oriented_errors(network, x, VECTORS, x, num_samples=4)
    of_parts: dict[str, OrientedErrors] = oriented_errors(network, x, VECTORS, x, num_samples=4, per_irrep=True)
    profile: dict[str, Tensor] = angle_profile(network, x, VECTORS, angles=[0, 90])
    layers: LayerwiseErrors = layerwise_error(network, x, VECTORS, {"linear": ("1o", "1o")})
    floor: NoiseFloor = noise_floor(network, x, VECTORS)
    worst: WorstCase = worst_case(network, x, VECTORS, steps=1)
    logits = Symmetry("SO(3)", inputs="1o", outputs="3x0e")
    classes: ClassChanges = class_changes(network, x, logits, num_samples=4)
    slope: Tensor = lie_derivative_error(network, x, VECTORS).total
    tensors = [error.mean(), parts["total"].mean(), spectrum.total.sum(), spectra["total"].total.sum(), slope]
    tensors += [oriented.as_is.mean(), of_parts["total"].as_is.mean(), profile["90"].mean(), layers.total]
    tensors += [worst.errors.max(), classes.changed.mean()]
    return float(torch.stack([t.detach().double() for t in tensors]).sum()) + floor.error.value


def accumulated() -> float:
    network, x = Stretch(), torch.randn(16, 3)
    error, by_part = EquivarianceError(VECTORS), EquivarianceError(VECTORS, per_irrep=True)
    profile, spectrum = AngleProfile(VECTORS, angles=[0, 90]), EquivarianceSpectrum(VECTORS, num_samples=4)
    slope, layers = LieDerivativeError(VECTORS), LayerwiseError(VECTORS, {"linear": ("1o", "1o")})
    for metric in (error, by_part, profile, spectrum, slope, layers):
        metric.update(network, x)
    value: Tensor = error.compute()
    values: dict[str, Tensor] = by_part.compute()
    named: list[dict[str, Tensor]] = [profile.compute(), spectrum.compute(), slope.compute(), layers.compute()]
    return float(value) + float(values["total"]) + sum(float(next(iter(found.values()))) for found in named)


def symmetrized() -> Tensor:
    network, x = Stretch(), torch.randn(8, 3)

    def score(x: Tensor) -> Tensor:
        return x[..., 0]

    whole: nn.Module = Symmetrized(network, VECTORS, num_samples=4)
    canonicaliser = OptimisedCanonicaliser(score, VECTORS, steps=1)
    frames: Tensor = gram_schmidt(torch.randn(8, 3, 3), reflections=False)
    share: SymmetryShare = symmetry_share(network, x, VECTORS, x, num_samples=4)
    assert isinstance(canonicaliser, nn.Module)
    assert isinstance(SymmetrizeAtTest(VECTORS), L.Callback)
    out: Tensor = whole(x)
    return out.sum() + frames.sum() + share.share


def discovered() -> tuple[str, int]:
    x = torch.randn(64, 3)
    report: SymmetryReport = symmetry_report(x, VECTORS, draws=99)
    learned: LearnedGenerators = learned_generators(lambda x: x.norm(dim=-1), x, fits=1)
    return str(report), len(learned.matrices)


class Own(SymmetryCallback):
    def _attach(self, module: L.LightningModule, undo: ExitStack) -> None:
        pass


class OwnModule(SymmetryMixin):
    symmetry = VECTORS


def strategies() -> list[SymmetryCallback]:
    symmetry, layers = "SO(3)", {"net.linear": ("1o", "1o")}
    families: list[LayerFamily] = [VectorNeurons(of="VN*"), VectorChannelsLast(of="Vec*")]
    watched = Instruments("loss", every=10)
    branches: list[SymmetryCallback] = [ConstraintRelaxation(symmetry, layers, instruments=watched)]
    branches += [RECM(symmetry, layers), ACE(symmetry, layers, families=families), RPP(symmetry, layers)]
    branches += [EquivarianceProjection(symmetry, layers)]
    return [REMUL(VECTORS, "net", target=1), GroupAugmentation(VECTORS), *branches, Own(name="own")]


def cloned() -> list[nn.Module]:
    teacher: Teacher = EquivariantLinear("4x1o", "4x1o")
    teachers: list[Teacher] = [CircularConvolution([8], 3), GroupConvolution("C4", 4, 3), teacher]
    teachers += [EquivariantTensorProduct("1o", "1o", "1e")]
    student = ConditionalMLP.like(teacher, width=8)
    bilinear = ConditionalBilinear((3,), 2, (3,))
    cloning: SymmetryCallback = SymmetryCloning(teacher, "net", steps=10)
    layer: nn.Module = ClonedLayer(teacher, 2, 2)
    assert cloning.name
    return [student, bilinear, layer, *teachers]


def softened() -> SoftnessCurve:
    def task_error(network: nn.Module) -> float:
        x = torch.ones(4, 3)
        return float((network(x) - x).square().mean())

    network, layers = Stretch(), {"linear": ("1o", "1o")}
    half: Stretch = soften(network, VECTORS, layers, 0.5)
    return softness_curve(half, VECTORS, layers, torch.randn(8, 3), task_error, (0.0, 1.0), num_samples=2)


def trained() -> float:
    loader: DataLoader[tuple[Tensor, ...]] = DataLoader(
        TensorDataset(torch.randn(8, 3), torch.randn(8, 3)), batch_size=4
    )
    module: SymmetryModule = RegressionModule(Stretch(), lr=0.01)
    classes: SymmetryModule = ClassificationModule(nn.Linear(3, 4), num_classes=4)
    optimizer: torch.optim.Optimizer = BlockNormalizedAdam(module, lr=0.01)
    monitor = EquivarianceMonitor(VECTORS, "net")
    trainer = L.Trainer(
        max_epochs=1,
        callbacks=[*strategies()[:2], monitor],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader, loader)
    relaxed = [m for m in module.modules() if isinstance(m, RelaxedLayer)]
    assert optimizer.param_groups
    assert not relaxed
    assert classes.net
    assert OwnModule().symmetry is VECTORS
    return float(trainer.callback_metrics["equivariance_error"])


def reported(folder: Path) -> tuple[str, Path]:
    report: EquivarianceReport = audit(Stretch(), torch.randn(16, 3), VECTORS, draws=4, progress=False)
    return report.verdict, report.save(folder / "report.md")


def compared(folder: Path) -> tuple[str, ...]:
    ways = {"plain": Way(), "REMUL": Way([REMUL(VECTORS, "net", target="targets")])}
    inputs = {"masses": Invariant(), "positions": "1o", "velocities": "1o"}
    found: Comparison = compare(
        lambda: RegressionModule(Stretch()),
        GravityDataModule,
        ways=ways,
        symmetry=Symmetry("SO(3)", inputs=inputs, outputs="1o"),
        steps=2,
        results=folder / "comparison.jsonl",
    )
    return found.ways


def data() -> list[InMemoryDataModule]:
    made: list[InMemoryDataModule] = [GravityDataModule(train_size=4), ChargedDataModule(train_size=4)]
    return [*made, ShapesDataModule(train_size=4), DigitsDataModule("turns"), MoleculesDataModule(train_size=4)]


def simulated() -> float:
    generator = torch.Generator().manual_seed(0)
    bodies, charges = sample_gravity(2, generator=generator), sample_charges(2, generator=generator)
    later, _ = simulate_gravity(*bodies, steps=2)
    positions, _ = simulate_charges(*charges, steps=2)
    energy = gravity_energy(*bodies).sum() + charged_energy(*charges).sum()
    edges = knn_graph(later[0], 2).shape[1] + radius_graph(positions[0], 1.0, backend="torch").shape[1]
    sets = [gravity_dataset(2)["targets"], charged_dataset(2, steps=2)["targets"]]
    return float(energy) + edges + sum(float(x.sum()) for x in sets)


def solids() -> int:
    return len(shapes_dataset(2, num_points=8)["points"]) + len(SHAPE_CLASSES)


def molecules() -> Tensor:
    frames: Tensor = molecule_trajectory("ethanol", 2)["positions"]
    return frames


if __name__ == "__main__":
    print(citation(REMUL), lightning_equiv.datasets.GravityDataModule, lightning_equiv.__version__)
    print(groups(), elements(), representations(), measured(), accumulated(), softened(), trained(), simulated())
    print(symmetrized(), len(strategies()), len(cloned()), reported(Path()))
