"""Half precision in training: the tensors that stay in float32, and the gradient scaler."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from loralight.models.dtypes import cast_inputs_, computed_buffers, not_narrowed
from loralight.training.learning import Learning


@contextmanager
def new_tensors_stay_wide(task: LightningModule, model: nn.Module, learning: Learning) -> Iterator[None]:
    """A context in which a cast of the task leaves the adapter's own tensors and the head in float32.

    If the cast is to half precision, the head then casts its inputs. Trainable weights of the base are cast with the
    base, since their layers compute in one dtype.
    """
    with not_narrowed(model, learning.new | computed_buffers(model).keys()):
        yield
    if task.dtype in (torch.float16, torch.bfloat16):
        for part in learning.head:
            cast_inputs_(part)


def is_scaled(trainer: Trainer) -> bool:
    """Whether training uses a gradient scaler; it skips steps until it has found its scale."""
    precision = trainer.precision_plugin
    return isinstance(precision, MixedPrecision) and precision.scaler is not None
