"""Metrics of entities: an entity is right if its type, first word and last word are.

Tjong Kim Sang & De Meulder, 2003, https://arxiv.org/abs/cs/0306050; the same as seqeval's strict mode with IOB2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection


def entity_metrics(types: Sequence[str]) -> MetricCollection:
    """F1, precision and recall over all entities, and F1 of each type."""
    each = {f"f1_{label.replace('.', '_')}": EntityF1(len(types), only=number) for number, label in enumerate(types)}
    count = len(types)
    return MetricCollection(
        {"f1": EntityF1(count), "precision": EntityPrecision(count), "recall": EntityRecall(count), **each}
    )


class _EntityCounts(Metric):
    """Counts of entities by type: correctly found, predicted, and present in the targets.

    Tags are numbers in the order of `tags.tag_names`, (sentences, longest), with -1 beyond a sentence's end. As in
    IOB2, an entity begins with a B and continues with the I of its type; an I without a B is not an entity.

    Args:
        num_types: number of types.
        only: the number of the type to measure; all types together if None.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    counts: Tensor

    def __init__(self, num_types: int, *, only: int | None = None) -> None:
        super().__init__()
        self.only = only
        self.add_state("counts", torch.zeros(3, num_types, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        ends, true_ends = _ends(predictions), _ends(targets)
        right = (ends > 0) & (ends == true_ends) & (predictions == targets)
        for row, chosen in enumerate((predictions[right], predictions[ends > 0], targets[true_ends > 0])):
            self.counts[row] += torch.bincount((chosen - 1) // 2, minlength=self.counts.shape[1])

    def _totals(self) -> tuple[Tensor, Tensor, Tensor]:
        counts = self.counts.cpu().double()  # not every device has float64
        found, predicted, there = counts.sum(1) if self.only is None else counts[:, self.only]
        return found, predicted, there


class EntityPrecision(_EntityCounts):
    """The share of predicted entities that are right; 0 if none is predicted."""

    def compute(self) -> Tensor:
        found, predicted, _ = self._totals()
        return found / predicted.clamp(min=1)


class EntityRecall(_EntityCounts):
    """The share of present entities that are found; 0 if there are none."""

    def compute(self) -> Tensor:
        found, _, there = self._totals()
        return found / there.clamp(min=1)


class EntityF1(_EntityCounts):
    """The harmonic mean of precision and recall; 0 if no entity is right."""

    def compute(self) -> Tensor:
        found, predicted, there = self._totals()
        return 2 * found / (predicted + there).clamp(min=1)


def _ends(tags: Tensor) -> Tensor:
    """For each word at which an entity begins, the end of the entity (the word after its last); 0 for other words.

    A B, an O or another type begins a new stretch of tags; stretches that begin with a B are entities.
    """
    length = tags.shape[-1]
    is_first = (tags > 0) & (tags % 2 == 1)
    type_number = torch.where(tags > 0, (tags + 1) // 2, 0)
    before = torch.nn.functional.pad(type_number, (1, 0))[..., :-1]
    begins = is_first | (type_number == 0) | (type_number != before)
    place = torch.arange(length, device=tags.device)
    next_begin = torch.where(begins, place, length).flip(-1).cummin(-1).values.flip(-1)
    after = torch.nn.functional.pad(next_begin, (0, 1), value=length)[..., 1:]
    return torch.where(is_first, after, 0)
