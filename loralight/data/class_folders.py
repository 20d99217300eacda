"""A split as a folder with a folder of files for each class."""

from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from loralight.errors import InputError
from loralight.logs import logger

_OF_SYSTEMS = ("thumbs.db", "desktop.ini")  # which they put into folders by themselves


def files_by_class(folder: str, suffixes: Collection[str], kind: str) -> dict[str, list[Path]]:
    """The files of each class, which has the name of its folder; without folders that hold none.

    Files of other kinds are left out, and counted in the log.

    Args:
        folder: the split.
        suffixes: of the files, in lower case.
        kind: of the files, for the message, such as ``images``.

    Raises:
        InputError: no folder holds such files (``E-DATA``).
    """
    classes = sorted(path for path in Path(folder).iterdir() if path.is_dir() and not path.name.startswith("."))
    found, endings = dict[str, list[Path]](), Counter[str]()
    for path in classes:
        files = sorted(_visible(path))
        if known := [file for file in files if file.suffix.lower() in suffixes]:
            found[path.name] = known
        others = (file for file in files if file.suffix.lower() not in suffixes)
        endings.update(file.suffix or file.name for file in others if file.name.lower() not in _OF_SYSTEMS)
    if not found:
        raise InputError(
            "E-DATA", f"{folder}: holds no folders with {kind}; give one with a folder of {kind} for each label"
        )
    if endings:
        shown = ", ".join(f"{count} of {ending}" for ending, count in endings.most_common())
        logger.info("%s: %d files are no %s and are left out: %s", folder, endings.total(), kind, shown)
    return found


def list_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """The files of such suffixes in a folder and the folders inside it, sorted, without hidden ones."""
    return sorted(file for file in _visible(folder) if file.suffix.lower() in suffixes)


def _visible(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path
