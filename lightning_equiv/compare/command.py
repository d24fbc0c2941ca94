"""The command line of `compare`: a comparison from a configuration file."""

from __future__ import annotations

import argparse
import difflib
import inspect
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lightning_equiv.compare.comparison import Comparison
from lightning_equiv.compare.run import compare

DESCRIPTION = (
    "Which strategy for my data: every way of training of a configuration file, over several seeds, in one table with "
    "advice. What is finished is kept in the file of results: the same command goes on where it was interrupted."
)
_FAST = {"steps": 2, "seconds": None, "equal": "steps", "seeds": 1, "num_inputs": 4, "draws": 2}
_TOP = {*inspect.signature(compare).parameters, "presets", "save"} - {"executor"}


def main(args: list[str]) -> None:
    """Run the command.

    Args:
        args: the words after `compare`.
    """
    parser = _parser()
    options = parser.parse_args(args)
    try:
        config = configuration(options.config, options.preset, options.fast_dev_run)
        save = options.save or config.pop("save", [])
        config.pop("save", None)
        config |= {
            name: value
            for name in ("seeds", "jobs", "threads", "results")
            if (value := getattr(options, name)) is not None
        }
        config.setdefault("results", options.config.with_suffix(".jsonl").name)
        if options.ways:
            config["ways"] = _chosen(config.get("ways"), options.ways)
        if options.fast_dev_run and options.results is None:  # which the comparison itself would not go on from
            config["results"] = str(Path(tempfile.mkdtemp()) / config["results"])
        if options.draw:
            made = Comparison.load(config["results"], reference=config.get("reference"), title=config.get("title", ""))
        else:
            config = {"progress": options.progress, **config, **({"retry": True} if options.retry else {})}
            made = compare(**config)
        made.print()
        for file in [save] if isinstance(save, str) else save:
            print(f"written: {made.save(file)}")
        if not options.draw:
            print(f"runs: {config['results']}")
    except (TypeError, ValueError, OSError, ImportError) as error:
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lightning_equiv compare", description=DESCRIPTION)
    parser.add_argument("--config", type=Path, required=True, help="arguments of `lightning_equiv.compare`, as YAML")
    parser.add_argument("--preset", help="one of the configuration's `presets`, which changes some of them")
    parser.add_argument("--seeds", type=int, help="how many")
    parser.add_argument("--ways", nargs="+", help="only these")
    parser.add_argument("--jobs", type=int, help="processes that train at a time")
    parser.add_argument("--threads", type=int, help="of torch in one run")
    parser.add_argument("--results", help="the file of JSON lines")
    parser.add_argument("--save", nargs="+", help="files to write: .html, .md, .csv, .png")
    parser.add_argument("--retry", action="store_true", help="do runs again that failed")
    parser.add_argument("--draw", action="store_true", help="train nothing: show what is there")
    parser.add_argument(
        "--fast-dev-run", action="store_true", help="two steps of each way, not kept, to see that all runs"
    )
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bar")
    return parser


def configuration(path: Path, preset: str | None = None, fast: bool = False) -> dict[str, Any]:
    """The arguments of `compare` that a file holds.

    Args:
        path: of a YAML file; "presets" in it are changes by name, of which "fast" belongs to `fast`.
        preset: which of them; mappings are merged, all else is replaced.
        fast: two steps of each way.

    Raises:
        ValueError: names that are no arguments; a preset that is not there.
        OSError: no such file.
    """
    config = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    if not isinstance(config, Mapping):
        raise ValueError(f"{path}: expected a mapping with model, data, ways, steps, got a {type(config).__name__}")
    config = dict(config)
    presets = config.pop("presets", {})
    if preset is not None and preset not in presets:
        raise ValueError(f"--preset {preset}: {path} has {sorted(presets)}")
    for name in (preset, "fast" if fast else None):
        config = merged(config, presets.get(name, {}))
    if fast:
        config |= _FAST
    for name in config:
        if name not in _TOP:
            near = difflib.get_close_matches(name, _TOP, 1)
            raise ValueError(f"{path}: {name!r} is none of {sorted(_TOP)}" + (f"; {near[0]!r}?" if near else ""))
    if missing := [name for name in ("model", "data") if name not in config]:
        raise ValueError(f"{path} lacks {missing}: write model: {{class_path: package.Class, init_args: {{...}}}}")
    return config


def merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings with changes, in all their depth.

    Examples:
        >>> merged({"data": {"size": 100, "seed": 0}, "steps": 5}, {"data": {"size": 8}})
        {'data': {'size': 8, 'seed': 0}, 'steps': 5}
    """
    found = dict(config)
    for name, change in changes.items():
        own = found.get(name)
        found[name] = merged(own, change) if isinstance(own, Mapping) and isinstance(change, Mapping) else change
    return found


def _chosen(ways: Any, names: list[str]) -> Any:
    """Some of a configuration's ways; those that it does not describe are ready-made ones."""
    return {name: ways.get(name) for name in names} if isinstance(ways, Mapping) else names


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # it has no types
    """YAML in which 1e-3 is a number, as in JSON."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
