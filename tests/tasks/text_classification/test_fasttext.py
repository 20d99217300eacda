"""Files in fastText's format are read as texts with labels; other text files are one error that names the line."""

from pathlib import Path

import pytest

from loralight.errors import InputError
from loralight.tasks.text_classification import TextClassificationData

COLUMNS = {"text": "text", "label": "label"}


def make(file: Path, content: str, checkpoint: str, **arguments: str) -> TextClassificationData:
    file.write_text(content, encoding="utf-8")
    data = TextClassificationData(
        checkpoint=checkpoint,
        columns=COLUMNS,
        max_length=16,
        train=str(file),
        validation_fraction=0.5,
        **arguments,
    )
    data.setup()
    return data


def read(data: TextClassificationData) -> dict[str, list[str]]:
    """The labels of each text."""
    return {
        data.shown(split, row): [data.names[number] for number in data.label_lists[split][row]]
        for split in data.splits
        for row in range(len(data.splits[split]))
    }


def test_a_line_has_a_label_and_a_text(tmp_path: Path, tiny_bert: str) -> None:
    data = make(tmp_path / "a.TXT", "__label__good a fine  film\r\n\n__label__bad\tso bad __label\n", tiny_bert)
    assert read(data) == {"a fine  film": ["good"], "so bad __label": ["bad"]}
    assert not data.multi_label


def test_a_line_may_have_several_labels_in_any_place(tmp_path: Path, tiny_bert: str) -> None:
    content = "__label__a __label__b one\n__label__b two\nthree __label__c\n__label__a four x__label__b\n"
    data = make(tmp_path / "rows.txt", content, tiny_bert)
    assert read(data) == {"one": ["a", "b"], "two": ["b"], "three": ["c"], "four x__label__b": ["a"]}
    assert data.multi_label


@pytest.mark.parametrize(
    ("line", "message"),
    [("Great phone\t1", "'Great phone\\\\t1' has no label.*data.delimiter=tab"), ("__label__a ", "has no text")],
)
def test_another_text_file_is_refused_with_its_line(tmp_path: Path, tiny_bert: str, line: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"^E-DATA: \S*rows\.txt, line 2: .*{message}"):
        make(tmp_path / "rows.txt", f"__label__a one\n{line}\n", tiny_bert)


def test_with_a_delimiter_a_text_file_is_a_table(tmp_path: Path, tiny_bert: str) -> None:
    data = make(tmp_path / "rows.txt", "text\tlabel\none\tgood\ntwo\tbad\n", tiny_bert, delimiter="tab")
    assert read(data) == {"one": ["good"], "two": ["bad"]}
