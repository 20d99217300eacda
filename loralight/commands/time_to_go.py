"""The time that a study's missing runs will take, which what its finished runs took corrects."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from time import monotonic

from loralight.commands.study_cost import Missing, together
from loralight.errors import InputError
from loralight.untrusted import read_json

_MOST_BYTES = 2**24


class TimeToGo:
    """The seconds of a run of each method: the mean of those that have ended, else an estimate.

    Estimates are corrected by the ratio of what runs took to what was estimated, over all runs that have ended. One
    thread calls this at a time.

    Args:
        file: keeps the times for the same study when it goes on.
        jobs: runs at a time. Times are not comparable with those of another number, and are then left out.
    """

    def __init__(self, file: Path, jobs: int) -> None:
        self._file, self.jobs = file, jobs
        self._estimated: dict[str, float] = {}
        self._taken: dict[str, list[float]] = {}
        self._begun: dict[Path, tuple[str, float]] = {}
        try:
            kept = read_json(file, _MOST_BYTES) if file.exists() else {}
            if kept.get("jobs") == jobs:
                self._estimated = {str(name): float(one) for name, one in kept["estimated"].items()}
                self._taken = {str(name): [*map(float, some)] for name, some in kept["taken"].items()}
        except (InputError, KeyError, TypeError, ValueError, AttributeError):  # all is timed again
            self._estimated, self._taken = {}, {}

    def knows(self, method: str) -> bool:
        """Whether there is a time of the method's runs."""
        return method in self._estimated or method in self._taken

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Take estimates of methods' runs."""
        self._estimated.update(seconds)
        self._write()

    def begin(self, run: Path, method: str) -> None:
        """A run of the method begins, in a place of its own."""
        self._begun[run] = method, monotonic()

    def end(self, run: Path, *, is_whole: bool) -> None:
        """A run has ended; nothing if `begin` was not told of it, as it was finished before.

        Args:
            run: its folder.
            is_whole: whether it has ended well and was made from its start, so that its time counts.
        """
        method, begun = self._begun.pop(run, ("", 0.0))
        if method and is_whole:
            self._taken.setdefault(method, []).append(monotonic() - begun)
            self._write()

    def of_run(self, method: str) -> float:
        """Seconds that a run of the method takes."""
        if taken := self._taken.get(method):
            return mean(taken)
        ended = [name for name in self._taken if name in self._estimated]
        estimated = sum(len(self._taken[name]) * self._estimated[name] for name in ended)
        ratio = sum(sum(self._taken[name]) for name in ended) / estimated if estimated else 1.0
        return self._estimated.get(method, 0.0) * ratio

    def seconds(self, missing: Mapping[str, Missing]) -> float:
        """Seconds until all missing runs have ended.

        Args:
            missing: the missing runs of each method, with those that are being made.
        """
        now = monotonic()
        going = [min(self.of_run(method), now - begun) for method, begun in self._begun.values()]
        return together([(self.of_run(method), some) for method, some in missing.items()], self.jobs, going)

    def _write(self) -> None:
        kept = {"jobs": self.jobs, "estimated": self._estimated, "taken": self._taken}
        building = self._file.with_name(f".{self._file.name}")
        building.write_text(json.dumps(kept) + "\n", encoding="utf-8")
        os.replace(building, self._file)
