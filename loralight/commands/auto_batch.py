"""``auto_batch=true``: the largest batch that fits the memory, found before a run begins and kept as its setting."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device

from loralight.commands.estimate import Estimate, longest_batch
from loralight.config.build import build_task, build_trainer
from loralight.errors import InputError
from loralight.logs import show
from loralight.training.footprint import train_step
from loralight.training.launch import process_rank
from loralight.training.preflight import human


def with_largest_batch(config: dict[str, Any], overrides: list[str]) -> tuple[dict[str, Any], list[str]]:
    """A run's config and overrides, with the largest batch that fits as their ``data.batch_size``.

    So the batches of a resumed run are those that it was begun with, however much memory there is by then.

    Raises:
        InputError: several processes are running already, and would find different ones (``E-AUTO-BATCH``), or not
            even one row fits (``E-MEMORY``).
    """
    if process_rank() is not None:
        raise InputError(
            "E-AUTO-BATCH",
            "auto_batch=true: processes that torchrun or srun has started cannot agree on a batch; see what "
            "`loralight estimate` says, and give data.batch_size",
        )
    estimate = Estimate(config)
    limit = estimate.limit()
    chosen = estimate.largest(limit)
    if estimate.device.type == "cuda":
        chosen = _tried_on_device(estimate, chosen)
    show(f"auto_batch: data.batch_size={chosen}, the largest that fits {human(limit)}{estimate.remark(chosen)}")
    names = ("auto_batch", "data.batch_size")
    kept = [override for override in overrides if override.lstrip("+").partition("=")[0] not in names]
    data = {**config["data"], "batch_size": chosen}
    return {**config, "auto_batch": False, "data": data}, [*kept, "auto_batch=false", f"data.batch_size={chosen}"]


def largest_that_runs(run: Callable[[int], Any], size: int) -> int:
    """The size, or if the device has too little memory for ``run(size)``, a tenth less as often as needed.

    Raises:
        InputError: not even 1 runs (``E-MEMORY``).
    """
    while size:
        try:
            run(size)
            return size
        except torch.OutOfMemoryError:
            size -= max(size // 10, 1)
        gc.collect()
        torch.cuda.empty_cache()
    raise InputError(
        "E-MEMORY",
        "a step on one row takes more memory than the device has; give shorter rows (such as "
        "a smaller model.max_length) or a smaller model",
    )


def _tried_on_device(estimate: Estimate, size: int) -> int:
    """The largest batch up to ``size`` with which a real step succeeds; afterwards the device is as empty as before."""
    chosen = largest_that_runs(_real_step(estimate), size)
    gc.collect()
    torch.cuda.empty_cache()
    return chosen


def _real_step(estimate: Estimate) -> Callable[[int], None]:
    """A training step on so many of the longest rows, with the model's weights."""
    precision = build_trainer(estimate.config, Path(), []).precision_plugin
    task = build_task(estimate.config, estimate.data.model_arguments())
    precision.convert_module(task)
    task.to(estimate.device)
    task.start_accelerations_()
    optimizer = task.make_optimizer()

    def run(size: int) -> None:
        batch = move_data_to_device(precision.convert_input(longest_batch(estimate.data, size)), estimate.device)
        train_step(task, optimizer, batch, precision.forward_context)

    return run
