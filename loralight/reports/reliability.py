"""Reliability diagrams: how often answers of a probability are right (Guo et al., 2017, https://arxiv.org/abs/1706.04599)."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from loralight.reports.answers import Answer
from loralight.reports.groups import Group
from loralight.reports.pictures import Picture, reliability_diagram
from loralight.reports.row_by_row import OfGroup

_BINS = 10
_FEWEST = 10  # answers of a bin that is drawn: of fewer the share is mostly chance


class Bin(NamedTuple):
    """Answers whose probabilities lie in a tenth of the range.

    Args:
        confidence: the mean of their probabilities.
        right: the share that is right.
        rows: their number.
    """

    confidence: float
    right: float
    rows: int


def bins(answers: Iterable[Answer]) -> list[Bin]:
    """The bins that are not empty, from the lowest; answers without a probability are left out."""
    known = [(one.confidence, one.given == one.right) for one in answers if one.confidence is not None]
    if not known:
        return []
    confidences, right = np.array([c for c, _ in known]), np.array([r for _, r in known], dtype=float)
    numbers = np.searchsorted(np.linspace(0, 1, _BINS + 1)[1:-1], confidences)
    return [
        Bin(float(confidences[inside].mean()), float(right[inside].mean()), int(inside.sum()))
        for inside in (numbers == number for number in range(_BINS))
        if inside.any()
    ]


def reliability(groups: Sequence[Group], found: Sequence[OfGroup]) -> list[Picture]:
    """A diagram with a line for each group, over the rows of all of its runs; none if no answer has a probability.

    Args:
        groups: all groups, in the order of their colours.
        found: the answers of those that have kept some.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    answers = {id(one.group): one for one in found}
    lines = [(group.name, _points(answers[id(group)]) if id(group) in answers else []) for group in groups]
    return [reliability_diagram(lines)] if any(points for _, points in lines) else []


def _points(of_group: OfGroup) -> list[tuple[float, float]]:
    answers = (answer for run in of_group.runs.values() for answer in run.rows.values())
    return [(one.confidence, one.right) for one in bins(answers) if one.rows >= _FEWEST]
