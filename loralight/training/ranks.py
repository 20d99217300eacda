"""Processes that do one job together: they are waited for together, and the first failure is reported."""

import multiprocessing
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import inf
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from torch.distributed import DistError

from loralight.errors import InputError
from loralight.stopping import SIGNALS, Stopped, held, told

_GRACE = 8.0  # seconds for the other processes to report, once one has failed
_BROKEN = re.compile(r"gloo|nccl|connection|broken pipe|\bpeer\b|socket", re.IGNORECASE)


@dataclass(frozen=True)
class Report:
    """How a process ended: its job's result, or one of the other fields.

    Args:
        returned: the job's result.
        stopped: the signal by which the process was told to stop.
        refused: the message of an `InputError`.
        traceback: traceback or description of any other failure.
        follows: whether that failure only follows from another process's end.
        at: time of the end, in nanoseconds.
    """

    returned: Any = None
    stopped: int | None = None
    refused: str = ""
    traceback: str = ""
    follows: bool = False
    at: float = field(default_factory=time.time_ns)

    @property
    def is_good(self) -> bool:
        return self.stopped is None and not self.refused and not self.traceback


def report_of(rank: int, job: Callable[[], Any]) -> Report:
    """Do a job, and report how it ended, whatever it raises."""
    try:
        return Report(returned=job())
    except Stopped as stopped:
        return Report(stopped=stopped.by)
    except InputError as error:
        return Report(refused=str(error))
    except BaseException as error:  # also `sys.exit`, such as in a plugin: nothing else would report it
        text = f"process {rank} failed:\n{traceback.format_exc().rstrip()}"
        return Report(traceback=text, follows=tells_of_another(error))


def tells_of_another(error: BaseException) -> bool:
    """Whether an error only follows from the end of another process."""
    if isinstance(error, DistError | ConnectionError):
        return True
    return type(error) is RuntimeError and bool(_BROKEN.search(str(error)))  # gloo's errors have no class


class Ranks:
    """Processes that each run ``target(pipe, *arguments)`` and send a `Report` through the pipe.

    Args:
        target: a function at the top level of a module.
        arguments: a tuple for each process.
    """

    def __init__(self, target: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would share CUDA's state
        ends = [context.Pipe(duplex=False) for _ in arguments]
        self._pipes = {rank: here for rank, (here, _) in enumerate(ends)}
        self._theirs = [there for _, there in ends]
        self._processes = [
            context.Process(target=target, args=(there, *given))
            for there, given in zip(self._theirs, arguments, strict=True)
        ]
        self._reports: dict[int, Report] = {}

    def run(self) -> Any:
        """Run until all processes have ended; when one fails or stops, the others have a few seconds to end.

        Returns:
            The result of the first process's job.

        Raises:
            InputError, RuntimeError: the first failure; others may have followed from it.
            Stopped: the processes were told to stop.
        """
        try:
            with held():
                with _born_deaf():
                    for process, pipe in zip(self._processes, self._theirs, strict=True):
                        process.start()
                        pipe.close()
                self._wait()
        finally:
            for process in self._processes:
                if process.pid is not None:
                    process.kill()
                    process.join()
        return _outcome(self._reports)

    def _wait(self) -> None:
        deadline, passed_on = float("inf"), False
        while (running := self._look()) and time.monotonic() < deadline:
            bad = [report for report in self._reports.values() if not report.is_good]
            if bad and deadline == float("inf"):
                deadline = time.monotonic() + _GRACE
            if not passed_on and (told() or any(report.stopped for report in bad)):
                passed_on = True
                for process in running:
                    process.terminate()

    def _look(self) -> list[BaseProcess]:
        """Read the messages that were sent, and return the processes that still run."""
        ready = wait(list(self._pipes.values()), timeout=0.2)
        for rank in [rank for rank, pipe in self._pipes.items() if pipe in ready]:
            self._receive(rank)
        # not by `Process.sentinel`: the data loader workers of a dead process hold it open
        for rank, process in enumerate(self._processes):
            if process.exitcode is not None and rank not in self._reports and not self._receive(rank):
                self._reports[rank] = _without_a_word(rank, process.exitcode)
        return [process for process in self._processes if process.exitcode is None]

    def _receive(self, rank: int) -> bool:
        pipe = self._pipes.pop(rank, None)
        with suppress(EOFError, OSError):  # it ended before or while it reported
            if pipe is not None and pipe.poll():
                self._reports[rank] = pipe.recv()
        return rank in self._reports


@contextmanager
def _born_deaf() -> Iterator[None]:
    """A context whose new processes receive signals such as Ctrl-C only once they can report, not during an import."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS - {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _without_a_word(rank: int, code: int) -> Report:
    told_by = {130: signal.SIGINT, 143: signal.SIGTERM}.get(code, -code)
    if told_by in SIGNALS:
        return Report(stopped=told_by)
    if code >= 0:
        return Report(traceback=f"process {rank} ended with exit code {code}, and told nothing", at=inf)
    text = f"process {rank} was killed by {signal.Signals(-code).name}"
    if -code != signal.SIGKILL:
        return Report(traceback=text, at=inf)  # native code may end like this after another process has ended
    hint = "as the system does where memory runs out: lower data.batch_size or data.num_workers, or take fewer devices"
    return Report(traceback=f"{text}, {hint}", at=0)


def _outcome(reports: Mapping[int, Report]) -> Any:
    stopped = [report.stopped for report in reports.values() if report.stopped]
    failed = {rank: report for rank, report in reports.items() if not report.is_good and not report.stopped}
    if stopped and all(report.follows for report in failed.values()):
        raise Stopped(told() or stopped[0])
    if not failed:
        return reports[0].returned
    rank = min(failed, key=lambda rank: (failed[rank].follows, failed[rank].at))
    if failed[rank].refused:
        raise InputError(*failed[rank].refused.split(": ", 1))
    raise RuntimeError(failed[rank].traceback)
