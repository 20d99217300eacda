"""Adapters saved and loaded by scripts: those of a task, and those of a model without a task."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from loralight.adapters.base import Adapter, trainable
from loralight.adapters.disabled import trained_by
from loralight.adapters.inject import inject
from loralight.artifacts import export
from loralight.artifacts.export import Exported
from loralight.artifacts.loading import find_device
from loralight.artifacts.peft_format import is_of_peft, modules_to_save, peft_adapter
from loralight.config.build import adapter_recipe, checked_adapter, task_name
from loralight.errors import InputError
from loralight.training.checkpoint import MANIFEST
from loralight.training.learning import Learning
from loralight.training.task import AdapterTask

Task = TypeVar("Task", bound=AdapterTask)

_OURS = {export.WEIGHTS, export.CONFIG, export.RECIPE, "README.md", MANIFEST}


def save_adapter(model: nn.Module, adapter: Adapter, folder: str | Path) -> None:
    """Write the adapter that `inject` added to ``model``, with its trained head: PEFT's format and a recipe.

    If PEFT does not have the method, there is no ``adapter_config.json``, and only `load_adapter` reads the folder.

    Args:
        model: adapted by `inject`.
        adapter: the adapter that `inject` was given.
        folder: written in one step; an adapter's folder that is there already is replaced.

    Raises:
        InputError: the model has no adapter, or trainable parameters outside it and the head (``E-ADAPTER``), or the
            folder holds something else (``E-OUTPUT``).
    """
    if not trainable(model) or not (adapter.is_probe or any(map(trained_by, model.modules()))):
        raise InputError(
            "E-ADAPTER", f"this {type(model).__name__} has no adapter: inject(model, adapter) comes first, and no merge"
        )
    parts = list(_whole_parts(model))
    whole = {id(module) for part in parts for module in part.modules()}
    if strays := [name for name in trainable(model) if not _is_owned(model, name, whole)]:
        raise InputError(
            "E-ADAPTER",
            f"{strays[0]} learns, but is no part of the adapter, nor of a head that learns as a whole: freeze it, or "
            "give inject its module in head=",
        )
    names = {id(module): name for name, module in model.named_modules()}
    base = model.name_or_path if isinstance(model, PreTrainedModel) else ""
    recipe = {"head": [names[id(part)] for part in parts], "base": {"name": base or None}}
    _write(_WithoutTask.of(model, adapter, parts), folder, recipe)


def load_adapter(model: nn.Module, folder: str | Path) -> Adapter:
    """Inject the adapter in a folder into ``model``, with its weights and those of its head; in place.

    Only data is read from the folder: nothing in it is imported or run.

    Args:
        model: the plain base model, with its pretrained weights.
        folder: written by `save_adapter`, `AdapterTask.save`, a run, or PEFT.

    Returns:
        The adapter.

    Raises:
        InputError: there is no adapter (``E-RUN``, ``E-ADAPTER``), a file has changed (``E-CKPT-HASH``), PEFT's
            config has a setting that loralight does not support (``E-PEFT``), or the adapter does not fit the model,
            which cannot be used after this (``E-TARGET-NONE``, ``E-BASE``, ``E-ADAPTER-KEYS``).
    """
    path = export.adapter_folder(folder)
    is_ours = not is_of_peft(path)
    made: dict[str, Any] = export.read_made(path) if is_ours else {"base": {}}
    adapter = checked_adapter(made) if is_ours else peft_adapter(path)[1]
    parts = _parts(model, made["head"] if "head" in made else modules_to_save(path, model), path)
    with export.no_larger_than_saved(path):
        inject(model, adapter, head=parts, will_train=False)
    export.load_adapter(_WithoutTask.of(model, adapter, parts), path, made)
    return adapter


def save_task(task: AdapterTask, folder: str | Path) -> None:
    """Write a task's adapter and a recipe that loads it again, in PEFT's format if it has the method.

    `loralight.load` loads the task of an installed plugin; `load_task`, or the class's own `load`, that of a class in a
    script.

    Args:
        task: with its model built.
        folder: written in one step; an adapter's folder that is there already is replaced.

    Raises:
        InputError: the model is not built (``E-UNBUILT``), or the folder holds something else (``E-OUTPUT``).
    """
    task.check_built()
    arguments = {**task.arguments, **task.found_arguments()}
    name = task_name(type(task))
    named = {"class": type(task).__name__} if name is None else {"name": name}
    made = {**named, "arguments": arguments, "settled": task.settled}
    _write(task, folder, {"task": made, "head": task.learning.whole_modules})


def load_task(kind: type[Task], folder: str | Path, *, device: str = "auto", **arguments: Any) -> Task:
    """A task with the adapter that `save_task` wrote, in evaluation mode.

    Args:
        kind: the task's class.
        folder: see `save_task`.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``mps``.
        arguments: of the constructor; they replace those that the folder has as plain data.

    Raises:
        InputError: as `loralight.load`; or the folder is of another task's class (``E-ADAPTER``).
    """
    path = export.adapter_folder(folder)
    made = export.read_made(path)
    saved = made.get("task", {})
    if saved.get("class", kind.__name__) != kind.__name__ or ("name" in saved and saved["name"] != task_name(kind)):
        raise InputError(
            "E-ADAPTER", f"{path} is of {saved.get('class', saved.get('name'))}, and this is {kind.__name__}"
        )
    settled = saved.get("settled", {})
    task = kind(**{**saved.get("arguments", {}), **settled, **arguments}, adapter=checked_adapter(made))
    task.settled = dict(settled)
    with export.no_larger_than_saved(path):
        task.configure_model()
    export.load_adapter(task, path, made)
    task.eval()
    return task.to(find_device(device))


@dataclass(kw_only=True)
class _WithoutTask:
    """A model with its adapter and without a task, in the form in which folders are written and read."""

    model: nn.Module
    adapter: Adapter
    learning: Learning
    peft_task_type: str | None = None

    @classmethod
    def of(cls, model: nn.Module, adapter: Adapter, parts: Sequence[nn.Module]) -> "_WithoutTask":
        return cls(model=model, adapter=adapter, learning=Learning(model, head=parts, layers=[], norms=[], added=()))


def _write(task: Exported, folder: str | Path, recipe: Mapping[str, Any]) -> None:
    folder = Path(folder)
    _refuse_others(folder)
    twin = _finished(task)
    made = {**recipe, "adapter": adapter_recipe(twin.adapter, "lora")}
    export.save_adapter(twin, folder, recipe=made, metrics={})


def _finished(task: Exported) -> Exported:
    """A copy of the task with its adapter in the form that is saved; training may continue with the original."""
    shared: dict[int, Any] = {id(p): p for p in task.model.parameters() if not p.requires_grad}
    shared |= {id(state): state for module in task.model.modules() for state in _kept_states(module)}
    trainer = vars(task).get("_trainer")
    twin: Exported = copy.deepcopy(task, shared | {id(trainer): trainer})
    twin.adapter = twin.adapter.finish_(twin.model)
    return twin


def _kept_states(module: nn.Module) -> list[Tensor]:
    """What a module keeps of its last step, as RecurrentGemma's do; such a tensor cannot be copied."""
    return [value for value in vars(module).values() if isinstance(value, Tensor) and not value.is_leaf]


def _refuse_others(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= _OURS):
        raise InputError(
            "E-OUTPUT", f"{folder} exists and is no adapter's folder, and nothing is overwritten; choose another name"
        )


def _whole_parts(module: nn.Module) -> Iterator[nn.Module]:
    """The largest parts that are trained in full, and not by a method: the ``head`` of `inject`."""
    for part in module.children():
        learns = [parameter.requires_grad for parameter in part.parameters()]
        if learns and all(learns) and not any(map(trained_by, part.modules())):
            yield part
        else:
            yield from _whole_parts(part)


def _is_owned(model: nn.Module, name: str, whole: set[int]) -> bool:
    owner = model.get_submodule(name.rpartition(".")[0])
    return id(owner) in whole or trained_by(owner) is not None


def _parts(model: nn.Module, names: Any, folder: Path) -> list[nn.Module]:
    """The parts of ``model`` that a folder names."""
    modules = dict(model.named_modules())
    strange = names if not isinstance(names, list) else [name for name in names if name not in list(modules)[1:]]
    if strange:
        raise InputError(
            "E-ADAPTER-KEYS",
            f"{folder} does not fit this model and adapter: its head is {str(strange)[:80]}, of which a "
            f"{type(model).__name__} has nothing",
        )
    return [modules[name] for name in names]
