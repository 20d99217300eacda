"""The lock on a run's folder: other processes are kept out while its process lives, and no longer."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from loralight.artifacts.lock import hold, release
from loralight.artifacts.run_folder import take
from loralight.errors import InputError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no such locks")

HOLD = """
import os, signal, sys
from pathlib import Path
from loralight.artifacts.lock import hold
hold(Path(sys.argv[1]))
reader = os.fork()  # as a process that reads data is begun
if reader:
    print(reader, flush=True)
while True:
    signal.pause()
"""
CONFIG = {"seed": 0, "resume": None, **{part: {} for part in ("task", "adapter", "optimizer", "data")}}


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Begins a process that holds the run in ``tmp_path``, and one that it has begun itself."""
    with ExitStack() as begun:

        def begin() -> subprocess.Popen[str]:
            line = [sys.executable, "-c", HOLD, str(tmp_path)]
            process = begun.enter_context(subprocess.Popen(line, stdout=subprocess.PIPE, text=True))
            assert process.stdout is not None
            begun.callback(os.kill, int(process.stdout.readline()), signal.SIGKILL)
            begun.callback(process.kill)
            return process

        yield begin
    release(tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("resume", [None, "here"])
@pytest.mark.parametrize("file", ["train.log", "checkpoints/last/x/manifest.json"])
def test_a_live_run_is_left_alone(
    live: Callable[[], subprocess.Popen[str]], resume: str | None, file: str, tmp_path: Path
) -> None:
    take(tmp_path, CONFIG, [])
    release(tmp_path)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("of the live run")
    (tmp_path / "metrics.csv").write_text("of the live run")
    process = live()
    before = contents(tmp_path)
    with pytest.raises(InputError, match=f"E-RUNNING: .*process {process.pid} on {socket.gethostname()}"):
        take(tmp_path, CONFIG | {"resume": resume}, ["seed=1"])
    assert contents(tmp_path) == before


def test_a_killed_run_is_gone_on_with_at_once_though_a_process_of_its_lives(
    live: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    take(tmp_path, CONFIG, [])
    release(tmp_path)
    process = live()
    process.kill()
    process.wait()
    take(tmp_path, CONFIG | {"resume": "here"}, [])


def test_a_run_that_has_ended_holds_nothing(live: Callable[[], subprocess.Popen[str]], tmp_path: Path) -> None:
    hold(tmp_path)
    hold(tmp_path)
    release(tmp_path)
    release(tmp_path)
    assert live().poll() is None


@pytest.mark.parametrize("link", [".hydra", ".hydra/lock.json"])
def test_a_link_in_a_strangers_folder_is_not_written_through(link: str, tmp_path: Path) -> None:
    (precious := tmp_path / "precious").mkdir()
    (precious / "lock.json").write_text("precious")
    (run := tmp_path / "run").mkdir()
    (run / link).parent.mkdir(exist_ok=True)
    (run / link).symlink_to(precious if link == ".hydra" else precious / "lock.json")
    with pytest.raises(InputError, match="E-RUN: "):
        hold(run)
    assert (precious / "lock.json").read_text() == "precious"
