"""The answers that a run keeps: those that its metrics were computed from, once for each row, in bounded space."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loralight.tasks.text_classification import TextClassification
from loralight.training import AdapterTask, answers_of_labels
from loralight.training.answers import Answers, answers_by_shape, answers_of_rows
from loralight.training.answers_file import FILE, MOST_BYTES, write

InProcess = Callable[..., int]


def kept(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The first line of a file of answers, and the others."""
    head, *lines = (json.loads(line) for line in (run / FILE).read_text(encoding="utf-8").split("\n") if line)
    return head, lines


def test_a_run_keeps_its_answer_to_each_test_row_and_the_text_of_those_it_gets_wrong(
    in_process: InProcess, tiny_run: list[str], texts: Path, tmp_path: Path
) -> None:
    assert in_process("train", *tiny_run, "hydra.run.dir=run") == 0
    head, lines = kept(tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    with (texts / "test.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {name: head[name] for name in ("split", "kind", "rows")} == {"split": "test", "kind": "label", "rows": 20}
    assert head["digest"] == summary["data"]["digests"]["test"]
    assert [line["row"] for line in lines] == list(range(20))
    assert [line["right"] for line in lines] == [row["label"] for row in rows]
    assert summary["metrics"]["test/accuracy"] == pytest.approx(
        sum(line["given"] == line["right"] for line in lines) / 20
    )
    wrong = {line["row"]: line["input"] for line in lines if "input" in line}
    assert wrong == {line["row"]: rows[line["row"]]["text"] for line in lines if line["given"] != line["right"]}
    assert 0 < len(wrong) < 20 and all(0.5 <= line["confidence"] <= 1 for line in lines)
    assert not (tmp_path / "run" / f".{FILE}").exists()


@pytest.mark.usefixtures("warm_ranks")
def test_two_processes_keep_each_row_once(in_process: InProcess, tiny_run: list[str], tmp_path: Path) -> None:
    line = [word for word in tiny_run if "batch_size" not in word] + ["data.global_batch_size=8"]
    line += ["task.base_dropout=false", "adapter.dropout=0", "probe=false"]
    line += ["data.limit_eval_rows=9", "data.eval_batch_size=2"]  # processes have other numbers of rows and batches
    assert in_process("train", *line, "hydra.run.dir=one") == 0
    assert in_process("train", *line, "trainer=ddp_cpu", "hydra.run.dir=two") == 0
    (head, one), (other_head, two) = kept(tmp_path / "one"), kept(tmp_path / "two")
    assert head == other_head
    assert [answer.get("row") for answer in two] == list(range(head["rows"]))
    assert [{**answer, "confidence": 0} for answer in two] == [{**answer, "confidence": 0} for answer in one]


def test_a_large_split_is_kept_in_bounded_space_without_inputs_first(tmp_path: Path) -> None:
    lines = [{"row": row, "given": "a", "right": "b", "input": "x" * 2000} for row in range(20_000)]
    write(tmp_path / FILE, {"split": "test"}, lines)
    _, found = kept(tmp_path)
    assert (tmp_path / FILE).stat().st_size <= MOST_BYTES
    assert len(found) == 20_000 and 900 < sum("input" in line for line in found) < 1100
    write(tmp_path / FILE, {"split": "test"}, [{**line, "given": "y" * 2000} for line in lines])
    _, found = kept(tmp_path)
    assert (tmp_path / FILE).stat().st_size <= MOST_BYTES
    assert 1000 < len(found) < 20_000 and [line["row"] for line in found] == list(range(len(found)))


def test_a_text_that_is_no_unicode_is_written_all_the_same(tmp_path: Path) -> None:
    write(tmp_path / FILE, {"split": "test"}, [{"row": 0, "input": "half \ud83d of a sign\u2028"}])
    assert kept(tmp_path)[1] == [{"row": 0, "input": "half ? of a sign\u2028"}]


def test_several_labels_a_row_are_those_above_one_half() -> None:
    found = answers_of_labels(torch.tensor([[0.6, 0.5], [0.2, 0.9]]), torch.tensor([[1, 0], [1, 1]]), ["a", "b"])
    assert (found.kind, found.given, found.right) == ("labels", [["a"], ["b"]], [["a"], ["a", "b"]])


@pytest.mark.parametrize(
    ("predictions", "targets", "given"),
    [
        (torch.tensor([0.1234567, math.nan]), torch.tensor([0.5, 1.0]), [0.123457, None]),
        (torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [2.5]]), [1.0, 2.0]),
        (torch.tensor([[0.1, 0.9], [0.9, 0.1]]), torch.tensor([1, 1]), ["1", "0"]),
        (torch.zeros(2, 3), torch.zeros(2, 3), None),  # vectors
        (torch.zeros(2, 3, 4), torch.zeros(2, 3).long(), None),  # tokens
        (torch.zeros(5, 3), torch.zeros(5).long(), None),  # not of rows
        (torch.zeros(2, 3), torch.tensor([0, -100]), None),
        ([torch.zeros(2)], torch.zeros(2), None),
    ],
)
def test_of_a_task_without_answers_a_number_or_a_class_for_each_row_is_kept(
    predictions: Any, targets: Any, given: list[Any] | None
) -> None:
    found = answers_by_shape(predictions, targets, 2)
    assert (found and list(found.given)) == given


def test_a_run_keeps_what_a_plugin_without_answers_predicts(
    in_process: InProcess, tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextClassification, "answers", AdapterTask.answers)
    assert in_process("train", *tiny_run, "probe=false", "hydra.run.dir=run") == 0
    head, lines = kept(tmp_path / "run")
    assert (head["kind"], head["labels"], len(lines)) == ("label", ["0", "1"], 20)


def test_a_task_gets_the_arguments_of_its_metrics_that_it_declares() -> None:
    class Writes:
        def answers(self, batch: Any, *outputs: torch.Tensor, written: Any = (), wanted: Any = ()) -> Answers:
            return Answers("other", written, wanted)

    class Classifies:
        def answers(self, batch: Any, predictions: torch.Tensor, targets: torch.Tensor) -> Answers:
            return Answers("other", predictions.tolist(), targets.tolist())

    texts = {"written": ["a", "b"], "wanted": ["a", "c"], "lengths": [1, 1]}
    outputs = {"predictions": torch.tensor([1, 2]), "targets": torch.tensor([1, 3]), "arguments": texts}
    assert answers_of_rows(Writes(), None, outputs, 2) == Answers("other", ["a", "b"], ["a", "c"])
    assert answers_of_rows(Classifies(), None, outputs, 2) == Answers("other", [1, 2], [1, 3])
