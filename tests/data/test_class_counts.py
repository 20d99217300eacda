"""What is common is counted, shown and scored as it is."""

import numpy as np
import pytest
import torch
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score, f1_score

from loralight.data.class_counts import always_the_commonest, count_classes, counts_line
from loralight.tasks.image_classification.metrics import image_metrics

RANDOM = np.random.default_rng(0)


def test_a_class_without_a_row_is_counted_too() -> None:
    assert count_classes(iter([2, 0, 2]), 4) == [1, 0, 2, 0]


@pytest.mark.parametrize(("number", "end"), [(2, "b 1"), (10, "j 9"), (11, "j 9, ...")])
def test_a_line_of_many_classes_shows_the_first_ten(number: int, end: str) -> None:
    line = counts_line("abcdefghijk"[:number], range(number))
    assert line.startswith("a 0, b 1") and line.endswith(end)


def test_the_trivial_answer_is_scored_as_by_scikit_learn() -> None:
    train, targets = RANDOM.choice(8, 200, p=np.arange(1, 9) / 36), RANDOM.integers(0, 8, 50)
    counts = np.bincount(train, minlength=8)
    answers = DummyClassifier(strategy="most_frequent").fit(train[:, None], train).predict(targets[:, None])
    found = always_the_commonest(image_metrics(8), counts.tolist(), torch.tensor(targets))
    wanted = {"accuracy": accuracy_score(targets, answers), "f1": f1_score(targets, answers, average="macro")}
    wanted["ece"] = abs(accuracy_score(targets, answers) - counts.max() / counts.sum())  # as sure as it is common
    wanted["top5"] = np.isin(targets, np.argsort(counts)[-5:]).mean()
    assert found == pytest.approx(wanted, abs=1e-6)
