"""Means over seeds and their confidence intervals: Student's t for a few independent runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

# the quantile 0.975 of Student's distribution with 1, 2, ... degrees of freedom, for two-sided intervals of 95 %
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_T_BEYOND = 2.131  # for 15 degrees; with more, intervals are a little too wide


@dataclass(frozen=True)
class Estimate:
    """A mean, and half the width of its 95 % interval; None for a single value."""

    mean: float
    margin: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval excludes zero, so that a difference is significant."""
        return self.margin is not None and abs(self.mean) > self.margin

    def __str__(self) -> str:
        return f"{self.mean:.4f}" if self.margin is None else f"{self.mean:.4f} ± {self.margin:.4f}"


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one or more independent values, with its interval if there are at least two."""
    if len(values) < 2:
        return Estimate(values[0])
    quantile = _T[len(values) - 2] if len(values) <= len(_T) + 1 else _T_BEYOND
    return Estimate(mean(values), quantile * stdev(values) / math.sqrt(len(values)))
