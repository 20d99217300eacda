"""How many epochs a run takes when nobody says: as many as give a new head steps enough, and no more than pay."""

import math
from dataclasses import dataclass

import lightning

from loralight.data import TaskData
from loralight.training.task import AdapterTask

AUTO = "auto"

_EPOCHS = 3  # customary for fine-tuning (Devlin et al., 2019)
_HEAD_STEPS = 400  # that a new head is given; docs/recipes.md
_MOST_EPOCHS = 20  # of few rows
_MOST_STEPS = 6_000  # beyond which an epoch of many rows is not repeated
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


def set_epochs_(trainer: lightning.Trainer, task: AdapterTask, data: TaskData) -> str:
    """Give ``trainer`` the epochs that suit the data, of all its processes; returns a line that says so."""
    batches = math.ceil(len(data.splits["train"]) / (data.batch_size * trainer.world_size))
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else math.ceil(batches * limit)
    steps = max(1, math.ceil(batches / trainer.accumulate_grad_batches))
    chosen = epochs_for(steps, has_head=bool(task.head(task.model)))
    trainer.fit_loop.max_epochs = chosen.number
    trainer.check_val_every_n_epoch = chosen.validated_every
    every = f", validated every {chosen.validated_every}" if chosen.validated_every > 1 else ""
    return f"trainer.max_epochs=auto: {chosen.number} epochs of {steps} steps{every}"
