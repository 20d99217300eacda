"""A new task from the command line works at once, and is what the documentation shows."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

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
    words: list[str], code: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    assert re.search(code, refused("new-task", *words))
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


def shown_parts(file: str) -> list[str]:
    """What the document adds to a file of the task, or shows as one by itself."""
    blocks = re.findall(r"^```py\n# (\S+)\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.M | re.S)
    return [text for name, text in blocks if name == file]


def add(file: Path, parts: list[str]) -> None:
    """Add indented lines to the class in a file, and what stands before them in front of it."""
    text = file.read_text(encoding="utf-8")
    for part in parts:
        at = re.search(r"^    (readers|@|def (?!__init__))", part, re.M)
        assert at is not None
        before, _, after = text.partition("\n\n\nclass ")
        text = f"{before}\n\n\n{part[: at.start()]}\n\nclass {after}\n{part[at.start() :]}"
    file.write_text(text, encoding="utf-8")


def test_what_the_document_adds_to_the_task_does_what_it_says(
    in_process: InProcess, tiny_bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("more_pairs", tmp_path / "more_pairs")
    plugin = tmp_path / "more_pairs" / "more_pairs"
    for name in ("module.py", "data.py"):
        parts = [part.replace("SentencePairs", "MorePairs") for part in shown_parts(name)]
        assert parts
        add(plugin / name, parts)
    lines = [f"{score} | tea number {score} | cup number {score}" for score in range(5)] * 8
    (tmp_path / "my.pairs").write_text("\n".join(lines))
    given = ["--plugin-dir", str(plugin), "task=more_pairs", f"model.checkpoint='{tiny_bert}'", "model.max_length=16"]
    assert in_process("train", *given, "data.train=my.pairs", "debug=fast", "trainer.accelerator=cpu") == 0
    told = capsys.readouterr()
    assert "caution: " in told.out + told.err and "are in train too" in told.out + told.err
    (run,) = (tmp_path / "runs" / "more_pairs").iterdir()
    assert "validation/mse" in json.loads((run / "summary.json").read_text())["baseline"]
    assert any(name.endswith("scale.weight") for name in load_file(run / "adapter" / "adapter_model.safetensors"))
    (tmp_path / "asked.txt").write_text("The tea is cold. | The tea is not warm.")
    assert (
        in_process("predict", "--plugin-dir", str(plugin), f"run={run}", "input=asked.txt", "output=found.jsonl") == 0
    )
    answer = json.loads((tmp_path / "found.jsonl").read_text())
    assert (answer["first"], answer["second"]) == ("The tea is cold.", "The tea is not warm.")


@pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging interval")
def test_the_document_s_task_in_plain_torch_trains_and_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (script,) = shown_parts("script.py")
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    torch.save(model.state_dict(), "forecast.pt")
    names: dict[str, object] = {"__name__": "script"}
    exec(compile(script, "script.py", "exec"), names)
    forecast, task = names["Forecast"], names["task"]
    asked = [[0.5] * 24]
    loaded = forecast.load("forecast_adapter", device="cpu")  # type: ignore[attr-defined]
    assert loaded.predict(asked) == task.predict(asked)  # type: ignore[attr-defined]
