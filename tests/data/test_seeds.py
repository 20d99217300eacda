"""Seeds of several numbers are the same everywhere, and differ where the numbers do."""

import itertools

import pytest

from loralight.data import seed_of


# by hand from O'Neill's own C++ (randutils.hpp, seed_seq_fe128), given the count and each number's two halves
@pytest.mark.parametrize(
    ("numbers", "seed"),
    [
        ((), 6569863346532939966),
        ((0,), 7434755675892716031),
        ((0, 0), 3890642289391122579),
        ((1, 2), 8026815952791433243),
        ((2, 1), 6596426656078964858),
        ((42, 0, 3, 17), 3687471961128387916),
        ((2**40 + 5,), 4600711755714711231),
        ((5, 256), 1756554943848633564),
        ((-1,), 8270844389528973991),
    ],
)
def test_seeds_are_these_numbers(numbers: tuple[int, ...], seed: int) -> None:
    assert seed_of(*numbers) == seed


def test_no_two_positions_of_small_runs_share_a_seed() -> None:
    positions = [numbers for size in range(1, 5) for numbers in itertools.product(range(7), repeat=size)]
    assert len({seed_of(*numbers) for numbers in positions}) == len(positions)
