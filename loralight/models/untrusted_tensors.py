"""Safetensors that a stranger wrote: names, shapes and values, read in bounded time, with nothing in them executed."""

import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loralight.errors import InputError
from loralight.regular_file import read_beginning
from loralight.untrusted import MAX_DEPTH, parse_json, reason

MAX_HEADER = 2 * 2**20
"""Most bytes of a header: names and shapes of some 12,000 tensors, read in a fifth of a second."""
MAX_NAME = 512

_PART = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_COUNTS = {"I64": torch.int64}
"""For BatchNorm's count of batches; taken where the model has an integer of that name."""


class Shape(NamedTuple):
    """A tensor's entry in the header of a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def read_shapes(file: Path) -> dict[str, Shape]:
    """The tensors in a safetensors file, by name, without their values.

    Raises:
        InputError: the file is not safetensors, or has names, shapes or dtypes that no adapter has (``E-ADAPTER``).
    """
    try:
        length, size = int.from_bytes(read_beginning(file, 8), "little"), os.stat(file).st_size - 8
        if length > min(MAX_HEADER, size):
            raise ValueError(f"its header has {length:,} bytes, more than the file, or than the {MAX_HEADER:,} allowed")
        header = parse_json(read_beginning(file, 8 + length)[8:])
        if not isinstance(header, dict):
            raise ValueError("its header is not an object")
        header.pop("__metadata__", None)
        shapes = {_name(name): _shape(name, entry) for name, entry in header.items()}
        if (needed := sum(dtype.itemsize * math.prod(shape) for dtype, shape in shapes.values())) > size - length:
            raise ValueError(f"its tensors would take {needed:,} bytes, more than the file has")
        return shapes
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("E-ADAPTER", f"{file} cannot be read: {reason(error)}") from error


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file; call `read_shapes` first, which tells their size.

    Raises:
        InputError: the file is not whole, or a value is not finite (``E-ADAPTER``).
    """
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError) as error:
        raise InputError("E-ADAPTER", f"{file} cannot be read: {reason(error)}") from error
    if not_finite := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise InputError("E-ADAPTER", f"{file}: {', '.join(not_finite[:3])} holds values that are not finite")
    return tensors


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
