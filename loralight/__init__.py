"""Fine-tune pretrained models with adapters: Lightning trains, Hydra composes, plugins bring the tasks."""

import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loralight.version import __version__

if TYPE_CHECKING:
    from loralight.adapters import inject, merge
    from loralight.artifacts.bank import load_many
    from loralight.artifacts.from_python import load_adapter, load_task, save_adapter, save_task
    from loralight.artifacts.loading import load
    from loralight.data import TaskData
    from loralight.training.task import AdapterTask, Step

__all__ = [
    "AdapterTask",
    "Step",
    "TaskData",
    "__version__",
    "inject",
    "load",
    "load_adapter",
    "load_many",
    "load_task",
    "merge",
    "save_adapter",
    "save_task",
]

_HOMES = {
    "AdapterTask": "loralight.training.task",
    "Step": "loralight.training.task",
    "TaskData": "loralight.data",
    "inject": "loralight.adapters",
    "load": "loralight.artifacts.loading",  # a module named `load` would take the function's place here once imported
    "load_adapter": "loralight.artifacts.from_python",
    "load_many": "loralight.artifacts.bank",
    "load_task": "loralight.artifacts.from_python",
    "merge": "loralight.adapters",
    "save_adapter": "loralight.artifacts.from_python",
    "save_task": "loralight.artifacts.from_python",
}


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that the command line need not wait seconds for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'loralight' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def _find_conf_and_tasks_of_a_clone() -> None:
    """Map ``conf/`` and ``tasks/`` into the package in a clone that is not installed, as installation does."""
    root = Path(__file__).resolve().parent.parent
    if find_spec("loralight.conf") is None and (root / "conf" / "__init__.py").is_file():
        __path__.append(str(root))


_find_conf_and_tasks_of_a_clone()
if os.environ.get("LORALIGHT_PLUGINS"):  # a child process may unpickle a plugin's class next
    import_module("loralight.config.local_packages").install()
