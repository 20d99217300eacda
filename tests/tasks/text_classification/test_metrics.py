"""The metrics are those of scikit-learn."""

import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, matthews_corrcoef
from torch import Tensor

from loralight.tasks.text_classification.metrics import classification_metrics

from ...textbook import calibration_error

CASES = {
    "random": lambda targets, scores: (targets, scores),
    "mostly right": lambda targets, scores: (
        targets,
        scores + 2 * torch.nn.functional.one_hot(targets, scores.shape[1]),
    ),
    "constant predictions": lambda targets, scores: (targets, torch.eye(scores.shape[1])[0].expand_as(scores)),
    "constant targets": lambda targets, scores: (torch.zeros_like(targets), scores),
    "all alike": lambda targets, scores: (torch.zeros_like(targets), torch.eye(scores.shape[1])[0].expand_as(scores)),
    "skewed": lambda targets, scores: (targets.where(torch.rand(targets.shape) < 0.02, 0), scores),
}


def scores_in_batches(num_labels: int, predictions: Tensor, targets: Tensor, *, multi_label: bool) -> dict[str, float]:
    metrics = classification_metrics(num_labels, multi_label=multi_label)
    for batch in torch.arange(len(targets)).split(7):
        metrics.update(predictions[batch], targets[batch])
    return {name: float(value) for name, value in metrics.compute().items()}


@pytest.mark.filterwarnings("ignore:A single label was found in:UserWarning")  # of scikit-learn
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("num_labels", [2, 3, 7])
def test_one_label_a_row_is_measured_as_by_scikit_learn(num_labels: int, case: str) -> None:
    torch.manual_seed(num_labels)
    targets, logits = CASES[case](torch.randint(num_labels, (100,)), torch.randn(100, num_labels))
    found = scores_in_batches(num_labels, logits, targets, multi_label=False)
    answers = logits.argmax(-1)
    assert found == pytest.approx(
        {
            "accuracy": accuracy_score(targets, answers),
            "f1": f1_score(targets, answers, average="macro"),
            "mcc": matthews_corrcoef(targets, answers),
            "ece": calibration_error(logits.numpy(), targets.numpy()),
        },
        abs=1e-6,
    )


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7])
def test_several_labels_a_row_are_measured_as_by_scikit_learn(share: float) -> None:
    torch.manual_seed(0)
    probabilities, targets = torch.rand(100, 4), torch.rand(100, 4) < 0.4
    known = torch.rand(100, 4) < share
    probabilities[known] = targets[known].float()
    answers = (probabilities > 0.5).int()
    found = scores_in_batches(4, probabilities, targets.long(), multi_label=True)
    assert found == pytest.approx(
        {
            "accuracy": accuracy_score(targets.int(), answers),
            "f1": f1_score(targets.int(), answers, average="macro"),
            "mcc": matthews_corrcoef(targets.int().flatten(), answers.flatten()),
            "average_precision": average_precision_score(targets.int(), probabilities),
        },
        abs=1e-6,
    )


def test_average_precision_is_the_same_for_all_thresholds_and_of_the_labels_that_rows_have() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(100, 4), (torch.rand(100, 4) < 0.2).long()
    targets[:, 2] = 0
    shifted = logits - torch.tensor([2.0, 0.0, -1.0, 1.0])
    one, other = (scores_in_batches(4, scores.sigmoid(), targets, multi_label=True) for scores in (logits, shifted))
    given = [0, 1, 3]
    expected = average_precision_score(targets[:, given], logits[:, given])
    assert one["average_precision"] == pytest.approx(expected, abs=1e-6) == other["average_precision"]
    assert one["f1"] != pytest.approx(other["f1"], abs=1e-3)
    none = scores_in_batches(4, logits.sigmoid(), torch.zeros_like(targets), multi_label=True)
    assert none["average_precision"] == 0
