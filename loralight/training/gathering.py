"""Gathering the rows of all ranks, for losses that compare rows with each other."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

_COUNTS: ContextVar[bool | None] = ContextVar("counts", default=None)
"""Whether this rank's rows count in the current training step; None outside of a training step."""


class Gathered(NamedTuple):
    """The rows of all ranks.

    Args:
        rows: in the order of the ranks, (rows of all ranks, ...).
        start: the number of this rank's first row among them.
    """

    rows: Tensor
    start: int


def gather_rows(rows: Tensor) -> Gathered:
    """The rows of all ranks in a training step; every rank calls this, and gradients flow back to each row's rank.

    If the loss of a `Step` is the mean over the rank's own rows, several processes compute the same gradient as a
    single process with all rows in one batch. In validation two ranks may have different numbers of batches and cannot
    wait for each other. There, and in a single process, ``rows`` is returned unchanged.

    Args:
        rows: (rows, ...); the number of rows may differ between ranks, the other sizes may not.
    """
    counts = _COUNTS.get()
    if counts is None or not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return Gathered(rows, 0)
    sizes = _sizes(len(rows), counts, rows.device)
    rank, most = dist.get_rank(), max(size for size, _ in sizes)
    padded = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])])
    everyones: Tensor = _AllRows.apply(padded)  # (ranks, most, ...)
    # a row that only fills this rank's batch is on another rank too: it is not a negative for other ranks
    parts = [rows if at == rank else everyones[at, : size * counts] for at, (size, counts) in enumerate(sizes)]
    return Gathered(torch.cat(parts), sum(len(part) for part in parts[:rank]))


@contextmanager
def training_together(*, counts: bool) -> Iterator[None]:
    """A training step that all ranks compute at once; see `TaskData.stands_in` for a rank that does not count."""
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
    """Stacks the tensors of all ranks; the gradient of a rank's tensor is summed over the losses of all ranks."""

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
