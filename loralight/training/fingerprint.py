"""A digest that tells base models apart, wherever they came from."""

import hashlib
from typing import Protocol

from torch import nn

from loralight.training.learning import Learning


class Adapted(Protocol):
    """A task, or another owner of an adapted model."""

    model: nn.Module
    learning: Learning


def fingerprint(task: Adapted) -> str:
    """Tells base models apart: sha256 over names, shapes and up to 256 values of each frozen tensor, shortened."""
    if task.learning.base is not None:
        return task.learning.base
    digest = hashlib.sha256()
    learns = {tensor.data_ptr() for tensor in task.learning.tensors().values()}  # a tied weight has several names
    for name, tensor in sorted(task.model.state_dict().items()):
        if tensor.data_ptr() not in learns:
            flat = tensor.flatten()
            sample = flat[:: max(1, flat.numel() // 256)].float().cpu()
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:32]
