"""How good a classification is."""

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
    MultilabelExactMatch,
    MultilabelF1Score,
    MultilabelMatthewsCorrCoef,
)

from loralight.training import CalibrationError


def classification_metrics(num_labels: int, *, multi_label: bool) -> MetricCollection:
    """Accuracy (of whole rows, if a row can have several labels), macro-averaged F1 and Matthews correlation.

    Where a row has one label, the calibration error too (ECE).
    """
    if multi_label:
        return MetricCollection(
            {
                "accuracy": MultilabelExactMatch(num_labels),
                "f1": MultilabelF1Score(num_labels, average="macro"),
                "mcc": _MultilabelMcc(num_labels),
            }
        )
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(num_labels, average="micro"),
            "f1": MulticlassF1Score(num_labels, average="macro"),
            "mcc": _MulticlassMcc(num_labels),
            "ece": CalibrationError(num_labels),
        }
    )


class _MulticlassMcc(MulticlassMatthewsCorrCoef):
    def compute(self) -> Tensor:
        return _matthews(self.confmat)


class _MultilabelMcc(MultilabelMatthewsCorrCoef):
    def compute(self) -> Tensor:
        return _matthews(self.confmat.sum(0))  # every (row, label) is one binary answer


def _matthews(confusion: Tensor) -> Tensor:
    """Matthews correlation, 0 where predictions or targets are constant, as in scikit-learn.

    torchmetrics 1.9 gives a number of its own there if there are two classes: 0.26 for a model that always answers
    the class of 15 rows in 20.
    """
    targets, predictions, rows = confusion.sum(1), confusion.sum(0), confusion.sum()  # whole numbers: no rounding
    covariance = confusion.trace() * rows - (targets * predictions).sum()
    spreads = [(rows**2 - (counts**2).sum()).float() for counts in (targets, predictions)]
    spread = spreads[0].sqrt() * spreads[1].sqrt()
    return torch.where(spread > 0, covariance / spread.clamp(min=1), 0.0)
