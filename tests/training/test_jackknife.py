"""How sure a score is, by leaving out groups of rows."""

from contextlib import nullcontext
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from loralight.training.jackknife import pseudo_values, scores_of
from loralight.training.step import Step


class Answers:
    """Of a task, what is asked for: its batches are predictions and targets."""

    device = torch.device("cpu")

    def metrics(self) -> MetricCollection:
        return MetricCollection({"accuracy": MulticlassAccuracy(3, average="micro"), "f1": MulticlassF1Score(3)})

    def step(self, batch: tuple[Tensor, Tensor]) -> Step:
        return Step(batch[1].float().mean(), *batch)


def batches(count: int, rows: int, seed: int = 0) -> list[Any]:
    random = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(3, (2, rows), generator=random)) for _ in range(count)]


@pytest.mark.parametrize("metric", ["accuracy", "f1", "loss"])
def test_a_score_is_that_of_all_rows_and_of_all_but_each_group(metric: str) -> None:
    given, task = batches(23, 8), Answers()
    found = scores_of(task, given, metric, num_batches=23, precision=nullcontext)  # type: ignore[arg-type]
    assert len(found) == 11
    for group, score in enumerate([None, *range(10)]):
        kept = [batch for number, batch in enumerate(given) if score is None or number % 10 != score]
        predictions, targets = (torch.cat(parts) for parts in zip(*kept, strict=True))
        whole = targets.float().mean() if metric == "loss" else task.metrics()[metric](predictions, targets)
        assert found[group] == pytest.approx(float(whole), abs=1e-6)


def test_of_a_mean_it_is_the_error_that_is_known_of_one() -> None:
    """With a row a group the spread of pseudo values is the rows' own, and their mean is the mean."""
    given = batches(10, 1)
    task = Answers()
    found = scores_of(task, given, "accuracy", num_batches=10, precision=nullcontext)  # type: ignore[arg-type]
    hits = [float(predictions == targets) for predictions, targets in given]
    values = pseudo_values(found, [0.0] * 11)
    assert values == pytest.approx(hits, abs=1e-5)
    assert (mean(values), stdev(values)) == pytest.approx((mean(hits), stdev(hits)), abs=1e-5)


def test_equal_scores_do_not_differ_and_few_batches_have_no_groups() -> None:
    found = scores_of(Answers(), batches(2, 8), "f1", num_batches=2, precision=nullcontext)  # type: ignore[arg-type]
    assert len(found) == 1
    assert pseudo_values(found, found) == []
    assert pseudo_values([0.5, 0.4, 0.6], [0.5, 0.4, 0.6]) == [0.0, 0.0]
