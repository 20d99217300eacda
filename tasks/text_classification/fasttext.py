"""Files in fastText's format: each line has a text and its labels, words that begin with ``__label__``.

Joulin et al., 2017, https://arxiv.org/abs/1607.01759.
"""

import re

from datasets import Dataset

from loralight.data import read_text_file
from loralight.errors import InputError

_LABEL = re.compile(r"(?<!\S)__label__(\S+)[^\S\n]*")


def read_fasttext(file: str, *, encoding: str | None = None) -> Dataset:
    """A row for each line that is not empty: ``text``, and ``label``, a list of names if a line has several.

    Raises:
        InputError: the file cannot be read, or a line has no label or no text (``E-DATA``).
    """
    texts, labels = list[str](), list[list[str]]()
    for number, line in enumerate(read_text_file(file, encoding).split("\n"), start=1):
        if not line.strip():
            continue
        texts.append(_LABEL.sub("", line).strip())
        labels.append(_LABEL.findall(line))
        if not (texts[-1] and labels[-1]):
            lacks = "label" if texts[-1] else "text"
            raise InputError(
                "E-DATA",
                f"{file}, line {number}: {line[:60]!r} has no {lacks}. A text file of rows is fastText's, as "
                "'__label__good a fine film'; a table needs its delimiter, such as data.delimiter=tab",
            )
    are_several = any(len(each) > 1 for each in labels)
    return Dataset.from_dict({"text": texts, "label": labels if are_several else [name for (name,) in labels]})
