"""The grid of rates grows until its best is not at its edge."""

from collections.abc import Callable

import pytest

from loralight.training.rate_grid import best_power, is_at_end, next_powers


def searched(score: Callable[[int], float | None]) -> dict[int, float | None]:
    scores: dict[int, float | None] = {}
    while powers := next_powers(scores):
        scores |= {power: score(power) for power in powers}
    return scores


@pytest.mark.parametrize("optimum", [-3, -2, -1, 0, 1, 2, 3])
def test_the_best_has_a_worse_one_to_each_side(optimum: int) -> None:
    scores = searched(lambda power: -abs(power - optimum))
    assert best_power(scores) == optimum
    assert {optimum - 1, optimum + 1} <= scores.keys() and not is_at_end(scores)
    assert len(scores) == 3 + abs(optimum)


def test_a_score_that_grows_for_ever_ends_at_a_hundred_times_the_method_s_rate() -> None:
    assert sorted(searched(float)) == [-1, 0, 1, 2, 3, 4]
    assert sorted(searched(lambda power: -float(power))) == [-4, -3, -2, -1, 0, 1]
    assert is_at_end(searched(float)) and is_at_end(searched(lambda power: -float(power)))


def test_of_equal_scores_the_method_s_own_rate_is_taken() -> None:
    assert sorted(scores := searched(lambda _: 0.5)) == [-1, 0, 1]
    assert best_power(scores) == 0


def test_a_rate_that_fails_is_worse_than_any_and_a_method_that_fails_is_not_searched() -> None:
    scores = searched(lambda power: None if power > 0 else float(power))
    assert (sorted(scores), best_power(scores)) == ([-1, 0, 1], 0)
    assert searched(lambda _: None) == {0: None}
    assert best_power({0: None}) == 0
