"""Columns of tables whose cells are lists written as text, as pandas saves lists and NumPy's arrays in CSV."""

import ast
import re
from typing import Any

from datasets import Dataset

from loralight.data.columns import replace_column
from loralight.logs import logger

_ITEM = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[-+]?\d+(?:\.\d*)?"""
_ITEMS = re.compile(_ITEM, re.DOTALL)
_LIST = re.compile(rf"\[\s*(?:(?:{_ITEM})(?:(?:\s*,\s*|\s+)(?:{_ITEM}))*)?\s*\]", re.DOTALL)


def read_lists(rows: Dataset, file: str) -> Dataset:
    """The rows, with lists in each column of text in which every cell is a list or empty.

    A list has texts in quotes or numbers, and between them commas (Python, JSON) or spaces alone (NumPy). A column with
    any other cell stays as it is, as do lists of texts and numbers.
    """
    for name, feature in rows.features.items():
        if getattr(feature, "dtype", None) not in ("string", "large_string"):
            continue
        cells = rows[name]
        first = next((cell for cell in cells if cell), "")
        if not first.startswith("[") or not all(cell is None or _LIST.fullmatch(cell) for cell in cells):
            continue
        lists = [None if cell is None else [_value(item) for item in _ITEMS.findall(cell)] for cell in cells]
        if len({isinstance(item, str) for found in lists for item in found or ()}) == 1:
            logger.info("%s: column %r has lists written as text, read as lists", file, name)
            rows = replace_column(rows, name, lists)
    return rows


def _value(item: str) -> Any:
    if item[0] in "'\"":
        return ast.literal_eval(item) if "\\" in item else item[1:-1]
    return float(item) if "." in item else int(item)
