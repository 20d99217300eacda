"""Tables with a word in each row: the same sentences as lists of words, and rows are held out by sentence."""

from pathlib import Path
from typing import Any

import pytest

from loralight.errors import InputError
from loralight.tasks.ner import NerData

WORDS = [["Bob", "Lee", "left", "NA"], ["Nobody", "stayed"], ["Köln", ",", "London"], ["no", "1"]]
TAGS = [["B-per", "I-per", "O", "O"], ["O", "O"], ["B-geo", "O", "B-geo"], ["O", "O"]]
COLUMNS = {"words": "Word", "tags": "Tag", "sentence": "Sentence #"}


def write(file: Path, *, repeats: bool) -> None:
    """A sentence's name stands in all its rows, or in the first alone."""
    lines = ["Sentence #,Word,POS,Tag"]
    for number, (words, tags) in enumerate(zip(WORDS, TAGS, strict=True)):
        for place, (word, tag) in enumerate(zip(words, tags, strict=True)):
            name = f"Sentence: {number}" if repeats or place == 0 else ""
            lines.append(f'{name},"{word}",X,{tag}')
    file.write_text("\n".join(lines), encoding="cp1252")


def read(checkpoint: str, columns: dict[str, str] = COLUMNS, **arguments: Any) -> NerData:
    every = {"words": "tokens", "tags": "ner_tags", "text": "text", "entities": "entities", **columns}
    data = NerData(checkpoint=checkpoint, columns=every, max_length=32, encoding="cp1252", **arguments)
    data.setup()
    return data


@pytest.mark.parametrize("repeats", [True, False])
def test_a_sentence_begins_where_its_column_has_something_new(tmp_path: Path, tiny_bert: str, repeats: bool) -> None:
    write(tmp_path / "train.csv", repeats=repeats)
    write(tmp_path / "test.csv", repeats=repeats)
    files = {split: str(tmp_path / f"{split}.csv") for split in ("train", "test")}
    data = read(tiny_bert, labels=["per", "geo"], **files)
    held = {split: [data.shown(split, row) for row in range(len(data.splits[split]))] for split in data.splits}
    assert held["test"] == WORDS
    assert sorted([*held["train"], *held["validation"]]) == sorted(WORDS) and len(held["validation"]) == 1
    assert [len(labels) for labels in data.splits["test"]["labels"]] == [*map(len, WORDS)]
    assert [[(span.start, span.end, span.label) for span in spans] for spans in data.spans["test"]] == [
        [(0, 2, "per")],
        [],
        [(0, 1, "geo"), (2, 3, "geo")],
        [],
    ]


def test_a_folder_of_tables_and_one_without_names_of_columns(tmp_path: Path, tiny_bert: str) -> None:
    write(tmp_path / "validation.csv", repeats=False)
    lines = (tmp_path / "validation.csv").read_text(encoding="cp1252").split("\n")[1:]
    (tmp_path / "bare.csv").write_text("\n".join(lines), encoding="cp1252")
    (tmp_path / "folder").mkdir()
    for split in ("train", "validation"):
        write(tmp_path / "folder" / f"{split}.csv", repeats=False)
    numbers = {"sentence": "0", "words": "1", "tags": "3"}
    bare = str(tmp_path / "bare.csv")
    for data in (
        read(tiny_bert, path=str(tmp_path / "folder")),
        read(tiny_bert, numbers, train=bare, validation=bare, header=False),
    ):
        assert [data.shown("validation", row) for row in range(4)] == WORDS


def test_what_is_missing_is_one_error(tmp_path: Path, tiny_bert: str) -> None:
    file = tmp_path / "train.csv"
    write(file, repeats=False)
    given = {"train": str(file), "validation": str(file)}
    with pytest.raises(InputError, match=r"^E-COLUMN: .*train\.csv: there is no column 'Sent'; it has 'Sentence #',.*"):
        read(tiny_bert, {**COLUMNS, "sentence": "Sent"}, **given)
    with pytest.raises(InputError, match=r"^E-NER-ALIGN: .*which column tells the sentences apart: data\.columns\.sen"):
        read(tiny_bert, {"words": "Word", "tags": "Tag"}, **given)
    file.write_text(file.read_text(encoding="cp1252").replace("Lee", " "), encoding="cp1252")
    with pytest.raises(InputError, match=r"^E-NER-EMPTY-WORD: .*train\.csv: row 1, column 'Word' is ' '; take the row"):
        read(tiny_bert, **given)
