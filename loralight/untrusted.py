"""Files that a stranger wrote: plain JSON and safetensors, read in bounded time, with nothing in them executed."""

import json
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loralight.errors import InputError
from loralight.regular_file import read_beginning, read_regular

MAX_JSON = 64 * 1024
"""Most bytes of a JSON file; an adapter's config has a few kilobytes."""
MAX_HEADER = 2 * 2**20
"""Most bytes of a header: names and shapes of some 12,000 tensors, read in a fifth of a second."""
MAX_DEPTH = 8
MAX_NAME = 512

_PART = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_COUNTS = {"I64": torch.int64}
"""For BatchNorm's count of batches; taken where the model has an integer of that name."""


class Shape(NamedTuple):
    """A tensor's entry in the header of a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def read_json(file: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """A JSON object of at most 64 kB without NaN, duplicate keys, nesting deeper than 8, or keys of Hydra.

    Args:
        file: in an adapter's folder.
        limit: most bytes, if the file may have more.

    Raises:
        InputError: the file is not a plain JSON object within these limits (``E-ADAPTER``).
    """
    try:
        content = _parse(read_regular(file, limit))
        if not isinstance(content, dict):
            raise ValueError("it is not an object")
        _check_depth(content)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("E-ADAPTER", f"{file} cannot be read: {_reason(error)}") from error
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
        parsed = [_parse(line) for line in lines]
    except RecursionError as error:
        raise ValueError("a line is nested too deep") from error
    if not all(isinstance(line, dict) for line in parsed):
        raise ValueError("a line is not an object")
    return parsed


def read_shapes(file: Path) -> dict[str, Shape]:
    """The tensors in a safetensors file, by name, without their values.

    Raises:
        InputError: the file is not safetensors, or has names, shapes or dtypes that no adapter has (``E-ADAPTER``).
    """
    try:
        length, size = int.from_bytes(read_beginning(file, 8), "little"), os.stat(file).st_size - 8
        if length > min(MAX_HEADER, size):
            raise ValueError(f"its header has {length:,} bytes, more than the file, or than the {MAX_HEADER:,} allowed")
        header = _parse(read_beginning(file, 8 + length)[8:])
        if not isinstance(header, dict):
            raise ValueError("its header is not an object")
        header.pop("__metadata__", None)
        shapes = {_name(name): _shape(name, entry) for name, entry in header.items()}
        if (needed := sum(dtype.itemsize * math.prod(shape) for dtype, shape in shapes.values())) > size - length:
            raise ValueError(f"its tensors would take {needed:,} bytes, more than the file has")
        return shapes
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("E-ADAPTER", f"{file} cannot be read: {_reason(error)}") from error


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file; call `read_shapes` first, which tells their size.

    Raises:
        InputError: the file is not whole, or a value is not finite (``E-ADAPTER``).
    """
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError) as error:
        raise InputError("E-ADAPTER", f"{file} cannot be read: {_reason(error)}") from error
    if not_finite := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise InputError("E-ADAPTER", f"{file}: {', '.join(not_finite[:3])} holds values that are not finite")
    return tensors


def _parse(content: bytes) -> Any:
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


def _name(name: str) -> str:
    if len(name) > MAX_NAME or not all(_PART.fullmatch(part) for part in name.split(".")):
        raise ValueError(f"{name[:80]!r} is no name of a tensor: parts of A-Z, a-z, 0-9, _ and -, between dots")
    return name


def _shape(name: str, entry: Any) -> Shape:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name} has no dtype, shape and data_offsets")
    shape = entry["shape"]
    if not isinstance(shape, list) or len(shape) > MAX_DEPTH or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"{name} has the shape {str(shape)[:40]}")
    dtypes = _FLOATS if shape else {**_FLOATS, **_COUNTS}
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in dtypes:
        raise ValueError(f"{name} is of dtype {str(entry['dtype'])[:20]!r}; an adapter's is {', '.join(_FLOATS)}")
    return Shape(dtypes[entry["dtype"]], tuple(shape))


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
