"""The inputs of ``loralight predict``: lines of text, or records."""

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from loralight.data.compressed import inner_name
from loralight.errors import InputError


def read_inputs(source: str) -> list[Any]:
    """The inputs in a file or on standard input (``-``).

    Each line of text is an input; a line that is a JSON object is a record. Rows of CSV, JSONL and Parquet files are
    records, see `read_file`. If the whole text is a JSON array of texts and records, its elements are the inputs.

    Raises:
        InputError: the file cannot be read, or is empty (``E-DATA``, ``E-DATA-EMPTY``).
    """
    from loralight.data.splits import FORMATS, read_file  # they import the library of data sets

    if source != "-" and inner_name(source).suffix.lower() in FORMATS:
        inputs: list[Any] = read_file(source).to_list()
    else:
        try:
            text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError("E-DATA", f"input={source}: cannot be read as text: {error}") from error
        if (listed := _listed(text)) is not None:
            return listed
        lines = text.split("\n")  # splitlines() would also split at characters that a text may hold, such as U+2028
        inputs = [_line(line, number, source) for number, line in enumerate(lines, start=1) if line.strip()]
    if not inputs:
        raise InputError("E-DATA-EMPTY", f"input={source} has no lines")
    return inputs


def _listed(text: str) -> list[Any] | None:
    """The elements of a JSON array; None for any other text, such as a text that begins with a remark in brackets."""
    if not text.lstrip().startswith("["):
        return None
    with suppress(ValueError, RecursionError):
        found = json.loads(text)
        return found if found and all(isinstance(one, str | dict) for one in found) else None
    return None


def _line(line: str, number: int, source: str) -> Any:
    if not line.startswith("{"):
        return line
    try:
        return json.loads(line)
    except ValueError as error:
        raise InputError(
            "E-DATA", f"input={source}, line {number} begins like a JSON record, but is none: {error}"
        ) from error
