"""The contracts of tasks, adapter methods and accelerations, as tests."""

from loralight.testing.accelerations import AccelerationContract
from loralight.testing.adapters import AdapterContract, TinyBert
from loralight.testing.tasks import TaskContract

__all__ = ["AccelerationContract", "AdapterContract", "TaskContract", "TinyBert"]
