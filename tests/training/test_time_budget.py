"""How many steps fit a time."""

import pytest

from loralight.errors import InputError
from loralight.training.epochs import Epochs
from loralight.training.time_budget import Pace, parse_time


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("10min", 600), ("1h30min", 5400), ("1h 30m", 5400), ("90s", 90), (90, 90), ("1.5H", 5400), ("2.5", 2.5)],
)
def test_times(given: object, seconds: float) -> None:
    assert parse_time(given) == seconds


@pytest.mark.parametrize("given", ["", "min", "0s", "-5min", "10 parsecs", True, "5min later", "1:30:00"])
def test_what_is_no_time(given: object) -> None:
    with pytest.raises(InputError, match="E-BUDGET"):
        parse_time(given)


def seconds_of(pace: Pace, steps: int, of_epoch: int, validated_every: int) -> float:
    """What a run of up to so many steps takes, of which whole epochs alone are taken if there is one."""
    if steps < of_epoch:
        return pace.around + pace.validation + steps * pace.step
    epochs = Epochs(10**9, validated_every).at_most(steps // of_epoch)
    return pace.around + epochs.number * (of_epoch * pace.step + pace.validation / epochs.validated_every)


@pytest.mark.parametrize("of_epoch", [1, 7, 100, 5000])
@pytest.mark.parametrize("validation", [0.0, 3.0, 400.0])
@pytest.mark.parametrize("every", [1, 3])
def test_a_run_of_so_many_steps_ends_within_the_budget_and_a_longer_one_after(
    of_epoch: int, validation: float, every: int
) -> None:
    pace = Pace(step=0.5, validation=validation, around=20)
    for budget in (450, 600, 3600, 86400):
        steps = pace.steps(budget, of_epoch=of_epoch, validated_every=every)
        assert seconds_of(pace, steps, of_epoch, every) <= budget
        assert seconds_of(pace, steps + 1 + every * of_epoch, of_epoch, every) > budget


def test_a_budget_in_which_no_step_fits_is_refused_with_what_is_needed() -> None:
    with pytest.raises(InputError, match=r"E-BUDGET: budget: 19 s are left for the run, and one .* takes 23 s"):
        Pace(step=1, validation=2, around=20).steps(19, of_epoch=10, validated_every=1)
