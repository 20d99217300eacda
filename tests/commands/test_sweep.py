"""`loralight sweep`: what its folder says, and that it does what is missing."""

import csv
import json
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loralight.commands import train
from loralight.commands.sweep import folder_name
from loralight.training.task import AdapterTask

from ..warm import run_warm

InProcess = Callable[..., int]
Refused = Callable[..., str]


@pytest.fixture
def line(tiny_run: list[str]) -> list[str]:
    """A sweep in the folder ``all``."""
    return ["sweep", *tiny_run, "hydra.sweep.dir=all"]


def report(folder: Path) -> Any:
    return json.loads((folder / "sweep.json").read_text(encoding="utf-8"))


def jobs(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink()}


def test_a_sweep_leaves_a_table_of_its_runs_and_points_to_the_best(
    in_process: InProcess, line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process(*line, "adapter.rank=2,4", "seeds=2") == 0
    printed = capsys.readouterr().out
    folder = tmp_path / "all"
    assert jobs(folder) == {f"adapter.rank-{rank}_seed-{seed}" for rank in (2, 4) for seed in (0, 1)}
    assert {file.name for file in folder.glob("sweep.*")} == {"sweep.csv", "sweep.html", "sweep.json", "sweep.md"}
    said = report(folder)
    scores = {run["run"]: run["test/accuracy"] for run in said["runs"]}
    for run, score in scores.items():
        summary = json.loads((tmp_path / run / "summary.json").read_text())
        assert summary["metrics"]["test/accuracy"] == score
    means = {rank: sum(scores[f"all/adapter.rank-{rank}_seed-{seed}"] for seed in (0, 1)) / 2 for rank in (2, 4)}
    rank = max(means, key=lambda one: means[one])
    assert (folder / "best").resolve().name == f"adapter.rank-{rank}_seed-0"
    assert f"{means[2]:.4f} ±" in printed and f"{means[4]:.4f} ±" in printed
    with (folder / "sweep.csv").open(encoding="utf-8") as file:
        assert [row["settings"] for row in csv.DictReader(file)] == ["adapter.rank=2"] * 2 + ["adapter.rank=4"] * 2
    assert "adapter.rank=2" in (folder / "sweep.md").read_text() and "<svg" in (folder / "sweep.html").read_text()


@pytest.mark.parametrize("limit", [[], ["data.limit_eval_rows=5", "data.validation_fraction=0.3"]])
def test_seeds_of_a_single_file_are_measured_on_the_same_held_out_rows(
    limit: list[str], in_process: InProcess, line: list[str], texts: Path, tmp_path: Path
) -> None:
    words = [word for word in line if not word.startswith("data.path=")]
    assert in_process(*words, f"data.path='{texts / 'train.csv'}'", "seeds=2", *limit) == 0
    assert [run["seed"] for run in report(tmp_path / "all")["runs"]] == [0, 1]


def test_the_same_sweep_again_does_what_is_missing_and_more_values_beside(
    refused: Refused, line: list[str], tmp_path: Path
) -> None:
    told = refused(*line, "adapter.rank=2,4096")  # no layer of the tiny BERT is that large
    assert "adapter.rank-4096 failed: E-RANK" in told and "E-SWEEP: 1 job has failed" in told
    assert report(tmp_path / "all")["failed"].keys() == {"adapter.rank-4096"}
    assert len(report(tmp_path / "all")["runs"]) == 1
    before = (tmp_path / "all" / "adapter.rank-2" / "summary.json").stat().st_mtime_ns
    assert "adapter.rank-2 is done" in refused(*line, "adapter.rank=1,2"), "and what failed is still told"
    assert (tmp_path / "all" / "adapter.rank-2" / "summary.json").stat().st_mtime_ns == before
    assert [run["settings"] for run in report(tmp_path / "all")["runs"]] == ["adapter.rank=1", "adapter.rank=2"]


def test_a_sweep_in_which_more_settings_vary_than_before_does_only_what_is_missing(
    in_process: InProcess, line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process(*line, "adapter.rank=2,3") == 0
    assert in_process(*line, "adapter.rank=2,3", "seeds=2") == 0
    assert jobs(tmp_path / "all") == {
        "adapter.rank-2",
        "adapter.rank-3",
        "adapter.rank-2_seed-1",
        "adapter.rank-3_seed-1",
    }
    capsys.readouterr()
    assert in_process(*line, "adapter.rank=3", "seeds=2") == 0
    assert capsys.readouterr().err.count("is done") == 2
    assert sorted((run["settings"], run["seed"]) for run in report(tmp_path / "all")["runs"]) == [
        ("adapter.rank=2", 0),
        ("adapter.rank=2", 1),
        ("adapter.rank=3", 0),
        ("adapter.rank=3", 1),
    ]


def test_a_job_of_other_settings_is_not_taken_for_done(
    in_process: InProcess, refused: Refused, line: list[str], tmp_path: Path
) -> None:
    line.append("adapter.rank=2,3")
    assert in_process(*line) == 0
    assert "adapter.rank-2 failed: E-OUTPUT" in refused(*line, "optimizer.lr=1e-4")
    assert len(report(tmp_path / "all")["runs"]) == 2  # the first ones are untouched


def test_a_sweep_that_was_stopped_says_how_it_goes_on_and_ends_as_if_it_had_not_been(
    in_process: InProcess,
    tiny_run: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = [*tiny_run, "adapter.rank=2,4"]
    assert in_process("sweep", *line, "hydra.sweep.dir=whole") == 0
    step, steps = AdapterTask.training_step, []

    def told(self: AdapterTask, *arguments: Any) -> Any:
        steps.append(1)
        if len(steps) == 7:  # of five: in the second job
            signal.raise_signal(signal.SIGTERM)
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(AdapterTask, "training_step", told)
        assert in_process("sweep", *line, "hydra.sweep.dir=cut") == 143
    command = capsys.readouterr().err.partition("the sweep goes on with: ")[2].strip()
    assert shlex.split(command)[:2] == ["loralight", "sweep"]
    assert in_process(*shlex.split(command)[1:]) == 0
    for name in jobs(tmp_path / "whole"):
        one, other = (
            (tmp_path / folder / name / "adapter" / "adapter_model.safetensors").read_bytes()
            for folder in ("whole", "cut")
        )
        assert one == other
    assert jobs(tmp_path / "cut") == jobs(tmp_path / "whole")


@pytest.mark.parametrize(
    ("dirname", "name"),
    [
        ("adapter.rank-4_optimizer.lr-1e-05", "adapter.rank-4_optimizer.lr-1e-05"),
        ("", "defaults"),
        ("model.checkpoint-../../etc", "model.checkpoint-......etc-"),
    ],
)
def test_a_job_s_folder_has_a_plain_name(dirname: str, name: str) -> None:
    made = folder_name(dirname)
    assert made.startswith(name) and "/" not in made
    assert len({folder_name(f"a-{'x' * 300}{n}") for n in range(3)}) == 3
    assert len(folder_name(f"a-{'x' * 300}")) < 120


@pytest.mark.parametrize("word", ["seeds=0", "seeds=abc", "seeds=1,2"])
def test_seeds_are_a_number(refused: Refused, word: str) -> None:
    assert "E-SEEDS" in refused("sweep", word)


def test_a_sweep_that_is_killed_goes_on(
    loralight: Callable[..., subprocess.CompletedProcess[str]], line: list[str], tmp_path: Path
) -> None:
    line.append("adapter.rank=2,4")
    code = (
        "import os, signal, sys; from loralight.training.task import AdapterTask as T; from loralight.cli import run\n"
        "step, seen = T.training_step, []\n"
        "def killed(self, *given):\n"
        "    seen.append(1)\n"
        "    if len(seen) == 8: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, *given)\n"
        f"T.training_step = killed; run({line!r})"
    )
    assert run_warm(["-c", code], cwd=tmp_path).returncode == -signal.SIGKILL
    assert not (tmp_path / "all" / "sweep.json").exists()
    assert loralight(*line).returncode == 0
    assert len(report(tmp_path / "all")["runs"]) == 2


@pytest.mark.slow
def test_of_twenty_jobs_three_fail_while_they_train_and_the_same_sweep_again_does_these_three(
    in_process: InProcess, refused: Refused, line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line += ["adapter.rank=2,4", "seeds=10", "probe=false", "page=false"]
    broken, main, step = {(2, 3), (4, 0), (4, 9)}, train.main, AdapterTask.training_step
    ran: list[tuple[int, int]] = []

    def told(config: Any) -> Any:
        ran.append((config.adapter.rank, config.seed))
        return main(config)

    def failing(self: AdapterTask, *given: Any) -> Any:
        if ran[-1] in broken:
            raise RuntimeError("injected")
        return step(self, *given)

    monkeypatch.setattr(train, "main", told)
    with monkeypatch.context() as patch:
        patch.setattr(AdapterTask, "training_step", failing)
        assert "E-SWEEP: 3 jobs have failed" in refused(*line)
    said = report(tmp_path / "all")
    assert len(ran) == 20 and len(said["runs"]) == 17
    assert said["failed"].keys() == {f"adapter.rank-{rank}_seed-{seed}" for rank, seed in broken}
    assert all("injected" in error for error in said["failed"].values())
    files = sorted(tmp_path.glob("all/*/summary.json"))
    before, ran[:] = [file.stat().st_mtime_ns for file in files], []
    steps: list[int] = []

    def counted(self: AdapterTask, *given: Any) -> Any:
        steps.append(1)
        return step(self, *given)

    monkeypatch.setattr(AdapterTask, "training_step", counted)
    assert in_process(*line) == 0
    assert len(steps) == 3 * 5, "three runs of 40 rows in batches of 8"
    assert [file.stat().st_mtime_ns for file in files] == before
    assert len(report(tmp_path / "all")["runs"]) == 20 and not report(tmp_path / "all")["failed"]


SIDE_BY_SIDE = {
    "joblib": ["launcher=joblib", "launcher.n_jobs=2"],
    "submitit": ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"],
    "ray": ["launcher=ray", "+launcher.ray.init.num_cpus=2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", SIDE_BY_SIDE)
def test_jobs_run_side_by_side_by_a_launcher_of_hydra_and_are_reported(
    launcher: str, cold_loralight: Callable[..., subprocess.CompletedProcess[str]], line: list[str], tmp_path: Path
) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher}_launcher")
    done = cold_loralight(*line, "probe=false", "adapter.rank=2,4096", *SIDE_BY_SIDE[launcher])
    assert done.returncode == 2, done.stderr
    assert "E-SWEEP: 1 job has failed" in done.stderr
    assert [Path(run["run"]).name for run in report(tmp_path / "all")["runs"]] == ["adapter.rank-2"]
    assert "E-RANK" in report(tmp_path / "all")["failed"]["adapter.rank-4096"]
    locks = [json.loads(lock.read_text()) for lock in tmp_path.glob("all/*/.hydra/lock.json")]
    assert len({lock["process"] for lock in locks}) == 2
