"""Runs of ``loralight train`` in separate processes, several at a time; they end when this process is told to."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Queue

import torch


class Ended(Exception):  # noqa: N818  # nothing went wrong
    """This process is ending, and its runs with it."""


class Processes:
    """Up to ``jobs`` runs at a time, spread over the GPUs if there are several.

    Args:
        jobs: number of runs at a time; if None the number of GPUs, at least 1.
        flags: flags of the command line that each run gets too, such as ``--config-dir``.
    """

    def __init__(self, jobs: int | None, flags: Sequence[str] = ()) -> None:
        gpus = torch.cuda.device_count()
        self.jobs, self._flags, self._ended = jobs or max(1, gpus), list(flags), False
        self._running: set[subprocess.Popen[bytes]] = set()
        self._places: Queue[dict[str, str]] = Queue()
        own = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}  # set by `whole_errors`
        threads = str(max(1, (os.cpu_count() or 1) // self.jobs))
        for number in range(self.jobs):
            of_gpu = {"CUDA_VISIBLE_DEVICES": str(number % gpus)} if gpus > 1 else {}
            self._places.put({"OMP_NUM_THREADS": threads, **own, **of_gpu})

    def train(self, words: Sequence[str], log: Path) -> str | None:
        """Run ``loralight train`` with these words, once a place is free; its output goes into ``log``.

        Returns:
            The error of the run; None if it ended well.

        Raises:
            Ended: `ending` has ended the runs.
        """
        environment = self._places.get()
        try:
            if self._ended:
                raise Ended
            command = [sys.executable, "-m", "loralight", "train", *words, *self._flags]
            with (
                log.open("wb") as written,
                subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT, env=environment) as process,
            ):
                self._running.add(process)
                code = process.wait()
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
