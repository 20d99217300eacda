"""Folders of earlier versions: their settings in the names of this version."""

from types import MappingProxyType
from typing import Any

ARGUMENTS_OF_TASKS = {"gradient_checkpointing", "prepack", "selective_recompute", "unpadded"}
"""Settings that have become accelerations; these change no result, so a folder is loaded without them."""

VALUES_BEFORE: MappingProxyType[str, Any] = MappingProxyType(
    {
        "task.pooling": "model",
        "task.batch_norm": "frozen",
        "adapter.lr_rank": None,
        "optimizer.fused": None,
        "data.global_batch_size": None,
    }
)
"""Settings that earlier versions lacked, with the values by which these computed, where the default differs."""

_CACHE = "prefix_cache"
_MOVED = {
    "loralight.optim.schedule": "loralight.training.optim.schedule",
    "loralight.prefix_cache.PrefixCache": "loralight.acceleration.PrefixCache",
    "loralight.acceleration.prefix_cache.PrefixCache": "loralight.acceleration.PrefixCache",
    **{
        f"loralight.adapters.{module}.{name}": f"loralight.adapters.{name}"
        for module, names in {
            "bitfit": ["BitFit"],
            "bottleneck": ["Houlsby", "Parallel", "Pfeiffer"],
            "ia3": ["IA3"],
            "last_layers": ["LastLayers"],
            "norm_tuning": ["NormTuning"],
            "prefix_tuning": ["PrefixTuning"],
            "prompt_tuning": ["PromptTuning"],
        }.items()
        for name in names
    },
}


def as_now(config: dict[str, Any]) -> dict[str, Any]:
    """A run's config in the names of this version; a config that is not a run's is returned unchanged."""
    renamed: dict[str, Any] = _renamed(config)
    _regroup_(renamed)
    if isinstance(data := renamed.get("data"), dict) and "seed" in data:
        renamed["data"] = {"split_seed": data["seed"], **data}  # which chose all rows
    if isinstance(task := renamed.get("task"), dict):
        renamed["task"] = {name: value for name, value in task.items() if name not in ARGUMENTS_OF_TASKS}
    return renamed


def said_now(overrides: list[str]) -> list[str]:
    """A run's command line in the choices of this version."""
    chosen = [o for o in overrides if o.lstrip("+").startswith("callbacks=") and _CACHE in o]
    others = [f"callbacks={_without_cache(o.partition('=')[2])}" if o in chosen else o for o in overrides]
    return [*others, f"acceleration={_CACHE}"] if chosen else others


def _regroup_(config: dict[str, Any]) -> None:
    """Move the cache of frozen blocks to the accelerations; in earlier versions it was a callback."""
    callbacks, names = config.get("callbacks") or {}, config.get("names")
    found = [name for name, node in callbacks.items() if _is_cache(node)] if isinstance(callbacks, dict) else []
    for name in found:
        config["acceleration"] = {**(config.get("acceleration") or {}), _CACHE: callbacks.pop(name)}
    if found and isinstance(names, dict) and names.get("callbacks") is not None:
        names["callbacks"] = _without_cache(str(names["callbacks"]))
        names["acceleration"] = _CACHE


def _is_cache(node: Any) -> bool:
    return isinstance(node, dict) and node.get("_target_") == "loralight.acceleration.PrefixCache"


def _without_cache(options: str) -> str:
    """The other choices in a list of callbacks; for the cache alone the default ones, which it included."""
    others = [option.strip() for option in options.strip("[]").split(",") if option.strip() != _CACHE]
    return f"[{','.join(others)}]" if others else "default"


def _renamed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        key: _MOVED.get(inner, inner) if key == "_target_" and isinstance(inner, str) else _renamed(inner)
        for key, inner in value.items()
    }
