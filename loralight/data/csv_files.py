"""CSV and TSV files as people save them: their first line decides how the rest is read."""

import csv
from pathlib import Path
from typing import Any

from datasets import Dataset

from loralight.errors import InputError

_WORDS = 4  # of a cell that is not a column's name


def reading(file: str, *, header: bool | None) -> dict[str, Any]:
    """What pandas is told of a file: an empty cell is missing, "NA" and "None" are words, no column is row names.

    Args:
        file: its path.
        header: whether its first line names the columns; where it does not, they are called 0, 1, 2, ...

    Raises:
        InputError: two columns have one name (``E-DATA``).
    """
    arguments: dict[str, Any] = {"na_values": [""], "keep_default_na": False, "index_col": False}
    separator = "\t" if Path(file).suffix.lower() == ".tsv" else ","
    cells = _first_line(file, separator)
    if len(cells) == 1 and header is not False:  # spreadsheets of countries with decimal commas write semicolons
        separator = next((other for other in ";\t" if other in cells[0]), separator)
        cells = _first_line(file, separator)
    if _is_unquoted(file, separator, len(cells)):
        arguments["quoting"] = csv.QUOTE_NONE
    if header is False:
        return {**arguments, "sep": separator, "header": None, "names": [str(place) for place in range(len(cells))]}
    if twice := [cell for place, cell in enumerate(cells) if cell and cell in cells[:place]]:
        raise InputError("E-DATA", f"{file}: two columns are called {twice[0]!r}; rename one, or take it out")
    return {**arguments, "sep": separator}


def check_header(rows: Dataset, file: str) -> None:
    """Raise ``E-HEADER`` if the first line was a row: a cell is one that its column has again, and another a sentence.

    Either alone may be a name: ``spam`` of a column with spam and ham, ``Which of these would you buy?``.
    """
    sentences = [name for name in rows.column_names if len(name.split()) >= _WORDS]
    if sentences and any(_has(rows, name, name) for name in rows.column_names if name not in sentences):
        raise InputError(
            "E-HEADER",
            f"{file}: its first line, {_line(rows)}, looks like a row and not like names of columns, and would be "
            f"lost; {_without_header()}. If these are names: data.header=true",
        )


def header_hint(rows: Dataset) -> str:
    """A hint where a column is missing: a file's first line may not name its columns."""
    names = rows.column_names
    if rows.info.builder_name != "csv" or names == [str(place) for place in range(len(names))]:
        return ""
    if not any(_is_number(name) or len(name.split()) >= _WORDS or _has(rows, name, name) for name in names):
        return ""
    return f" If its first line, {_line(rows)}, is a row and no names: {_without_header()}."


def _without_header() -> str:
    return "for a file without a header line say data.header=false, and data.columns.<role>=0 for its first column"


def _line(rows: Dataset) -> str:
    line = ",".join(rows.column_names)
    return repr(line if len(line) <= 100 else f"{line[:97]}...")


def _first_line(file: str, separator: str) -> list[str]:
    with Path(file).open(encoding="utf-8-sig", errors="replace", newline="") as opened:
        return next((cells for cells in csv.reader(opened, delimiter=separator) if cells), [])


def _is_unquoted(file: str, separator: str, num_columns: int) -> bool:
    """Whether each line is a row, but its quotes do not pair up, as in many TSV files: pandas would join such lines."""
    unpaired = False
    with Path(file).open(encoding="utf-8-sig", errors="replace", newline="") as opened:
        for line in filter(str.strip, opened):
            if line.count(separator) != num_columns - 1:
                return False
            unpaired = unpaired or ('"' in line and not _pairs_up(line, separator))
    return unpaired


def _pairs_up(line: str, separator: str) -> bool:
    try:
        return bool(list(csv.reader([line], delimiter=separator, strict=True)))
    except csv.Error:
        return False


def _has(rows: Dataset, column: str, text: str) -> bool:
    return any(str(value) == text for value in rows[column])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
