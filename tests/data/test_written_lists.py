import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from loralight.data.splits import read_file
from loralight.data.written_lists import read_lists

LISTS: list[list[Any]] = [
    ["good", "it's"],
    [],
    ['say "no"', "a, b", "[c]", "tab\there", "back\\slash", "ü"],
    ["one\ntwo"],
]
NUMBERS: list[list[Any]] = [[0, -7, 12], [], [3]]


@pytest.mark.parametrize("write", [str, json.dumps, lambda one: str(np.array(one, dtype=object))])
@pytest.mark.parametrize("lists", [LISTS, NUMBERS])
def test_lists_that_python_json_and_numpy_write_are_read(tmp_path: Path, write: Any, lists: list[Any]) -> None:
    file = tmp_path / "train.csv"
    table = pd.DataFrame({"text": [f"row {row}" for row in range(len(lists))], "label": [write(one) for one in lists]})
    table.to_csv(file, index=False)
    rows = read_file(str(file))
    assert list(rows["text"]) == list(table["text"])
    assert list(rows["label"]) == lists


def test_a_list_that_numpy_breaks_over_lines_is_read(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(50)]
    pd.DataFrame({"tokens": [np.array(words)], "id": [7]}).to_csv(tmp_path / "train.csv", index=False)
    assert read_file(str(tmp_path / "train.csv")).to_list() == [{"tokens": words, "id": 7}]


def test_floats_and_missing_cells_stay_what_they_are() -> None:
    rows = Dataset.from_dict({"scores": ["[0.5 1.]", None, "[2.0, -3.25]"]})
    assert list(read_lists(rows, "a.csv")["scores"]) == [[0.5, 1.0], None, [2.0, -3.25]]


@pytest.mark.parametrize("write", [str, json.dumps])
def test_lists_of_records_are_read(tmp_path: Path, write: Any) -> None:
    chats = [[{"role": "user", "content": 'He said: "it\'s"'}, {"role": "assistant", "content": "ok"}], []]
    pd.DataFrame({"messages": map(write, chats)}).to_csv(tmp_path / "train.csv", index=False)
    assert list(read_file(str(tmp_path / "train.csv"))["messages"]) == chats


@pytest.mark.parametrize(
    "cells",
    [
        ["['a']", "no list"],
        ["['a', 1]", "['b']"],
        ["['a', 'b"],
        ["[a, b]"],
        ["['word0' 'word1' ... 'word9']"],  # NumPy leaves out the middle of long arrays
        ["[deleted]", "[removed]"],
        ["[]", "[]"],
        ["[['a'], ['b']]"],
        ["[{'a': 1}, 2]"],
        ["[{'a': print()}]"],
        ["[{" * 5000],
        ["[{'a': 1}]", "[{'a': 'b'}]"],
        [None, None],
    ],
)
def test_other_cells_stay_text(cells: list[str | None]) -> None:
    rows = Dataset.from_dict({"text": cells})
    assert list(read_lists(rows, "a.csv")["text"]) == cells
