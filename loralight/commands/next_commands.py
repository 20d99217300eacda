"""Command lines that are printed to be pasted: on the user's own data, with their settings and plugins."""

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loralight.artifacts.run_folder import read_overrides
from loralight.cli import quoted
from loralight.config.plugins import VARIABLE


def next_commands(config: Mapping[str, Any], output_dir: Path) -> list[str]:
    """What to do after a training: predict, evaluate, and train again at other rates.

    Args:
        config: of the run, in plain values.
        output_dir: the run's folder.
    """
    said = read_overrides(output_dir)
    plugins = [f"--plugin-dir={folder}" for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder]
    flags = [word for word in said if word.startswith("--")]
    run = _named("run", output_dir)
    commands = [
        ["predict", *plugins, run, "input=-"],
        ["evaluate", *plugins, *flags, run, "split=validation"],
    ]
    if isinstance(rate := config["optimizer"].get("lr"), int | float):
        settings = [word for word in said if not re.match(r"--|\+*(optimizer\.lr|resume|hydra\.[\w.]+)=", word)]
        rates = f"optimizer.lr={rate / 2:g},{rate:g},{rate * 2:g}"
        commands.append(["sweep", *plugins, *flags, *settings, rates])
    return [shlex.join(["loralight", *words]) for words in commands]


def _named(key: str, folder: Path) -> str:
    """The override that names a folder, which is told from here if it lies below."""
    name = os.path.relpath(folder)
    override = f"{key}={folder if name.startswith('..') else name}"
    return override if re.fullmatch(r"[\w./=-]+", override) else quoted(override)
