"""The trials of a search in Optuna's own storage: what is tried next, and how each trial has ended.

Optuna proposes settings by the tree-structured Parzen estimator (Bergstra et al., 2011), and gives up a trial that is
worse than the median of the others at a validation. The storage is an SQLite file, since a process that is killed
leaves it whole; ``optuna-dashboard`` shows it.
"""

from pathlib import Path
from statistics import median

import optuna
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from loralight.commands.processes import is_of_machine
from loralight.commands.tuning.space import Space
from loralight.errors import InputError

FILE = "optuna.db"
_STUDY = "tune"
_REPEATED = 10  # proposals in a row that have been tried, after which an untried one is taken
_BEFORE_PRUNING = 5  # trials that have ended
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


class Proposals:
    """Trials of a search. One process uses them at a time, and one of its threads calls this object's methods.

    A trial counts if its run has ended, was given up or is going on. A failed one does not count, nor one whose process
    was cut, whose settings were tried already or are not permitted, nor an earlier run. Where the machine made a trial
    fail, its settings are tried again by the next process that goes on with the search.

    Args:
        folder: of the search.
        space: the settings.
        mode: ``max`` or ``min``.

    Raises:
        InputError: the folder has a search of other settings (``E-TUNE``).
    """

    def __init__(self, folder: Path, space: Space, *, mode: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, what = space, [*space.fixed, str(space)]
        direction = StudyDirection.MAXIMIZE if mode == "max" else StudyDirection.MINIMIZE
        pruner = optuna.pruners.MedianPruner(_BEFORE_PRUNING, n_warmup_steps=1)
        storage = f"sqlite:///{folder / FILE}"
        self._study = optuna.create_study(
            storage=storage, study_name=_STUDY, direction=direction, pruner=pruner, load_if_exists=True
        )
        if self._study.user_attrs.get("settings", what) != what:
            raise InputError("E-TUNE", f"{folder} has a search of other settings; choose another hydra.run.dir=")
        self._study.set_user_attr("settings", what)
        self._again = set[int]()  # numbers of trials
        # another seed than that of the search before it was cut, which would propose the same again
        self._study.sampler = optuna.samplers.TPESampler(seed=len(self._trials()))
        self._again_after_cut()
        self._again_after_machine()

    def next(self) -> Trial | None:
        """A trial of settings that are new; None if there are no others."""
        for _ in range(_REPEATED):
            if (trial := self._new()) is not None:
                return trial
        if (params := self.space.untried(self._tried())) is None:
            return None
        self._study.enqueue_trial(params)
        return self._new()

    def begin(self, trial: Trial) -> None:
        """Count a trial from now on."""
        trial.set_user_attr("begun", True)

    def refuse(self, trial: Trial) -> None:
        """End a trial that is not permitted. Optuna takes one that is pruned without a value for the worst."""
        self._study.tell(trial, state=TrialState.PRUNED)

    def end(self, trial: Trial, score: float) -> None:
        self._study.tell(trial, score)

    def give_up(self, trial: Trial) -> None:
        self._study.tell(trial, state=TrialState.PRUNED)

    def fail(self, trial: Trial, error: str) -> None:
        """End a trial whose run failed. Optuna would forget a state of failure, and propose such a rate again."""
        trial.set_user_attr("error", error)
        self._study.tell(trial, state=TrialState.PRUNED)

    def add_earlier(self, run: Path, point: dict[str, object], score: float) -> None:
        """Let the search know the score of a finished run."""
        attributes = {"words": self.space.words(point), "run": str(run)}
        if tuple(attributes["words"]) not in self._tried():
            varied: dict[str, BaseDistribution] = dict(self.space.varied)
            self._study.add_trial(create_trial(params=point, distributions=varied, value=score, user_attrs=attributes))

    @property
    def num(self) -> int:
        """The number of trials that count."""
        return len(self._begun(*_ENDED, TrialState.RUNNING))

    @property
    def num_done(self) -> int:
        """The number of trials that have ended or were given up."""
        return len(self._begun(*_ENDED))

    @property
    def has_waiting(self) -> bool:
        """Whether settings are to be tried again, whatever the number of trials."""
        return bool(self._study.get_trials(deepcopy=False, states=[TrialState.WAITING]))

    @property
    def num_given_up(self) -> int:
        return len(self._begun(TrialState.PRUNED))

    @property
    def spent(self) -> float:
        """Seconds of all trials that have ended, one after another."""
        return sum(map(_seconds, [*self._begun(*_ENDED), *self._failed()]))

    @property
    def usual(self) -> float | None:
        """The median of the seconds of trials that were not given up; None before the first has ended."""
        return median(seconds) if (seconds := [_seconds(one) for one in self._begun(TrialState.COMPLETE)]) else None

    @property
    def finished(self) -> list[tuple[list[str], Path | None]]:
        """The overrides of trials with a score, and of earlier runs their folders."""
        ended = self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        folders = [(one.user_attrs["words"], one.user_attrs.get("run")) for one in ended]
        return [(words, None if run is None else Path(run)) for words, run in folders]

    @property
    def failures(self) -> dict[str, str]:
        """The errors of settings whose last trial has failed."""
        return {" ".join(one.user_attrs["words"]): one.user_attrs["error"] for one in self._last_failed()}

    def _new(self) -> Trial | None:
        trial = self._study.ask(dict(self.space.varied))
        words = self.space.words(trial.params)
        if tuple(words) in self._tried():
            self._study.tell(trial, state=TrialState.FAIL)
            return None
        trial.set_user_attr("words", words)
        return trial

    def _tried(self) -> set[tuple[str, ...]]:
        """The overrides of all trials, but those whose process was cut and those that are to be tried again."""
        trials = (one for one in self._trials() if one.state != TrialState.FAIL and one.number not in self._again)
        attributes = [one.user_attrs for one in trials]
        return {tuple(one["words"]) for one in attributes if "words" in one}

    def _again_after_cut(self) -> None:
        """Queue the settings of trials whose process was killed. First queued, so that a kill here loses none."""
        for trial in self._study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            self._study.enqueue_trial(trial.params)
            self._study.tell(trial.number, state=TrialState.FAIL)

    def _again_after_machine(self) -> None:
        """Queue the settings of trials that the machine made fail, unless they wait in the queue already."""
        queued = self._study.get_trials(deepcopy=False, states=[TrialState.WAITING])
        waiting = [one.system_attrs.get("fixed_params") for one in queued]
        trials = [one for one in self._last_failed() if is_of_machine(one.user_attrs["error"])]
        self._again = {one.number for one in trials}
        for trial in (one for one in trials if one.params not in waiting):
            self._study.enqueue_trial(trial.params)

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _begun(self, *states: TrialState) -> list[FrozenTrial]:
        begun = [one for one in self._trials() if one.state in states and "begun" in one.user_attrs]
        return [one for one in begun if "error" not in one.user_attrs]

    def _failed(self) -> list[FrozenTrial]:
        return [one for one in self._trials() if "error" in one.user_attrs and one.state == TrialState.PRUNED]

    def _last_failed(self) -> list[FrozenTrial]:
        """Failed trials whose settings have not been tried since."""
        begun = [one for one in self._trials() if one.state in _ENDED and "begun" in one.user_attrs]
        failed = {one.number for one in self._failed()}
        return [one for one in _last_of_each(begun) if one.number in failed]


def _last_of_each(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The last trial of each settings."""
    return list({tuple(one.user_attrs["words"]): one for one in trials}.values())


def _seconds(trial: FrozenTrial) -> float:
    return 0.0 if trial.duration is None else trial.duration.total_seconds()
