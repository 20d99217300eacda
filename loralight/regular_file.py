"""Reading a file that may be a stranger's, and so might be a link, a pipe or a device."""

import os
import stat
from pathlib import Path


def read_regular(file: Path, limit: int) -> bytes:
    """The bytes of a regular file that has no more than ``limit``.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is a link, a pipe or a device, or has more bytes.
    """
    content = read_beginning(file, limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit // 1024} kB")
    return content


def read_beginning(file: Path, count: int) -> bytes:
    """At most the first ``count`` bytes of a regular file; raises like `read_regular`, but not for its length."""
    if not stat.S_ISREG(os.lstat(file).st_mode):  # opening a pipe or a device may never return
        raise ValueError("it is not a regular file (links are not followed: copy what they lead to)")
    handle = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as opened:
        return opened.read(count)
