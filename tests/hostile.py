"""Loads each folder it is given and says what happened, watched by an audit hook; run in a process of its own."""

import json
import os
import sys
from typing import Any

import loralight
import loralight.conf
import loralight.tasks
from loralight.errors import InputError

base, good, *folders = sys.argv[1:]
ARGUMENTS = {"labels": ["a", "b", "c"]}
OFF_LIMITS = {"pickle.find_class", "marshal.loads", "subprocess.Popen", "os.system", "os.exec", "socket.connect"}
OURS = (*loralight.__path__, *loralight.conf.__path__, *loralight.tasks.__path__)
MAY_READ = tuple(map(os.path.abspath, (base, *folders, *OURS, *sys.path, sys.prefix, sys.base_prefix, "/proc/mounts")))
seen: list[str] = []


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


def attempt(folder: str) -> dict[str, Any]:
    """What loading ``folder`` ends in."""
    seen.clear()
    known = set(sys.modules)
    try:
        loralight.load(folder, base=base, arguments=ARGUMENTS, device="cpu")
        outcome = "loaded"
    except InputError as error:
        outcome = str(error)
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}"
    return {"outcome": outcome, "seen": list(seen), "modules": sorted(set(sys.modules) - known)}


loaded = attempt(good)  # what any loading imports is imported now
assert loaded["outcome"] == "loaded", loaded
sys.addaudithook(watch)
print(json.dumps([attempt(folder) for folder in folders]))
