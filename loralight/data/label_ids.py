"""Names for the numbers in a label column, which data sets often bring in a separate file."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import List, Value

from loralight.data.charsets import read_text_file
from loralight.data.labels import are_lists, label_name
from loralight.data.origin import Origin
from loralight.data.splits import Splits
from loralight.errors import InputError

LabelNames = str | Sequence[str | float] | Mapping[Any, str | float]
"""A file with one name a line or with JSON, a list of names in the order of their numbers, or names by number."""


def name_label_ids(rows: Splits, columns: Sequence[str], given: LabelNames) -> list[str]:
    """Replace the numbers in a column of labels by names, and return all names in order.

    Names in a list are numbered from 0, or from 1 if no row has label 0 and some row has the number of names as label.

    Args:
        rows: the splits, whose column is replaced.
        columns: one column, with a label or a list of labels in each row.
        given: the names.

    Raises:
        InputError: there are no such names, or both numberings are possible (``E-LABELS``), or a label has no name
            (``E-LABEL-RANGE``).
    """
    if len(columns) != 1:
        raise InputError("E-LABELS", f"data.label_names={given!r}: columns of 0 and 1 have their names; leave it out")
    (column,) = columns
    names, several = _read(given), are_lists(rows["train"], columns)
    found = {label_name(value) for part in rows.values() for cell in part[column] for value in _values(cell)}
    by_id = names if isinstance(names, dict) else _numbered(names, found)
    if not found <= set(by_id.values()):  # else the column already holds the names
        for split, part in rows.items():
            named = [_named(cell, by_id, rows.origins[split], row, column) for row, cell in enumerate(part[column])]
            text = Value("string")
            feature = List(text) if several else text
            rows[split] = part.remove_columns(column).add_column(column, named, feature=feature)
    return list(by_id.values())


def _read(given: LabelNames) -> list[str] | dict[str, str]:
    """The names, in order or by number."""
    read: Any = _read_file(given) if isinstance(given, str) else given
    if isinstance(read, Mapping):
        read = {label_name(number): label_name(name) for number, name in read.items()}
        if all(isinstance(name, str) and name.isdecimal() for name in read.values()):  # {"positive": 1}
            read = {number: name for name, number in read.items()}
        read = dict(sorted(read.items(), key=lambda pair: (len(pair[0]), pair[0])))
    elif isinstance(read, Sequence) and not isinstance(read, str):
        read = [label_name(name) for name in read]
    if not isinstance(read, list | dict) or len(set(read if isinstance(read, list) else read.values())) < len(read):
        raise InputError(
            "E-LABELS",
            f"data.label_names={given!r}: give different names in the order of their numbers, a name a line in a file, "
            "or names by number: {1: World, 2: Sports}, of a JSON file too",
        )
    return read


def _read_file(name: str) -> Any:
    if not Path(name).is_file():
        raise InputError(
            "E-LABELS",
            f"data.label_names={name}: there is no such file. Give one with a name a line, or with JSON, or the names "
            "themselves: data.label_names='[negative, positive]'",
        )
    text = read_text_file(name)
    if Path(name).suffix.lower() != ".json":
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError("E-LABELS", f"data.label_names={name}: no JSON: {error}") from error


def _numbered(names: Sequence[str], found: set[str]) -> dict[str, str]:
    first = 1 if "0" not in found and str(len(names)) in found else 0
    if first == 0 and "0" not in found and all(map(str.isdecimal, found)):
        shown = ", ".join(f"{number}: {name}" for number, name in enumerate(names[:3], start=1))
        raise InputError(
            "E-LABELS",
            f"data.label_names has {len(names)} names, and no row has label 0 nor {len(names)}: do their numbers begin "
            f"with 0 or with 1? Give them by number: data.label_names='{{{shown}, ...}}'",
        )
    return {str(number): name for number, name in enumerate(names, start=first)}


def _values(cell: Any) -> Iterator[Any]:
    yield from (one for one in (cell if isinstance(cell, list) else [cell]) if one is not None)


def _named(cell: Any, by_id: Mapping[str, str], origin: Origin, row: int, column: str) -> Any:
    if isinstance(cell, list):
        return [_named(one, by_id, origin, row, column) for one in cell]
    if cell is None:  # reported with the other rows without a label
        return None
    if (number := label_name(cell)) not in by_id:
        known = ", ".join(f"{number} ({name})" for number, name in list(by_id.items())[:5])
        raise InputError(
            "E-LABEL-RANGE",
            f"{origin.row(row)}, column {column!r}: data.label_names has no name for {cell!r}, but {len(by_id)}, of "
            f"{known}{', ...' if len(by_id) > 5 else ''}. Several labels in one cell need data.label_separator",
        )
    return by_id[number]
