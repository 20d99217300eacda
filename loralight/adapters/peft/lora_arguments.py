"""A PEFT config of type LORA as arguments of `Lora`."""

import math
from collections.abc import Mapping
from typing import Any

from loralight.adapters.peft.config import MAX_RANK, by_pattern, flag, number, refuse_others, unreadable
from loralight.errors import InputError

_A = (".lora_A.weight", ".lora_embedding_A")  # the first axis of each is the rank
_UNDERSTOOD = {
    "r",
    "lora_alpha",
    "lora_dropout",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "bias",
    "init_lora_weights",
    "fan_in_fan_out",  # PEFT itself sets it to suit the layer
    "megatron_core",  # has an effect only with megatron_config,
    "qalora_group_size",  # and this only with use_qalora
}
_KEEPS_THE_BASE = (True, False, None, "gaussian", "orthogonal")


def lora_arguments(config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Targets, ranks and alphas of exactly the layers that have tensors.

    Args:
        config: PEFT's, as plain data.
        tensors: shapes by name, without PEFT's prefix.

    Raises:
        InputError: a key asks for something that `Lora` lacks, or contradicts the tensors (``E-PEFT``).
    """
    refuse_others(config, _UNDERSTOOD)
    if config.get("bias", "none") != "none":
        raise unreadable("bias", config["bias"], "biases of the base model that were trained cannot be loaded")
    if config.get("init_lora_weights", True) not in _KEEPS_THE_BASE:
        raise unreadable("init_lora_weights", config["init_lora_weights"], "it changes the base model's own weights")
    ranks = _ranks(config, tensors)
    alphas = by_pattern(config, "alpha_pattern", ranks, number(config, "lora_alpha", 8))
    if flag(config, "use_rslora"):  # Kalajdzievski, 2023, https://arxiv.org/abs/2312.03732: alpha / sqrt(rank)
        alphas = {name: alpha * math.sqrt(ranks[name]) for name, alpha in alphas.items()}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    return {
        "targets": [f"^{name}" for name in ranks],
        "rank": rank,
        "alpha": float(alpha),
        "dropout": float(number(config, "lora_dropout", 0.0)),
        "rank_pattern": {f"^{name}": found for name, found in ranks.items() if found != rank},
        "alpha_pattern": {f"^{name}": float(found) for name, found in alphas.items() if found != alpha},
    }


def _ranks(config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    ranks = {}
    for name, shape in tensors.items():
        if (end := next((end for end in _A if name.endswith(end)), None)) and shape:
            ranks[name.removesuffix(end)] = shape[0]
    if not ranks:
        raise InputError("E-PEFT", "no tensor of the adapter is called *.lora_A.weight: it adapts no layer")
    said = by_pattern(config, "rank_pattern", ranks, number(config, "r", 8))
    for name, rank in ranks.items():
        if rank != said[name] or not 1 <= rank <= MAX_RANK:
            raise unreadable(
                "r", said[name], f"the tensors of {name} have the rank {rank}; it is from 1 to {MAX_RANK}, and the same"
            )
    return ranks
