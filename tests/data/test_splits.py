"""Rows come from whatever files there are, and what cannot be read is one clear message."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from loralight.data.splits import check_columns, load_splits, read_file
from loralight.errors import InputError

ROWS = {"text": ["one, two", 'three "four"', "fünf"], "label": [1, 0, 1]}

WRITERS: dict[str, Callable[[Dataset, Path], Any]] = {
    ".csv": lambda rows, file: rows.to_csv(file),
    ".tsv": lambda rows, file: rows.to_csv(file, sep="\t"),
    ".json": lambda rows, file: rows.to_json(file, lines=False),
    ".jsonl": lambda rows, file: rows.to_json(file),
    ".parquet": lambda rows, file: rows.to_parquet(file),
    ".CSV": lambda rows, file: rows.to_csv(file),
}


def write(file: Path, rows: dict[str, list[Any]] = ROWS) -> str:
    WRITERS[file.suffix](Dataset.from_dict(rows), file)
    return str(file)


def numbered(file: Path, count: int) -> str:
    return write(file, {"text": [f"row {n}" for n in range(count)], "label": [n % 2 for n in range(count)]})


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_file_is_read_whatever_its_format(tmp_path: Path, suffix: str) -> None:
    assert read_file(write(tmp_path / f"rows{suffix}")).to_dict() == ROWS


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train.csv", "dev.csv", "test.csv"),
        ("training.tsv", "val.jsonl", "test.parquet"),
        ("train.json", "valid.csv", ""),
    ],
)
def test_a_folder_s_files_are_told_apart_by_their_names(tmp_path: Path, train: str, validation: str, test: str) -> None:
    names = {"train": train, "validation": validation, **({"test": test} if test else {})}
    for count, file in enumerate(names.values(), start=4):
        numbered(tmp_path / file, count)
    (tmp_path / "README.md").write_text("not data")
    splits = load_splits(path=str(tmp_path))
    assert {name: len(rows) for name, rows in splits.items()} == dict(zip(names, range(4, 7), strict=False))


def test_a_folder_that_the_library_of_data_sets_has_saved_is_read(tmp_path: Path) -> None:
    rows = Dataset.from_dict(ROWS)
    DatasetDict({"train": rows.with_format("numpy"), "test": rows.select([2])}).save_to_disk(tmp_path / "both")
    rows.save_to_disk(tmp_path / "one", num_shards=2)
    both = load_splits(path=str(tmp_path / "both"), validation_fraction=0.4)
    assert {split: len(some) for split, some in both.items()} == {"train": 1, "test": 1, "validation": 2}
    assert both["test"].to_dict() == {"text": ["fünf"], "label": [1]} and isinstance(both["train"][0]["label"], int)
    one = load_splits(path=str(tmp_path / "one"), validation_fraction=0.4)
    assert sorted(one["train"]["text"][:] + one["validation"]["text"][:]) == sorted(ROWS["text"])
    (tmp_path / "one" / "data-00000-of-00002.arrow").write_bytes(b"")
    with pytest.raises(InputError, match=r"^E-DATA: .*one: cannot be read"):
        load_splits(path=str(tmp_path / "one"))


def test_a_split_of_a_folder_can_be_given_by_name(tmp_path: Path) -> None:
    for count, name in enumerate(("train", "validation", "validation_mismatched", "big"), start=3):
        numbered(tmp_path / f"{name}.csv", count)
    splits = load_splits(path=str(tmp_path), train="big", validation="validation_mismatched")
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 6, "validation": 5}


def test_files_are_given_one_by_one(tmp_path: Path) -> None:
    train, test = numbered(tmp_path / "some.csv", 20), numbered(tmp_path / "other.jsonl", 3)
    splits = load_splits(train=train, validation=test, test=test)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 20, "validation": 3, "test": 3}


def test_one_file_is_train_by_its_path_or_alone_in_a_folder_whatever_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    file = tmp_path / "folder" / "export.csv"
    numbered(file, 10)
    expected = load_splits(train=str(file))
    for path in (file, file.parent):
        found = load_splits(path=str(path))
        assert {split: rows.to_list() for split, rows in found.items()} == {
            split: rows.to_list() for split, rows in expected.items()
        }
        assert found.origins["validation"] == expected.origins["validation"]
    numbered(tmp_path / "folder" / "test.csv", 2)
    with pytest.raises(InputError, match=r"E-DATA: .*no training split, only export, test"):
        load_splits(path=str(file.parent))


def test_a_file_stands_in_for_a_split_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for count, name in enumerate(("train", "dev", "test"), start=3):
        numbered(tmp_path / "data" / f"{name}.csv", count)
    splits = load_splits(path=str(tmp_path / "data"), test=numbered(tmp_path / "mine.jsonl", 7))
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 3, "validation": 4, "test": 7}


def test_without_a_validation_split_a_fraction_of_train_is_held_out_alike_for_all_seeds(tmp_path: Path) -> None:
    file = numbered(tmp_path / "some.csv", 40)
    splits = load_splits(train=file, validation_fraction=0.25, split_seed=3)
    train, held_out = set(splits["train"]["text"]), set(splits["validation"]["text"])
    assert (len(train), len(held_out), train & held_out) == (30, 10, set())
    assert (
        set(load_splits(train=file, validation_fraction=0.25, split_seed=3, seed=4)["validation"]["text"]) == held_out
    )
    assert set(load_splits(train=file, validation_fraction=0.25, split_seed=4)["validation"]["text"]) != held_out


def test_limit_eval_rows_takes_rows_of_validation_and_test_alone(tmp_path: Path) -> None:
    files = {split: numbered(tmp_path / f"{split}.csv", 40) for split in ("train", "validation")}
    limited = load_splits(**files, limit_eval_rows=10)
    whole = load_splits(**files)
    assert (len(limited["train"]), len(limited["validation"])) == (40, 10)
    assert load_splits(**files, limit_eval_rows=10, seed=1)["validation"]["text"][:] == limited["validation"]["text"][:]
    place = limited.origins["validation"].row(3)
    assert limited["validation"][3] == whole["validation"][int(place.rpartition(" ")[2])], place


def test_limit_rows_takes_rows_of_train_alone_at_random_by_seed(tmp_path: Path) -> None:
    files = {"train": numbered(tmp_path / "a.csv", 40), "validation": numbered(tmp_path / "b.csv", 20)}
    first, again, other = (load_splits(**files, limit_rows=10, seed=seed) for seed in (0, 0, 1))
    assert (len(first["train"]), len(first["validation"])) == (10, 20)
    assert first["train"]["text"][:] == again["train"]["text"][:] != other["train"]["text"][:]
    assert len(load_splits(**files, limit_rows=100)["train"]) == 40


def test_words_that_look_like_missing_values_are_words_and_an_empty_cell_is_missing(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\nn/a,None\nnull,NA\nnan,\n")
    assert read_file(str(tmp_path / "rows.csv")).to_dict() == {
        "text": ["n/a", "null", "nan"],
        "label": ["None", "NA", None],
    }


UNREADABLE = {
    "garbage.parquet": b"no parquet",
    "broken.jsonl": b'{"text": "a", "label": 1}\n{"text": ',
    "one_row_too_long.csv": b"text,label\nfine,1\nwell, good,1\n",
    "all_rows_too_long.csv": b"text,label\nwell, good,1\nwell, bad,0\n",
    "latin1.csv": "text,label\nfünf,1\n".encode("latin1"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_cannot_be_read_is_one_message_that_names_it(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(UNREADABLE[name])
    with pytest.raises(InputError, match=rf"^E-DATA: \S*{name}: cannot be read(:| as text) .+") as caught:
        read_file(str(tmp_path / name))
    assert len(str(caught.value)) < 700
    assert capfd.readouterr() == ("", "")  # nothing of the reader's own beside it


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", "text,label\n"), ("a.csv", ""), ("a.jsonl", ""), ("a.json", "")]
)
def test_a_file_without_rows_is_an_error_that_says_so(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=rf"^E-DATA-EMPTY: \S*{name}: holds no rows$"):
        read_file(str(tmp_path / name))


def test_a_row_that_was_held_out_or_chosen_at_random_is_called_as_in_its_file(tmp_path: Path) -> None:
    file = numbered(tmp_path / "rows.csv", 40)
    splits = load_splits(train=file, validation_fraction=0.25, limit_rows=10, seed=3)
    for split, rows in splits.items():
        texts = rows["text"][:]
        assert [splits.origins[split].row(n) for n in range(len(rows))] == [f"{file}: {split} {text}" for text in texts]


def test_a_row_is_called_by_the_file_of_its_split(tmp_path: Path) -> None:
    for name in ("train.csv", "dev.jsonl"):
        numbered(tmp_path / name, 4)
    splits = load_splits(path=str(tmp_path), test=numbered(tmp_path / "mine.tsv", 4))
    assert {split: origin.row(3) for split, origin in splits.origins.items()} == {
        "train": f"{tmp_path}/train.csv: train row 3",
        "validation": f"{tmp_path}/dev.jsonl: validation row 3",
        "test": f"{tmp_path}/mine.tsv: test row 3",
    }


def test_a_missing_file_is_an_error_with_the_nearest_name(tmp_path: Path) -> None:
    numbered(tmp_path / "reviews.csv", 2)
    with pytest.raises(InputError, match=r"^E-DATA: .*there is no such file\. Did you mean '.*reviews\.csv'\?"):
        load_splits(train=str(tmp_path / "review.csv"))


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing given": ({}, "E-DATA: no data is given. Set data.path"),
    "no train file": ({"test": "{folder}/a.csv"}, "E-DATA: no data is given. Set data.path"),
    "another kind of file": (
        {"train": "{folder}/notes.txt"},
        r"E-DATA: data.train=.*notes.txt: not a file that .*\.csv,",
    ),
    "another kind of file for a folder": ({"path": "{folder}/notes.txt"}, "E-DATA: data.path=.*notes.txt: not a file"),
    "a folder without data": ({"path": "{folder}/empty"}, r"E-DATA: data.path=.*no file in this folder ends in \.csv"),
    "no such folder": ({"path": "{folder}/nowhere"}, "E-DATA: data.path=.*there is no such folder"),
    "no such relative folder": ({"path": "./nowhere"}, "E-DATA: data.path=./nowhere: there is no such folder"),
    "a hub name without network": ({"path": "nobody/nothing"}, "E-DATA: nobody/nothing: .*needs network access"),
    "no such package": ({"path": "pkg://no_such_package/data"}, "E-RESOURCE: .*no_such_package"),
    "no training split": ({"path": "{folder}/tests"}, "E-DATA: .*no training split, only test. Set data.path"),
    "no such split": (
        {"path": "{folder}", "train": "tinny"},
        r"E-DATA: data.train=tinny: .* has a, tiny\. Did you mean 'tiny'\?",
    ),
    "two files of one split": (
        {"path": "{folder}/twice"},
        "E-DATA: .*several files of one split: train.csv, train.tsv",
    ),
    "nothing to hold out": (
        {"train": "{folder}/tiny.csv"},
        r"E-DATA-EMPTY: \S*tiny\.csv: the train split has 1 rows, too few",
    ),
    "rows within an object": (
        {"path": "{folder}/within/nested.json"},
        r"E-DATA-EMPTY: .*1 rows, too few to hold out a validation split\. 'data' is a list of records: .* jq '\.data'",
    ),
    "no fraction": ({"train": "{folder}/a.csv", "validation_fraction": 0.0}, "E-DATA: data.validation_fraction is 0.0"),
    "all of it": ({"train": "{folder}/a.csv", "validation_fraction": 1.0}, "E-DATA: data.validation_fraction is 1.0"),
    "no rows asked for": (
        {"train": "{folder}/a.csv", "limit_rows": 0},
        "E-DATA: data.limit_rows is 0; give at least 1",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_gives_no_data_is_one_clear_error(tmp_path: Path, fault: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "twice").mkdir()
    (tmp_path / "tests").mkdir()
    numbered(tmp_path / "tests" / "test.csv", 2)
    numbered(tmp_path / "twice" / "train.csv", 2)
    numbered(tmp_path / "twice" / "train.tsv", 2)
    numbered(tmp_path / "a.csv", 4)
    numbered(tmp_path / "tiny.csv", 1)
    (tmp_path / "within").mkdir()
    (tmp_path / "within" / "nested.json").write_text('{"version": 1, "data": [{"text": "a"}, {"text": "b"}]}')
    arguments, message = FAULTS[fault]
    given = {k: v.format(folder=tmp_path) if isinstance(v, str) else v for k, v in arguments.items()}
    with pytest.raises(InputError, match=f"^{message}"):
        load_splits(**given)


def test_a_missing_column_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(
        InputError,
        match=r"^E-COLUMN: the test split has no column 'lable'; it has 'text', 'label'\. Did you mean 'label'",
    ):
        check_columns(Dataset.from_dict(ROWS), ["text", "lable"], "test")
    check_columns(Dataset.from_dict(ROWS), ["text", "label"], "test")
