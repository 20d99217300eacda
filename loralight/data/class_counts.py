"""The frequency of each class: as numbers, as a line of the report, and as a baseline score."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

_SHOWN = 10  # classes in a line


def count_classes(numbers: Iterable[int], num_classes: int) -> list[int]:
    """The count of each class among ``numbers``."""
    counts = Counter(numbers)
    return [counts[number] for number in range(num_classes)]


def counts_line(names: Sequence[str], counts: Sequence[int]) -> str:
    """The first classes with their counts, for a report."""
    shown = [f"{name} {count}" for name, count in zip(names, counts, strict=True)]
    return f"{', '.join(shown[:_SHOWN])}{', ...' if len(shown) > _SHOWN else ''}"


def always_the_commonest(
    metrics: Callable[[Tensor, Tensor], Mapping[str, Tensor]], counts: Sequence[int], targets: Tensor
) -> dict[str, float]:
    """The scores of a baseline that predicts each class with its share of the training rows, for every row.

    Args:
        metrics: a function of logits (rows, classes) and targets (rows,).
        counts: training rows of each class.
        targets: correct classes, (rows,).
    """
    logits = torch.tensor(counts, dtype=torch.float32).log().expand(len(targets), -1)
    return {name: float(value) for name, value in metrics(logits, targets).items()}


def always_the_same(
    metrics: Callable[[Tensor, Tensor], Mapping[str, Tensor]], rows: Sequence[Sequence[int]], targets: Tensor
) -> dict[str, float]:
    """The scores of a baseline that gives every row the same labels, where a row can have several.

    Of each metric it is the higher score of two such answers: the most frequent set of labels, with which most rows
    are right, and all labels, which has the highest F1 of each label.

    Args:
        metrics: a function of probabilities (rows, labels) and targets, by which higher is better.
        rows: the labels of each training row.
        targets: 0 and 1, (rows, labels).
    """
    commonest = torch.zeros(targets.shape[1])
    commonest[list(Counter(map(frozenset, rows)).most_common(1)[0][0])] = 1
    answers = (commonest, torch.ones_like(commonest))
    scores = [metrics(answer.expand(len(targets), -1), targets) for answer in answers]
    return {name: max(float(each[name]) for each in scores) for name in scores[0]}
