"""Numbers in a label column get the names that a list or a file has for them."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from loralight.data.label_ids import LabelNames, name_label_ids, name_labels, names_beside
from loralight.data.origin import Origin
from loralight.data.splits import Splits
from loralight.errors import InputError


def splits(labels: list[Any]) -> Splits:
    rows = {
        split: Dataset.from_dict({"text": ["a"] * len(labels), "label": labels}) for split in ("train", "validation")
    }
    return Splits(rows, {split: Origin(split=split, source="rows.csv") for split in rows})


@pytest.mark.parametrize(
    ("labels", "given"),
    [
        ([0, 1], ["bad", "good"]),
        ([1, 2], ["bad", "good"]),
        ([1.0, 2.0], ["bad", "good"]),
        (["1", "2"], ["bad", "good"]),
        ([7, 9], {7: "bad", 9: "good"}),
        ([7, 9], {"bad": 7, "good": 9}),
        (["bad", "good"], ["bad", "good"]),
    ],
)
def test_numbers_become_names_from_0_or_1_or_as_a_mapping_says(labels: list[Any], given: LabelNames) -> None:
    rows = splits(labels)
    assert name_label_ids(rows, ["label"], given) == ["bad", "good"]
    assert rows["train"]["label"][:] == rows["validation"]["label"][:] == ["bad", "good"]


def test_lists_of_numbers_become_lists_of_names_and_an_empty_one_stays() -> None:
    rows = splits([[0, 2], [], [1]])
    assert name_label_ids(rows, ["label"], ["a", "b", "c"]) == ["a", "b", "c"]
    assert rows["train"]["label"][:] == [["a", "c"], [], ["b"]]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "\ufeffbad\r\ngood\r\n\r\n"),
        ("names.json", '["bad", "good"]'),
        ("names.json", json.dumps({"2": "good", "1": "bad"})),
        ("names.json", json.dumps({"good": 2, "bad": 1})),
    ],
)
def test_a_file_has_a_name_a_line_or_json(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert name_label_ids(splits([1, 2]), ["label"], str(tmp_path / name)) == ["bad", "good"]


@pytest.mark.parametrize(
    ("labels", "given", "message"),
    [
        ([0, 2], ["bad", "good"], r"E-LABEL-RANGE: rows\.csv: train row 1, column 'label': .* no name for 2"),
        ([1, 2], ["bad", "good", "fair"], r"E-LABELS: .* begin with 0 or with 1\? .*\{1: bad, 2: good, 3: fair"),
        (["0,1", "1"], ["bad", "good"], r"E-LABEL-RANGE: .* no name for '0,1', .*data\.label_separator"),
        ([0, 1], ["bad", "bad"], "E-LABELS: .* give different names"),
        ([0, 1], [["bad"], ["good"]], "E-LABELS: .* give different names"),
        ([0, 1], {"0": {"name": "bad"}, "1": None}, "E-LABELS: .* give different names"),
        ([0, 1], "nowhere.txt", r"E-LABELS: data\.label_names=nowhere\.txt: there is no such file"),
    ],
)
def test_names_that_do_not_fit_are_refused(labels: list[Any], given: LabelNames, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        name_label_ids(splits(labels), ["label"], given)


def test_columns_of_0_and_1_have_names_already() -> None:
    with pytest.raises(InputError, match=r"^E-LABELS: .*columns of 0 and 1"):
        name_label_ids(splits([0, 1]), ["label", "label"], ["a", "b"])


@pytest.mark.parametrize("text", ["[bad", "[" * 100_000 + "]" * 100_000], ids=["broken", "deep"])
def test_a_broken_json_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(InputError, match=r"^E-LABELS: data\.label_names=\S*names\.json: no JSON"):
        name_label_ids(splits([0, 1]), ["label"], str(tmp_path / "names.json"))


def beside(folder: Path, **columns: Any) -> Splits:
    rows = Dataset.from_dict({"label": [0, 1, 1, 0], "text": ["a", "b", "c", "d"], **columns})
    (folder / "train.csv").touch()
    return Splits({"train": rows}, {"train": Origin(split="train", source=str(folder / "train.csv"))})


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('["bad", "good"]', ["bad", "good"]),
        ('{"good": 1, "bad": 0}', ["bad", "good"]),
        ('["bad"]', None),
        ('{"train.csv": "about something else"}', None),
        ("no JSON", None),
        ('{"0": {"name": "bad"}, "1": ["good"]}', None),
        ("[" * 100_000 + "]" * 100_000, None),
    ],
    ids=range(7),
)
def test_a_file_beside_the_data_names_numbers_if_it_names_all(
    tmp_path: Path, text: str, names: list[str] | None
) -> None:
    (tmp_path / "labels.json").write_text(text)
    rows = beside(tmp_path)
    told = [f"the numbers in column 'label' have their names from {tmp_path / 'labels.json'}"]
    assert name_labels(rows, ["label"], None, None) == (names, told if names else [])
    assert rows["train"]["label"][:] == (["bad", "good", "good", "bad"] if names else [0, 1, 1, 0])


@pytest.mark.parametrize(
    ("columns", "is_named"),
    [
        ({"label_text": ["bad", "good", "good", "bad"]}, True),
        ({"label_text": ["bad", "good", "good", "awful"]}, False),
        ({"label_text": ["same"] * 4}, False),
        ({"stars": ["4", "5", "5", "4"]}, False),
        ({"label": [0, 1, 2, 3], "label_text": ["a", "b", "c", "d"]}, False),
        ({"label": [[0], [1, 0], [], [1]], "label_text": [["bad"], ["good", "bad"], [], ["good"]]}, True),
        ({"label": [[0], [1, 0], [], [1]], "label_text": [["bad"], ["good"], [], ["good"]]}, False),
    ],
)
def test_a_column_of_texts_names_numbers_if_they_go_one_to_one(
    tmp_path: Path, columns: dict[str, Any], is_named: bool
) -> None:
    names, told = names_beside(beside(tmp_path, **columns), ["label"])
    assert names == ({"0": "bad", "1": "good"} if is_named else None)
    assert told == (["the numbers in column 'label' have their names from column 'label_text'"] if is_named else [])


def test_names_given_by_the_user_or_by_the_label_column_come_first(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('["bad", "good"]')
    assert name_labels(beside(tmp_path), ["label"], ["no", "yes"], None) == (["no", "yes"], [])
    assert name_labels(beside(tmp_path), ["label"], None, ["no", "yes"]) == (["no", "yes"], [])
    found, told = name_labels(beside(tmp_path), ["label"], None, ["good", "bad"])
    assert (found, len(told)) == (["good", "bad"], 1)
    rows = beside(tmp_path)
    rows["train"] = rows["train"].cast(Features({"label": ClassLabel(names=["no", "yes"]), "text": Value("string")}))
    assert name_labels(rows, ["label"], None, None) == (None, [])


def test_a_split_that_holds_the_names_is_left_as_it_is(tmp_path: Path) -> None:
    of_train = beside(tmp_path, label_text=["bad", "good", "good", "bad"])
    tests = {
        "test": Dataset.from_dict({"label": ["good", "bad"], "text": ["a", "b"]}),
        "validation": Dataset.from_dict({"label": [1, 0], "text": ["a", "b"]}),
    }
    origins = {split: Origin(split=split, source="test.csv") for split in tests}
    rows = Splits({**tests, **of_train}, {**origins, **of_train.origins})
    assert name_labels(rows, ["label"], None, None)[0] == ["bad", "good"]
    assert rows["train"]["label"][:] == ["bad", "good", "good", "bad"] and rows["test"]["label"][:] == ["good", "bad"]
