"""The loss, the metrics and a step's further numbers in validation and test, each over all items of its split."""

from collections.abc import Mapping

import torch
from torch import nn
from torchmetrics import MeanMetric, MetricCollection

from loralight.errors import InputError
from loralight.training.step import Step, measure_, weight_of

_SPLITS = ("validation", "test")
_NAN = float("nan")  # a nan loss makes the mean nan; by default it would be left out


class Results(nn.Module):
    """The results of each split.

    Args:
        metrics: the task's metrics.
        of: name of the task's class, for messages.
    """

    def __init__(self, metrics: MetricCollection, *, of: str) -> None:
        super().__init__()
        self.losses = nn.ModuleDict({split: MeanMetric(nan_strategy=_NAN) for split in _SPLITS})
        self.means = nn.ModuleDict({split: nn.ModuleDict() for split in _SPLITS})
        self.scores = nn.ModuleDict({split: metrics.clone(prefix=f"{split}/") for split in _SPLITS})
        self._of = of

    def update_(self, split: str, step: Step) -> tuple[MeanMetric, MetricCollection, Mapping[str, MeanMetric]]:
        """Add a batch; returns the split's loss, its metrics, and the means of its numbers by name."""
        loss, scores = self.losses[split], self.scores[split]
        assert isinstance(loss, MeanMetric) and isinstance(scores, MetricCollection)
        loss.update(step.loss, weight_of(step))
        measure_(scores, step)
        means = {name: self._mean_of(split, self.unused(name), step.loss.device) for name in step.numbers}
        for name, mean in means.items():
            mean.update(torch.as_tensor(step.numbers[name]).detach(), weight_of(step))
        return loss, scores, means

    def unused(self, name: str) -> str:
        """``name``, after checking that a step's number may be logged by it.

        Raises:
            InputError: something else is logged by this name (``E-NUMBERS``).
        """
        scores = self.scores["validation"]
        assert isinstance(scores, MetricCollection)
        if name in ("loss", "epoch_loss", "penalty") or name in scores:
            raise InputError("E-NUMBERS", f"the step of {self._of} names a number {name!r}, which is logged already")
        return name

    def _mean_of(self, split: str, name: str, device: torch.device) -> MeanMetric:
        """The mean over all items; made at the first step, since a step's numbers are not known before."""
        means = self.means[split]
        assert isinstance(means, nn.ModuleDict)
        if name not in means:
            means[name] = MeanMetric(nan_strategy=_NAN).to(device)
        found = means[name]
        assert isinstance(found, MeanMetric)
        return found
