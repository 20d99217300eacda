"""One message, naming the folder, for a disk that cannot be written to and for a folder that was removed."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loralight.errors import InputError

REFUSED = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO})
"""The error numbers of a system that cannot write."""


@contextmanager
def telling_of_disk(folder: Path) -> Iterator[None]:
    """A context that turns failures to write into ``folder`` into one message.

    Raises:
        InputError: a file in the folder could not be written, or the folder has been removed (``E-DISK``).
    """
    try:
        yield
    except OSError as error:
        if not _is_of(error, folder):
            raise
        raise InputError(
            "E-DISK",
            f"{error.filename or folder} cannot be written: {error.strerror or error}. Make room, or choose another "
            "folder with hydra.run.dir=; what was saved before is as it was",
        ) from error


def refuse_taken_away(folder: Path) -> None:
    """Raise ``E-DISK`` if the run's folder has been removed: the rest of the run would write an incomplete folder."""
    if not folder.is_dir():
        raise InputError(
            "E-DISK", f"{folder} has been taken away since the run began; nothing is written, begin in a new folder"
        )


def _is_of(error: OSError, folder: Path) -> bool:
    """Whether ``error`` comes from writing into ``folder``, and not from reading a file of the user's."""
    if error.filename is None:
        return error.errno in REFUSED
    inside = Path(error.filename).absolute().is_relative_to(folder.absolute())
    return inside and (error.errno in REFUSED or isinstance(error, FileNotFoundError | NotADirectoryError))
