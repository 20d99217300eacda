"""`loralight study`: each method at its best rate, over seeds; what is missing is done by the same command."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from loralight.commands.processes import Processes
from loralight.config.composition import settings_of
from loralight.config.own_data import with_own_data
from loralight.reports.runs import read_run

InProcess = Callable[..., int]

OPTIMA = {"lora": 1e-3 * 10, "bitfit": None, "full": 5e-5}
"""The rate at which each is best here; of one, no rate matters."""


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Runs are written down and not made: accuracy falls with the distance of the rate from the method's best."""
    ran: list[list[str]] = []

    def train(_: Processes, words: Sequence[str], log: Path, **__: object) -> str | None:
        ran.append([word for word in words if word.startswith(("adapter", "optimizer", "seed"))])
        folder = log.with_suffix("")
        settings = settings_of("train", with_own_data(list(words)), folder)
        name, rate = settings["names"]["adapter"], settings["optimizer"]["lr"]
        if name == "full" and rate > 1e-4:
            return "exit code 2: loralight: E-NAN: diverged"
        best = OPTIMA[name]
        distance = 0 if best is None else abs(math.log10(rate / best))
        accuracy = {"lora": 0.9, "bitfit": 0.8, "full": 0.92}[name] - 0.1 * distance + 0.002 * settings["seed"]
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(settings))
        summary = {
            "task": "text_classification",
            "adapter": name,
            "monitored": "validation/accuracy",
            "metrics": {"validation/accuracy": accuracy, "test/accuracy": accuracy - 0.01},
            "parameters": {"trainable": 10, "total": 1000},
            "bytes": {"adapter": 40, "model": 4000, "peak_memory": 10**6},
            "seed": settings["seed"],
            "steps": 5,
        }
        (folder / "summary.json").write_text(json.dumps(summary))
        return None

    monkeypatch.setattr(Processes, "train", train)
    return ran


METHODS = "methods=lora, bitfit optimizer.lr=3e-4, adapter=full"


def test_each_method_is_compared_at_its_best_rate_and_a_rerun_does_what_is_missing(
    trained: list[list[str]],
    in_process: InProcess,
    tiny_run: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["study", *tiny_run, METHODS, "seeds=3", "hydra.run.dir=all"]
    assert in_process(*line) == 2  # full fine-tuning diverges at a rate
    printed = capsys.readouterr()
    assert "methods: 3; seeds of each: 3; runs: 13 or more" in printed.out
    assert "adapter=full optimizer.lr=0.000158 seed=0 failed: exit code 2" in printed.out
    assert "E-STUDY: 1 of the runs failed" in printed.err
    report = json.loads((tmp_path / "all" / "study.json").read_text())
    rates = {(run["adapter"], read_run(Path(run["run"])).settings["optimizer.lr"]) for run in report["runs"]}
    assert rates == {("lora", 0.01), ("bitfit", 3e-4), ("full", 5e-5)}
    assert len(report["runs"]) == 9
    assert sum("seed=0" in words and "adapter=lora" in words for words in trained) == 5  # 1, 0.3, 3, 10 and 30 times
    assert sum("adapter=bitfit" in words for words in trained) == 3
    assert report["failed"].keys() == {"adapter=full optimizer.lr=0.000158 seed=0"}
    assert {file.suffix for file in (tmp_path / "all").glob("study.*")} >= {".csv", ".html", ".json", ".md"}

    trained.clear()
    assert in_process(*line) == 2
    assert trained == [["adapter=full", "optimizer.lr=0.000158", "seed=0"]]
    trained.clear()
    assert in_process(*line[:-2], "seeds=4", "hydra.run.dir=all") == 2
    assert sorted(words[-1] for words in trained) == ["seed=0", "seed=3", "seed=3", "seed=3"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seeds=0"], "E-STUDY: seeds=0: give a number of at least 1"),
        (["jobs=two"], "E-STUDY: jobs=two: give a number of at least 1"),
        (["optimizer.lr=1e-3"], "E-STUDY: optimizer.lr=1e-3: a study chooses rates and seeds"),
        (["seed=3"], "E-STUDY: seed=3: a study chooses rates and seeds"),
        (["methods=[]"], "E-STUDY: methods= has one twice, or none"),
        (["methods=lora,adapter=lora"], "E-STUDY: methods= has one twice"),
        (["methods=lora,lorra"], "lorra"),
        (["methods=full,lora adapter.rank=0"], "E-RANK"),
        (["data.train=missing.csv"], "E-DATA"),
    ],
)
def test_what_cannot_be_is_told_before_anything_runs(
    words: list[str],
    message: str,
    trained: list[list[str]],
    in_process: InProcess,
    tiny_run: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert in_process("study", *tiny_run, *words, "hydra.run.dir=all") == 2
    assert message in capsys.readouterr().err
    assert not trained


def test_a_study_of_other_settings_has_another_folder(
    trained: list[list[str]], in_process: InProcess, tiny_run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["study", *tiny_run, "methods=bitfit optimizer.lr=3e-4", "seeds=1", "hydra.run.dir=all"]
    assert in_process(*line) == 0
    assert in_process(*line, "data.batch_size=4") == 2
    assert "E-STUDY: " in (told := capsys.readouterr().err) and "has a study with other settings" in told


def test_a_study_that_is_stopped_ends_its_runs_and_goes_on(
    in_process: InProcess, tiny_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["methods=['bitfit optimizer.lr=1e-3']", "seeds=1", "hydra.run.dir=all", "trainer.max_epochs=1000"]
    line = [sys.executable, "-m", "loralight", "study", *tiny_run, *words]
    with subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as study:
        while not list(tmp_path.rglob("manifest.json")):
            assert study.poll() is None
            time.sleep(0.1)
        study.send_signal(signal.SIGTERM)
        _, told = study.communicate(timeout=120)
    assert study.returncode == 143, told
    assert "give the same command with hydra.run.dir=" in told
    run = next(folder for folder in (tmp_path / "all").iterdir() if folder.is_dir())
    begun = max(run.glob("checkpoints/*"), key=os.path.getmtime)
    assert begun.is_dir() and not (run / "summary.json").exists() and not (run / "failed.json").exists()
    # the run is left to end where it stands: the study alone is tried on it
    (run / "summary.json").write_text(json.dumps(SUMMARY))
    assert in_process(*line[3:]) == 0
    assert "validation/accuracy 0.5" in capsys.readouterr().out


SUMMARY: dict[str, Any] = {
    "task": "text_classification",
    "adapter": "bitfit",
    "monitored": "validation/accuracy",
    "metrics": {"validation/accuracy": 0.5},
    "parameters": {"trainable": 10, "total": 1000},
    "bytes": {"adapter": 40, "model": 4000, "peak_memory": 10**6},
    "seed": 0,
    "steps": 5,
}
