"""The rows of each optimizer step of an epoch, whatever the number of processes that compute it."""

from collections.abc import Iterable, Sequence

import torch

from loralight.data.seeds import seed_of

_POOL = 50  # steps sorted together: long enough to cut padding, short enough that epochs differ

Dealt = Sequence[tuple[int, int]]
"""Rows of a step and number of such steps, for each part of an epoch that was trained on with steps of one size."""


class Dealing:
    """Deals the rows of an epoch to optimizer steps, as a pure function of (seed, epoch, rows of a step).

    Rows are shuffled, sorted by length within pools of 50 steps, and cut into steps; then the steps are shuffled. If a
    run goes on within an epoch with steps of another size, the rows that are left are dealt anew in the same way.

    Args:
        lengths: the cost of each row (its number of tokens); used if ``grouped``.
        size: rows of a step, over all processes and accumulated batches.
        grouped: whether a step has rows of similar length.
        seed: of the order.
    """

    def __init__(self, lengths: Sequence[int], *, size: int, grouped: bool, seed: int) -> None:
        self.lengths, self.size, self.grouped, self.seed = lengths, size, grouped, seed

    @property
    def num_steps(self) -> int:
        """Steps of an epoch that is dealt as a whole."""
        return -(-len(self.lengths) // self.size)

    def steps(self, epoch: int, dealt: Dealt = ()) -> list[list[int]]:
        """The rows of each step of an epoch, or of the steps that are left of it.

        Args:
            dealt: how the epoch was begun.
        """
        rows = list(range(len(self.lengths)))
        for size, done in dealt:
            rows = sorted(row for step in self._cut(rows, size, epoch)[done:] for row in step)
        return self._cut(rows, self.size, epoch)

    def unshuffled(self) -> list[list[int]]:
        """The rows in a fixed order, by length if ``grouped``, cut into steps."""
        rows = list(range(len(self.lengths)))
        return list(_pieces(sorted(rows, key=self.lengths.__getitem__) if self.grouped else rows, self.size))

    def _cut(self, rows: Sequence[int], size: int, epoch: int) -> list[list[int]]:
        # a rest is never as long as what was dealt before, so its number tells it from other rests of the epoch
        rest = [] if len(rows) == len(self.lengths) else [len(rows)]
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch, *rest))
        order = [rows[place] for place in torch.randperm(len(rows), generator=generator).tolist()]
        if self.grouped:
            order = [row for pool in _pieces(order, size * _POOL) for row in sorted(pool, key=self.lengths.__getitem__)]
        steps = list(_pieces(order, size))
        return [steps[place] for place in torch.randperm(len(steps), generator=generator).tolist()]


def _pieces(rows: list[int], size: int) -> Iterable[list[int]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def evenly(rows: Sequence[int], number: int, parts: int) -> Sequence[int]:
    """The piece of this number, from 0, when ``rows`` are cut into ``parts`` pieces of equal size, or nearly so."""
    return rows[number * len(rows) // parts : (number + 1) * len(rows) // parts]
