"""The frequency of each class: as numbers, as a line of the report, and as the score of the commonest answer."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

_SHOWN = 10  # classes of a line


def count_classes(numbers: Iterable[int], num_classes: int) -> list[int]:
    """How often each class comes among ``numbers``."""
    counts = Counter(numbers)
    return [counts[number] for number in range(num_classes)]


def counts_line(names: Sequence[str], counts: Sequence[int]) -> str:
    """The first classes with how often each comes, for a report."""
    shown = [f"{name} {count}" for name, count in zip(names, counts, strict=True)]
    return f"{', '.join(shown[:_SHOWN])}{', ...' if len(shown) > _SHOWN else ''}"


def always_the_commonest(
    metrics: Callable[[Tensor, Tensor], Mapping[str, Tensor]], counts: Sequence[int], targets: Tensor
) -> dict[str, float]:
    """The scores of giving each class the share of training rows that it has, whatever the row.

    Args:
        metrics: of logits (rows, classes) and right classes (rows,).
        counts: rows of each class in training.
        targets: right classes, (rows,).
    """
    logits = torch.tensor(counts, dtype=torch.float32).log().expand(len(targets), -1)
    return {name: float(value) for name, value in metrics(logits, targets).items()}
