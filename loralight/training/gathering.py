"""The rows of all ranks, for losses in which rows are compared with one another."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

_COUNTS: ContextVar[bool | None] = ContextVar("counts", default=None)
"""Whether this rank's rows count in the training step that is computed; None outside of one."""


class Gathered(NamedTuple):
    """The rows of all ranks.

    Args:
        rows: in the order of the ranks, (rows of all ranks, ...).
        start: the number of this rank's first row among them.
    """

    rows: Tensor
    start: int


def gather_rows(rows: Tensor) -> Gathered:
    """The rows that all ranks call this with in a training step; gradients flow back to the ranks that they are of.

    Where the loss of a `Step` is the mean over the rank's own rows, several processes compute the gradient of one that
    has all rows in one batch. Validation may have unlike numbers of batches on two ranks, which could not wait for one
    another: there, and in a single process, the rows come back as they are.

    Args:
        rows: (rows, ...), of as many as the rank has; the other sizes are the same on all ranks.
    """
    counts = _COUNTS.get()
    if counts is None or not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return Gathered(rows, 0)
    sizes = _sizes(len(rows), counts, rows.device)
    rank, most = dist.get_rank(), max(size for size, _ in sizes)
    padded = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])])
    everyones: Tensor = _AllRows.apply(padded)  # (ranks, most, ...)
    # a row that only stands in for one is another rank's too, and nobody else's negative
    parts = [rows if at == rank else everyones[at, : size * counts] for at, (size, counts) in enumerate(sizes)]
    return Gathered(torch.cat(parts), sum(len(part) for part in parts[:rank]))


@contextmanager
def training_together(*, counts: bool) -> Iterator[None]:
    """A training step, which all ranks compute at once; see `TaskData.stands_in` for a rank that does not count."""
    token = _COUNTS.set(counts)
    try:
        yield
    finally:
        _COUNTS.reset(token)


def _sizes(size: int, counts: bool, device: torch.device) -> list[tuple[int, int]]:
    own = torch.tensor([size, int(counts)], device=device)
    found = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(found, own)
    return [(size, counts) for size, counts in torch.stack(found).tolist()]


class _AllRows(Function):
    """Stacks a tensor of each rank; a rank's gradient is the sum of what all ranks' losses give its tensor."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        found = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(found, own.contiguous())
        return torch.stack(found)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total[dist.get_rank()]
