"""Compressed tables, such as ``train.csv.gz``: they are read as they are."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

_OPENERS: dict[str, Callable[..., IO[Any]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_TABLES = (".csv", ".tsv", ".json", ".jsonl")

BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What reading a file raises that is cut short, or is not compressed as its ending says."""


def inner_name(file: str | Path) -> Path:
    """A file's path without the ending of its compression, if it is a table: ``train.csv`` of ``train.csv.gz``."""
    path = Path(file)
    inner = path.with_suffix("") if path.suffix.lower() in _OPENERS else path
    return inner if inner.suffix.lower() in _TABLES else path


def open_bytes(file: str) -> IO[bytes]:
    """A file's content, unpacked."""
    return _opener(file)(file, "rb")


def open_lines(file: str, encoding: str | None) -> IO[str]:
    """A file's text, unpacked, with the line ends that it has; UTF-8 if ``encoding`` is None."""
    return _opener(file)(file, "rt", encoding=encoding or "utf-8-sig", errors="replace", newline="")


def _opener(file: str) -> Callable[..., IO[Any]]:
    return _OPENERS.get(Path(file).suffix.lower(), open)
