"""Contracts as tests: what every task, every adapter method and every acceleration promises."""

from loralight.testing.accelerations import AccelerationContract
from loralight.testing.adapters import AdapterContract, TinyBert
from loralight.testing.tasks import TaskContract

__all__ = ["AccelerationContract", "AdapterContract", "TaskContract", "TinyBert"]
