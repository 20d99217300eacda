"""Half precision in training: the tensors that stay in float32, and the gradient scaler."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from loralight.models.dtypes import cast_inputs_, computed_buffers, not_narrowed
from loralight.training.learning import Learning

_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # PyTorch's names for a processor's instructions


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


def half_precision_lines(trainer: Trainer) -> list[str]:
    """A line if training computes in float32 on a device that has instructions for products of bfloat16."""
    device = trainer.strategy.root_device.type
    if trainer.precision != "32-true" or not _multiplies_bfloat16(device):
        return []
    name = "GPU" if device == "cuda" else "processor"
    return [f"this {name} has instructions for bfloat16: trainer.precision=bf16-mixed makes steps faster"]


def _multiplies_bfloat16(device: str) -> bool:
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch 2.10 does not tell
    return device == "cpu" and any(known.get(name, False) for name in _BFLOAT16)
