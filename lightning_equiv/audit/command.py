"""The command line of `audit`: the report card of a trained model from a configuration file."""

from __future__ import annotations

import re
from argparse import Action
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from torch import nn

from lightning_equiv.audit.files import existing, load_module, load_weights, read_batch
from lightning_equiv.audit.report import EquivarianceReport
from lightning_equiv.audit.run import audit
from lightning_equiv.layers.choose import Layers
from lightning_equiv.symmetry.symmetry import Symmetry

DESCRIPTION = (
    "The report card of a model: how equivariant it is, where it breaks, what that costs. "
    "`audit --config examples/cli/audit.yaml`, and `--print_config` for all settings."
)
_AS_MADE = "as made"  # the name of a model without a checkpoint beside others


def main(args: list[str]) -> None:
    """Run the command.

    Args:
        args: the words after `audit`.
    """
    parser = _parser()
    config = parser.parse_args(args)
    try:
        files = _listed(config.save)
        _check(config.data, config.batch, files, [config.checkpoint, *_listed(config.compare)])
        L.seed_everything(config.seed, verbose=False)  # before the model is made
        # the older name is deprecated from jsonargparse 4.49 on
        settings = (parser.instantiate if hasattr(parser, "instantiate") else parser.instantiate_classes)(config)
        report = report_card(**{name: value for name, value in settings.as_dict().items() if name != "config"})
        report.print()
        for file in files:
            print(f"written: {report.save(file)}")
    except (TypeError, ValueError, OSError) as error:
        parser.error(str(error), error)


def _parser() -> Any:
    """A parser of the settings of `report_card`."""
    from jsonargparse import ArgumentParser, DefaultHelpFormatter  # of the extra `cli`

    class Formatter(DefaultHelpFormatter):
        """Help without a list of every network that torch has."""

        def _expand_help(self, action: Action) -> str:
            text = super()._expand_help(action)
            return re.sub(r", known subclasses: [^)]*", "", text) if action.dest == "model" else text

    parser = ArgumentParser(prog="python -m lightning_equiv audit", description=DESCRIPTION, formatter_class=Formatter)
    parser.add_argument("--config", action="config", help="a configuration file")
    parser.add_function_arguments(report_card)
    return parser


def report_card(
    model: type[nn.Module] | nn.Module,
    checkpoint: str | None = None,
    network: str | None = None,
    data: L.LightningDataModule | None = None,
    batch: str | None = None,
    symmetry: Symmetry | None = None,
    labels: dict[str, Any] | str | int | list[str | int] | None = None,
    layers: Layers | None = None,
    draws: int = 64,
    num_inputs: int = 256,
    budget: float | None = None,
    units: dict[str, str] | None = None,
    name: str | None = None,
    seed: int = 0,
    save: list[str] | str | None = None,
    compare: list[str] | str | None = None,
    device: str = "cpu",
    progress: bool = True,
    trusted: bool = False,
) -> EquivarianceReport:
    """The report card of a model, or of several checkpoints of it side by side.

    Args:
        model: an nn.Module or LightningModule, {class_path, init_args}; or a class path alone: a LightningModule is
            then read from `checkpoint` by `load_from_checkpoint`, another network is made without arguments.
        checkpoint: weights for the model, a Lightning checkpoint or a state dict. The keys of a bare network may stand
            under a prefix such as "net.". None measures the model as it is made.
        network: dotted name of a LightningModule's sub-module, whose calls in `validation_step` are measured; by
            default the model's own `symmetry_network`, if it has one.
        data: a LightningDataModule, of which the test set is taken, or the next that it has.
        batch: a batch in a file that torch.save wrote, in the place of `data`: tensors in dicts, tuples, lists or PyG
            graphs.
        symmetry: says how a group element moves the network's inputs and outputs, {group, inputs, outputs}; by default
            the model's own `symmetry`, if it has one.
        labels: where labels are in a batch: a key, an index or a path; or where those of each output are, such as
            {energy: y, forces: [labels, dy]}.
        layers: which layers; None takes all that say how their features move.
        draws: group elements for each input.
        num_inputs: at most so many inputs (graphs) are measured.
        budget: seconds, at most about so many are spent on each checkpoint.
        units: of outputs, by their names, such as {energy: eV}; "" is the only output.
        name: of the model, for the page.
        seed: of the model's first weights and of the draws.
        save: files to write: .html, .json, .md, .txt.
        compare: further checkpoints of the same model, side by side with the first.
        device: such as "cpu", "cuda:0"; "auto" takes an accelerator if there is one.
        progress: show a progress bar.
        trusted: read checkpoints and batches that hold objects of any class. Such a file runs code that it names.

    Raises:
        ValueError: a file that is missing or does not fit; no data; no symmetry; what `audit` refuses.
    """
    further = _listed(compare)
    _check(data, batch, _listed(save), [checkpoint, *further])
    on = _device(device)
    paths = [None if checkpoint is None else Path(checkpoint), *map(Path, further)]
    source = data if batch is None else read_batch(Path(batch), trusted)
    reports = []
    for path in paths:
        made = _with_weights(model, path, trusted).to(on)
        model = model if isinstance(model, type) else made
        L.seed_everything(seed, verbose=False)  # a loader that shuffles has the same batches for each
        reports.append(
            audit(
                made,
                source,
                _symmetry(made) if symmetry is None else symmetry,
                network=getattr(made, "symmetry_network", None) if network is None else network,
                labels=labels,
                layers=layers,
                draws=draws,
                num_inputs=num_inputs,
                budget=budget,
                units=units,
                name=name,
                seed=seed,
                progress=progress,
            )
        )
    return EquivarianceReport.compare(reports, _names(paths)) if further else reports[0]


def _listed(value: list[str] | str | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _check(data: Any, batch: str | None, save: list[str], checkpoints: list[str | None]) -> None:
    """ValueError for what can be seen before anything is made or measured."""
    if (data is None) == (batch is None):
        raise ValueError(
            f"expected `data` or `batch`, got {'neither' if data is None else 'both'}: write data: {{class_path: ..., "
            "init_args: {...}}, a LightningDataModule, or batch: PATH, a file that torch.save(batch, PATH) wrote"
        )
    for file in save:
        if Path(file).suffix not in EquivarianceReport.ENDINGS:
            raise ValueError(
                f"save: expected a path that ends in one of {', '.join(EquivarianceReport.ENDINGS)}, got {file!r}"
            )
    for number, checkpoint in enumerate(checkpoints):
        if checkpoint is not None:
            existing(checkpoint, "compare" if number else "checkpoint")
    if batch is not None:
        existing(batch, "batch")
    _names([None if checkpoint is None else Path(checkpoint) for checkpoint in checkpoints])


def _with_weights(model: type[nn.Module] | nn.Module, path: Path | None, trusted: bool) -> nn.Module:
    """The model with the weights of a checkpoint."""
    if isinstance(model, type):
        if path is not None and issubclass(model, L.LightningModule):
            return load_module(model, path, trusted)
        try:
            made = model()
        except TypeError as error:
            raise ValueError(
                f"model: {model.__name__} is not made without arguments ({error}): write model: {{class_path: ..., "
                "init_args: {...}}, or give the checkpoint of a LightningModule"
            ) from None
    else:
        made = model
    if isinstance(made, L.LightningModule):
        made.configure_model()
    if path is not None:
        load_weights(made, path, trusted)
    return made


def _symmetry(model: nn.Module) -> Any:
    """The model's own symmetry."""
    own = getattr(model, "symmetry", None)
    if not isinstance(own, Symmetry | Mapping):
        raise ValueError(
            f"expected `symmetry`, for {type(model).__name__} has none of its own: write symmetry: {{group: SO(3), "
            "inputs: {positions: 1o}, outputs: 1o}, how an element moves what the network takes and what it returns"
        )
    return own


def _names(paths: list[Path | None]) -> list[str]:
    """File stems, with as many folders as make them distinct."""
    for folders in range(max(len(path.parts) if path else 1 for path in paths)):
        names = ["/".join([*p.parts[-1 - folders : -1], p.stem]) if p else _AS_MADE for p in paths]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"compare: expected checkpoints that are not `checkpoint`, each once, got {list(map(str, paths))}")


def _device(name: str) -> torch.device:
    """A device that is there."""
    if name == "auto":
        name = "cuda" if CUDAAccelerator.is_available() else "mps" if MPSAccelerator.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device={name!r} is not there ({reason}): write cpu, cuda, cuda:0, mps or auto") from None
