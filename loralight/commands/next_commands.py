"""Command lines printed for the user to paste, with their own data, settings and plugins."""

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loralight.artifacts.run_folder import read_overrides
from loralight.config.local_packages import VARIABLE
from loralight.config.overrides import quoted
from loralight.errors import InputError
from loralight.training.checkpoint import newest
from loralight.training.launch import process_rank


def next_commands(config: Mapping[str, Any], output_dir: Path) -> list[str]:
    """The commands to print after a training: predict, evaluate, and train again at other rates.

    Args:
        config: the run's config, in plain values.
        output_dir: the run's folder.
    """
    said = read_overrides(output_dir)
    plugins = _plugin_flags()
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


def how_to_go_on(runs: Path | Mapping[str, Path]) -> str:
    """The message after a stop: the saved checkpoint, and the command that resumes from it.

    Args:
        runs: the run's folder, or the folders of runs that train together, by their names.
    """
    folders = runs if isinstance(runs, Mapping) else {"": runs}
    saved = {name: _newest(folder) for name, folder in folders.items() if not (folder / "summary.json").exists()}
    if not any(saved.values()):
        return "nothing is saved yet: the same command starts again"
    words = {name: _named("resume", folders[name]) for name, checkpoint in saved.items() if checkpoint}
    line = (
        ["train", words[""]] if "" in words else ["together", *(f"runs.{name}={word}" for name, word in words.items())]
    )
    under = "" if process_rank() is None else ", under the same launcher,"
    found = ", ".join(_short(checkpoint) for checkpoint in saved.values() if checkpoint)
    return f"saved {found}; go on{under} with: {shlex.join(['loralight', *_plugin_flags(), *line])}"


def _plugin_flags() -> list[str]:
    """The flags that name the plugin folders in use."""
    return [f"--plugin-dir={folder}" for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder]


def _named(key: str, folder: Path) -> str:
    """The override that names a folder; relative to the current folder if it lies below that."""
    name = os.path.relpath(folder)
    override = f"{key}={folder if name.startswith('..') else name}"
    return override if re.fullmatch(r"[\w./=-]+", override) else quoted(override)


def _newest(run: Path) -> Path | None:
    try:
        return newest(run)
    except InputError:
        return None


def _short(path: Path) -> str:
    short = os.path.relpath(path)
    return str(path) if short.startswith("..") else short
