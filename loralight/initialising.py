"""Adapters that look at data before the first step: what they made of it is kept in the run's folder."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities import move_data_to_device

from loralight.build import adapter_node, adapter_recipe
from loralight.data import TaskData
from loralight.task import AdapterTask

_FILE = "initialised.json"


def initialise_(task: AdapterTask, data: TaskData, trainer: lightning.Trainer, folder: Path, name: str) -> None:
    """Have the adapter look at training data, on the device that trains; in every process at the same rows.

    Args:
        folder: the run's, where an adapter that has become another is kept.
        name: of the adapter's file in ``conf/adapter``.
    """
    device = trainer.strategy.root_device

    @torch.no_grad()
    def run_batches(count: int) -> None:
        task.to(device)
        for batch in islice(data.train_dataloader(), count):
            task.step(move_data_to_device(batch, device))

    task.eval()
    before, task.adapter = task.adapter, task.adapter.initialise_(task.model, run_batches)
    task.train()
    if task.adapter is not before and trainer.is_global_zero:
        made = adapter_recipe(task.adapter, name)
        (folder / _FILE).write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")


def with_initialised(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The config of a resumed run, with the adapter that the data made of it."""
    if not (folder / _FILE).is_file():
        return config
    made = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    return {**config, "adapter": adapter_node({"adapter": made})}
