"""The time that runs will take, from timing their parts before they start."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from loralight.commands.processes import Processes
from loralight.commands.trial import Expected, Trial, expected, free_device
from loralight.errors import InputError
from loralight.logs import logger
from loralight.training.epochs import Epochs

TIMED = "timed"
"""A folder of a run that is made to time it, and removed."""

_SHARE = 0.8  # of a budget: an estimate may be a quarter too low


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The time of the runs of several methods.

    Args:
        start: seconds of a run beside its timed parts: the start of its process, its report, its end.
        runs: what a run of each method takes, and the number of its runs.
        jobs: methods that run at a time, each with one run after another.
    """

    start: float
    runs: Sequence[tuple[Expected, float]]
    jobs: int

    def each(self, most_epochs: int | None = None) -> list[float]:
        """Seconds of one run of each method, of at most so many epochs."""
        return [self.start + run.seconds(most_epochs) for run, _ in self.runs]

    def seconds(self, most_epochs: int | None = None) -> float:
        """Seconds of all runs, each of at most so many epochs."""
        numbers = (number for _, number in self.runs)
        return together(
            (number * each for number, each in zip(numbers, self.each(most_epochs), strict=True)), self.jobs
        )

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


def together(seconds: Iterable[float], jobs: int) -> float:
    """The time of pieces of work that are begun in turn, each as soon as one of ``jobs`` places is free."""
    places = [0.0] * jobs
    for one in seconds:
        places.sort()
        places[0] += one
    return max(places)


def cost_of_runs(
    processes: Processes, folder: Path, methods: Sequence[tuple[Sequence[str], Mapping[str, Any], float]]
) -> Cost:
    """The time of all runs, as many at a time as ``processes`` has places.

    The other places are busy meanwhile, as runs side by side take longer than one alone: cores, their caches and the
    GPUs are shared. Some batches of each method are timed, and a whole run of one step: of the method with the
    smallest checkpoint, as the writing is timed apart.

    Args:
        processes: those of the runs.
        folder: of all runs; what is written there is removed.
        methods: the words of each method (overrides of ``loralight train``), its settings and the number of its runs.

    Raises:
        InputError: a method cannot be built.
    """
    if not methods:
        return Cost(start=0.0, runs=[], jobs=processes.jobs)
    logger.info("timing a few batches of each of %d methods", len(methods))
    with processes.busy(methods[0][0]) as seconds_of_short_run:
        _build(methods[0][1])  # the first one reads the data and the weights from the disk
        timed = [_expected(settings, folder) for _, settings, _ in methods]
        start = seconds_beside(seconds_of_short_run, folder, [words for words, _, _ in methods], timed)
    return Cost(
        start=start, runs=[(run, method[2]) for run, method in zip(timed, methods, strict=True)], jobs=processes.jobs
    )


def seconds_beside(
    seconds_of_short_run: Callable[[Sequence[str], Path], float],
    folder: Path,
    words: Sequence[Sequence[str]],
    timed: Sequence[Expected],
) -> float:
    """Seconds of a run beside its timed parts, by a run of one step.

    Args:
        seconds_of_short_run: see `Processes.busy`.
        folder: of all runs.
        words: of each method.
        timed: what is known of each method.
    """
    smallest = min(range(len(timed)), key=lambda number: (timed[number].epochs is None, timed[number].checkpoint))
    return max(0.0, seconds_of_short_run(words[smallest], folder / TIMED) - timed[smallest].short)


def _build(settings: Mapping[str, Any]) -> Trial:
    return Trial(dict(settings))


def _expected(settings: Mapping[str, Any], folder: Path) -> Expected:
    started = perf_counter()
    trial = _build(settings)
    found = expected(trial, folder, built=perf_counter() - started)
    del trial
    free_device()
    return found
