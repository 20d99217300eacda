"""Label names, from the values of a label column to the words of a prediction."""

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from datasets import ClassLabel, Dataset, LargeList, Value
from datasets import List as SmallList
from torch import Tensor

from loralight.data.columns import is_missing, missing_hint, replace_column
from loralight.data.origin import Origin
from loralight.data.splits import Splits, check_columns
from loralight.errors import InputError, did_you_mean

_LISTS = (SmallList, LargeList)
_NUMBER = re.compile(r"-?\d+(\.\d+)?", re.ASCII)

HIDDEN = -1  # the hub's mark for a test split whose labels are withheld


def label_name(value: Any) -> str:
    """A label's name, without spaces around it; 1.0 becomes 1, as a column with missing values has floats."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def is_hidden(rows: Dataset, column: str) -> bool:
    """Whether no row of a split has a label: all are missing, or -1, the hub's mark for withheld labels."""
    return len(rows) > 0 and all(value == HIDDEN or is_missing(value) for value in rows[column])


def leave_out_hidden_test(splits: Splits, columns: Sequence[str]) -> list[str]:
    """Remove a test split without labels from ``splits``; returns a line that says so."""
    if "test" not in splits:
        return []
    has = splits["test"].column_names
    others = [name for name in has if name not in splits["train"].column_names]  # one may be a label misspelled
    if not any(column in has or did_you_mean(column, others) for column in columns):
        del splits["test"]
        return [f"test: left out, it has no labels (no column {', '.join(map(repr, columns))})"]
    check_columns(splits["test"], columns, "test")
    if all(is_hidden(splits["test"], column) for column in columns):
        del splits["test"]
        return ["test: left out, its labels are hidden (all -1, or missing)"]
    return []


def check_splits(splits: Splits, columns: Sequence[str], *, labels: Sequence[str]) -> list[str]:
    """Remove a test split without labels from ``splits``, and check that each split has its columns.

    Args:
        splits: as they were read.
        columns: the columns that each split needs, with those of the labels.
        labels: the columns of the labels.

    Returns:
        A line about the split that was left out, if any.

    Raises:
        InputError: a column is not there (``E-COLUMN``).
    """
    check_columns(splits["train"], columns, "train", hint=splits.hint)  # its errors are reported first
    notes = leave_out_hidden_test(splits, labels)
    for split, rows in splits.items():
        check_columns(rows, columns, split)
    return notes


def split_labels(rows: Dataset, column: str, separator: str) -> Dataset:
    """The rows, with each text in ``column`` split at ``separator`` into a list of labels; an empty cell has none.

    Raises:
        InputError: the column already holds lists, or the separator is empty (``E-LABELS``).
    """
    if not separator or are_lists(rows, [column]):
        raise InputError(
            "E-LABELS",
            f"data.label_separator={separator!r}: give what stands between the labels in column {column!r}, such as a "
            "comma; leave it out where the column holds lists",
        )
    lists = [[] if is_missing(value) else _parts(label_name(value), separator) for value in rows[column]]
    return replace_column(rows, column, lists, feature=SmallList(Value("string")))


def _parts(text: str, separator: str) -> list[str]:
    """The labels in a text, which may be in brackets: ``[a, b]``."""
    is_list = text.startswith("[") and text.endswith("]")
    parts = [part.strip() for part in (text[1:-1] if is_list else text).split(separator)]
    return [part for part in parts if part]


def read_labels(
    rows: Dataset, columns: Sequence[str], origin: Origin, given: Sequence[str] | None = None
) -> list[list[str]]:
    """The names of each row's labels.

    Args:
        columns: one column of integers, strings, ClassLabels or lists of these; or several columns of 0 and 1, each
            named after the label it stands for.
        origin: of the rows.
        given: label names chosen by the user; they name plain integers by number, unless the integers are the names.

    Returns:
        A list of names per row; a single name where the column holds one label.

    Raises:
        InputError: a row has no label, or a label that the data set does not name (``E-LABEL-RANGE``), or one of
            several columns holds neither 0 nor 1 (``E-LABEL``), or the column holds records (``E-LABELS``).
    """
    if len(columns) > 1:
        flags = [rows[column] for column in columns]
        for column, values in zip(columns, flags, strict=True):
            for row, value in enumerate(values):
                if value not in (0, 1):
                    raise InputError(
                        "E-LABEL",
                        f"{origin.row(row)}, column {column!r}: {value!r}; a label column among several holds 0 or 1",
                    )
        return [
            [column for column, value in zip(columns, row, strict=True) if value] for row in zip(*flags, strict=True)
        ]
    (column,) = columns
    feature = rows.features[column]
    if isinstance(feature, dict):
        fields = ", ".join(feature)
        raise InputError(
            "E-LABELS",
            f"{origin.row(0)}, column {column!r}: {rows[column][0]!r} is a record of {fields}, and no label. If these "
            f"are labels, make each a column of 0 and 1: data.columns.label='[{fields}]'",
        )
    names = feature.feature if isinstance(feature, _LISTS) else feature
    known = names.names if isinstance(names, ClassLabel) else None
    if known is None and given and getattr(names, "dtype", "").startswith(("int", "uint")):
        values = {v for value in rows[column] for v in (value if isinstance(value, list) else [value])}
        known = None if {str(v) for v in values} <= set(given) else given
    labels = []
    for row, value in enumerate(rows[column]):
        values = value if isinstance(value, list) else [value]
        if value is None or any(is_missing(v) or (known is not None and not 0 <= v < len(known)) for v in values):
            possible = f"; valid are 0..{len(known) - 1} ({', '.join(known)})" if known else ""
            said = f"{origin.row(row)}, column {column!r}: {value!r} is no label{possible}{missing_hint(value, column)}"
            raise InputError("E-LABEL-RANGE", said)
        labels.append([known[v] if known else label_name(v) for v in values])
    return labels


def are_lists(rows: Dataset, columns: Sequence[str]) -> bool:
    """Whether a row can have several labels: a column of lists, or several columns."""
    return len(columns) > 1 or isinstance(rows.features[columns[0]], _LISTS)


def label_names(rows: Dataset, columns: Sequence[str], labels: list[list[str]]) -> list[str]:
    """All label names, in the order of the columns or of the ClassLabel, else sorted (numbers as numbers)."""
    if len(columns) > 1:
        return list(columns)
    feature: Any = rows.features[columns[0]]
    names = feature.feature if isinstance(feature, _LISTS) else feature
    if isinstance(names, ClassLabel):
        return list(names.names)
    found = {name for row in labels for name in row}
    return sorted(found, key=lambda name: (0, float(name), name) if _NUMBER.fullmatch(name) else (1, 0.0, name))


def encode_labels(labels: list[list[str]], names: Sequence[str], origin: Origin) -> list[list[int]]:
    """The positions of each row's label names in ``names``.

    Raises:
        InputError: a label is not among ``names`` (``E-LABEL-RANGE``).
    """
    position = {name: number for number, name in enumerate(names)}
    for row, values in enumerate(labels):
        for value in values:
            if value not in position:
                raise InputError(
                    "E-LABEL-RANGE",
                    f"{origin.row(row)}: label {value!r} is not one of {', '.join(map(repr, names))}."
                    f"{did_you_mean(value, names)} data.labels names them all",
                )
    return [[position[value] for value in values] for values in labels]


def check_smoothing(share: float) -> None:
    """Raise ``E-SMOOTHING`` unless ``share`` of a target can be spread over all labels."""
    if not 0 <= share < 1:
        raise InputError("E-SMOOTHING", f"task.label_smoothing is {share}; give a share from 0 to below 1")


def weights_of_labels(
    given: Sequence[float] | str | None, labels: Sequence[str], counts: Sequence[int] | None
) -> Tensor | None:
    """Weights of the labels in a loss, (labels,); None for equal weights.

    Args:
        given: a weight per label, or ``balanced``: in inverse proportion to ``counts``.
        labels: the names of the labels.
        counts: how often each label occurs in training.

    Raises:
        InputError: ``given`` is another text, has another number of weights, a weight below 0, or only zeros
            (``E-CLASS-WEIGHTS``).
    """
    if given is None:
        return None
    if isinstance(given, str):
        if given != "balanced" or counts is None:
            raise InputError(
                "E-CLASS-WEIGHTS",
                f"task.class_weights is {given!r}; give 'balanced' or one number per label ({', '.join(labels)})",
            )
        # as scikit-learn: rows / (labels * rows of the label)
        given = [sum(counts) / (len(counts) * max(count, 1)) for count in counts]
    if len(given) != len(labels):
        raise InputError(
            "E-CLASS-WEIGHTS",
            f"task.class_weights has {len(given)} numbers for {len(labels)} labels ({', '.join(labels)})",
        )
    if not all(0 <= weight < math.inf for weight in given) or not any(given):
        raise InputError(
            "E-CLASS-WEIGHTS", f"task.class_weights is {list(given)}; give numbers of at least 0, not all of them 0"
        )
    return torch.tensor([float(weight) for weight in given])
