"""What is plainly wrong is told before anything heavy is imported; what may be right is left to what knows more."""

import importlib.util
import subprocess
import sys
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


OWN = {"_target_": "loralight.tasks.text_classification.TextClassificationData"}


@pytest.mark.parametrize(
    ("table", "name", "data", "message"),
    [
        ('{"text": "a", "labels": 1}\n', "rows.jsonl", {}, "E-COLUMN: .* no column 'label'.*'labels'.*columns.label="),
        ('{"post": {"text": "a"}}\n', "rows.jsonl", {}, "E-COLUMN: .* 'post' holds records with a field 'text'"),
        ('{"data": [{"text": "a", "label": 1}]}\n', "rows.json", {}, r"E-COLUMN: .* 'data' is a list .* jq '\.data'"),
        ("Class Index,text\n1,a\n", "rows.csv", {}, "E-COLUMN: .* no column 'label'; it has 'Class Index', 'text'"),
        ("ham\tcold soup\n", "rows", {}, r"E-DATA: .*rows: not a file that ends in .*data\.delimiter=tab"),
        ("a;b\n", "rows.zip", {}, r"E-DATA: .*rows\.zip: an archive; unpack it"),
        ("a;b\n", "rows.XLSX", {}, r"E-DATA: .*rows\.XLSX: a spreadsheet; save its rows as CSV"),
        ("a;b\n", "rows.pkl", {}, r"E-DATA: .*rows\.pkl: a pickle, which may run code"),
        ("text,label\ngr\xfcn,1\n", "rows.csv", {"encoding": "ascii"}, "E-DATA: .* cannot be read as text in ascii"),
        ("nice,a fine film this is\nnice,b\n", "rows.csv", {}, "E-HEADER: "),
    ],
)  # fmt: skip
def test_a_table_of_our_own_data_is_read(
    tmp_path: Path, table: str, name: str, data: dict[str, Any], message: str
) -> None:
    given = settings(tmp_path, table, name, **data)
    with pytest.raises(InputError, match=f"^{message}"):
        first_look({"data": {**given["data"], **OWN}})
    first_look({"data": {**given["data"], "_target_": "theirs.Data"}})  # which may read it in a way of its own


def test_an_archive_in_place_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "rows.zip").touch()
    with pytest.raises(InputError, match=r"^E-DATA: data\.path=.*rows\.zip: an archive; unpack it"):
        first_look({"data": {"path": str(tmp_path / "rows.zip"), **OWN}})


def test_a_file_in_place_of_a_folder_is_read_as_the_rows_of_train(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("txt,label\na,1\n")
    with pytest.raises(InputError, match=r"^E-COLUMN: the train split has no column 'text'.* mean 'txt'"):
        first_look({"data": {"path": str(tmp_path / "rows.csv"), "columns": COLUMNS, **OWN}})


def test_tables_that_can_be_read_with_their_settings_pass(tmp_path: Path) -> None:
    given = settings(tmp_path, "1;gr\xfcn\n2;rot\n", "rows.txt", delimiter=";", header=False)
    first_look({"data": {**given["data"], "columns": {"text": 1, "pair": None, "label": [0]}, **OWN}})
    first_look({"data": {**settings(tmp_path)["data"], "path": str(tmp_path / "rows.csv"), **OWN}})
    first_look({"data": {"path": "pkg://loralight.tasks.text_classification/demo", "columns": COLUMNS, **OWN}})


def test_a_table_is_read_without_what_trains(tmp_path: Path) -> None:
    given = {"data": {**settings(tmp_path)["data"], **OWN}}
    code = f"import sys; from loralight.config.first_look import first_look; first_look({given!r}); "
    code += "sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
