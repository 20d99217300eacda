"""Batches of rows: sentences of similar length together, the same for every rank, and resumable."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from loralight.data.seeds import seed_of

_POOL = 50  # batches sorted together: long enough to cut padding, short enough that epochs differ


class BatchSampler(Sampler[list[Any]]):
    """Batches of row numbers as a pure function of (seed, epoch); each rank takes its share of every batch.

    Rows are shuffled, sorted by length within pools of 50 batches, and cut into batches; then the batches are shuffled.
    A global batch is dealt out to the ranks row by row, so that all ranks get equally many rows, or in the last batch
    some get one fewer. If that batch has fewer rows than there are ranks, in training a rank without a row gets a copy
    of another rank's, so that all ranks take equally many steps. `stands_in` tells when, and the copy does not count.

    Args:
        lengths: the cost of each row (its number of tokens); used if ``grouped``.
        batch_size: rows per rank and batch.
        shuffle: whether each epoch has a new order; if not, the order is fixed and every row comes exactly once.
        grouped: whether a batch has rows of similar length.
        seed: of the order.
        rank: the number of this process.
        num_ranks: the number of all processes.
        with_epoch: whether a row is given as (epoch, row), for data with new random choices in each epoch.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        batch_size: int,
        shuffle: bool,
        grouped: bool,
        seed: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
        with_epoch: bool = False,
    ) -> None:
        self.lengths, self.batch_size, self.shuffle, self.grouped = lengths, batch_size, shuffle, grouped
        self.seed, self.rank, self.num_ranks, self.with_epoch = seed, rank, num_ranks, with_epoch
        self.epoch = 0
        self._short: tuple[int, int] | None = None  # (epoch, its batch with fewer rows than ranks)
        self.resume_at: tuple[int, int | None] = (0, 0)  # (epoch, its finished batches; None: all)

    @property
    def sampler(self) -> "BatchSampler":
        """The object whose ``set_epoch`` Lightning calls."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def batches(self, epoch: int) -> list[list[int]]:
        """The global batches of an epoch, over all ranks."""
        size = self.batch_size * self.num_ranks
        order = list(range(len(self.lengths)))
        if not self.shuffle:
            if self.grouped:
                order.sort(key=self.lengths.__getitem__)
            return [order[start : start + size] for start in range(0, len(order), size)]
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        order = torch.randperm(len(order), generator=generator).tolist()
        if self.grouped:
            pool = size * _POOL
            pools = (order[start : start + pool] for start in range(0, len(order), pool))
            order = [row for rows in pools for row in sorted(rows, key=self.lengths.__getitem__)]
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def stands_in(self, epoch: int, number: int) -> bool:
        """Whether this rank's row of a training batch is a copy of another rank's, where it counts."""
        rest = len(self.lengths) % (self.batch_size * self.num_ranks)
        if not 0 < rest <= self.rank:
            return False
        if self._short is None or self._short[0] != epoch:
            self._short = epoch, next(i for i, batch in enumerate(self.batches(epoch)) if len(batch) == rest)
        return number == self._short[1]

    def __iter__(self) -> Iterator[list[Any]]:
        epoch, (resumed, done) = self.epoch, self.resume_at
        batches = self.batches(epoch)
        for batch in batches[(len(batches) if done is None else done) if resumed == epoch else 0 :]:
            share = batch[self.rank :: self.num_ranks]
            if self.shuffle and not share:
                share = [batch[self.rank % len(batch)]]
            if share:
                yield [(epoch, row) for row in share] if self.with_epoch else share

    def __len__(self) -> int:
        whole, rest = divmod(len(self.lengths), self.batch_size * self.num_ranks)
        return whole + (rest > (0 if self.shuffle else self.rank))
