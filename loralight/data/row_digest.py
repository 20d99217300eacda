"""Digests that identify a split by its rows, wherever its files are."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

_SAMPLE = 64  # rows: reading them takes as long as reading two batches


def sample(num_rows: int) -> range:
    """The numbers of at least 64 rows, or of all, spread over a split."""
    return range(0, num_rows, max(1, num_rows // _SAMPLE))


def digest(rows: Iterable[Any], lengths: Iterable[int]) -> str:
    """A shortened sha256 of the lengths of all rows and the content of a `sample`.

    Args:
        rows: the rows of the sample.
        lengths: the cost of each row of the split.
    """
    found = hashlib.sha256(",".join(str(int(length)) for length in lengths).encode())
    for row in rows:
        _add(row, found)
    return found.hexdigest()[:32]


def digest_of(rows: Any, lengths: Iterable[int]) -> str:
    """The `digest` of rows that are sized and indexable by number."""
    return digest((rows[row] for row in sample(len(rows))), lengths)


def _add(value: Any, found: "hashlib._Hash") -> None:
    if isinstance(value, Mapping):
        for key in sorted(value):
            found.update(f"{key}:".encode())
            _add(value[key], found)
    elif isinstance(value, list | tuple):
        for item in value:
            _add(item, found)
        found.update(b";")
    elif isinstance(value, Tensor):
        found.update(
            f"{tuple(value.shape)}".encode() + value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    elif isinstance(value, bytes):
        found.update(value)
    else:
        found.update(f"{value!r},".encode())
