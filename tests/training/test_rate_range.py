"""A learning-rate range test finds the edge beyond which the loss rises."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from loralight.training.rate_range import averaged, find_rate, num_steps


def optimizer(*, head_lr: float = 1e-2) -> torch.optim.AdamW:
    groups = [
        {"name": "adapter", "lr": 1e-3, "params": [nn.Parameter(torch.zeros(2))]},
        {"name": "adapter", "lr": 5e-4, "params": [nn.Parameter(torch.zeros(2))]},
        {"name": "head", "lr": head_lr, "params": [nn.Parameter(torch.zeros(2))]},
    ]
    return torch.optim.AdamW(groups)


def falling_until(edge: float, of: torch.optim.Optimizer) -> Callable[[Any], float]:
    """A step whose loss falls to a plateau, and jumps beyond one rate."""

    def step(_: object) -> float:
        rate = of.param_groups[0]["lr"]
        return 1 + max(0.0, math.log10(1e-4 / rate)) + 0.9 * (rate > edge)

    return step


@pytest.mark.parametrize("edge", [3e-4, 1e-3, 8e-3, 3e-2])
def test_a_twelfth_of_the_last_rate_that_does_no_harm_is_taken(edge: float) -> None:
    made = optimizer()
    found = find_rate(made, falling_until(edge, made), range(100), own=1e-3)
    assert found == pytest.approx(edge / 12, rel=0.35)  # a step is a tenth, and the average reaches two ahead


def test_noise_on_the_plateau_does_not_move_it() -> None:
    found = []
    for seed in range(10):
        made, random = optimizer(), torch.Generator().manual_seed(seed)
        step = falling_until(8e-3, made)
        noisy = partial(_with_noise, step, random)
        found.append(find_rate(made, noisy, range(100), own=1e-3))
    assert all(rate is not None and 8e-3 / 12 / 2 < rate < 8e-3 / 12 * 1.5 for rate in found)


def _with_noise(step: Callable[[Any], float], random: torch.Generator, batch: object) -> float:
    return step(batch) + 0.1 * float(torch.randn((), generator=random))


def test_groups_keep_their_ratio_and_a_head_its_own_rate() -> None:
    made, seen = optimizer(), []

    def step(_: object) -> float:
        seen.append([group["lr"] for group in made.param_groups])
        return 1.0

    find_rate(made, step, range(41), own=1e-3)
    assert seen[0] == pytest.approx([1e-5, 5e-6, 1e-2])
    assert seen[20] == pytest.approx([1e-3, 5e-4, 1e-2])
    assert seen[40] == pytest.approx([1e-1, 5e-2, 1e-2])


def test_a_head_at_the_optimizer_s_rate_goes_with_it() -> None:
    made = optimizer(head_lr=1e-3)
    find_rate(made, lambda _: 1.0, range(41), own=1e-3)
    assert made.param_groups[2]["lr"] == pytest.approx(1e-1)


@pytest.mark.parametrize("losses", [[1.0 + number for number in range(30)], [math.nan] * 30, []])
def test_a_loss_that_does_not_fall_tells_nothing(losses: list[float]) -> None:
    left = iter(losses)
    assert find_rate(optimizer(), lambda _: next(left), range(len(losses)), own=1e-3) is None


def test_a_loss_that_is_no_number_ends_the_test() -> None:
    made, taken = optimizer(), []

    def step(number: int) -> float:
        taken.append(number)
        return math.nan if number > 30 else 5.0 - 0.1 * number

    found = find_rate(made, step, range(40), own=1e-3)
    assert taken[-1] < 35
    assert found is not None
    assert found < 1e-3 * 10**2


def test_a_peak_of_one_step_is_averaged_with_its_neighbours() -> None:
    assert averaged([0.0, 0.0, 5.0, 0.0, 0.0]) == pytest.approx([5 / 3, 5 / 4, 1.0, 5 / 4, 5 / 3])


def test_the_test_takes_less_than_a_tenth_of_the_run_or_is_left_out() -> None:
    for steps in range(0, 5000, 7):
        assert num_steps(steps) <= steps / 10
    assert (num_steps(199), num_steps(200), num_steps(10**6)) == (0, 16, 100)
