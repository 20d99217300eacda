"""Folders that PEFT wrote, and loralight's recipes for their adapters."""

import inspect
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from loralight.adapters.base import Adapter
from loralight.adapters.methods.peft import PeftMethod
from loralight.artifacts.export import CONFIG, PREFIX, RECIPE, WEIGHTS
from loralight.config.build import adapter_classes, task_class, task_classes
from loralight.errors import InputError
from loralight.models.untrusted_tensors import read_shapes
from loralight.training.task import AdapterTask
from loralight.untrusted import read_json


def is_of_peft(folder: Path) -> bool:
    """Whether a folder has an adapter with PEFT's config and no recipe of loralight's."""
    return (folder / CONFIG).exists() and not (folder / RECIPE).exists()


def peft_recipe(
    folder: Path, *, base: str | None, task: str | None = None, arguments: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The recipe from which `loralight.config.build.from_recipe` builds the task of a PEFT adapter.

    The user decides which base model and task are loaded; a task type in the folder is only compared with the task.

    Args:
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        base: the base model.
        task: a task plugin; the plugin for the task type in PEFT's config, if None.
        arguments: arguments of the task that PEFT does not keep, such as ``labels``.

    Raises:
        InputError: the files are not an adapter's (``E-ADAPTER``), or have a setting that loralight does not support
            (``E-PEFT``).
    """
    config = read_json(folder / CONFIG)
    name, adapter = _adapter(config, _tensors(folder))
    if base is None:
        named = config.get("base_model_name_or_path")
        raise InputError("E-PEFT", f"{folder}: which base model? Give it as base= (the folder names {named!r:.200})")
    chosen, kind = _task(config, task)
    given = {**(arguments or {}), "checkpoint": base}
    _check_complete(chosen, kind, given)
    return {
        "task": {"name": chosen, "arguments": given},
        "adapter": {"name": name, "arguments": {f.name: getattr(adapter, f.name) for f in fields(adapter)}},
        "base": {"name": base},
    }


def peft_adapter(folder: Path) -> tuple[str, Adapter]:
    """The adapter in a PEFT folder, and its name in ``conf/adapter``."""
    return _adapter(read_json(folder / CONFIG), _tensors(folder))


def modules_to_save(folder: Path, model: nn.Module) -> list[str]:
    """The parts of ``model`` that a PEFT folder holds in full; as in PEFT, a name also means names that end in it.

    Raises:
        InputError: ``modules_to_save`` in the config is not a list of names (``E-PEFT``).
    """
    config = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}  # not every method has one
    named = config.get("modules_to_save") or []
    if not isinstance(named, list) or not all(isinstance(name, str) and name for name in named):
        raise InputError("E-PEFT", f"adapter_config.json: 'modules_to_save' is {named!r:.80}: it is no list of names")
    ends = tuple(f".{name}" for name in named)
    return [name for name, _ in model.named_modules() if f".{name}".endswith(ends)] if ends else []


def _tensors(folder: Path) -> dict[str, tuple[int, ...]]:
    found = read_shapes(folder / WEIGHTS)
    if strange := [name for name in found if not name.startswith(PREFIX)]:
        raise InputError("E-ADAPTER", f"{folder / WEIGHTS}: {strange[0]!r:.80} does not begin with {PREFIX}")
    return {name.removeprefix(PREFIX): tensor.shape for name, tensor in found.items()}


def _adapter(config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> tuple[str, Adapter]:
    """The adapter of an installed method that reads this config, or else PEFT's own layers."""
    classes = adapter_classes()
    for name, kind in classes.items():
        if "from_peft" in vars(kind) and (adapter := kind.from_peft(config, tensors)) is not None:
            return name, adapter
    name = next(name for name, kind in classes.items() if kind is PeftMethod)
    return name, PeftMethod.of_folder(config, tensors)


def _task(config: Mapping[str, Any], given: str | None) -> tuple[str, type[AdapterTask]]:
    """Name and class of the plugin for a config's ``task_type``, or of the user's, if it fits that type."""
    wanted = config.get("task_type")
    if given is not None:
        kind = task_class({"task": {"name": given}})
        if None not in (kind.peft_task_type, wanted) and kind.peft_task_type != wanted:
            raise InputError(
                "E-PEFT",
                f"task={given} is for adapters of the type {kind.peft_task_type}; this one is of {wanted!r:.40}",
            )
        return given, kind
    kinds = task_classes()
    fitting = [
        name for name, kind in kinds.items() if kind.peft_task_type is not None and kind.peft_task_type == wanted
    ]
    if len(fitting) != 1:
        raise InputError(
            "E-PEFT",
            f"adapter_config.json: 'task_type' is {wanted!r:.40}: {'several tasks are' if fitting else 'no task is'} "
            f"for this; give task=, one of {', '.join(fitting or kinds)}",
        )
    return fitting[0], kinds[fitting[0]]


def _check_complete(task: str, kind: type[AdapterTask], given: Mapping[str, Any]) -> None:
    parameters = inspect.signature(kind).parameters.values()
    needed = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if missing := [name for name in needed if name not in given and name != "adapter"]:
        raise InputError(
            "E-PEFT",
            f"PEFT's folder does not say {', '.join(missing)}, which {task} needs: give arguments={{'{missing[0]}': "
            f"...}} (on the command line arguments.{missing[0]}=...)",
        )
