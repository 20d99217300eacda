"""What the data report warns of."""

import pytest

from loralight.data import cut_rows, few_rows, left_out_rows, odd_names, repeated_rows, uneven_rows


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([5, 5, 100], None),
        ([4, 5, 100], "1 of 3 labels have fewer than 5 training rows: a 4. Give more"),
        ([0, 2, 100], "2 of 3 labels have fewer than 5 training rows: a 0, b 2. Give more"),
    ],
)
def test_labels_with_few_rows_are_told(counts: list[int], words: str | None) -> None:
    lines = few_rows(["a", "b", "c"], counts)
    assert len(lines) == (words is not None) and (words or "") in "".join(lines)


def test_of_many_labels_a_few_are_named() -> None:
    (line,) = few_rows([f"label{n}" for n in range(9)], [1] * 9, of="entities in train")
    assert "fewer than 5 entities in train" in line and "label4 1, ..." in line and "label5" not in line


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([50, 60, 40], None),
        ([5, 50, 100], None),
        ([79, 21, 0], "79.0% of 100 training rows are a, and 0 are c"),
        (
            [5, 50, 101],
            "64.7% of 156 training rows are c, and 5 are a: always to answer the first has an accuracy of 0.647",
        ),
        ([80, 10, 10], "80.0% of 100 training rows are a, and 10 are b"),
    ],
)
def test_labels_of_which_one_is_far_commoner_are_told_with_what_always_answering_it_scores(
    counts: list[int], words: str | None
) -> None:
    lines = uneven_rows(["a", "b", "c"], counts)
    assert len(lines) == (words is not None) and (words or "") in "".join(lines)
    assert all("task.class_weights=balanced" in line for line in lines)


def test_rows_that_stand_in_two_splits_are_counted() -> None:
    splits = {"train": ["a", "b"], "validation": ["c", "a", "a"], "test": ["d", "c"]}
    assert [line.partition(",")[0] for line in repeated_rows(splits)] == [
        "caution: 2 of 3 rows of validation are in train too",
        "caution: 1 of 2 rows of test are in validation too",
    ]
    assert repeated_rows({"train": ["a"], "validation": []}) == []
    (line,) = repeated_rows({"train": ["a"], "validation": ["a"]}, alike="byte for byte")
    assert "1 of 1 rows of validation are in train too, byte for byte" in line


def test_rows_that_lose_their_end_are_told_where_they_are_more_than_a_few() -> None:
    rows = {"train": 100, "validation": 10}
    assert cut_rows({"train": 4, "validation": 0}, rows, max_length=64) == []
    (line,) = cut_rows({"train": 5, "validation": 1}, rows, max_length=64)
    assert "5 of 100 rows of train, 1 of 10 rows of validation are longer than 64 tokens" in line
    assert "model.max_length" in line


def test_rows_that_are_left_out_are_told_where_they_are_more_than_a_few() -> None:
    rows = {"train": 100, "validation": 10}
    assert left_out_rows({"train": 4, "validation": 0}, rows, max_length=64) == []
    (line,) = left_out_rows({"train": 5, "validation": 0}, rows, max_length=64)
    assert "5 of 100 rows of train are left out" in line and "model.max_length" in line


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["bad", "good"], None),
        (["top 10", "3rd", "42"], None),
        (["0", "1"], "all 2 labels are numbers ('0', '1')"),
        (["-1", "0", "1.5", "7"], "all 4 labels are numbers ('-1', '0', '1.5', ...)"),
        (["a", "b", "a, b"], "1 of 3 labels look like several in one ('a, b')"),
        (["[a]", "x;y"], "2 of 2 labels look like several in one ('[a]')"),
        (["really?", ",", "a,"], None),
    ],
)
def test_names_that_may_be_something_else_are_told(names: list[str], words: str | None) -> None:
    lines = odd_names(names)
    assert len(lines) == (words is not None) and (words or "") in "".join(lines)
