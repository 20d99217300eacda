"""A GPU for each of several runs that share a machine, by ``CUDA_VISIBLE_DEVICES``."""

import os
from itertools import count
from pathlib import Path

import torch

from loralight.artifacts.lock import hold
from loralight.errors import InputError


def visible() -> list[str]:
    """The GPUs that this process may use, by their names in ``CUDA_VISIBLE_DEVICES``."""
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    found = torch.cuda.device_count()
    return named[:found] if named else [str(number) for number in range(found)]


def take_one(folder: Path) -> None:
    """Let this process see only one GPU: one that no other process has taken, or if there is none, the fewest have.

    It keeps the GPU until it ends, also for later jobs, since CUDA is bound to what it has seen first.

    Args:
        folder: of the sweep whose processes share the machine.
    """
    gpus = visible()
    if len(gpus) < 2 or torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return
    for turn in count():
        for number, gpu in enumerate(gpus):
            if _is_free(folder / ".gpus" / f"{number}.{turn}"):
                os.environ["CUDA_VISIBLE_DEVICES"] = gpu
                return


def _is_free(place: Path) -> bool:
    """Whether nobody held this place; then this process holds it."""
    try:
        hold(place)
    except InputError as error:
        if str(error).startswith("E-RUNNING"):
            return False
        raise
    return True
