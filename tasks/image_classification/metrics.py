"""Metrics of image classification."""

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from loralight.training import CalibrationError

MOST_CONFUSED = 1000
"""Most labels for which all pairs are counted: 8 MB for 1,000."""


def image_metrics(num_labels: int) -> MetricCollection:
    """Accuracy, macro-averaged F1 and ECE; top-5 accuracy for more than five labels."""
    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": MulticlassAccuracy(num_labels, average="micro"),
        "f1": MacroF1(num_labels) if num_labels <= MOST_CONFUSED else MulticlassF1Score(num_labels, average="macro"),
        "ece": CalibrationError(num_labels),
    }
    if num_labels > 5:
        metrics["top5"] = MulticlassAccuracy(num_labels, average="micro", top_k=5)
    return MetricCollection(metrics)


class MacroF1(MulticlassConfusionMatrix):
    """The mean F1 of the labels that occur in targets or predictions, computed from the confusion matrix it keeps.

    Shapes: ``confmat`` (labels, labels), a row for each right label, a column for each predicted label.
    """

    def compute(self) -> Tensor:
        hits = self.confmat.diag()
        both = self.confmat.sum(0) + self.confmat.sum(1)
        return torch.where(both > 0, 2 * hits / both, 0).sum() / (both > 0).sum().clamp(min=1)
