"""A search for a learning rate that does not end at the edge of its grid."""

from collections.abc import Mapping

FACTOR = 10**0.5
"""The ratio of neighbouring rates in the grid."""

_FIRST = (0, -1, 1)  # powers of the factor
_FARTHEST = 4  # powers, to each side


def next_power(scores: Mapping[int, float | None]) -> int | None:
    """The rate to try next, as a power of `FACTOR`; None once both neighbours of the best rate have been tried.

    Args:
        scores: by power, the higher the better; None for a run that failed. If the run at 0 failed, nothing is tried.
    """
    if 0 in scores and scores[0] is None:
        return None
    if waiting := [power for power in _FIRST if power not in scores]:
        return waiting[0]
    best = best_power(scores)
    beside = [power for power in (best - 1, best + 1) if power not in scores and abs(power) <= _FARTHEST]
    return beside[0] if beside else None


def is_at_end(scores: Mapping[int, float | None]) -> bool:
    """Whether the best rate is the farthest that is tried, so that a better one may lie beyond."""
    return abs(best_power(scores)) == _FARTHEST


def best_power(scores: Mapping[int, float | None]) -> int:
    """The power with the best score; of equal scores, the power nearest to 0."""
    found = {power: score for power, score in scores.items() if score is not None}
    return max(found, key=lambda power: (found[power], -abs(power)), default=0)
