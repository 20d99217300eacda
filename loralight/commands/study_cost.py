"""The time that runs will take, from timing their parts before they start."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from loralight.commands.processes import Processes
from loralight.commands.trial import Expected, Trial, expected, free_device
from loralight.errors import InputError
from loralight.logs import logger, telling
from loralight.training.epochs import Epochs

TIMED = "timed"
"""A folder of a run that is made to time it, and removed."""

_SHARE = 0.8  # of a budget: an estimate may be a quarter too low


@dataclass(frozen=True, kw_only=True)
class Missing:
    """The runs that a method lacks.

    Args:
        number: of runs, with those for which a grid grows on average.
        in_turn: how many of them wait for one another; the others may be made side by side.
    """

    number: float
    in_turn: float


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The time of the runs of several methods.

    Args:
        start: seconds of a run beside its timed parts: the start of its process, its report, its end.
        runs: what a run of each method takes, and the runs that it lacks.
        jobs: runs at a time.
        refused: why a method cannot be built, by its place among those that were to be timed; it is not in ``runs``.
    """

    start: float
    runs: Sequence[tuple[Expected, Missing]]
    jobs: int
    refused: Mapping[int, InputError] = field(default_factory=dict)

    def each(self, most_epochs: int | None = None) -> list[float]:
        """Seconds of one run of each method, of at most so many epochs."""
        return [self.start + run.seconds(most_epochs) for run, _ in self.runs]

    def seconds(self, most_epochs: int | None = None) -> float:
        """Seconds of all runs, each of at most so many epochs."""
        each = self.each(most_epochs)
        return together([(one, missing) for one, (_, missing) in zip(each, self.runs, strict=True)], self.jobs)

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


def together(methods: Sequence[tuple[float, Missing]], jobs: int, going: Sequence[float] = ()) -> float:
    """The seconds of all runs, each begun as soon as one of ``jobs`` places is free.

    Args:
        methods: the seconds of a run of each method, and the runs that it lacks.
        jobs: number of places.
        going: seconds that runs have gone on for which are among these.
    """
    work = sum(each * missing.number for each, missing in methods) - sum(going)
    longest = max((each * missing.in_turn for each, missing in methods), default=0.0)
    return max(work / jobs, longest - max(going, default=0.0), 0.0)


def cost_of_runs(
    processes: Processes,
    folder: Path,
    methods: Sequence[tuple[Sequence[str], Mapping[str, Any], Missing]],
    *,
    may_refuse: bool = False,
) -> Cost:
    """The time of all runs, as many at a time as ``processes`` has places.

    The other places are busy meanwhile, as runs side by side take longer than one alone: cores, their caches and the
    GPUs are shared. Some batches of each method are timed, and a whole run of one step: of the method with the
    smallest checkpoint, as the writing is timed apart.

    Args:
        processes: those of the runs.
        folder: of all runs; what is written there is removed.
        methods: the words of each method (overrides of ``loralight train``), its settings and the runs that it lacks.
        may_refuse: whether a method that cannot be built, other than the first, is left out.

    Raises:
        InputError: a method cannot be built.
    """
    if not methods:
        return Cost(start=0.0, runs=[], jobs=processes.jobs)
    logger.info("timing a few batches of each of %d methods", len(methods))
    with processes.busy(methods[0][0]) as seconds_of_short_run:
        _build(methods[0][1])  # the first one reads the data and the weights from the disk
        timed: dict[int, Expected] = {}
        refused: dict[int, InputError] = {}
        for place, (_, settings, _) in enumerate(telling(methods, "methods timed", len(methods))):
            started = perf_counter()
            try:
                trial = _build(settings)
            except InputError as error:
                if not may_refuse:
                    raise
                refused[place] = error
                continue
            timed[place] = expected(trial, folder, built=perf_counter() - started)
            del trial
            free_device()
        start = seconds_beside(seconds_of_short_run, folder, [methods[place][0] for place in timed], [*timed.values()])
    runs = [(run, methods[place][2]) for place, run in timed.items()]
    return Cost(start=start, runs=runs, jobs=processes.jobs, refused=refused)


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
