"""The result of a task's step on a batch, and the sums over the batches of an optimizer step."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from loralight import stopping
from loralight.annotations import mismatch
from loralight.errors import InputError


class Step(NamedTuple):
    """The result of a task's step on a batch.

    Args:
        loss: mean loss over the batch's items, a differentiable scalar.
        predictions: the first argument of the metrics' update.
        targets: the second argument of the metrics' update.
        weight: how many items (sentences, tokens) the mean is over; the batch's number of targets if None. Losses
            are averaged over all items of an optimizer step, on every rank and in every accumulated batch, so that
            several processes compute the same gradient as one.
        numbers: further means over these items, logged by their names next to the loss: for each step in training,
            over all items in validation and test. Every step of a split gives the same names.
        arguments: further arguments of the metrics' update. Each metric gets those that it declares by name, and
            predictions and targets as its remaining arguments.
    """

    loss: Tensor
    predictions: Tensor
    targets: Tensor
    weight: float | Tensor | None = None
    numbers: Mapping[str, float | Tensor] = MappingProxyType({})
    arguments: Mapping[str, Any] = MappingProxyType({})


def weight_of(step: Step) -> Tensor:
    """The number of items that the step's loss is the mean of, as a scalar on the loss's device."""
    weight = step.targets.shape[0] if step.weight is None else step.weight
    # bfloat16 cannot count above 256
    dtype = torch.promote_types(step.loss.dtype, torch.float32)
    # copying a number to a GPU, as `torch.as_tensor` does, would wait for all that is queued there
    return weight.to(dtype) if isinstance(weight, Tensor) else step.loss.new_full((), weight, dtype=dtype)


def measure_(metrics: MetricCollection, step: Step) -> None:
    """Update each metric with the arguments of a step that it declares.

    The collection's own update is not used: it merges two metrics whose states are equal after the first batch.
    """
    for metric in metrics.values():
        parameters = inspect.signature(metric.update).parameters
        named = {name: value for name, value in step.arguments.items() if name in parameters}
        is_open = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters.values())
        places = 2 if is_open else len(parameters) - len(named)
        metric.update(*(step.predictions, step.targets)[:places], **named)


class Window:
    """Loss and weight summed over the batches since the last optimizer step, on all ranks.

    The sums are copied from a GPU while the backward pass is queued, so the GPU does not wait. The number of ranks on
    which the process was told to stop is sent along, so that all ranks know at the same step.
    """

    def __init__(self) -> None:
        self.own: Tensor | None = None  # this rank's share of the sums taken last
        self.told_to_stop = False  # whether any rank was, by the end of the last window
        self._sums: Tensor | None = None
        self._read: Callable[[], list[float]] | None = None

    def add(self, loss: Tensor, weight: Tensor, reduce: Callable[[Tensor], Tensor]) -> None:
        """Add a batch's mean loss, weighted; ``reduce`` sums a tensor over ranks, perhaps in place."""
        batch = torch.stack([loss * weight, weight])
        self._sums = batch if self._sums is None else self._sums + batch
        told = batch.new_full((1,), stopping.told() is not None)
        self._read = on_its_way(reduce(torch.cat([self._sums, told])))

    def take(self) -> list[float]:
        """The sums of loss and weight; the next batch begins a new window."""
        assert self._read is not None
        *found, told = self._read()
        self.told_to_stop = told > 0
        self.own, self._sums, self._read = self._sums, None, None
        return found

    def ranks_of_loss(self, total: float, num_ranks: int, gather: Callable[[Tensor], Any]) -> list[int]:
        """The ranks whose own loss is not finite, if the sum is not; else all ranks. Only then do ranks communicate.

        Args:
            total: the sum of losses taken last.
            num_ranks: number of ranks in the run.
            gather: stacks the tensors of all ranks; every rank calls it.
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
        """Add a step's sums; a step with a non-finite loss is left out."""
        if math.isfinite(loss):
            self.sums = (self.sums[0] + loss, self.sums[1] + weight)

    def load_(self, sums: Any) -> None:
        """Take the sums from a checkpoint; raises ``E-CKPT-STATE`` unless they are two numbers."""
        if mismatch(sums, Sequence[float]) or len(sums) != 2:
            raise InputError("E-CKPT-STATE", f"the checkpoint's epoch_sums is {str(sums)[:200]}, not two numbers")
        self.sums = (sums[0], sums[1])

    @property
    def mean(self) -> float:
        """The mean loss over all items."""
        loss, weight = self.sums
        return loss / max(weight, 1e-12)


def on_its_way(tensor: Tensor) -> Callable[[], list[float]]:
    """Start to copy a tensor to the CPU; calling the result waits for its values only, not for later work on a GPU."""
    if tensor.device.type != "cuda":
        return tensor.tolist
    values, arrived = tensor.to("cpu", non_blocking=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()

    def read() -> list[float]:
        arrived.synchronize()
        found: list[float] = values.tolist()
        return found

    return read
