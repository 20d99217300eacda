"""The base class of tasks, and the parts of a training run: optimizer, checkpoints, processes, memory."""

from typing import TYPE_CHECKING

from loralight.first_use import on_first_use

if TYPE_CHECKING:
    from loralight.training.answers import Answers, answers_of_labels, keep_texts
    from loralight.training.calibration import CalibrationError, check_temperature, fit_temperature
    from loralight.training.checkpoint import verify, write_folder
    from loralight.training.early_stopping import EarlyStopping
    from loralight.training.forgetting.own_head import lend_
    from loralight.training.forgetting.probe import ForgettingProbe, Measured, check_count
    from loralight.training.fully_shard import FullyShard
    from loralight.training.gathering import Gathered, gather_rows
    from loralight.training.step import Step
    from loralight.training.task import AdapterTask
    from loralight.training.thresholds import check_thresholds, choose_thresholds

__all__ = [
    "AdapterTask",
    "Answers",
    "CalibrationError",
    "EarlyStopping",
    "ForgettingProbe",
    "FullyShard",
    "Gathered",
    "Measured",
    "Step",
    "answers_of_labels",
    "check_count",
    "check_temperature",
    "check_thresholds",
    "choose_thresholds",
    "fit_temperature",
    "gather_rows",
    "keep_texts",
    "lend_",
    "verify",
    "write_folder",
]

__getattr__ = on_first_use(
    __name__,
    {
        "answers": "Answers answers_of_labels keep_texts",
        "calibration": "CalibrationError check_temperature fit_temperature",
        "checkpoint": "verify write_folder",
        "early_stopping": "EarlyStopping",
        "forgetting.own_head": "lend_",
        "forgetting.probe": "ForgettingProbe Measured check_count",
        "fully_shard": "FullyShard",
        "gathering": "Gathered gather_rows",
        "step": "Step",
        "task": "AdapterTask",
        "thresholds": "check_thresholds choose_thresholds",
    },
)
