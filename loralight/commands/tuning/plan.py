"""What a search is to do, checked and measured before it starts."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

from loralight.artifacts.run_folder import flat
from loralight.commands.measuring import measuring
from loralight.commands.study_cost import seconds_beside
from loralight.commands.trial import Trial, expected, free_device
from loralight.commands.tuning.limits import Limits
from loralight.commands.tuning.space import Space
from loralight.config.build import build_data, check_config, monitored
from loralight.config.composition import settings_of
from loralight.config.first_look import first_look
from loralight.config.own_data import with_own_data
from loralight.data import TaskData
from loralight.errors import InputError, did_you_mean
from loralight.reports.groups import differences
from loralight.reports.runs import FinishedRun, find_runs, of_same_rows, read_run
from loralight.training.epochs import AUTO
from loralight.training.memory import parse_memory
from loralight.training.time_budget import parse_time

_TRIALS = 20


class Plan:
    """A search's space, its metric and its end.

    Args:
        settings: see ``conf/tune.yaml``.
        folder: of the search.

    Raises:
        InputError: a setting is wrong (``E-TUNE``, ``E-BUDGET``, and the errors of `loralight train`).
    """

    def __init__(self, settings: Mapping[str, Any], folder: Path) -> None:
        for name in ("trials", "jobs", "most_parameters"):
            number = settings[name]
            if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
                raise InputError("E-TUNE", f"{name}={number}: give a number of at least 1")
        self.folder, memory = folder, settings["most_memory"]
        self.limits = Limits(
            parameters=settings["most_parameters"], memory=None if memory is None else parse_memory(memory)
        )
        self.budget = None if settings["budget"] is None else parse_time(settings["budget"])
        self.space = Space.of([str(word) for word in settings["words"]])
        if not self.space.varied:
            self.space = self.space.with_usual(self.of_run([]))
        corners = list(self.space.corners())
        self._first, *_ = [self.of_run(corner) for corner in corners]
        self.first_words = [*self.space.fixed, *corners[0]]
        self.metric, self.mode = (str(self._first["monitor"][name]) for name in ("metric", "mode"))
        if self.metric == AUTO:
            self.metric = monitored(self._first, self._data)
        trials = settings["trials"] or (_TRIALS if self.budget is None else math.inf)
        self.most = min(trials, self.space.size or math.inf)

    def of_run(self, words: Sequence[str]) -> dict[str, Any]:
        """The settings of a trial, checked as far as they can be before it runs."""
        of_run = settings_of("train", with_own_data([*self.space.fixed, *words]), self.folder)
        first_look(of_run)
        check_config(of_run)
        return of_run

    def refusal(self, words: Sequence[str]) -> str | None:
        """The reason why settings of the space are not tried; None if there is none."""
        try:
            return self.limits.exceeded(self.of_run(words))
        except InputError as error:  # two settings that do not go together, or too large a rank
            return str(error)

    def seconds_of_trial(self, seconds_of_short_run: Callable[[Sequence[str], Path], float]) -> float:
        """Seconds that a trial takes, from timing some batches of the first trial and a run of one step.

        Args:
            seconds_of_short_run: see `Processes.busy`; trials side by side take longer than one alone.

        Raises:
            InputError: the metric is not measured (``E-MONITOR``), or one trial takes longer than the budget
                (``E-BUDGET``).
        """
        started = perf_counter()
        trial = Trial(self._first)
        measured = ["validation/loss", *map(str, trial.task.scores["validation"].keys())]  # type: ignore[operator]
        if self.metric not in measured:
            hint, possible = did_you_mean(self.metric, measured), ", ".join(measured)
            raise InputError("E-MONITOR", f"monitor.metric: {self.metric} is not measured.{hint} Possible: {possible}")
        built = perf_counter() - started
        found = expected(trial, self.folder, built=built)
        seconds = found.seconds() + seconds_beside(seconds_of_short_run, self.folder, [self.first_words], [found])
        del trial
        free_device()
        if self.budget is not None and seconds > self.budget:
            raise InputError(
                "E-BUDGET", f"budget: one trial takes about {seconds:.0f} s, and {self.budget:.0f} s are given"
            )
        return seconds

    def earlier(self, folders: Sequence[str]) -> list[tuple[FinishedRun, dict[str, Any]]]:
        """Those runs in ``folders`` that are trials of this search, and their points in the space.

        Raises:
            InputError: there is a run, and none is a trial of this search (``E-TUNE``).
        """
        runs = [read_run(folder) for folder in (find_runs([*map(Path, folders)]) if folders else [])]
        points = {run.folder: self.space.point_of(run.settings) for run in runs}
        found = [(run, point) for run in runs if (point := points[run.folder]) is not None and not self._other(run)]
        if runs and not found:
            told = self._other(runs[0]) or "it lies outside of the space"
            raise InputError("E-TUNE", f"earlier=: none is a trial of this search; of {runs[0].folder}, {told}")
        return found

    def _other(self, run: FinishedRun) -> str | None:
        """Words on a setting, not of the space, that a run has and a trial has not; None if there is none."""
        if run.score(self.metric) is None:
            return f"there is no {self.metric}"
        if not of_same_rows(self._rows, run.identity("validation")):
            return "the validation rows are others"
        point = self.space.point_of(run.settings)
        here = self._first if point is None else self.of_run(self.space.words(point))
        differ = [name for name in differences(run.settings, dict(flat(here))) if name not in self.space.varied]
        return f"{differ[0]} is {run.settings.get(differ[0])}" if differ and point is not None else None

    @cached_property
    def _data(self) -> TaskData:
        return build_data(measuring(self._first))

    @cached_property
    def _rows(self) -> dict[str, str]:
        """The digests of the validation rows, see `FinishedRun.identity`."""
        found = self._data.identity()
        return {kind: found[kind]["validation"] for kind in ("digests", "asked") if "validation" in found[kind]}
