"""PEFT's config of an adapter: the modules that it targets, and a stranger's config read as data or refused."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn

from loralight.errors import InputError, did_you_mean

ABOUT = {
    "peft_type",
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
    # the tensors' names tell the layers and modules
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "modules_to_save",
    "target_modules",
}
"""Keys of every PEFT config that do not change the computation once the tensors are given."""

MAX_RANK = 4096
_PATTERN = re.compile(r"\^?(?:[A-Za-z0-9_-]|\\?\.|\.\*)+\$?")
_MAX_GLOBS = 64  # patterns with `.*`, each of which is compared with every layer


def targeting(model: nn.Module, names: Collection[str]) -> dict[str, Any]:
    """The keys of a PEFT config that target exactly these modules; to PEFT a name also matches longer names' ends."""
    ends = tuple(f".{name}" for name in names)
    longer = [name for name, _ in model.named_modules() if name not in names and name.endswith(ends)]
    return {"target_modules": sorted(names), "exclude_modules": longer or None}


def refuse_others(config: Mapping[str, Any], understood: Collection[str]) -> None:
    """Raise ``E-PEFT`` for a key that is not understood, unless its value is empty (null, false, an empty list)."""
    for key, value in config.items():
        if key in understood or key in ABOUT or value is None or value is False or value in ([], {}):
            continue
        hint = did_you_mean(key, understood)
        raise unreadable(key, value, f"loralight has nothing that this could become.{hint}")


def unreadable(key: str, value: Any, why: str) -> InputError:
    """The error about a key of a PEFT config."""
    return InputError("E-PEFT", f"adapter_config.json: {key!r:.80} is {value!r:.80}: {why}")


def number(config: Mapping[str, Any], key: str, default: float) -> float:
    """The number at a key; neither text nor true counts as a number."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise unreadable(key, value, "it is not a number")
    if not -1e9 <= value <= 1e9:
        raise unreadable(key, value, "it is far too large")
    return value


def flag(config: Mapping[str, Any], key: str) -> bool:
    """True or false; False if the key is missing."""
    value = config.get(key) or False
    if not isinstance(value, bool):
        raise unreadable(key, value, "it is neither true nor false")
    return value


def by_pattern(config: Mapping[str, Any], key: str, names: Iterable[str], default: float) -> dict[str, float]:
    """The number of each layer, from the first pattern that fits, as in PEFT.

    PEFT takes patterns as regular expressions, some of which would never finish. Here they are names, ends of names,
    names after ``^``, and any of these with ``.*``; the time grows only with their length.

    Raises:
        InputError: a pattern is another regular expression, or its value is not a number (``E-PEFT``).
    """
    patterns = config.get(key) or {}
    if not isinstance(patterns, Mapping):
        raise unreadable(key, patterns, "it is not a mapping of layers to numbers")
    values = {pattern: number(patterns, pattern, default) for pattern in patterns}
    if strange := [pattern for pattern in values if not _PATTERN.fullmatch(pattern)]:
        raise unreadable(key, strange[0], "only names with ^, $, dots and .* are read; name the layers one by one")
    order = {pattern: place for place, pattern in enumerate(values)}
    literal = {_plain(pattern): pattern for pattern in reversed(values) if ".*" not in _plain(pattern)}
    globs = [pattern for pattern in values if ".*" in _plain(pattern)]
    if len(globs) > _MAX_GLOBS:
        raise unreadable(key, len(globs), f"more than {_MAX_GLOBS} patterns have .*; name the layers one by one")
    found = {}
    for name in names:
        keys = [f"^{name}", *_ends(name)]
        fits = [literal[end] for end in keys if end in literal] + [g for g in globs if _fits(_plain(g), name)]
        found[name] = values[min(fits, key=order.__getitem__)] if fits else default
    return found


def _plain(pattern: str) -> str:
    return pattern.removesuffix("$").replace("\\.", ".")


def _ends(name: str) -> Iterable[str]:
    parts = name.split(".")
    return (".".join(parts[start:]) for start in range(len(parts)))


def _fits(pattern: str, name: str) -> bool:
    """Whether literal pieces, with any text between them, make up ``name`` or its end after one of its dots."""
    pieces = pattern.removeprefix("^").split(".*")
    starts = [name] if pattern.startswith("^") else _ends(name)
    return any(_in_order(pieces, text) for text in starts)


def _in_order(pieces: list[str], text: str) -> bool:
    first, *middle, last = pieces
    if not text.startswith(first) or not text.endswith(last) or len(text) < len(first) + len(last):
        return False
    at, end = len(first), len(text) - len(last)
    for piece in middle:
        at = text.find(piece, at, end)
        if at < 0:
            return False
        at += len(piece)
    return True
