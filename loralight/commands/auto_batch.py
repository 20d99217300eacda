"""``auto_batch=true``: the largest batch that fits the memory, found before a run begins and saved as its setting."""

from collections.abc import Callable
from typing import Any

import torch

from loralight.commands.estimate import Estimate, longest_batch
from loralight.commands.trial import Trial, free_device
from loralight.errors import InputError
from loralight.logs import human, show
from loralight.training.launch import process_rank


def with_largest_batch(config: dict[str, Any], overrides: list[str]) -> tuple[dict[str, Any], list[str]]:
    """A run's config and overrides, with the largest batch that fits as their ``data.batch_size``.

    So a resumed run keeps the batches that it was begun with, however much memory is free then.

    Raises:
        InputError: several processes are running already, and would find different batch sizes (``E-AUTO-BATCH``), or
            not even one row fits (``E-MEMORY``).
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
    """The first size for which ``run(size)`` fits the device's memory, each try a tenth smaller than the one before.

    Raises:
        InputError: not even a size of 1 fits (``E-MEMORY``).
    """
    while size:
        try:
            run(size)
            return size
        except torch.OutOfMemoryError:
            size -= max(size // 10, 1)
        free_device()
    raise InputError(
        "E-MEMORY",
        "a step on one row takes more memory than the device has; give shorter rows (such as "
        "a smaller model.max_length) or a smaller model",
    )


def _tried_on_device(estimate: Estimate, size: int) -> int:
    """The largest batch up to ``size`` with which a real step succeeds; afterwards the device is as empty as before."""
    chosen = largest_that_runs(_real_step(Trial(estimate.config, estimate.data)), size)
    free_device()
    return chosen


def _real_step(trial: Trial) -> Callable[[int], Any]:
    """A function that makes a training step on the given number of longest rows."""
    return lambda size: trial.step(longest_batch(trial.data, size))
