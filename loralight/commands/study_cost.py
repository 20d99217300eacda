"""The time that a study will take, from timing a few batches of each method before it starts."""

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

from loralight.commands.processes import Processes
from loralight.commands.trial import Trial, expected_seconds, free_device
from loralight.logs import logger


def seconds_of_study(
    processes: Processes, words: Sequence[str], runs: Sequence[tuple[Mapping[str, Any], int]]
) -> float:
    """Seconds of all runs, as many at a time as ``processes`` has places.

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
        return 0.0
    logger.info("timing a few batches of each of %d methods", len(missing))
    with processes.busy(words):
        start = processes.seconds_to_start()
        seconds = [number * (start + _seconds(settings)) for settings, number in missing]
    return sum(seconds) / processes.jobs


def _seconds(settings: Mapping[str, Any]) -> float:
    started = perf_counter()
    trial = Trial(dict(settings))
    seconds = expected_seconds(trial, built=perf_counter() - started)
    del trial
    free_device()
    return seconds
