"""Columns of a table that are replaced by others."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset


def replace_column(rows: Dataset, name: str, values: Sequence[Any], *, feature: Any = None) -> Dataset:
    """The rows with other values in a column; a table of a single column, once that is removed, has no rows."""
    added = f"{name}, replaced"
    return rows.add_column(added, values, feature=feature).remove_columns(name).rename_column(added, name)
