"""Measures a trained task on a split, for several commands; nothing is written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loralight.config.build import build_data, build_trainer
from loralight.data import TaskData
from loralight.errors import InputError
from loralight.training.fully_shard import FullyShard
from loralight.training.launch import world_size
from loralight.training.progress import progress_callbacks
from loralight.training.task import AdapterTask


def check_split(split: str) -> None:
    """Raise ``E-SPLIT`` unless ``split`` is validation or test."""
    if split not in ("validation", "test"):
        raise InputError("E-SPLIT", f"split={split}: choose validation or test")


def measuring(config: dict[str, Any], *, alone: bool = True) -> dict[str, Any]:
    """A run's config, changed to measure and to write nothing.

    Args:
        config: in plain values.
        alone: whether this process measures by itself, whatever the trainer's settings say.
    """
    trainer = {**config["trainer"], "devices": 1, "num_nodes": 1, "strategy": "auto"} if alone else config["trainer"]
    return {**config, "callbacks": {}, "logger": {}, "trainer": trainer}


def refuse_another_device(settings: Mapping[str, Any]) -> None:
    """Raise ``E-DEVICES`` if ``device=`` says another than the trainer, by which several processes take theirs."""
    device, trainer = settings["device"], settings["trainer"]
    if world_size(trainer) > 1 and device not in ("auto", trainer.get("accelerator")):
        raise InputError(
            "E-DEVICES",
            f"device={device} is of one process, and here are several: choose by trainer=ddp (GPUs) or "
            "trainer=ddp_cpu, and leave out device",
        )


def read_data(config: dict[str, Any], made: dict[str, Any]) -> TaskData:
    """The data, encoded as in training: the data gets arguments that the task had then, such as the order of labels.

    Raises:
        InputError: the data cannot be read, or lacks the split that ``config`` names (``E-SPLIT``).
    """
    told = {name: value for name, value in made["task"]["arguments"].items() if name not in config["task"]}
    config["data"] |= {name: value for name, value in told.items() if name in config["data"]}
    data, split = build_data(config), config["split"]
    if split is not None and split not in data.splits:
        raise InputError("E-SPLIT", f"split={split}: the data has {', '.join(data.splits)}; give data.{split}=")
    return data


def measure(config: dict[str, Any], task: AdapterTask, data: TaskData) -> dict[str, float]:
    """The task's metrics on the split that ``config`` names."""
    data.suit_(task.model)
    trainer = build_trainer(config, Path(config["run"]), progress_callbacks(data.batch_size)[1])
    if isinstance(trainer.strategy, FullyShard):
        trainer.strategy.suit_(task)
    run = trainer.test if config["split"] == "test" else trainer.validate
    return {name: float(value) for name, value in run(task, datamodule=data, verbose=False)[0].items()}
