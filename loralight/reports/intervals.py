"""Means over seeds and their confidence intervals: Student's t for a few independent runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import mean, stdev

import numpy as np

# the quantile 0.975 of Student's distribution with 1, 2, ... degrees of freedom, for two-sided intervals of 95 %
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_T_BEYOND = 2.131  # for 15 degrees; with more, intervals are a little too wide
_DRAWS = 200_000  # of a studentised range: its quantile is right to half a per cent


@dataclass(frozen=True)
class Estimate:
    """A mean, and half the width of its 95 % interval; None for a single value."""

    mean: float
    margin: float | None = None

    def __str__(self) -> str:
        return f"{self.mean:.4f}" if self.margin is None else f"{self.mean:.4f} ± {self.margin:.4f}"


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one or more independent values, with its interval if there are at least two."""
    if len(values) < 2:
        return Estimate(values[0])
    quantile = _T[len(values) - 2] if len(values) <= len(_T) + 1 else _T_BEYOND
    return Estimate(mean(values), quantile * stdev(values) / math.sqrt(len(values)))


def margin_of_all_pairs(scores: Sequence[Sequence[float]]) -> float:
    """Half the width of the intervals of all differences between means, which hold together with 95 %.

    This is Tukey's range test (*Comparing individual means in the analysis of variance*, 1949) for a layout of methods
    by seeds. Of nine equal methods, the best one and another seem to differ in every second comparison of three seeds
    if each pair has an interval of its own.

    Args:
        scores: of two or more methods, (methods, seeds), in two or more seeds.
    """
    table = np.asarray(scores, dtype=np.float64)
    methods, seeds = table.shape
    rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    freedom = (methods - 1) * (seeds - 1)
    return studentised_range(methods, freedom) * math.sqrt(float((rest**2).sum()) / freedom / seeds)


@cache
def studentised_range(methods: int, freedom: int) -> float:
    """The quantile 0.95 of the range of so many normal values over a standard deviation with degrees of freedom.

    It is drawn, always the same, as no distribution of it is in NumPy.
    """
    draw = np.random.default_rng(0)
    ranges = np.ptp(draw.standard_normal((_DRAWS, methods)), axis=1)
    return float(np.quantile(ranges / np.sqrt(draw.chisquare(freedom, _DRAWS) / freedom), 0.95))
