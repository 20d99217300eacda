"""Checks, before processes start, of a run that shards its weights over them (``trainer=fsdp``)."""

from collections.abc import Mapping
from typing import Any

from loralight.config.build import make
from loralight.config.check import find_target
from loralight.config.composition import trusted_packages
from loralight.errors import InputError
from loralight.training.fully_shard import FullyShard
from loralight.training.launch import world_size
from loralight.training.sharding import refuse_whole_weights


def check_sharding(config: Mapping[str, Any]) -> None:
    """Check the settings of a run whose trainer shards weights; any other run passes.

    Args:
        config: as composed for ``loralight train``, in plain values.

    Raises:
        InputError: there is one process, or the adapter or the model cannot be used in parts (``E-FSDP``).
    """
    trainer = config["trainer"]
    if not shards(trainer):
        return
    refuse_whole_weights(make(config["adapter"]), config["task"].get("quantize"))
    if config["compile"]:
        raise InputError("E-FSDP", "trainer=fsdp gathers weights between compiled parts of a model; set compile=false")
    if config.get("forgetting") is not None:
        raise InputError("E-FSDP", "forgetting= measures by whole weights in each process; leave it out (~forgetting)")
    if world_size(trainer) == 1:
        raise InputError(
            "E-FSDP",
            "trainer=fsdp shards weights over processes, and here is one: take trainer=auto, or more devices "
            "(trainer.devices=2; on a machine without GPUs with trainer.accelerator=cpu)",
        )


def shards(trainer: Mapping[str, Any]) -> bool:
    """Whether a trainer's settings shard weights over its processes."""
    strategy = trainer.get("strategy")
    if not isinstance(strategy, Mapping):
        return False
    kind = find_target(strategy["_target_"], "trainer.strategy", trusted_packages())
    return isinstance(kind, type) and issubclass(kind, FullyShard)
