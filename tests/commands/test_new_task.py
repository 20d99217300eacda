"""A new task from the command line works at once, and is what the documentation shows."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from loralight.commands.new_task import write

InProcess = Callable[..., int]
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "add-a-task.md"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], "E-NAME: loralight new-task NAME"),
        (["two", "names"], "E-NAME: loralight new-task NAME"),
        (["Bad-Name"], "E-NAME: 'Bad-Name'.*small letters"),
        (["class"], "E-NAME: 'class'"),
        (["../elsewhere"], "E-NAME"),
        (["text_classification"], "E-NAME: text_classification: there is a task of this name from loralight"),
        (["there"], "E-OUTPUT: there: the folder exists"),
    ],
    ids=str,
)
def test_a_name_that_cannot_be_is_told_and_nothing_is_written(
    words: list[str], code: str, in_process: InProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    assert in_process("new-task", *words) == 2
    assert re.search(code, capsys.readouterr().err)
    assert [entry.name for entry in tmp_path.iterdir()] == ["there"] and not list((tmp_path / "there").iterdir())


def test_every_name_in_the_new_task_is_its_own(tmp_path: Path) -> None:
    files = write("star_rating", tmp_path / "star_rating")
    assert {file.name for file in files} >= {
        "module.py",
        "data.py",
        "star_rating.yaml",
        "test_star_rating.py",
        "train.csv",
    }
    for file in files:
        assert not re.search("sentence_?pairs", f"{file.relative_to(tmp_path)} {file.read_text()}", re.IGNORECASE)


def test_the_document_shows_the_very_files(tmp_path: Path) -> None:
    files = {file.relative_to(tmp_path / "s").as_posix(): file for file in write("sentence_pairs", tmp_path / "s")}
    text = DOCUMENT.read_text(encoding="utf-8")
    shown = re.findall(r"^```(?:python|yaml|toml)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    wanted = [
        "sentence_pairs/module.py",
        "sentence_pairs/data.py",
        "sentence_pairs/conf/task/sentence_pairs.yaml",
        "sentence_pairs/conf/data/sentence_pairs.yaml",
        "tests/test_sentence_pairs.py",
        "pyproject.toml",
    ]
    assert shown == [files[name].read_text() for name in wanted]
