"""Checks, before processes start, of a run that shards its weights over them (``trainer=fsdp``)."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy

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
        InputError: there is one process, or the adapter or the model cannot be used in parts (``E-FSDP``); or weights
            would be in parts by a strategy of Lightning's (``E-TRAINER``).
    """
    trainer = config["trainer"]
    _refuse_other_parts(trainer)
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
    return _is_a(FullyShard, trainer)


def _is_a(kind: type[Strategy] | tuple[type[Strategy], ...], trainer: Mapping[str, Any]) -> bool:
    """Whether a trainer's strategy is given as a class of a kind."""
    strategy = trainer.get("strategy")
    if not isinstance(strategy, Mapping):
        return False
    found = find_target(strategy["_target_"], "trainer.strategy", trusted_packages())
    return isinstance(found, type) and issubclass(found, kind)


def _refuse_other_parts(trainer: Mapping[str, Any]) -> None:
    """Raise ``E-TRAINER`` if Lightning's own strategies would hold parts of weights: tasks could not save these."""
    by_name = str(trainer.get("strategy")).startswith("fsdp")
    if by_name or (_is_a((ModelParallelStrategy, FSDPStrategy), trainer) and not shards(trainer)):
        raise InputError(
            "E-TRAINER",
            f"trainer.strategy={trainer['strategy']} is Lightning's, whose parts of weights a task cannot save. Take "
            "trainer=fsdp for a base that is too large for one device; tensor parallelism is not offered "
            "(docs/scaling.md)",
        )
