"""Tables with a word in each row, such as those of competitions: a further column tells the sentences apart."""

from collections.abc import Mapping

from datasets import Dataset

from loralight.data import read_file
from loralight.errors import InputError, did_you_mean


def read_word_table(
    file: str,
    *,
    columns: Mapping[str, str],
    header: bool | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
) -> Dataset:
    """A row for each sentence, with a list of its words and one of their tags.

    Args:
        file, header, delimiter, encoding: see `read_file`.
        columns: names of the columns ``words``, ``tags`` and ``sentence``. A sentence begins where the last of these is
            neither empty nor what it was before.

    Raises:
        InputError: see `read_file`; a column is missing (``E-COLUMN``), or a row has no word (``E-NER-EMPTY-WORD``).
    """
    rows = read_file(file, header=header, delimiter=delimiter, encoding=encoding)
    roles = ("words", "tags", "sentence")
    for role in roles:
        if columns[role] not in rows.column_names:
            raise InputError(
                "E-COLUMN",
                f"{file}: there is no column {columns[role]!r}; it has {', '.join(map(repr, rows.column_names))}."
                f"{did_you_mean(columns[role], rows.column_names)} Say which with data.columns.{role}=<name>",
            )
    sentences: list[tuple[list[str], list[str]]] = []
    current = None
    cells = zip(*(rows[columns[role]] for role in roles), strict=True)
    for number, (word, tag, sentence) in enumerate(cells):
        if not str(word or "").strip():
            raise InputError(
                "E-NER-EMPTY-WORD", f"{file}: row {number}, column {columns['words']!r} is {word!r}; take the row out"
            )
        if not sentences or (sentence not in (None, "") and sentence != current):
            sentences.append(([], []))
            current = sentence
        sentences[-1][0].append(str(word))
        sentences[-1][1].append(tag)
    return Dataset.from_dict(
        {
            columns["words"]: [words for words, _ in sentences],
            columns["tags"]: [tags for _, tags in sentences],
        }
    )
