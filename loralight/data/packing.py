"""Packing: several short documents in one row, so that little is computed on padding."""

from bisect import bisect_left, insort
from collections.abc import Sequence

from datasets import Dataset


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Assign documents to rows by best fit, longest first (as Ding et al., 2024, https://arxiv.org/abs/2404.10830).

    Args:
        lengths: of the documents, none above ``capacity``.
        capacity: tokens of a row.

    Returns:
        The documents' numbers by row, each document in one row.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room, row), sorted
    for document in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        at = bisect_left(free, (lengths[document], 0))
        if at == len(free):
            rows.append([])
            room, row = capacity, len(rows) - 1
        else:
            room, row = free.pop(at)
        rows[row].append(document)
        if room := room - lengths[document]:
            insort(free, (room, row))
    return rows


class PackedRows:
    """Rows of documents; positions restart at 0 in each document.

    Args:
        documents: rows of input_ids and targets.
        groups: the documents of each row.
    """

    def __init__(self, documents: Dataset, groups: Sequence[Sequence[int]]) -> None:
        self.documents, self.groups = documents, groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, row: int) -> dict[str, list[int]]:
        parts = self.documents[list(self.groups[row])]
        joined = {name: [token for part in parts[name] for token in part] for name in ("input_ids", "targets")}
        return {**joined, "position_ids": [at for part in parts["input_ids"] for at in range(len(part))]}
