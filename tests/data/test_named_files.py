"""A split may be in several files; which, their names tell."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from datasets import Dataset, load_dataset

from loralight.data.splits import load_splits
from loralight.errors import InputError
from loralight.tasks.text_generation.data import read_text

AS_ON_THE_HUB = {
    "shards": ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"],
    "a repository of the hub": ["data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"],
    "numbered": ["train_1.csv", "train_2.csv", "train_3.csv", "valid.1.csv"],
    "numbered without a sign": ["train1.csv", "train2.csv", "test1.csv"],
    "numbered beside one": ["train-1.csv", "train-2.csv", "test.csv"],
    "with the set's name": ["reviews_train.jsonl", "reviews_dev.jsonl", "reviews-test.jsonl"],
    "without a split's name": ["january.csv", "february.csv", "march.csv"],
    "a single file": ["january.csv"],
}


def write(folder: Path, names: Sequence[str]) -> str:
    """Files of 3, 4, 5, ... rows."""
    for count, name in enumerate(names, start=3):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = Dataset.from_dict({"text": [f"{name} {row}" for row in range(count)], "label": [0] * count})
        {".csv": rows.to_csv, ".jsonl": rows.to_json, ".parquet": rows.to_parquet}[file.suffix](file)
    (folder / "README.md").write_text("about the data\n")
    return str(folder)


def texts(path: str, **given: str) -> dict[str, set[str]]:
    """The texts of each split; those that were held out are again in train."""
    splits = load_splits(path=path, **given)
    found = {split: {*rows["text"]} for split, rows in splits.items()}
    if splits.origins["validation"].numbers is not None:
        found["train"] |= found.pop("validation")
    return found


@pytest.mark.parametrize("layout", AS_ON_THE_HUB)
def test_files_are_put_together_as_the_library_of_data_sets_does(tmp_path: Path, layout: str) -> None:
    path = write(tmp_path / "set", AS_ON_THE_HUB[layout])
    theirs = load_dataset(path, cache_dir=str(tmp_path / "cache"))
    assert texts(path) == {split: {*rows["text"]} for split, rows in theirs.items()}


@pytest.mark.parametrize(
    ("names", "lengths"),
    [
        (["train.csv", "train_old.csv", "later.csv"], {"train": 3}),  # a split's own name is certain
        (["Train.csv", "TEST.csv"], {"train": 3, "test": 4}),
        (["my_test.csv"], {"train": 3}),
        (["train.csv", "test_matched.csv", "test_mismatched.csv"], {"train": 3}),
    ],
)
def test_other_names_are_read_as_they_are_meant(tmp_path: Path, names: Sequence[str], lengths: dict[str, int]) -> None:
    assert {split: len(rows) for split, rows in texts(write(tmp_path, names)).items()} == lengths


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["reviews_train.csv", "notes.csv"], "no training split, only notes, reviews_train"),
        (["train_sft.csv", "train_gen.csv"], "no training split, only train_gen, train_sft"),
        (["test.csv", "more.csv"], "no training split, only more, test"),
        (["a.csv", "b.jsonl"], "no training split, only a, b"),
        ([f"{number:02}_dev.csv" for number in range(11)], "only 00_dev, .*, 07_dev and 3 more"),
        (["train-00000-of-00002.csv", "train-00001-of-00002.jsonl"], "several files of one split: train-00000-of"),
        (
            ["mrpc/train.csv", "sst2/train-00000-of-00001.csv"],
            "folders of its own: mrpc, sst2. Choose one: data.name=mrpc",
        ),
    ],
)
def test_what_the_names_do_not_tell_is_refused(tmp_path: Path, names: Sequence[str], told: str) -> None:
    with pytest.raises(InputError, match=f"^E-DATA: .*{told}"):
        load_splits(path=write(tmp_path, names))


def test_a_configuration_is_a_folder_of_a_repository(tmp_path: Path) -> None:
    write(tmp_path, ["mrpc/train-00000-of-00001.parquet", "sst2/train-00000-of-00001.parquet"])
    assert len(texts(str(tmp_path), name="sst2")["train"]) == 4
    write(tmp_path, ["train.csv"])
    assert len(texts(str(tmp_path), name="cola")["train"]) == 3, "an experiment may name the hub's configuration"


def test_names_that_are_given_leave_the_others_for_training(tmp_path: Path) -> None:
    path = write(tmp_path, ["may.csv", "june.csv", "july.csv"])
    found = texts(path, test="june")
    assert {split: len(rows) for split, rows in found.items()} == {"train": 8, "test": 4}
    assert len(texts(path, train="july")["train"]) == 5


def test_a_row_of_several_files_is_called_by_its_own(tmp_path: Path) -> None:
    splits = load_splits(path=write(tmp_path, AS_ON_THE_HUB["numbered"]), limit_rows=9, seed=1)
    rows, origin = splits["train"], splits.origins["train"]
    names = [origin.row(number).removeprefix(f"{tmp_path}/") for number in range(len(rows))]
    assert names == ["{}: train row {}".format(*text.split()) for text in rows["text"]] and len({*names}) == 9


def test_files_of_different_columns_are_not_one_split(tmp_path: Path) -> None:
    path = write(tmp_path, ["may.csv"])
    (tmp_path / "predictions.csv").write_text("text,score\na,0.5\n")
    with pytest.raises(InputError, match=r"^E-COLUMN: .*may.csv and .*predictions.csv are read as one split, train"):
        load_splits(path=path)
    (tmp_path / "predictions.csv").write_text("text,label\na,good\n")
    with pytest.raises(InputError, match=r"^E-DATA: .*cannot be read: .*align"):
        load_splits(path=path)


def test_a_text_about_the_data_is_no_data(tmp_path: Path) -> None:
    for name in ("README.txt", "LICENSE.txt", "data/night_train.txt", "data/day.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{name}\n" * 3)
    with pytest.raises(InputError, match="no training split, only day, night_train"):
        load_splits(path=str(tmp_path), readers={".txt": read_text})
    (tmp_path / "data" / "night_train.txt").rename(tmp_path / "data" / "night.txt")
    (tmp_path / "data" / "readme.txt").write_text("about")
    splits = load_splits(path=str(tmp_path), readers={".txt": read_text}, validation_fraction=0.5)
    assert sorted(splits["train"]["text"][:] + splits["validation"]["text"][:])[0].startswith("data/day")
    assert splits.origins["train"].files == [(f"{tmp_path}/data/{name}.txt", 1) for name in ("day", "night")]
