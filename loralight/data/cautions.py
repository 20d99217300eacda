"""Warnings about the data, reported before training: they do not stop a run, but may explain a poor result."""

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations

_FEW = 5  # rows of a class; from fewer a classifier learns little, and a validation split measures nothing
_TIMES = 20  # one class has so many times the rows of another: above this, accuracy says little
_MOST = 0.8  # share of the rows in the commonest class: from here on, accuracy says little
_CUT = 0.05  # share of the rows that are longer than the window
_SHOWN = 5
_NUMBER = re.compile(r"-?\d+(\.\d+)?", re.ASCII)
_SEPARATED = re.compile(r"[^,;|]+[,;|][^,;|]+.*|\[.*\]")


def few_rows(names: Sequence[str], counts: Sequence[int], *, of: str = "training rows") -> list[str]:
    """A line on classes with too few rows to learn from.

    Args:
        names: of the classes.
        counts: how often each class comes in training.
        of: the name of the counted items.
    """
    few = [(name, count) for name, count in zip(names, counts, strict=True) if count < _FEW]
    if not few:
        return []
    shown = ", ".join(f"{name} {count}" for name, count in few[:_SHOWN]) + (", ..." if len(few) > _SHOWN else "")
    return [
        f"caution: {len(few)} of {len(names)} labels have fewer than {_FEW} {of}: {shown}. Give more of them, or join "
        "labels"
    ]


def uneven_rows(names: Sequence[str], counts: Sequence[int]) -> list[str]:
    """A line on classes so unequal in frequency that accuracy says little.

    Args:
        names: of the classes; each row has one class.
        counts: training rows of each class.
    """
    most, least = max(counts), min(counts)
    share = most / max(sum(counts), 1)
    if most <= _TIMES * max(least, 1) and share < _MOST:
        return []
    return [
        f"caution: {share:.1%} of {sum(counts)} training rows are {names[counts.index(most)]}, and {least} are "
        f"{names[counts.index(least)]}: always to answer the first has an accuracy of {share:.3f}. Look at f1 "
        "(monitor.metric=validation/f1), and try task.class_weights=balanced"
    ]


def repeated_rows(splits: Mapping[str, Iterable[Hashable]], *, alike: str = "word for word") -> list[str]:
    """Lines on rows that are in two splits, so that scores reward memory.

    Args:
        splits: the identity of each row, by split.
        alike: how alike two rows of one identity are.
    """
    given = {split: list(rows) for split, rows in splits.items()}
    known = {split: set(rows) for split, rows in given.items()}
    lines = []
    for first, second in combinations(given, 2):
        if seen := sum(row in known[first] for row in given[second]):
            lines.append(
                f"caution: {seen} of {len(given[second])} rows of {second} are in {first} too, {alike}: take them "
                "out of one"
            )
    return lines


def cut_rows(cut: Mapping[str, int], rows: Mapping[str, int], *, max_length: int) -> list[str]:
    """A line on rows that are cut because they are too long.

    Args:
        cut: the number of cut rows, by split.
        rows: the number of all rows, by split.
        max_length: tokens that are read.
    """
    many = [f"{cut[split]} of {rows[split]} rows of {split}" for split in cut if cut[split] >= _CUT * rows[split]]
    if not many:
        return []
    return [
        f"caution: {', '.join(many)} are longer than {max_length} tokens and lose their end, which a larger "
        "model.max_length reads as far as the model takes it"
    ]


def left_out_rows(left: Mapping[str, int], rows: Mapping[str, int], *, max_length: int) -> list[str]:
    """A line on rows of which nothing is learnt.

    Args:
        left: the number of such rows, by split.
        rows: the number of all rows, by split.
        max_length: tokens that are read.
    """
    many = [f"{left[split]} of {rows[split]} rows of {split}" for split in left if left[split] >= _CUT * rows[split]]
    if not many:
        return []
    return [
        f"caution: {', '.join(many)} are left out: what is learnt of them is empty or begins after {max_length} "
        "tokens; then raise model.max_length as far as the model takes it"
    ]


def odd_names(names: Sequence[str]) -> list[str]:
    """A line on class names, found in the data, that look like numbers or like several names in one.

    Args:
        names: of the classes.
    """
    shown = f"{', '.join(map(repr, names[:3]))}{', ...' if len(names) > 3 else ''}"
    if all(_NUMBER.fullmatch(name) for name in names):
        return [
            f"caution: all {len(names)} labels are numbers ({shown}), told apart as classes without an order: "
            "data.labels names them, in this order"
        ]
    if joined := [name for name in names if _SEPARATED.fullmatch(name)]:
        return [
            f"caution: {len(joined)} of {len(names)} labels look like several in one ({joined[0]!r}): if they are, "
            "data.label_separator divides them"
        ]
    return []
