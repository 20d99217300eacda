"""Numbers in a label column get the names that a list or a file has for them."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from loralight.data.label_ids import LabelNames, name_label_ids
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
        ([0, 1], "nowhere.txt", r"E-LABELS: data\.label_names=nowhere\.txt: there is no such file"),
    ],
)
def test_names_that_do_not_fit_are_refused(labels: list[Any], given: LabelNames, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        name_label_ids(splits(labels), ["label"], given)


def test_columns_of_0_and_1_have_names_already() -> None:
    with pytest.raises(InputError, match=r"^E-LABELS: .*columns of 0 and 1"):
        name_label_ids(splits([0, 1]), ["label", "label"], ["a", "b"])


def test_a_broken_json_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text("[bad")
    with pytest.raises(InputError, match=r"^E-LABELS: data\.label_names=\S*names\.json: no JSON"):
        name_label_ids(splits([0, 1]), ["label"], str(tmp_path / "names.json"))
