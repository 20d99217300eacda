import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from loralight.data.splits import read_file

WAYS: list[dict[str, Any]] = [{}, {"orient": "columns", "indent": 2}, {"orient": "split"}, {"orient": "records"}]
TABLE = pd.DataFrame({"text": ["2024-01-01", "1", 'a "film"'], "label": [1, 0, 1], "stars": [0.5, 1.0, None]})


@pytest.mark.parametrize("arguments", WAYS)
def test_tables_that_pandas_writes_are_read(tmp_path: Path, arguments: dict[str, Any]) -> None:
    TABLE.to_json(tmp_path / "train.json", **arguments)
    rows = read_file(str(tmp_path / "train.json"))
    assert rows.column_names == ["text", "label", "stars"]
    assert rows.to_list() == [
        {"text": "2024-01-01", "label": 1, "stars": 0.5},
        {"text": "1", "label": 0, "stars": 1.0},
        {"text": 'a "film"', "label": 1, "stars": None},
    ]


@pytest.mark.parametrize("arguments", WAYS)
def test_rows_of_a_filtered_table_are_read(tmp_path: Path, arguments: dict[str, Any]) -> None:
    TABLE.iloc[1:].to_json(tmp_path / "train.json", **arguments)
    assert list(read_file(str(tmp_path / "train.json"))["text"]) == ["1", 'a "film"']


def test_such_a_table_may_be_compressed_and_in_another_encoding(tmp_path: Path) -> None:
    table = pd.DataFrame({"text": ["schön", "trüb"], "label": [1, 0]})
    table.to_json(tmp_path / "train.json.gz")
    assert read_file(str(tmp_path / "train.json.gz")).to_list() == table.to_dict("records")
    (tmp_path / "train.json").write_bytes(table.to_json(force_ascii=False).encode("cp1252"))
    assert read_file(str(tmp_path / "train.json"), encoding="cp1252").to_list() == table.to_dict("records")


@pytest.mark.parametrize(
    "row",
    [{"text": {"0": "a", "words": 3}, "label": 1}, {"columns": ["a"], "text": "b"}, {"columns": ["a"]}],
    ids=["object", "columns", "columns alone"],
)
@pytest.mark.parametrize("number", [1, 2])
def test_rows_that_begin_alike_are_no_such_table(tmp_path: Path, row: dict[str, Any], number: int) -> None:
    (tmp_path / "train.jsonl").write_text(f"{json.dumps(row)}\n" * number)
    assert read_file(str(tmp_path / "train.jsonl")).to_list() == [row] * number


def test_examples_that_were_rejected_in_prodigy_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    answers = ["accept", "reject", "ignore", "accept"]
    lines = [{"text": str(number), "answer": answer, "_input_hash": 7} for number, answer in enumerate(answers)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with caplog.at_level("INFO"):
        assert list(read_file(str(tmp_path / "train.jsonl"))["text"]) == ["0", "3"]
    assert "2 of 4 examples were not accepted, and are left out" in caplog.text
    own = [{"question": "Is it?", "answer": "no"}]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, own)))
    assert read_file(str(tmp_path / "own.jsonl")).to_list() == own
