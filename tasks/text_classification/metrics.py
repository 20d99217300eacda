"""How good a classification is."""

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassStatScores,
    MultilabelExactMatch,
    MultilabelF1Score,
    MultilabelStatScores,
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
                "mcc": _MultilabelMcc(num_labels, average=None),
            }
        )
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(num_labels, average="micro"),
            "f1": MulticlassF1Score(num_labels, average="macro"),
            "mcc": _MulticlassMcc(num_labels, average=None),
            "ece": CalibrationError(num_labels),
        }
    )


class _MulticlassMcc(MulticlassStatScores):
    """By the counts of each label: a table of every label by every label takes 400 MB, six times, where 7,000 are."""

    def compute(self) -> Tensor:
        right, wrong, _, missed = self._final_state()
        return _matthews(right.sum(), predictions=right + wrong, targets=right + missed)


class _MultilabelMcc(MultilabelStatScores):
    def compute(self) -> Tensor:
        """Every (row, label) is one binary answer."""
        right, wrong, left_out, missed = (counts.sum() for counts in self._final_state())
        predictions = torch.stack([left_out + missed, right + wrong])
        return _matthews(
            right + left_out, predictions=predictions, targets=torch.stack([left_out + wrong, right + missed])
        )


def _matthews(right: Tensor, *, predictions: Tensor, targets: Tensor) -> Tensor:
    """Matthews correlation, 0 where predictions or targets are constant, as in scikit-learn.

    torchmetrics 1.9 gives a number of its own there if there are two classes: 0.26 for a model that always answers
    the class of 15 rows in 20.
    """
    rows = targets.sum()  # whole numbers: no rounding
    covariance = right * rows - (targets * predictions).sum()
    spreads = [(rows**2 - (counts**2).sum()).float() for counts in (targets, predictions)]
    spread = spreads[0].sqrt() * spreads[1].sqrt()
    return torch.where(spread > 0, covariance / spread.clamp(min=1), 0.0)
