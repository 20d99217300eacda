"""A search for a learning rate that does not end at the edge of its grid."""

from collections.abc import Mapping

FACTOR = 10**0.5
"""The ratio of neighbouring rates in the grid."""

_BESIDE = (-1, 1)  # powers of the factor
_FARTHEST = 4  # powers, to each side


def next_powers(scores: Mapping[int, float | None]) -> list[int]:
    """The rates to try next, side by side, as powers of `FACTOR`; none once both neighbours of the best are known.

    Args:
        scores: by power, the higher the better; None for a run that failed. If the run at 0 failed, nothing is tried.
    """
    if 0 not in scores:
        return [0]
    if scores[0] is None:
        return []
    if waiting := [power for power in _BESIDE if power not in scores]:
        return waiting
    best = best_power(scores)
    return [power for power in (best - 1, best + 1) if power not in scores and abs(power) <= _FARTHEST]


def is_at_end(scores: Mapping[int, float | None]) -> bool:
    """Whether the best rate is the farthest that is tried, so that a better one may lie beyond."""
    return abs(best_power(scores)) == _FARTHEST


def best_power(scores: Mapping[int, float | None]) -> int:
    """The power with the best score; of equal scores, the power nearest to 0."""
    found = {power: score for power, score in scores.items() if score is not None}
    return max(found, key=lambda power: (found[power], -abs(power)), default=0)
