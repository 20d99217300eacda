"""The commands that a run prints at its end: pasted, they do what they say on the user's own data."""

import io
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from loralight.commands import new_task
from loralight.config.local_packages import VARIABLE

InProcess = Callable[..., int]


def printed(text: str) -> dict[str, list[str]]:
    """The words of each command below ``next:``, by its verb."""
    lines = re.findall(r"^  (loralight .*)$", text.partition("\nnext:")[2], re.MULTILINE)
    return {words[1]: words[1:] for words in map(shlex.split, lines)}


def config_of(folder: Path) -> Any:
    return yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())


@pytest.fixture
def reviews(texts: Path, tmp_path: Path) -> Path:
    """A file of the user's, with names of its own."""
    file = tmp_path / "my, 'own' reviews.csv"
    file.write_text((texts / "train.csv").read_text().replace("text,label", "review,how many stars"))
    return file


def test_what_is_printed_can_be_pasted(
    in_process: InProcess,
    reviews: Path,
    tiny_bert: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "confs" / "experiment").mkdir(parents=True)
    (tmp_path / "confs" / "experiment" / "mine.yaml").write_text("# @package _global_\nadapter: {rank: 3}\n")
    quoted_file = json.dumps(reviews.name)
    line = ["data=text_classification", f"data.train={quoted_file}", "data.columns.text=review", "trainer=cpu"]
    line += ["data.columns.label='how many stars'", f"model.checkpoint='{tiny_bert}'", "model.max_length=16"]
    line += ["adapter.rank_pattern={*.query:4}", "optimizer.lr=0.02", "experiment=mine", "trainer.max_epochs=1"]
    assert in_process("train", "--config-dir", "confs", *line, 'hydra.run.dir="it\'s a run"') == 0
    commands = printed(capsys.readouterr().out)
    assert commands.keys() == {"predict", "evaluate", "sweep"}
    run = config_of(tmp_path / "it's a run")

    monkeypatch.setattr("sys.stdin", io.StringIO("a fine film\n"))
    assert in_process(*commands["predict"]) == 0
    assert json.loads(capsys.readouterr().out)["label"] in ("good", "bad")
    assert in_process(*commands["evaluate"]) == 0
    assert "validation/accuracy" in capsys.readouterr().out
    assert in_process(*commands["sweep"]) == 0
    (sweep,) = tmp_path.glob("runs/text_classification/sweep_*")
    jobs = [config_of(sweep / f"optimizer.lr-{rate}") for rate in ("0.01", "0.02", "0.04")]
    assert [job["optimizer"]["lr"] for job in jobs] == [0.01, 0.02, 0.04]
    for part in ("task", "data", "adapter", "trainer", "names"):
        assert jobs[0][part] == jobs[2][part] == run[part]


def test_what_is_printed_names_the_folder_of_a_plugin(
    in_process: InProcess,
    tiny_bert: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    new_task.write("made_pairs", tmp_path / "my plugins")
    line = ["task=made_pairs", f"model.checkpoint='{tiny_bert}'", "trainer=cpu", "debug=fast", "hydra.run.dir=run"]
    assert in_process("train", "--plugin-dir", "my plugins/made_pairs", *line) == 0
    commands = printed(capsys.readouterr().out)
    for verb in ("evaluate", "sweep"):
        monkeypatch.setenv(VARIABLE, "")
        assert in_process(*commands[verb]) == 0
    assert len(list(tmp_path.glob("runs/made_pairs/sweep_*/optimizer.lr-*/summary.json"))) == 3


def test_a_run_that_was_gone_on_with_prints_what_it_was_made_of(
    in_process: InProcess, tiny_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process("train", *tiny_run, "hydra.run.dir=run", "adapter.rank=3") == 0
    capsys.readouterr()
    assert in_process("train", "resume=run", "trainer.max_epochs=2") == 0
    words = printed(capsys.readouterr().out)["sweep"]
    assert (
        in_process("train", *words[1:-1], "--cfg", "job", "--resolve", "hydra.run.dir=run", "~callbacks", "~logger")
        == 0
    )
    told = yaml.safe_load(capsys.readouterr().out)
    made = config_of(tmp_path / "run")
    for part in ("task", "data", "adapter", "optimizer", "trainer"):
        assert told[part] == made[part]
