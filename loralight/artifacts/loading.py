"""A trained adapter on its base model, ready to predict."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from loralight.artifacts.export import adapter_folder, load_adapter, no_larger_than_saved, read_recipe
from loralight.artifacts.peft_format import is_of_peft, peft_recipe
from loralight.artifacts.run_folder import words_for_plugins
from loralight.config.build import from_recipe
from loralight.config.plugins import task_file
from loralight.errors import InputError
from loralight.models.trust import trusting
from loralight.training.task import AdapterTask


def load(
    folder: str | Path,
    *,
    base: str | None = None,
    task: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    device: str = "auto",
    trust_remote_code: bool | None = None,
    allow_pickle: bool = False,
) -> AdapterTask:
    """Load an adapter that loralight or PEFT wrote.

    Only data is read from the folder and from the base model: nothing in them is imported or run.

    Args:
        folder: a run's folder or an adapter's.
        base: the base model's name or folder; for an adapter of loralight only if it differs from training.
        task: the task plugin for a PEFT folder, if not the one for its task type.
        arguments: the task's arguments that a PEFT folder lacks, such as ``{"labels": ["bad", "good"]}``.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``mps``.
        trust_remote_code: whether code in the base model's repository may run, see `loralight.models.trust.Trust`.
        allow_pickle: whether the base model's weights may be a pickle.

    Returns:
        The task in evaluation mode; ``predict(inputs)`` gives a dictionary for each input.

    Raises:
        InputError: there is no adapter (``E-ADAPTER``), a file has changed (``E-CKPT-HASH``), the adapter does not fit
            the base model (``E-BASE``, ``E-ADAPTER-KEYS``), PEFT's config has a setting that loralight does not support
            (``E-PEFT``), or the base model has code or a pickle that is not allowed (``E-REMOTE-CODE``, ``E-PICKLE``).
    """
    path, made = find_recipe(folder, base=base, task=task, arguments=arguments)
    with trusting(trust_remote_code=trust_remote_code, allow_pickle=allow_pickle):
        return build(path, made, device)


def find_recipe(
    folder: str | Path,
    *,
    base: str | None = None,
    task: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> tuple[Path, dict[str, Any]]:
    """The adapter's own folder, and the recipe of its task; see `load`."""
    path = adapter_folder(folder)
    if is_of_peft(path):
        return path, peft_recipe(path, base=base, task=task, arguments=arguments)
    made = read_recipe(path)
    if task is not None or arguments:
        raise InputError("E-ADAPTER", f"{path} says itself what its task is; leave out task and arguments")
    try:
        task_file(made["task"]["name"])
    except InputError as error:
        raise InputError("E-TASK", f"{str(error).removeprefix('E-TASK: ')}{words_for_plugins(path)}") from error
    if base is not None:
        made["task"]["arguments"]["checkpoint"] = base
    return path, made


def build(path: Path, made: dict[str, Any], device: str) -> AdapterTask:
    """The task that a recipe describes, with the weights in the adapter's folder ``path``."""
    with no_larger_than_saved(path):
        task = from_recipe(made)
    load_adapter(task, path, made)
    task.eval()
    return task.to(find_device(device))


def find_device(name: str) -> torch.device:
    """The device of this name; for ``auto`` a GPU if there is one.

    Raises:
        InputError: there is no such device (``E-DEVICES``).
    """
    if name != "auto":
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:
            raise InputError("E-DEVICES", f"device={name}: {str(error).splitlines()[0]}") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
