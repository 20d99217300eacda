"""The rows of an optimizer step, divided among processes and accumulated batches before anything is read."""

from collections.abc import Mapping, Sequence
from typing import Any

from loralight.data.batching import rows_per_process
from loralight.errors import InputError
from loralight.training.launch import world_size


def check_batch_size(config: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Check the size of a run's batches, before anything heavy.

    Args:
        config: as composed for ``loralight train``, in plain values.
        overrides: words of the command line.

    Raises:
        InputError: it is given for each process and for all of them at once, or the rows of a step cannot be dealt out
            evenly (``E-BATCH``).
    """
    if config["data"].get("global_batch_size") is None:
        return
    words = {override.lstrip("+").partition("=")[0] for override in overrides}
    beside = "auto_batch=true" if config["auto_batch"] else "data.batch_size"
    if config["resume"] is None and (config["auto_batch"] or beside in words):
        raise InputError(
            "E-BATCH",
            f"{beside} and data.global_batch_size are given at once: the one sets the rows of a batch in each process, "
            "the other those of a step over all processes; leave one out",
        )
    with_rows_per_process(config)


def with_rows_per_process(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the ``data.batch_size`` that follows from ``data.global_batch_size``, if that is given.

    Raises:
        InputError: the rows of a step cannot be dealt out evenly (``E-BATCH``).
    """
    data, trainer = config["data"], config["trainer"]
    if (size := data.get("global_batch_size")) is None:
        return {**config}
    accumulated = trainer.get("accumulate_grad_batches") or 1
    share = rows_per_process(size, num_ranks=world_size(trainer), accumulated=accumulated)
    return {**config, "data": {**data, "batch_size": share}}
