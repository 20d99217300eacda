"""Contracts as tests: what every task and every adapter method promises."""

from loralight.testing.adapters import AdapterContract, TinyBert
from loralight.testing.tasks import TaskContract

__all__ = ["AdapterContract", "TaskContract", "TinyBert"]
