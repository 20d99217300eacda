"""Runs each command it is given and says what happened, watched by an audit hook; run in a process of its own."""

import contextlib
import io
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra

import loralight.config.settings  # noqa: F401  # for what a message tells of a setting
from loralight.cli import run

commands: list[list[str]] = json.loads(Path(sys.argv[1]).read_text())
good, commands = commands[:3], commands[3:]
HERE = os.getcwd()
warnings.simplefilter("ignore")
OFF_LIMITS = {"pickle.find_class", "marshal.loads", "subprocess.Popen", "os.system", "os.exec", "socket.connect"}
CHANGES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "shutil.rmtree"}
# of the run, what the command names, and the caches of libraries
MAY_WRITE = [os.environ["HF_DATASETS_CACHE"], tempfile.gettempdir() + "/hydra", os.devnull]
seen: list[str] = []


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Notes what changes files outside, or begins something that no reader of data does."""
    if event in OFF_LIMITS:
        seen.append(event)
    elif event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        note("writes", arguments[0])
    elif event in CHANGES and not is_of_another(event, arguments):
        note(event, arguments[0])


def is_of_another(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an event is part of `shutil.rmtree`, which tells the whole path, or of a folder that is there."""
    if event in ("os.remove", "os.rmdir"):
        return bool(arguments[1] != -1)
    return event == "os.mkdir" and os.path.isdir(arguments[0])


def note(what: str, path: Any) -> None:
    if isinstance(path, str | bytes | os.PathLike):
        place = os.path.realpath(os.fsdecode(path))
        if not f"{place}{os.sep}".startswith(tuple(MAY_WRITE)):
            seen.append(f"{what} {place}")


def attempt(line: list[str]) -> dict[str, Any]:
    """What a command ends in."""
    GlobalHydra.instance().clear()
    folder = os.path.join(HERE, line[1].partition("=")[2])
    allowed = [folder + os.sep, folder + ".merged", os.path.join(HERE, "." + os.path.basename(folder))]
    MAY_WRITE[3:] = allowed
    seen.clear()
    known, environment = set(sys.modules), dict(os.environ)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            code: Any = run(line)
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
    return {
        "code": code,
        "printed": printed.getvalue(),
        "seen": list(seen),
        "modules": sorted(set(sys.modules) - known),
        "environment": sorted(set(os.environ.items()) ^ set(environment.items())),
    }


for line in good:  # what any such command imports is imported now
    found = attempt(line)
    assert found["code"] == 0, found
sys.addaudithook(watch)
for line in commands:
    print(json.dumps(attempt(line)), flush=True)
