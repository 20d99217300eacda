"""Scores of answers as spans of tokens."""

import torch
from torch import Tensor
from torchmetrics import Metric


class _MeanOfSpans(Metric):
    """The mean of a score over questions."""

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "count"):
            self.add_state(name, torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, found: Tensor, right: Tensor) -> None:
        """First and last tokens, (questions, 2) each."""
        self.total = self.total + self.score(found, right).sum()
        self.count = self.count + len(right)

    def score(self, found: Tensor, right: Tensor) -> Tensor:
        raise NotImplementedError

    def compute(self) -> Tensor:
        return self.total / self.count


class ExactSpans(_MeanOfSpans):
    """The share of questions with the right first and last token."""

    def score(self, found: Tensor, right: Tensor) -> Tensor:
        return (found == right).all(1).float()


class SpanF1(_MeanOfSpans):
    """The mean F1 of the tokens of found and right answers."""

    def score(self, found: Tensor, right: Tensor) -> Tensor:
        first, last = torch.maximum(found[:, 0], right[:, 0]), torch.minimum(found[:, 1], right[:, 1])
        shared = (last - first + 1).clamp(min=0)
        lengths = (found[:, 1] - found[:, 0] + 1) + (right[:, 1] - right[:, 0] + 1)
        return 2 * shared / lengths
