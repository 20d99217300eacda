"""JSON that a stranger wrote: read in bounded time, with nothing in it executed. It answers without importing torch."""

import json
import math
from pathlib import Path
from typing import Any

from loralight.errors import InputError
from loralight.regular_file import read_regular

MAX_JSON = 64 * 1024
"""Most bytes of a JSON file; an adapter's config has a few kilobytes."""
MAX_DEPTH = 8


def read_json(file: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """A JSON object of at most 64 kB without NaN, duplicate keys, nesting deeper than 8, or keys of Hydra.

    Args:
        file: in an adapter's folder.
        limit: most bytes, if the file may have more.

    Raises:
        InputError: the file is not a plain JSON object within these limits (``E-ADAPTER``).
    """
    try:
        content = parse_json(read_regular(file, limit))
        if not isinstance(content, dict):
            raise ValueError("it is not an object")
        _check_depth(content)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("E-ADAPTER", f"{file} cannot be read: {reason(error)}") from error
    return content


def read_json_lines(file: Path, limit: int) -> list[dict[str, Any]]:
    """The JSON objects of a file's lines, each within the limits of `read_json`.

    Args:
        file: in a run's folder.
        limit: most bytes of the file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not regular, or larger, or a line is not such an object.
    """
    # splitlines() would also split at characters that a text may hold, such as U+2028
    lines = [line for line in read_regular(file, limit).split(b"\n") if line]
    try:
        parsed = [parse_json(line) for line in lines]
    except RecursionError as error:
        raise ValueError("a line is nested too deep") from error
    if not all(isinstance(line, dict) for line in parsed):
        raise ValueError("a line is not an object")
    return parsed


def parse_json(content: bytes) -> Any:
    """The value of a JSON text without NaN, duplicate keys, or keys of Hydra.

    Raises:
        ValueError: it is no such text.
        RecursionError: it is nested too deep.
    """
    return json.loads(
        content.decode("utf-8"),
        object_pairs_hook=_plain_object,
        parse_constant=_refuse,
        parse_float=_finite,
        parse_int=_short,
    )


def _plain_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands in it twice")
    if special := [key for key in found if key.startswith("_") and key.endswith("_") and key != "__metadata__"]:
        raise ValueError(f"{special[0]!r} has no place in it")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"it says {constant}, which is no number of JSON's")


def _short(text: str) -> int:
    if len(text) > 18:  # more than torch's integers hold
        raise ValueError(f"{text[:20]}... has too many digits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not finite")
    return number


def _check_depth(content: Any) -> None:
    level = [content]
    for _ in range(MAX_DEPTH):
        inner = (list(node.values()) if isinstance(node, dict) else node for node in level)
        level = [child for children in inner for child in children if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {MAX_DEPTH}")


def reason(error: BaseException) -> str:
    """An error's message on one line of bounded length."""
    return " ".join(str(error).split())[:200] or type(error).__name__
