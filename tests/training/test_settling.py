"""What validation rows settle decides answers and metrics, goes with the adapter, and is the same in all processes."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import f1_score

import loralight
from loralight.artifacts.export import RECIPE
from loralight.training.settling import settled, settled_line

from ..textbook import calibration_error

InProcess = Callable[..., int]
WORDS = {"price": ["cheap", "dear"], "food": ["bread", "soup", "cake"], "people": ["waiter", "cook"]}


@pytest.fixture(scope="module")
def topics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train, validation (60 rows each) and test (40): texts with a column for each of three labels."""
    folder, generator = tmp_path_factory.mktemp("topics"), torch.Generator().manual_seed(0)
    for split, count in {"train": 60, "validation": 60, "test": 40}.items():
        rows = []
        for number in range(count):
            flags = (torch.rand(3, generator=generator) < torch.tensor([0.5, 0.4, 0.15])).int().tolist()
            words = [words[number % len(words)] for flag, words in zip(flags, WORDS.values(), strict=True) if flag]
            rows.append((f"place {number} {' '.join(words)}", *flags))
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", *WORDS), *rows])
    return folder


@pytest.fixture
def line(tiny_run: list[str], topics: Path) -> list[str]:
    """Overrides of a run on these."""
    columns = "data.columns.label=[" + ",".join(WORDS) + "]"
    return [*tiny_run, f"data.path='{topics}'", columns, "task.pooling=mean", "adapter.lr=0.005"]


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def rows_of(folder: Path, split: str) -> tuple[list[str], torch.Tensor]:
    with (folder / f"{split}.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], torch.tensor([[int(row[name]) for name in WORDS] for row in rows])


def test_thresholds_go_with_the_run_and_its_adapter(
    in_process: InProcess, line: list[str], topics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process("train", *line, "task.calibrate=true", "hydra.run.dir=run") == 0
    printed = capsys.readouterr()
    summary, recipe = read(tmp_path / "run/summary.json"), read(tmp_path / "run/adapter" / RECIPE)
    found = recipe["task"]["settled"]
    assert found == summary["settled"] and found.keys() == {"temperature", "thresholds"}
    assert f"chosen on 60 validation rows: temperature {found['temperature']:.3g}, thresholds" in printed.err
    assert "chosen on validation: temperature" in printed.out
    texts, targets = rows_of(topics, "test")
    answers = loralight.load(tmp_path / "run", device="cpu").predict(texts)
    given = torch.tensor([[name in answer["label"] for name in WORDS] for answer in answers]).int()
    probabilities = torch.tensor([list(answer["probabilities"].values()) for answer in answers])
    assert given.equal((probabilities > torch.tensor(found["thresholds"])).int())
    assert f1_score(targets, given, average="macro") == pytest.approx(summary["metrics"]["test/f1"], abs=1e-6)
    assert in_process("evaluate", "run=run", "output=again.json") == 0
    told = {name: value for name, value in summary["metrics"].items() if name.startswith("test/")}
    assert read(tmp_path / "again.json") == pytest.approx(told)
    assert in_process("evaluate", "run=run", "task.thresholds=0.99", "output=other.json") == 0
    assert read(tmp_path / "other.json")["test/f1"] != pytest.approx(told["test/f1"]), "the user's word counts"
    assert in_process("merge", "run=run", "output=merged") == 0
    assert read(tmp_path / "merged/merge_certificate.json")["settled"] == found
    assert "beside its plain logits" in capsys.readouterr().out


def test_a_calibrated_classifier_is_as_right_as_it_says(
    in_process: InProcess, tiny_run: list[str], texts: Path, tmp_path: Path
) -> None:
    assert in_process("train", *tiny_run, "adapter.lr=0.01", "task.calibrate=true", "hydra.run.dir=run") == 0
    summary = read(tmp_path / "run/summary.json")
    task: Any = loralight.load(tmp_path / "run", device="cpu")
    assert task.temperature == summary["settled"]["temperature"] != 1
    with (texts / "test.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    answers = task.predict([row["text"] for row in rows])
    probabilities = torch.tensor([list(answer["probabilities"].values()) for answer in answers])
    targets = torch.tensor([task.labels.index(row["label"]) for row in rows])
    told = summary["metrics"]["test/ece"]
    assert in_process("evaluate", "run=run", "task.temperature=1", "output=plain.json") == 0
    assert read(tmp_path / "plain.json")["test/ece"] != pytest.approx(told, abs=1e-4), "the user's word counts"
    assert calibration_error(probabilities.log().numpy(), targets.numpy()) == pytest.approx(told, abs=1e-4)


@pytest.mark.slow
def test_two_processes_settle_what_one_does(
    in_process: InProcess, line: list[str], topics: Path, tmp_path: Path
) -> None:
    assert in_process("train", *line, "trainer=ddp_cpu", "task.calibrate=true", "hydra.run.dir=run") == 0
    summary, task = read(tmp_path / "run/summary.json"), loralight.load(tmp_path / "run", device="cpu")
    assert summary["processes"] == 2
    texts, targets = rows_of(topics, "validation")
    with settled(task, {"temperature": 1.0, "thresholds": "auto"}):
        probabilities = torch.tensor([list(answer["probabilities"].values()) for answer in task.predict(texts)])
        found = task.settle(lambda: (probabilities, targets))
    assert found["temperature"] == pytest.approx(summary["settled"]["temperature"], rel=1e-3)
    assert found["thresholds"] == pytest.approx(summary["settled"]["thresholds"], rel=1e-3)


class Deciding:
    """As much of a task as settling knows."""

    threshold, labels = 0.5, ("a",)


def test_what_was_tried_is_undone() -> None:
    task: Any = Deciding()
    with settled(task, {"threshold": 0.2}):
        assert task.threshold == 0.2
    assert task.threshold == 0.5


def test_a_line_sums_up_more_than_twenty_numbers() -> None:
    few = settled_line({"temperature": 1.23456, "thresholds": [0.25] * 20}, 30)
    assert few == "chosen on 30 validation rows: temperature 1.23, thresholds " + " ".join(["0.25"] * 20)
    many = settled_line({"thresholds": [0.125, *[0.389] * 18, 0.61, 0.7]}, 30)
    assert many == "chosen on 30 validation rows: thresholds from 0.125 to 0.7, 0.389 for 18 of 21"
