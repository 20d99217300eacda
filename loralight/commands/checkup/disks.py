"""Checks of the disks that runs write to and models are kept on, and of the clocks that they and this machine have."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from time import time

from loralight.commands.checkup.finding import GIB, Finding, Machine, gib, nearest

_SKEW = 10.0  # seconds; torchrun takes a machine whose clock is 15 s behind for a dead one


def disk_of_runs(machine: Machine) -> Finding:
    """The disk that checkpoints and adapters are written to."""
    return _disk(machine.runs, least=GIB, remedy="hydra.run.dir=FOLDER, on another disk")


def disk_of_models(machine: Machine) -> Finding:
    """The disk of the cache of models and data from the hub."""
    return _disk(hub_cache(machine.environment), least=5 * GIB, remedy="export HF_HOME=FOLDER, on another disk")


def lock(machine: Machine) -> Finding:
    """Whether the file system of runs has locks, which keep two runs out of one folder."""
    try:
        import fcntl
    except ModuleNotFoundError:
        return Finding("none on this system: nothing keeps two runs out of one folder")
    try:
        with tempfile.TemporaryFile(dir=nearest(machine.runs)) as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        wrong = f"nothing keeps two runs out of one folder here ({error.strerror})"
        return Finding("none", wrong, "mount it with locks, or hydra.run.dir=FOLDER")
    return Finding("kept by the file system of runs")


def clock(machine: Machine) -> Finding:
    """The clock of the disk of runs, which may be another machine's, against this machine's."""
    try:
        with tempfile.TemporaryFile(dir=nearest(machine.runs)) as file:
            file.write(b"-")
            file.flush()
            ahead = os.fstat(file.fileno()).st_mtime - time()
    except OSError as error:
        return Finding(f"not known: {error.strerror}")
    return skew(ahead, "the disk of runs")


def skew(ahead: float, whose: str) -> Finding:
    """What to say of a clock that is ``ahead`` seconds ahead of this machine's.

    Args:
        whose: the other clock.
    """
    if abs(ahead) < _SKEW:
        return Finding(f"{whose} and this machine agree")
    wrong = f"{whose} is {abs(ahead):.0f} s {'ahead' if ahead > 0 else 'behind'}; torchrun would lose machines"
    return Finding("two clocks disagree", wrong, "sudo timedatectl set-ntp true, on each machine")


def hub_cache(environment: Mapping[str, str]) -> Path:
    """The folder in which the hub's client keeps models and data."""
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    home = environment.get("HF_HOME") or f"{cache}/huggingface"
    return Path(environment.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()


def _disk(folder: Path, *, least: int, remedy: str) -> Finding:
    there = nearest(folder)
    free = shutil.disk_usage(there).free
    told = f"{folder}: {gib(free)} free"
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        return Finding(told, f"nothing can be written to {there}: {error.strerror}", remedy)
    return Finding(told, f"less than {gib(least)} is free", remedy) if free < least else Finding(told)
