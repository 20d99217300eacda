"""A text file in another encoding is refused by one that is likely, and read once it is said."""

from pathlib import Path

import pytest

from loralight.data.charsets import read_text_file
from loralight.data.splits import load_splits, read_file
from loralight.errors import InputError

TABLE = "text;label\nDas Café war schön, aber teuer;1\nna ja;0\n"
LINES = '{"text": "Das Café war schön", "label": 1}\n{"text": "na ja", "label": 0}\n'
DASHED = TABLE.replace(",", " \u2013")
SAVED = {
    "cp1252": (DASHED, "cp1252"),
    "latin-1": (TABLE, "latin-1"),
    "utf-16": (TABLE, "utf-16"),
    "utf-16-le": (TABLE, "utf-16-le"),
    "utf-16-be": (TABLE, "utf-16-be"),
}


@pytest.mark.parametrize("encoding", SAVED)
def test_the_error_names_the_likely_encoding_and_the_setting_which_reads_the_file(
    tmp_path: Path, encoding: str
) -> None:
    table, saved_in = SAVED[encoding]
    file = tmp_path / "rows.csv"
    file.write_bytes(table.encode(saved_in))
    with pytest.raises(InputError, match=rf"^E-DATA: \S*rows\.csv: .*Set data\.encoding={encoding},"):
        read_file(str(file))
    utf_8 = tmp_path / "utf8.csv"
    utf_8.write_text(table, encoding="utf-8")
    assert read_file(str(file), encoding=encoding).to_dict() == read_file(str(utf_8)).to_dict()


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_json_lines_in_another_encoding_are_refused_by_it_and_then_read(tmp_path: Path, encoding: str) -> None:
    """Read as UTF-8 they came in without a word, and the first look at a text was a UnicodeDecodeError."""
    (tmp_path / "rows.jsonl").write_bytes(LINES.encode(encoding))
    with pytest.raises(InputError, match=rf"^E-DATA: .*Set data\.encoding={encoding},"):
        read_file(str(tmp_path / "rows.jsonl"))
    rows = read_file(str(tmp_path / "rows.jsonl"), encoding=encoding)
    assert rows.to_dict() == {"text": ["Das Café war schön", "na ja"], "label": [1, 0]}


@pytest.mark.parametrize("said", ["utf-16", "ascii"])
def test_a_file_in_utf_8_of_which_something_else_is_said_is_refused_by_it(tmp_path: Path, said: str) -> None:
    (tmp_path / "rows.csv").write_text(TABLE, encoding="utf-8")
    with pytest.raises(InputError, match=r"^E-DATA: .*Set data\.encoding=utf-8,"):
        read_file(str(tmp_path / "rows.csv"), encoding=said)


@pytest.mark.parametrize("encoding", ["latin-99", "base64"])
def test_an_encoding_that_is_none_is_refused_before_any_file_is_read(encoding: str) -> None:
    with pytest.raises(InputError, match=rf"^E-ENCODING: data\.encoding is '{encoding}'"):
        load_splits(train="nowhere.csv", encoding=encoding)


def test_a_byte_order_mark_is_no_part_of_a_text_also_where_utf_8_is_said(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("\ufeff" + TABLE, encoding="utf-8")
    assert read_file(str(tmp_path / "rows.csv"), encoding="UTF-8").column_names == ["text", "label"]


def test_a_zero_in_a_sound_text_is_no_sign_of_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a\\u0000b"}\n{"text": "c"}\n')
    assert read_file(str(tmp_path / "rows.jsonl"))["text"][:] == ["a\0b", "c"]


def test_a_plain_text_is_read_in_the_encoding_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_bytes("Café".encode("latin-1"))
    with pytest.raises(InputError, match=r"^E-DATA: .*Set data\.encoding=latin-1,"):
        read_text_file(str(tmp_path / "book.txt"))
    assert read_text_file(str(tmp_path / "book.txt"), "latin-1") == "Café"
