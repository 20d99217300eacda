"""The splits of a data set by the names of its files, also where a split is in several files.

A folder that was downloaded from the hub has them as ``train-00000-of-00002.parquet``, others as ``train_1.csv`` and
``train_2.csv`` or ``reviews_train.csv``; a folder of stories has none. `datasets` joins such files in the same way
(https://huggingface.co/docs/datasets/repository_structure).
"""

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from loralight.data.compressed import inner_name
from loralight.errors import InputError, did_you_mean

ALIASES = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
"""The names of each split."""

_SPLIT_OF = {alias: split for split, aliases in ALIASES.items() for alias in aliases}
_SHARD = re.compile(r"-\d{5}-of-\d{5}.*$")
_IN_NAME = re.compile(rf"(?<![^-._ 0-9])({'|'.join(_SPLIT_OF)})(?![^-._ 0-9])", re.IGNORECASE)
_NUMBERS = re.compile(r"[-._ 0-9]+")
_ABOUT = ("readme", "license", "licence", "notice", "citation")
_SHOWN = 8  # names in a message


def is_split(name: str) -> bool:
    """Whether this is the name of a split."""
    return name.lower() in _SPLIT_OF


def split_in(name: str) -> str | None:
    """The split that a part of a file's or folder's name tells, such as ``train_images``."""
    found = _IN_NAME.search(name)
    return _SPLIT_OF[found[1].lower()] if found else None


def name_of(file: Path) -> str:
    """A file's name without its endings, and without the number of a shard."""
    return _SHARD.sub("", inner_name(file).stem)


def is_about(file: Path) -> bool:
    """Whether this is a text about the data, such as ``README.txt``."""
    return file.suffix == ".txt" and file.stem.lower() in _ABOUT


def by_name(path: str, files: Sequence[Path]) -> dict[str, list[Path]]:
    """The files of a folder by their names; the shards of a split have one name.

    Raises:
        InputError: two files have one name and are no shards (``E-DATA``).
    """
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(name_of(file), []).append(file)
    for some in found.values():
        are_shards = all(_SHARD.search(file.stem) for file in some) and len({file.suffix for file in some}) == 1
        if len(some) > 1 and not are_shards:
            raise InputError(
                "E-DATA",
                f"data.path={path}: several files of one split: {shown(file.name for file in files)}. Give one as "
                "data.train=<file>, or move those of one kind to a folder of their own",
            )
    return found


def names_of(
    split: str, given: str | None, names: Collection[str], *, path: str, others: Collection[str], are_parts: bool
) -> list[str]:
    """Those of the ``names`` in a data set that a split has; none if there is no such split.

    Args:
        split: a key of `ALIASES`.
        given: the name that the user gave for it.
        names: all names there.
        path: the data set, for messages.
        others: the names that the user gave for other splits.
        are_parts: whether several names may be parts of one split: they are of files of one kind.

    Raises:
        InputError: the name that the user gave is not there (``E-DATA``).
    """
    if given is not None:
        if given not in names:
            raise InputError("E-DATA", f"data.{split}={given}: {path} has {shown(names)}.{did_you_mean(given, names)}")
        return [given]
    by_lower = {name.lower(): name for name in names}
    if own := [by_lower[alias] for alias in ALIASES[split] if alias in by_lower]:
        return own[:1]
    has_own = any(map(is_split, names))  # another split has
    if len(names) == 1 and not has_own:
        return [*names] if split == "train" else []
    free = [name for name in names if name not in others] if are_parts else []
    told = {name: found for name in free if (found := split_in(name))}
    if not told:
        return free if split == "train" and not has_own else []
    parts = [name for name, found in told.items() if found == split]
    are_numbered = len({_NUMBERS.sub("", name) for name in parts}) == 1
    return parts if are_numbered and len(told) == len(free) else []


def shown(names: Iterable[str]) -> str:
    """Names for a message, of which only the first are shown."""
    some = list(names)
    more = f" and {len(some) - _SHOWN} more" if len(some) > _SHOWN else ""
    return f"{', '.join(some[:_SHOWN])}{more}"
