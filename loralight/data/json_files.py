"""JSON files that are no list of records, or have records that somebody has rejected."""

import json
import re
from typing import Any

from datasets import Dataset

from loralight.data.compressed import open_lines
from loralight.data.label_studio import read_label_studio
from loralight.logs import logger

_HEAD = 1 << 12  # characters that show how a file begins
_OF_PANDAS = re.compile(r'\s*\{\s*("(?:[^"\\]|\\.)*"\s*:\s*\{\s*"\d+"|"columns"\s*:\s*\[)')


def read_other_json(file: str, encoding: str | None = None) -> Dataset | None:
    """The rows of an export of Label Studio or of a table that pandas has written; None for any other file.

    Args:
        file: its path.
        encoding: UTF-8 if None.
    """
    with open_lines(file, encoding) as opened:
        head = opened.read(_HEAD)
        if not _OF_PANDAS.match(head):
            return read_label_studio(file, encoding)
        try:
            columns = _columns(json.loads(head + opened.read()))
        except ValueError:  # further records follow
            return None
    return columns and Dataset.from_dict(columns)


def _columns(table: dict[str, Any]) -> dict[str, list[Any]] | None:
    """The columns of a table as `pandas.DataFrame.to_json` writes it without arguments, or with ``orient="split"``."""
    if set(table) == {"columns", "index", "data"}:
        return {name: [row[place] for row in table["data"]] for place, name in enumerate(table["columns"])}
    rows = [set(cells) if isinstance(cells, dict) else None for cells in table.values()]
    if None in rows or any(one != rows[0] for one in rows):
        return None
    return {name: list(cells.values()) for name, cells in table.items()}


def accepted(rows: Dataset, file: str) -> Dataset:
    """The rows without those that Prodigy's users have rejected or passed over (https://prodi.gy/docs/api-interfaces)."""
    if not {"answer", "_input_hash"} <= set(rows.column_names):
        return rows
    kept = [row for row, answer in enumerate(rows["answer"]) if answer == "accept"]
    if len(kept) < len(rows):
        logger.info("%s: %d of %d examples were not accepted, and are left out", file, len(rows) - len(kept), len(rows))
    return rows.select(kept)
