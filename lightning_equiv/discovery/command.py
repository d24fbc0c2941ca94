"""The command line of `discover`: which symmetry data have, from a configuration file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L

from lightning_equiv.discovery.result import SymmetryReport
from lightning_equiv.discovery.run import symmetry_report
from lightning_equiv.symmetry.symmetry import Symmetry

DESCRIPTION = (
    "Which symmetry the data have, and where it is broken: in the inputs or in the labels. "
    "`discover --config examples/cli/discover.yaml`, and `--print_config` for all settings."
)


def main(args: list[str]) -> None:
    """Run the command.

    Args:
        args: the words after `discover`.
    """
    from jsonargparse import ArgumentParser  # of the extra `cli`

    parser = ArgumentParser(prog="python -m lightning_equiv discover", description=DESCRIPTION)
    parser.add_argument("--config", action="config", help="a configuration file")
    parser.add_function_arguments(discovered)
    config = parser.parse_args(args)
    try:
        files = [config.save] if isinstance(config.save, str) else list(config.save or [])
        for file in files:
            if not file.endswith(SymmetryReport.ENDINGS):
                raise ValueError(f"save: expected files that end in one of {SymmetryReport.ENDINGS}, got {file!r}")
        L.seed_everything(config.seed, verbose=False)
        settings = (parser.instantiate if hasattr(parser, "instantiate") else parser.instantiate_classes)(config)
        report = discovered(**{name: value for name, value in settings.as_dict().items() if name != "config"})
        report.print()
        for file in files:
            print(f"written: {report.save(file)}")
    except (TypeError, ValueError, OSError, ImportError) as error:
        parser.error(str(error), error)


def discovered(
    data: L.LightningDataModule,
    symmetry: Symmetry,
    candidates: list[str] | None = None,
    labels: dict[str, Any] | str | int | list[str | int] | None = None,
    witness: str = "features",
    draws: int = 999,
    level: float = 0.01,
    groups: str | int | list[str | int] | None = None,
    num_inputs: int = 5000,
    seed: int = 0,
    save: list[str] | str | None = None,
) -> SymmetryReport:
    """Which symmetry data have, and where it is broken.

    Args:
        data: a LightningDataModule, whose training set is tested.
        symmetry: says how a group element moves inputs and labels, {group, inputs, outputs}; its group is tested, and
            the subgroups with a name.
        candidates: other groups in the place of the subgroups, such as ["C4", "SO(2)"].
        labels: where labels are in a batch: a key, an index or a path; or where those of each output are, such as
            {energy: y, forces: [labels, dy]}.
        witness: "features" or "mlp".
        draws: of the tests; a p-value is at least 1 / (draws + 1).
        level: of the tests.
        groups: where the numbers of trajectories (or molecules) are in a batch, whose inputs are not independent.
        num_inputs: at most so many.
        seed: of all that is drawn.
        save: files to write: .html, .json, .md, .txt.

    Raises:
        ValueError: what `symmetry_report` refuses.
    """
    if isinstance(symmetry, Mapping):
        symmetry = Symmetry(**symmetry)
    chosen: Any = symmetry if candidates is None else [symmetry, *candidates]
    return symmetry_report(
        data,
        chosen,
        labels,
        witness=witness,
        draws=draws,
        level=level,
        groups=groups,
        num_inputs=num_inputs,
        seed=seed,
    )
