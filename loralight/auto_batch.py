"""``auto_batch=true``: the largest batch that fits the memory, found before a run begins and kept as its setting."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device

from loralight.build import build_task, build_trainer
from loralight.errors import InputError
from loralight.estimate import Estimate, longest_batch
from loralight.footprint import footprint
from loralight.launch import process_rank
from loralight.logs import show
from loralight.preflight import human


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
    raise InputError("E-MEMORY", "a step on one row takes more memory than the device has; shorten rows (a smaller "
                     "model.max_length, say) or take a smaller model")  # fmt: skip


def _tried_on_device(estimate: Estimate, size: int) -> int:
    """The largest batch up to ``size`` with which a real step succeeds; afterwards the device is as empty as before."""
    trainer = build_trainer(estimate.config, Path(), [])
    task = build_task(estimate.config, estimate.data.model_arguments())
    trainer.precision_plugin.convert_module(task)
    task.to(estimate.device)
    optimizer = task.make_optimizer()

    def run(size: int) -> None:
        batch = move_data_to_device(longest_batch(estimate.data, size), estimate.device)
        footprint(task, optimizer, batch, precision=trainer.precision_plugin.forward_context)

    try:
        return largest_that_runs(run, size)
    finally:
        del task, optimizer, run
        gc.collect()
        torch.cuda.empty_cache()
