"""Stopping on request: by SIGTERM, SIGINT (Ctrl-C), or SIGUSR1, by which SLURM warns of a job's time limit.

A signal raises `Stopped` at once, except in a context `held`, which only notes it: `stop_at_step` then ends a training
run where nothing is lost. This module imports nothing heavy, so that the command line can listen from the start.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = {signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if sys.platform != "win32" else [])}
_ONE_REQUEST = 1.0  # seconds within which signals are one request: torchrun passes on those of a terminal


class Stopped(SystemExit):
    """This process was told to stop: exit code 130 after SIGINT, 143 after others.

    Args:
        by: the signal.
        message: the saved checkpoint and the command that resumes; None if another process prints it.
    """

    code: int

    def __init__(self, by: int, message: str | None = "") -> None:
        super().__init__(130 if by == signal.SIGINT else 143)
        self.by, self.message = by, message

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.by).name}{self.message and '; '}{self.message}"


class _Ears:
    told: int | None = None
    since = 0.0
    num_held = 0
    ends_at_once = True  # on a second signal

    def hear(self, number: int, frame: FrameType | None) -> None:
        if self.told is None:
            self.told, self.since = number, time.monotonic()
            if not self.num_held:
                raise Stopped(number)
        elif self.ends_at_once and time.monotonic() - self.since > _ONE_REQUEST:
            os._exit(Stopped(number).code)


_ears = _Ears()


@contextmanager
def listen(*, ends_at_once: bool = True) -> Iterator[None]:
    """Listen for the signals in the main thread; a signal that the process ignores (a background job's) stays ignored.

    Args:
        ends_at_once: whether a second signal ends the process immediately.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    _ears.told, _ears.ends_at_once = None, ends_at_once
    for number in heard:
        signal.signal(number, _ears.hear)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number] or signal.SIG_DFL)
        _ears.told = None


def ignore() -> None:
    """Ignore further signals."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def held() -> Iterator[None]:
    """A context in which a signal is only noted, so that files are written completely; `check` then raises."""
    _ears.num_held += 1
    try:
        yield
    finally:
        _ears.num_held -= 1


def told() -> int | None:
    """The signal that told this process to stop."""
    return _ears.told


def check() -> None:
    """Raise `Stopped` if this process was told to stop."""
    if _ears.told is not None:
        raise Stopped(_ears.told)


def outlive(_worker: int = 0) -> None:
    """Have a data loader worker end only when its training process tells it to.

    A signal from a terminal or SLURM goes to the whole process group, but the training process must still finish its
    step.
    """
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=_wait_for_trainer, args=(os.getppid(),), daemon=True).start()


def _wait_for_trainer(trainer: int) -> NoReturn:
    while True:
        info = signal.sigwaitinfo(SIGNALS)
        if info.si_signo == signal.SIGTERM and info.si_pid == trainer:
            os._exit(0)
