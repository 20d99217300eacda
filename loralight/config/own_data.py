"""Rows of the user's own take the place of a task's demo, with all that was set for it."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from loralight.config.plugins import conf_folders

_ROWS = ("data.path", "data.train")
_CHOOSE = ("data", "experiment", "resume")  # words that choose the data themselves


def with_own_data(overrides: list[str], conf: Sequence[str] = ()) -> list[str]:
    """``data=TASK`` first where the user names rows and no data, if a file of that name is installed.

    Args:
        overrides: of a command line.
        conf: folders of configs beside those of plugins.
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
