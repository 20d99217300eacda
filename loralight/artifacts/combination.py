"""The weighted sum of trained adapters as a new adapter, in a folder like any adapter's."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from loralight.adapters.layers.lora import LoraLayer
from loralight.adapters.methods.lora import Lora
from loralight.adapters.multi.parts import Parts
from loralight.adapters.multi.weighted_sum import truncated, weighted_sum
from loralight.adapters.targets import PRESETS
from loralight.artifacts.export import save_adapter
from loralight.artifacts.output import refuse_existing
from loralight.config.build import from_recipe
from loralight.errors import InputError
from loralight.training.task import AdapterTask


def save_combination(
    tasks: Mapping[str, AdapterTask],
    recipes: Mapping[str, Mapping[str, Any]],
    terms: Mapping[str, tuple[float, Parts]],
    *,
    output: Path,
    rank: int | None,
) -> dict[str, float]:
    """Write the folder of a combination; see `loralight.artifacts.bank.AdapterBank.combine`.

    Args:
        tasks: by the adapter's name.
        recipes: the recipes of these tasks, by the adapter's name.
        terms: weight and changes of each adapter.
        output: the folder.
        rank: the highest rank of a layer.

    Returns:
        The truncation error of each layer.
    """
    weights = {name: weight for name, (weight, _) in terms.items()}
    _check(list(weights.values()), output, rank)
    counted = [(weight, parts.updates) for weight, parts in terms.values() if weight]
    sums = {layer: _sum(counted, layer, rank) for layer in dict.fromkeys(n for _, updates in counted for n in updates)}
    if not sums:
        raise InputError("E-KIND", f"{', '.join(weights)}: no layer has a low-rank update, so nothing can be summed")
    first, own = next((tasks[name], parts.updates) for name, (_, parts) in terms.items())
    arguments = _arguments({layer: len(lora_A) for layer, (lora_A, _, _) in sums.items()}, first, own)
    recipe = recipes[next(iter(terms))]
    made = {
        **recipe,
        "task": {**recipe["task"], "settled": {}},  # they were chosen for another model
        "adapter": {"name": "lora", "arguments": arguments},
        "combination": {"weights": weights, "rank": rank},
    }
    tensors = {n: t for n, t in first.trainable_tensors().items() if n.rpartition(".")[0] not in own}
    for layer, (lora_A, lora_B, _) in sums.items():
        tensors |= {f"{layer}.lora_A": lora_A, f"{layer}.lora_B": lora_B}
    task = from_recipe(made)
    task.load_trainable(tensors, "the combination")
    save_adapter(task, output, recipe=made, metrics={})
    return {layer: error for layer, (_, _, error) in sums.items()}


def _check(weights: Sequence[float], output: Path, rank: int | None) -> None:
    if not any(weights) or not all(math.isfinite(weight) for weight in weights):
        raise InputError("E-WEIGHTS", f"the weights are {list(weights)}; give finite numbers, not all of them 0")
    if rank is not None and rank < 1:
        raise InputError("E-RANK", f"rank is {rank}; give at least 1, or null for the sum of the adapters' ranks")
    refuse_existing(output)


def _sum(
    terms: Sequence[tuple[float, Mapping[str, LoraLayer]]], layer: str, rank: int | None
) -> tuple[Tensor, Tensor, float]:
    lora_A, lora_B = weighted_sum([(weight, updates[layer]) for weight, updates in terms if layer in updates])
    return truncated(lora_A, lora_B, len(lora_A) if rank is None else rank)


def _arguments(ranks: Mapping[str, int], first: AdapterTask, own: Mapping[str, LoraLayer]) -> dict[str, Any]:
    """The arguments of a `Lora` with exactly these layers and ranks, and a scaling of 1."""
    names = [name for name, _ in first.model.named_modules()]
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {_exactly(name, names): found for name, found in ranks.items() if found != rank}
    if type(first.adapter) is Lora and own.keys() == ranks.keys():  # patterns read better than dozens of names
        chosen = {"targets": _plain(first.adapter.targets), "exclude": _plain(first.adapter.exclude)}
    else:
        chosen = {"targets": [_exactly(name, names) for name in ranks]}
    return {**chosen, "rank": rank, "alpha": rank, "rank_pattern": others, "alpha_pattern": dict(others)}


def _plain(patterns: str | Sequence[str]) -> str | list[str]:
    return patterns if isinstance(patterns, str) else list(patterns)


def _exactly(name: str, names: Sequence[str]) -> str:
    """A pattern that matches only this layer, even if its name is the end of another name, or the name of a preset."""
    if name in PRESETS or any(other.endswith(f".{name}") for other in names):
        return f"[{name[0]}]{name[1:]}"
    return name
