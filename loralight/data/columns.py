"""Columns of a table that are replaced by others, and values that are missing in them."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset


def replace_column(rows: Dataset, name: str, values: Sequence[Any], *, feature: Any = None) -> Dataset:
    """The rows with other values in a column; a table of a single column, once that is removed, has no rows."""
    added = f"{name}, replaced"
    return rows.add_column(added, values, feature=feature).remove_columns(name).rename_column(added, name)


def is_missing(value: Any) -> bool:
    """Whether a value is None, nan or a text of nothing but white space."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def missing_hint(value: Any, column: str) -> str:
    """What to do about a row without a value in a column; an empty string if it has one."""
    return f"; data.drop_missing='[{column}]' leaves out rows without one" if is_missing(value) else ""
