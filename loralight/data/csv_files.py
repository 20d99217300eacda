"""CSV and TSV files as people save them: their first line decides how the rest is read."""

import csv
from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

from datasets import Dataset

from loralight.data.compressed import inner_name, open_lines
from loralight.errors import InputError

_SEPARATORS = ",;\t|"  # spreadsheets of countries with decimal commas write semicolons
_SAID = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|", "space": " "}
_SEEN = 100  # lines that show the columns where no line names them
_WORDS = 4  # a cell with at least so many words is not a column's name


def check_delimiter(delimiter: str | None) -> str | None:
    """The character that ``data.delimiter`` gives, itself or by name.

    Raises:
        InputError: it is neither a character nor a known name (``E-DELIMITER``).
    """
    said = _SAID.get(delimiter, delimiter) if isinstance(delimiter, str) else delimiter
    if said is not None and (not isinstance(said, str) or len(said) != 1 or said in '"\r\n'):
        raise InputError(
            "E-DELIMITER",
            f"data.delimiter is {delimiter!r}; give tab, semicolon, comma, pipe, space or a character; null finds it",
        )
    return said


def reading(
    file: str, *, header: bool | None, delimiter: str | None = None, encoding: str | None = None
) -> dict[str, Any]:
    """The arguments for pandas: an empty cell is missing, "NA" and "None" are words, no column holds row names.

    Args:
        file: its path.
        header: whether its first line names the columns; if not, they are called 0, 1, 2, ...
        delimiter: the text between its columns; found if None.
        encoding: UTF-8 if None.

    Raises:
        InputError: two columns have the same name (``E-DATA``).
    """
    arguments: dict[str, Any] = {"na_values": [""], "keep_default_na": False, "index_col": False}
    if encoding is not None:
        arguments["encoding"] = encoding
    separator = delimiter or _separator(file, encoding, header=header)
    if _is_unquoted(file, separator, encoding):
        arguments["quoting"] = csv.QUOTE_NONE
    cells = next(_lines(file, separator, encoding, quoting=arguments.get("quoting", csv.QUOTE_MINIMAL)), [])
    if header is False:
        return {**arguments, "sep": separator, "header": None, "names": [str(place) for place in range(len(cells))]}
    if twice := [cell for place, cell in enumerate(cells) if cell and cell in cells[:place]]:
        raise InputError("E-DATA", f"{file}: two columns are called {twice[0]!r}; rename one, or take it out")
    return {**arguments, "sep": separator}


def check_header(rows: Dataset, file: str) -> None:
    """Raise ``E-HEADER`` if the first line looks like a row: one cell comes again in its column, another is a sentence.

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
    """A hint for a missing column: the file's first line may be a row."""
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


def _separator(file: str, encoding: str | None, *, header: bool | None) -> str:
    """The delimiter: the usual one, unless the header, or without a header the first lines, show another."""
    usual = "\t" if inner_name(file).suffix.lower() == ".tsv" else ","
    others = [usual, *_SEPARATORS.replace(usual, "")]
    if header is False:
        return next((other for other in others if _divides(file, other, encoding)), usual)
    names = next(_lines(file, usual, encoding), [])
    return usual if len(names) != 1 else next((other for other in others if other in names[0]), usual)


def _divides(file: str, separator: str, encoding: str | None) -> bool:
    """Whether a separator divides each of the first lines into the same number of columns, and into several.

    Lines are tried both with and without quotes.
    """
    with open_lines(file, encoding) as opened:
        plain = {line.count(separator) for line in islice(filter(str.strip, opened), _SEEN)}
    quoted = {len(cells) - 1 for cells in islice(_lines(file, separator, encoding), _SEEN)}
    return any(len(counts) == 1 and 0 not in counts for counts in (plain, quoted))


def _lines(
    file: str, separator: str, encoding: str | None, *, quoting: Literal[0, 1, 2, 3] = csv.QUOTE_MINIMAL
) -> Iterator[list[str]]:
    with open_lines(file, encoding) as opened:
        yield from filter(None, csv.reader(opened, delimiter=separator, quoting=quoting))


def _is_unquoted(file: str, separator: str, encoding: str | None) -> bool:
    """Whether each line is a row, but quotes do not pair up, as in many TSV files: pandas would join such lines."""
    unpaired, expected = False, None
    with open_lines(file, encoding) as opened:
        for line in filter(str.strip, opened):
            expected = line.count(separator) if expected is None else expected
            if line.count(separator) != expected:
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
