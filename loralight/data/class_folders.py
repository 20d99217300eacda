"""A split as a folder with a folder of files for each class."""

from collections.abc import Collection
from pathlib import Path

from loralight.errors import InputError


def files_by_class(folder: str, suffixes: Collection[str], kind: str) -> dict[str, list[Path]]:
    """The files of each class, which has the name of its folder; without folders that hold none.

    Args:
        folder: the split.
        suffixes: of the files, in lower case.
        kind: of the files, for the message, such as ``images``.

    Raises:
        InputError: no folder holds such files (``E-DATA``).
    """
    classes = sorted(path for path in Path(folder).iterdir() if path.is_dir() and not path.name.startswith("."))
    found = {path.name: files for path in classes if (files := list_files(path, suffixes))}
    if not found:
        raise InputError(
            "E-DATA", f"{folder}: holds no folders with {kind}; give one with a folder of {kind} for each label"
        )
    return found


def list_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """The files of such suffixes in a folder and the folders inside it, sorted, without hidden ones."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))
