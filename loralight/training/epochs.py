"""The default number of epochs: enough steps for a new head, and few epochs for large data."""

import math
from dataclasses import dataclass, fields
from typing import Any

import lightning
from torch.utils.data import DataLoader

from loralight.adapters.base import Adapter
from loralight.data import TaskData
from loralight.training.task import AdapterTask

AUTO = "auto"

_EPOCHS = 3  # customary for fine-tuning (Devlin et al., 2019)
_HEAD_STEPS = 400  # at least these for a new head; docs/recipes.md
_MOST_EPOCHS = 20  # for small data
_MOST_STEPS = 6_000  # beyond these an epoch is not repeated
_FEW_STEPS = 20  # with fewer, neither a new head nor an adapter learns much
_WILD = 10.0  # times a method's own rate: LoRA ends at chance there (docs/recipes.md)
_VALIDATIONS = (5, 4, 2)  # in a run of many epochs: as many of these as take at most _SHARE of its steps' time
_SHARE = 0.25
_FORWARD = 0.5  # of a step's work: through frozen weights the backward pass is one product for each of the forward


@dataclass(frozen=True)
class Epochs:
    """A run's length.

    Args:
        number: of epochs.
        validated_every: epochs from one validation to the next; ``number`` is a multiple of it.
    """

    number: int
    validated_every: int

    def steps(self, of_epoch: int, *, most: int = -1) -> int:
        """Optimizer steps of the run, with ``of_epoch`` in each epoch; at most ``most``, if that is above 0."""
        steps = self.number * of_epoch
        return min(steps, most) if most > 0 else steps

    def at_most(self, number: int) -> "Epochs":
        """At most ``number`` epochs, of which the last is validated."""
        every = min(self.validated_every, number)
        return Epochs(number=min(self.number, number // every * every), validated_every=every)


def epochs_for(steps: int, *, has_head: bool, held_out: float = 0.0) -> Epochs:
    """The epochs for data with ``steps`` optimizer steps in each.

    Args:
        steps: optimizer steps of an epoch, over all its rows.
        has_head: whether the model has a new head.
        held_out: rows of validation for each row of training.
    """
    if has_head and _EPOCHS * steps < _HEAD_STEPS:
        number = min(_MOST_EPOCHS, math.ceil(_HEAD_STEPS / steps))
    else:
        number = max(1, min(_EPOCHS, _MOST_STEPS // steps))
    most = _SHARE * number / (_FORWARD * held_out) if held_out else math.inf
    validations = next((some for some in _VALIDATIONS if some <= most), min(_VALIDATIONS))
    every = 1 if number <= _EPOCHS else math.ceil(number / validations)
    return Epochs(number=every * round(number / every), validated_every=every)


def set_epochs_(trainer: lightning.Trainer, task: AdapterTask, data: TaskData, *, most_steps: int | None) -> str:
    """Set the trainer's number of epochs by the data; returns a line that says so.

    Args:
        most_steps: optimizer steps that there is time for; None for no limit. If they are fewer than an epoch has,
            the run is a part of one epoch.
    """
    steps = steps_of_epoch(trainer, data)
    chosen, told = _epochs(task, data, steps), "trainer.max_epochs=auto"
    if most_steps is not None and most_steps < chosen.number * steps:
        chosen, told = chosen.at_most(max(1, most_steps // steps)), "budget"
        if most_steps < steps:
            steps = most_steps
            trainer.limit_train_batches = steps * trainer.accumulate_grad_batches
    trainer.fit_loop.max_epochs = chosen.number
    trainer.check_val_every_n_epoch = chosen.validated_every
    every = f", validated every {chosen.validated_every}" if chosen.validated_every > 1 else ""
    return f"{told}: {chosen.number} epoch{'s' * (chosen.number > 1)} of {steps} steps{every}"


def few_steps(trainer: lightning.Trainer, data: TaskData) -> list[str]:
    """A warning line if the run has too few optimizer steps to learn much; none for ``trainer.fast_dev_run``."""
    steps, total, most = steps_of_epoch(trainer, data), total_steps(trainer, data), trainer.max_steps
    if total >= _FEW_STEPS or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return []
    way = (
        f"trainer.max_epochs={math.ceil(_FEW_STEPS / steps)} or more"
        if not 0 < most < _FEW_STEPS
        else "a larger trainer.max_steps"
    )
    smaller = ", or a smaller data.batch_size" if data.batch_size > 1 else ""
    return [
        f"caution: the run has {total} optimizer step{'s' * (total > 1)}, in which hardly anything is learnt: give it "
        f"at least {_FEW_STEPS}, by {way}{smaller}"
    ]


def total_steps(trainer: lightning.Trainer, data: TaskData) -> float:
    """Optimizer steps of the run; infinite if it has no end."""
    steps, epochs, most = steps_of_epoch(trainer, data), trainer.max_epochs or 0, trainer.max_steps
    return min([steps * epochs] * (epochs > 0) + [most] * (most > 0), default=math.inf)


def odd_rate(adapter: Adapter, lr: float, steps: float) -> list[str]:
    """A warning line on a rate of Adam's at which a method hardly learns in ``steps`` steps, or may diverge.

    One of Adam's steps changes a parameter by about the learning rate. So a run at a hundredth of the method's own rate
    gets as far as a hundredth of its steps would at that rate.

    Args:
        adapter: the method.
        lr: the optimizer's learning rate.
        steps: optimizer steps of the run.
    """
    own = next((field.default for field in fields(adapter) if field.name == "lr"), None)
    if not isinstance(own, float):
        return []
    name, instead = type(adapter).__name__, f"the method's own rate is {own:g}, and optimizer.lr=auto finds one"
    if lr >= _WILD * own:
        return [f"caution: {name} may diverge at optimizer.lr={lr:g}: {instead}"]
    if steps >= _FEW_STEPS and lr * steps < own * _FEW_STEPS:
        return [f"caution: {name} hardly learns in {steps} steps at optimizer.lr={lr:g}: {instead}"]
    return []


def planned_epochs(trainer: lightning.Trainer, task: AdapterTask, data: TaskData, steps: int) -> Epochs:
    """The trainer's epochs, or those that `set_epochs_` would give it for ``steps`` optimizer steps an epoch."""
    if trainer.max_epochs is None or trainer.max_epochs < 0:
        return _epochs(task, data, steps)
    return Epochs(number=trainer.max_epochs, validated_every=1)


def _epochs(task: AdapterTask, data: TaskData, steps: int) -> Epochs:
    held_out = len(data.splits["validation"]) / len(data.splits["train"])
    return epochs_for(steps, has_head=bool(task.head(task.model)), held_out=held_out)


def num_batches(loader: DataLoader[Any], limit: int | float) -> int:
    """The number of batches that Lightning takes of a split under ``limit``, its ``limit_*_batches``."""
    return min(limit, len(loader)) if isinstance(limit, int) else math.ceil(len(loader) * limit)


def steps_of_epoch(trainer: lightning.Trainer, data: TaskData, *, num_ranks: int | None = None) -> int:
    """Optimizer steps of an epoch that all processes share.

    Args:
        num_ranks: number of processes; the trainer's if None.
    """
    accumulated = trainer.accumulate_grad_batches
    rows = data.batch_size * (num_ranks or trainer.world_size) * accumulated
    batches, limit = math.ceil(len(data.splits["train"]) / rows) * accumulated, trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else math.ceil(batches * limit)
    return max(1, math.ceil(batches / accumulated))
