"""The command line: every config runs, prints itself and comes back; every class can be written in YAML."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

import lightning_equiv
from lightning_equiv import (
    REMUL,
    ConstraintRelaxation,
    Ignored,
    Symmetry,
    SymmetryCallback,
    SymmetryModule,
    as_representation,
    datasets,
)
from lightning_equiv.__main__ import main
from lightning_equiv.layers.choose import Layers
from lightning_equiv.networks.transformer import ParticleTransformer
from tests.contracts import GROUPS, REPRESENTATIONS
from tests.helpers import global_seed
from tests.pages import blocks_of, pages

ROOT = Path(__file__).parents[1]
CONFIGS = {
    path.stem: path
    for path in sorted((ROOT / "examples/cli").glob("*.yaml"))
    if path.stem not in ("audit", "compare", "discover")
}
# lightning 2.6 itself calls what jsonargparse 4.53 deprecates
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.fixture(autouse=True)
def _no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """What pytest was called with is not for the command line."""
    monkeypatch.setattr(sys, "argv", ["lightning_equiv"])


class Users(L.LightningModule):
    """A module that knows nothing of this library."""

    def __init__(self) -> None:
        super().__init__()
        self.net = ParticleTransformer(1, 8, 1)

    def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        out = self.net(batch["masses"], batch["positions"], batch["velocities"])
        return torch.nn.functional.mse_loss(out, batch["targets"])

    validation_step = training_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


def strategies_of(config: dict[str, Any]) -> list[str]:
    return [entry["class_path"] for entry in config["model"]["init_args"]["strategies"]]


def printed(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*words])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_every_strategy_has_a_config() -> None:
    public = {
        f"lightning_equiv.{name}"
        for name, cls in vars(lightning_equiv).items()
        if isinstance(cls, type) and issubclass(cls, SymmetryCallback) and cls is not SymmetryCallback
    }
    assert {name for path in CONFIGS.values() for name in strategies_of(yaml.safe_load(path.read_text()))} == public


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # the test writes no log
@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_runs_and_its_checkpoint_loads(name: str, tmp_path: Path) -> None:
    sizes = [f"--data.init_args.{split}_size=16" for split in ("train", "val", "test")]
    short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=3", f"--trainer.default_root_dir={tmp_path}"]
    main(["fit", "--config", str(CONFIGS[name]), *QUIET, *short, *sizes])
    (path,) = tmp_path.rglob("*.ckpt")
    config = yaml.safe_load(CONFIGS[name].read_text())
    made: type[SymmetryModule] = getattr(lightning_equiv, config["model"]["class_path"].split(".")[1])
    again = made.load_from_checkpoint(path)  # network, symmetry and all, from nothing but the file
    assert type(again) is made
    assert [f"lightning_equiv.{type(s).__name__}" for s in again.strategies] == strategies_of(config)
    assert isinstance(again.symmetry, Symmetry)
    for key, value in torch.load(path, weights_only=True)["state_dict"].items():
        assert torch.equal(again.state_dict()[key], value)
    (saved,) = tmp_path.rglob("config.yaml")
    main(["test", "--config", str(saved), "--ckpt_path", str(path), "--trainer.logger=false"])


@pytest.mark.filterwarnings("default::jsonargparse._util.JsonargparseWarning")  # an error would hide what users see
@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_printed_is_what_was_read(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    once = printed("fit", "--config", str(CONFIGS[name]), "--print_config", capsys=capsys)
    path = tmp_path / "printed.yaml"
    path.write_text(once)
    assert printed("fit", "--config", str(path), "--print_config", capsys=capsys) == once
    whole, ours = yaml.safe_load(once), yaml.safe_load(CONFIGS[name].read_text())

    def holds(whole: Any, part: Any) -> bool:
        if isinstance(part, dict):
            return isinstance(whole, dict) and all(holds(whole.get(key), value) for key, value in part.items())
        if isinstance(part, list):
            return len(whole) == len(part) and all(map(holds, whole, part))
        return whole == part

    assert holds(whole, ours)


def test_help_is_the_docstrings(capsys: pytest.CaptureFixture[str]) -> None:
    words = " ".join(printed("fit", "--trainer.callbacks.help", "lightning_equiv.REMUL", capsys=capsys).split())
    assert "trains any network to be nearly equivariant by a second loss" in words
    assert "beta, in units of the task loss" in words
    assert "the group, or its name" in words
    words = " ".join(printed("fit", "--model.help", "lightning_equiv.ClassificationModule", capsys=capsys).split())
    assert "number of classes" in words
    assert "learning rate of all parameters" in words, "the arguments of the base are documented, too"
    words = " ".join(printed("fit", "--data.help", "lightning_equiv.datasets.GravityDataModule", capsys=capsys).split())
    assert "N, the star included. (type: int, default: 4)" in words
    assert "number of validation samples. (type: int, default: 5000)" in words, "described by the base"
    words = " ".join(printed("--help", capsys=capsys).split())
    assert "python -m lightning_equiv" in words
    assert "Runs the full optimization routine" in words
    assert "audit --config examples/cli/audit.yaml" in words


def test_strategies_and_the_monitor_around_any_module(tmp_path: Path) -> None:
    symmetry = {"group": "SO(3)", "inputs": ["Invariant()", "1o", "1o"], "outputs": "1o"}
    config = {
        "seed_everything": 0,
        "trainer": {
            "callbacks": [
                {"class_path": "lightning_equiv.REMUL", "init_args": {"symmetry": symmetry, "network": "net"}},
                {
                    "class_path": "lightning_equiv.EquivarianceMonitor",
                    "init_args": {"symmetry": symmetry, "network": "net"},
                },
            ],
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path)}},
            "max_epochs": 1,
            "log_every_n_steps": 1,
            "accelerator": "cpu",
        },
        "model": {"class_path": f"{__name__}.Users"},
        "data": {"class_path": "lightning_equiv.datasets.GravityDataModule", "init_args": {"val_size": 8}},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    main(["fit", "--config", str(path), *QUIET])
    (metrics,) = tmp_path.rglob("metrics.csv")
    header = metrics.read_text().splitlines()[0]
    assert "remul/equivariance_loss" in header
    assert "equivariance_error" in header


def test_as_a_program() -> None:
    command = [sys.executable, "-m", "lightning_equiv", "fit", "--model", "lightning_equiv.SymmetryModul"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=120)
    assert done.returncode == 2
    assert "SymmetryModul" in done.stderr
    assert "args parameter" not in done.stderr  # by which Lightning warns of words given twice


def test_a_setting_that_is_refused_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = "--model.init_args.symmetry.group=SO(9)"
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(CONFIGS["remul"]), wrong])
    assert stop.value.code == 2
    assert "no group is named 'SO(9)'" in capsys.readouterr().err


# ---- what can be written ---------------------------------------------------------------------------------------------
def parse(cls: type, *, key: str = "it", **config: Any) -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{key}", type=cls)
    text = yaml.safe_dump({key: config})
    return parser.instantiate_classes(parser.parse_string(text))[key]


@pytest.mark.filterwarnings("default::jsonargparse._util.JsonargparseWarning")  # an error would hide what users see
@pytest.mark.parametrize("target", [1, "y", ["labels", "y"], {"energy": "y", "forces": ["labels", 0]}], ids=str)
def test_a_configuration_that_was_saved_is_the_same(target: Any) -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--it", type=REMUL)
    symmetry = {"group": "SO(3)", "inputs": "1o", "outputs": {"energy": "0e", "forces": "1o"}}
    init_args = {"symmetry": symmetry, "target": target, "weight": {"energy": 1.0, "forces": 100.0}}
    given = {"it": {"class_path": "lightning_equiv.REMUL", "init_args": init_args}}
    saved = parser.dump(parser.parse_object(given))
    assert yaml.safe_load(saved)["it"]["init_args"]["target"] == target
    remul = parser.instantiate_classes(parser.parse_string(saved))["it"]
    assert remul.target == target
    assert remul.weight == init_args["weight"]


@pytest.mark.filterwarnings("default::jsonargparse._util.JsonargparseWarning")  # an error would hide what users see
@pytest.mark.parametrize(
    "layers", ["net.*", ["net.*", "torch.nn.Linear"], {"net.*": ["1o", "Image()"], "last": ["2x1o", "1o"]}], ids=str
)
def test_layers_that_were_saved_are_the_same(layers: Any) -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--layers", type=Layers)
    saved = parser.dump(parser.parse_object({"layers": copy.deepcopy(layers)}))
    assert yaml.safe_load(saved) == {"layers": layers}


@pytest.mark.parametrize("case", GROUPS.values(), ids=GROUPS)
def test_every_group(case: Any) -> None:
    by_name = parse(Symmetry, group=case.name, inputs="Invariant()", outputs="Invariant()")
    assert by_name.group == case.group
    if isinstance(case.group, lightning_equiv.Product):
        return
    arguments = {key: value for key, value in vars(case.group).items() if not key.startswith("_")}
    config = {"class_path": f"lightning_equiv.{type(case.group).__name__}", "init_args": arguments}
    assert parse(Symmetry, group=config, inputs="Invariant()", outputs="Invariant()").group == case.group


WRITTEN = {name: case for name, case in REPRESENTATIONS.items() if case.typed}


@pytest.mark.parametrize("name", WRITTEN)
def test_every_representation(name: str) -> None:
    case = WRITTEN[name]
    first = "Invariant()" if isinstance(case.representation, Ignored) else repr(case.representation)
    spec = {"x": [first, "Invariant()"]}
    symmetry = parse(Symmetry, group=str(case.group), inputs=spec, outputs=repr(case.representation))
    assert symmetry.outputs == case.representation
    assert symmetry.inputs["x"][0] == as_representation(first)
    written = SymmetryModule(torch.nn.Identity(), symmetry=symmetry).hparams["symmetry"]
    assert Symmetry(**yaml.safe_load(yaml.safe_dump(written))) == symmetry


@pytest.mark.parametrize(
    "name", [name for name in datasets.__all__ if name.endswith("DataModule") and "InMemory" not in name]
)
def test_every_data_module(name: str) -> None:
    from lightning import LightningDataModule

    required = {"problem": "translations kept"} if name == "DigitsDataModule" else {}
    config = {"class_path": f"lightning_equiv.datasets.{name}", "init_args": {"batch_size": 7, **required}}
    assert parse(LightningDataModule, **config).batch_size == 7


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("CircularConvolution", {"sizes": [12, 12], "kernel_size": 3}),
        ("GroupConvolution", {"group": "D4", "size": 8, "kernel_size": 3, "lift": True}),
        ("EquivariantLinear", {"irreps_in": "2x0e+1o", "irreps_out": "1o"}),
        ("EquivariantTensorProduct", {"irreps_in1": "1o", "irreps_in2": "1o", "irreps_out": "0e+1e"}),
    ],
)
def test_every_teacher(name: str, arguments: dict[str, Any]) -> None:
    teacher = parse(torch.nn.Module, class_path=f"lightning_equiv.{name}", init_args=arguments)
    typed = getattr(lightning_equiv, name)(**arguments)
    assert type(teacher) is type(typed)
    assert (teacher.num_weights, teacher.in_shape) == (typed.num_weights, typed.in_shape)


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (ConstraintRelaxation, {"symmetry": "SO(3)", "layers": "net.*"}),
        (ConstraintRelaxation, {"symmetry": "SO(3)", "layers": ["net.0", "net.2"], "schedule": "cosine", "horizon": 9}),
        (ConstraintRelaxation, {"symmetry": "C4", "layers": {"net.0": ["Image()", "Image() @ Regular(-3)"]}}),
        (REMUL, {"symmetry": {"group": "SE(3, scale=2)", "inputs": "Point()", "outputs": "1o"}, "target": ["a", 1]}),
        (REMUL, {"symmetry": {"group": "D4", "inputs": ["Image()"], "outputs": "0e"}, "target": 1, "loss": "l1"}),
    ],
)
def test_arguments_of_many_forms(cls: type, arguments: dict[str, Any]) -> None:
    made = parse(SymmetryCallback, class_path=f"lightning_equiv.{cls.__name__}", init_args=arguments)
    assert type(made) is cls
    for name in ("layers", "target", "horizon"):
        if name in arguments:
            value = getattr(made, name)
            plain = {key: list(pair) for key, pair in value.items()} if isinstance(value, dict) else value
            assert plain == arguments[name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group": "SO(9)", "inputs": "1o", "outputs": "1o"}, "no group is named 'SO\\(9\\)'"),
        ({"group": "SO(3)", "inputs": "vector", "outputs": "1o"}, "no representation is written 'vector'"),
        ({"group": "SO(3)", "inputs": "1o", "outputs": "1o", "batches": 1}, "batches"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        parse(Symmetry, **arguments)


def test_the_configuration_of_the_page_on_modules_trains_the_force_network_of_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch_geometric")
    blocks = lambda page, language: [b.code for b in blocks_of(pages()[page]) if b.language == language]  # noqa: E731
    (settings,) = [text for text in blocks("modules.md", "yaml") if "forces" in text]
    first, own_forward, _ = blocks("energies_and_forces.md", "python")
    (tmp_path / "mine.yaml").write_text(settings)
    data = "class Molecules(L.LightningDataModule):\n    def train_dataloader(self):\n        return loader\n"
    data += "    val_dataloader = test_dataloader = train_dataloader\n"
    code = [first.partition("symmetry = Symmetry")[0], own_forward.partition("model = ForceField")[0], data]
    (tmp_path / "forces.py").write_text("\n".join(code))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    quiet = [*QUIET, "--trainer.logger=false", "--trainer.enable_checkpointing=false"]
    quiet += ["--trainer.accelerator=cpu", "--trainer.max_epochs=1"]
    logged: dict[str, Any] = {}
    monkeypatch.setattr(L.LightningModule, "on_fit_end", lambda module: logged.update(module.trainer.callback_metrics))
    with global_seed():
        main(["fit", "--config", "mine.yaml", *quiet])
        main(["test", "--config", "mine.yaml", *quiet])
    names = {"remul/equivariance_loss/energy", "remul/equivariance_loss/forces", "equivariance_error/forces.1o"}
    assert names <= set(logged)
