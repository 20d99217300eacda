"""What the data report warns of."""

import pytest

from loralight.data import few_rows, repeated_rows


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([5, 5, 100], None),
        ([4, 5, 100], "1 of 3 labels have fewer than 5 training rows: a 4"),
        ([0, 2, 100], "2 of 3 labels have fewer than 5 training rows: a 0, b 2"),
        ([5, 50, 101], "101 training rows of c, 5 of a: f1 says more"),
    ],
)
def test_labels_with_few_rows_are_told(counts: list[int], words: str | None) -> None:
    lines = few_rows(["a", "b", "c"], counts)
    assert len(lines) == (words is not None) and (words or "") in "".join(lines)


def test_of_many_labels_a_few_are_named() -> None:
    (line,) = few_rows([f"label{n}" for n in range(9)], [1] * 9)
    assert line.endswith("label4 1, ...")


def test_rows_that_training_knows_are_counted_by_split() -> None:
    splits = {"train": ["a", "b"], "validation": ["c", "a", "a"], "test": ["d"]}
    assert repeated_rows(splits) == ["caution: 2 of 3 rows of validation are in train too, word for word"]
