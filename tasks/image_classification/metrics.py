"""How good a classification of images is."""

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from loralight.training import CalibrationError

MOST_CONFUSED = 1000
"""Labels up to which every pair of them is counted: 8 MB for 1,000."""


def image_metrics(num_labels: int) -> MetricCollection:
    """Accuracy, macro-averaged F1, ECE and, of more than five labels, how often the right is among the first five."""
    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": MulticlassAccuracy(num_labels, average="micro"),
        "f1": MacroF1(num_labels) if num_labels <= MOST_CONFUSED else MulticlassF1Score(num_labels, average="macro"),
        "ece": CalibrationError(num_labels),
    }
    if num_labels > 5:
        metrics["top5"] = MulticlassAccuracy(num_labels, average="micro", top_k=5)
    return MetricCollection(metrics)


class MacroF1(MulticlassConfusionMatrix):
    """The mean F1 of the labels that occur, in targets or predictions; it keeps the confusion matrix it is made from.

    Shapes: ``confmat`` (labels, labels), a row for each right label, a column for each predicted.
    """

    def compute(self) -> Tensor:
        hits = self.confmat.diag()
        both = self.confmat.sum(0) + self.confmat.sum(1)
        return torch.where(both > 0, 2 * hits / both, 0).sum() / (both > 0).sum().clamp(min=1)
