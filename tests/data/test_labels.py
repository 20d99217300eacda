"""Whatever a label column holds, labels have names, an order and a row to blame."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from loralight.data.labels import (
    are_lists,
    check_smoothing,
    check_splits,
    encode_labels,
    is_hidden,
    label_names,
    read_labels,
)
from loralight.data.origin import Origin
from loralight.data.splits import Splits, read_file
from loralight.errors import InputError

TRAIN, VALIDATION = (Origin(split=split, source="rows.csv") for split in ("train", "validation"))
GRADES = ClassLabel(names=["good", "fair", "bad"])


def column(values: list[Any], feature: Any = None) -> Dataset:
    return Dataset.from_dict({"label": values}, Features({"label": feature}) if feature else None)


SINGLE: dict[str, tuple[list[Any], Any, list[str], list[int]]] = {
    "integers": ([2, 0, 10], None, ["0", "2", "10"], [1, 0, 2]),
    "negative integers": ([1, -1, 0, -2], None, ["-2", "-1", "0", "1"], [3, 1, 2, 0]),
    "stars in halves": ([10.0, 9.5, 0.5], None, ["0.5", "9.5", "10"], [2, 1, 0]),
    "integers beside a missing value": ([1.0, 0.0], None, ["0", "1"], [1, 0]),
    "strings with spaces around": (["pos ", "neg", " pos"], None, ["neg", "pos"], [1, 0, 1]),
    "strings": (["pos", "neg", "pos"], None, ["neg", "pos"], [1, 0, 1]),
    "numbers as strings": (["10", "9", "1"], None, ["1", "9", "10"], [2, 1, 0]),
    "numbers among words": (
        ["b", "10", "a", "9", "²", "--1"],
        None,
        ["9", "10", "--1", "a", "b", "²"],
        [4, 1, 3, 0, 5, 2],
    ),
    "bools": ([True, False], None, ["False", "True"], [1, 0]),
    "class labels, one of them unseen": ([2, 0], GRADES, ["good", "fair", "bad"], [2, 0]),
}


@pytest.mark.parametrize("kind", SINGLE)
def test_a_column_of_single_labels_gives_names_in_order_and_a_number_a_row(kind: str) -> None:
    values, feature, names, numbers = SINGLE[kind]
    rows = column(values, feature)
    labels = read_labels(rows, ["label"], TRAIN)
    assert label_names(rows, ["label"], labels) == names
    assert encode_labels(labels, names, TRAIN) == [[number] for number in numbers]
    assert not are_lists(rows, ["label"])


LISTS: dict[str, tuple[list[Any], Any, list[str], list[list[int]]]] = {
    "strings": ([["b", "a"], [], ["a"]], None, ["a", "b"], [[1, 0], [], [0]]),
    "integers": ([[10, 9], [9]], None, ["9", "10"], [[1, 0], [0]]),
    "class labels": ([[0, 2], []], List(GRADES), ["good", "fair", "bad"], [[0, 2], []]),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_column_of_lists_gives_any_number_of_labels_a_row(kind: str) -> None:
    values, feature, names, numbers = LISTS[kind]
    rows = column(values, feature)
    labels = read_labels(rows, ["label"], TRAIN)
    assert are_lists(rows, ["label"])
    assert label_names(rows, ["label"], labels) == names
    assert encode_labels(labels, names, TRAIN) == numbers


def test_arrow_s_large_lists_are_lists_too(tmp_path: Path) -> None:
    table = pa.table({"label": pa.array([["b", "a"], ["a"]], type=pa.large_list(pa.string()))})
    Dataset(table).to_parquet(tmp_path / "rows.parquet")
    rows = read_file(str(tmp_path / "rows.parquet"))
    assert are_lists(rows, ["label"])
    assert read_labels(rows, ["label"], TRAIN) == [["b", "a"], ["a"]]


@pytest.mark.parametrize("kind", [int, bool, float])
def test_several_columns_of_0_and_1_are_labels_named_after_the_columns(kind: type) -> None:
    rows = Dataset.from_dict({"rude": [kind(1), kind(0), kind(1)], "angry": [kind(1), kind(0), kind(0)]})
    columns = ["rude", "angry"]
    labels = read_labels(rows, columns, TRAIN)
    assert are_lists(rows, columns)
    assert label_names(rows, columns, labels) == columns
    assert encode_labels(labels, columns, TRAIN) == [[0, 1], [], [0]]


@pytest.mark.parametrize("value", [2, -1, None, "yes"])
def test_another_value_than_0_or_1_in_one_of_several_columns_names_row_and_column(value: Any) -> None:
    rows = Dataset.from_dict({"rude": [1, 0, 1], "angry": ["0", "1", value] if value == "yes" else [0, 1, value]})
    with pytest.raises(InputError, match=r"^E-LABEL: .+: train row \d, column 'angry': .*holds 0 or 1"):
        read_labels(rows, ["rude", "angry"], TRAIN)


MISSING: dict[str, tuple[list[Any], Any]] = {
    "integer": ([1, 0, None], None),
    "string": (["a", "b", None], None),
    "nothing but spaces": (["a", "b", " "], None),
    "not a number": ([1.0, 0.0, float("nan")], None),
    "class label": ([1, 0, None], GRADES),
    "hidden class label": ([1, 0, -1], GRADES),
    "list": ([["a"], ["b"], None], List(Value("string"))),
    "in a list": ([["a"], ["b"], ["a", None]], List(Value("string"))),
}


@pytest.mark.parametrize("kind", MISSING)
def test_a_missing_label_is_an_error_that_names_the_row(kind: str) -> None:
    values, feature = MISSING[kind]
    with pytest.raises(InputError, match=r"^E-LABEL-RANGE: .+: validation row 2, column 'label': .* is no label"):
        read_labels(column(values, feature), ["label"], VALIDATION)


def test_a_number_that_the_data_set_does_not_name_is_an_error_with_those_it_does() -> None:
    schema = Features({"label": GRADES}).arrow_schema  # as a file says it, which nobody has checked
    rows = Dataset(pa.table({"label": [0, 1, 3]}, schema=schema))
    with pytest.raises(
        InputError, match=r"^E-LABEL-RANGE: .+: train row 2, .*3 is no label; valid are 0\.\.2 \(good, fair, bad\)"
    ):
        read_labels(rows, ["label"], TRAIN)


def test_a_label_that_training_has_not_is_an_error_that_names_the_row_and_what_is_near() -> None:
    with pytest.raises(
        InputError,
        match=r"^E-LABEL-RANGE: .+: validation row 1: label 'goood' is not one of 'bad', 'good'\. Did you mean 'good'",
    ):
        encode_labels([["bad"], ["goood"]], ["bad", "good"], VALIDATION)


@pytest.mark.parametrize("feature", [None, GRADES])
def test_labels_are_hidden_where_all_are_minus_one_or_missing(feature: Any) -> None:
    assert is_hidden(column([-1, -1], feature), "label")
    assert is_hidden(column([None, -1], feature), "label")
    assert not is_hidden(column([-1, 1], feature), "label")
    assert not is_hidden(column([], feature or Value("int64")), "label")


def test_given_names_name_integer_labels_by_number_unless_they_are_the_names() -> None:
    rows = Dataset.from_dict({"label": [0, 1, 1]})
    assert read_labels(rows, ["label"], TRAIN, ["bad", "good"]) == [["bad"], ["good"], ["good"]]
    assert read_labels(rows, ["label"], TRAIN, ["1", "0"]) == [["0"], ["1"], ["1"]]


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_smoothing_that_makes_no_sense_is_an_error(smoothing: float) -> None:
    with pytest.raises(InputError, match=r"^E-SMOOTHING: task\.label_smoothing is"):
        check_smoothing(smoothing)


def test_a_test_split_without_labels_is_left_out_before_columns_are_looked_for() -> None:
    labelled, bare = column([0, 1]).add_column("text", ["a", "b"]), Dataset.from_dict({"text": ["c"]})
    splits = Splits({"train": labelled, "test": bare}, {"train": TRAIN})
    assert check_splits(splits, ["text", "label"], labels=["label"]) == [
        "test: left out, it has no labels (no column 'label')"
    ]
    assert list(splits) == ["train"]
    splits["validation"] = bare
    with pytest.raises(InputError, match=r"^E-COLUMN: the validation split has no column 'label'"):
        check_splits(splits, ["text", "label"], labels=["label"])


def test_records_are_no_labels() -> None:
    """As spaCy's ``cats`` have them."""
    rows = Dataset.from_dict({"label": [{"good": 1.0, "bad": 0.0}]})
    with pytest.raises(InputError, match=r"^E-LABELS: .*is a record of good, bad, and no label.*'\[good, bad\]'"):
        read_labels(rows, ["label"], Origin(split="train", source="a.json"))
