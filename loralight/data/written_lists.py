"""Columns of tables whose cells are lists written as text, as pandas saves lists and NumPy's arrays in CSV."""

import ast
import json
import re
from typing import Any

from datasets import Dataset

from loralight.data.columns import replace_column
from loralight.logs import logger

_ITEM = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[-+]?\d+(?:\.\d*)?"""
_ITEMS = re.compile(_ITEM, re.DOTALL)
_LIST = re.compile(rf"\[\s*(?:(?:{_ITEM})(?:(?:\s*,\s*|\s+)(?:{_ITEM}))*)?\s*\]", re.DOTALL)
_RECORDS = re.compile(r"\[\s*\{")


def read_lists(rows: Dataset, file: str) -> Dataset:
    """The rows, with lists in each column of text in which every cell is a list or empty.

    A list has texts in quotes or numbers, and between them commas (Python, JSON) or spaces alone (NumPy); or it has
    records, such as messages, as Python or JSON writes them. A column with any other cell stays as it is, as do lists
    of several types.
    """
    for name, feature in rows.features.items():
        if getattr(feature, "dtype", None) not in ("string", "large_string"):
            continue
        cells = rows[name]
        if not next((cell for cell in cells if cell), "").startswith("["):
            continue
        lists = [None if cell is None else _read(cell) for cell in cells]
        unread = any(found is None and cell is not None for found, cell in zip(lists, cells, strict=True))
        if unread or not any(lists):
            continue
        try:
            rows = replace_column(rows, name, lists)
        except (ValueError, TypeError):  # items of several types
            continue
        logger.info("%s: column %r has lists written as text, read as lists", file, name)
    return rows


def _read(cell: str) -> list[Any] | None:
    """The list that a cell is; None if it is none."""
    if _LIST.fullmatch(cell):
        return [_value(item) for item in _ITEMS.findall(cell)]
    if _RECORDS.match(cell):
        for read in (json.loads, ast.literal_eval):
            try:
                found = read(cell)
            except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two by a cell of many brackets
                continue
            if isinstance(found, list) and all(isinstance(one, dict) for one in found):
                return found
    return None


def _value(item: str) -> Any:
    if item[0] in "'\"":
        return ast.literal_eval(item) if "\\" in item else item[1:-1]
    return float(item) if "." in item else int(item)
