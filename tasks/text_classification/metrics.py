"""How good a classification is."""

from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
    MultilabelExactMatch,
    MultilabelF1Score,
    MultilabelMatthewsCorrCoef,
)


def classification_metrics(num_labels: int, *, multi_label: bool) -> MetricCollection:
    """Accuracy (of whole rows, if a row can have several labels), macro-averaged F1 and Matthews correlation."""
    if multi_label:
        return MetricCollection(
            {
                "accuracy": MultilabelExactMatch(num_labels),
                "f1": MultilabelF1Score(num_labels, average="macro"),
                "mcc": MultilabelMatthewsCorrCoef(num_labels),
            }
        )
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(num_labels, average="micro"),
            "f1": MulticlassF1Score(num_labels, average="macro"),
            "mcc": MulticlassMatthewsCorrCoef(num_labels),
        }
    )
