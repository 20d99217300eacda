"""The message for too little memory: the failed allocation, and the settings to change first."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from loralight.errors import InputError
from loralight.logs import human
from loralight.training.checkpoint import MANIFEST
from loralight.training.memory import peak_memory

_OF_A_CPU = ("can't allocate memory", "not enough memory", "Cannot allocate memory", "bad_alloc")  # no class


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that a device, or this process, has too little memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OF_A_CPU)


@contextmanager
def telling_of_memory(config: Mapping[str, Any], folder: Path) -> Iterator[None]:
    """A context that turns any out-of-memory error into one message.

    Args:
        config: of `loralight train`, in plain values.
        folder: the run's folder.

    Raises:
        InputError: there is too little memory (``E-MEMORY``).
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError("E-MEMORY", _message(config, folder)) from error


def _message(config: Mapping[str, Any], folder: Path) -> str:
    data, length = config["data"], (config.get("model") or {}).get("max_length")
    of_step = data.get("global_batch_size")
    size = data.get("batch_size")
    asked = "the usual data.batch_size" if size is None else f"data.batch_size={size}"
    knobs = []
    windows = 2 * (config["trainer"].get("accumulate_grad_batches") or 1)
    if of_step is not None:
        asked = f"data.global_batch_size={of_step}"
        knobs.append(f"trainer.accumulate_grad_batches={windows}, which computes the same")
    elif size is None or size > 1:
        knobs.append(
            f"data.batch_size={size // 2} trainer.accumulate_grad_batches={windows}, which computes the same"
            if size and size % 2 == 0
            else "data.batch_size lower"
        )
    if length:
        asked += f" and model.max_length={length}"
        knobs.append(f"model.max_length={length // 2}")
    if config["trainer"].get("precision") in (None, "32-true", 32):
        knobs.append("trainer.precision=bf16-mixed")
    knobs.append("fewer adapter.targets")
    kept = "; the checkpoints are as they were" if any(folder.glob(f"checkpoints/*/*/{MANIFEST}")) else ""
    return (
        f"there is too little memory for a run with {asked}: {human(peak_memory())} were in use at the peak{kept}. In "
        f"this order: {'; '.join(knobs)}. `loralight estimate` says what fits"
    )
