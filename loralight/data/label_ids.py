"""Names for the numbers in a label column, which data sets often bring in a separate file."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, List, Value

from loralight.data.charsets import read_text_file
from loralight.data.columns import replace_column
from loralight.data.labels import are_lists, label_name
from loralight.data.origin import Origin
from loralight.data.splits import LABEL_NAMES, Splits
from loralight.errors import InputError

LabelNames = str | Sequence[str | float] | Mapping[Any, str | float]
"""A file with one name a line or with JSON, a list of names in the order of their numbers, or names by number."""


def name_labels(
    rows: Splits, columns: Sequence[str], names: LabelNames | None, labels: Sequence[str] | None
) -> tuple[list[str] | None, list[str]]:
    """Replace numbers in a column of labels by the user's names, else by those that the data set has elsewhere.

    Args:
        rows: the splits, whose column is replaced.
        columns: the columns of labels.
        names: names of numbers; if None, see `names_beside`.
        labels: the user's labels in order; names found beside the data that are not among them are left alone.

    Returns:
        All labels in order, None if the rows tell; and lines on where the names were found.

    Raises:
        InputError: see `name_label_ids`.
    """
    given: LabelNames | None = names
    told: list[str] = []
    if names is None:
        beside, lines = names_beside(rows, columns)
        if beside is not None and (labels is None or set(beside.values()) <= set(labels)):
            given, told = beside, lines
    found = None if given is None else name_label_ids(rows, columns, given)
    return found if labels is None else list(labels), told


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
    known = set(names.values() if isinstance(names, dict) else names)
    found = {split: _labels_in(part, column) for split, part in rows.items()}
    numbered = {split: labels for split, labels in found.items() if not labels <= known}  # others hold the names
    by_id = names if isinstance(names, dict) else _numbered(names, set().union(*numbered.values()) or known)
    text = Value("string")
    for split in numbered:
        part, origin = rows[split], rows.origins[split]
        named = [_named(cell, by_id, origin, row, column) for row, cell in enumerate(part[column])]
        rows[split] = replace_column(part, column, named, feature=List(text) if several else text)
    return list(by_id.values())


def names_beside(
    rows: Splits, columns: Sequence[str], *, is_name: Callable[[str], bool] = bool
) -> tuple[dict[str, str] | None, list[str]]:
    """Names that the data set gives for the numbers in a column of labels, and a line that tells where they are.

    They are in a file ``labels.json`` in the folder of the rows, or in a column of texts in which each number always
    has the same text, and no other number has it. Without names for all numbers, the results are None and no line.

    Args:
        rows: the splits.
        columns: one column, with a label or a list of labels in each row; others have no numbers to be named.
        is_name: whether a text can be a label's name.
    """
    column = columns[0]
    if len(columns) > 1 or not _has_numbers(rows["train"], column):
        return None, []
    others = (part for split, part in rows.items() if split != "train" and _has_numbers(part, column))
    splits = [rows["train"], *others]
    found = set().union(*(_labels_in(part, column) for part in splits))
    for place, names in _places(splits, column, found, Path(rows.origins["train"].source)):
        if found <= names.keys() and all(is_name(name) and not name.isdecimal() for name in names.values()):
            return names, [f"the numbers in column {column!r} have their names from {place}"]
    return None, []


def _places(
    splits: Sequence[Dataset], column: str, found: set[str], source: Path
) -> Iterator[tuple[str, dict[str, str]]]:
    """Places that may name the numbers in a column, each with the names by number."""
    file = (source if source.is_dir() else source.parent) / LABEL_NAMES
    if source.exists() and file.is_file():  # the source of rows from the hub is a name
        yield str(file), _names_in(str(file), found)
    several = are_lists(splits[0], [column])
    for other in splits[0].column_names:
        if _kind(splits[0], other) in ("string", "large_string") and are_lists(splits[0], [other]) == several:
            yield f"column {other!r}", _one_to_one(splits, column, other)


def _has_numbers(rows: Dataset, column: str) -> bool:
    return _kind(rows, column).startswith(("int", "uint"))


def _kind(rows: Dataset, column: str) -> str:
    """The type of a column's values, or of those in its lists; a `ClassLabel` has names and is none of these."""
    feature: Any = rows.features[column]
    inner = feature.feature if are_lists(rows, [column]) else feature
    return "named" if isinstance(inner, ClassLabel) else str(getattr(inner, "dtype", ""))


def _names_in(file: str, found: set[str]) -> dict[str, str]:
    try:
        names = _read(file)
        by_id = names if isinstance(names, dict) else _numbered(names, found)
        return by_id if all(map(str.isdecimal, by_id)) else {}
    except InputError:  # a file of this name about something else
        return {}


def _one_to_one(splits: Sequence[Dataset], column: str, other: str) -> dict[str, str]:
    """The text that goes with each number; none if two go with one, or if most numbers come once, as texts do."""
    names: dict[str, str] = {}
    count = 0
    for part in splits:
        if other in part.column_names:
            for cell, texts in zip(part[column], part[other], strict=True):
                numbers, called = map(list, map(_values, (cell, texts)))
                pairs = [(label_name(number), label_name(text)) for number, text in zip(numbers, called, strict=False)]
                if len(numbers) != len(called) or any(names.setdefault(*pair) != pair[1] for pair in pairs):
                    return {}
                count += len(pairs)
    return names if len(set(names.values())) == len(names) and count >= 2 * len(names) else {}


def _read(given: LabelNames) -> list[str] | dict[str, str]:
    """The names, in order or by number."""
    read: Any = _read_file(given) if isinstance(given, str) else given
    names = read.values() if isinstance(read, Mapping) else read if isinstance(read, list) else ()
    if not all(isinstance(name, str | int | float) for name in names):
        read = None  # JSON about something else
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
    except (ValueError, RecursionError) as error:
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


def _labels_in(rows: Dataset, column: str) -> set[str]:
    return {label_name(value) for cell in rows[column] for value in _values(cell)}


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
