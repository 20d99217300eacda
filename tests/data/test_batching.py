import itertools
import random
from typing import Any

import pytest

from loralight.data.batching import BatchSampler

LENGTHS = random.Random(0).choices(range(3, 60), k=1000)
SIZES = list(itertools.product(range(1, 18), (1, 2, 3)))  # rows, and rows of a batch
any_number_of_ranks = pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 5, 6, 7, 8])


def sampler(num_rows: int = 1000, **arguments: Any) -> BatchSampler:
    return BatchSampler(
        LENGTHS[:num_rows], **{"batch_size": 8, "shuffle": True, "grouped": True, "seed": 1, **arguments}
    )


def of_each_rank(num_ranks: int, epoch: int = 0, **arguments: Any) -> list[list[list[int]]]:
    samplers = [sampler(rank=rank, num_ranks=num_ranks, **arguments) for rank in range(num_ranks)]
    for each in samplers:
        each.set_epoch(epoch)
    return [list(each) for each in samplers]


def rows_of(batches: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(batches))


@pytest.mark.parametrize("grouped", [True, False])
def test_batches_are_a_pure_function_of_seed_and_epoch(grouped: bool) -> None:
    walked = sampler(grouped=grouped)
    for epoch in range(3):
        walked.set_epoch(epoch)
        list(walked)
    fresh = sampler(grouped=grouped)
    fresh.set_epoch(2)
    assert list(walked) == list(fresh) == list(fresh)


@pytest.mark.parametrize("grouped", [True, False])
def test_another_seed_or_epoch_gives_another_order(grouped: bool) -> None:
    orders = [rows_of(of_each_rank(1, epoch, seed=seed, grouped=grouped)[0]) for seed in range(4) for epoch in range(4)]
    assert len({tuple(order) for order in orders}) == len(orders)
    assert all(sorted(order) == list(range(1000)) for order in orders)


@pytest.mark.parametrize("grouped", [True, False])
@any_number_of_ranks
def test_evaluation_takes_every_row_exactly_once(num_ranks: int, grouped: bool) -> None:
    for num_rows, size in SIZES:
        shares = of_each_rank(num_ranks, num_rows=num_rows, batch_size=size, shuffle=False, grouped=grouped)
        assert sorted(rows_of(rows_of(shares))) == list(range(num_rows)), (num_rows, size)


@any_number_of_ranks
def test_training_counts_every_row_exactly_once(num_ranks: int) -> None:
    for (num_rows, size), epoch in itertools.product(SIZES, (0, 3)):
        counted = []
        for rank in range(num_ranks):
            each = sampler(num_rows, rank=rank, num_ranks=num_ranks, batch_size=size)
            each.set_epoch(epoch)
            counted += [row for n, batch in enumerate(each) if not each.stands_in(epoch, n) for row in batch]
        assert sorted(counted) == list(range(num_rows)), (num_rows, size, epoch)


@any_number_of_ranks
def test_in_training_every_rank_takes_as_many_steps_and_at_most_one_row_less_in_each(num_ranks: int) -> None:
    for num_rows, size in SIZES:
        for of_a_step in zip(*of_each_rank(num_ranks, num_rows=num_rows, batch_size=size), strict=True):
            sizes = [len(batch) for batch in of_a_step]
            assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1 and max(sizes) <= size, (num_rows, size)


def test_a_row_stands_in_for_none_where_all_ranks_have_one() -> None:
    for num_rows, rank in itertools.product(range(8, 17), range(4)):
        each = sampler(num_rows, rank=rank, num_ranks=4, batch_size=2)
        standing = [n for n in range(len(each)) if each.stands_in(0, n)]
        assert len(standing) == (0 < num_rows % 8 <= rank), (num_rows, rank)


@pytest.mark.parametrize("shuffle", [True, False])
@any_number_of_ranks
def test_its_length_is_the_number_of_batches_that_each_rank_gets(num_ranks: int, shuffle: bool) -> None:
    for (num_rows, size), rank in itertools.product(SIZES, range(num_ranks)):
        each = sampler(num_rows, rank=rank, num_ranks=num_ranks, batch_size=size, shuffle=shuffle)
        assert len(each) == len(list(each)), (num_rows, size, rank)


@pytest.mark.parametrize("num_ranks", [1, 3])
@pytest.mark.parametrize("epoch", [0, 2])
def test_an_epoch_resumed_at_any_batch_goes_on_with_exactly_the_rest(epoch: int, num_ranks: int) -> None:
    for rank, whole in enumerate(of_each_rank(num_ranks, epoch, num_rows=100)):
        later = of_each_rank(num_ranks, epoch + 1, num_rows=100)[rank]
        for done in range(len(whole) + 1):
            resumed = sampler(100, rank=rank, num_ranks=num_ranks)
            resumed.resume_at = (epoch, [(8 * num_ranks, done)])
            resumed.set_epoch(epoch)
            assert list(resumed) == whole[done:]
            resumed.set_epoch(epoch + 1)
            assert list(resumed) == later, "the next epoch is whole again"


@pytest.mark.parametrize("num_rows", [1000, 83])  # of 83, three are left over
def test_several_ranks_compute_the_steps_of_one_with_batches_as_large_as_all_theirs(num_rows: int) -> None:
    shares = of_each_rank(4, batch_size=2, num_rows=num_rows)
    together = [set(rows_of(list(step))) for step in zip(*shares, strict=True)]
    alone = of_each_rank(1, batch_size=8, num_rows=num_rows)[0]
    assert together == [set(batch) for batch in alone]


@pytest.mark.parametrize("shuffle", [True, False])
def test_grouping_by_length_cuts_padding(shuffle: bool) -> None:
    def padding(grouped: bool) -> int:
        batches = of_each_rank(1, shuffle=shuffle, grouped=grouped)[0]
        return sum(max(LENGTHS[row] for row in batch) - LENGTHS[row] for batch in batches for row in batch)

    assert padding(grouped=True) < 0.15 * padding(grouped=False)


def test_grouped_batches_do_not_come_in_order_of_length() -> None:
    longest = [max(LENGTHS[row] for row in batch) for batch in of_each_rank(1)[0]]
    rising = sum(first < second for first, second in itertools.pairwise(longest))
    assert 0.3 * len(longest) < rising < 0.7 * len(longest)


def test_without_shuffling_and_grouping_rows_come_in_their_order() -> None:
    assert rows_of(of_each_rank(1, shuffle=False, grouped=False)[0]) == list(range(1000))


def of_step(samplers: list[BatchSampler], epoch: int, step: int) -> list[int]:
    """The rows of a step, in the order of batches, and of ranks within a batch."""
    accumulated = samplers[0].accumulated
    numbers = range(step * accumulated, (step + 1) * accumulated)
    return [row for number in numbers for each in samplers for row in each.share(epoch, number, each.rank)]


def ranks_of(num_ranks: int, accumulated: int, size: int, num_rows: int) -> list[BatchSampler]:
    """The samplers of all ranks for steps of ``size`` rows."""
    place = {"num_ranks": num_ranks, "accumulated": accumulated, "batch_size": size // (num_ranks * accumulated)}
    return [sampler(num_rows, rank=rank, **place) for rank in range(num_ranks)]


WAYS = [
    (num_ranks, accumulated)
    for num_ranks in range(1, 9)
    for accumulated in (1, 2, 3)
    if 24 % (num_ranks * accumulated) == 0
]


@pytest.mark.parametrize(("num_ranks", "accumulated"), WAYS)
@pytest.mark.parametrize("num_rows", [1000, 96, 73, 5])  # of 73 one is left over, and 5 are fewer than some have places
def test_a_step_has_the_same_rows_however_it_is_divided(num_ranks: int, accumulated: int, num_rows: int) -> None:
    alone, several = ranks_of(1, 1, 24, num_rows), ranks_of(num_ranks, accumulated, 24, num_rows)
    steps = -(-num_rows // 24)
    for epoch, step in itertools.product((0, 3), range(steps)):
        assert sorted(of_step(several, epoch, step)) == sorted(of_step(alone, epoch, step))
    for each in several:
        each.set_epoch(1)
        found = list(each)
        assert len(found) == len(each) == steps * accumulated
        assert all(1 <= len(batch) <= 24 // (num_ranks * accumulated) for batch in found)
        counted = [batch for number, batch in enumerate(found) if not each.stands_in(1, number)]
        assert counted == [share for number in range(len(each)) if (share := each.share(1, number, each.rank))]


def test_a_run_that_goes_on_with_other_steps_in_an_epoch_loses_no_row_and_takes_none_twice() -> None:
    choices = random.Random(1)
    for _ in range(300):
        num_rows, epoch, counted, dealt = choices.randint(1, 90), choices.randint(0, 3), list[int](), list[Any]()
        for is_last in [*[False] * choices.randint(1, 3), True]:
            num_ranks, accumulated, batch_size = choices.randint(1, 4), choices.randint(1, 3), choices.randint(1, 5)
            several = ranks_of(num_ranks, accumulated, batch_size * num_ranks * accumulated, num_rows)
            for each in several:
                each.resume_at = (epoch, dealt)
                each.set_epoch(epoch)
            done, whole = several[0].num_done(epoch), len(several[0])
            assert done % accumulated == 0 and done <= whole
            assert [len(list(each)) for each in several] == [whole - done] * num_ranks
            until = whole if is_last else accumulated * choices.randint(done // accumulated, whole // accumulated)
            counted += [row for n in range(done, until) for each in several for row in each.share(epoch, n, each.rank)]
            dealt = list(several[0].dealt(epoch, until))
            assert all(list(each.dealt(epoch, until)) == dealt for each in several)
        assert sorted(counted) == list(range(num_rows)), (num_rows, dealt)


def test_steps_of_the_same_size_go_on_in_the_same_order_however_they_are_divided_then() -> None:
    whole = [of_step(ranks_of(1, 1, 24, 200), 1, step) for step in range(9)]
    for num_ranks, accumulated in WAYS:
        several = ranks_of(num_ranks, accumulated, 24, 200)
        for each in several:
            each.resume_at = (1, [(24, 4)])
        assert several[0].num_done(1) == 4 * accumulated
        assert [sorted(of_step(several, 1, step)) for step in range(9)] == [sorted(step) for step in whole]
