"""Fine-tune pretrained models with adapters: Lightning trains, Hydra composes, plugins bring the tasks."""

import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from loralight.first_use import on_first_use
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

__getattr__ = on_first_use(
    __name__,
    {
        "adapters": "inject merge",
        "artifacts.bank": "load_many",
        "artifacts.from_python": "load_adapter load_task save_adapter save_task",
        "artifacts.loading": "load",  # a module named `load` would take the function's place here once imported
        "data": "TaskData",
        "training.task": "AdapterTask Step",
    },
)


def _find_conf_and_tasks_of_a_clone() -> None:
    """Map ``conf/`` and ``tasks/`` into the package in a clone that is not installed, as installation does."""
    root = Path(__file__).resolve().parent.parent
    if find_spec("loralight.conf") is None and (root / "conf" / "__init__.py").is_file():
        __path__.append(str(root))


_find_conf_and_tasks_of_a_clone()
if os.environ.get("LORALIGHT_PLUGINS"):  # a child process may unpickle a plugin's class next
    import_module("loralight.config.local_packages").install()
