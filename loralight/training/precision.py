"""Half precision in training: the tensors that stay in float32, and the scaler of gradients."""

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

    In half precision the head then casts its input. Weights of the base that learn are cast with it: their layers
    compute in one dtype.
    """
    with not_narrowed(model, learning.new | computed_buffers(model).keys()):
        yield
    if task.dtype in (torch.float16, torch.bfloat16):
        for part in learning.head:
            cast_inputs_(part)


def is_scaled(trainer: Trainer) -> bool:
    """Whether a scaler of gradients trains in half precision; it skips steps until it has found its scale."""
    precision = trainer.precision_plugin
    return isinstance(precision, MixedPrecision) and precision.scaler is not None
