"""The uncertainty of a score, and of a difference of scores on the same rows: the delete-a-group jackknife.

Any metric can be computed without a group of rows: an accuracy, an F1 or a perplexity. Its spread when each group is
left out in turn estimates its spread over other samples of rows (Quenouille, 1956; Kott, 2001).
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torchmetrics import MeanMetric

from loralight.training.step import measure_, weight_of
from loralight.training.task import AdapterTask

_GROUPS = 10


@torch.no_grad()
def scores_of(
    task: AdapterTask,
    batches: Iterable[Any],
    metric: str,
    *,
    num_batches: int,
    precision: Callable[[], AbstractContextManager[Any]],
) -> list[float]:
    """A metric on all rows, then without each of up to ten groups of them; with fewer than 3 batches, on all rows only.

    Args:
        task: in evaluation mode.
        batches: on the task's device; with ten groups, every tenth batch is in the same group.
        metric: the name of one of the task's metrics, or ``loss``, the mean over all items.
        num_batches: the number of ``batches``.
        precision: the context of a forward pass.
    """
    groups = min(_GROUPS, num_batches) if num_batches > 2 else 0
    scores = [(task.metrics().to(task.device), MeanMetric().to(task.device)) for _ in range(groups + 1)]
    for number, batch in enumerate(batches):
        with precision():
            step = task.step(batch)
        for group, (metrics, loss) in enumerate(scores):
            if not group or group - 1 != number % groups:
                measure_(metrics, step)
                loss.update(step.loss, weight_of(step))
    return [float(loss.compute() if metric == "loss" else metrics.compute()[metric]) for metrics, loss in scores]


def pseudo_values(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Jackknife pseudo-values of the difference of two scores on the same rows.

    Their mean, and its standard error, are computed as for independent values.

    Args:
        one: scores of the first model, as `scores_of` returns them.
        other: scores of the second model, on the same groups.
    """
    differences = [a - b for a, b in zip(one, other, strict=True)]
    groups = len(differences) - 1
    return [groups * differences[0] - (groups - 1) * without for without in differences[1:]]
