"""Gives up a trial of a search that is worse than others at a validation."""

from collections.abc import Sequence
from pathlib import Path

from optuna.trial import Trial

from loralight.reports.runs import read_curve


class Pruning:
    """Whether a trial is to be given up; asked again and again while its run goes on.

    Validations are counted, so that runs with batches of different sizes are compared at the same number of epochs.

    Args:
        trial: the trial.
        folder: of its run.
        metric: measured at each validation.
    """

    def __init__(self, trial: Trial, folder: Path, metric: str) -> None:
        self._trial, self._folder, self._metric = trial, folder, metric
        self.scores: list[float] = []
        self.is_poor = False

    def __call__(self) -> bool:
        for score in self._measured()[len(self.scores) :]:
            self._trial.report(score, len(self.scores))
            self.scores.append(score)
            self.is_poor = self.is_poor or self._trial.should_prune()
        return self.is_poor

    def _measured(self) -> Sequence[float]:
        """The scores of validations in training, in their order.

        A resumed run has several files, and a step may be in two. A validation one step after another is that of the
        best checkpoint, after training.
        """
        rows = [row for file in self._folder.glob("metrics*.csv") for row in read_curve(file)]
        by_step = {row["step"]: row[self._metric] for row in rows if "step" in row and self._metric in row}
        return [score for step, score in sorted(by_step.items()) if step - 1 not in by_step]
