"""The trials of a search: each a run in a process of its own, several at a time, and the table of all."""

import math
import shlex
from collections.abc import Sequence
from concurrent.futures import as_completed
from pathlib import Path
from threading import Lock

from optuna.trial import Trial

from loralight import logs
from loralight.artifacts.run_folder import FAILED
from loralight.commands.processes import Processes
from loralight.commands.sweep import folder_name
from loralight.commands.tuning.plan import Plan
from loralight.commands.tuning.proposals import Proposals
from loralight.commands.tuning.pruning import Pruning
from loralight.errors import InputError
from loralight.reports.comparison import Comparison
from loralight.reports.runs import SUMMARY, FinishedRun, read_run
from loralight.reports.sweeps import note_failure, point_to_best, write_report

_MOST_FAILED, _MOST_REFUSED = 5, 25
"""Trials in a row that fail or exceed a limit, after which a search ends: they do not count, and it would never end."""


class Search:
    """A search in a folder.

    Args:
        plan: what is to be done.
        proposals: what has been done, and what comes next.
        processes: those of the trials.
        seconds: that a trial is expected to take.
    """

    def __init__(self, plan: Plan, proposals: Proposals, processes: Processes, *, seconds: float) -> None:
        self.plan, self.proposals, self.processes, self._expected = plan, proposals, processes, seconds
        self._lock, self._failed, self._refused = Lock(), 0, 0

    def run(self) -> None:
        """Do all missing trials."""
        logs.show(
            f"search: {self.plan.space}\n{self._counted()}, {self.processes.jobs} at a time, about "
            f"{self._expected:.0f} s each{self._to_go()}, in {self.plan.folder}"
        )
        with self.processes.ending() as pool:
            for done in as_completed([pool.submit(self._work) for _ in range(self.processes.jobs)]):
                done.result()

    def report(self) -> None:
        """Print and write the trials and the best settings.

        Raises:
            InputError: no trial has a score, or the last ones have all failed (``E-TUNE``).
        """
        failures = self.proposals.failures
        words = {run or self._folder(words): words for words, run in self.proposals.finished}
        if words:
            self._show([read_run(folder) for folder in words], words, failures)
        if not words or self._failed >= _MOST_FAILED:
            last = next(reversed(failures.values()), "each exceeds most_parameters= or most_memory=")
            raise InputError("E-TUNE", f"{'the last trials' if words else 'all trials'} have failed: {last}")

    def _show(self, runs: list[FinishedRun], words: dict[Path, list[str]], failures: dict[str, str]) -> None:
        metric, folder = self.plan.metric, self.plan.folder
        runs.sort(key=lambda run: run.score(metric) or 0.0, reverse=self.plan.mode == "max")
        comparison = Comparison(runs, metric=metric, mode=self.plan.mode, failures=failures)
        files = write_report(comparison, folder, f"search {folder.name}", "tune")
        point_to_best(comparison, folder)
        logs.show("", *comparison.shown(f"search {folder}")[: 1 + len(failures)], "", *map(str, files))
        if given_up := self.proposals.num_given_up:
            logs.show(f"trials given up: {given_up}")
        best = shlex.join(["loralight", "train", *self.plan.space.fixed, *words[runs[0].folder]])
        logs.show(f"best: {runs[0].folder}, by", best)

    def _work(self) -> None:
        """Do trials until there are enough, or the time is over."""
        while (trial := self._next()) is not None:
            self._do(trial, trial.user_attrs["words"])

    def _next(self) -> Trial | None:
        """The next trial; None if there are enough, none would end in time, or too many have failed."""
        with self._lock:
            while not self._is_over() and (trial := self.proposals.next()) is not None:
                words = trial.user_attrs["words"]
                if (reason := self.plan.refusal(words)) is None:
                    self.proposals.begin(trial)
                    self._refused = 0
                    return trial
                self.proposals.refuse(trial)
                self._refused += 1
                logs.show(f"not tried: {' '.join(words)}: {reason}")
        return None

    def _is_over(self) -> bool:
        if self._failed >= _MOST_FAILED or self._refused >= _MOST_REFUSED:
            return True
        if self.proposals.num >= self.plan.most and not self.proposals.has_waiting:
            return True
        return self.plan.budget is not None and self._spent() + (self.proposals.usual or 0.0) > self.plan.budget

    def _do(self, trial: Trial, words: Sequence[str]) -> None:
        """Run a trial, and note how it has ended."""
        folder, metric = self._folder(words), self.plan.metric
        pruning = Pruning(trial, folder, metric)
        error = self.processes.finish([*self.plan.space.fixed, *words], folder, is_enough=pruning)
        score = read_run(folder).score(metric) if (folder / SUMMARY).exists() else None
        with self._lock:
            self._failed = 0 if score is not None or pruning.is_poor else self._failed + 1
            if score is not None:
                (folder / FAILED).unlink(missing_ok=True)
                self.proposals.end(trial, score)
                told = f"{metric} {score:.4f}"
            elif pruning.is_poor:
                self.proposals.give_up(trial)
                told = f"given up, {metric} {pruning.scores[-1]:.4f}"
            else:
                told = error or f"there is no {metric}"
                note_failure(folder, told)
                self.proposals.fail(trial, told)
            logs.show(f"{self._counted()}{self._to_go()}: {' '.join(words)}: {told}")

    def _folder(self, words: Sequence[str]) -> Path:
        return self.plan.folder / folder_name("_".join(words).replace("=", "-"))

    def _counted(self) -> str:
        done = self.proposals.num_done
        return f"{done} trials" if self.plan.most == math.inf else f"{done}/{max(done, self.plan.most)} trials"

    def _spent(self) -> float:
        return self.proposals.spent / self.processes.jobs

    def _to_go(self) -> str:
        """Words on the time that is left."""
        each = self.proposals.usual or self._expected
        seconds = (self.plan.most - self.proposals.num_done) * each / self.processes.jobs
        seconds = seconds if self.plan.budget is None else min(seconds, self.plan.budget - self._spent())
        return f", {max(seconds, 0) / 60:.0f} min to go"
