"""Adapters that are initialised from data before the first step; the result is saved in the run's folder."""

import json
import os
from itertools import islice
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities import move_data_to_device

from loralight.config.build import adapter_node, adapter_recipe
from loralight.config.check import check
from loralight.config.composition import trusted_packages
from loralight.data import TaskData
from loralight.errors import InputError
from loralight.training.task import AdapterTask
from loralight.untrusted import read_json

_FILE = "initialised.json"


def initialise_(task: AdapterTask, data: TaskData, trainer: lightning.Trainer, folder: Path, name: str) -> None:
    """Let the adapter run training data through the model, on the training device; every process uses the same rows.

    Args:
        folder: the run's folder, where the adapter is saved if it was replaced by another.
        name: name of the adapter's file in ``conf/adapter``.
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
    """The config of a resumed run, with the adapter as it was initialised from the data.

    Raises:
        InputError: the saved file in the run's folder does not describe an adapter (``E-ADAPTER``, ``E-CONFIG``).
    """
    if not os.path.lexists(folder / _FILE):
        return config
    made = read_json(folder / _FILE)
    if not isinstance(made.get("name"), str) or not isinstance(made.get("arguments"), dict):
        raise InputError("E-ADAPTER", f"{folder / _FILE} does not say an adapter's name and arguments")
    adapter = adapter_node({"adapter": made})
    check(adapter, "adapter", trusted_packages())
    return {**config, "adapter": adapter}
