"""CSV files are read as people save them, and no first line is lost without a word."""

from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset

from loralight.data.splits import check_columns, column_name, load_splits, read_file
from loralight.errors import InputError

InProcess = Callable[..., int]
ROWS = {"text": ["well, good", "b"], "label": [1, 0]}
HEADERLESS = "this is a very fine film,1\nthe soup was cold again,0\nwe all loved every minute,1\nnever again,0\n"

SAVED: dict[str, bytes] = {
    "with a byte order mark": '\ufefftext,label\n"well, good",1\nb,0\n'.encode(),
    "with semicolons": b"text;label\nwell, good;1\nb;0\n",
    "with semicolons and a byte order mark": "\ufefftext;label\nwell, good;1\nb;0\n".encode(),
    "with tabs": b"text\tlabel\nwell, good\t1\nb\t0\n",
    "with bars": b"text|label\nwell, good|1\nb|0\n",
    "with line ends of Windows": b'text,label\r\n"well, good",1\r\nb,0\r\n',
    "with empty lines before": b'\n\ntext,label\n"well, good",1\nb,0\n',
}


@pytest.mark.parametrize("how", SAVED)
def test_a_csv_file_is_read_however_it_was_saved(tmp_path: Path, how: str) -> None:
    (tmp_path / "rows.csv").write_bytes(SAVED[how])
    assert read_file(str(tmp_path / "rows.csv")).to_dict() == ROWS


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_what_stands_between_columns_is_found_without_a_line_of_names_too(tmp_path: Path, separator: str) -> None:
    rows = [("well, good", 1), ("too, it was fine", 0), ('an "end', 1)]
    (tmp_path / "rows.csv").write_text("".join(f"{text}{separator}{label}\n" for text, label in rows))
    read = read_file(str(tmp_path / "rows.csv"), header=False)
    assert list(zip(read["0"], read["1"], strict=True)) == rows


def test_a_first_row_with_an_unpaired_quote_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text('"never again\t0\nplain\t1\n')
    assert read_file(str(tmp_path / "rows.tsv"), header=False).to_dict() == {
        "0": ['"never again', "plain"],
        "1": [0, 1],
    }


@pytest.mark.parametrize("said", ["tab", "\t", "\\t"])
@pytest.mark.parametrize("name", ["rows.txt", "SMSSpamCollection", "rows.csv"])
def test_a_file_of_any_ending_is_a_table_once_its_delimiter_is_said(tmp_path: Path, name: str, said: str) -> None:
    file = tmp_path / name
    file.write_text("ham\tsee you; then\nspam\twin, a prize\n")
    rows = load_splits(train=str(file), validation=str(file), header=False, delimiter=said)["train"]
    assert rows.to_dict() == {"0": ["ham", "spam"], "1": ["see you; then", "win, a prize"]}


def test_a_table_of_an_unknown_ending_is_refused_with_the_setting_that_reads_it(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("ham\tsee you\n")
    with pytest.raises(InputError, match=r"^E-DATA: data\.train=\S*rows\.txt: .*data\.delimiter=tab"):
        load_splits(train=str(tmp_path / "rows.txt"))


@pytest.mark.parametrize("given", ["::", "", "\n", '"'])
def test_a_delimiter_that_is_none_is_refused(tmp_path: Path, given: str) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"^E-DELIMITER: data\.delimiter is .*semicolon"):
        read_file(str(tmp_path / "rows.csv"), delimiter=given)


def test_rows_of_other_lengths_are_refused_with_the_setting_that_divides_them_otherwise(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a:1\nb, c:0\n")
    with pytest.raises(InputError, match=r"^E-DATA: .*data\.delimiter="):
        read_file(str(tmp_path / "rows.csv"), header=False)
    assert read_file(str(tmp_path / "rows.csv"), header=False, delimiter=":")["1"][:] == [1, 0]


def test_a_cell_may_have_several_lines_and_rows_may_be_numbered(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(',text,label\n0,"two\nlines",1\n1,b,0\n')
    rows = read_file(str(tmp_path / "rows.csv"))
    assert (rows["text"][:], rows["label"][:]) == (["two\nlines", "b"], [1, 0])


def test_lines_whose_quotes_do_not_pair_up_are_rows_each(tmp_path: Path) -> None:
    lines = ['"never again\t0', "plain\t1", 'he said "fine"\t1', '"well" made\t1', '4" wide\t0']
    (tmp_path / "rows.tsv").write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    rows = read_file(str(tmp_path / "rows.tsv"))
    assert [f"{row['text']}\t{row['label']}" for row in rows] == lines


def test_quotes_that_pair_up_are_not_part_of_a_cell(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text('text\tlabel\n"say ""hi"""\t0\n"two\nlines"\t1\n')
    assert read_file(str(tmp_path / "rows.tsv")).to_dict() == {"text": ['say "hi"', "two\nlines"], "label": [0, 1]}


def test_real_texts_in_a_file_without_quotes_are_all_read(tmp_path: Path, shared_data: Path) -> None:
    """Of these intents, 935 rows and 18 labels were lost to their unpaired quotes."""
    rows = Dataset.from_parquet(str(shared_data / "clinc150" / "train.parquet"))
    lines = [f"{row['text']}\t{row['label']}\n" for row in rows]
    (tmp_path / "train.tsv").write_text("".join(["text\tlabel\n", *lines]), encoding="utf-8")
    read = read_file(str(tmp_path / "train.tsv"))
    assert (read["text"][:], read["label"][:]) == (rows["text"][:], rows["label"][:])


def test_two_columns_of_one_name_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label,text\na,1,b\n")
    with pytest.raises(InputError, match=r"^E-DATA: \S*rows\.csv: two columns are called 'text'; rename one"):
        read_file(str(tmp_path / "rows.csv"))


@pytest.mark.parametrize("path", [None, "."])
def test_an_archive_is_an_error_that_says_what_to_do(tmp_path: Path, path: str | None) -> None:
    (tmp_path / "rows.tar.gz").touch()
    with pytest.raises(InputError, match=r"^E-DATA: data\.train=\S*rows\.tar\.gz: an archive; unpack it"):
        load_splits(path=path, train=str(tmp_path / "rows.tar.gz"))


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_file_without_a_header_line_has_all_its_rows_and_columns_by_number(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"rows{suffix}"
    file.write_text(HEADERLESS.replace(",", "\t" if suffix == ".tsv" else ","))
    rows = load_splits(train=str(file), validation=str(file), header=False)["train"]
    assert rows.column_names == ["0", "1"]
    assert (rows["0"][0], rows["1"][:]) == ("this is a very fine film", [1, 0, 1, 0])


def test_a_first_line_that_looks_like_a_row_is_not_lost_without_a_word(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(HEADERLESS)
    with pytest.raises(
        InputError,
        match=r"^E-HEADER: \S*rows\.csv: its first line, 'this is a very fine film,1', .*data\.header=false, and "
        r"data\.columns\.<role>=0 .*data\.header=true",
    ):
        read_file(str(file))
    assert len(read_file(str(file), header=True)) == 3


@pytest.mark.parametrize("header", ["comment,spam", "Which of these would you buy,label", "0,1"])
def test_a_first_line_of_names_is_taken_for_names(tmp_path: Path, header: str) -> None:
    (tmp_path / "rows.csv").write_text(f"{header}\nwin a prize,spam\nsee you,ham\n")
    assert read_file(str(tmp_path / "rows.csv")).column_names == header.split(",")


@pytest.mark.parametrize("line", ["a,1", "fine,pos", "this is a very fine film,other"])
def test_a_missing_column_is_told_with_what_a_file_without_a_header_needs(tmp_path: Path, line: str) -> None:
    (tmp_path / "rows.csv").write_text(f"{line}\nwell,pos\nno,neg\n")
    with pytest.raises(InputError, match=rf"^E-COLUMN: .*no column 'text'; .*If its first line, '{line}', is a row"):
        check_columns(read_file(str(tmp_path / "rows.csv")), ["text"], "train")
    (tmp_path / "rows.csv").write_text("review,stars\nwell,5\nno,1\n")
    with pytest.raises(InputError, match=r"^E-COLUMN: .*Say which with data\.columns\.<role>=<name>\.$"):
        check_columns(read_file(str(tmp_path / "rows.csv")), ["text"], "train")


def test_a_column_is_a_name_or_a_place_in_a_file_without_names() -> None:
    assert column_name("1", "label") == "1"
    assert column_name(1, "label", header=False) == "1"
    with pytest.raises(InputError, match=r"^E-COLUMN: data\.columns\.label=1: a number is the place, .*header=false"):
        column_name(1, "label")
    for given in (None, True, 1.5, ["a"]):
        with pytest.raises(InputError, match=r"^E-COLUMN: data\.columns\.label is .*; give the name of a column"):
            column_name(given, "label", header=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.columns.text='this is a very fine film'", "data.columns.label=\"'1'\""], "E-HEADER: "),
        (["data.columns.label=1"], "E-COLUMN: data.columns.label=1: a number is the place"),
        (["data.columns.text=0", "data.columns.label=true"], "E-CONFIG: data.columns: "),
        (["data.columns.label=null"], "E-COLUMN: data.columns.label is None"),
    ],
    ids=["names from the first row", "number", "truth value", "null"],
)
def test_the_command_line_refuses_columns_that_are_none_in_one_message(
    settings: list[str], message: str, tiny_run: list[str], tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "rows.csv").write_text(HEADERLESS)
    assert f"loralight: {message}" in refused("train", *tiny_run, "data.path=null", "data.train=rows.csv", *settings)


def test_the_command_line_trains_on_a_file_without_a_header_line(
    tiny_run: list[str], tmp_path: Path, in_process: InProcess
) -> None:
    (tmp_path / "rows.csv").write_text(HEADERLESS * 4)
    columns = ["data.header=false", "data.columns.text=0", "data.columns.label=1"]
    folder = "hydra.run.dir=run"
    assert in_process("train", *tiny_run, "data.path=null", "data.train=rows.csv", *columns, folder) == 0
    assert (tmp_path / "run" / "adapter").is_dir()
