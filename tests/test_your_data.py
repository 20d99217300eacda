"""The rows in docs/your-data.md are read as it says, with the settings that stand beside them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from loralight.config.build import build_data
from loralight.config.composition import settings_of
from loralight.config.own_data import with_own_data

from .tasks.text_generation.conftest import language_model, tiny_llama

__all__ = ["language_model", "tiny_llama"]

PAGE = Path(__file__).resolve().parent.parent / "docs" / "your-data.md"


def rows() -> list[tuple[str, dict[str, Any], list[str]]]:
    """(task, row, settings) of each line of a table that has a row in JSON."""
    found = []
    sections = re.split(r"^## .*`task=(\w+)`$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    for task, text in zip(sections[::2], sections[1::2], strict=True):
        for line in re.findall(r"^\| `\{.*$", text, re.MULTILINE):
            row, *others = re.findall(r"`([^`]+)`", line)
            settings = [word for other in others for word in other.split() if re.match(r"data\.columns\.\w+=\w", word)]
            found.append((task, json.loads(row), settings))
    return found


def test_the_page_has_rows_for_each_task_of_texts() -> None:
    assert {task for task, _, _ in rows()} == {"text_classification", "ner", "text_generation"} and len(rows()) > 8


@pytest.mark.parametrize(("task", "row", "settings"), rows())
def test_a_row_is_read_with_the_settings_beside_it(
    task: str,
    row: dict[str, Any],
    settings: list[str],
    tiny_bert: str,
    tiny_llama: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    others: dict[type, Any] = {str: "negative", int: 0, list: ["insult"]}
    other = row | ({"label": others[type(row["label"])]} if task == "text_classification" else {})
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, [row, other] * 10)) + "\n", encoding="utf-8")
    checkpoint = tiny_llama if task == "text_generation" else tiny_bert
    words = [
        f"task={task}",
        "data.path=rows.jsonl",
        f"model.checkpoint='{checkpoint}'",
        "model.max_length=32",
        *settings,
    ]
    data = build_data(settings_of("train", with_own_data(words), tmp_path / "run"))
    assert len(data.splits["train"]) > 0 and len(data.splits["validation"]) > 0
    assert any(line.startswith("train: ") for line in data.report())
