"""Several processes end as one, and what they end by is what happened first to any of them."""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from loralight.errors import InputError
from loralight.stopping import Stopped, listen
from loralight.training import ranks
from loralight.training.launch import launch
from loralight.training.ranks import Report, report_of

Launch = Callable[[str], Any]

# Two processes add up, and the second does as the job's name says in the third step.
JOBS = '''"""Jobs of two processes."""

import os, signal, sys, time
import torch
import torch.distributed as dist
from loralight import stopping
from loralight.errors import InputError


def work(config, folder):
    job, second = config["job"], os.environ["RANK"] == "1"
    dist.init_process_group("gloo")
    with stopping.held():
        for step in range(10**9):
            told = torch.tensor(float(stopping.told() is not None))
            dist.all_reduce(told)
            if told:
                raise stopping.Stopped(signal.SIGTERM)
            if step == 2 and job == "ends":
                return f"{second=}"
            if step == 2 and job == "fails while the other is stuck" and not second:
                time.sleep(10**9)
            if step == 2 and second:
                do(job)


def do(job):
    if job == "refuses":
        raise InputError("E-MINE", "so it says: here")
    if job.startswith("fails"):
        raise ValueError("boom")
    if job == "leaves":
        sys.exit(0)
    if job == "vanishes":
        os._exit(0)
    if job == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "hears":
        os.kill(os.getpid(), signal.SIGTERM)
    if job == "has the parent hear":
        os.kill(os.getppid(), signal.SIGINT)
'''


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Launch]:
    (tmp_path / "made_jobs.py").write_text(JOBS)
    monkeypatch.syspath_prepend(str(tmp_path))  # the processes have it too
    work, trainer = import_module("made_jobs").work, {"accelerator": "cpu", "devices": 2}
    yield lambda job: launch(work, {"trainer": trainer, "job": job}, tmp_path)
    del sys.modules["made_jobs"]
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("warm_ranks")
def test_what_the_first_returns_is_returned(launched: Launch) -> None:
    assert launched("ends") == "second=False"


@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.parametrize(
    ("job", "kind", "says"),
    [
        ("refuses", InputError, "^E-MINE: so it says: here$"),
        ("fails", RuntimeError, r"^process 1 failed:\n(.|\n)*\nValueError: boom$"),
        ("leaves", RuntimeError, r"^process 1 failed:\n(.|\n)*\nSystemExit: 0$"),
        ("vanishes", RuntimeError, "^process 1 ended with exit code 0, and told nothing$"),
        ("is killed", RuntimeError, "^process 1 was killed by SIGKILL, as the system does where memory runs out"),
    ],
)
def test_what_happened_to_the_second_is_told_and_not_that_the_first_misses_it(
    launched: Launch, job: str, kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says):
        launched(job)


@pytest.mark.usefixtures("warm_ranks")
def test_a_process_that_is_stuck_is_ended(launched: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_GRACE", 0.5)
    with pytest.raises(RuntimeError, match=r"ValueError: boom$"):
        launched("fails while the other is stuck")


@pytest.mark.usefixtures("warm_ranks")
def test_all_stop_when_one_is_told_to(launched: Launch) -> None:
    with pytest.raises(Stopped) as caught, listen():
        launched("hears")
    assert caught.value.code == 143


def test_all_stop_when_their_parent_is_told_to(launched: Launch) -> None:
    with pytest.raises(Stopped) as caught, listen():
        launched("has the parent hear")
    assert caught.value.code == 130


def test_of_several_failures_the_cause_is_told() -> None:
    killed = Report(traceback="killed", at=0)
    refused, failed = Report(refused="E-MINE: x", at=2), Report(traceback="failed", at=1)
    follows, stopped = Report(traceback="no peer", follows=True, at=0.5), Report(stopped=signal.SIGTERM)
    for reports, kind, says in [
        ([follows, refused], InputError, "E-MINE: x"),
        ([refused, failed], RuntimeError, "failed"),
        ([failed, killed, follows], RuntimeError, "killed"),
        ([follows, Report(returned=1)], RuntimeError, "no peer"),
        ([follows, stopped], Stopped, "SIGTERM"),
        ([stopped, failed], RuntimeError, "failed"),
    ]:
        with pytest.raises(kind, match=says):
            ranks._outcome(dict(enumerate(reports)))


@pytest.mark.parametrize(
    ("error", "follows"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:5"), True),
        (ConnectionResetError(104, "Connection reset by peer"), True),
        (RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed."), False),
        (ValueError("the peer"), False),
        (SystemExit(3), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_broken_connection_follows_from_another_failure(error: BaseException, follows: bool) -> None:
    def job() -> None:
        raise error

    report = report_of(1, job)
    assert report.follows is follows and not report.is_good
    assert report.traceback.startswith("process 1 failed:\nTraceback")
