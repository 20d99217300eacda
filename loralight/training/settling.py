"""Numbers of a task that are chosen on validation rows once its weights are final: thresholds, a temperature."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning
import torch
from torch import Tensor
from torchmetrics import CatMetric

from loralight.data import TaskData
from loralight.training.task import AdapterTask

_MOST_SHOWN = 20  # numbers of a list in a line
_KEPT = ("predictions", "targets")  # of what a validation step gives


def settle_(task: AdapterTask, data: TaskData, trainer: lightning.Trainer) -> str | None:
    """Choose the numbers of `AdapterTask.settle` on the validation rows.

    Every process uses the rows of all processes, and so finds the same numbers.

    Returns:
        A line with these numbers; None if there were none to choose.
    """
    found = {} if trainer.limit_val_batches == 0 else task.settle(partial(_validated, task, data, trainer))
    if not found:
        return None
    for name, value in found.items():
        setattr(task, name, value)
    task.settled = {**task.settled, **found}
    return settled_line(found, len(data.splits["validation"]))


@contextmanager
def settled(task: AdapterTask, found: Mapping[str, Any]) -> Iterator[None]:
    """A context in which the task has the numbers ``found`` as attributes."""
    before = {name: getattr(task, name) for name in found}
    for name, value in found.items():
        setattr(task, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(task, name, value)


def settled_line(found: Mapping[str, Any], num_rows: int | None = None) -> str:
    """The chosen numbers, as a line for a report."""
    shown = ", ".join(f"{name} {_numbers(value)}" for name, value in found.items())
    return f"chosen on {'validation' if num_rows is None else f'{num_rows} validation rows'}: {shown}"


def _numbers(value: Any) -> str:
    each = value if isinstance(value, list) else [value]
    if len(each) <= _MOST_SHOWN:
        return " ".join(f"{one:.3g}" for one in each)
    shared, times = Counter(each).most_common(1)[0]
    return f"from {min(each):.3g} to {max(each):.3g}, {shared:.3g} for {times} of {len(each)}"


def _validated(task: AdapterTask, data: TaskData, trainer: lightning.Trainer) -> tuple[Tensor, Tensor]:
    """Predictions and targets of all validation rows, from all processes."""
    keeping = _Keeping()
    trainer.callbacks.append(keeping)  # type: ignore[attr-defined]
    try:
        trainer.validate(task, datamodule=data, verbose=False)
    finally:
        trainer.callbacks.remove(keeping)  # type: ignore[attr-defined]
    assert keeping.kept is not None
    predictions, targets = keeping.kept
    return predictions.clone(), targets.clone()  # tensors made in inference mode cannot be used in autograd


class _Keeping(lightning.Callback):
    """Keeps the predictions of a validation."""

    def __init__(self) -> None:
        self.kept: tuple[Tensor, Tensor] | None = None
        self._parts: dict[str, CatMetric] = {}
        self._dtype = torch.long

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, *_: Any
    ) -> None:
        for name in _KEPT:
            if name not in self._parts:
                self._parts[name] = CatMetric(nan_strategy="disable").to(pl_module.device)
            self._parts[name].update(outputs[name].detach())
        self._dtype = outputs["targets"].dtype

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        predictions, targets = (self._parts[name].compute() for name in _KEPT)
        self.kept = predictions.cpu(), targets.to(self._dtype).cpu()
