"""``init=RUN``: a new run that starts from the adapter and head of another run."""

import json
from dataclasses import asdict
from typing import Any

from torch import Tensor

from loralight.artifacts.export import adapter_folder, adapter_tensors, read_recipe
from loralight.errors import InputError
from loralight.training.task import AdapterTask


def read_start(task: AdapterTask, folder: str, from_data: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of the adapter and head in a folder, after checking that they fit; the folder is read as data.

    Args:
        task: with its model built; its adapter may have other training settings than the folder's, not other tensors.
        folder: a run's folder, or its adapter's.
        from_data: arguments that the data gives the task, such as label names.

    Raises:
        InputError: the outputs mean something else than in the folder's run, or the head is to start at a linear probe
            (``E-INIT``); there is no adapter in the folder (``E-RUN``, ``E-ADAPTER``), a file has changed
            (``E-CKPT-HASH``), or the adapter has another base, rank or layers (``E-BASE``, ``E-ADAPTER-KEYS``).
    """
    if task.adapter.is_probe or task.head_settings.start == "probe":
        raise InputError(
            "E-INIT", "init=: a head that begins at a linear probe cannot begin at another run's: choose one"
        )
    path = adapter_folder(folder)
    made = read_recipe(path)
    for name, value in from_data.items():
        if not _gives_meaning(name, value):
            continue
        before = made["task"]["arguments"].get(name)
        if before != value:
            raise InputError(
                "E-INIT",
                f"init={folder}: its task, {made['task'].get('name') or made['task'].get('class')}, was given "
                f"{name}={before!r:.200}, and this data gives {value!r:.200}; give "
                "the same in the same order (data.labels, for example), or begin anew",
            )
    try:
        return adapter_tensors(task, path, made)
    except InputError as error:
        code, _, message = str(error).partition(": ")
        raise InputError(code, f"init={folder}: {_other_settings(made, task, code)}{message}") from error


def _other_settings(made: dict[str, Any], task: AdapterTask, code: str) -> str:
    """The adapter's settings that differ from the folder's, where its tensors do not fit."""
    here, there = json.loads(json.dumps(asdict(task.adapter))), made["adapter"]["arguments"]
    others = [name for name in here if name in there and name != "lr" and here[name] != there[name]]
    told = [f"adapter.{name} is {here[name]!r:.80} here, and {there[name]!r:.80} there; " for name in others]
    return "".join(told) if code == "E-ADAPTER-KEYS" else ""


def _gives_meaning(name: str, value: Any) -> bool:
    """Whether an argument gives outputs their meaning, as label names do; counts and columns may differ by the rows."""
    numbers = value if isinstance(value, list) else [value]
    counts = all(isinstance(one, int | float) and not isinstance(one, bool) for one in numbers)
    return not counts and "column" not in name
