"""Files of the CoNLL shared tasks: a word in each line, its tag in the last column, an empty line after a sentence.

Tjong Kim Sang & De Meulder, 2003, https://arxiv.org/abs/cs/0306050.
"""

import re

from datasets import Dataset, Features, List, Value

from loralight.data import read_text_file
from loralight.errors import InputError

from .tags import check_tag, is_tag

_FEATURES = Features({"tokens": List(Value("string")), "ner_tags": List(Value("string"))})


def read_conll(file: str, *, encoding: str | None = None) -> Dataset:
    """A row for each sentence: ``tokens`` from the first column, ``ner_tags`` from the last.

    Columns are separated by tabs, or by spaces in lines without a tab. ``-DOCSTART-`` lines are left out, and comments
    before a sentence, ``# id 7``.

    Raises:
        InputError: the file cannot be read, or a line has another number of columns (``E-DATA``), or a tag is not valid
            (``E-NER-TAG``).
    """
    text = read_text_file(file, encoding)
    sentences: list[list[list[str]]] = [[]]
    num_columns = 0
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() would also split at U+2028 in a word
        line = line.rstrip("\r")
        cells = line.split("\t") if "\t" in line else re.findall("[^ ]+", line)
        if not "".join(cells).strip() or cells[0] == "-DOCSTART-":
            sentences.append([])
            continue
        if line.startswith("# ") and not sentences[-1] and not is_tag(cells[-1]):
            continue
        num_columns = num_columns or len(cells)
        if len(cells) != num_columns or num_columns < 2 or not cells[0].strip():
            raise InputError(
                "E-DATA",
                f"{file}, line {number}: {line!r} has {len(cells)} columns, the first line {num_columns}; a line has a "
                "word, its tag as the last column, and as many columns as any other, or is empty",
            )
        check_tag(cells[-1].strip(), f"{file}, line {number}", repr(cells[0]))
        sentences[-1].append(cells)
    rows = [sentence for sentence in sentences if sentence]
    return Dataset.from_dict(
        {
            "tokens": [[cells[0] for cells in sentence] for sentence in rows],
            "ner_tags": [[cells[-1].strip() for cells in sentence] for sentence in rows],
        },
        features=_FEATURES,
    )
