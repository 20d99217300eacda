"""Metrics of classification."""

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassStatScores,
    MultilabelAveragePrecision,
    MultilabelExactMatch,
    MultilabelF1Score,
    MultilabelStatScores,
)
from torchmetrics.functional.classification import multilabel_average_precision
from torchmetrics.utilities import dim_zero_cat

from loralight.training import CalibrationError


def classification_metrics(num_labels: int, *, multi_label: bool) -> MetricCollection:
    """Accuracy (of whole rows, if a row can have several labels), macro-averaged F1 and Matthews correlation.

    If a row has one label, also the calibration error (ECE); if it can have several, mean average precision, which is
    the same for all thresholds.
    """
    if multi_label:
        return MetricCollection(
            {
                "accuracy": MultilabelExactMatch(num_labels),
                "f1": MultilabelF1Score(num_labels, average="macro"),
                "mcc": _MultilabelMcc(num_labels, average=None),
                "average_precision": _MeanAveragePrecision(num_labels),
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


class _MeanAveragePrecision(MultilabelAveragePrecision):
    def compute(self) -> Tensor:  # type: ignore[override]  # as in torchmetrics itself
        """The mean over the labels that any row has; the others have no average precision."""
        predictions, targets = dim_zero_cat(self.preds), dim_zero_cat(self.target)
        given = targets.any(0)
        if not given.any():
            return torch.zeros((), device=given.device)
        return multilabel_average_precision(
            predictions[:, given], targets[:, given], int(given.sum()), validate_args=False
        )


class _MulticlassMcc(MulticlassStatScores):
    """Matthews correlation from counts by label; a table of all pairs of 7,000 labels would take six times 400 MB."""

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
    """Matthews correlation, 0 if predictions or targets are constant, as in scikit-learn.

    torchmetrics 1.9 gives another number then if there are two classes: 0.26 for a model that always answers the class
    of 15 rows in 20.
    """
    rows = targets.sum()  # integers: no rounding
    covariance = right * rows - (targets * predictions).sum()
    spreads = [(rows**2 - (counts**2).sum()).float() for counts in (targets, predictions)]
    spread = spreads[0].sqrt() * spreads[1].sqrt()
    return torch.where(spread > 0, covariance / spread.clamp(min=1), 0.0)
