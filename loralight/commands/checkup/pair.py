"""Two processes that import torch and reduce a number between them, while the checks without torch are made."""

import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from threading import Condition, Thread
from typing import IO, Any, Self


class EndedError(Exception):
    """The processes ended without the answer that was asked for; the message is the last line of their errors."""


class Pair:
    """Processes 0 and 1 of `loralight.commands.checkup.in_torch`, and what process 0 has told so far."""

    def __init__(self) -> None:
        self._told: dict[str, dict[str, Any]] = {}
        self._changed = Condition()
        self._has_ended = False
        self._last_error = "it ended, and told nothing"
        self._processes: list[subprocess.Popen[str]] = []
        self._threads: list[Thread] = []

    def start(self, environment: Mapping[str, str]) -> Self:
        """Start both processes, without the variables of a launcher: they are not of its processes."""
        kept = {name: value for name, value in environment.items() if not name.startswith(("TORCHELASTIC_", "SLURM_"))}
        for rank in range(2):
            command = [sys.executable, "-P", "-m", "loralight.commands.checkup.in_torch", str(rank)]
            pipe = subprocess.PIPE
            process = subprocess.Popen(command, env=kept, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
            self._processes.append(process)
            self._threads.append(Thread(target=self._keep_last_error, args=(process.stderr,), daemon=True))
        first, second = self._processes
        self._threads.append(Thread(target=self._listen, args=(first.stdout, second.stdin), daemon=True))
        for thread in self._threads:
            thread.start()
        return self

    def told(self, name: str) -> dict[str, Any]:
        """What process 0 tells under a name; waits for it.

        Raises:
            EndedError: the process ended before it told.
        """
        with self._changed:
            self._changed.wait_for(lambda: name in self._told or self._has_ended)
            if name in self._told:
                return self._told[name]
        raise EndedError(self._last_error)

    def end(self) -> None:
        """End both processes."""
        for process in self._processes:
            process.kill()
        for thread in self._threads:
            thread.join()
        for process in self._processes:
            process.communicate()  # closes its pipes

    def _keep_last_error(self, errors: IO[str]) -> None:
        for line in filter(str.strip, errors):
            self._last_error = line.strip()

    def _listen(self, answers: IO[str], second: IO[str]) -> None:
        for line in answers:
            told = json.loads(line)
            name = told.pop("name")
            if name == "port":  # at which process 1 finds process 0
                with suppress(OSError):  # it has ended
                    second.write(f"{told['port']}\n")
                    second.flush()
            self._tell(name, told)
        self._processes[0].wait()
        self._threads[0].join()  # which reads its last error
        self._has_ended = True
        self._tell("", {})

    def _tell(self, name: str, told: dict[str, Any]) -> None:
        with self._changed:
            self._told[name] = told
            self._changed.notify_all()
