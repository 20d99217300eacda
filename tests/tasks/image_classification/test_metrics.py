"""The metrics are those of scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, top_k_accuracy_score

from loralight.tasks.image_classification.metrics import MacroF1, image_metrics

from ...textbook import calibration_error

RANDOM = np.random.default_rng(0)


@pytest.mark.filterwarnings("ignore:The number of unique classes is greater:UserWarning")  # scikit-learn 1.7, at 1200
@pytest.mark.parametrize("num_labels", [2, 5, 6, 12, 1200])
def test_scores_are_those_of_scikit_learn_over_several_batches(num_labels: int) -> None:
    scores = RANDOM.normal(size=(60, num_labels)).astype(np.float32)
    targets = RANDOM.integers(0, num_labels, 60)
    metrics = image_metrics(num_labels)
    for rows in np.array_split(np.arange(60), 7):
        metrics.update(torch.tensor(scores[rows]), torch.tensor(targets[rows]))
    answers = scores.argmax(1)
    wanted = {"accuracy": accuracy_score(targets, answers), "f1": f1_score(targets, answers, average="macro")}
    wanted["ece"] = calibration_error(scores, targets)
    if num_labels > 5:
        wanted["top5"] = top_k_accuracy_score(targets, scores, k=5, labels=range(num_labels))
    found = {name: float(value) for name, value in metrics.compute().items()}
    assert found == pytest.approx(wanted, abs=1e-6)


def test_labels_that_neither_occur_nor_are_answered_do_not_count_in_f1() -> None:
    targets, answers = [0, 0, 1, 3], [0, 1, 1, 0]
    metric = MacroF1(6)
    metric.update(torch.tensor(answers), torch.tensor(targets))
    assert float(metric.compute()) == pytest.approx(f1_score(targets, answers, average="macro"))
    assert np.array_equal(metric.confmat.numpy(), confusion_matrix(targets, answers, labels=range(6)))


def test_f1_of_no_rows_is_a_number() -> None:
    metric = MacroF1(3)
    metric.update(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    assert float(metric.compute()) == 0
