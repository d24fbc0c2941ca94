"""The command line: a training, a report card, a comparison, or the symmetry of data, from a configuration file.

    python -m lightning_equiv fit --config examples/cli/remul.yaml
    python -m lightning_equiv fit --model.help lightning_equiv.RegressionModule
    python -m lightning_equiv fit --trainer.callbacks.help lightning_equiv.REMUL
    python -m lightning_equiv audit --config examples/cli/audit.yaml
    python -m lightning_equiv compare --config examples/cli/compare.yaml
    python -m lightning_equiv discover --config examples/cli/discover.yaml

It is a `LightningCLI`, and beside it `audit`, `compare` and `discover`: `model`, `data` and callbacks are classes by
their names, of this library or another, with their arguments; `--print_config` prints all of them.
"""

from __future__ import annotations

import sys

DESCRIPTION = (
    "A training from a configuration file: `fit --config examples/cli/remul.yaml`, and `--print_config` for all of its "
    "settings. The settings of a class: `fit --model.help lightning_equiv.RegressionModule`, "
    "`fit --trainer.callbacks.help lightning_equiv.REMUL`. "
    "The report card of a model, how equivariant it is: `audit --config examples/cli/audit.yaml`, and `audit --help`. "
    "Which strategy for my data: `compare --config examples/cli/compare.yaml`, and `compare --help`. "
    "Which symmetry the data have: `discover --config examples/cli/discover.yaml`, and `discover --help`."
)


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: the words after the program's name; None takes those that the program was called with.
    """
    words = sys.argv[1:] if args is None else args
    if words[:1] == ["compare"]:
        from lightning_equiv.compare.command import main as compare

        return compare(words[1:])
    try:
        import jsonargparse  # noqa: F401 (LightningCLI's own message does not name the extra `cli`)
    except ImportError:
        sys.exit("the command line needs jsonargparse: pip install 'lightning_equiv[cli]'")
    from lightning.pytorch.cli import LightningCLI

    import lightning_equiv.datasets  # noqa: F401 (so that its classes are known by their bare names)

    if words[:1] == ["audit"]:
        from lightning_equiv.audit.command import main as audit

        return audit(words[1:])
    if words[:1] == ["discover"]:
        from lightning_equiv.discovery.command import main as discover

        return discover(words[1:])

    class CLI(LightningCLI):
        def instantiate_classes(self) -> None:
            try:
                super().instantiate_classes()
            except (TypeError, ValueError) as error:  # a setting that its class refuses
                self.parser.error(str(error))

    CLI(
        args=args,  # None is not filled in: Lightning warns of words that are in sys.argv as well
        parser_kwargs={"prog": "python -m lightning_equiv", "description": DESCRIPTION},
        save_config_kwargs={"overwrite": True},  # without a logger every run writes into the same folder
    )


if __name__ == "__main__":
    main()
