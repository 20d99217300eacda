"""Shares of right tokens and right texts."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class _Share(Metric):
    """A share of items."""

    right: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("right", "count"):
            self.add_state(name, torch.tensor(0.0), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        return self.right / self.count


class Tokens(_Share):
    """The share of tokens that are the model's most likely token at their place."""

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Token numbers, (tokens,) each."""
        self.right = self.right + (predictions == targets).sum()
        self.count = self.count + len(targets)


class Texts(_Share):
    """The share of texts that match the target exactly."""

    def update(self, written: Sequence[str], wanted: Sequence[str]) -> None:
        """Add texts, which a step gives as ``arguments``."""
        self.right = self.right + sum(one.strip() == other.strip() for one, other in zip(written, wanted, strict=True))
        self.count = self.count + len(wanted)
