"""What is plainly wrong is told before anything heavy is imported; what may be right is left to what knows more."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from loralight.config import first_look as module
from loralight.config.first_look import first_look
from loralight.errors import InputError

COLUMNS = {"text": "text", "pair": None, "label": "label"}


def settings(folder: Path, table: str = "text,label\na,1\n", name: str = "rows.csv", **data: Any) -> dict[str, Any]:
    (folder / name).write_text(table, encoding="utf-8")
    return {"data": {"train": str(folder / name), "columns": COLUMNS, **data}}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_missing_file_of_any_split_is_told_with_what_is_there(tmp_path: Path, split: str) -> None:
    given = settings(tmp_path, **{split: str(tmp_path / "row.csv")})
    with pytest.raises(InputError, match=r"^E-DATA: \S*row\.csv: there is no such file\. Did you mean '\S*rows\.csv'"):
        first_look(given)


def test_columns_of_which_a_table_has_none_are_told_with_those_that_it_has(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^E-COLUMN: \S*rows\.tsv has columns 'texts', 'stars', .* mean 'texts'\?"):
        first_look(settings(tmp_path, "texts\tstars\na\t1\n", "rows.tsv"))


@pytest.mark.parametrize(
    ("table", "name", "data"),
    [
        ("text,stars\na,1\n", "rows.csv", {}),
        ("review;stars\na;1\n", "rows.csv", {}),
        ("review,stars\na,1\n", "rows.csv", {"header": False}),
        ("review|stars\na|1\n", "rows.csv", {"delimiter": "pipe"}),
        ("what a day,1\nb,0\n", "rows.csv", {}),
        ('{"review": "a"}\n', "rows.jsonl", {}),
        ("\ufefftext,label\na,1\n", "rows.csv", {}),
    ],
)
def test_what_may_be_read_otherwise_is_left_alone(tmp_path: Path, table: str, name: str, data: dict[str, Any]) -> None:
    first_look(settings(tmp_path, table, name, **data))


def test_names_of_the_hub_and_of_splits_are_left_alone(tmp_path: Path) -> None:
    first_look({"data": {"path": "owner/data", "train": "train_sft"}, "model": {"checkpoint": "owner/model"}})
    first_look({"data": {"train": "https://localhost:9/rows.csv", "columns": COLUMNS}})


@pytest.mark.parametrize("checkpoint", ["/nowhere/model", "./nowhere", "~/nowhere/model"])
def test_a_folder_of_a_model_that_is_not_there_is_told(checkpoint: str) -> None:
    with pytest.raises(InputError, match=r"^E-MODEL: model\.checkpoint=\S*nowhere\S*: there is no such folder"):
        first_look({"data": {}, "model": {"checkpoint": checkpoint}})


def test_a_model_that_the_data_makes_need_not_be_there_yet() -> None:
    first_look({"data": {"folder": "/nowhere", "checkpoint": "/nowhere"}, "model": {"checkpoint": "/nowhere"}})


def test_a_logger_whose_package_is_missing_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"_target_": "lightning.pytorch.loggers.WandbLogger"}
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^E-PACKAGE: \S*WandbLogger needs another package: pip install wandb"):
        first_look({"data": {}, "logger": {"wandb": node, "csv": None}})
    monkeypatch.setattr(module, "find_spec", lambda name: importlib.util.find_spec("json"))
    first_look({"data": {}, "logger": {"wandb": node}})
