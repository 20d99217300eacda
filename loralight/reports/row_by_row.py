"""Groups of runs compared on the same rows: who is right where the other is wrong, and how sure the difference is.

An interval over rows says how sure a difference between trained models is. Whether the methods differ, only several
seeds tell.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from loralight.errors import InputError
from loralight.reports.answers import Answer, RunAnswers, read_answers
from loralight.reports.groups import Group
from loralight.reports.runs import FinishedRun

_RESAMPLES = 1000
_TIE = 1.1  # the standard error of a difference of one row is that difference, but for 1,000 draws
_ROUNDED = 1e-4  # by as much a score from answers may differ from the metric


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two groups on the rows that all of their runs with the same seeds have answered.

    Args:
        num_rows: their number.
        better: rows on which the first group's answers are better.
        worse: rows on which they are worse.
        difference: of the scores: the first group's less the other's.
        low: the interval of 95 % begins here, by resampling rows (Efron, 1979, https://doi.org/10.1214/aos/1176344552).
        high: and ends here.
        error: the standard error of the difference, likewise.
    """

    num_rows: int
    better: int
    worse: int
    difference: float
    low: float
    high: float
    error: float

    @property
    def p(self) -> float:
        """The chance of so uneven a split of the rows that differ, if both were as good: the exact sign test.

        For right and wrong answers it is McNemar's test (1947, https://doi.org/10.1007/BF02295996).
        """
        return sign_test(self.better, self.worse)


@dataclass(frozen=True, kw_only=True)
class OfGroup:
    """The answers of a group's runs, by their seeds."""

    group: Group
    runs: dict[str, RunAnswers]

    @cached_property
    def answers(self) -> dict[int, list[Answer]]:
        """The answers of all runs to each row that all have answered."""
        first, *others = self.runs.values()
        common = set(first.rows).intersection(*(run.rows for run in others))
        return {row: [run.rows[row] for run in self.runs.values()] for row in sorted(common)}


@dataclass(frozen=True, kw_only=True)
class RowByRow:
    """All groups that have kept answers to the same rows.

    Args:
        groups: those with answers, the best first.
        best: the group that others are compared with.
        left_out: why others are not among them.
    """

    groups: Sequence[OfGroup]
    best: Group | None
    left_out: Sequence[str] = ()

    @classmethod
    def of(cls, groups: Sequence[Group], best: Group | None) -> "RowByRow":
        """The answers of groups of runs to the same rows; a damaged file is left out by its name."""
        found, left_out, first = [], [], None
        for group in sorted(groups, key=lambda group: group is not best):
            runs: dict[str, RunAnswers] = {}
            for run in group.runs:
                try:
                    kept = read_answers(run)
                except InputError as error:
                    left_out.append(f"The answers of a run are left out: {str(error).partition(': ')[2]}.")
                    continue
                if kept is None or not kept.rows:
                    continue
                first = first or kept
                if kept.of_same_rows(first):
                    runs.setdefault(str(run.summary.get("seed")), kept)
                else:
                    left_out.append(f"The answers of {run.folder} are to other rows or of other labels: left out.")
            if runs:
                found.append(OfGroup(group=group, runs=runs))
        return cls(groups=found, best=best, left_out=left_out)

    @property
    def kept(self) -> RunAnswers:
        """The answers of any run, for what all have in common."""
        return next(iter(self.groups[0].runs.values()))

    @cached_property
    def pairs(self) -> dict[int, Pair]:
        """The best group against each other one, by the other's `id`; none if the best has kept no answers."""
        if not self.groups or self.kept.kind == "text":
            return {}
        best = next((one for one in self.groups if one.group is self.best), None)
        others = [one for one in self.groups if one is not best]
        found = {id(one.group): _pair(best.runs, one.runs) for one in others} if best else {}
        return {group: pair for group, pair in found.items() if pair is not None}


def sign_test(better: int, worse: int) -> float:
    """The two-sided probability of a split at least as uneven, if both sides are equally likely."""
    num, fewer = better + worse, min(better, worse)
    logs = [math.lgamma(num + 1) - math.lgamma(k + 1) - math.lgamma(num - k + 1) for k in range(fewer + 1)]
    return min(1.0, 2 * sum(math.exp(one - num * math.log(2)) for one in logs))


def is_told_apart(one: FinishedRun, other: FinishedRun, metric: str) -> bool:
    """Whether two runs' scores on validation rows differ by more than the standard error of the difference.

    This is the one-standard-error rule (Breiman et al., 1984, *Classification and Regression Trees*, 3.4.3). It is true
    where answers to the rows do not tell: they were not kept, or the metric is no accuracy or F1 of them.

    Args:
        metric: with its split, ``validation``.
    """
    answers, other_answers = _of_validation(one), _of_validation(other)
    score, other_score = one.score(metric), other.score(metric)
    if answers is None or other_answers is None or not answers.of_same_rows(other_answers):
        return True
    pair = _pair({"": answers}, {"": other_answers})
    if pair is None or score is None or other_score is None:
        return True
    if abs(pair.difference - (score - other_score)) > _ROUNDED:
        return True
    return abs(pair.difference) > _TIE * pair.error


def _of_validation(run: FinishedRun) -> RunAnswers | None:
    try:
        return read_answers(run, "validation")
    except InputError:  # damaged
        return None


def _pair(one: Mapping[str, RunAnswers], other: Mapping[str, RunAnswers]) -> Pair | None:
    """Two groups' answers, by seeds, on the rows that both have answered; None if they share no seed or no row."""
    seeds = [seed for seed in one if seed in other]
    runs = [of[seed] for of in (one, other) for seed in seeds]
    rows = sorted(set(runs[0].rows).intersection(*(run.rows for run in runs))) if runs else []
    if not rows:
        return None
    counts = np.array([[run.rows[row].counts for row in rows] for run in runs])  # (runs, rows, 2)
    hits, of = np.moveaxis(counts.reshape(2, len(seeds), len(rows), 2).mean(1), -1, 0)  # (groups, rows)
    scores = np.where(of > 0, hits / np.maximum(of, 1e-12), 1.0)
    weights = _resamples(len(rows))  # (resamples, rows)
    found = (hits @ weights.T) / np.maximum(of @ weights.T, 1e-12)  # (groups, resamples)
    totals = hits.sum(1) / np.maximum(of.sum(1), 1e-12)
    differences = found[0] - found[1]
    low, high = np.quantile(differences, (0.025, 0.975))
    return Pair(
        num_rows=len(rows),
        better=int((scores[0] > scores[1]).sum()),
        worse=int((scores[0] < scores[1]).sum()),
        difference=float(totals[0] - totals[1]),
        low=float(low),
        high=float(high),
        error=float(differences.std()),
    )


@lru_cache(maxsize=1)  # 80 MB for 10,000 rows
def _resamples(num_rows: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    """How often each row is drawn in each of 1,000 samples of the rows, (resamples, rows); always the same."""
    draw = np.random.default_rng(0)
    return np.stack(
        [np.bincount(draw.integers(0, num_rows, num_rows), minlength=num_rows) for _ in range(_RESAMPLES)]
    ).astype(np.float64)
