"""The base class of tasks, and the parts of a training run: optimizer, checkpoints, processes, memory."""

from loralight.training.checkpoint import verify, write_folder
from loralight.training.step import Step
from loralight.training.task import AdapterTask

__all__ = [
    "AdapterTask",
    "Step",
    "verify",
    "write_folder",
]
