"""What a report on the data warns of before anything is trained: it will not stop a run, and may explain a poor one."""

from collections.abc import Hashable, Iterable, Mapping, Sequence

_FEW = 5  # rows of a class, of which a classifier learns little and a validation split measures nothing
_TIMES = 20  # as many rows of one class as of another, from which on accuracy says little


def few_rows(names: Sequence[str], counts: Sequence[int]) -> list[str]:
    """Lines on classes with hardly any training rows, or far fewer than others.

    Args:
        names: of the classes.
        counts: training rows of each.
    """
    few = [(name, count) for name, count in zip(names, counts, strict=True) if count < _FEW]
    if few:
        shown = ", ".join(f"{name} {count}" for name, count in few[:5]) + (", ..." if len(few) > 5 else "")
        return [f"caution: {len(few)} of {len(names)} labels have fewer than {_FEW} training rows: {shown}"]
    if max(counts) > _TIMES * min(counts):
        most, least = (names[counts.index(extreme)] for extreme in (max(counts), min(counts)))
        return [
            f"caution: {max(counts)} training rows of {most}, {min(counts)} of {least}: f1 says more than accuracy here"
        ]
    return []


def repeated_rows(splits: Mapping[str, Iterable[Hashable]]) -> list[str]:
    """Lines on rows of other splits that stand in train too, and whose score is of what was learned by heart.

    Args:
        splits: what tells rows apart, by split.
    """
    known = set(splits["train"])
    lines = []
    for split, rows in splits.items():
        given = list(rows)
        seen = sum(row in known for row in given)
        if split != "train" and seen:
            lines.append(f"caution: {seen} of {len(given)} rows of {split} are in train too, word for word")
    return lines
