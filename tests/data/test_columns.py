import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from loralight.data.columns import replace_column
from loralight.data.splits import load_splits
from loralight.errors import InputError

ROWS: list[dict[str, Any]] = [
    {"text": "a", "label": 1},
    {"text": " ", "label": 1},
    {"text": "c", "label": None},
    {"text": None, "label": None},
    {"text": "e", "label": 0},
    {"text": "f", "label": 0},
]


def write(folder: Path, **splits: list[dict[str, Any]]) -> str:
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


@pytest.mark.parametrize(
    ("columns", "kept"),
    [(["text", "label"], ["a", "e", "f"]), (["text"], ["a", "c", "e", "f"]), ("label", ["a", " ", "e", "f"])],
)
def test_rows_without_a_value_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, columns: list[str] | str, kept: list[str]
) -> None:
    with caplog.at_level("INFO"):
        splits = load_splits(path=write(tmp_path, train=ROWS, validation=ROWS), drop_missing=columns)
    assert list(splits["train"]["text"]) == list(splits["validation"]["text"]) == kept
    named = columns if isinstance(columns, str) else " or ".join(columns)
    assert f"train: {len(ROWS) - len(kept)} of 6 rows have no {named}, and are left out" in caplog.text
    assert splits.origins["train"].row(len(kept) - 1).endswith("train row 5")


def test_they_are_left_out_before_rows_are_held_out_or_chosen(tmp_path: Path) -> None:
    folder = write(tmp_path, train=ROWS * 10)
    splits = load_splits(path=folder, drop_missing=["text", "label"], limit_rows=20, limit_eval_rows=2)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 20, "validation": 2}
    assert {row["text"] for rows in splits.values() for row in rows} <= {"a", "e", "f"}


def test_a_test_split_may_have_hidden_labels(tmp_path: Path) -> None:
    hidden = [{**row, "label": None} for row in ROWS]
    splits = load_splits(path=write(tmp_path, train=ROWS, validation=ROWS, test=hidden), drop_missing=["text", "label"])
    assert list(splits["test"]["text"]) == ["a", "c", "e", "f"]
    (tmp_path / "test.jsonl").write_text('{"text": "a"}')
    assert len(load_splits(path=str(tmp_path), drop_missing=["text", "label"])["test"]) == 1


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (["lable"], r"^E-COLUMN: .*'lable'.*Did you mean 'label'"),
        (["nothing"], r"^E-DATA-EMPTY: train: .* leaves no row"),
    ],
)
def test_columns_that_cannot_be_asked_are_refused(tmp_path: Path, columns: list[str], said: str) -> None:
    rows = [{**row, "nothing": None} for row in ROWS]
    with pytest.raises(InputError, match=said):
        load_splits(path=write(tmp_path, train=rows, validation=rows), drop_missing=columns)


def test_the_only_column_is_replaced() -> None:
    rows = Dataset.from_dict({"text": ["a", "b"]})
    assert replace_column(rows, "text", [["a"], []]).to_dict() == {"text": [["a"], []]}
