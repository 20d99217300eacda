"""Checkpoints that a thread writes: older ones stay until newer ones are whole, and a kill costs a step or two."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loralight.errors import InputError
from loralight.training import checkpoint
from loralight.training.background import BackgroundCheckpointIO
from loralight.training.checkpoint import STATE, newest

from ..warm import run_warm

KILLED = """
import os, signal, sys
from loralight.cli import run
from loralight.training.task import AdapterTask as T
step, seen = T.training_step, []
def killed(self, *given):
    seen.append(1)
    if len(seen) == 8: os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *given)
T.training_step = killed
run(sys.argv[1:])
"""


def content(value: float) -> dict[str, Any]:
    return {"state_dict": {"w": torch.full((3,), value)}, "history": [value]}


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Event:
    """Writing waits until it is set."""
    opened, write = Event(), checkpoint.write_folder

    def waits(*given: Any) -> None:
        assert opened.wait(60)
        write(*given)

    monkeypatch.setattr(checkpoint, "write_folder", waits)
    return opened


def test_what_is_saved_is_what_was_there_when_it_was_asked_for(gate: Event, tmp_path: Path) -> None:
    io, given = BackgroundCheckpointIO(), content(1.0)
    io.save_checkpoint(given, tmp_path / "one")
    given["state_dict"]["w"].fill_(7.0)
    given["history"].append(7.0)
    assert not (tmp_path / "one").exists()
    gate.set()
    found = io.load_checkpoint(tmp_path / "one")  # waits for it
    io.teardown()
    assert found["history"] == [1.0] and torch.equal(found["state_dict"]["w"], torch.ones(3))


def test_an_older_checkpoint_stays_until_the_newer_one_is_whole(gate: Event, tmp_path: Path) -> None:
    io = BackgroundCheckpointIO()
    gate.set()
    io.save_checkpoint(content(1.0), tmp_path / "one")
    io.settle()
    gate.clear()
    io.save_checkpoint(content(2.0), tmp_path / "two")
    io.remove_checkpoint(tmp_path / "one")
    assert [folder.name for folder in tmp_path.iterdir()] == ["one"]
    gate.set()
    io.teardown()
    assert [folder.name for folder in tmp_path.iterdir()] == ["two"]


def test_one_checkpoint_is_being_written_at_most(gate: Event, tmp_path: Path) -> None:
    io, saved, begun = BackgroundCheckpointIO(), list[str](), Event()

    def save() -> None:
        for name in ("one", "two", "three"):
            io.save_checkpoint(content(1.0), tmp_path / name)
            saved.append(name)
            begun.set()

    thread = Thread(target=save)
    thread.start()
    assert begun.wait(60)
    thread.join(0.2)  # in which it could save more
    assert saved == ["one"]
    gate.set()
    thread.join()
    io.teardown()
    assert {folder.name for folder in tmp_path.iterdir()} == {"one", "two", "three"}


def test_a_failure_to_write_is_raised_by_the_next_save_and_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    io = BackgroundCheckpointIO()
    io.save_checkpoint(content(1.0), tmp_path / "file" / "one")
    with pytest.raises((InputError, OSError)):
        io.save_checkpoint(content(1.0), tmp_path / "two")
    io.save_checkpoint(content(1.0), tmp_path / "file" / "one")
    with pytest.raises((InputError, OSError)):
        io.teardown()
    io.save_checkpoint(content(1.0), tmp_path / "two")  # a trainer may fit again
    io.teardown()
    assert (tmp_path / "two").is_dir()


def test_a_run_that_is_killed_goes_on_a_step_or_two_before_bit_for_bit(
    in_process: Callable[..., int], tiny_run: list[str], tmp_path: Path
) -> None:
    words = [word for word in tiny_run if "max_epochs" not in word]
    line = ["train", *words, "probe=false", "trainer.max_epochs=2", "callbacks.recent.every_n_train_steps=1"]
    line.append("adapter.dropout=0.1")
    killed = run_warm(["-c", KILLED, *line, "hydra.run.dir=run"], cwd=tmp_path, env={**os.environ})
    assert killed.returncode == -signal.SIGKILL
    saved = newest(tmp_path / "run")
    assert json.loads((saved / STATE).read_text())["global_step"] in (6, 7)  # it was killed in the eighth step
    assert in_process(*line, "hydra.run.dir=run") == 0
    assert in_process(*line, "hydra.run.dir=whole") == 0
    one, other = (load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("run", "whole"))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
