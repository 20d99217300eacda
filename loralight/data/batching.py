"""Batches of rows: sentences of similar length together, the same for any number of ranks, and resumable."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Sampler

from loralight.data.dealing import Dealing, Dealt, evenly
from loralight.errors import InputError

_EPOCHS = 3  # customary; with fewer rows an epoch is repeated more, up to a limit (`loralight.training.epochs`)


@dataclass(frozen=True)
class UsualBatch:
    """Rows of a batch that nobody has chosen: as many as give three epochs enough steps, within limits.

    Args:
        least: number of rows.
        most: likewise.
        steps: optimizer steps that are enough.
    """

    least: int
    most: int
    steps: int

    def size(self, num_rows: int) -> int:
        """Rows of a batch for so many rows of training."""
        return max(self.least, min(self.most, _EPOCHS * num_rows // self.steps))


class BatchSampler(Sampler[list[Any]]):
    """Batches of row numbers as a pure function of (seed, epoch); each rank takes its share of every optimizer step.

    In training, the rows of a step (`Dealing`) are cut into its accumulated batches, and a batch is dealt out to the
    ranks row by row. So all ranks get equally many rows, or in a short step some get one fewer. A rank that is left
    without a row gets a copy of another rank's, so that all ranks take equally many steps. `stands_in` tells when, and
    the copy does not count. In evaluation every row comes exactly once, in an order that is always the same.

    Args:
        lengths: the cost of each row (its number of tokens); used if ``grouped``.
        batch_size: rows per rank and batch.
        shuffle: whether each epoch has a new order, as in training.
        grouped: whether a batch has rows of similar length.
        seed: of the order.
        rank: the number of this process.
        num_ranks: the number of all processes.
        accumulated: batches of an optimizer step.
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
        accumulated: int = 1,
        with_epoch: bool = False,
    ) -> None:
        self.lengths, self.shuffle, self.with_epoch = lengths, shuffle, with_epoch
        self.rank, self.num_ranks, self.accumulated = rank, num_ranks, accumulated
        self.dealing = Dealing(lengths, size=batch_size * num_ranks * accumulated, grouped=grouped, seed=seed)
        self.epoch = 0
        self.resume_at: tuple[int, Dealt | None] = (0, ())  # (epoch, how it was begun; None: all of it is done)
        self._steps: tuple[Any, list[list[int]]] = ((), [])  # those that were asked for last

    @property
    def sampler(self) -> "BatchSampler":
        """The object whose ``set_epoch`` Lightning calls."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def steps(self, epoch: int) -> list[list[int]]:
        """The rows of each optimizer step, over all ranks: those since an epoch was last dealt."""
        asked = (epoch, self._begun(epoch)[0]) if self.shuffle else None
        if self._steps[0] != asked:
            self._steps = asked, self.dealing.unshuffled() if asked is None else self.dealing.steps(*asked)
        return self._steps[1]

    def dealt(self, epoch: int, batches: int) -> Dealt:
        """How an epoch has been dealt up to a batch, the last of a step; for `resume_at`."""
        before, _ = self._begun(epoch)
        done = -(-batches // self.accumulated) - self._ahead(epoch)
        return [*before, (self.dealing.size, done)] if done > 0 else before

    def num_done(self, epoch: int) -> int:
        """Batches of an epoch that are done where the run is resumed."""
        at, dealt = self.resume_at
        if at != epoch:
            return 0
        return len(self) if dealt is None else self.accumulated * (self._ahead(epoch) + self._begun(epoch)[1])

    def share(self, epoch: int, number: int, rank: int) -> list[int]:
        """A rank's rows of a batch of an epoch; none if there are not enough."""
        step, within = divmod(number, self.accumulated)
        batch = evenly(self.steps(epoch)[step - self._ahead(epoch)], within, self.accumulated)
        return list(batch[rank :: self.num_ranks])

    def stands_in(self, epoch: int, number: int) -> bool:
        """Whether this rank's row of a training batch is a copy of another rank's, where it counts."""
        return not self.share(epoch, number, self.rank)

    def __iter__(self) -> Iterator[list[Any]]:
        epoch = self.epoch
        for number in range(self.num_done(epoch), len(self)):
            share = self.share(epoch, number, self.rank) or self._stand_in(epoch, number)
            yield [(epoch, row) for row in share] if self.with_epoch else share

    def __len__(self) -> int:
        if self.shuffle:
            return self.dealing.num_steps * self.accumulated
        whole, rest = divmod(len(self.lengths), self.dealing.size)
        return whole + (rest > self.rank)

    def _begun(self, epoch: int) -> tuple[Dealt, int]:
        """How an epoch was dealt before its present steps, and how many of these are done."""
        at, dealt = self.resume_at
        if at != epoch or not dealt:
            return (), 0
        size, done = dealt[-1]
        return (tuple(dealt[:-1]), done) if size == self.dealing.size else (tuple(dealt), 0)

    def _ahead(self, epoch: int) -> int:
        """Steps by which an epoch that was begun with steps of another size has fewer than a whole one."""
        before, _ = self._begun(epoch)
        return self.dealing.num_steps - len(self.steps(epoch)) if before else 0

    def _stand_in(self, epoch: int, number: int) -> list[int]:
        rows = self.steps(epoch)[number // self.accumulated - self._ahead(epoch)]
        return [rows[self.rank % len(rows)]]


def rows_per_process(global_batch_size: int, *, num_ranks: int, accumulated: int) -> int:
    """The rows of each process's batch, for a number of rows in each optimizer step.

    Raises:
        InputError: the rows cannot be dealt out evenly (``E-BATCH``).
    """
    parts = num_ranks * accumulated
    if global_batch_size % parts:
        below, above = global_batch_size // parts * parts, -(-global_batch_size // parts) * parts
        near = f"{below} or {above}" if below else f"{above}"
        raise InputError(
            "E-BATCH",
            f"data.global_batch_size={global_batch_size} rows of a step cannot be dealt out evenly to {num_ranks} "
            f"process{'es' * (num_ranks > 1)} with trainer.accumulate_grad_batches={accumulated}; give a multiple of "
            f"{parts}, such as {near}, or other devices",
        )
    return global_batch_size // parts
