"""The result of a task's step on a batch, and the sums over the batches of an optimizer step."""

import inspect
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from loralight import stopping


class Step(NamedTuple):
    """The result of a task's step on a batch.

    Args:
        loss: mean loss over the batch's items, a scalar that can be differentiated.
        predictions: the first argument of the metrics' update.
        targets: the second one.
        weight: how many items (sentences, tokens) the mean is over; the batch's number of targets if None. Losses
            are averaged over all items of an optimizer step, on every rank and in every accumulated batch, so that
            several processes compute the gradient of one.
        numbers: further means over these items, which are logged by their names beside the loss: in training of each
            step, in validation and test of all items. Every step of a split gives the same names.
        arguments: further arguments of the metrics' update; each metric gets those whose names it declares, and
            predictions and targets in the places that are left.
    """

    loss: Tensor
    predictions: Tensor
    targets: Tensor
    weight: float | Tensor | None = None
    numbers: Mapping[str, float | Tensor] = MappingProxyType({})
    arguments: Mapping[str, Any] = MappingProxyType({})


def weight_of(step: Step) -> Tensor:
    """How many items the step's loss is the mean of, a scalar on its device."""
    weight = step.targets.shape[0] if step.weight is None else step.weight
    # bfloat16 cannot count above 256
    dtype = torch.promote_types(step.loss.dtype, torch.float32)
    # a number that is copied to a GPU, as `torch.as_tensor` does, waits for all that is queued there
    return weight.to(dtype) if isinstance(weight, Tensor) else step.loss.new_full((), weight, dtype=dtype)


def measure_(metrics: MetricCollection, step: Step) -> None:
    """Update each metric with what it declares of a step.

    In the collection's own update, two metrics for which a first batch gives equal sums would be one from then on.
    """
    for metric in metrics.values():
        parameters = inspect.signature(metric.update).parameters
        named = {name: value for name, value in step.arguments.items() if name in parameters}
        is_open = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters.values())
        places = 2 if is_open else len(parameters) - len(named)
        metric.update(*(step.predictions, step.targets)[:places], **named)


class Window:
    """Loss and weight summed over the batches since the last optimizer step, on all ranks.

    The sums are on their way from a GPU while the backward pass is queued, and leave no gap in its work. With them goes
    on how many ranks the process was told to stop, so that all know at once.
    """

    def __init__(self) -> None:
        self.own: Tensor | None = None  # this rank's share of the sums that were taken last
        self.told_to_stop = False  # any rank, by the end of the last window
        self._sums: Tensor | None = None
        self._read: Callable[[], list[float]] | None = None

    def add(self, loss: Tensor, weight: Tensor, reduce: Callable[[Tensor], Tensor]) -> None:
        """Add a batch's mean loss, weighted; ``reduce`` sums a tensor over ranks, perhaps in place."""
        batch = torch.stack([loss * weight, weight])
        self._sums = batch if self._sums is None else self._sums + batch
        told = batch.new_full((1,), stopping.told() is not None)
        self._read = on_its_way(reduce(torch.cat([self._sums, told])))

    def take(self) -> list[float]:
        """Both sums; the next batch begins a new window."""
        assert self._read is not None
        *found, told = self._read()
        self.told_to_stop = told > 0
        self.own, self._sums, self._read = self._sums, None, None
        return found

    def ranks_of_loss(self, total: float, num_ranks: int, gather: Callable[[Tensor], Any]) -> list[int]:
        """The ranks whose own loss is not finite, if their sum is not; else all. In a bad step the ranks exchange.

        Args:
            total: the sum that was taken last.
            num_ranks: of the run.
            gather: stacks a tensor of each rank; every rank calls it.
        """
        ranks = list(range(num_ranks))
        if math.isfinite(total):
            return ranks
        assert self.own is not None
        finite = gather(self.own).reshape(-1, 2)[:, 0].isfinite().tolist()
        return [rank for rank in ranks if not finite[rank]] or ranks


class EpochLoss:
    """Loss and weight summed over the optimizer steps of an epoch, on all ranks."""

    def __init__(self) -> None:
        self.sums = (0.0, 0.0)

    def add(self, loss: float, weight: float) -> None:
        """Add a step's sums; a step with a loss that is not finite is not taken."""
        if math.isfinite(loss):
            self.sums = (self.sums[0] + loss, self.sums[1] + weight)

    @property
    def mean(self) -> float:
        """The mean loss over all items."""
        loss, weight = self.sums
        return loss / max(weight, 1e-12)


def on_its_way(tensor: Tensor) -> Callable[[], list[float]]:
    """A call for a tensor's values, which waits until they are there, but for nothing queued on a GPU after them."""
    if tensor.device.type != "cuda":
        return tensor.tolist
    values, arrived = tensor.to("cpu", non_blocking=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()

    def read() -> list[float]:
        arrived.synchronize()
        found: list[float] = values.tolist()
        return found

    return read
