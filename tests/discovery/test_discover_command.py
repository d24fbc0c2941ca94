"""`python -m lightning_equiv discover` from a configuration file."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_equiv.__main__ import main

CONFIG = Path(__file__).parents[2] / "examples" / "cli" / "discover.yaml"
SMALL = ["--data.init_args.train_size=200", "--data.init_args.steps=100", "--data.init_args.field=20", "--draws=399"]


def test_the_example_says_which_axis_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["discover", "--config", str(CONFIG), *SMALL])
    said = capsys.readouterr().out
    assert "SO(3) is broken in the labels, SO(2) about z is kept." in " ".join(said.split())
    assert "SO(3) is broken in the labels" in (tmp_path / "discover.html").read_text()
    assert (tmp_path / "discover.json").is_file()


def test_other_groups_in_the_place_of_the_subgroups(tmp_path, capsys):
    words = ["--candidates=[SO(2)]", f"--save={tmp_path}/report.md"]
    main(["discover", "--config", str(CONFIG), *SMALL, *words])
    assert "SO(2)" in (tmp_path / "report.md").read_text()
    assert "about x" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--save=report.pdf"], "files that end in one of"),
        (["--labels=target"], "labels='target' is not in the batch"),
        (["--data.init_args.train_size=10"], "at least 20 independent inputs"),
    ],
)
def test_what_is_wrong_is_said(words, message, capsys):
    with pytest.raises(SystemExit):
        main(["discover", "--config", str(CONFIG), "--data.init_args.steps=2", *words])
    assert message in capsys.readouterr().err
