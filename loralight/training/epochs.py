"""How many epochs a run takes when nobody says: as many as give a new head steps enough, and no more than pay."""

import math
from dataclasses import dataclass
from typing import Any

import lightning
from torch.utils.data import DataLoader

from loralight.data import TaskData
from loralight.training.task import AdapterTask

AUTO = "auto"

_EPOCHS = 3  # customary for fine-tuning (Devlin et al., 2019)
_HEAD_STEPS = 400  # that a new head is given; docs/recipes.md
_MOST_EPOCHS = 20  # of few rows
_MOST_STEPS = 6_000  # beyond which an epoch of many rows is not repeated
_FEW_STEPS = 20  # in which neither a new head nor an adapter gets anywhere
_VALIDATIONS = 5  # of a run of many epochs: a validation split can be larger than the rows to learn from


@dataclass(frozen=True)
class Epochs:
    """A run's length.

    Args:
        number: of epochs.
        validated_every: epochs from one validation to the next, of which ``number`` is a multiple.
    """

    number: int
    validated_every: int

    def steps(self, of_epoch: int, *, most: int = -1) -> int:
        """Optimizer steps, of so many an epoch; no more than ``most``, if that is above 0."""
        steps = self.number * of_epoch
        return min(steps, most) if most > 0 else steps

    def at_most(self, number: int) -> "Epochs":
        """So many epochs or fewer, the last of which is validated."""
        every = min(self.validated_every, number)
        return Epochs(number=min(self.number, number // every * every), validated_every=every)


def epochs_for(steps: int, *, has_head: bool) -> Epochs:
    """The epochs for data of so many optimizer steps each.

    Args:
        steps: of an epoch, over all its rows.
        has_head: some of the model is new.
    """
    if has_head and _EPOCHS * steps < _HEAD_STEPS:
        number = min(_MOST_EPOCHS, math.ceil(_HEAD_STEPS / steps))
    else:
        number = max(1, min(_EPOCHS, _MOST_STEPS // steps))
    every = math.ceil(number / _VALIDATIONS)
    return Epochs(number=every * math.ceil(number / every), validated_every=every)


def set_epochs_(trainer: lightning.Trainer, task: AdapterTask, data: TaskData, *, most_steps: int | None) -> str:
    """Give ``trainer`` the epochs that suit the data, of all its processes; returns a line that says so.

    Args:
        most_steps: that there is time for; None for any number. Less than an epoch is a part of one.
    """
    steps = steps_of_epoch(trainer, data)
    chosen, told = epochs_for(steps, has_head=bool(task.head(task.model))), "trainer.max_epochs=auto"
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
    """A line on a run of so few optimizer steps that it can hardly arrive anywhere; none on one that is a mere try."""
    steps, epochs, most = steps_of_epoch(trainer, data), trainer.max_epochs or 0, trainer.max_steps
    total = min([steps * epochs] * (epochs > 0) + [most] * (most > 0), default=_FEW_STEPS)
    if total >= _FEW_STEPS or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return []
    way = (
        f"trainer.max_epochs={math.ceil(_FEW_STEPS / steps)}"
        if not 0 < most < _FEW_STEPS
        else "a larger trainer.max_steps"
    )
    return [
        f"caution: the run has {total} optimizer steps, in which hardly anything is learnt: give it at least "
        f"{_FEW_STEPS}, by {way} or more, or a smaller data.batch_size"
    ]


def planned_epochs(trainer: lightning.Trainer, task: AdapterTask, steps: int) -> Epochs:
    """The epochs that a trainer has, of so many steps each, or that `set_epochs_` would give it."""
    if trainer.max_epochs is None or trainer.max_epochs < 0:
        return epochs_for(steps, has_head=bool(task.head(task.model)))
    return Epochs(number=trainer.max_epochs, validated_every=1)


def num_batches(loader: DataLoader[Any], limit: int | float) -> int:
    """The batches that Lightning takes of a split under one of its limits."""
    return min(limit, len(loader)) if isinstance(limit, int) else math.ceil(len(loader) * limit)


def steps_of_epoch(trainer: lightning.Trainer, data: TaskData, *, num_ranks: int | None = None) -> int:
    """Optimizer steps of an epoch, in which all processes take part.

    Args:
        num_ranks: how many these are; the trainer's if None.
    """
    batches = math.ceil(len(data.splits["train"]) / (data.batch_size * (num_ranks or trainer.world_size)))
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else math.ceil(batches * limit)
    return max(1, math.ceil(batches / trainer.accumulate_grad_batches))
