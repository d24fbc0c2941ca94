"""`python -m lightning_equiv audit`: what it writes is what `audit` returns, and its mistakes are one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from torch import nn

from lightning_equiv import EquivarianceReport, RegressionModule, Symmetry, audit
from lightning_equiv.__main__ import main
from lightning_equiv.datasets import GravityDataModule
from lightning_equiv.networks.transformer import ParticleTransformer

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "examples/cli/audit.yaml"
SYMMETRY = {"group": "SO(3)", "inputs": {"masses": "Invariant()", "positions": "1o", "velocities": "1o"}}
SYMMETRY["outputs"] = "1o"
FAST = ["--progress=false", "--draws=4", "--num_inputs=4", "--data.init_args.test_size=4"]
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")


@pytest.fixture(autouse=True)
def _no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """What pytest was called with is not for the command line."""
    monkeypatch.setattr(sys, "argv", ["lightning_equiv"])


class Turned(nn.Module):
    """Scales the rows of x, and turns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


class OnGraphs(nn.Module):
    """Moves the nodes away from the mean of each graph, and along z."""

    symmetry = Symmetry("SO(3)", inputs={"pos": "1o"}, outputs="1o")

    def forward(self, data: Any) -> torch.Tensor:
        rows = data.pos[data.batch == 0].mean(0, keepdim=True)
        return data.pos + rows.new_tensor([0.0, 0.0, 1.0])


class Sized(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3, width)


def transformer() -> ParticleTransformer:
    return ParticleTransformer(num_blocks=2, num_channels=32, num_heads=4)


def written(config: dict[str, Any], folder: Path, *words: str) -> dict[str, Any]:
    """The figures that the command writes for a configuration."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"progress": False, "draws": 4, **config, "save": [str(folder / "r.json")]}))
    main(["audit", "--config", str(path), *words])
    return json.loads((folder / "r.json").read_text())


def refused(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the parser says of a mistake."""
    with pytest.raises(SystemExit) as stop:
        main(["audit", *words])
    assert stop.value.code == 2
    *_, last = capsys.readouterr().err.partition("error: ")
    return last.strip()


def same(written: dict[str, Any], report: EquivarianceReport) -> None:
    """All figures are equal but how long they took."""
    returned = json.loads(json.dumps(report.as_dict()))
    for figures in (written, returned):
        del figures["how"]["seconds"], figures["how"]["seconds_by_section"]
    assert written == returned


# ---- what is measured ------------------------------------------------------------------------------------------------
def test_the_config_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["audit", "--config", str(CONFIG), "--progress=false"])
    out = capsys.readouterr().out
    assert "How equivariant is ParticleTransformer?" in out
    assert "written: report.html" in out
    assert "written: report.json" in out
    assert "</html>" in Path("report.html").read_text()
    L.seed_everything(0, verbose=False)
    model = transformer()
    data = GravityDataModule(test_size=64, batch_size=32)
    report = audit(model, data, Symmetry(**SYMMETRY), labels="targets", draws=32, num_inputs=64, progress=False)
    same(json.loads(Path("report.json").read_text()), report)


def test_what_is_printed_is_what_was_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def printed(path: Path) -> str:
        with pytest.raises(SystemExit) as stop:
            main(["audit", "--config", str(path), "--print_config"])
        assert stop.value.code == 0
        return capsys.readouterr().out

    once = printed(CONFIG)
    (tmp_path / "printed.yaml").write_text(once)
    assert printed(tmp_path / "printed.yaml") == once
    whole = yaml.safe_load(once)
    for key, value in yaml.safe_load(CONFIG.read_text()).items():
        assert whole[key] == value or value.items() <= whole[key].items() or key == "data"
    assert whole["budget"] is None
    assert whole["trusted"] is False


def test_help_is_short_and_names_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["audit", "--help"])
    out = capsys.readouterr().out
    assert "calls in `validation_step` are measured" in " ".join(out.split())
    assert len(out.splitlines()) < 150, "it does not list all networks of torch"


def test_a_checkpoint_of_fit(tmp_path: Path) -> None:
    sizes = [f"--data.init_args.{split}_size=8" for split in ("train", "val", "test")]
    words = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", f"--trainer.default_root_dir={tmp_path}"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    main(["fit", "--config", str(ROOT / "examples/cli/remul.yaml"), *words, *sizes, *quiet])
    (path,) = tmp_path.rglob("*.ckpt")
    data = {"class_path": "lightning_equiv.datasets.GravityDataModule", "init_args": {"test_size": 4}}
    # by its class alone: network, symmetry and weights are in the file
    whole = written({"model": "lightning_equiv.RegressionModule", "checkpoint": str(path), "data": data}, tmp_path)
    module = RegressionModule.load_from_checkpoint(path)
    report = audit(module, GravityDataModule(test_size=4), module.symmetry, network="net", draws=4, progress=False)
    same(whole, report)
    # into the bare network, whose keys stand under "net."
    bare = ["--config", str(CONFIG), *FAST, "--checkpoint", str(path), "--save", str(tmp_path / "bare.json")]
    main(["audit", *bare])
    assert EquivarianceReport.load(tmp_path / "bare.json").error == EquivarianceReport(whole).error


def test_checkpoints_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batch = torch.randn(8, 3)
    torch.save(batch, tmp_path / "batch.pt")
    config = {"model": f"{__name__}.Turned", "symmetry": {"group": "SO(3)", "inputs": "1o", "outputs": "1o"}}
    config |= {"batch": str(tmp_path / "batch.pt"), "compare": []}
    for folder, scale in (("a", [1.0, 1.0, 1.0]), ("b", [1.0, 1.0, 4.0])):
        (tmp_path / folder).mkdir()
        torch.save({"scale": torch.tensor(scale)}, tmp_path / folder / "last.pt")
        config["compare"].append(str(tmp_path / folder / "last.pt"))
    first, second, third = written(config, tmp_path)["reports"]
    for figures, scale in ((first, [1.0, 2.0, 3.0]), (second, [1.0, 1.0, 1.0]), (third, [1.0, 1.0, 4.0])):
        model = Turned()
        model.scale.data = torch.tensor(scale)
        report = audit(model, batch, Symmetry("SO(3)", "1o", "1o"), draws=4, progress=False)
        same(figures, report)
    assert "as made, a/last, b/last" in " ".join(capsys.readouterr().out.split())
    twice = {**config, "checkpoint": config["compare"][0]}
    (tmp_path / "twice.yaml").write_text(yaml.safe_dump(twice))
    assert "each once" in refused("--config", str(tmp_path / "twice.yaml"), capsys=capsys)


# ---- saved batches ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_a_saved_batch(kind: str, tmp_path: Path) -> None:
    data = GravityDataModule(test_size=4)
    data.setup("test")
    (batch, *_) = data.test_dataloader()[0]
    names = ["masses", "positions", "velocities", "targets"]
    symmetry, labels = dict(SYMMETRY), "targets"
    if kind == "tuple":
        batch, labels = tuple(batch[name] for name in names), 3
        symmetry["inputs"] = ["Invariant()", "1o", "1o"]
    torch.save(batch, tmp_path / "batch.pt")
    model = yaml.safe_load(CONFIG.read_text())["model"]
    config = {"model": model, "batch": str(tmp_path / "batch.pt"), "symmetry": symmetry, "labels": labels}
    figures = written(config, tmp_path)
    L.seed_everything(0, verbose=False)
    inputs = tuple(symmetry["inputs"]) if kind == "tuple" else symmetry["inputs"]
    mirrored = Symmetry("SO(3)", inputs, "1o")
    report = audit(transformer(), batch, mirrored, labels=labels, draws=4, progress=False)
    same(figures, report)


@pytest.mark.parametrize("batched", [True, False])
def test_a_saved_graph(batched: bool, tmp_path: Path) -> None:
    pyg = pytest.importorskip("torch_geometric.data")
    graphs = [pyg.Data(pos=torch.randn(n, 3)) for n in (3, 5)]
    batch = pyg.Batch.from_data_list(graphs)
    torch.save(batch if batched else [pyg.Batch.from_data_list([graph]) for graph in graphs], tmp_path / "batch.pt")
    allowed = set(torch.serialization.get_safe_globals())
    figures = written({"model": f"{__name__}.OnGraphs", "batch": str(tmp_path / "batch.pt")}, tmp_path)
    assert set(torch.serialization.get_safe_globals()) == allowed, "no other file is read less safely afterwards"
    assert figures["how"]["inputs"] == 2
    if batched:
        report = audit(OnGraphs(), batch, OnGraphs.symmetry, draws=4, progress=False)
        same(figures, report)


def test_a_file_that_would_run_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "batch.pt"
    torch.save({"x": torch.randn(4, 3), "network": Turned()}, path)
    words = ["--model", f"{__name__}.Turned", "--batch", str(path), "--symmetry.group=SO(3)", "--symmetry.outputs=1o"]
    words += ["--symmetry.inputs", "{x: 1o}", "--progress=false", "--draws=4"]
    line = refused(*words, capsys=capsys)
    assert f"{__name__}.Turned" in line
    assert "trusted: true" in line
    main(["audit", *words, "--trusted=true"])
    assert "How equivariant is Turned?" in capsys.readouterr().out


# ---- mistakes --------------------------------------------------------------------------------------------------------
def test_weights_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def checkpoint(state: Any) -> str:
        torch.save(state, tmp_path / "x.pt")
        return refused("--config", str(CONFIG), *FAST, "--checkpoint", str(tmp_path / "x.pt"), capsys=capsys)

    state = {f"net.{key}": value for key, value in transformer().state_dict().items()}
    wrong = dict(state)
    wrong["net.embedding.weight"] = wrong.pop("net.embed.weight")
    line = checkpoint({"state_dict": wrong})
    assert "lacks 'embed.weight' and has besides 'embedding.weight' (under 'net.')" in line
    assert "size mismatch for embed.weight" in checkpoint({**state, "net.embed.weight": torch.randn(2, 2)})
    twice = {**state, **{key.replace("net.", "ema."): value for key, value in state.items()}}
    assert "more than once, under 'ema.', 'net.'" in checkpoint(twice)
    assert "expected a Lightning checkpoint" in checkpoint({"epoch": 3})
    (tmp_path / "x.pt").write_text("hello")
    line = refused("--config", str(CONFIG), *FAST, "--checkpoint", str(tmp_path / "x.pt"), capsys=capsys)
    assert "torch.load cannot read" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint=nowhere/last.ckpt"], "checkpoint: nowhere/last.ckpt is no file; there is no folder nowhere"),
        (["--compare=README.rst"], "compare: README.rst is no file; . has "),
        (["--symmetry=null"], "ParticleTransformer has none of its own: write symmetry: {group: SO(3)"),
        (["--save=report.pdf"], "expected a path that ends in one of .html, .json, .md, .txt, got 'report.pdf'"),
        (["--data=null"], "expected `data` or `batch`, got neither: write data: {class_path: ..."),
        (["--batch=b.pt"], "expected `data` or `batch`, got both"),
        (["--device=tpu:9x"], "device='tpu:9x' is not there"),
        (["--draws=1"], "draws"),
        (["--labels=energies"], "labels='energies' is not in the batch"),
        (['--labels={"energy": "energies"}'], "labels='energies' is not in the batch"),
        (["--symmetry.group=SO(9)"], "no group is named 'SO(9)'"),
        (["--network=net"], "network='net' names no sub-module"),
        (["--model", "tests.audit.test_command.Sized"], "is not made without arguments"),
    ],
)
def test_a_mistake_ends_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused("--config", str(CONFIG), *FAST, *words, capsys=capsys)
    assert message in said
    assert said.count("\n") == 0 or "SO(9)" in message, "jsonargparse itself says more"


def test_a_class_alone_whose_checkpoint_lacks_its_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.0"}, tmp_path / "x.ckpt")
    words = ["--config", str(CONFIG), *FAST, "--model=lightning_equiv.RegressionModule"]
    line = refused(*words, "--checkpoint", str(tmp_path / "x.ckpt"), capsys=capsys)
    assert "RegressionModule.load_from_checkpoint" in line
    assert "write model: {class_path: ..., init_args: {...}}" in line
