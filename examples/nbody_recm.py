"""Charged particles in a field: an e3nn network that learns how much of its symmetry to keep.

(a) Without a field the particles' law is exactly symmetric under O(3); training samples are turned at random.
(b) A uniform field along z breaks the symmetry, the more the stronger it is.

The same network strict, relaxed for a while and strict again (constraint relaxation), unconstrained (a dense matrix
beside each update, for good), and with RECM, which learns how much of that matrix to keep.

    python examples/nbody_recm.py --preset quick    one seed, two fields
    python examples/nbody_recm.py --preset full     three seeds, four fields

Prints one table and writes it beside one picture: nbody_recm_PRESET.csv, .md, .json, .png.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning as L
import matplotlib.pyplot as plt
from nbody_constraint_relaxation import LAYERS, Charges
from networks.e3nn_message_passing import E3nnMessagePassing
from shared.comparison import Run, Way, arguments, compare

from lightning_equiv import RECM, ConstraintRelaxation, GroupAugmentation, Invariant, Symmetry
from lightning_equiv.datasets import ChargedDataModule
from lightning_equiv.layers.branch import Branch, make_branch
from lightning_equiv.layers.choose import find_layers
from lightning_equiv.layers.relaxed_layer import replace_layers

MOVED = {"charges": Invariant(), "positions": "1o", "velocities": "1o"}
SYMMETRY = Symmetry("O(3)", inputs=MOVED, outputs="1o", batch={**MOVED, "targets": "1o"})


@dataclass(frozen=True)
class Preset:
    """How large and how long."""

    fields: tuple[float, ...]
    seeds: int
    steps: int
    eval_every: int
    size: int = 1000
    layers: int = 3
    hidden: str = "16x0e+16x1o"
    batch_size: int = 50
    eval_size: int = 1000
    lr: float = 1e-2


PRESETS = {
    "quick": Preset(fields=(0.0, 0.5), seeds=1, steps=600, eval_every=100, eval_size=500),
    "full": Preset(fields=(0.0, 0.1, 0.3, 1.0), seeds=3, steps=1500, eval_every=150),
}
FAST_DEV_RUN = Preset(
    fields=(0.0, 0.5), seeds=1, steps=4, eval_every=2, size=8, layers=1, hidden="2x0e+2x1o", batch_size=4, eval_size=8
)


def make_module(way: str, field: float, preset: Preset) -> Charges:
    """The user's training; "unconstrained" has a dense matrix beside each update, in full and for good."""
    module = Charges(E3nnMessagePassing(preset.hidden, preset.layers), preset.lr, preset.steps)
    if way == "unconstrained":
        branches = [Branch(layer, make_branch(layer, "linear", 1.0)) for layer in find_layers(module, LAYERS)]
        for branch in branches:
            branch.set_theta(1.0)
        replace_layers(module, branches)
    return module


def turned(field: float) -> list[L.Callback]:
    """Where the law is symmetric, training samples are turned at random."""
    return [] if field else [GroupAugmentation(SYMMETRY)]


WAYS: dict[str, Way] = {
    "strict": turned,
    "scheduled relaxation": lambda field: [*turned(field), ConstraintRelaxation(SYMMETRY, LAYERS, "net")],
    "unconstrained": turned,
    "RECM": lambda field: [*turned(field), RECM(SYMMETRY, LAYERS, "net", target="targets")],
}


def theta_name(layer: int) -> str:
    """What RECM logs for a layer."""
    return f"recm/theta/net.layers.{layer}.update"


def picture(runs: list[Run], path: Path, *, layers: int) -> None:
    """Test error against the field, theta of every layer against the field, and theta while training."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    fields = sorted({r.case for r in runs})
    places = range(len(fields))
    for way in dict.fromkeys(r.way for r in runs):
        tests = [[1e3 * r.test for r in runs if (r.way, r.case) == (way, field)] for field in fields]
        deviations = [statistics.stdev(t) if len(t) > 1 else 0.0 for t in tests]
        axes[0].errorbar(places, [statistics.mean(t) for t in tests], deviations, marker="o", capsize=3, label=way)
    axes[0].set(ylabel="test MSE x 1e-3", yscale="log")
    axes[0].legend(frameon=False)
    ours = [r for r in runs if r.way == "RECM"]
    for layer in range(layers):
        ends = [[abs(r.curves[theta_name(layer)][-1][1]) for r in ours if r.case == field] for field in fields]
        axes[1].plot(places, [statistics.mean(e) for e in ends], marker="o", color=f"C{layer}", label=f"layer {layer}")
        for place, values in zip(places, ends, strict=True):
            axes[1].plot([place] * len(values), values, ".", color=f"C{layer}", alpha=0.3)
    axes[1].set(ylabel="|theta| at the end")
    axes[1].legend(frameon=False)
    for axis in axes[:2]:
        axis.set_xticks(list(places), [f"{field:g}" for field in fields])
        axis.set_xlabel("strength of the field")
    for style, field in (("--", fields[0]), ("-", fields[-1])):
        for layer in range(layers):
            run = next(r for r in ours if r.case == field)
            axes[2].plot(*zip(*run.curves[theta_name(layer)], strict=True), style, color=f"C{layer}")
    axes[2].set(xlabel="optimiser step", ylabel="theta")
    axes[2].set_title(f"dashed: field {fields[0]:g}, solid: field {fields[-1]:g}; seed 0", fontsize=10)
    figure.savefig(path.with_suffix(".png"), dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, sorted(PRESETS))
    parser.add_argument("--fields", nargs="+", type=float, help="other strengths; samples are turned at exactly 0 only")
    options = parser.parse_args(argv)
    preset = FAST_DEV_RUN if options.fast_dev_run else PRESETS[options.preset]

    def make_data(field: float) -> ChargedDataModule:
        return ChargedDataModule(
            train_size=preset.size,
            val_size=preset.eval_size,
            test_size=preset.eval_size,
            batch_size=preset.batch_size,
            steps_per_epoch=preset.eval_every,
            steps=20 if options.fast_dev_run else 1000,
            field=field,
        )

    compare(
        WAYS,
        options,
        options.out / f"nbody_recm_{'fast_dev_run' if options.fast_dev_run else options.preset}",
        cases=options.fields or preset.fields,
        seeds=preset.seeds,
        make_module=partial(make_module, preset=preset),
        make_data=make_data,
        picture=partial(picture, layers=preset.layers),
        names=[theta_name(layer) for layer in range(preset.layers)],
        steps=preset.steps,
        monitor="mse",
        mode="min",
        unit="MSE x1e-3",
        scale=1e3,
        axis="field",
    )


if __name__ == "__main__":
    main()
