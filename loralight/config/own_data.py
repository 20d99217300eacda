"""The user's own rows replace a task's demo data and all settings of the demo."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from loralight.config.plugins import conf_folders

_ROWS = ("data.path", "data.train")
_CHOOSE = ("data", "experiment", "resume")  # overrides that choose the data themselves


def with_own_data(overrides: list[str], conf: Sequence[str] = ()) -> list[str]:
    """The overrides, preceded by ``data=TASK`` if the user names rows and no data and such a choice is installed.

    Args:
        overrides: of a command line.
        conf: folders of configs in addition to those of plugins.
    """
    given = {name.lstrip("+"): value for name, _, value in (override.partition("=") for override in overrides)}
    if any(name in given for name in _CHOOSE) or all(given.get(name, "null") == "null" for name in _ROWS):
        return overrides
    folders = [*conf_folders(), *map(Path, conf)]
    data = given.get("task", _default_task(folders[0]))
    return [f"data={data}", *overrides] if any((one / f"data/{data}.yaml").is_file() for one in folders) else overrides


def _default_task(conf: Path) -> str:
    choices = yaml.safe_load((conf / "train.yaml").read_text(encoding="utf-8"))["defaults"]
    return next(str(choice["task"]) for choice in choices if "task" in choice)
