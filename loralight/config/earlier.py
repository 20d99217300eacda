"""Folders of earlier versions: their settings in the names of this one."""

from types import MappingProxyType
from typing import Any

ARGUMENTS_OF_TASKS = {"gradient_checkpointing", "prepack", "selective_recompute", "unpadded"}
"""Settings that are accelerations now: they change no result, so a folder loads without them."""

VALUES_BEFORE: MappingProxyType[str, Any] = MappingProxyType({"task.pooling": "model", "adapter.lr_rank": None})
"""Settings that earlier versions lacked and whose default is not how they computed, with the value that is."""

_MOVED = {
    "loralight.optim.schedule": "loralight.training.optim.schedule",
    "loralight.prefix_cache.PrefixCache": "loralight.acceleration.prefix_cache.PrefixCache",
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
    """A run's config by the names of this version; one that is not a run's is returned as it is."""
    renamed: dict[str, Any] = _renamed(config)
    if isinstance(task := renamed.get("task"), dict):
        renamed["task"] = {name: value for name, value in task.items() if name not in ARGUMENTS_OF_TASKS}
    return renamed


def _renamed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        key: _MOVED.get(inner, inner) if key == "_target_" and isinstance(inner, str) else _renamed(inner)
        for key, inner in value.items()
    }
