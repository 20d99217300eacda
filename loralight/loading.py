"""A trained adapter on its base model, ready to predict."""

from pathlib import Path
from typing import Any

import torch

from loralight.build import from_recipe
from loralight.errors import InputError
from loralight.export import adapter_folder, load_adapter, read_recipe
from loralight.task import AdapterTask


def load(folder: str | Path, *, base: str | None = None, device: str = "auto") -> AdapterTask:
    """Load an adapter that loralight trained.

    Only data is read from the folder: it names an installed task plugin, and nothing in it is imported or run.

    Args:
        folder: a run's folder or an adapter's.
        base: the base model's name or folder, if it is another than in training.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``mps``.

    Returns:
        The task in evaluation mode; ``predict(inputs)`` gives a dictionary for each input.

    Raises:
        InputError: there is no adapter (``E-ADAPTER``), or it does not fit the base model (``E-BASE``,
            ``E-ADAPTER-KEYS``).
    """
    path, made = find_recipe(folder, base=base)
    return build(path, made, device)


def find_recipe(folder: str | Path, *, base: str | None = None) -> tuple[Path, dict[str, Any]]:
    """The adapter's own folder, and how the task is made; see `load`."""
    path = adapter_folder(folder)
    made = read_recipe(path)
    if base is not None:
        made["task"]["arguments"]["checkpoint"] = base
    return path, made


def build(path: Path, made: dict[str, Any], device: str) -> AdapterTask:
    """The task that a recipe describes, with the weights in the adapter's folder ``path``."""
    task = from_recipe(made)
    load_adapter(task, path, made)
    task.eval()
    return task.to(find_device(device))


def find_device(name: str) -> torch.device:
    """The device of that name; for ``auto`` a GPU if there is one.

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
