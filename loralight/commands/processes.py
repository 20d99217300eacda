"""Runs of ``loralight train`` in separate processes, several at a time; they end when this process is told to."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Queue
from time import perf_counter, sleep

import torch

from loralight.artifacts.lock import is_held
from loralight.commands.gpus import visible
from loralight.config.overrides import quoted
from loralight.logs import logger
from loralight.reports.runs import SUMMARY

_SHORT = (
    *("trainer.max_epochs=1", "trainer.max_steps=-1", "++trainer.check_val_every_n_epoch=1"),
    *(f"trainer.limit_{split}_batches=1" for split in ("train", "val", "test")),
)
"""Overrides for a run of one batch of each split."""
_OF_MACHINE = re.compile(r"exit code (-\d+|130|143):|E-MEMORY: |E-DISK: |was killed by SIG")


def is_of_machine(error: str) -> bool:
    """Whether a run's error, as `Processes.train` tells it, comes from the machine: the same run may do well next time.

    It was killed or told to stop, or memory or disk was full. Any other error would come again.
    """
    return _OF_MACHINE.search(error) is not None


class Ended(Exception):  # noqa: N818  # nothing went wrong
    """This process is ending, and its runs with it."""


class Processes:
    """Up to ``jobs`` runs at a time, spread over the GPUs if there are several.

    Args:
        jobs: number of runs at a time; if None the number of GPUs, at least 1.
        flags: flags of the command line that each run gets too, such as ``--config-dir``.
    """

    def __init__(self, jobs: int | None, flags: Sequence[str] = ()) -> None:
        gpus = visible()
        self.jobs, self._flags, self._ended = jobs or max(1, len(gpus)), list(flags), False
        self._running: set[subprocess.Popen[bytes]] = set()
        self._places: Queue[dict[str, str]] = Queue()
        own = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}  # set by `whole_errors`
        threads = str(max(1, (os.cpu_count() or 1) // self.jobs))
        for number in range(self.jobs):
            of_gpu = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if len(gpus) > 1 else {}
            self._places.put({"OMP_NUM_THREADS": threads, **own, **of_gpu})

    @contextmanager
    def busy(self, words: Sequence[str]) -> Iterator[Callable[[Sequence[str], Path], float]]:
        """A context in which this process has one place, with its threads, and training steps fill all other places.

        Args:
            words: overrides of ``loralight train`` for these steps.

        Yields:
            A function of the words of a run and a folder; it returns the seconds that the run takes in this one place,
            from the start of its process to the end, with one batch of each split. The folder is then removed.
        """
        own, *others = places = [self._places.get() for _ in range(self.jobs)]
        command, threads = [sys.executable, "-m", "loralight.commands.busy", *words], torch.get_num_threads()
        torch.set_num_threads(int(own["OMP_NUM_THREADS"].partition(",")[0]))
        try:
            with ExitStack() as running:
                quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
                for environment in others:
                    process = running.enter_context(subprocess.Popen(command, env=environment, **quiet))  # type: ignore[call-overload]
                    running.callback(process.kill)
                    self._running.add(process)
                    running.callback(self._running.discard, process)
                for process in list(self._running):
                    process.stdout.readline()  # type: ignore[union-attr]  # once its steps have begun, or it has failed
                yield partial(self._seconds_of_short_run, own)
        finally:
            torch.set_num_threads(threads)
            for place in places:
                self._places.put(place)

    def _seconds_of_short_run(self, environment: dict[str, str], words: Sequence[str], folder: Path) -> float:
        self._wait_for_another(folder)  # that a killed command has left
        shutil.rmtree(folder, ignore_errors=True)
        line = [*words, *_SHORT, quoted(f"hydra.run.dir={folder}"), *self._flags]
        started = perf_counter()
        ended = subprocess.run(
            [sys.executable, "-m", "loralight", "train", *line],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        seconds = perf_counter() - started
        shutil.rmtree(folder, ignore_errors=True)
        if ended.returncode:
            told = "".join(ended.stderr.strip().splitlines()[-1:])[:500]
            logger.warning("a run of one step, by which the others were to be timed, has failed: %s", told)
        return seconds

    def finish(
        self,
        words: Sequence[str],
        folder: Path,
        *,
        begin: Callable[[], object] | None = None,
        is_enough: Callable[[], bool] | None = None,
    ) -> str | None:
        """Train into ``folder``, unless its run is finished; the output goes into a file beside it.

        A command that was killed may have left a process that trains into the folder: its end is waited for.

        Args:
            words: overrides of ``loralight train``.
            folder: of the run.
            begin: called when a place is free and the run begins; never if it is finished.
            is_enough: asked each second; once it is true, the run is told to stop.

        Returns:
            The error of the run; None if it ended well, or was told to stop.

        Raises:
            Ended: `ending` has ended the runs.
        """
        self._wait_for_another(folder)
        if (folder / SUMMARY).exists():
            return None
        to_folder, log = quoted(f"hydra.run.dir={folder}"), folder.with_name(f"{folder.name}.log")
        error = self.train([*words, to_folder], log, begin=begin, is_enough=is_enough)
        is_late = error is not None and is_held(folder)  # the other process had only begun
        return self.finish(words, folder, begin=begin, is_enough=is_enough) if is_late else error

    def _wait_for_another(self, folder: Path) -> None:
        """Wait for the end of a process that trains into the folder."""
        while is_held(folder):
            if self._ended:
                raise Ended
            sleep(1)

    def train(
        self,
        words: Sequence[str],
        log: Path,
        *,
        begin: Callable[[], object] | None = None,
        is_enough: Callable[[], bool] | None = None,
    ) -> str | None:
        """Run ``loralight train`` with these words, once a place is free; its output goes into ``log``.

        Args:
            words: overrides.
            log: a file.
            begin: see `finish`.
            is_enough: see `finish`.

        Returns:
            The error of the run; None if it ended well, or was told to stop.

        Raises:
            Ended: `ending` has ended the runs.
        """
        environment = self._places.get()
        try:
            if self._ended:
                raise Ended
            if begin is not None:
                begin()
            command = [sys.executable, "-m", "loralight", "train", *words, *self._flags]
            with (
                log.open("wb") as written,
                subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT, env=environment) as process,
            ):
                self._running.add(process)
                code = _wait(process, is_enough)
                self._running.discard(process)
        finally:
            self._places.put(environment)
        if self._ended:
            raise Ended
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        return None if code == 0 else f"exit code {code}: {''.join(last)[:500]}"

    @contextmanager
    def ending(self) -> Iterator[ThreadPoolExecutor]:
        """A context with threads that may call `train`; an error in it ends all runs, each with a checkpoint."""
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                yield pool
            except BaseException:
                self._ended = True
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list(self._running):
                    with suppress(ProcessLookupError):
                        process.terminate()
                raise


def _wait(process: subprocess.Popen[bytes], is_enough: Callable[[], bool] | None) -> int:
    """The exit code of a process; 0 if it was told to stop."""
    while True:
        try:
            return process.wait(None if is_enough is None else 1)
        except subprocess.TimeoutExpired:
            if is_enough is not None and is_enough():
                process.terminate()
                process.wait()
                return 0
