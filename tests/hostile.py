"""Does what each case says and tells what happened, watched by an audit hook; run in a process of its own.

A case is `loralight.load` (``folder``, ``base``, ``arguments``) and what to predict then (``inputs``), or a command.
"""

import io
import json
import os
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import jinja2.debug  # noqa: F401  # for what a template raises
import peft  # noqa: F401  # a library that transformers or loralight imports as soon as they need it
from hydra.core.global_hydra import GlobalHydra

import loralight
import loralight.conf
import loralight.config.settings  # for what a message tells of a setting
import loralight.tasks
from loralight.cli import run
from loralight.errors import InputError

cases, may_read = json.loads(Path(sys.argv[1]).read_text())
OFF_LIMITS = {
    "builtins.input",
    "marshal.loads",
    "os.exec",
    "os.system",
    "pickle.find_class",
    "socket.connect",
    "subprocess.Popen",
}
OURS = (*loralight.__path__, *loralight.conf.__path__, *loralight.tasks.__path__)
MAY_READ = tuple(map(os.path.abspath, (*may_read, *OURS, *sys.path, sys.prefix, sys.base_prefix, "/proc/mounts")))
seen: list[str] = []
warnings.simplefilter("ignore")


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Notes what opens a file to write, or begins something that no reader of data does."""
    if event == "open":
        path, _, flags = arguments
        if (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and str(path) != os.devnull:
            seen.append(f"writes {path}")
        elif isinstance(path, str | bytes) and not os.path.abspath(os.fsdecode(path)).startswith(MAY_READ):
            seen.append(f"reads {path}")
    elif event in OFF_LIMITS:
        seen.append(event)


def commanded(arguments: list[str]) -> str:
    """What a command line ends in."""
    told = io.StringIO()
    GlobalHydra.instance().clear()
    with redirect_stderr(told), redirect_stdout(io.StringIO()):
        code = run(arguments)
    return "loaded" if code == 0 else told.getvalue().strip().removeprefix("loralight: ")


def loaded(*, inputs: list[Any] | None = None, **arguments: Any) -> str:
    """What loading ends in, and predicting."""
    task = loralight.load(**arguments, device="cpu")
    if inputs:
        task.predict(inputs)
    return "loaded"


def attempt(case: dict[str, Any]) -> dict[str, Any]:
    """What a case ends in."""
    seen.clear()
    known = set(sys.modules)
    try:
        outcome = commanded(case["command"]) if "command" in case else loaded(**case)
    except InputError as error:
        outcome = str(error)
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}"
    return {"outcome": outcome, "seen": list(seen), "modules": sorted(set(sys.modules) - known)}


for case in cases["good"]:  # what any loading imports is imported now
    assert attempt(case)["outcome"] == "loaded", (case, attempt(case))
sys.addaudithook(watch)
print(json.dumps([attempt(case) for case in cases["hostile"]]))
