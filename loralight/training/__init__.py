"""The base class of tasks, and the parts of a training run: optimizer, checkpoints, processes, memory."""

from loralight.training.calibration import CalibrationError, check_temperature, fit_temperature
from loralight.training.checkpoint import verify, write_folder
from loralight.training.forgetting.own_head import lend_
from loralight.training.forgetting.probe import ForgettingProbe, Measured, check_count
from loralight.training.fully_shard import FullyShard
from loralight.training.gathering import Gathered, gather_rows
from loralight.training.step import Step
from loralight.training.task import AdapterTask
from loralight.training.thresholds import check_thresholds, choose_thresholds

__all__ = [
    "AdapterTask",
    "CalibrationError",
    "ForgettingProbe",
    "FullyShard",
    "Gathered",
    "Measured",
    "Step",
    "check_count",
    "check_temperature",
    "check_thresholds",
    "choose_thresholds",
    "fit_temperature",
    "gather_rows",
    "lend_",
    "verify",
    "write_folder",
]
