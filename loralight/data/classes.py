"""The classes of a data set, once it is sure that its label column holds classes."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from datasets import ClassLabel, Dataset

from loralight.data.labels import are_lists, encode_labels, label_names, read_labels
from loralight.data.origin import Origin
from loralight.data.splits import Splits
from loralight.errors import InputError, did_you_mean

_SEPARATORS = ",;|"
_FEW = 20  # up to so many different integers are taken for classes without further checks
_HIDDEN = "-1"
_STRANGERS = 0.1  # the share of a split's labels that training may lack: rare classes; above it, the splits do not fit


class Classes(NamedTuple):
    """The names of a data set's classes in order and, by split, the class numbers of each row: one, or several."""

    names: list[str]
    of_rows: dict[str, list[list[int]]]


def read_classes(
    rows: Splits, columns: Sequence[str], *, given: Sequence[str] | None, limited: bool, several: str
) -> Classes:
    """The classes of all rows, after a check that the columns hold classes.

    Args:
        rows: the splits.
        columns: the label columns: one, or several of 0 and 1.
        given: the user's names of the classes; with them the check is skipped.
        limited: whether rows of train were left out, so that it may lack some classes.
        several: advice for the message where a row has several labels.

    Raises:
        InputError: see `find_classes`, `read_labels` and `encode_labels`.
    """
    labels = {split: read_labels(part, columns, rows.origins[split], given) for split, part in rows.items()}
    names = find_classes(rows, columns, labels, given=given, limited=limited, several=several)
    return Classes(names, {split: encode_labels(part, names, rows.origins[split]) for split, part in labels.items()})


def find_classes(
    rows: Splits,
    columns: Sequence[str],
    labels: Mapping[str, list[list[str]]],
    *,
    given: Sequence[str] | None,
    limited: bool,
    several: str,
) -> list[str]:
    """The names of the classes in order: the user's, else those that the data set names, else those found in the rows.

    A rare class may have no row in train; a label that is spelt nearly like one of train's is taken for a mistake.

    Args:
        rows: the splits.
        columns: the label columns.
        labels: each row's labels, by split.
        given: the user's names of the classes; with them the check is skipped.
        limited: whether rows of train were left out, so that it may lack some classes.
        several: advice for the message where a row has several labels.

    Raises:
        InputError: the labels are not classes, or fewer than two, or a name comes twice (``E-LABELS``), or a row has -1
            for a missing label (``E-LABEL-RANGE``).
    """
    if given is None and has_no_names(rows["train"], columns) and any(chain(*labels.values())):
        _check(rows, columns[0], labels, several)
    seen = dict(labels) if limited else {"train": labels["train"]}
    if rows.origins["validation"].numbers is not None:  # held out of train: a label may have a single row
        seen["validation"] = labels["validation"]
    if given is None and has_no_names(rows["train"], columns):
        seen["strangers"] = [[name] for name in strangers(labels, set(chain(*chain(*seen.values()))))]
    names = list(given) if given is not None else label_names(rows["train"], columns, list(chain(*seen.values())))
    if given is None and len(columns) == 1:  # a folder of images for each class, of which train has none
        names += sorted({*strangers(labels, set(names))})
    if len(names) < 2:
        raise InputError(
            "E-LABELS",
            f"the only label in train is {names}; a classifier needs two. Check data.columns and data.labels",
        )
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError("E-LABELS", f"data.labels names {', '.join(map(repr, twice))} twice")
    return names


def strangers(labels: Mapping[str, Sequence[Sequence[str]]], known: set[str]) -> Iterator[str]:
    """Names that are in other splits alone, as far as these are rare classes and no misspelt ones.

    Args:
        labels: each row's labels, by split.
        known: the names in training.
    """
    for part in labels.values():
        counts = Counter(chain(*part))
        strange = [name for name in counts if name not in known]
        if sum(counts[name] for name in strange) <= _STRANGERS * counts.total():
            yield from (name for name in strange if not did_you_mean(name, known))


def has_no_names(rows: Dataset, columns: Sequence[str]) -> bool:
    """Whether the data set names no classes, neither by a column for each class nor by a `ClassLabel`."""
    return len(columns) == 1 and not isinstance(rows.features[columns[0]], ClassLabel)


def _check(rows: Splits, column: str, labels: Mapping[str, list[list[str]]], several: str) -> None:
    counts = Counter(name for part in labels.values() for row in part for name in row)
    check_marks(labels, rows.origins, column)
    check_spelling(counts, column)
    if not are_lists(rows["train"], [column]):
        check_single(counts, column, several)
        check_numbers(counts, column)


def check_marks(labels: Mapping[str, list[list[str]]], origins: Mapping[str, Origin], column: str) -> None:
    """Raise ``E-LABEL-RANGE`` at the first label -1 that marks a missing label.

    Among the labels -1 and 1, or -2 to 2, it is a class.
    """
    others = {name for part in labels.values() for row in part for name in row} - {_HIDDEN}
    if others == {"1"} or any(number < 0 for number in map(_number, others) if number is not None):
        return
    for split, part in labels.items():
        for row, names in enumerate(part):
            if _HIDDEN in names:
                raise InputError(
                    "E-LABEL-RANGE",
                    f"{origins[split].row(row)}, column {column!r}: -1 is no label but marks a row that has none; take "
                    "such rows out. If -1 is a class, name them all, as in data.labels='[-1, 0, 1]'",
                )


def check_spelling(counts: Mapping[str, int], column: str) -> None:
    """Raise ``E-LABELS`` if two names differ only in case."""
    spellings = defaultdict(list)
    for name in counts:
        spellings[name.casefold()].append(name)
    if twice := next((names for names in spellings.values() if len(names) > 1), None):
        shown = " and ".join(f"{name!r} ({counts[name]} times)" for name in sorted(twice))
        raise InputError(
            "E-LABELS",
            f"column {column!r}: {shown} differ in case alone; write one of them throughout. If these are different "
            "classes, name all in data.labels",
        )


def check_single(counts: Mapping[str, int], column: str, several: str) -> None:
    """Raise ``E-LABELS`` if a name joins several labels of other rows; ``Washington, DC`` is a single label."""
    if all(name.startswith("[") and name.endswith("]") for name in counts):
        raise InputError("E-LABELS", f"column {column!r}: {next(iter(counts))!r} is a list written as text. {several}")
    for separator in _SEPARATORS:
        if joined := _joined(counts, separator):
            parts = " and ".join(repr(part.strip()) for part in joined.split(separator))
            raise InputError(
                "E-LABELS",
                f"column {column!r}: {joined!r} ({counts[joined]} times) looks like several labels, {parts}, as other "
                f"rows have them too. {several}. If it is one label, name all in data.labels",
            )


def _joined(names: Mapping[str, int], separator: str) -> str | None:
    """A name whose parts are labels themselves or come at several places in other names; None if that is rare."""
    parts = {name: [part.strip() for part in name.split(separator)] for name in names if separator in name}
    places: dict[str, set[int]] = defaultdict(set)
    for found in parts.values():
        for place, part in enumerate(found):
            places[part].add(place)
    known = {part for part, found in places.items() if part in names or len(found) > 1}
    whole = [name for name, found in parts.items() if known.issuperset(found)]
    some = [name for name, found in parts.items() if known.intersection(found)]
    return next(iter(whole or some), None) if whole or 2 * len(some) > len(parts) else None


def check_numbers(counts: Mapping[str, int], column: str) -> None:
    """Raise ``E-LABELS`` if the names are numbers to be predicted, such as 0.37 and 4.2, and not numbers of classes."""
    numbers = [number for number in map(_number, counts) if number is not None]
    if len(numbers) < len(counts):
        return
    rows, distinct = sum(counts.values()), len(counts)
    fractional = not all(number.is_integer() for number in numbers)
    many, scattered = distinct > _FEW, max(numbers) - min(numbers) >= 2 * distinct
    thin = rows < (10 if scattered else 2) * distinct  # numbers of classes have few gaps
    if (many and (fractional or thin)) or (fractional and rows < 5 * distinct):
        shown = ", ".join(list(counts)[:3])
        raise InputError(
            "E-LABELS",
            f"column {column!r} holds {distinct} different numbers in {rows} rows ({shown}, ...): this task tells "
            "classes apart, it predicts no numbers. Divide them into a few classes, or take another column; `loralight "
            "new-task` begins as a task that predicts a number. If these are classes, name them in data.labels",
        )


def _number(name: str) -> float | None:
    try:
        return float(name)
    except ValueError:
        return None
