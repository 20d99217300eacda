"""A training that is told to stop: what it saves, what it says, and that it goes on as if nothing had been."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loralight.training.checkpoint import STATE, newest
from loralight.training.task import AdapterTask

InProcess = Callable[..., int]
Tell = Callable[[Any, str, int, int], None]
TWO_EPOCHS = ["trainer.max_epochs=2", "adapter.dropout=0.1", "scheduler=cosine"]  # of five batches


@pytest.fixture
def line(tiny_run: list[str]) -> list[str]:
    return ["train", *(word for word in tiny_run if "max_epochs" not in word), *TWO_EPOCHS]


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch) -> Tell:
    """Sends this process a signal in the so-manieth call of a function, once."""

    def patch(where: Any, name: str, number: int, call: int = 1) -> None:
        original, calls = getattr(where, name), iter(range(1, 10**9))

        def told(*given: Any, **named: Any) -> Any:
            if next(calls) == call:
                os.kill(os.getpid(), number)
            return original(*given, **named)

        monkeypatch.setattr(where, name, told)

    return patch


def said(printed: str) -> str:
    (found,) = [text for text in printed.splitlines() if text.startswith("loralight: stopped by ")]
    assert "Traceback" not in printed
    return found


def command(printed: str) -> list[str]:
    words = shlex.split(said(printed).partition("go on with: ")[2])
    assert words[0] == "loralight"
    return words[1:]


def step_of(run: Path) -> int:
    return int(json.loads((newest(run) / STATE).read_text())["global_step"])


def assert_same(run: Path, other: Path) -> None:
    one, two = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (run, other))
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


@pytest.mark.parametrize(
    ("number", "batch", "further", "step"),
    [
        (signal.SIGTERM, 8, [], 8),
        (signal.SIGUSR1, 2, ["data.num_workers=2"], 2),
        (signal.SIGINT, 2, ["trainer.accumulate_grad_batches=3"], 1),  # in the first of steps of 3 and 2 batches
    ],
    ids=["SIGTERM", "SIGUSR1 and workers", "SIGINT and accumulation"],
)
def test_a_run_stops_after_the_step_and_goes_on_by_the_command_it_tells(
    number: int,
    batch: int,
    further: list[str],
    step: int,
    in_process: InProcess,
    line: list[str],
    tell: Tell,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert in_process(*line, *further, "hydra.run.dir=whole") == 0
    tell(AdapterTask, "training_step", number, batch)
    assert in_process(*line, *further, "hydra.run.dir='a run'") == (130 if number == signal.SIGINT else 143)
    printed = capsys.readouterr().err
    assert signal.Signals(number).name in said(printed)
    assert "a run/checkpoints/last/" in said(printed) and step_of(tmp_path / "a run") == step
    assert f"ends after step {step}" in (tmp_path / "a run" / "train.log").read_text()
    assert in_process(*command(printed)) == 0
    assert_same(tmp_path / "a run", tmp_path / "whole")
    assert list((tmp_path / "a run" / "checkpoints" / "last").glob("*boundary")) == []  # later ones are as good


def test_a_validation_is_left_with_the_step_before_it_saved(
    in_process: InProcess, line: list[str], tell: Tell, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(AdapterTask, "validation_step", signal.SIGTERM)
    assert in_process(*line, "hydra.run.dir=run") == 143
    assert step_of(tmp_path / "run") == 5
    assert command(capsys.readouterr().err) == ["train", "resume=run"]
    assert "epoch 1/2" not in (tmp_path / "run" / "train.log").read_text()  # as it would say at its end


def test_a_validation_amid_a_step_is_left_after_the_step(
    in_process: InProcess, line: list[str], tell: Tell, tmp_path: Path
) -> None:
    tell(AdapterTask, "validation_step", signal.SIGTERM)
    amid = ["trainer.accumulate_grad_batches=3", "trainer.val_check_interval=4"]  # steps end with batches 3 and 5
    assert in_process(*line, *amid, "hydra.run.dir=run") == 143
    assert step_of(tmp_path / "run") == 2


def test_a_test_is_left_at_once_and_made_up_for(
    in_process: InProcess, line: list[str], tell: Tell, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(AdapterTask, "test_step", signal.SIGTERM)
    assert in_process(*line, "hydra.run.dir=run") == 143
    assert not (tmp_path / "run" / "summary.json").exists()
    assert in_process(*command(capsys.readouterr().err)) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 10


def test_before_the_first_step_there_is_nothing_to_save(
    in_process: InProcess, line: list[str], tell: Tell, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(sys.modules["loralight.commands.train"], "build_data", signal.SIGTERM)
    assert in_process(*line, "hydra.run.dir=run") == 143
    assert said(capsys.readouterr().err).endswith("SIGTERM; nothing is saved yet: the same command starts again")
    assert in_process(*line, "hydra.run.dir=run", "trainer.max_steps=1") == 0


def test_a_run_that_saves_its_adapter_is_done_first(
    in_process: InProcess, line: list[str], tell: Tell, tmp_path: Path
) -> None:
    tell(sys.modules["loralight.commands.train"], "save_adapter", signal.SIGTERM)
    assert in_process(*line, "hydra.run.dir=run") == 0
    assert (tmp_path / "run" / "summary.json").is_file()


def test_the_same_command_goes_on_in_its_folder_until_the_run_is_done(
    in_process: InProcess, line: list[str], tell: Tell, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process(*line, "hydra.run.dir=whole") == 0
    tell(AdapterTask, "training_step", signal.SIGTERM, 4)
    assert in_process(*line, "hydra.run.dir=run") == 143
    for other in ("optimizer.lr=1", "trainer.accumulate_grad_batches=2"):
        assert in_process(*line, "hydra.run.dir=run", other) == 2
        assert "E-OUTPUT" in capsys.readouterr().err
    assert in_process(*line, "hydra.run.dir=run") == 0
    printed = capsys.readouterr().err
    assert "holds an unfinished run of these settings" in printed and "going on from" in printed
    assert_same(tmp_path / "run", tmp_path / "whole")
    assert in_process(*line, "hydra.run.dir=run") == 2
    assert "E-OUTPUT" in capsys.readouterr().err


def test_a_sweep_ends_with_the_job_that_was_told(
    in_process: InProcess, line: list[str], tell: Tell, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(AdapterTask, "training_step", signal.SIGTERM, 3)
    assert in_process("sweep", *line[1:], "adapter.rank=2,4", "hydra.sweep.dir=all") == 143
    printed = capsys.readouterr().err
    assert command(printed.partition("; the sweep")[0]) == ["train", "resume=all/adapter.rank-2"]
    assert [folder.name for folder in (tmp_path / "all").iterdir() if folder.is_dir()] == ["adapter.rank-2"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no groups of processes")
def test_a_signal_to_the_whole_group_of_a_run_stops_it_in_order(line: list[str], tmp_path: Path) -> None:
    endless = [*line, "trainer.max_epochs=100000", "data.num_workers=2", "hydra.run.dir=run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "loralight", *endless],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    log = tmp_path / "run" / "train.log"
    while process.poll() is None and not (log.exists() and "epoch 1/" in log.read_text()):
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    printed = process.communicate()[1]
    assert process.returncode == 143
    assert command(printed) == ["train", "resume=run"]
