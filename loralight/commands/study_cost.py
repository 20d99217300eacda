"""The time that a study will take, from timing a few batches of each method before it starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from loralight.commands.processes import Processes
from loralight.commands.trial import Expected, Trial, expected, free_device
from loralight.errors import InputError
from loralight.logs import logger
from loralight.training.epochs import Epochs

_SHARE = 0.8  # of a budget for the runs that are known to be needed; grids of rates may grow


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The time of a study's missing runs.

    Args:
        start: seconds until a run's process has imported what it needs.
        runs: what a run of each method takes, and how many runs it has.
        jobs: runs at a time.
    """

    start: float
    runs: Sequence[tuple[Expected, int]]
    jobs: int

    def seconds(self, most_epochs: int | None = None) -> float:
        """Seconds of all runs, each of at most so many epochs."""
        return sum(number * (self.start + run.seconds(most_epochs)) for run, number in self.runs) / self.jobs

    def epochs_for(self, budget: float) -> Epochs | None:
        """The length of each run for which all runs take at most ``budget`` seconds; None if none need be cut short.

        Raises:
            InputError: they take longer even with one epoch each (``E-BUDGET``).
        """
        left = _SHARE * budget
        if self.seconds() <= left:
            return None
        longest = max((run.epochs for run, _ in self.runs if run.epochs), key=lambda epochs: epochs.number)
        for number in range(longest.number, 0, -1):
            if self.seconds(number) <= left:
                return longest.at_most(number)
        raise InputError(
            "E-BUDGET",
            f"budget: the runs take {self.seconds(1) / _SHARE / 60:.0f} min with one epoch each. Give more time, fewer "
            "methods= or seeds=, or measure less (data.limit_eval_rows=500)",
        )


def cost_of_study(processes: Processes, words: Sequence[str], runs: Sequence[tuple[Mapping[str, Any], int]]) -> Cost:
    """The time of all runs, as many at a time as ``processes`` has places.

    The other places are busy meanwhile, as runs side by side take longer than one alone: cores, their caches and the
    GPUs are shared.

    Args:
        processes: those of the study.
        words: overrides of ``loralight train`` for what the other places do.
        runs: the settings of each method, and how many runs it has.

    Raises:
        InputError: a method cannot be built.
    """
    if not (missing := [(settings, number) for settings, number in runs if number]):
        return Cost(start=0.0, runs=[], jobs=processes.jobs)
    logger.info("timing a few batches of each of %d methods", len(missing))
    with processes.busy(words):
        start = processes.seconds_to_start()
        timed = [(_expected(settings), number) for settings, number in missing]
    return Cost(start=start, runs=timed, jobs=processes.jobs)


def _expected(settings: Mapping[str, Any]) -> Expected:
    started = perf_counter()
    trial = Trial(dict(settings))
    found = expected(trial, built=perf_counter() - started)
    del trial
    free_device()
    return found
