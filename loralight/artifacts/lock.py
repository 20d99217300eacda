"""A lock on a run's folder that ends with its process, however the process ends.

The kernel holds the lock (`fcntl.lockf`); the mere existence of the file means nothing. Data loader workers do not
inherit it. On NFS it works between machines if the server supports locks. Without such locks, and on Windows, nothing
keeps two runs apart.
"""

import errno
import json
import os
import socket
from contextlib import suppress
from pathlib import Path

from loralight.errors import InputError

LOCK = ".hydra/lock.json"
_files: dict[Path, int] = {}


def hold(folder: Path) -> None:
    """Keep other processes from training into ``folder``, until this process ends or calls `release`.

    Raises:
        InputError: another process trains into the folder (``E-RUNNING``), or a link leads out of it (``E-RUN``).
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        return
    path = folder.resolve() / LOCK
    if path in _files:
        return
    if path.resolve() != path:  # the file is written to
        raise InputError("E-RUN", f"{folder / LOCK} leads out of the run's folder; remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise InputError(
                "E-RUNNING",
                f"{folder} is being trained into by {_holder(path)}. Wait for its end, stop it, or choose another "
                "folder with hydra.run.dir=",
            ) from None
        return  # a file system without locks
    # from here on, closing any other descriptor of this file in this process would give up the lock
    _files[path] = file
    os.truncate(file, 0)
    os.write(file, json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode())


def is_held(folder: Path) -> bool:
    """Whether another process trains into the folder."""
    if not (folder / LOCK).exists():
        return False
    try:
        hold(folder)
    except InputError as error:
        if str(error).startswith("E-RUNNING"):
            return True
        raise
    release(folder)
    return False


def release(folder: Path) -> None:
    """Let other processes train into ``folder``."""
    if (file := _files.pop(folder.resolve() / LOCK, None)) is not None:
        os.close(file)


def _holder(path: Path) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['process']} on {holder['host']}"
    return "another process"
