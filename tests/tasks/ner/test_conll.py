"""Column files as people have them, and what is wrong in one by its line."""

from pathlib import Path

import pytest

from loralight.errors import InputError
from loralight.tasks.ner.conll import read_conll

CONLL2003 = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
"""


def written(folder: Path, text: str) -> str:
    file = folder / "train.conll"
    file.write_bytes(text.encode())
    return str(file)


def test_the_first_column_is_the_word_and_the_last_the_tag(tmp_path: Path) -> None:
    rows = read_conll(written(tmp_path, CONLL2003))
    assert rows.to_list() == [
        {"tokens": ["EU", "rejects"], "ner_tags": ["B-ORG", "O"]},
        {"tokens": ["Peter", "Blackburn"], "ner_tags": ["B-PER", "I-PER"]},
    ]


def test_comments_before_a_sentence_are_left_out_and_words_that_begin_alike_are_not(tmp_path: Path) -> None:
    """As MultiCoNER has them, `# id 7 domain=en`; a word may be a sign, or a hashtag."""
    text = "# id 7 domain=en\na _ _ B-x\n# _ _ O\n#b _ _ O\n\n# id 8 domain=en\n# _ _ O\nc _ _ O\n"
    assert read_conll(written(tmp_path, text)).to_list() == [
        {"tokens": ["a", "#", "#b"], "ner_tags": ["B-x", "O", "O"]},
        {"tokens": ["#", "c"], "ner_tags": ["O", "O"]},
    ]
    with pytest.raises(InputError, match=r"line 2: 'id'"):  # within a sentence it is a row that is wrong
        read_conll(written(tmp_path, "a O\n# id\n"))


@pytest.mark.parametrize(
    "text",
    [
        "a\tO\nb c\tB-x\n\n\n\nd\tO",
        "\ufeffa\tO\r\nb c\tB-x\r\n\r\nd\tO\r\n",
        "\n \na\tO\nb c\tB-x\n\t\nd\tO\n\n",
    ],
)
def test_tabs_marks_of_windows_and_blank_lines_change_nothing(tmp_path: Path, text: str) -> None:
    rows = read_conll(written(tmp_path, text))
    assert rows["tokens"][:] == [["a", "b c"], ["d"]]
    assert rows["ner_tags"][:] == [["O", "B-x"], ["O"]]


def test_a_line_ends_where_the_file_says_so_not_at_what_a_word_may_hold(tmp_path: Path) -> None:
    word = "a\u2028b\u00a0c\x85"
    assert read_conll(written(tmp_path, f"{word} O  \n"))["tokens"][:] == [[word]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a O\nb\n", r"line 2: 'b' has 1 columns, the first line 2"),
        ("a X O\n\nb O\n", r"line 3: 'b O' has 2 columns, the first line 3"),
        ("a\nb\n", r"line 1: 'a' has 1 columns"),
        ("a\tO\n\tO\n", r"line 2: '\\tO' has 2 columns, the first line 2; a line has a word, its tag"),
    ],
)
def test_a_line_of_other_columns_is_an_error_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"^E-DATA: .*train\.conll, {message}"):
        read_conll(written(tmp_path, text))


def test_what_is_no_tag_is_an_error_that_names_its_line(tmp_path: Path) -> None:
    message = r"^E-NER-TAG: .*train\.conll, line 3: 'person', of word 'b', is no tag; a tag is O, or one of"
    with pytest.raises(InputError, match=message):
        read_conll(written(tmp_path, "a O\n\nb person\n"))


def test_a_file_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "train.conll").write_bytes(b"caf\xe9 O\n")
    with pytest.raises(InputError, match=r"^E-DATA: .*train\.conll: cannot be read as text"):
        read_conll(str(tmp_path / "train.conll"))
    with pytest.raises(InputError, match=r"^E-DATA: .*gone\.conll: cannot be read as text"):
        read_conll(str(tmp_path / "gone.conll"))


def test_a_file_without_sentences_has_no_rows(tmp_path: Path) -> None:
    assert len(read_conll(written(tmp_path, "\n\n"))) == 0
