"""The base class of tasks, and the parts of a training run: optimizer, checkpoints, processes, memory."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

_HOMES = {
    name: f"{__name__}.{home}"
    for home, names in {
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
    }.items()
    for name in names.split()
}


def __getattr__(name: str) -> Any:
    """Import names on first use: reports, which read what a run has left, need not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
